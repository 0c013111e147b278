"""What a student kept: ten tasks as SUPERB has them, on one's own labelled audio, side by side.

A proxy, not SUPERB: the same kinds of heads on the same kind of frozen layers, smaller, on other data.
docs/concepts/probes.md says task by task what is as there, and what is not.
"""

import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse import MonoCut

from distilkit import config
from distilkit.data import Skipped, Tracker, transcripts, untracked
from distilkit.errors import DistilkitError, did_you_mean
from distilkit.probes import classify, diarize, search, sequences, verify
from distilkit.probes.examples import Asked, Problem, Solved
from distilkit.probes.features import LOG_MEL, Features, System, compute
from distilkit.probes.heads import Effort
from distilkit.probes.metrics import Metric, draws, interval, score
from distilkit.stored import window_key

LONGEST = 30.0  # seconds; longer clips are left out
SHORTEST = 0.1
ALL = "all"
MOST_WORKERS = 8
LINEAR = Effort(rates=(1e-2, 1e-3, 1e-4), trial=200, steps=1000, batch=32, every=20, patience=15)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One of the ten."""

    title: str
    prepare: Callable[[Sequence[MonoCut], Asked], Problem]
    effort: Effort
    splits: int | None = None  # of the rotations, how many are run where training takes long
    labels: int | None = 1  # columns that may be asked for; None for any number


TASKS: dict[str, Task] = {
    "pr": Task(
        title="phoneme recognition",
        prepare=sequences.phones,
        effort=Effort(rates=(1e-2, 3e-3), trial=100, steps=400, batch=16, every=50, patience=3),
        splits=2,
    ),
    "ks": Task(
        title="keyword spotting",
        prepare=classify.keywords,
        effort=LINEAR,
    ),
    "ic": Task(
        title="intent classification",
        prepare=classify.intents,
        effort=LINEAR,
        labels=None,
    ),
    "sid": Task(
        title="speaker identification",
        prepare=classify.speakers,
        effort=LINEAR,
    ),
    "er": Task(
        title="emotion recognition",
        prepare=classify.emotions,
        effort=LINEAR,
    ),
    "asr": Task(
        title="speech recognition",
        prepare=sequences.words,
        effort=Effort(rates=(1e-2, 3e-3), trial=60, steps=360, batch=16, every=40, patience=3),
        splits=1,
        labels=0,
    ),
    "qbe": Task(
        title="query by example",
        prepare=search.search,
        effort=LINEAR,
    ),
    "sf": Task(
        title="slot filling",
        prepare=sequences.slot_filling,
        effort=Effort(rates=(1e-2, 3e-3), trial=60, steps=360, batch=16, every=40, patience=3),
        splits=1,
        labels=None,
    ),
    "asv": Task(
        title="speaker verification",
        prepare=verify.verification,
        effort=Effort(rates=(3e-3, 1e-3), trial=60, steps=300, batch=16, every=20, patience=5),
    ),
    "sd": Task(
        title="diarization",
        prepare=diarize.diarization,
        effort=Effort(rates=(3e-3, 1e-3), trial=60, steps=300, batch=8, every=20, patience=5),
        splits=1,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Value:
    """A metric, with the middle 95% of what it might have been."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How systems did on a task."""

    task: str
    facts: Mapping[str, Any]
    metrics: tuple[Metric, ...]
    values: Mapping[str, Mapping[str, Value]]  # by system, then metric
    kept: Value | None  # share of the second system's first metric that the first one has
    above_floor: float | None  # the same of what is above log-mel
    chosen: Mapping[str, list[dict[str, Any]]]  # by system: rates and layers of each split
    seconds: Mapping[str, float]  # of training and testing, by system
    skipped: Sequence[Skipped]


def read(
    inputs: Sequence[str | Path],
    *,
    text_column: str = "",
    cache: Path | None = None,
    track: Tracker = untracked,
) -> transcripts.Transcripts:
    """Recordings with the columns of their tables, or the names of their folders, as labels.

    Raises:
        DistilkitError: an input is missing or cannot be read, or no audio can be used.
    """
    settings = config.Transcribed(
        min_seconds=SHORTEST, max_seconds=LONGEST, text_column=text_column
    )
    found = transcripts.survey(inputs, settings, cache=cache, labels=True, track=track)
    if not found.cuts:
        listed = "".join(f"\n  {item.path}: {item.reason}" for item in found.skipped[:5])
        names = ", ".join(f"`{item}`" for item in inputs)
        raise DistilkitError(
            f"no audio that can be used in {names}{listed}", "distilkit inspect DATA"
        )
    return found


def prepare(
    names: Sequence[str], cuts: Sequence[MonoCut], asked: Asked
) -> tuple[dict[str, Problem], dict[str, str]]:
    """The tasks that the data allows, and why the others are left out.

    Args:
        names: keys of `TASKS`, or `all`.
        cuts: of `read`.
        asked: what the user asked for.

    Raises:
        DistilkitError: no such task, a task that was named cannot be done, or none can.
    """
    every = list(names) == [ALL]
    for name in names:
        if name not in TASKS and not every:
            listed = ", ".join(f"`{known}` {task.title}" for known, task in TASKS.items())
            raise DistilkitError(
                f"no task `{name}`: there are {listed}, and `{ALL}`",
                did_you_mean(name, [*TASKS, ALL]),
            )
    if not every:
        _check(names, asked)
    problems: dict[str, Problem] = {}
    left: dict[str, str] = {}
    for name in TASKS if every else names:
        try:
            problems[name] = TASKS[name].prepare(cuts, asked)
        except DistilkitError as error:
            if not every:
                raise
            missing = (error.hint or "").startswith(
                "pip install"
            )  # of other hints the problem tells
            left[name] = f"{error.problem}; {error.hint}" if missing else error.problem
    if not problems:
        listed = "".join(f"\n  {name}: {reason}" for name, reason in left.items())
        raise DistilkitError(f"this data allows none of the tasks:{listed}", "--label COLUMN")
    return problems, left


def _check(names: Sequence[str], asked: Asked) -> None:
    """Refuse what a task would not look at."""
    for name in names:
        most = TASKS[name].labels
        if most is not None and len(asked.columns) > most:
            takes = "no column of labels" if not most else "one column of labels"
            raise DistilkitError(
                f"{name} takes {takes}, not `{'`, `'.join(asked.columns)}`",
                "--text-column NAME" if not most else f"--label {asked.columns[0]}",
            )
        if asked.lexicon is not None and name != "pr":
            raise DistilkitError(f"`--lexicon` is for pr, not for {name}", "distilkit probe pr")


def hear(
    systems: Sequence[System],
    problems: Mapping[str, Problem],
    folder: Path,
    device: str,
    track: Tracker = untracked,
) -> dict[str, Features]:
    """The frames of all clips of all tasks as each system gives them, computed once, kept in a folder.

    Raises:
        DistilkitError: the disk is full, or audio is gone.
    """
    clips = {window_key(cut): cut for problem in problems.values() for cut in problem.cuts}
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for system in systems:
        missing, work, store = compute(system, list(clips.values()), folder, device)
        for _ in track(work(), description=f"frames of {system.name}", total=missing):
            pass
        found[system.name] = Features(system.name, store)
    return found


def solve(
    problems: Mapping[str, Problem],
    heard: Mapping[str, Features],
    *,
    against: str | None,
    seed: int = 0,
    workers: int | None = None,
    track: Tracker = untracked,
) -> Iterator[Outcome]:
    """Train and test every system on every task, several at a time; yield a task once it is done.

    Args:
        problems: of `prepare`.
        heard: of `hear`; the first is what is judged.
        against: the system that it is held against.
        seed: of weights and order.
        workers: processes; 0 works in this one, None takes a core each.
        track: wraps an iterable to show progress.

    Raises:
        DistilkitError: stored frames are damaged.
    """
    jobs = [
        (task, system, number)
        for task, problem in problems.items()
        for number in range(len(problem.splits[: TASKS[task].splits]))
        for system in heard
    ]
    waiting = {task: sum(job[0] == task for job in jobs) for task in problems}
    done: dict[tuple[str, str, int], tuple[Solved, float]] = {}
    for job, solved in track(
        _worked(jobs, problems, heard, seed, workers), description="heads", total=len(jobs)
    ):
        done[job] = solved
        waiting[job[0]] -= 1
        if not waiting[job[0]]:
            yield _outcome(job[0], problems[job[0]], list(heard), against, done)


Job = tuple[str, str, int]
_shared: dict[str, Any] = {}  # in a process that works: what all jobs need


def _worked(
    jobs: Sequence[Job],
    problems: Mapping[str, Problem],
    heard: Mapping[str, Features],
    seed: int,
    workers: int | None,
) -> Iterator[tuple[Job, tuple[Solved, float]]]:
    count = workers
    if count is None:
        count = min(len(jobs), MOST_WORKERS, len(os.sched_getaffinity(0)))
    if count <= 1:
        for job in jobs:
            yield job, _job(job, problems, heard, seed)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, _begin, (problems, heard, seed)) as pool:
        try:
            waiting = {pool.submit(_shared_job, job): job for job in jobs}
            for each in as_completed(waiting):
                yield waiting[each], each.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(problems: Mapping[str, Problem], heard: Mapping[str, Features], seed: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _shared.update(problems=problems, heard=heard, seed=seed)


def _end_with_parent() -> None:
    """End when the process that gives the work has, however it did: it would be waited for forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _shared_job(job: Job) -> tuple[Solved, float]:
    return _job(job, _shared["problems"], _shared["heard"], _shared["seed"])


def _job(
    job: Job, problems: Mapping[str, Problem], heard: Mapping[str, Features], seed: int
) -> tuple[Solved, float]:
    task, system, number = job
    began = time.perf_counter()
    problem = problems[task]
    solved = problem.solve(heard[system], problem.splits[number], TASKS[task].effort, seed)
    return solved, time.perf_counter() - began


def _outcome(
    task: str,
    problem: Problem,
    systems: Sequence[str],
    against: str | None,
    done: Mapping[Job, tuple[Solved, float]],
) -> Outcome:
    numbers = sorted({number for name, _, number in done if name == task})
    groups = [group for number in numbers for group in problem.groups(problem.splits[number])]
    rows = {}
    for system in systems:
        parts = [done[task, system, number][0].rows for number in numbers]
        rows[system] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    even = np.ones(len(groups))
    weights = list(draws(groups))
    values: dict[str, dict[str, Value]] = {}
    drawn: dict[tuple[str, str], list[float]] = {}
    for system in systems:
        for metric in problem.metrics:
            drawn[system, metric.name] = [metric.measure(rows[system], each) for each in weights]
            low, high = interval(drawn[system, metric.name])
            value = Value(value=metric.measure(rows[system], even), low=low, high=high)
            values.setdefault(system, {})[metric.name] = value
    first = problem.metrics[0]
    kept, above = None, None
    if against is not None:
        mine, other = (values[name][first.name].value for name in (systems[0], against))
        ratios = [
            score(first, a) / score(first, b)
            for a, b in zip(drawn[systems[0], first.name], drawn[against, first.name], strict=True)
            if score(first, b)
        ]
        if score(first, other):
            low, high = interval(ratios)
            kept = Value(value=score(first, mine) / score(first, other), low=low, high=high)
        if LOG_MEL in systems:
            floor = score(first, values[LOG_MEL][first.name].value)
            gap = score(first, other) - floor
            above = (score(first, mine) - floor) / gap if gap > 0 else None
    return Outcome(
        task=task,
        facts=problem.facts,
        metrics=tuple(problem.metrics),
        values=values,
        kept=kept,
        above_floor=above,
        chosen={
            system: [done[task, system, number][0].chosen for number in numbers]
            for system in systems
        },
        seconds={
            system: sum(done[task, system, number][1] for number in numbers) for system in systems
        },
        skipped=problem.skipped,
    )


def retained(outcomes: Sequence[Outcome]) -> float | None:
    """The mean over tasks of the share that was kept."""
    shares = [outcome.kept.value for outcome in outcomes if outcome.kept]
    return statistics.mean(shares) if shares else None
