"""A run from its first optimizer step, or the one it stopped at, to its last: logs, validations, checkpoints.

What `distill` and `finetune-ctc` share: the caller brings the module, the loss and the audio.
"""

import errno
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from lhotse import MonoCut
from safetensors import SafetensorError
from torch import nn

from distilkit import batches, config, leftovers, loop, plan, resuming
from distilkit.batches import Batch
from distilkit.errors import DistilkitError
from distilkit.files import MALFORMED, discard
from distilkit.objectives import Loss
from distilkit.runs import CHECKPOINTS, Run, free_folder, newest_run
from distilkit.wording import first_line

NEW = {  # how runs are begun
    "distill": "distilkit distill AUDIO",
    "finetune-ctc": "distilkit finetune-ctc DATA --tokenizer DIR",
}
STRETCH = 100  # steps whose mean loss is looked at
# Something else is there, or nothing.
MISPLACED = FileNotFoundError, IsADirectoryError, NotADirectoryError
BEGUN = 20  # steps that say where a run began
BURST = 10.0  # times that loss, or 1 where it was less: beyond, a run has diverged, learned or not
LEARNED = 0.9  # of that loss: what a run came below before it can be said to lose all it learned
Rows = list[dict[str, Any]]  # of metrics.jsonl


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What is trained and how."""

    module: nn.Module
    optimizer: Any  # torch's
    loss_of: Callable[[nn.Module, Batch], Loss]
    given: frozenset[str] = (
        frozenset()
    )  # weights of the module that stay what they are when it is made
    beside: batches.Beside | None = None  # what comes with each window


def place(
    inputs: Sequence[str | Path], out: Path | None, resume: bool, *, kind: str, suffix: str = ""
) -> Run:
    """The run that is meant: in `out`, the newest one to resume, or a new one named after its data.

    Args:
        inputs: what is trained on.
        out: the run folder; None chooses.
        resume: whether an unfinished run is to go on.
        kind: `distill` or `finetune-ctc`.
        suffix: behind the name of a new run.

    Raises:
        DistilkitError: there is no run to resume.
    """
    if out is not None:
        return Run(out)
    if resume:
        newest = newest_run(Path("runs"), finished=False, kind=kind)
        if newest is None:
            raise DistilkitError("no unfinished run under `runs`", NEW[kind])
        return newest
    name = Path(inputs[0]).resolve().stem if inputs else "run"
    return Run(free_folder(Path("runs") / f"{name}{suffix}"))


def check_kind(run: Run, kind: str) -> None:
    """Refuse to resume a run of another command.

    Raises:
        DistilkitError: names the command that goes on with it.
    """
    if run.kind != kind:
        raise DistilkitError(
            f"`{run.folder}` is a run of `distilkit {run.kind}`",
            f"distilkit {run.kind} --resume --out {run.folder}",
        )


def check_inputs(run: Run, given: Sequence[str | Path], began: Sequence[str]) -> None:
    """Refuse to resume a run on other recordings than it began with.

    Raises:
        DistilkitError: names those that it began with.
    """
    places = [{Path(item).resolve() for item in items} for items in (given, began)]
    if given and places[0] != places[1]:
        listed = ", ".join(f"`{item}`" for item in began)
        raise DistilkitError(
            f"`{run.folder}` began with {listed}; a resumed run keeps its recordings",
            "leave them out, or start a new run with another --out",
        )


def unchanged(valid: dict[str, float]) -> dict[str, float]:
    """What was measured on held-out windows, as it was measured."""
    return valid


def unreported(state: str) -> str:
    """No report, and nothing that goes wrong with it."""
    return ""


def steps(
    run: Run,
    recipe: config.Recipe | config.CtcRecipe,
    decided: plan.Plan,
    made: Parts,
    accelerator: Accelerator,
    *,
    train: Sequence[MonoCut],
    valid: Sequence[MonoCut],
    resumed: bool,
    stop: Callable[[], bool],
    told: Callable[[dict[str, float]], dict[str, float]] = unchanged,
    validated: Callable[[nn.Module, Rows], None] = lambda module, rows: None,
    enough: Callable[[Rows], bool] = lambda rows: False,
    report: Callable[[str], str] = unreported,
) -> Generator[loop.Step, None, nn.Module | None]:
    """Train, yielding each optimizer step; return the module when done, None when stopped before.

    The caller holds the run's lock.

    Args:
        run: where metrics and checkpoints go.
        recipe: batches and training settings.
        decided: steps, micro-batches, device.
        made: what is trained, the loss, and what comes with each window.
        accelerator: device, precision, processes.
        train: what to train on.
        valid: what to validate on; may be empty.
        resumed: whether to go on from the run's checkpoint.
        stop: asked after every step; when it says True, a checkpoint is saved.
        told: what a validation is logged as.
        validated: called with the bare module and the metrics after each validation, before the
            checkpoint, in the process that writes.
        enough: asked with the metrics after each validation whether to end early.
        report: called before the first step and after each validation and checkpoint, in the process that
            writes, with what the run is doing; returns what went wrong, which ends no run.

    Raises:
        DistilkitError: every checkpoint is damaged, losses are not finite, or training diverges.
    """
    first = accelerator.is_main_process  # of several processes, the one that writes
    plan.cap(decided.device, recipe.train)
    module, optimizer = accelerator.prepare(made.module, made.optimizer)
    start, room = _put_back(run, accelerator, module, optimizer, made, resumed)
    with reading(run):
        over = enough(rows := resuming.logged(run))
    if over:
        return accelerator.unwrap_model(module)  # type: ignore[no-any-return]
    schedule = plan.schedule(
        recipe, train, decided.micro_seconds, accelerator.process_index, accelerator.num_processes
    )
    stream = batches.stream(
        train,
        schedule,
        first=start + 1,
        last=decided.steps,
        workers=decided.workers,
        beside=made.beside,
        pinned=decided.device == "cuda",
    )
    settings = recipe.train
    unwritten = report("training") if first else ""
    for step in loop.fit(
        accelerator,
        module,
        optimizer,
        stream,
        made.loss_of,
        settings,
        start=start,
        steps=decided.steps,
        room=room,
        broken=[row["step"] for row in rows if row.get("broken")],
    ):
        last = step.number == decided.steps
        if valid and (last or step.number % settings.validate_every == 0):
            most = min(decided.micro_seconds, room.seconds)
            measured = loop.validate(accelerator, module, valid, made.loss_of, most, made.beside)
            step = replace(step, valid=told(measured))
        rows.append(_row(step))
        check_course(rows, *recipe.peak_rate)
        ended = last or (bool(step.valid) and enough(rows))
        halt = loop.any_rank(accelerator, stop()) and not ended
        if first:
            run.append("metrics.jsonl", rows[-1])
            run.append("speed.jsonl", _speed(step, decided.device))
            if step.valid:
                validated(accelerator.unwrap_model(module), rows)
            saving = halt or ended or step.number % settings.checkpoint_every == 0
            if saving:
                _keep(run, accelerator, module, optimizer, made, room, step.number)
            if saving or step.valid:
                state = "trained" if ended else "stopped" if halt else "training"
                unwritten = report(state) or unwritten
        yield replace(step, unwritten=unwritten)
        unwritten = ""
        if halt:
            return None
        if ended:
            break
    return accelerator.unwrap_model(module)  # type: ignore[no-any-return]


def _keep(
    run: Run,
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: Any,
    made: Parts,
    room: loop.Room,
    step: int,
) -> None:
    """Save a checkpoint."""
    tensors, numbers = loop.state(accelerator, module, optimizer, made.given)
    if math.isfinite(room.seconds):
        numbers["room"] = room.seconds
    run.save_checkpoint(step, tensors, numbers)


def _put_back(
    run: Run,
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: Any,
    made: Parts,
    resumed: bool,
) -> tuple[int, loop.Room]:
    """The newest checkpoint, where the run goes on from it: its step, and how much was in memory at once.

    What came after it is forgotten.
    """
    start, room = 0, loop.Room()
    with reading(run):
        saved = run.load_checkpoint() if resumed else None
        if saved is not None:
            resuming.check_finite(saved[0])
            loop.restore(accelerator, module, optimizer, *saved, given=made.given)
            start = int(saved[1]["step"])
            room.seconds = float(saved[1].get("room", room.seconds))
        if accelerator.is_main_process:
            run.rewind(start)
    if accelerator.is_main_process:
        for older in sorted((run.folder / "checkpoints").glob("step-*"))[:-CHECKPOINTS]:
            discard(older)  # what ended in the midst of that left part of it
    accelerator.wait_for_everyone()
    return start, room


def agreed(decided: plan.Plan) -> tuple[plan.Plan, Accelerator]:
    """The plan that all processes of a run follow, and where they compute.

    What each measured, on a card of its own, may differ. It is the first one's, with no more in memory at
    once than fits everywhere.
    """
    accelerator = loop.accelerator(decided.device, decided.precision)
    plans: list[plan.Plan] = gather_object([decided])
    followed = replace(
        plans[0],
        micro_seconds=min(each.micro_seconds for each in plans),
        gradient_checkpointing=any(each.gradient_checkpointing for each in plans),
        products=all(each.products for each in plans),
        compiled=all(each.compiled for each in plans),
    )
    if followed.precision != decided.precision:
        accelerator = loop.accelerator(followed.device, followed.precision)
    return followed, accelerator


@contextmanager
def reading(run: Run) -> Iterator[None]:
    """One error where what a run's files say makes no sense, though each of them may be whole.

    Disks, rights, devices and other processes that fail are what they are.

    Raises:
        DistilkitError: that, and what it was.
    """
    try:
        yield
    except (*MALFORMED, OSError, RuntimeError, SafetensorError) as error:
        elsewhere = isinstance(error, RuntimeError) and type(error).__module__ != "builtins"
        if isinstance(error, OSError):  # safetensors gives no number
            elsewhere = not isinstance(error, MISPLACED) and error.errno != errno.ELOOP
        if elsewhere or batches.out_of_memory(error):
            raise
        said = first_line(error)
        if isinstance(error, KeyError):
            said = f"`{error.args[0]}` is missing"
        raise DistilkitError(
            f"what `{run.folder}` holds is damaged: {said}", "start a new run with another --out"
        ) from error


def gone_on(run: Run, resumed: bool) -> AbstractContextManager[None]:
    """`reading` where a run is resumed; what goes wrong in a new one is no damage."""
    return reading(run) if resumed else nullcontext()


def check_course(rows: Rows, name: str, rate: float) -> None:
    """Refuse to go on where all that was learned is lost again, or the loss explodes.

    Looked at every `STRETCH` steps: their mean loss against that of the first `BEGUN` ones. A run that never
    learned anything, and does not explode, is left alone.

    Args:
        rows: of metrics.jsonl, up to now.
        name: the setting of the learning rate.
        rate: what it is at its peak.

    Raises:
        DistilkitError: the loss is above where it began, and was well below; or it is many times that.
    """
    if len(rows) < 2 * STRETCH or len(rows) % STRETCH:
        return
    stretches = [rows[at : at + STRETCH] for at in range(0, len(rows), STRETCH)]
    losses = [mean(row["loss"] for row in part if row["loss"] is not None) for part in stretches]
    begun = [row["loss"] for row in rows[:BEGUN] if row["loss"] is not None]
    first, last, least = mean(begun or losses[:1]), losses[-1], min(losses)
    if last > BURST * max(first, 1.0) or (last > first and least < LEARNED * first):
        raise DistilkitError(
            f"step {rows[-1]['step']}: training diverged: a loss of {last:.3f} over {STRETCH} steps, "
            f"{least:.3f} at its best, {first:.3f} at the beginning",
            f"--set {name}={rate / 3:.1g} in a new run",
        )


@contextmanager
def holding(run: Run, accelerator: Accelerator) -> Iterator[None]:
    """The run's lock, held by the process that writes; what one before it left half-written is removed."""
    if not accelerator.is_main_process:
        yield
        return
    with run.locked():
        leftovers.tidy_below(run.folder)
        yield


def tidied(run: Run, *more: Path) -> None:
    """Remove what a process that was killed at the end of a finished run had still to remove.

    Args:
        run: the run.
        more: what it needs no longer.
    """
    if any(path.exists() for path in more) or leftovers.left_below(run.folder):
        with run.locked():
            leftovers.tidy_below(run.folder)
            for path in more:
                discard(path)


def _row(step: loop.Step) -> dict[str, Any]:
    row: dict[str, Any] = {
        "step": step.number,
        **{name: _finite(value) for name, value in {"loss": step.loss, **step.parts}.items()},
        "grad_norm": _finite(step.grad_norm),
        "learning_rate": step.learning_rate,
        "audio_seconds": step.audio_seconds,
    }
    if not step.updated:
        row["updated"] = False
    if step.broken:
        row["broken"] = step.broken
    return row | ({"valid": step.valid} if step.valid else {})


def _finite(value: float) -> float | None:
    """A number that JSON can hold."""
    return value if math.isfinite(value) else None


def _speed(step: loop.Step, where: str) -> dict[str, Any]:
    return {
        "step": step.number,
        "seconds": round(step.seconds, 4),
        "waited": round(step.waited, 4),
        "peak_gib": round(plan.peak_gib(where), 3),
    }
