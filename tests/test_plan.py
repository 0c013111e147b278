"""What is decided before a run, and what it says it will take."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Run as Command
from conftest import make_model, quick

from distilkit import codebooks, distill, loop, plan, resuming, training, trials
from distilkit.cli import course
from distilkit.distill.job import Job
from distilkit.encoder import Encoder, encode, exact
from distilkit.errors import DistilkitError
from distilkit.kernels import Compiled
from distilkit.runs import Run
from distilkit.targets import LiveTargets

GIB = 2**30


GOOD = {
    "steps": 4, "steps_per_pass": 2, "micro_seconds": 4.0, "workers": 0, "precision": "fp32", "device": "cpu",
    "gradient_checkpointing": False, "choices": [], "stored": None, "stored_bytes": 0, "front_width": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    "lie",
    [
        {"steps": 0}, {"steps": 4.5}, {"steps": True}, {"steps": "4"}, {"steps_per_pass": -1},
        {"micro_seconds": float("nan")}, {"micro_seconds": 0}, {"micro_seconds": [4]}, {"workers": 10**6},
        {"workers": -1}, {"precision": "fp8"}, {"precision": ["fp32"]}, {"device": "moon"}, {"device": {}},
        {"gradient_checkpointing": "yes"}, {"stored": "fp8"}, {"stored_bytes": -1}, {"front_width": 1.5},
        {"choices": 3}, {"choices": [{"name": "a"}]}, {"more": 1}, {"products": 1}, {"compiled": "yes"},
    ],
    ids=str,
)  # fmt: skip
def test_a_plan_that_no_run_can_have(lie: dict[str, object], tmp_path: Path) -> None:
    with training.reading(Run(tmp_path)):
        assert resuming.decided(GOOD).steps == 4
    with pytest.raises(DistilkitError, match="is damaged: "), training.reading(Run(tmp_path)):
        resuming.decided({**GOOD, **lie})


# ------------------------------------------------------------------------- layers compiled or not


@pytest.mark.parametrize(
    ("asked", "compiled", "shown"),
    [("auto", False, []), ("true", True, [("on", "asked for")]), ("false", False, [("off", "asked for")])],
)  # fmt: skip
def test_layers_are_compiled_where_that_is_asked_for(
    asked: str, compiled: bool, shown: list[tuple[str, str]],
    speech: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of a student and its teacher; the teacher that was loaded stays what it was."""
    monkeypatch.setattr(plan, "obstacle", lambda device: "")
    recipe = quick(f"train.compile={asked}", "objective.layers=[4,8]")
    job = distill.prepare([speech], teacher=str(teacher_folder), out=tmp_path, recipe=recipe)
    choices = job.plan.choices
    assert [(c.value, c.reason) for c in choices if c.name == "compiled layers"] == shown
    made, targets = distill.assemble(job, loop.accelerator("cpu", "fp32"))
    assert isinstance(targets, LiveTargets)
    assert job.teacher is not None
    for model, wanted in (
        (made.module.model, compiled), (targets.teacher.model, compiled), (job.teacher.model, False),
    ):  # fmt: skip
        assert all(isinstance(layer, Compiled) is wanted for layer in model.encoder.layers)


def test_layers_that_cannot_be_compiled(
    speech: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new run is refused, one that goes on elsewhere goes on without."""
    for module in (plan, resuming):
        monkeypatch.setattr(module, "obstacle", lambda device: "no compiler")
    asked = {"teacher": str(teacher_folder), "out": tmp_path, "recipe": quick("train.compile=true")}
    with pytest.raises(
        DistilkitError, match="layers cannot be compiled here: no compiler"
    ) as error:
        distill.prepare([speech], **asked)
    assert error.value.hint == "--set train.compile=auto"
    found = resuming.decided({**GOOD, "compiled": True})
    assert not found.compiled
    assert [(c.name, c.value, c.reason) for c in found.choices] == [
        ("compiled layers", "off", "cannot be done here: no compiler")
    ]
    monkeypatch.setattr(resuming, "obstacle", lambda device: "")
    assert resuming.decided({**GOOD, "compiled": True}).compiled


# ------------------------------------------------------------------------------------ --memory


@pytest.mark.parametrize(
    ("text", "gib"),
    [
        ("6GB", 6.0),
        ("6 gb", 6.0),
        ("6", 6.0),
        ("1.5GiB", 1.5),
        (".5GB", 0.5),
        ("512MB", 0.5),
        ("1TB", 1024.0),
    ],
)
def test_amounts_of_memory(text: str, gib: float) -> None:
    assert course.memory_gib(text) == gib


@pytest.mark.parametrize("text", ["", "GB", "six", "6 apples", "0GB", "-1GB", "1e3GB", "6GB6"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(DistilkitError, match="is no amount of memory"):
        course.memory_gib(text)


def test_less_memory_is_less_at_once(run: Command, speech: Path, teacher_folder: Path) -> None:
    asked = ("distill", speech, "--teacher", teacher_folder, "--recipe", "smoke", "--steps", "1")
    more = (
        "--set",
        "objective.layers=[4]",
        "--set",
        "train.device=cpu",
        "--set",
        "batches.seconds=40",
    )
    for place, option in (("a", ()), ("b", ("--memory", "20MB"))):
        code, _, err = run(*asked, *more, "--out", place, *option)
        assert code == 0, err

    def lasting(place: str) -> float:
        return float(plan_of(place)["micro_seconds"])

    def plan_of(place: str) -> dict[str, object]:
        return Run(Path(place)).read()["plan"]

    assert lasting("b") < lasting("a")
    assert plan_of("b")["gradient_checkpointing"] is True
    code, _, err = run(*asked, "--out", "c", "--memory", "lots")
    assert code == 1
    assert "`--memory lots` is no amount of memory" in err
    code, _, err = run(*asked, "--out", "d", "--vram", "100TB")
    assert code == 1
    assert "is more than the" in err


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize(
    ("frozen", "recompute", "dropout"),
    [(False, False, 0.0), (True, False, 0.0), (False, True, 0.0), (False, False, 0.1)],
)
def test_the_estimate_follows_what_is_kept(
    norm: str, frozen: bool, recompute: bool, dropout: float
) -> None:
    """What autograd keeps of four clips: each block of memory once, weights left out."""
    shape: dict[str, object] = {"conv_dim": [64] * 7, "hidden_size": 96, "intermediate_size": 384}
    shape |= {"attention_dropout": dropout, "feat_extract_norm": norm}
    model = exact(make_model(num_hidden_layers=2, **shape)).train()
    if frozen:
        model.feature_extractor._freeze_parameters()
    if recompute:
        model.activation_checkpointing_enable()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        block = tensor.untyped_storage()
        if block.data_ptr() not in weights:
            kept[block.data_ptr()] = block.nbytes(), tensor
        return tensor

    seconds, clips = 8.0, 4
    wave_BS = torch.randn(clips, int(seconds * 16_000))
    encoder = Encoder(model=model, normalise=False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        encode(encoder, wave_BS, [wave_BS.shape[1]] * clips, [2])
    found = sum(size for size, _ in kept.values()) / (clips * seconds)
    said = plan.bytes_per_second(
        model.config, "fp32", frozen_front=frozen, recompute=recompute,
        attended=seconds if dropout else 0.0,
    )  # fmt: skip
    assert 0.5 * said < found < said


@pytest.mark.parametrize(("seconds", "steps"), [(4.0, 13), (8.0, 13), (20.0, 6), (120.0, 3)])
def test_a_plan_takes_a_few_long_steps_or_more_short_ones(
    seconds: float, steps: int, speech: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first warms up; what is said is the mean of the others."""
    recipe = quick(f"batches.seconds={seconds}")
    assert plan.measured_steps(recipe) == steps
    taken = [9.0, *[1.0, 3.0] * 6][:steps]
    made = [
        loop.Step(
            number=number, loss=1.0, parts={}, grad_norm=1.0, learning_rate=0.1, audio_seconds=4.0,
            seconds=each,
        )
        for number, each in enumerate(taken, start=1)
    ]  # fmt: skip
    monkeypatch.setattr(loop, "fit", lambda *given, **settings: iter(made[: settings["steps"]]))
    job = distill.prepare([speech], teacher=str(teacher_folder), out=Path("a"), recipe=recipe)
    wanted = sum(taken[1:]) / len(taken[1:])
    taken = distill.measure(job).taken
    assert taken is not None
    assert taken.seconds_per_step == pytest.approx(wanted)


# ------------------------------------------------------------------- what a run says it will take

SHORT = (
    "--recipe", "smoke", "--set", "train.device=cpu", "--set", "batches.seconds=4", "--set",
    "batches.micro_seconds=4", "--set", "train.validate_every=20",
)  # fmt: skip
LAYER = ("--set", "objective.layers=[4]")


@pytest.mark.parametrize(("seconds", "least"), [(4.0, 1300), (120.0, 300)])
def test_steps_are_measured_where_they_are_a_hundredth_of_the_run(
    seconds: float, least: int
) -> None:
    recipe = quick(f"batches.seconds={seconds}")
    assert plan.worth_measuring(recipe, least)
    assert not plan.worth_measuring(recipe, least - 1)


def table(text: str) -> dict[str, str]:
    """The rows of the table of a plan, its last: what, and all that follows."""
    lines = [line.split() for line in text.splitlines()]
    begin = max(place for place, line in enumerate(lines) if line == ["plan"])
    return {line[0]: " ".join(line[1:]) for line in lines[begin + 2 : begin + 5]}


def test_a_run_says_what_it_will_take(
    run: Command, speech: Path, teacher_folder: Path, transcribed: Path, letters: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Measured where that takes little beside it; what comes of the run is the same."""
    commands = {
        "distill": ("distill", speech, "--teacher", teacher_folder, *SHORT, *LAYER, "--set", "targets.store=fp16"),
        "finetune-ctc": (
            "finetune-ctc", transcribed, "--tokenizer", letters, "--model", teacher_folder, *SHORT[2:],
            "--steps", "20",
        ),
    }  # fmt: skip
    for name, command in commands.items():
        monkeypatch.setattr(plan, "MEASURED_SHARE", 0.01)
        code, _, err = run(*command, "--out", f"{name}-a")
        assert code == 0, err
        assert "measuring" not in err
        said = table(err)
        assert said["time"].startswith(
            "shown as it goes 20 steps, too few to measure some beforehand"
        )
        assert "memory" not in said
        assert "MiB two checkpoints, a third while one is replaced, the result" in said["disk"]

        monkeypatch.setattr(plan, "MEASURED_SHARE", 1.0)
        code, _, err = run(*command, "--out", f"{name}-b")
        assert code == 0, err
        assert "measuring a few steps ..." in err
        said = table(err)
        assert said["time"].partition(" 20 steps of ")[2]
        assert ("for the teacher's targets" in said["time"]) is (name == "distill")
        assert "GiB the most so far, measured here" in said["memory"]
        assert ("result, targets" in said["disk"]) is (name == "distill")
        first, second = (Run(Path(f"{name}-{each}")) for each in "ab")
        assert first.rows("metrics.jsonl") == second.rows("metrics.jsonl")


def test_a_resumed_run_says_what_is_left(
    run: Command, speech: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = distill.prepare(
        [speech], teacher=str(teacher_folder), out=Path("a"),
        recipe=quick("objective.layers=[4]", "train.steps=20", "batches.seconds=4", "targets.store=fp16"),
    )  # fmt: skip
    done: list[int] = []
    for step in distill.train(job, lambda: len(done) >= 5):
        done.append(step.number)
    monkeypatch.setattr(plan, "MEASURED_SHARE", 1.0)
    code, _, err = run("distill", "--resume", "--out", "a")
    assert code == 0, err
    said = table(err)["time"]
    assert f"{20 - len(done)} steps of " in said
    assert "targets" not in said  # they are there


def test_units_are_found_once(
    run: Command, speech: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While steps are measured, and for the run; a plan counts the time."""
    found: list[object] = []
    find = codebooks.find

    def counted(*given: object, **more: object) -> codebooks.Codebook:
        found.append(find(*given, **more))  # type: ignore[arg-type]
        return found[-1]  # type: ignore[return-value]

    monkeypatch.setattr(codebooks, "find", counted)
    command = ("distill", speech, "--teacher", teacher_folder, *SHORT, *LAYER)
    command += ("--set", "objective.name=units", "--set", "objective.clusters=8")
    code, out, err = run(*command, "--out", "plain", "--plan", "--json")
    assert code == 0, err
    planned = json.loads(out)
    assert planned["unit_seconds"] > 0
    assert len(found) == 1
    code, out, err = run(*command, "--out", "plain", "--plan")
    assert (
        "before them 0.0 s to find the units" in out or "s to find the units" in table(out)["time"]
    )
    code, _, err = run(*command, "--out", "plain")
    assert len(found) == 3
    monkeypatch.setattr(plan, "MEASURED_SHARE", 1.0)
    for name, more in {"measured": (), "hours": ("--hours", "1")}.items():
        found.clear()
        code, _, err = run(*command, "--out", name, *more)
        assert code == 0, err
        assert len(found) == 1
        assert "find the units" not in table(err)["time"]
        for file in ("codebook.safetensors", "metrics.jsonl"):
            assert Path(name, file).read_bytes() == Path("plain", file).read_bytes()


def test_steps_are_measured_once(
    run: Command, speech: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    fit = loop.fit

    def counted(*given: object, **more: object) -> object:
        taken.append(1)
        return fit(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(trials.loop, "fit", counted)
    command = ("distill", speech, "--teacher", teacher_folder, *SHORT, *LAYER)
    for more in (["--plan", "--json"], ["--plan", "--json", "--hours", "1"]):
        taken.clear()
        code, out, _ = run(*command, *more)
        assert code == 0
        assert json.loads(out)["seconds_per_step"] > 0
        assert len(taken) == 1


def test_a_run_that_would_fill_the_disk_measures_nothing(
    run: Command, speech: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MEASURED_SHARE", 1.0)
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))  # type: ignore[attr-defined]
    monkeypatch.setattr(distill, "measure", lambda *given: pytest.fail("measured"))
    code, _, err = run("distill", speech, "--teacher", teacher_folder, *SHORT, *LAYER, "--out", "a")
    assert code == 1
    assert "the run writes" in err
    assert not Path("a").exists()


def test_units_are_found_once_whatever_is_measured(
    speech: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With targets stored, then with the teacher beside the student, and of a run that is resumed."""
    found: list[int] = []
    find = codebooks.find

    def counted(*given: object, **more: object) -> codebooks.Codebook:
        found.append(1)
        return find(*given, **more)  # type: ignore[arg-type]

    def taken(job: Job, *given: object) -> plan.Measured:
        measured.append(job.plan.stored)
        return plan.Measured(seconds_per_step=300.0, peak_gib=1.0)

    measured: list[str | None] = []
    monkeypatch.setattr(codebooks, "find", counted)
    recipe = quick(
        "objective.name=units", "objective.layers=[4]", "objective.clusters=8", "targets.store=auto",
        "train.steps=20", "train.hours=0.25",
    )  # fmt: skip
    with monkeypatch.context() as changed:
        changed.setattr(distill, "_taken", taken)
        job = distill.prepare(
            [speech], teacher=str(teacher_folder), out=tmp_path / "a", recipe=recipe
        )
    assert (measured, len(found)) == (["fp16", None], 1)
    assert job.taken is not None
    assert job.taken.unit_seconds > 0
    assert not distill.finds_units(job)
    job = replace(job, plan=replace(job.plan, steps=4))
    for _ in distill.train(job, lambda: True):
        pass
    again = distill.measure(distill.prepare([], out=tmp_path / "a", resume=True))
    assert again.taken is not None
    assert again.taken.unit_seconds == 0
    assert len(found) == 1


def test_finding_units_shows_how_far_it_is(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    shown: list[tuple[str, int, int]] = []

    def track(items: Iterable[object], *, description: str, total: int) -> Iterator[object]:
        taken = list(items)
        shown.append((description, len(taken), total))
        yield from taken

    recipe = quick(
        "objective.name=units", "objective.layers=[4]", "objective.clusters=8", "train.steps=2",
        "batches.micro_seconds=4",
    )  # fmt: skip
    job = distill.prepare([speech], teacher=str(teacher_folder), out=tmp_path / "a", recipe=recipe)
    for _ in distill.train(job, track=track):
        pass
    (found,) = [each for each in shown if "units" in each[0]]
    assert found[1] == found[2] > 2


def test_a_process_that_comes_late_keeps_units_with_the_others(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    """All wait for the one that writes, though it may have written by then."""
    recipe = quick("objective.name=units", "objective.layers=[4]", "objective.clusters=8")
    job = distill.prepare([speech], teacher=str(teacher_folder), out=tmp_path / "a", recipe=recipe)
    job = distill.measure(job)
    assert job.units is not None
    file = tmp_path / "codebook.safetensors"
    codebooks.save(job.units, file)
    waited: list[int] = []
    late = SimpleNamespace(is_main_process=False, wait_for_everyone=lambda: waited.append(1))
    distill.parts.found_codebook(job, late, None, file)  # type: ignore[attr-defined, arg-type]
    assert waited == [1]
