"""What a run's files say, looked at before it goes on: they may have been damaged since they were written.

What is wrong is a `ValueError` or one like it; `training.reading` makes one error of it.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lhotse import MonoCut
from torch import Tensor

from distilkit import config, data, plan, tokenizers
from distilkit.errors import DistilkitError
from distilkit.kernels import obstacle
from distilkit.runs import Run
from distilkit.tokenizers import Tokenizer

SAME_SECONDS = 0.01  # by which sums of the same numbers may differ
TIMED = ("seconds", "peak_gib")  # of speed.jsonl
MOST_WORKERS = 1024  # more processes that load audio than anybody can have asked for
NUMBERS = {  # of a plan: the least, and the most
    "steps": (1, 10**12), "steps_per_pass": (1, 10**12), "workers": (0, MOST_WORKERS),
    "stored_bytes": (0, 2**63), "front_width": (0, 10**6),
}  # fmt: skip


def decided(kept: Mapping[str, Any]) -> plan.Plan:
    """The plan of a run, as `run.json` keeps it.

    Raises:
        DistilkitError: its device is not here, or does not have its precision.
        ValueError: it is none that a run can have.
    """
    choices = tuple(plan.Choice(**choice) for choice in kept["choices"])
    found = plan.Plan(**{**kept, "choices": choices})
    settings = config.Train(device=found.device, precision=found.precision)  # type: ignore[arg-type]
    plan.precision(settings, plan.device(settings)[0])
    for name, (least, most) in NUMBERS.items():
        value = getattr(found, name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"a plan whose `{name}` is {value}")
    if not 0 < found.micro_seconds < math.inf or found.stored not in (None, "fp16", "int8"):
        raise ValueError("a plan with other values than are written")
    for switch in (found.gradient_checkpointing, found.products, found.compiled):
        if not isinstance(switch, bool):
            raise TypeError("a plan with other values than are written")
    if found.compiled and (why := obstacle(found.device)):
        return found.chosen(plan.COMPILING, "off", f"cannot be done here: {why}", compiled=False)
    return found


def check_recipe(recipe: config.Recipe) -> None:
    """Refuse a recipe that lacks what every run keeps.

    Raises:
        ValueError: it names no layers of the teacher.
    """
    objective = recipe.objective
    if objective.features == "layers" and not isinstance(objective.layers, list):
        raise ValueError("a recipe whose layers are no numbers")


def check_windows(
    facts: Mapping[str, Any], train: Sequence[MonoCut], valid: Sequence[MonoCut]
) -> None:
    """Refuse other windows than the run began with.

    Raises:
        ValueError: they last longer, or shorter.
    """
    for name, cuts in (("train_seconds", train), ("valid_seconds", valid)):
        began, now = facts[name], data.seconds(cuts)
        if not abs(now - began) < SAME_SECONDS:
            raise ValueError(f"its windows last {now:.3f} s, and began with {began:.3f} s")


def tokenizer(folder: Path, told: Mapping[str, Any]) -> Tokenizer:
    """A run's own copy of its tokenizer.

    Args:
        folder: where it lies.
        told: what `run.json` says of it.

    Raises:
        DistilkitError: it is damaged, or another one.
    """
    found = tokenizers.load(folder)
    if tokenizers.fingerprint(found) != told["fingerprint"]:
        before = shlex.quote(str(told["folder"]))
        raise DistilkitError(
            f"`{folder}` is not the one that the run began with",
            f"put the old one back: cp {before}/* {shlex.quote(str(folder))}",
        )
    return found


def logged(run: Run) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, where they and those of `speed.jsonl` say what is needed of them later.

    Raises:
        DistilkitError: a line is damaged.
        ValueError: it says other things than numbers.
    """
    rows, speed = run.rows("metrics.jsonl"), run.rows("speed.jsonl")
    for row in rows:
        told = [row["audio_seconds"], *row.get("valid", {}).values()]
        told += [row["loss"]] if row["loss"] is not None else []
        if not all(isinstance(number, int | float) for number in told):
            raise ValueError(f"what is logged of step {row['step']} are not numbers")
    if not all(isinstance(row[name], int | float) for row in speed for name in TIMED):
        raise ValueError("what `speed.jsonl` says are not numbers")
    return rows


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint whose numbers are none: nothing could be learned from there.

    Raises:
        ValueError: names the first.
    """
    for name, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"`{name}` is not finite")
