"""What a few real steps say: how much fits into memory, what is quickest, and how long a run will take.

Nothing is kept of them.
"""

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from statistics import mean

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from lhotse import MonoCut

from distilkit import batches, config, data, loop, plan
from distilkit.audio import clock
from distilkit.errors import DistilkitError
from distilkit.plan import CHECKPOINTING, COMPILING, IN_MEMORY, Plan, gib
from distilkit.training import Parts
from distilkit.wording import first_line

LEAST_GAIN = 0.03  # in time, for which more is kept in memory, or torch's own way is left
REPEATS = 3  # of a micro-batch; the first warms up
CONVOLVING = "convolutions"
COMPILED_FROM = 900.0  # seconds of a run, below which compiling is not tried


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a micro-batch took."""

    seconds: float  # for each second of audio
    peak: int  # bytes, all that the process holds counted


Try = Callable[
    [int, Plan], Trial | None
]  # of so many clips at once, as planned; None: memory runs out


def widest(
    trial: Callable[[int, bool], Trial | None],
    recompute: Sequence[bool],
    most: int,
    room: int,
) -> tuple[int, bool, Trial, str] | None:
    """How many of the longest clips in memory at once are fastest, recomputed or not, and why.

    Twice as many are tried until they no longer fit or are no faster; None where not even one fits.

    Args:
        trial: takes a micro-batch of so many clips, recomputing activations or not; None where memory
            runs out.
        recompute: which of both may be tried.
        most: clips beyond which an optimizer step is full.
        room: bytes that may be taken.
    """
    best: tuple[int, bool, Trial, str] | None = None
    for again in recompute:
        count, why = 1, ""
        own: tuple[int, Trial] | None = None
        while True:
            found = trial(count, again)
            if found is None or found.peak > room:
                why = f"{count} at once do not fit into {gib(room)}"
                break
            if own is not None and found.seconds > (1 - LEAST_GAIN) * own[1].seconds:
                why = f"{count} at once are no faster"
                break
            own = count, found
            if count >= most:
                why = "that is a whole step"
                break
            count = min(2 * count, most)
        if own is not None and (best is None or own[1].seconds < best[2].seconds):
            best = own[0], again, own[1], why
    return best


def measured(
    decided: Plan, found: tuple[int, bool, Trial, str] | None, longest: float, room: int
) -> Plan:
    """A plan with what was measured in place of what was estimated.

    Args:
        decided: the plan.
        found: from `widest`.
        longest: seconds of the longest clip.
        room: bytes that may be taken.

    Raises:
        DistilkitError: not even one clip fits.
    """
    if found is None:
        raise DistilkitError(
            f"one clip of {longest:.1f} s does not fit into {gib(room)}",
            "a shorter --set data.window_seconds, or a smaller teacher",
        )
    count, recompute, trial, why = found
    held = f"measured: {gib(trial.peak)} of {gib(room)}; {why}"
    speed = f"measured: {1 / trial.seconds:.0f} s of audio a second"
    decided = decided.chosen(IN_MEMORY, f"{count * longest:.0f} s of audio", held)
    return decided.chosen(
        CHECKPOINTING,
        "on" if recompute else "off",
        speed,
        micro_seconds=count * longest,
        gradient_checkpointing=recompute,
    )


def convolved(decided: Plan, trial: Try) -> Plan:
    """The plan with a GPU's convolutions as its libraries do them, or as products where these are quicker."""
    stock = trial(1, decided)
    own, why = _if_it_can(trial, 1, replace(decided, products=True))
    if stock is None:
        return decided
    if own is None:
        return decided.chosen(CONVOLVING, "torch's", f"as products: {why}")
    better = own.seconds < (1 - LEAST_GAIN) * stock.seconds
    return decided.chosen(
        CONVOLVING,
        "products of windows" if better else "torch's",
        f"measured: as products {stock.seconds / own.seconds:.2f} times as fast",
        products=better,
    )


def compiled(decided: Plan, trial: Try, count: int, plain: Trial, audio: float, room: int) -> Plan:
    """The plan with layers compiled where that pays over the whole run.

    Args:
        decided: the plan.
        trial: of so many clips at once, as planned.
        count: clips in memory at once.
        plain: what they take as they are.
        audio: seconds of audio that the whole run trains on.
        room: bytes that may be taken.
    """
    whole = plain.seconds * audio
    if whole < COMPILED_FROM:
        return decided.chosen(
            COMPILING, "off", f"{clock(whole)} of steps are over before that pays"
        )
    began = time.perf_counter()
    found, why = _if_it_can(trial, count, replace(decided, compiled=True))
    took = time.perf_counter() - began
    if found is None or found.peak > room:
        why = why if found is None else f"does not fit into {gib(room)}"
        return decided.chosen(COMPILING, "off", why)
    better = (plain.seconds - found.seconds) * audio > max(took, LEAST_GAIN * whole)
    return decided.chosen(
        COMPILING,
        "on" if better else "off",
        f"measured: {plain.seconds / found.seconds:.2f} times as fast, after {took:.0f} s of compiling",
        compiled=better,
    )


def _if_it_can(trial: Try, count: int, planned: Plan) -> tuple[Trial | None, str]:
    """A trial of what may not be to be had here, and why it is not."""
    try:
        return trial(count, planned), "out of memory"
    except DistilkitError:
        raise
    except Exception as error:  # compilers, Triton and drivers fail in ways of their own
        return None, f"cannot be done here: {first_line(error)}"


def settle(
    recipe: config.Recipe | config.CtcRecipe,
    decided: Plan,
    parts: Callable[[Plan], Parts],
    accelerator: Accelerator,
    train: Sequence[MonoCut],
    longest: float,
) -> Plan:
    """Find out on a GPU what is fastest and fits; keep nothing of it.

    What the recipe asks for stays as it is. Elsewhere the estimate has to do.

    Args:
        recipe: of the run.
        decided: what was estimated.
        parts: makes what is trained, as planned.
        accelerator: where.
        train: what to train on; its longest windows are tried.
        longest: seconds of the longest clip that may be in memory.

    Raises:
        DistilkitError: not even one clip fits.
    """
    if decided.device != "cuda":
        return decided
    plan.cap(decided.device, recipe.train)
    room = plan.memory(decided.device, recipe.train)
    most = min(len(train), math.ceil(recipe.batches.seconds / longest))
    lengths = data.samples(train)
    longest_first = nlargest(most, range(len(train)), key=lambda place: (lengths[place], -place))
    tried = data.pick(train, longest_first)

    def trial(count: int, planned: Plan) -> Trial | None:
        return attempt(parts(planned), accelerator, tried[:count])

    asked = recipe.train.gradient_checkpointing
    options = (False, True) if asked == "auto" else (asked,)
    lean = replace(decided, gradient_checkpointing=options[-1])  # what takes the least memory
    formed = convolved(lean, trial)
    decided = replace(formed, gradient_checkpointing=decided.gradient_checkpointing)
    count = max(1, min(most, int(decided.micro_seconds / longest)))
    known: Trial | None = None
    if recipe.batches.micro_seconds == "auto":
        found = widest(
            lambda many, again: trial(many, replace(decided, gradient_checkpointing=again)),
            options,
            most,
            room,
        )
        decided = measured(decided, found, longest, room)
        count, known = (found[0], found[2]) if found else (count, None)
    elif recipe.train.compile == "auto":
        known = trial(count, decided)
    if recipe.train.compile == "auto" and known is not None:
        audio = decided.steps * data.seconds(train) / decided.steps_per_pass
        audio /= accelerator.num_processes
        if recipe.train.hours != "auto":
            audio = min(audio, 3600 * recipe.train.hours / known.seconds)
        decided = compiled(decided, trial, count, known, audio, room)
    forget()
    return decided


def in_time(
    decided: Plan,
    settings: config.Train,
    measure: Callable[[Plan], plan.Measured],
    beside: Plan | None = None,
) -> Plan:
    """The plan with no more steps than fit into the time that may be taken, if there is a limit.

    Args:
        decided: the plan.
        settings: the recipe's, with the limit.
        measure: says what steps and targets take, as planned.
        beside: the plan in whose place it is where less fits than two passes, for which nothing is stored.

    Raises:
        DistilkitError: not even one step fits.
    """
    if settings.hours == "auto":
        return decided
    limit, found = 3600 * settings.hours, measure(decided)
    each, before = found.seconds_per_step, found.before
    steps = min(decided.steps, int((limit - before) / each))
    if beside is not None and steps < plan.LEAST_PASSES * decided.steps_per_pass:
        return in_time(beside, settings, measure)
    if steps < 1:
        first = f", before them {found.preparing}" if before else ""
        needed = math.ceil(1000 * (before + each) / 3600) / 1000
        raise DistilkitError(
            f"`train.hours` {settings.hours:g} is over before the end of the first step of "
            f"{clock(each)}{first}",
            f"--hours {needed:g}",
        )
    if steps < decided.steps:
        passes = f"{steps / decided.steps_per_pass:.3g} pass"
        passes += "es" * (steps != decided.steps_per_pass)
        reason = f"as many as fit into {clock(limit)}: {passes}; {decided.steps:,} were meant"
        decided = decided.chosen("steps", f"{steps:,}", reason, steps=steps)
    return decided


def attempt(made: Parts, accelerator: Accelerator, cuts: Sequence[MonoCut]) -> Trial | None:
    """Take a micro-batch a few times and say what it takes then; None where memory runs out.

    Nothing is learned: the learning rate is 0.
    """
    cuda = accelerator.device.type == "cuda"
    if cuda:
        forget()
    for group in made.optimizer.param_groups:
        group["lr"] = 0.0
    batch, took = batches.load(cuts, made.beside), list[float]()
    try:
        module = made.module.to(accelerator.device).train()
        for _ in range(REPEATS):
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            with accelerator.autocast():
                loss = made.loss_of(module, batch)
            loss.total.backward()  # type: ignore[no-untyped-call]
            made.optimizer.step()
            made.optimizer.zero_grad()
            float(loss.total.detach())  # waits for all of it
            took.append(time.perf_counter() - began)
    except (RuntimeError, MemoryError) as error:
        if not batches.out_of_memory(error):
            raise
        return None
    peak = torch.cuda.max_memory_reserved() if cuda else psutil.Process().memory_info().rss
    return Trial(seconds=min(took[1:]) / batch.seconds, peak=int(peak))


def forget() -> None:
    """What trials took on a GPU counts no more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure(
    recipe: config.Recipe | config.CtcRecipe,
    decided: Plan,
    made: Parts,
    accelerator: Accelerator,
    train: Sequence[MonoCut],
    track: data.Tracker,
) -> plan.Measured:
    """Take a few real steps, keep nothing of them, and say what they took in the mean.

    The first step warms up and does not count.
    """
    steps = plan.measured_steps(recipe)
    module, optimizer = accelerator.prepare(made.module, made.optimizer)
    own = accelerator.process_index, accelerator.num_processes
    schedule = plan.schedule(recipe, train, decided.micro_seconds, *own)
    stream = batches.stream(train, schedule, first=1, last=steps, workers=0, beside=made.beside)
    taken = loop.fit(
        accelerator, module, optimizer, stream, made.loss_of, recipe.train, start=0, steps=steps
    )
    shown = track(taken, description="measuring steps", total=steps)
    seconds = mean([step.seconds for step in shown][1:])
    return plan.Measured(
        seconds_per_step=most(seconds), peak_gib=most(plan.peak_gib(decided.device))
    )


def most(own: float) -> float:
    """The largest number of all processes, for those that train together have to decide alike."""
    return float(max(gather_object([own])))
