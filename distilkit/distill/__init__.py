"""Distillation: teacher, student, targets, objective, loop, top to bottom.

`prepare` looks at everything and decides everything; `train` does it, a generator over optimizer
steps; `distill` is both in one call.
"""

import importlib.metadata
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from distilkit import (
    __version__,
    assembly,
    cards,
    codebooks,
    config,
    data,
    leftovers,
    loop,
    plan,
    report,
    resuming,
    stored,
    students,
    teachers,
    training,
    trials,
)
from distilkit.assembly import Distiller, Existing
from distilkit.audio import frames
from distilkit.distill import keeping
from distilkit.distill.job import Job
from distilkit.distill.parts import (
    all_stored,
    assemble,
    features,
    found_codebook,
    likely,
    targets_of,
)
from distilkit.encoder import Encoder
from distilkit.errors import DistilkitError
from distilkit.files import replacing
from distilkit.hub import DEFAULT_TEACHER
from distilkit.noise import recordings
from distilkit.runs import Run
from distilkit.teachers import Checkpoint

DEFAULT_RECIPE = "personal"
NO_TEACHER = "none"

PACKAGES = ("torch", "transformers", "accelerate", "lhotse", "soundfile", "soxr", "numpy")


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
    data.tidy_cache()
    settings = recipe or config.load_recipe(DEFAULT_RECIPE)
    run = training.place(audio, out, resume, kind="distill")
    if resume and run.exists:
        with training.reading(run):
            return _reopen(run, audio)
    if not audio:
        raise DistilkitError(f"`{run.folder}` holds no run to resume", "distilkit distill AUDIO")
    leftovers.tidy(run.folder)
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
    decided = _kept(decided, settings, encoder, distiller.student, collection, run)
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
    job = Job(
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
    return _in_time(_settled(job), track)


def _kept(
    decided: plan.Plan,
    settings: config.Recipe,
    teacher: Encoder | None,
    student: Encoder,
    collection: data.Collection,
    run: Run,
) -> plan.Plan:
    """The plan with what becomes of a frozen front end, and whether targets are stored."""
    shared = assembly.shared_front(teacher, student, settings)
    wide = keeping.widths(settings.objective, teacher.width if teacher else 0, shared)
    both = data.joined(collection.train, collection.valid)
    count = sum(map(frames, data.samples(both)))
    form, size, choice = plan.stored(
        settings.targets,
        decided.steps,
        decided.steps_per_pass,
        lambda form: count * stored.bytes_per_frame(form, wide),
        Path(settings.targets.folder) if settings.targets.folder else run.folder,
        units=settings.objective.name == "units",
    )
    frozen = [plan.front_end(shared)] if settings.train.freeze_front_end else []
    return replace(
        decided,
        stored=form,
        stored_bytes=size,
        front_width=shared,
        choices=(*decided.choices, *frozen, choice),
    )


def _settled(job: Job) -> Job:
    """The job with what fits into memory and what is quickest measured, where that can be done."""
    if job.plan.device != "cuda":
        return job
    accelerator = loop.accelerator(job.plan.device, job.plan.precision)
    decided = trials.settle(
        job.recipe,
        job.plan,
        lambda planned: likely(job, accelerator, planned),
        accelerator,
        job.train,
        job.recipe.data.window_seconds,
    )
    return replace(job, plan=decided, facts=job.facts | {"plan": asdict(decided)})


def _in_time(job: Job, track: data.Tracker) -> Job:
    """The job with no more steps than fit into the time that may be taken."""
    beside = None
    if job.plan.stored and job.recipe.targets.store == "auto":
        why = "the teacher runs beside the student: there is no time for two passes"
        beside = job.plan.chosen("targets", "as it goes", why, stored=None, stored_bytes=0)
    measured = job

    def taken(planned: plan.Plan) -> plan.Measured:
        nonlocal measured
        measured = measure(replace(measured, plan=planned), track)
        assert measured.taken is not None
        return measured.taken

    decided = trials.in_time(job.plan, job.recipe.train, taken, beside)
    if decided.stored and decided.steps != job.plan.steps:
        told = next(choice for choice in decided.choices if choice.name == "targets")
        meant, left = (
            plan.for_passes(each.steps / each.steps_per_pass) for each in (job.plan, decided)
        )
        decided = decided.chosen("targets", told.value, told.reason.replace(meant, left))
    return replace(measured, plan=decided, facts=job.facts | {"plan": asdict(decided)})


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
    run, recipe = job.run, job.recipe
    decided, accelerator = training.agreed(job.plan)
    job = replace(job, plan=decided, facts=job.facts | {"plan": asdict(decided)})
    first = accelerator.is_main_process  # of several processes, the one that writes
    if first and not job.resumed:
        assert job.collection is not None
        run.create(
            {
                "recipe.toml": config.dump_recipe(recipe),
                "audio.jsonl.gz": data.dump_windows(job.collection),
                "skipped.tsv": data.dump_skipped(job.collection.skipped),
                "run.json": cards.json_text(job.facts),
            }
        )
    accelerator.wait_for_everyone()  # the folder is there
    with training.holding(run, accelerator):
        codebook, store = run.folder / codebooks.FILE, None
        with training.gone_on(run, job.resumed):
            job = _with_units(job, accelerator, track)
        if decided.stored:
            with training.gone_on(run, job.resumed):
                targets = targets_of(job, accelerator, codebook)
            store = keeping.filled(job, accelerator, targets, stop, track)
            if store is None:
                return
            del targets  # nothing of the teacher stays in memory: all it had to say is on the disk
        with training.gone_on(run, job.resumed):
            made, _ = assemble(job, accelerator, codebook, all_stored if store else None)
            assert isinstance(made.module, Distiller)
            if job.resumed:
                _card(
                    job, made.module
                )  # at the end it would be late to find that it cannot be written
        if store is not None:
            made = replace(made, beside=store.read)
            if job.teacher is not None:
                job.teacher.model.to("meta")
        done = yield from training.steps(
            run,
            recipe,
            decided,
            made,
            accelerator,
            train=job.train,
            valid=job.valid,
            resumed=job.resumed,
            stop=stop,
            report=report.Report(run).update,
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
    report.complete(job.run)
    return job.run.folder / "student"


def measure(job: Job, track: data.Tracker = data.untracked) -> Job:
    """The job with what a few real steps of it take; of them nothing is kept but the units, where they are
    found for it.

    The first step warms up and does not count.

    Args:
        job: from `prepare`.
        track: wraps an iterable to show progress.
    """
    accelerator = loop.accelerator(job.plan.device, job.plan.precision)
    finding = job.taken.unit_seconds if job.taken else 0.0
    if finds_units(job):
        began = time.perf_counter()
        job = _with_units(job, accelerator, track)
        finding = trials.most(time.perf_counter() - began)
    found = _taken(job, accelerator, track)
    trials.forget()
    return replace(job, taken=replace(found, unit_seconds=finding))


def _with_units(job: Job, accelerator: Accelerator, track: data.Tracker) -> Job:
    """The job with its units, where they have to be found."""
    if not finds_units(job):
        return job
    seen = features(job, accelerator)
    return replace(job, units=found_codebook(job, accelerator, seen, None, track))


def _taken(job: Job, accelerator: Accelerator, track: data.Tracker) -> plan.Measured:
    """What steps take, and the targets before them."""
    codebook = job.run.folder / codebooks.FILE
    with training.gone_on(job.run, job.resumed):
        made, targets = assemble(job, accelerator, codebook if codebook.is_file() else None)
    if not job.plan.stored:
        return trials.measure(job.recipe, job.plan, made, accelerator, job.train, track)
    own = accelerator.process_index, accelerator.num_processes
    schedule = plan.schedule(job.recipe, job.train, job.plan.micro_seconds, *own)
    taken = schedule.between(1, plan.measured_steps(job.recipe))
    used = data.pick(job.train, chain.from_iterable(chain.from_iterable(taken)))
    left = keeping.missing(job)
    with leftovers.temporary() as folder:
        store = stored.Store(folder if left else keeping.place(job), keeping.kept(job))
        began = time.perf_counter()
        for _ in stored.fill(store, used, targets, job.plan.micro_seconds, accelerator.device):
            pass
        each = trials.most((time.perf_counter() - began) / data.seconds(used))
        made = replace(made, beside=store.read)
        found = trials.measure(job.recipe, job.plan, made, accelerator, job.train, track)
    return replace(found, target_seconds=each * data.seconds(left) / accelerator.num_processes)


def disk_bytes(job: Job) -> int:
    """Bytes that the run will write."""
    distiller, _ = assembly.build(job.teacher, job.recipe, job.existing)
    size = students.parameters(distiller.student.model)
    trained = size + sum(p.numel() for p in distiller.heads.parameters())
    return plan.disk(size, trained) + keeping.missing_bytes(job)


def _facts(
    name: str, teacher: Encoder | None, checkpoint: Checkpoint | None
) -> dict[str, Any] | None:
    """What run.json says of the teacher."""
    if teacher is None or checkpoint is None:
        return None
    return {
        **checkpoint.facts(name),
        "parameters": students.parameters(checkpoint.model),
        "layers": teacher.depth,
        "width": teacher.width,
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
    told = checkpoint.facts(name)
    return existing, {key: told[key] for key in ("name", "source", "fingerprint")}


def finds_units(job: Job) -> bool:
    """Whether training begins with finding the units, which may take minutes."""
    objective = job.recipe.objective
    found = job.units is not None or (job.run.folder / codebooks.FILE).is_file()
    return objective.name == "units" and not objective.codebook and not found


def _reopen(run: Run, audio: Sequence[str | Path]) -> Job:
    facts = run.read()
    training.check_kind(run, "distill")
    training.check_inputs(run, audio, facts["audio"])
    settings = config.parse_recipe(
        tomllib.loads((run.folder / "recipe.toml").read_text(encoding="utf-8")), str(run.folder)
    )
    resuming.check_recipe(settings)
    if run.finished:
        training.tidied(run, run.folder / keeping.FOLDER)
        raise DistilkitError(
            f"`{run.folder}` is finished: its student is in `{run.folder / 'student'}`",
            "distilkit distill AUDIO --out DIR for another run",
        )
    windows, valid = data.load_windows(run.folder / "audio.jsonl.gz")
    resuming.check_windows(facts, windows, valid)
    job = Job(
        run=run,
        recipe=settings,
        teacher=None,
        checkpoint=None,
        existing=None,
        train=windows,
        valid=valid,
        plan=resuming.decided(facts["plan"]),
        resumed=True,
        facts=facts,
        collection=None,
    )
    told, began = facts["teacher"], facts["student"]
    unneeded = bool(run.done and job.plan.stored and not keeping.missing(job))
    teacher, checkpoint = None, None
    if told and not unneeded:
        teacher, checkpoint = teachers.again(told, f"`{run.folder}` began with")
    existing = None
    if began["from"] is not None or unneeded:  # the student's weights are in the checkpoint
        student = assembly.from_config(began["config"], began["normalise"])
        width = told.get("width", 0) if told else 0  # older runs load their teacher
        existing = Existing(student=student, target_width=width)
    return replace(job, teacher=teacher, checkpoint=checkpoint, existing=existing)


def _card(job: Job, distiller: Distiller) -> str:
    return cards.student_card(
        facts=job.facts,
        recipe=job.recipe,
        student=distiller.student,
        rows=job.run.rows("metrics.jsonl"),
        speed=job.run.rows("speed.jsonl"),
    )


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
    card = _card(job, distiller)
    with replacing(job.run.folder / "student") as beside:
        students.save(distiller.student, beside, card)
    if (job.run.folder / keeping.FOLDER).is_dir():
        leftovers.remove(job.run.folder / keeping.FOLDER)
