"""The parts of a distillation: what is trained, the loss, and what computes the targets."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from distilkit import assembly, codebooks, data, loop, plan, training
from distilkit.audio import frames
from distilkit.distill.job import Job
from distilkit.distill.keeping import widths
from distilkit.files import replacing
from distilkit.kernels import apply
from distilkit.noise import recordings
from distilkit.targets import Targets, live_units


def assemble(
    job: Job,
    accelerator: Accelerator,
    keep: Path | None = None,
    targets: Targets | None = None,
) -> tuple[training.Parts, Targets]:
    """What is trained, the loss of a micro-batch, and what computes the targets.

    Args:
        job: from `prepare`.
        accelerator: where it is to run.
        keep: where the run's codebook lies, or is written once it is found.
        targets: what computes the targets; what the recipe says when None.
    """
    recipe = job.recipe
    loop.seed_step(recipe.train.seed, 0)
    distiller, _ = assembly.build(job.teacher, recipe, job.existing)
    if job.plan.gradient_checkpointing:
        distiller.model.activation_checkpointing_enable()
    if accelerator.device.type == "cpu" and job.plan.precision == "bf16":
        distiller.model.set_attn_implementation("eager")  # the fused one goes back slowly there
    apply(distiller.model, job.plan.kernels)
    targets = targets or targets_of(job, accelerator, keep)
    noises = recordings(recipe.noise.folder) if recipe.noise.probability else lambda _: None
    front = bool(job.plan.front_width)
    loss_of = assembly.loss_function(recipe, targets, noises, accelerator.device, front)
    optimizer = loop.optimizer(distiller, recipe.train)
    return training.Parts(module=distiller, optimizer=optimizer, loss_of=loss_of), targets


def targets_of(job: Job, accelerator: Accelerator, keep: Path | None) -> Targets:
    """What computes what the recipe predicts."""
    objective = job.recipe.objective
    if job.teacher is None and objective.features == "layers":
        return all_stored
    seen = features(job, accelerator)
    if objective.name == "units":
        return live_units(seen, found_codebook(job, accelerator, seen, keep))
    return seen


def features(job: Job, accelerator: Accelerator) -> Targets:
    """What the targets are, or are units of, as the plan has it computed."""
    decided, front = job.plan, bool(job.plan.front_width)
    return assembly.features(
        job.teacher,
        job.recipe.objective,
        accelerator.device,
        decided.precision,
        front,
        decided.kernels,
    )


def likely(job: Job, accelerator: Accelerator, decided: plan.Plan) -> training.Parts:
    """The parts of a run whose targets mean nothing and cost what they will: to try what fits and how."""
    tried = replace(job, plan=decided)
    objective, told = job.recipe.objective, job.facts["teacher"]
    wide = widths(objective, told["width"] if told else 0, job.plan.front_width)

    def nothing(wave_S: Tensor) -> list[Tensor]:
        shape = (*wave_S.shape[:-1], frames(wave_S.shape[-1]))
        return [
            torch.zeros(*shape, width) if width else torch.zeros(shape, dtype=torch.long)
            for width in wide
        ]

    if job.plan.stored:
        made, _ = assemble(tried, accelerator, targets=all_stored)
        return replace(made, beside=lambda cut, wave_S: nothing(wave_S))
    seen = features(tried, accelerator)

    def units(wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        seen(wave_BS, lengths)
        return [target.to(wave_BS.device) for target in nothing(wave_BS)]

    return assemble(tried, accelerator, targets=units if objective.name == "units" else seen)[0]


def all_stored(wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """In the place of a teacher whose targets are all stored."""
    raise AssertionError("no teacher is loaded where all its targets are stored")


def found_codebook(
    job: Job,
    accelerator: Accelerator,
    seen: Targets,
    keep: Path | None,
    track: data.Tracker = data.untracked,
) -> codebooks.Codebook:
    """The units of a run, kept beside it.

    Where they are the job's, all processes keep them together, whatever one of them finds already there.
    """
    if keep is not None and keep.is_file() and job.units is None:
        return codebooks.load(keep)
    told = job.facts["teacher"]
    found = job.units or assembly.codebook(
        job.recipe,
        seen,
        job.train,
        job.plan.micro_seconds,
        accelerator.device,
        told["fingerprint"] if told else "",
        track,
    )
    if keep is None:
        return found
    if accelerator.is_main_process:
        with replacing(keep) as beside:
            codebooks.save(found, beside)
    accelerator.wait_for_everyone()
    return codebooks.load(keep)
