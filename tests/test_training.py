"""The course of a run: what is left out, what ends it, and what it goes on from."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
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
