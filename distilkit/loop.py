"""The one training loop: a generator over optimizer steps, on accelerate.

It owns no data, no model and no files: it draws batches, back-propagates, updates, and yields what
happened. The caller shows, logs, validates, saves or stops.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from lhotse import MonoCut
from torch import Tensor, nn

from distilkit import config
from distilkit.batches import Batch, Beside, out_of_memory, whole
from distilkit.encoder import keep_freed_memory
from distilkit.errors import DistilkitError
from distilkit.objectives import Loss

# fp16's loss scale begins at 2^16, and is half of what it was after an overflow.
MIN_SCALE = 2.0**-4
MAX_BROKEN = 3  # steps in a row whose loss or gradient is not finite, at which training stops
# Steps of which a tenth may be so: more would end most runs by three in a row as well.
STRETCH = 100
NAMED = 8  # clips of a step, at most


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters with a learning rate of their own."""

    params: list[nn.Parameter]
    scale: float = 1.0  # times the learning rate of the schedule
    after: int = 0  # the optimizer step up to which they are left as they are


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step. All but `seconds` and `waited` is the same on every equal run."""

    number: int  # from 1
    loss: float  # mean per frame
    parts: dict[str, float]  # means per frame
    grad_norm: float  # before clipping
    learning_rate: float
    audio_seconds: float
    seconds: float  # of wall-clock time
    waited: float = 0.0  # of these, for audio
    updated: bool = True  # False where the step was left out: fp16 overflowed, or it is `broken`
    broken: str = ""  # what was not finite, in which clips
    lowered: float = 0.0  # seconds in memory at once from here on, where memory had run out
    valid: dict[str, float] = field(default_factory=dict)  # means per frame, where validated
    unwritten: str = ""  # that the run's report could not be written, and why


@dataclass
class Room:
    """How much audio may be in memory at once; less, once memory has run out."""

    seconds: float = math.inf  # padding counted


def accelerator(device: str, precision: config.Precision) -> Accelerator:
    """An Accelerator for one device and precision; several processes are torchrun's business."""
    AcceleratorState._reset_state(reset_partial_state=True)
    if device == "cpu":
        keep_freed_memory()
    return Accelerator(
        cpu=device == "cpu", mixed_precision="no" if precision == "fp32" else precision
    )


def learning_rate(number: int, steps: int, settings: config.Train) -> float:
    """Linear warm-up, then linear decay to 0 after the last step; `number` counts from 1.

    Source: arXiv 2110.01900, section 4.1 (s3prl's `linear_schedule_with_warmup`).
    """
    warmup = int(settings.warmup_fraction * steps)
    if number <= warmup:
        return settings.learning_rate * number / warmup
    return settings.learning_rate * (steps - number) / max(1, steps - warmup)


def optimizer(
    module: nn.Module, settings: config.Train, groups: Sequence[Group] = ()
) -> torch.optim.AdamW:
    """AdamW over all parameters that are trained.

    Args:
        module: what is trained.
        settings: AdamW's.
        groups: parameters with learning rates of their own; all alike where there are none.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    made = torch.optim.AdamW(
        [vars(group) for group in groups] if groups else trained,
        lr=settings.learning_rate,
        betas=(settings.betas[0], settings.betas[1]),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,  # one pass over the weights: three times as fast on a processor
    )
    # torch would have it leave out steps that overflow in fp16 on its own, and nobody would notice.
    made._step_supports_amp_scaling = False
    return made


def seed_step(seed: int, number: int, rank: int = 0) -> None:
    """Make everything random in a step follow from its number, so that resuming needs no state."""
    value = int(np.random.SeedSequence([seed, number, rank]).generate_state(1)[0])
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)


def fit(
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[list[Batch]],
    loss_of: Callable[[nn.Module, Batch], Loss],
    settings: config.Train,
    *,
    start: int,
    steps: int,
    room: Room | None = None,
    broken: Sequence[int] = (),
) -> Iterator[Step]:
    """Train from step `start` + 1 to step `steps`, yielding after each.

    Gradients are of the mean loss per frame over all micro-batches (and processes) of the step, so
    they do not depend on how the step is split. Where memory runs out, the step is done again with
    half of the audio at once, and so are those behind it.

    Args:
        accelerator: device, precision, processes.
        module: what is trained, as `accelerator.prepare` returned it.
        optimizer: likewise.
        batches: the micro-batches of each step, from step `start` + 1 on.
        loss_of: the loss of a micro-batch, a sum and a count.
        settings: learning rate, clipping, seed.
        start: optimizer steps already done.
        steps: optimizer steps in all.
        room: how much may be in memory at once; lowered here.
        broken: which of the steps done were left out since loss or gradient was not finite.

    Raises:
        DistilkitError: the loss or its gradient is not finite in `MAX_BROKEN` steps in a row or in more than
            a tenth of the last `STRETCH` (fewer are left out), fp16 overflows without end, or memory runs
            out with a single clip in it, or in one of several processes.
    """
    module.train()
    room = room or Room()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    bad = list(broken)
    for number in range(start + 1, steps + 1):
        began = time.perf_counter()
        rate = learning_rate(number, steps, settings)
        for group in optimizer.param_groups:
            begun = number > group.get("after", 0)
            group["lr"] = rate * group.get("scale", 1.0) * begun
        waiting = time.perf_counter()
        given, before = next(batches), room.seconds
        waited = time.perf_counter() - waiting
        counted = _over_ranks(
            accelerator,
            [sum(batch.frames for batch in given), sum(batch.seconds for batch in given)],
        )
        while True:
            micro = [part for batch in given for part in batch.within(room.seconds)]
            seed_step(settings.seed, number, accelerator.process_index)
            sums = _accumulate(accelerator, module, micro, loss_of, counted[0])
            if sums is not None:
                break
            optimizer.zero_grad()
            _lower(room, micro, number, accelerator)
        own = [float(value) for value in sums.values()]
        values = _over_ranks(accelerator, own)
        means = {name: value / counted[0] for name, value in zip(sums, values, strict=True)}
        norm = float(accelerator.clip_grad_norm_(trained, settings.clip_norm))
        said = _broken(accelerator, means["loss"], norm, micro, own)
        skipped = False
        if said:
            bad.append(number)
            _check_broken(bad, steps, said)
            if accelerator.scaler is not None:  # the step is over, and the scale stays what it is
                accelerator.scaler.update(accelerator.scaler.get_scale())
        else:
            optimizer.step()
            skipped = bool(getattr(optimizer, "step_was_skipped", False))
        if skipped:
            _check_scale(accelerator, number, micro)
        optimizer.zero_grad()
        yield Step(
            number=number,
            loss=means.pop("loss"),
            parts=means,
            grad_norm=norm,
            learning_rate=rate,
            audio_seconds=counted[1],
            seconds=time.perf_counter() - began,
            waited=waited,
            updated=not skipped and not said,
            broken=said,
            lowered=room.seconds if room.seconds < before else 0.0,
        )


def _accumulate(
    accelerator: Accelerator,
    module: nn.Module,
    micro: Sequence[Batch],
    loss_of: Callable[[nn.Module, Batch], Loss],
    count: float,
) -> dict[str, Tensor] | None:
    """Add up gradients and losses over micro-batches; None where memory ran out."""
    sums: dict[str, Tensor] = {}
    try:
        for place, batch in enumerate(micro):
            last = place == len(micro) - 1
            with nullcontext() if last else accelerator.no_sync(module):
                with accelerator.autocast():
                    loss = loss_of(module, batch)
                accelerator.backward(loss.total * (accelerator.num_processes / count))
            for name, value in {"loss": loss.total.detach(), **loss.parts}.items():
                sums[name] = sums[name] + value if name in sums else value
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return None
    return sums


def _broken(
    accelerator: Accelerator, loss: float, norm: float, micro: Sequence[Batch], own: Sequence[float]
) -> str:
    """What of a step is not finite, and which clips are in it; nothing where all is well.

    A gradient that overflows in fp16 is the loss scale's business.
    """
    if math.isfinite(loss) and (math.isfinite(norm) or accelerator.scaler is not None):
        return ""
    fine = all(map(math.isfinite, own))
    return f"the loss is {loss:g}, its gradient norm {norm:g}; {_clips(accelerator, micro, fine)}"


def _clips(accelerator: Accelerator, micro: Sequence[Batch], fine: bool) -> str:
    """Clips of a step in which something went wrong, asked of all processes at once.

    Of several processes only those whose losses were not fine, if any: gradients are everybody's.
    """
    ids = [id for batch in micro for id in batch.ids]
    if accelerator.num_processes == 1:
        return _named(ids, len(ids), NAMED)
    told = gather_object([(fine, accelerator.process_index, ids[:NAMED], len(ids))])
    wrong = [each[1:] for each in told if not each[0]] or [each[1:] for each in told]
    most = max(1, NAMED // len(wrong))
    said = [f"process {rank}: {_named(some, count, most)}" for rank, some, count in wrong[:NAMED]]
    more = f"; {len(wrong) - NAMED} more processes" if len(wrong) > NAMED else ""
    return "; ".join(said) + more


def _named(ids: Sequence[str], count: int, most: int) -> str:
    """The first of so many clips."""
    more = f" and {count - most} more" if count > most else ""
    return "clips " + ", ".join(f"`{id}`" for id in ids[:most]) + more


def _check_broken(bad: Sequence[int], steps: int, said: str) -> None:
    """Stop where too many steps are left out since loss or gradient is not finite.

    Args:
        bad: their numbers up to now.
        steps: optimizer steps in all.
        said: what was seen in the last one.

    Raises:
        DistilkitError: they are `MAX_BROKEN` in a row; or more than a tenth of the last `STRETCH`, or of all
            where there are fewer.
    """
    number, stretch = bad[-1], min(STRETCH, steps)
    recent = [one for one in bad if one > number - stretch]
    hint = (
        "a smaller --set train.learning_rate (with adapters lora.learning_rate), or "
        "--set train.precision=fp32, in a new run"
    )
    if bad[-MAX_BROKEN:] == list(range(number - MAX_BROKEN + 1, number + 1)):
        raise DistilkitError(f"step {number}, the {MAX_BROKEN}rd in a row: {said}", hint)
    if len(recent) > max(MAX_BROKEN, stretch // 10):
        share = f"{len(recent)} of the last {min(stretch, number)} steps"
        listed = ", ".join(str(one) for one in recent)
        raise DistilkitError(
            f"step {number}: {share} were left out ({listed}): {said}",
            f"leave out the clips at fault, if they are the same (`broken` in metrics.jsonl), or {hint}",
        )


def _check_scale(accelerator: Accelerator, number: int, micro: Sequence[Batch]) -> None:
    """Stop where fp16 overflows, and its loss scale, which then falls, is below all that is of use.

    It doubles again after 2,000 steps without, so a step now and then costs nothing but itself.

    Raises:
        DistilkitError: it is.
    """
    scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else math.inf
    if scale < MIN_SCALE:
        raise DistilkitError(
            f"step {number}: fp16 overflows, though its loss scale has fallen to {scale:g}; "
            f"{_clips(accelerator, micro, fine=True)}",
            "--set train.precision=fp32, in a new run",
        )


def _lower(room: Room, micro: Sequence[Batch], number: int, accelerator: Accelerator) -> None:
    """Halve what may be in memory at once, after it ran out.

    Raises:
        DistilkitError: it cannot be halved.
    """
    largest = max((batch for batch in micro if len(batch.ids) > 1), key=_size, default=None)
    if accelerator.num_processes > 1:  # the others wait for this one's gradients
        half = max(map(_size, micro)) / 2
        raise DistilkitError(
            f"step {number}: process {accelerator.process_index} ran out of memory",
            f"start again with --set batches.micro_seconds={half:.0f}",
        )
    if largest is None:
        raise DistilkitError(
            f"step {number}: out of memory with nothing but one clip of "
            f"{max(map(_size, micro)):.1f} s in it",
            "--set train.gradient_checkpointing=true, or a shorter --set data.window_seconds",
        )
    room.seconds = max(map(_size, largest.within(0.75 * _size(largest))))
    if accelerator.device.type == "cuda":
        torch.cuda.empty_cache()


def _size(batch: Batch) -> float:
    return batch.padded_seconds


def validate(
    accelerator: Accelerator,
    module: nn.Module,
    windows: Sequence[MonoCut],
    loss_of: Callable[[nn.Module, Batch], Loss],
    micro_seconds: float,
    beside: Beside | None = None,
) -> dict[str, float]:
    """The mean loss per frame over all held-out windows, and its parts, without dropout."""
    module.eval()
    sums: dict[str, float] = {}
    count = 0
    with torch.no_grad():
        for number, batch in enumerate(whole(windows, micro_seconds, beside)):
            seed_step(0, number)  # the same frames are masked each time
            with accelerator.autocast():
                loss = loss_of(accelerator.unwrap_model(module), batch)
            for name, value in {"loss": loss.total, **loss.parts}.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            count += batch.frames
    module.train()
    return {name: value / count for name, value in sums.items()}


def _over_ranks(accelerator: Accelerator, numbers: Sequence[float]) -> list[float]:
    """Sums over all processes."""
    if accelerator.num_processes == 1:
        return list(numbers)
    tensor = torch.tensor(numbers, dtype=torch.float64, device=accelerator.device)
    return [float(number) for number in accelerator.reduce(tensor, reduction="sum")]


def any_rank(accelerator: Accelerator, asked: bool) -> bool:
    """Whether any process asks, so that all of them stop after the same step."""
    return _over_ranks(accelerator, [float(asked)])[0] > 0


def state(
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    given: Set[str] = frozenset(),
) -> tuple[dict[str, Tensor], dict[str, float | int]]:
    """Everything that the next step depends on beside the recipe: tensors, and plain numbers.

    Args:
        accelerator: of the run.
        module: what is trained.
        optimizer: its optimizer.
        given: names of weights to leave out, for they do not change and can be had elsewhere.
    """
    tensors = {
        f"module.{name}": value
        for name, value in accelerator.unwrap_model(module).state_dict().items()
        if name not in given
    }
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
    return tensors, {f"scaler.{name}": value for name, value in scaler.items()}


def restore(
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, float | int],
    given: Set[str] = frozenset(),
) -> None:
    """Put back what `state` returned; the module has what was left out.

    Raises:
        ValueError: the optimizer's state of a weight has not all that of others has, or not its shape.
    """
    kept = {
        name.removeprefix("module."): value
        for name, value in tensors.items()
        if name.startswith("module.")
    }
    bare = accelerator.unwrap_model(module)
    there = bare.state_dict()
    bare.load_state_dict({**{name: there[name] for name in given}, **kept})
    saved = optimizer.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    every = sorted(set().union(*moments.values()))
    for place, values in moments.items():
        for key in every:
            if key not in values:
                raise ValueError(f"`optimizer.{place}.{key}` is missing")
            if values[key].shape != (() if key == "step" else weights[place].shape):
                raise ValueError(f"`optimizer.{place}.{key}` has another shape")
    optimizer.load_state_dict({"state": moments, "param_groups": saved["param_groups"]})
    if accelerator.scaler is not None:
        scaler = {
            name.removeprefix("scaler."): value
            for name, value in numbers.items()
            if name.startswith("scaler.")
        }
        if scaler:
            accelerator.scaler.load_state_dict(scaler)
