"""Distillation: teacher, student, targets, objective, loop, top to bottom.

`prepare` looks at everything and decides everything; `train` does it, a generator over optimizer
steps; `distill` is both in one call.
"""

import hashlib
import importlib.metadata
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lhotse import MonoCut
from torch import Tensor

from distilkit import (
    __version__,
    assembly,
    codebooks,
    config,
    data,
    loop,
    plan,
    report,
    stored,
    students,
    teachers,
    training,
)
from distilkit.assembly import Distiller, Existing
from distilkit.audio import frames
from distilkit.encoder import Encoder, fingerprint
from distilkit.errors import DistilkitError
from distilkit.hub import DEFAULT_TEACHER
from distilkit.noise import recordings
from distilkit.runs import Run, discard, replacing
from distilkit.targets import Targets, live_units
from distilkit.teachers import Checkpoint

DEFAULT_RECIPE = "personal"
NO_TEACHER = "none"
TARGETS = "targets"  # in a run folder
PACKAGES = ("torch", "transformers", "accelerate", "lhotse", "soundfile", "soxr", "numpy")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A distillation that is ready to run."""

    run: Run
    recipe: config.Recipe
    teacher: Encoder | None  # None where none is needed: units of MFCC, or all targets are stored
    checkpoint: Checkpoint | None
    existing: Existing | None  # a student to go on with
    train: list[MonoCut]
    valid: list[MonoCut]
    plan: plan.Plan
    resumed: bool
    facts: dict[str, Any]  # what run.json says
    collection: data.Collection | None  # None when resumed


def prepare(
    audio: Sequence[str | Path],
    *,
    teacher: str = DEFAULT_TEACHER,
    student: str | None = None,
    out: Path | None = None,
    recipe: config.Recipe | None = None,
    resume: bool = False,
    track: data.Tracker = data.untracked,
) -> Job:
    """Read the audio, load the teacher, decide what follows; writes nothing but decoded copies.

    Args:
        audio: folders, files or lhotse manifests; may be empty when resuming.
        teacher: whatever `teachers.load` takes, or `none` for an objective that needs none.
        student: an existing student to go on with, in place of a new one.
        out: the run folder; `runs/NAME` when None.
        recipe: settings; the built-in `personal` when None, a resumed run's own when resuming.
        resume: go on with the run in `out` (the newest run when None), if there is one.
        track: wraps an iterable to show progress.

    Raises:
        DistilkitError: whatever the user has to mend before training can start.
    """
    settings = recipe or config.load_recipe(DEFAULT_RECIPE)
    run = training.place(audio, out, resume, kind="distill")
    if resume and run.exists:
        return _reopen(run, audio)
    if not audio:
        raise DistilkitError(f"`{run.folder}` holds no run to resume", "distilkit distill AUDIO")
    run.check_free()
    encoder, checkpoint = (None, None) if teacher == NO_TEACHER else teachers.load(teacher)
    settings = assembly.resolve(settings, encoder.depth if encoder else None)
    assembly.check(settings, encoder, teacher)
    existing, began = _existing(student, settings) if student else (None, None)
    distiller, begins = assembly.build(encoder, settings, existing)  # refuses what does not fit
    told = _facts(teacher, encoder, checkpoint)
    if settings.objective.codebook:
        assembly.given_codebook(settings.objective, told["fingerprint"] if told else "")
    if settings.noise.probability:
        recordings(settings.noise.folder)  # refuses what cannot be used
    collection = data.collect(audio, settings.data, seed=settings.train.seed, track=track)
    if settings.objective.name == "units" and not settings.objective.codebook:
        chosen = assembly.clustered(collection.train, settings)
        codebooks.check(sum(frames(cut.num_samples) for cut in chosen), settings.objective.clusters)
    decided = plan.decide(
        settings, distiller.student, encoder, collection.train, settings.data.window_seconds
    )
    kept_in = Path(settings.targets.folder) if settings.targets.folder else run.folder
    widths = _widths(settings.objective, encoder.width if encoder else 0)
    count = sum(frames(cut.num_samples) for cut in [*collection.train, *collection.valid])
    form, size, choice = plan.stored(
        settings.targets,
        decided.steps,
        decided.steps_per_pass,
        lambda form: count * stored.bytes_per_frame(form, widths),
        kept_in,
    )
    choices = (*decided.choices, choice)
    decided = replace(decided, stored=form, stored_bytes=size, choices=choices)
    facts = {
        "kind": "distill",
        "distilkit": __version__,
        "audio": [str(item) for item in audio],
        "recordings": collection.recordings,
        "train_seconds": round(collection.train_seconds, 3),
        "valid_seconds": round(collection.valid_seconds, 3),
        "skipped": dict(collection.reasons()),
        "teacher": told,
        "student": {
            "from": began,
            "begins": begins.text,
            "layers": distiller.student.depth,
            "parameters": students.parameters(distiller.student.model),
            "normalise": distiller.student.normalise,
            "config": distiller.student.model.config.to_diff_dict(),
        },
        "plan": asdict(decided),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    return Job(
        run=run,
        recipe=settings,
        teacher=encoder,
        checkpoint=checkpoint,
        existing=existing,
        train=collection.train,
        valid=collection.valid,
        plan=decided,
        resumed=False,
        facts=facts,
        collection=collection,
    )


def train(
    job: Job,
    stop: Callable[[], bool] = lambda: False,
    track: data.Tracker = data.untracked,
) -> Iterator[loop.Step]:
    """Run a job, yielding each optimizer step; the student is written when the last one is done.

    Args:
        job: from `prepare`.
        stop: asked after every step; when it says True, a checkpoint is saved and the generator
            ends before the last step.
        track: wraps an iterable to show progress, of the teacher where its targets are stored.

    Raises:
        DistilkitError: the run is in use, its files are damaged, or a loss is not finite.
    """
    run, recipe, decided = job.run, job.recipe, job.plan
    accelerator = loop.accelerator(decided.device, decided.precision)
    first = accelerator.is_main_process  # of several processes, the one that writes
    if first and not job.resumed:
        assert job.collection is not None
        run.create(
            {
                "recipe.toml": config.dump_recipe(recipe),
                "audio.jsonl.gz": data.dump_windows(job.collection),
                "skipped.tsv": data.dump_skipped(job.collection.skipped),
                "run.json": report.json_text(job.facts),
            }
        )
    accelerator.wait_for_everyone()  # the folder is there
    with training.holding(run, accelerator):
        parts, targets = assemble(job, accelerator, run.folder / codebooks.FILE)
        if decided.stored:
            store = _fill(job, accelerator, targets, stop, track)
            if store is None:
                return
            parts = replace(parts, beside=store.read)
            if job.teacher is not None:
                job.teacher.model.to("meta")  # all it had to say is on the disk
        done = yield from training.steps(
            run,
            recipe,
            decided,
            parts,
            accelerator,
            train=job.train,
            valid=job.valid,
            resumed=job.resumed,
            stop=stop,
        )
        if done is not None and first:
            assert isinstance(done, Distiller)
            _finish(job, done)


def distill(audio: Sequence[str | Path], **options: Any) -> Path:
    """Distil a student from folders of audio and return its folder; options as for `prepare`.

    Raises:
        DistilkitError: as `prepare` and `train`.
    """
    job = prepare(audio, **options)
    for _ in train(job):
        pass
    return job.run.folder / "student"


def assemble(
    job: Job, accelerator: Accelerator, keep: Path | None = None
) -> tuple[training.Parts, Targets]:
    """What is trained, the loss of a micro-batch, and what computes the targets.

    Args:
        job: from `prepare`.
        accelerator: where it is to run.
        keep: where the run's codebook lies, or is written once it is found.
    """
    recipe = job.recipe
    loop.seed_step(recipe.train.seed, 0)
    distiller, _ = assembly.build(job.teacher, recipe, job.existing)
    if job.plan.gradient_checkpointing:
        distiller.model.activation_checkpointing_enable()
    if accelerator.device.type == "cpu" and job.plan.precision == "bf16":
        distiller.model.set_attn_implementation("eager")  # the fused one goes back slowly there
    targets: Targets = _all_stored
    if job.teacher is not None or recipe.objective.features == "mfcc":
        arithmetic = _teacher_precision(accelerator, job.plan.precision)
        targets = assembly.features(job.teacher, recipe.objective, accelerator.device, arithmetic)
        if recipe.objective.name == "units":
            targets = live_units(targets, _codebook(job, accelerator, targets, keep))
    noises = recordings(recipe.noise.folder) if recipe.noise.probability else lambda _: None
    loss_of = assembly.loss_function(recipe, targets, noises, accelerator.device)
    optimizer = loop.optimizer(distiller, recipe.train)
    return training.Parts(module=distiller, optimizer=optimizer, loss_of=loss_of), targets


def _all_stored(wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    raise AssertionError("no teacher is loaded where all its targets are stored")


def measure(job: Job, steps: int = 3) -> plan.Measured:
    """Take a few real steps of a job, keep nothing of them, and say what all of them would take.

    The first step warms up and does not count.
    """
    accelerator = loop.accelerator(job.plan.device, job.plan.precision)
    parts, targets = assemble(job, accelerator)
    if not job.plan.stored:
        return training.measure(job.recipe, job.plan, parts, accelerator, job.train, steps)
    schedule = plan.schedule(job.recipe, job.train, job.plan.micro_seconds)
    groups = [group for number in range(1, steps + 1) for group in schedule.step(number)]
    used = [job.train[index] for group in groups for index in group]
    left = sum(cut.duration for cut in [*job.train, *job.valid])
    with tempfile.TemporaryDirectory() as folder:
        store = stored.Store(Path(folder), _kept(job))
        seconds = 0.0
        if job.teacher is None and job.recipe.objective.features == "layers":
            store = stored.Store(_store_folder(job), _kept(job))
        else:
            began = time.perf_counter()
            for _ in stored.fill(store, used, targets, job.plan.micro_seconds, accelerator.device):
                pass
            taken = time.perf_counter() - began
            seconds = taken / sum(cut.duration for cut in used) * left
        parts = replace(parts, beside=store.read)
        found = training.measure(job.recipe, job.plan, parts, accelerator, job.train, steps)
    return replace(found, target_seconds=seconds)


def _kept(job: Job) -> stored.Kept:
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
        layers=tuple(assembly.target_layers(objective)),
        normalise=objective.normalise,
        codebook=digest,
        arithmetic="bf16" if job.plan.precision == "bf16" else "fp32",
        form=job.plan.stored,
        widths=_widths(objective, told["width"] if told else 0),
    )


def _widths(objective: config.Objective, teacher_width: int) -> tuple[int, ...]:
    """The width of each target; 0 for units."""
    count = 1 if objective.features == "mfcc" else len(objective.layers)
    return (0 if objective.name == "units" else teacher_width,) * count


def _store_folder(job: Job) -> Path:
    """Where the run's targets are kept: in its folder, or where the recipe says."""
    chosen = job.recipe.targets.folder
    return Path(chosen) / _kept(job).name if chosen else job.run.folder / TARGETS


def _left_to_store(job: Job) -> int:
    """Bytes of targets that are still to be written."""
    if not job.plan.stored:
        return 0
    windows = [*job.train, *job.valid]
    place = _store_folder(job)
    if (place / "store.json").is_file():
        windows = stored.Store(place, _kept(job)).missing(windows)
    return sum(frames(cut.num_samples) for cut in windows) * _kept(job).bytes_per_frame


def _fill(
    job: Job,
    accelerator: Accelerator,
    targets: Targets,
    stop: Callable[[], bool],
    track: data.Tracker,
) -> stored.Store | None:
    """The run's store with all targets in it; None when stopped before."""
    windows = [*job.train, *job.valid]
    store = stored.Store(_store_folder(job), _kept(job))
    filling = stored.fill(
        store,
        windows,
        targets,
        job.plan.micro_seconds,
        accelerator.device,
        (accelerator.process_index, accelerator.num_processes),
    )
    missing = len(store.missing(windows)) // accelerator.num_processes
    for _ in track(filling, description="the teacher's targets", total=missing):
        if stop():
            return None
    accelerator.wait_for_everyone()
    store.refresh()
    return store


def disk_bytes(job: Job) -> int:
    """Bytes that the run will write."""
    distiller, _ = assembly.build(job.teacher, job.recipe, job.existing)
    size = students.parameters(distiller.student.model)
    trained = size + sum(p.numel() for p in distiller.heads.parameters())
    return plan.disk(size, trained) + _left_to_store(job)


def _facts(
    name: str, teacher: Encoder | None, checkpoint: Checkpoint | None
) -> dict[str, Any] | None:
    """What run.json says of the teacher."""
    if teacher is None or checkpoint is None:
        return None
    return {
        "name": name,
        "source": checkpoint.source,
        "format": checkpoint.format,
        "parameters": students.parameters(checkpoint.model),
        "layers": teacher.depth,
        "width": teacher.width,
        "fingerprint": fingerprint(checkpoint.model),
        "notes": list(checkpoint.notes),
    }


def _existing(name: str, settings: config.Recipe) -> tuple[Existing, dict[str, Any]]:
    """A student to go on with, and what run.json says of where it came from."""
    student, checkpoint = teachers.load(name)
    if checkpoint.model.config.model_type != "hubert":
        raise DistilkitError(
            f"`--student {name}` is a `{checkpoint.model.config.model_type}` model; students are `hubert`",
            f"--teacher {name} distils from it",
        )
    students.check_existing(student, settings.student)
    existing = Existing(student=student, heads=checkpoint.heads, head_layers=checkpoint.head_layers)
    return existing, {"name": name, "fingerprint": fingerprint(checkpoint.model)}


def finds_units(job: Job) -> bool:
    """Whether training begins with finding the units, which may take minutes."""
    objective = job.recipe.objective
    found = (job.run.folder / codebooks.FILE).is_file()
    return objective.name == "units" and not objective.codebook and not found


def _codebook(
    job: Job, accelerator: Accelerator, seen: Targets, keep: Path | None
) -> codebooks.Codebook:
    """The units of a run, kept beside it."""
    if keep is not None and keep.is_file():
        return codebooks.load(keep)
    told = job.facts["teacher"]
    found = assembly.codebook(
        job.recipe,
        seen,
        job.train,
        job.plan.micro_seconds,
        accelerator.device,
        told["fingerprint"] if told else "",
    )
    if keep is None:
        return found
    if accelerator.is_main_process:
        with replacing(keep) as beside:
            codebooks.save(found, beside)
    accelerator.wait_for_everyone()
    return codebooks.load(keep)


def _reopen(run: Run, audio: Sequence[str | Path]) -> Job:
    facts = run.read()
    training.check_kind(run, "distill")
    training.check_inputs(run, audio, facts["audio"])
    settings = config.parse_recipe(
        tomllib.loads((run.folder / "recipe.toml").read_text(encoding="utf-8")), str(run.folder)
    )
    if run.finished:
        raise DistilkitError(
            f"`{run.folder}` is finished: its student is in `{run.folder / 'student'}`",
            "distilkit distill AUDIO --out DIR for another run",
        )
    windows, valid = data.load_windows(run.folder / "audio.jsonl.gz")
    job = Job(
        run=run,
        recipe=settings,
        teacher=None,
        checkpoint=None,
        existing=None,
        train=windows,
        valid=valid,
        plan=plan.again(facts["plan"]),
        resumed=True,
        facts=facts,
        collection=None,
    )
    told, began = facts["teacher"], facts["student"]
    unneeded = bool(run.done and job.plan.stored and _left_to_store(job) == 0)
    teacher, checkpoint = (None, None) if told is None or unneeded else _same_teacher(job)
    existing = None
    if began["from"] is not None or unneeded:  # the student's weights are in the checkpoint
        student = assembly.from_config(began["config"], began["normalise"])
        existing = Existing(student=student, target_width=told["width"] if told else 0)
    return replace(job, teacher=teacher, checkpoint=checkpoint, existing=existing)


def _same_teacher(job: Job) -> tuple[Encoder, Checkpoint]:
    """The teacher that a run began with."""
    told = job.facts["teacher"]
    source = told["source"] if Path(told["source"]).exists() else told["name"]
    teacher, checkpoint = teachers.load(source)
    if fingerprint(checkpoint.model) != told["fingerprint"]:
        raise DistilkitError(
            f"the teacher `{told['name']}` is not the one that `{job.run.folder}` began with",
            "put the old one back, or start a new run with another --out",
        )
    return teacher, checkpoint


def _teacher_precision(
    accelerator: Accelerator, arithmetic: config.Precision
) -> AbstractContextManager[object]:
    """bf16 for the teacher where the student has it; never fp16, whose range large norms leave."""
    enabled = arithmetic == "bf16"
    return torch.autocast(accelerator.device.type, torch.bfloat16, enabled=enabled)


def _finish(job: Job, distiller: Distiller) -> None:
    from safetensors.torch import save

    with replacing(job.run.folder / "heads.safetensors") as beside:
        named = {
            name: value.detach().float().cpu().contiguous()
            for name, value in distiller.heads.named().items()  # type: ignore[operator]
        }
        objective = job.recipe.objective
        layers = ",".join(map(str, assembly.target_layers(objective)))
        beside.write_bytes(save(named, metadata={"layers": layers}))
    card = report.card(
        facts=job.facts,
        recipe=job.recipe,
        student=distiller.student,
        rows=job.run.rows("metrics.jsonl"),
    )
    with replacing(job.run.folder / "student") as beside:
        students.save(distiller.student, beside, card)
    discard(job.run.folder / TARGETS)
