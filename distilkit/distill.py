"""Distillation: teacher, student, targets, objective, loop, top to bottom.

`prepare` looks at everything and decides everything; `train` does it, a generator over optimizer
steps; `distill` is both in one call.
"""

import importlib.metadata
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lhotse import MonoCut
from torch import Tensor, nn

from distilkit import __version__, batches, config, data, loop, plan, report, students, teachers
from distilkit.encoder import (
    Encoder,
    encode,
    fingerprint,
    frame_mask,
    scale_conv_gradients,
)
from distilkit.errors import DistilkitError
from distilkit.hub import DEFAULT_TEACHER
from distilkit.objectives import OBJECTIVES, Heads, Loss
from distilkit.runs import Run, free_folder, newest_run, replacing
from distilkit.targets import LiveTargets
from distilkit.teachers import Checkpoint

DEFAULT_RECIPE = "personal"
PACKAGES = ("torch", "transformers", "accelerate", "lhotse", "soundfile", "soxr", "numpy")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A distillation that is ready to run."""

    run: Run
    recipe: config.Recipe
    teacher: Encoder
    checkpoint: Checkpoint
    train: list[MonoCut]
    valid: list[MonoCut]
    plan: plan.Plan
    resumed: bool
    facts: dict[str, Any]  # what run.json says
    collection: data.Collection | None  # None when resumed


class Distiller(nn.Module):
    """Student and heads: what is trained."""

    def __init__(self, student: Encoder, heads: Heads) -> None:
        super().__init__()
        self.model, self.heads = student.model, heads
        self.student = student

    def forward(self, wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """Predictions of the teacher's layers, one (B, T, D) each."""
        (last_BTD,) = encode(self.student, wave_BS, lengths, [self.student.depth])
        predictions: list[Tensor] = self.heads(last_BTD)
        return predictions


def prepare(
    audio: Sequence[str | Path],
    *,
    teacher: str = DEFAULT_TEACHER,
    out: Path | None = None,
    recipe: config.Recipe | None = None,
    resume: bool = False,
    track: data.Tracker = data.untracked,
) -> Job:
    """Read the audio, load the teacher, decide what follows; writes nothing but decoded copies.

    Args:
        audio: folders, files or lhotse manifests; may be empty when resuming.
        teacher: a Hugging Face folder, a run, or a hub id.
        out: the run folder; `runs/NAME` when None.
        recipe: settings; the built-in `personal` when None, a resumed run's own when resuming.
        resume: go on with the run in `out` (the newest run when None), if there is one.
        track: wraps an iterable to show progress.

    Raises:
        DistilkitError: whatever the user has to mend before training can start.
    """
    settings = recipe or config.load_recipe(DEFAULT_RECIPE)
    run = _run_for(audio, out, resume)
    if resume and run.exists:
        return _reopen(run)
    if not audio:
        raise DistilkitError(f"`{run.folder}` holds no run to resume", "distilkit distill AUDIO")
    run.check_free()
    checked = _with_teacher(teacher, settings)
    collection = data.collect(audio, settings.data, seed=settings.train.seed, track=track)
    decided = plan.decide(settings, checked[0], collection.train)
    facts = {
        "kind": "distill",
        "distilkit": __version__,
        "audio": [str(item) for item in audio],
        "recordings": collection.recordings,
        "train_seconds": round(collection.train_seconds, 3),
        "valid_seconds": round(collection.valid_seconds, 3),
        "skipped": dict(collection.reasons()),
        "teacher": {
            "name": teacher,
            "source": checked[1].source,
            "format": checked[1].format,
            "parameters": students.parameters(checked[1].model),
            "layers": checked[0].depth,
            "fingerprint": fingerprint(checked[1].model),
            "notes": list(checked[1].notes),
        },
        "plan": asdict(decided),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    return Job(
        run=run,
        recipe=settings,
        teacher=checked[0],
        checkpoint=checked[1],
        train=collection.train,
        valid=collection.valid,
        plan=decided,
        resumed=False,
        facts=facts,
        collection=collection,
    )


def train(job: Job, stop: Callable[[], bool] = lambda: False) -> Iterator[loop.Step]:
    """Run a job, yielding each optimizer step; the student is written when the last one is done.

    Args:
        job: from `prepare`.
        stop: asked after every step; when it says True, a checkpoint is saved and the generator
            ends before the last step.

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
    with run.locked() if first else nullcontext():
        distiller, loss_of = assemble(job, accelerator)
        module, optimizer = accelerator.prepare(distiller, loop.optimizer(distiller, recipe.train))
        saved = run.load_checkpoint() if job.resumed else None
        start = 0
        if saved is not None:
            loop.restore(accelerator, module, optimizer, *saved)
            start = int(saved[1]["step"])
        if first:
            run.rewind(start)
        accelerator.wait_for_everyone()

        def save(number: int) -> None:
            tensors, numbers = loop.state(accelerator, module, optimizer)
            run.save_checkpoint(number, tensors, numbers)

        schedule = plan.schedule(
            recipe,
            job.train,
            decided.micro_seconds,
            accelerator.process_index,
            accelerator.num_processes,
        )
        stream = batches.stream(
            job.train, schedule, first=start + 1, last=decided.steps, workers=decided.workers
        )
        for step in loop.fit(
            accelerator,
            module,
            optimizer,
            stream,
            loss_of,
            recipe.train,
            start=start,
            steps=decided.steps,
        ):
            last = step.number == decided.steps
            if job.valid and (last or step.number % recipe.train.validate_every == 0):
                step = replace(
                    step,
                    valid=loop.validate(
                        accelerator, module, job.valid, loss_of, decided.micro_seconds
                    ),
                )
            halt = loop.any_rank(accelerator, stop()) and not last
            if first:
                _log(run, step, decided.device)
                if halt or last or step.number % recipe.train.checkpoint_every == 0:
                    save(step.number)
            yield step
            if halt:
                return
        if first:
            _finish(job, distiller)


def distill(audio: Sequence[str | Path], **options: Any) -> Path:
    """Distil a student from folders of audio and return its folder; options as for `prepare`.

    Raises:
        DistilkitError: as `prepare` and `train`.
    """
    job = prepare(audio, **options)
    for _ in train(job):
        pass
    return job.run.folder / "student"


def build(teacher: Encoder, recipe: config.Recipe) -> tuple[Encoder, Heads]:
    """A student that starts from its teacher, and fresh heads for the layers it predicts.

    Raises:
        DistilkitError: the teacher has no such layers, or fewer layers than the student.
    """
    student, _ = students.build(teacher, recipe.student)
    scale_conv_gradients(student.model, recipe.train.conv_gradient_scale)
    return student, Heads(student.width, teacher.width, len(recipe.objective.layers))


def assemble(
    job: Job, accelerator: Accelerator
) -> tuple[Distiller, Callable[[nn.Module, batches.Batch], Loss]]:
    """What is trained, and the loss of a micro-batch: the parts of a run, put together."""
    loop.seed_step(job.recipe.train.seed, 0)
    student, heads = build(job.teacher, job.recipe)
    if job.plan.gradient_checkpointing:
        student.model.activation_checkpointing_enable()
    arithmetic = _teacher_precision(accelerator, job.plan.precision)
    teach = LiveTargets(job.teacher, job.recipe.objective.layers, arithmetic)
    job.teacher.model.to(accelerator.device)

    def loss_of(module: nn.Module, batch: batches.Batch) -> Loss:
        wave_BS = batch.wave_BS.to(accelerator.device)
        target = teach(wave_BS, batch.lengths)
        predicted = module(wave_BS, batch.lengths)
        mask_BT = frame_mask(batch.lengths, predicted[0].shape[1], accelerator.device)
        return objective(job.recipe.objective, predicted, target, mask_BT)

    return Distiller(student, heads), loss_of


def objective(
    settings: config.Objective,
    predicted: Sequence[Tensor],
    target: Sequence[Tensor],
    mask_BT: Tensor,
) -> Loss:
    """The recipe's loss of one micro-batch."""
    return OBJECTIVES[settings.name](
        predicted,
        target,
        mask_BT,
        layers=settings.layers,
        l1_weight=settings.l1_weight,
        cosine_weight=settings.cosine_weight,
    )


def measure(job: Job, steps: int = 3) -> plan.Measured:
    """Take a few real steps of a job, keep nothing of them, and say what all of them would take.

    The first step warms up and does not count.
    """
    accelerator = loop.accelerator(job.plan.device, job.plan.precision)
    distiller, loss_of = assemble(job, accelerator)
    module, optimizer = accelerator.prepare(distiller, loop.optimizer(distiller, job.recipe.train))
    schedule = plan.schedule(job.recipe, job.train, job.plan.micro_seconds)
    stream = batches.stream(job.train, schedule, first=1, last=steps, workers=0)
    taken = loop.fit(
        accelerator, module, optimizer, stream, loss_of, job.recipe.train, start=0, steps=steps
    )
    seconds = min([step.seconds for step in taken][1:])
    return plan.Measured(
        seconds_per_step=seconds,
        hours=seconds * job.plan.steps / 3600,
        peak_gib=plan.peak_gib(job.plan.device),
    )


def disk_bytes(job: Job) -> int:
    """Bytes that the run will write."""
    student, heads = build(job.teacher, job.recipe)
    size = students.parameters(student.model)
    return plan.disk(size, size + sum(p.numel() for p in heads.parameters()))


def _with_teacher(name: str, settings: config.Recipe) -> tuple[Encoder, Checkpoint]:
    teacher, checkpoint = teachers.load(name)
    deepest = max(settings.objective.layers)
    if deepest > teacher.depth:
        fitting = [layer for layer in settings.objective.layers if layer <= teacher.depth] or [
            teacher.depth
        ]
        raise DistilkitError(
            f"`objective.layers` asks for layer {deepest}, but the teacher `{name}` has {teacher.depth}",
            f"--set objective.layers=[{','.join(map(str, fitting))}]",
        )
    if settings.student.layers > teacher.depth:
        students.build(teacher, settings.student)  # raises
    return teacher, checkpoint


def _run_for(audio: Sequence[str | Path], out: Path | None, resume: bool) -> Run:
    if out is not None:
        return Run(out)
    if resume:
        newest = newest_run(Path("runs"), finished=False)
        if newest is None:
            raise DistilkitError("no unfinished run under `runs`", "distilkit distill AUDIO")
        return newest
    name = Path(audio[0]).resolve().stem if audio else "run"
    return Run(free_folder(Path("runs") / name))


def _reopen(run: Run) -> Job:
    facts = run.read()
    settings = config.parse_recipe(
        tomllib.loads((run.folder / "recipe.toml").read_text(encoding="utf-8")), str(run.folder)
    )
    if run.finished:
        raise DistilkitError(
            f"`{run.folder}` is finished: its student is in `{run.folder / 'student'}`",
            "distilkit distill AUDIO --out DIR for another run",
        )
    source = facts["teacher"]["source"]
    if not Path(source).exists():
        source = facts["teacher"]["name"]
    teacher, checkpoint = _with_teacher(source, settings)
    if fingerprint(checkpoint.model) != facts["teacher"]["fingerprint"]:
        raise DistilkitError(
            f"the teacher `{facts['teacher']['name']}` is not the one that `{run.folder}` began with",
            "put the old one back, or start a new run with another --out",
        )
    windows, valid = data.load_windows(run.folder / "audio.jsonl.gz")
    kept = dict(facts["plan"])
    plan.device(config.Train(device=kept["device"]))  # an error where that device is gone
    kept["choices"] = tuple(plan.Choice(**choice) for choice in kept["choices"])
    return Job(
        run=run,
        recipe=settings,
        teacher=teacher,
        checkpoint=checkpoint,
        train=windows,
        valid=valid,
        plan=plan.Plan(**kept),
        resumed=True,
        facts=facts,
        collection=None,
    )


def _teacher_precision(
    accelerator: Accelerator, arithmetic: config.Precision
) -> AbstractContextManager[object]:
    """bf16 for the teacher where the student has it; never fp16, whose range large norms leave."""
    enabled = arithmetic == "bf16"
    return torch.autocast(accelerator.device.type, torch.bfloat16, enabled=enabled)


def _log(run: Run, step: loop.Step, where: str) -> None:
    row = {
        "step": step.number,
        "loss": step.loss,
        **step.parts,
        "grad_norm": step.grad_norm,
        "learning_rate": step.learning_rate,
        "audio_seconds": step.audio_seconds,
    }
    if not step.updated:
        row["updated"] = False
    run.append("metrics.jsonl", row | ({"valid": step.valid} if step.valid else {}))
    run.append(
        "speed.jsonl",
        {
            "step": step.number,
            "seconds": round(step.seconds, 4),
            "peak_gib": round(plan.peak_gib(where), 3),
        },
    )


def _finish(job: Job, distiller: Distiller) -> None:
    from safetensors.torch import save

    with replacing(job.run.folder / "heads.safetensors") as beside:
        named = {
            name: value.detach().float().cpu().contiguous()
            for name, value in distiller.heads.named().items()
        }
        layers = ",".join(str(layer) for layer in job.recipe.objective.layers)
        beside.write_bytes(save(named, metadata={"layers": layers}))
    card = report.card(
        facts=job.facts,
        recipe=job.recipe,
        student=distiller.student,
        rows=job.run.rows("metrics.jsonl"),
    )
    with replacing(job.run.folder / "student") as beside:
        students.save(distiller.student, beside, card)
