"""Where and in which form a distillation keeps its targets."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import Accelerator
from lhotse import MonoCut

from distilkit import assembly, codebooks, config, data, stored
from distilkit.audio import frames
from distilkit.distill.job import Job
from distilkit.encoder import FRONT
from distilkit.targets import Targets

FOLDER = "targets"  # in a run folder


def kept(job: Job) -> stored.Kept:
    """What the run's store holds."""
    objective, told = job.recipe.objective, job.facts["teacher"]
    units = objective.name == "units"
    assert job.plan.stored is not None
    codebook = Path(objective.codebook or job.run.folder / codebooks.FILE)
    digest = ""
    if units and codebook.is_file():
        digest = hashlib.sha1(codebook.read_bytes(), usedforsecurity=False).hexdigest()
    return stored.Kept(
        model=told["fingerprint"] if told else "",
        layers=(*assembly.target_layers(objective), *([FRONT] if job.plan.front_width else [])),
        normalise=objective.normalise,
        codebook=digest,
        arithmetic="bf16" if job.plan.precision == "bf16" else "fp32",
        form=job.plan.stored,
        widths=widths(objective, told["width"] if told else 0, job.plan.front_width),
    )


def widths(objective: config.Objective, teacher_width: int, front_width: int) -> tuple[int, ...]:
    """The width of each target, 0 for units; behind them the front end's, where that is shared."""
    count = 1 if objective.features == "mfcc" else len(objective.layers)
    each = 0 if objective.name == "units" else teacher_width
    return (*[each] * count, *([front_width] if front_width else []))


def place(job: Job) -> Path:
    """Where the run's targets are kept: in its folder, or where the recipe says."""
    chosen = job.recipe.targets.folder
    return Path(chosen) / kept(job).name if chosen else job.run.folder / FOLDER


def missing(job: Job) -> Sequence[MonoCut]:
    """The windows whose targets are still to be computed and stored."""
    windows = data.joined(job.train, job.valid)
    folder = place(job)
    if (folder / stored.DESCRIPTION).is_file():
        return stored.Store(folder, kept(job)).missing(windows)
    return windows


def missing_bytes(job: Job) -> int:
    """Bytes of targets that are still to be written."""
    if not job.plan.stored:
        return 0
    return sum(map(frames, data.samples(missing(job)))) * kept(job).bytes_per_frame


def filled(
    job: Job,
    accelerator: Accelerator,
    targets: Targets,
    stop: Callable[[], bool],
    track: data.Tracker,
) -> stored.Store | None:
    """The run's store with all targets in it; None when stopped before."""
    windows = data.joined(job.train, job.valid)
    store = stored.Store(place(job), kept(job))
    filling = stored.fill(
        store,
        windows,
        targets,
        job.plan.micro_seconds,
        accelerator.device,
        (accelerator.process_index, accelerator.num_processes),
    )
    share = len(store.missing(windows)) // accelerator.num_processes
    for _ in track(filling, description="the teacher's targets", total=share):
        if stop():
            return None
    accelerator.wait_for_everyone()
    store.refresh()
    return store
