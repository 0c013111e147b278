"""The course of a run: what is left out, what ends it, and what it goes on from."""

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import Run as Command
from conftest import quick

from distilkit import training
from distilkit.batches import Batch
from distilkit.cli import course
from distilkit.distill import distill, parts, prepare, train
from distilkit.errors import DistilkitError
from distilkit.objectives import Loss
from distilkit.runs import Run
from distilkit.training import STRETCH, check_course


def rows(*losses: float | None) -> training.Rows:
    """Rows of metrics.jsonl: a stretch of each loss."""
    every = [loss for loss in losses for _ in range(STRETCH)]
    return [{"step": number, "loss": loss} for number, loss in enumerate(every, 1)]


def test_a_run_that_loses_all_it_learned_is_stopped() -> None:
    with pytest.raises(
        DistilkitError, match="step 400: training diverged: a loss of 2.100"
    ) as told:
        check_course(rows(2.0, 1.2, 1.5, 2.1), "lora.learning_rate", 6e-4)
    assert told.value.hint == "--set lora.learning_rate=0.0002 in a new run"


@pytest.mark.parametrize(
    "losses",
    [
        (2.0, 1.2, 1.5, 1.9),  # worse than it was, better than at the beginning
        (2.0, 1.9, 2.1),  # never learned anything
        (2.0, 2.1),  # too early to tell
        (2.0, 1.0, 0.5),
    ],
)
def test_a_run_that_does_not_diverge_goes_on(losses: tuple[float, ...]) -> None:
    check_course(rows(*losses), "train.learning_rate", 1e-3)


def test_a_run_that_explodes_at_once_is_stopped() -> None:
    """Its first stretch is mostly beyond all bounds, too."""
    losses = [2.0] * 40 + [1e6] * (2 * STRETCH - 40)
    every: training.Rows = [{"step": number, "loss": loss} for number, loss in enumerate(losses, 1)]
    with pytest.raises(DistilkitError, match="step 200: training diverged: .* 2.000 at the beg"):
        check_course(every, "train.learning_rate", 1e-3)


@pytest.fixture(scope="module")
def stopped(speech: Path, teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its first checkpoint."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    recipe = quick("train.steps=4", "train.checkpoint_every=2", "targets.store=none")
    job = prepare([speech], teacher=str(teacher_folder), out=out, recipe=recipe)
    done: list[int] = []
    for step in train(job, lambda: len(done) >= 2):
        done.append(step.number)
    assert (out / "checkpoints").is_dir()
    return out


def changed(file: str, **values: object) -> Callable[[Path], None]:
    """Other values in a JSON file; None takes one away."""

    def change(run: Path) -> None:
        told = {**json.loads((run / file).read_text()), **values}
        (run / file).write_text(json.dumps({k: v for k, v in told.items() if v is not None}))

    return change


def written(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda run: (run / file).write_bytes(content) and None


def checkpoint(
    change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None],
) -> Callable[[Path], None]:
    """Another checkpoint, with a right digest."""

    def write(run: Path) -> None:
        found = Run(run).load_checkpoint()
        assert found is not None
        tensors, state = found
        change(tensors, state)
        for path in (run / "checkpoints").iterdir():
            shutil.rmtree(path)
        Run(run).save_checkpoint(state["step"], tensors, state)

    return write


CRAFTED = {
    "no recipe": lambda run: (run / "recipe.toml").unlink(),
    "no TOML": written("recipe.toml", b"[["),
    "no UTF-8": written("recipe.toml", b"\xff\xfe"),
    "no plan": changed("run.json", plan=None),
    "a plan of another kind": changed("run.json", plan=[1]),
    "no audio": changed("run.json", audio=None),
    "a teacher that is a name": changed("run.json", teacher="tiny"),
    "no student": changed("run.json", student=None),
    "a row without a step": written("metrics.jsonl", b'{"loss": 1.0}\n'),
    "a tensor less": checkpoint(lambda tensors, _: tensors.__delitem__(next(iter(tensors)))),
    "an optimizer's odd name": checkpoint(
        lambda tensors, _: tensors.update({"optimizer.x": torch.zeros(1)})
    ),
    "room that is a text": checkpoint(lambda _, state: state.update(room="much")),
}


@pytest.mark.parametrize("damage", CRAFTED)
def test_a_run_whose_files_make_no_sense_is_one_error(
    stopped: Path, tmp_path: Path, damage: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    (run / "checkpoints" / "step-old").mkdir()
    CRAFTED[damage](run)
    with pytest.raises(DistilkitError, match="damaged"):
        list(train(prepare([], out=run, resume=True)))


def test_a_checkpoint_that_is_not_finite_is_not_gone_on_with(stopped: Path, tmp_path: Path) -> None:
    """Its last steps would be left out, and what is no number would be the student."""
    for start in ("module.", "optimizer."):
        run = tmp_path / start
        shutil.copytree(stopped, run)

        def spoil(tensors: dict[str, torch.Tensor], _: object, start: str = start) -> None:
            name = next(
                name for name, value in tensors.items() if name.startswith(start) and value.ndim
            )
            tensors[name].view(-1)[0] = torch.nan

        checkpoint(spoil)(run)
        with pytest.raises(DistilkitError, match=f"damaged: `{start}.*` is not finite"):
            list(train(prepare([], out=run, resume=True)))


@pytest.mark.parametrize("name", ["recipe.toml", "run.json"])
def test_a_folder_in_the_place_of_a_file_of_a_run(stopped: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    (run / name).unlink()
    (run / name).mkdir()
    with pytest.raises(DistilkitError, match="damaged|no run"):
        prepare([], out=run, resume=True)


def test_a_description_without_what_is_needed_is_noticed_before_the_first_step(
    stopped: Path, tmp_path: Path, run: Command
) -> None:
    facts, ends = json.loads((stopped / "run.json").read_text()), set()
    for key in [*facts, *(f"teacher.{name}" for name in facts["teacher"])]:
        folder = tmp_path / key
        shutil.copytree(stopped, folder)
        told = json.loads(json.dumps(facts))
        inner = told["teacher"] if "." in key else told
        del inner[key.rpartition(".")[2]]
        (folder / "run.json").write_text(json.dumps(told))
        code, _, err = run("distill", "--resume", "--out", folder)
        assert "unexpected" not in err, (key, err)
        assert "error: " in err or not code, (key, err)
        assert code == 0 or "step 4" not in err, (key, err)
        ends.add(code)
    assert ends == {0, 1}


def test_windows_that_came_and_went_are_noticed(stopped: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    path = run / "audio.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    for rows in ([*lines, lines[0]], lines[1:], lines[:-1]):
        path.write_bytes(gzip.compress(b"".join(rows)))
        with pytest.raises(DistilkitError, match="damaged: its windows last"):
            prepare([], out=run, resume=True)


@pytest.mark.parametrize("text", ["", "[objective]\nlayers = 'content'\n"])
def test_a_recipe_without_the_layers_that_were_chosen(
    stopped: Path, tmp_path: Path, text: str
) -> None:
    """What a run keeps says them by their numbers."""
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    (run / "recipe.toml").write_text(text)
    with pytest.raises(DistilkitError, match="damaged: a recipe whose layers are no numbers"):
        list(train(prepare([], out=run, resume=True)))


def test_a_student_whose_settings_are_none(stopped: Path, tmp_path: Path) -> None:
    """Of a run whose student is made of these alone, and its weights are in the checkpoint."""
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    facts = json.loads((run / "run.json").read_text())
    student = facts["student"] | {"from": {"name": "m"}}
    for value in (None, "1e-5", [1]):
        student["config"]["layer_norm_eps"] = value
        (run / "run.json").write_text(json.dumps(facts | {"student": student}))
        with pytest.raises(DistilkitError, match="damaged: .*layer_norm_eps"):
            prepare([], out=run, resume=True)


@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size", "intermediate_size"])
def test_a_student_of_a_size_that_no_model_has(stopped: Path, tmp_path: Path, name: str) -> None:
    """It is refused before it is built, which would never end or fill the memory."""
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    facts = json.loads((run / "run.json").read_text())
    facts["student"]["config"][name] = 10**9
    facts["student"]["from"] = {"name": "m"}
    (run / "run.json").write_text(json.dumps(facts))
    with pytest.raises(DistilkitError, match="damaged: .*1000000000"):
        prepare([], out=run, resume=True)


@pytest.mark.parametrize("damage", ["is missing", "has another shape"])
def test_moments_of_weights_that_are_not_whole(stopped: Path, tmp_path: Path, damage: str) -> None:
    """In a checkpoint whose digest is right."""
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    tensors, state = Run(run).load_checkpoint() or ({}, {})
    name = next(name for name in tensors if name.endswith(".exp_avg"))
    moment = tensors.pop(name)
    if damage == "has another shape":
        tensors[name] = moment.flatten()[:1]
    for old in (run / "checkpoints").iterdir():
        shutil.rmtree(old)
    Run(run).save_checkpoint(state["step"], tensors, state)
    with pytest.raises(DistilkitError, match=f"damaged: `{name}` {damage}"):
        list(train(prepare([], out=run, resume=True)))


def test_a_checkpoint_that_vanishes_while_it_is_read(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    job = prepare([], out=run, resume=True)

    load_file = safetensors.torch.load_file

    def gone(path: Path) -> None:
        path.unlink()
        load_file(path)

    monkeypatch.setattr(safetensors.torch, "load_file", gone)
    with pytest.raises(DistilkitError, match="damaged: No such file"):
        list(train(job))


def test_a_recipe_that_is_a_link_to_itself(stopped: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    (run / "recipe.toml").unlink()
    (run / "recipe.toml").symlink_to("recipe.toml")
    with pytest.raises(DistilkitError, match="damaged: .*recipe.toml"):
        prepare([], out=run, resume=True)


def test_what_is_inspected_of_a_run_makes_sense_or_is_one_error(
    stopped: Path, tmp_path: Path, run: Command
) -> None:
    damages: list[tuple[str, str]] = [
        ("metrics.jsonl", '{"step": 1}\n'),
        (
            "run.json",
            json.dumps(json.loads((stopped / "run.json").read_text()) | {"train_seconds": "a"}),
        ),
        ("run.json", "{}"),
    ]
    for number, (name, text) in enumerate(damages):
        folder = tmp_path / str(number)
        shutil.copytree(stopped, folder)
        (folder / name).write_text(text)
        code, _, err = run("inspect", folder)
        assert code == 1
        assert f"error: what `{folder}` holds is damaged: " in err


LOGGED = {
    "a loss that is a text": {"loss": "low"},
    "no loss": {"loss": ...},
    "a validation that is a list": {"valid": [1]},
    "a validation of texts": {"valid": {"loss": "low", "wer": "low"}},
    "no audio": {"audio_seconds": ...},
}


@pytest.mark.parametrize("damage", LOGGED)
def test_a_log_that_says_other_things_is_noticed_before_the_first_step(
    stopped: Path, tmp_path: Path, damage: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    first, *rest = (run / "metrics.jsonl").read_text().splitlines()
    row = {
        key: value
        for key, value in {**json.loads(first), **LOGGED[damage]}.items()
        if value is not ...
    }
    (run / "metrics.jsonl").write_text("\n".join([json.dumps(row), *rest]) + "\n")
    done = []
    with pytest.raises(DistilkitError, match="damaged"):
        for step in train(prepare([], out=run, resume=True)):
            done.append(step.number)
    assert not done


def test_a_run_that_began_with_next_to_nothing_may_have_ten_times_that() -> None:
    """As a recogniser that is trained further on other people."""
    every: training.Rows = [{"step": n, "loss": 0.02 if n < 21 else 0.3} for n in range(1, 201)]
    check_course(every, "train.learning_rate", 1e-3)


def test_what_is_no_damage_is_not_called_that(tmp_path: Path) -> None:
    """A full disk, rights, a GPU or another process that failed."""
    run = Run(tmp_path / "run")
    for error in (PermissionError(13, "no"), OSError(28, "full"), torch.distributed.DistError("gone"), MemoryError()):  # fmt: skip
        with pytest.raises(type(error)), training.reading(run):
            raise error


def test_between_two_stretches_nothing_is_said() -> None:
    check_course(rows(2.0, 1.2, 1.5, 2.1)[:-1], "train.learning_rate", 1e-3)


def test_steps_without_a_number_do_not_count() -> None:
    every = rows(2.0, 1.0, 0.9)
    every[150]["loss"] = None
    check_course(every, "train.learning_rate", 1e-3)


def test_a_step_that_is_left_out_is_in_the_log_and_on_the_card(
    speech: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also as the very first step, whose loss the card would name."""
    monkeypatch.chdir(tmp_path)
    recipe = quick("data.valid_fraction=0.0", "train.validate_every=100")
    job = prepare([speech], teacher=str(teacher_folder), out=tmp_path / "run", recipe=recipe)
    seen: list[object] = []

    def assemble(*given: Any) -> Any:
        made, targets = parts.assemble(*given)

        def loss_of(module: torch.nn.Module, batch: Batch) -> Loss:
            loss = made.loss_of(module, batch)
            seen.append(batch)
            return loss if len(seen) > 1 else Loss(total=loss.total * torch.nan, parts=loss.parts)

        return replace(made, loss_of=loss_of), targets

    monkeypatch.setattr("distilkit.distill.assemble", assemble)
    steps = list(train(job))
    assert [step.updated for step in steps] == [False, *[True] * 5]
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in text
    first = json.loads(text.splitlines()[0])
    assert (first["loss"], first["updated"]) == (None, False)
    assert first["broken"] == steps[0].broken
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert f"{steps[1].loss:.4f} at step 2" in card


@pytest.mark.parametrize(
    ("wrong", "after", "last"),
    [({2, 5, 8, 11}, 6, 11), ({6, 7, 8}, 7, 8)],
    ids=["too many in all", "three in a row"],
)
def test_stopped_and_resumed_too_many_broken_steps_end_at_the_same_one(
    speech: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    wrong: set[int], after: int, last: int,
) -> None:  # fmt: skip
    recipe = quick("data.valid_fraction=0.0", "train.validate_every=100", "train.steps=20", "targets.store=none")  # fmt: skip
    options = {"teacher": str(teacher_folder), "recipe": recipe}
    done: list[int] = []

    def assemble(*given: Any) -> Any:
        made, targets = parts.assemble(*given)

        def loss_of(module: torch.nn.Module, batch: Batch) -> Loss:
            loss, factor = made.loss_of(module, batch), torch.nan if len(done) + 1 in wrong else 1.0
            return Loss(total=loss.total * factor, parts=loss.parts)

        return replace(made, loss_of=loss_of), targets

    monkeypatch.setattr("distilkit.distill.assemble", assemble)

    def follow(job: Any, stop: Callable[[], bool]) -> None:
        for step in train(job, stop):
            done.append(step.number)

    said = []
    with pytest.raises(DistilkitError, match=f"step {last}") as told:
        follow(prepare([speech], out=tmp_path / "whole", **options), lambda: False)
    said.append(str(told.value))
    done.clear()
    follow(prepare([speech], out=tmp_path / "broken", **options), lambda: len(done) == after - 1)
    assert done == [*range(1, after + 1)]
    with pytest.raises(DistilkitError, match=f"step {last}") as told:
        follow(prepare([], out=tmp_path / "broken", resume=True), lambda: False)
    said.append(str(told.value))
    assert said[0] == said[1]
    rows, again = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "broken"))
    assert rows == again
    assert rows.count(b"\n") == last - 1


def test_a_damaged_checkpoint_costs_the_steps_behind_the_one_before(
    speech: Path, teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"teacher": str(teacher_folder), "recipe": quick()}
    distill([speech], **options, out=tmp_path / "whole")
    out, taken = tmp_path / "broken", []
    job = prepare([speech], **options, out=out)
    for step in train(job, lambda: len(taken) == 4):
        taken.append(step.number)
    newest = max((out / "checkpoints").iterdir())
    assert newest.name == "step-00000005"
    (newest / "tensors.safetensors").write_bytes(b"spoilt")
    again = prepare([], out=out, resume=True)
    course.follow(
        lambda stop: train(again, stop), again, disk=0, again="distilkit distill --resume"
    )
    said = capsys.readouterr().err
    assert f"checkpoint `{newest}` is damaged and left out" in said.replace("\n", "")
    for name in ("metrics.jsonl", "student/model.safetensors", "heads.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert Run(out).finished
