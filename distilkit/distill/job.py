"""A distillation that is ready to run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lhotse import MonoCut

from distilkit import config, data
from distilkit.assembly import Existing
from distilkit.codebooks import Codebook
from distilkit.encoder import Encoder
from distilkit.plan import Measured, Plan
from distilkit.runs import Run
from distilkit.teachers import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Job:
    """A distillation that is ready to run."""

    run: Run
    recipe: config.Recipe
    teacher: Encoder | None  # None where none is needed: units of MFCC, or all targets are stored
    checkpoint: Checkpoint | None
    existing: Existing | None  # a student to go on with
    train: Sequence[MonoCut]
    valid: Sequence[MonoCut]
    plan: Plan
    resumed: bool
    facts: dict[str, Any]  # what run.json says
    collection: data.Collection | None  # None when resumed
    taken: Measured | None = None  # what a few real steps took, where they were measured
    units: Codebook | None = None  # found while measuring
