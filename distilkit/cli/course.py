"""The course of a training run on the terminal: its plan, its steps, how it ends."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from shlex import quote
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from rich.progress import TaskID

    from distilkit.config import CtcRecipe, Recipe
    from distilkit.data import Tracker
    from distilkit.loop import Step
    from distilkit.plan import Measured, Plan
    from distilkit.runs import Run


class Job(Protocol):
    """What runs of every command have in common."""

    @property
    def run(self) -> "Run":
        """Where it writes."""

    @property
    def plan(self) -> "Plan":
        """What was decided."""

    @property
    def recipe(self) -> "Recipe | CtcRecipe":
        """Its settings."""

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json says."""

    @property
    def taken(self) -> "Measured | None":
        """What a few real steps took, where they were measured."""


AJob = TypeVar("AJob", bound=Job)

MOST_WAITED = 0.1  # of the time, for audio, above which that is said
UNITS = {"": 1.0, "mb": 2.0**-10, "mib": 2.0**-10, "gb": 1.0, "gib": 1.0, "tb": 2.0**10}  # GiB


def memory_gib(text: str) -> float:
    """`6GB`, `800 MiB` or `6` as GiB; a card that is sold as 6 GB has 6 GiB.

    Raises:
        DistilkitError: it is none of these.
    """
    from distilkit.errors import DistilkitError

    found = re.fullmatch(r"([0-9]*\.?[0-9]+) *([a-z]*)", text.strip().lower())
    if not found or found[2] not in UNITS or not float(found[1]):
        raise DistilkitError(f"`--memory {text}` is no amount of memory", "--memory 6GB")
    return float(found[1]) * UNITS[found[2]]


def foreseen(
    job: AJob,
    measure: Callable[[AJob, "Tracker"], AJob],
    disk: int,
    *,
    planned: bool,
    json: bool = False,
) -> AJob:
    """Say what a run takes, in time, memory and disk; return it with what was measured for that.

    A few steps are taken where only that is asked for, or where they are few beside those of the run.

    Args:
        job: the run.
        measure: takes the steps.
        disk: bytes that it will write.
        planned: nothing is going to be run; what is said is the result.
        json: the result is a JSON document.

    Raises:
        DistilkitError: it is going to be run, and would fill the disk.
    """
    from distilkit import plan
    from distilkit.audio import clock
    from distilkit.cli import console
    from distilkit.wording import counted

    if not planned:
        plan.check_disk(job.run.folder, disk)
    left = job.plan.steps - job.run.done
    if job.taken is None and (planned or plan.worth_measuring(job.recipe, left)):
        console.say("measuring a few steps ...")
        job = measure(job, console.track)
    found = job.taken
    if found is not None and not planned:
        found = replace(found, unit_seconds=0.0)  # they are found by now
    kept = "two checkpoints, a third while one is replaced, the result"
    rows = [("disk", plan.gib(disk), kept + ", targets" * bool(job.plan.stored))]
    if found is None:
        few = f"{counted(left, 'step')}, too few to measure some beforehand; --plan does"
        rows.insert(0, ("time", "shown as it goes", few))
    else:
        seconds = found.seconds_per_step * left + found.before
        steps = f"{counted(left, 'step')} of {found.seconds_per_step:.2f} s, measured here"
        steps += f"; before them {found.preparing}" if found.before else ""
        rows.insert(0, ("time", clock(seconds), steps))
        held = "the most so far, measured here"
        rows.insert(1, ("memory", f"{found.peak_gib:.1f} GiB", held))
    if planned and json:
        assert found is not None
        console.document(
            {
                "usable_hours": round(
                    (job.facts["train_seconds"] + job.facts["valid_seconds"]) / 3600, 3
                ),
                "skipped": job.facts["skipped"],
                "steps": job.plan.steps,
                "seconds_per_step": round(found.seconds_per_step, 3),
                "unit_seconds": round(found.unit_seconds, 1),
                "target_seconds": round(found.target_seconds, 1),
                "hours": round(seconds / 3600, 3),
                "peak_memory_gib": round(found.peak_gib, 2),
                "disk_gib": round(disk / 2**30, 3),
            }
        )
    else:
        made = console.table("plan", ("what", "value", "why"), rows)
        console.show(made, to_result=planned)
    return job


def resuming(kind: str, folder: "Path") -> str:
    """What to type to go on with a run."""
    return f"distilkit {kind} --resume --out {quote(str(folder))}"


def listed(folder: "Path", planned: bool) -> str:
    """Where all that is left out is listed."""
    return "`distilkit inspect` lists all" if planned else f"all in {folder / 'skipped.tsv'}"


def keeps(given: Sequence[str], default: str, recipe: str) -> None:
    """Refuse options of a run that is resumed: it goes on as it began.

    Args:
        given: what was asked for beside the recipe, as it is typed.
        default: the recipe of the command.
        recipe: the one that was asked for.

    Raises:
        DistilkitError: names the first option.
    """
    from distilkit.errors import DistilkitError

    asked = [*given, *([f"--recipe {recipe}"] if recipe != default else [])]
    if asked:
        raise DistilkitError(
            f"a resumed run keeps its settings: `{asked[0]}` cannot change them",
            "leave it out, or start a new run with another --out",
        )


def follow(
    train: Callable[[Callable[[], bool]], "Iterator[Step]"],
    job: Job,
    disk: int,
    again: str,
) -> float:
    """Train to the end, showing how it goes, and return the seconds; stopped, say how to go on.

    Args:
        train: given a function that says whether to stop, does the steps.
        job: what is trained.
        disk: bytes that the run will write.
        again: the command that goes on with it.
    """
    from distilkit import plan
    from distilkit.cli import console

    plan.check_disk(job.run.folder, disk)
    for problem in job.run.problems:
        console.warn(problem)
    began = time.monotonic()

    def saved() -> str:
        done = job.run.done
        return (
            f"saved after step {done:,} of {job.plan.steps:,}" if done else "no step is saved yet"
        )

    console.interruption(saved, again)
    with console.stopping() as stop, Watch(job.plan) as watch:
        for step in train(stop):
            watch(step)
    watch.say_waited()
    if stop.asked and not job.run.finished:
        done = watch.number or job.run.done
        said = f"saved after step {done:,} of {job.plan.steps:,}"
        console.warn(said if done else "stopped before the first step; what is done is kept")
        console.warn(f"go on with: {again}")
        raise typer.Exit(130)
    seconds = time.monotonic() - began
    complete(job.run)
    return seconds


def complete(run: "Run") -> None:
    """Complete the report of a run that has ended; what goes wrong with it is said and spoils nothing."""
    from distilkit import report
    from distilkit.cli import console

    if not console.LEADER or not run.finished:
        return
    again = f"distilkit report {run.folder}"
    console.say("the report: comparing layers and timing ...")
    console.interruption(f"`{run.result}` is whole, its report is not", again)
    try:
        path, problems = report.complete(run, track=console.track)
    except Exception as error:  # the run is done, whatever becomes of its report
        console.warn(f"the report could not be written: {report.reason(error)}")
        console.warn(f"hint: {again}")
        return
    for name, problem in problems.items():
        console.warn(f"the report lacks {name}: {problem}")
    console.say(f"report: {path}")


def _parts(parts: dict[str, float]) -> str:
    """The loss of each target, its terms added: `4/8/12: 1.2 1.1 1.0`; units right in per cent."""
    sums: dict[str, float] = {}
    right = ""
    for name, value in parts.items():
        term, _, target = name.partition("_")
        if term == "right":
            right += f" {value:.0%}"
        else:
            sums[target] = sums.get(target, 0.0) + value
    each = " ".join(f"{value:.3f}" for value in sums.values())
    return f"{'/'.join(sums)}: {each}" + (f", right{right}" if right else "")


def _valid(valid: dict[str, float]) -> str:
    """What was measured on held-out recordings."""
    if "wer" not in valid:
        return f"held-out loss {valid['loss']:.4f}"
    said = f"held-out words wrong {valid['wer']:.1%}, characters {valid['cer']:.1%}"
    empty = f", {valid['empty']:.1%} of the texts empty" if valid["empty"] >= 0.005 else ""
    return f"{said}, loss {valid['loss']:.4f}{empty}"


class Watch:
    """Shows steps as they come: a bar on a terminal, lines in a log."""

    def __init__(self, decided: "Plan") -> None:
        from distilkit.cli import bars, console

        self._plan = decided
        self._bar = bars.training(console.errors) if console.errors.is_terminal else None
        self._task: TaskID | None = None
        self._shown = 0.0
        self._began = 0.0  # of the first step; what is found beforehand does not count
        self._done = 0
        self._seconds = self._waited = 0.0
        self._unwritten = ""  # what was said of the report
        self.number = 0  # of the newest step

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, step: "Step") -> None:
        """Show a step."""
        from distilkit.audio import clock
        from distilkit.cli import console
        from distilkit.plan import peak_gib

        steps, self._done, self.number = self._plan.steps, self._done + 1, step.number
        self._seconds += step.seconds
        self._waited += step.waited
        loss = f"loss {step.loss:.4f}" + (f" ({_parts(step.parts)})" if step.parts else "")
        numbers = (
            f"{loss}  audio {step.audio_seconds / step.seconds:,.1f} s/s  "
            f"{peak_gib(self._plan.device):.1f} GiB"
        )
        if step.valid:
            console.say(f"step {step.number:,}: {_valid(step.valid)}")
        if step.unwritten and step.unwritten != self._unwritten:
            console.warn(f"step {step.number:,}: {step.unwritten}")
            self._unwritten = step.unwritten
        if step.lowered:
            console.say(
                f"step {step.number:,}: out of memory; from here on at most {step.lowered:.0f} s of "
                "audio in memory at once, the step's audio stays the same"
            )
        if step.broken:
            console.say(f"step {step.number:,} left out: {step.broken}")
        elif not step.updated:
            console.say(f"step {step.number:,}: fp16 overflow, loss scale lowered, step left out")
        if self._bar is not None:
            if self._task is None:
                self._bar.start()
                self._task = self._bar.add_task("", total=steps, completed=step.number - 1)
            self._bar.below = numbers
            self._bar.update(self._task, completed=step.number)
            return
        now = time.monotonic()
        if self._done == 1:
            self._began = now - step.seconds
        if now - self._shown >= console.pause(now - self._began) or step.number in (1, steps):
            left = (now - self._began) / self._done * (steps - step.number)
            console.say(f"step {step.number:,} of {steps:,}: {numbers}  left {clock(left)}")
            self._shown = now

    def say_waited(self) -> None:
        """Say so where a GPU waited for audio for long."""
        from distilkit.cli import console

        share = self._waited / self._seconds if self._seconds else 0.0
        if self._plan.device != "cpu" and share > MOST_WAITED:
            workers = 2 * max(1, self._plan.workers)
            console.say(
                f"{share:.1%} of the time went into waiting for audio; --set batches.workers={workers} may "
                "help, and recordings as WAV are read faster than compressed ones"
            )
