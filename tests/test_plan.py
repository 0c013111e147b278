"""What is decided before a run, and what it says it will take."""

from pathlib import Path

import pytest
import torch
from conftest import Run as Command
from conftest import make_model, quick

from distilkit import distill, loop, plan, resuming, training
from distilkit.cli import course
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
    assert distill.measure(job).seconds_per_step == pytest.approx(wanted)
