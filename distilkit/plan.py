"""What fits: steps, memory, time and disk, each with its reason."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from lhotse import MonoCut
from transformers import HubertConfig

from distilkit import config, data
from distilkit.audio import FRAME_RATE, SAMPLE_RATE, clock
from distilkit.batches import Schedule
from distilkit.convolutions import bf16_is_quick, has_bf16
from distilkit.encoder import Encoder
from distilkit.errors import DistilkitError
from distilkit.front import ON_CPU, ON_GPU
from distilkit.kernels import Kernels, obstacle
from distilkit.runs import CHECKPOINTS
from distilkit.wording import counted

MEMORY_SHARE = 0.5  # of what is free, for the activations of one micro-batch
CPU_MICRO_SECONDS = 64.0  # more at once is no faster on a processor, whatever the model
CHECKPOINTING_BELOW = 4  # windows in memory at once below which recomputing pays
IN_MEMORY, CHECKPOINTING = "in memory at once", "gradient checkpointing"
COMPILING = "compiled layers"
MOST_WORKERS = 8  # processes that load audio beside a GPU
MEASURED = 100.0  # seconds of audio whose steps are taken to measure a plan
MEASURED_SHARE = 0.01  # of a run's steps, that are taken before it begins only to say what it takes
LEAST_PASSES = 2.0  # over the audio from which on targets are kept
DISK_SHARE = 0.5  # of what is free on the disk, for targets
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A setting that was derived, and why it is what it is."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do. Numbers are of one process."""

    steps: int
    steps_per_pass: int
    micro_seconds: float
    workers: int
    precision: config.Precision
    device: str
    gradient_checkpointing: bool
    choices: tuple[Choice, ...]
    stored: config.Stored | None = None  # form in which targets are kept; None runs the teacher
    stored_bytes: int = 0  # on disk
    front_width: int = 0  # C of the front end's output where teacher and student share it, else 0
    products: bool = False  # convolutions of the front end on a GPU as products of windows
    compiled: bool = False  # transformer layers, by `torch.compile`

    @property
    def kernels(self) -> Kernels:
        """How teacher and student compute."""
        return Kernels(products=self.products, compiled=self.compiled)

    def chosen(self, name: str, value: str, reason: str, **changes: Any) -> "Plan":
        """The plan with other values, and with what became of that setting, and why."""
        choices = {choice.name: choice for choice in self.choices}
        choices[name] = Choice(name=name, value=value, reason=reason)
        return replace(self, choices=tuple(choices.values()), **changes)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a few real steps took."""

    seconds_per_step: float
    peak_gib: float  # of the accelerator's memory, or of this process's on a CPU
    unit_seconds: float = 0.0  # that finding the units took, which comes before all else
    target_seconds: float = 0.0  # that computing all targets takes, before the first step

    @property
    def before(self) -> float:
        """Seconds before the first step."""
        return self.unit_seconds + self.target_seconds

    @property
    def preparing(self) -> str:
        """What they are taken by."""
        parts = [
            (self.unit_seconds, "to find the units"),
            (self.target_seconds, "for the teacher's targets"),
        ]
        return " and ".join(f"{clock(seconds)} {what}" for seconds, what in parts if seconds)


def device(settings: config.Train) -> tuple[str, str]:
    """Where to compute, and why.

    Raises:
        DistilkitError: the device that was asked for is not there.
    """
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    place = os.environ.get("LOCAL_RANK", "")  # torchrun's number of this process, on its machine
    if present["cuda"] and place.isdecimal() and int(place) < torch.cuda.device_count():
        torch.cuda.set_device(int(place))  # of several processes each has its own
    if settings.device != "auto":
        if not present[settings.device]:
            raise DistilkitError(f"no `{settings.device}` device here", "--set train.device=auto")
        return settings.device, "asked for"
    if present["cuda"]:
        return "cuda", torch.cuda.get_device_name()
    if present["mps"]:
        return "mps", "Apple GPU"
    return "cpu", f"no GPU found; {counted(torch.get_num_threads(), 'thread')}"


def precision(settings: config.Train, where: str) -> tuple[config.Precision, str]:
    """The arithmetic, and why."""
    if settings.precision != "auto":
        if settings.precision == "fp16" and where == "cpu":
            raise DistilkitError(
                "`train.precision` cannot be `fp16` on a CPU", "--set train.precision=auto"
            )
        return settings.precision, "asked for"
    if where == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU has it"
        return "fp16", "with loss scaling; this GPU has no bf16"
    if where != "cpu":
        return "fp32", "safest on this device"
    if not has_bf16():
        return "fp32", "no bf16 here"
    if bf16_is_quick():
        return "bf16", "this processor has it"
    return "fp32", "bf16 is no quicker on this processor"


def steps(settings: config.Train, steps_per_pass: int, train_seconds: float) -> tuple[int, str]:
    """Optimizer steps, and why."""
    if settings.steps != "auto":
        passes = settings.steps / steps_per_pass
        return (
            settings.steps,
            f"asked for; {passes:.3g} passes over {clock(train_seconds)} of audio",
        )
    wanted = round(settings.passes * steps_per_pass)
    chosen = min(max(wanted, settings.min_steps), max(settings.min_steps, settings.max_steps))
    reason = f"{settings.passes:g} passes over {clock(train_seconds)} of audio"
    if chosen > wanted:
        reason = f"the least of this recipe; {reason} would be {wanted:,}"
    elif chosen < wanted:
        reason = f"the most of this recipe; {reason} would be {wanted:,}"
    return chosen, reason


def memory(where: str, settings: config.Train | None = None) -> int:
    """Bytes that may be taken where the training runs: what is free, or less where so much is asked for.

    Raises:
        DistilkitError: more is asked for than there is.
    """
    if where == "cuda":
        free, there = torch.cuda.mem_get_info()
    else:
        machine = psutil.virtual_memory()
        free, there = machine.available, machine.total
    if settings is None or settings.memory_gib == "auto":
        return int(free)
    if settings.memory_gib * 2**30 > there:
        raise DistilkitError(
            f"`train.memory_gib` {settings.memory_gib:g} is more than the {gib(there)} that there are",
            "leave it out: what is free is taken",
        )
    return int(min(free, settings.memory_gib * 2**30))


def cap(where: str, settings: config.Train) -> None:
    """Let a GPU refuse this process more memory than it was given."""
    if where == "cuda" and settings.memory_gib != "auto":
        _, there = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(min(1.0, settings.memory_gib * 2**30 / there))


def bytes_per_second(
    shape: HubertConfig,
    arithmetic: config.Precision,
    *,
    frozen_front: bool = False,
    recompute: bool = False,
    attended: float = 0.0,
) -> float:
    """Memory that one second of audio takes in a training step, estimated from the student's shape.

    Of a conv front end that is trained, what each convolution but the first gives is kept; of transformer
    layers most of what they compute, or one layer's at a time.

    Args:
        shape: the student's.
        arithmetic: of its activations.
        frozen_front: whether the front end keeps nothing.
        recompute: whether transformer layers keep nothing but what they are given.
        attended: seconds of a clip whose matrices of attention are kept; 0 where no matrix is made.
    """
    size, rate, front = BYTES[arithmetic], SAMPLE_RATE / shape.conv_stride[0], 0.0
    for width, stride in zip(shape.conv_dim[1:], shape.conv_stride[1:], strict=True):
        rate /= stride
        front += width * rate * size
    layer = FRAME_RATE * size * (16 * shape.hidden_size + 3 * shape.intermediate_size)
    layer += FRAME_RATE * 4 * 3 * shape.num_attention_heads * attended * FRAME_RATE
    layers = (1 if recompute else shape.num_hidden_layers) + 1
    return float(layer * layers + (0.0 if frozen_front else front))


def bytes_passing(shape: HubertConfig, arithmetic: config.Precision) -> float:
    """Memory that one second of audio takes at the most while a teacher runs over it: a layer's."""
    return float(
        FRAME_RATE * BYTES[arithmetic] * (8 * shape.hidden_size + 2 * shape.intermediate_size)
    )


def bytes_begun(shape: HubertConfig, arithmetic: config.Precision, where: str) -> float:
    """Memory that the front end's widest part takes at the most, whatever the batch: five tensors."""
    seconds = (ON_CPU if where == "cpu" else ON_GPU) / FRAME_RATE
    rate = SAMPLE_RATE / shape.conv_stride[0]
    return float(5 * shape.conv_dim[0] * seconds * rate * BYTES[arithmetic])


def micro_seconds(
    settings: config.Recipe | config.CtcRecipe,
    student: Encoder,
    teacher: Encoder | None,
    where: str,
    arithmetic: config.Precision,
    longest: float,
) -> tuple[float, bool, tuple[Choice, ...]]:
    """How much audio is in memory at once, whether activations are recomputed, and why."""
    frozen, room = settings.frozen_front_end, memory(where, settings.train)
    own, taught = student.model.config, (teacher or student).model.config
    begun = max(bytes_begun(shape, arithmetic, where) for shape in (own, taught))
    # with dropout, processors have no fused attention
    attended = longest if where == "cpu" and own.attention_dropout else 0.0

    def fitting(recompute: bool) -> tuple[float, float]:
        each = bytes_per_second(
            own, arithmetic, frozen_front=frozen, recompute=recompute, attended=attended
        )
        each += bytes_passing(taught, arithmetic)
        return max(0.0, MEMORY_SHARE * room - begun) / each, each

    recompute = settings.train.gradient_checkpointing
    reason = "asked for"
    if recompute == "auto":
        fits, _ = fitting(recompute=False)
        recompute = fits < CHECKPOINTING_BELOW * longest
        reason = f"{clock(fits)} of audio fit in half of {gib(room)}"
    fits, each = fitting(recompute)
    asked, why = settings.batches.micro_seconds, "asked for"
    if asked != "auto":
        chosen = asked
    else:
        most = CPU_MICRO_SECONDS if where == "cpu" else settings.batches.seconds
        chosen = max(longest, min(most, settings.batches.seconds, fits))
        why = f"about {(each * chosen + begun) / 2**30:.1f} GiB of activations"
    return (
        chosen,
        recompute,
        (
            Choice(name=IN_MEMORY, value=f"{chosen:.0f} s of audio", reason=why),
            Choice(name=CHECKPOINTING, value="on" if recompute else "off", reason=reason),
        ),
    )


def schedule(
    settings: config.Recipe | config.CtcRecipe,
    train: Sequence[MonoCut],
    micro: float,
    rank: int = 0,
    ranks: int = 1,
) -> Schedule:
    """Which windows each optimizer step sees."""
    return Schedule(
        lengths=data.samples(train),
        seconds=settings.batches.seconds,
        micro_seconds=micro,
        seed=settings.train.seed,
        rank=rank,
        ranks=ranks,
    )


def stored(
    settings: config.Targets,
    steps: int,
    steps_per_pass: int,
    bytes_for: Callable[[config.Stored], int],
    place: Path,
    *,
    units: bool,
) -> tuple[config.Stored | None, int, Choice]:
    """Whether targets are kept, in which form, how many bytes that takes, and why.

    Args:
        settings: the recipe's.
        steps: optimizer steps of the run.
        steps_per_pass: of which a pass over the audio has that many.
        bytes_for: what all targets take in that form.
        place: the folder that they go to.
        units: whether they are units, which are whole numbers in any form.
    """

    def chosen(form: config.Stored | None, reason: str) -> tuple[config.Stored | None, int, Choice]:
        size = bytes_for(form) if form else 0
        value = f"{'units' if units else form}, {gib(size)}" if form else "as it goes"
        return form, size, Choice(name="targets", value=value, reason=reason)

    passes = steps / steps_per_pass
    once = for_passes(passes)
    if settings.store == "none":
        return chosen(None, "asked for: the teacher runs beside the student")
    if settings.store != "auto":
        return chosen(settings.store, f"asked for; {once}")
    if passes < LEAST_PASSES:
        return chosen(None, f"the teacher runs beside the student in {passes:.3g} passes")
    size, free = bytes_for("fp16"), shutil.disk_usage(existing(place)).free
    if size > settings.most_gib * 2**30:
        return chosen(None, f"{gib(size)} on disk are more than `targets.most_gib`")
    if size > DISK_SHARE * free:
        return chosen(None, f"{gib(size)} on disk, and only {gib(free)} are free")
    return chosen("fp16", once)


def for_passes(passes: float) -> str:
    """What stored targets are good for."""
    return f"the teacher runs once for {passes:{',.0f' if passes >= 100 else '.3g'}} passes"


def gib(size: float) -> str:
    """Bytes for people: GiB, or MiB where there are few."""
    return f"{size / 2**30:.2f} GiB" if size >= 0.1 * 2**30 else f"{size / 2**20:.1f} MiB"


def existing(folder: Path) -> Path:
    """The folder, or the nearest above that is there."""
    folder = folder.absolute()
    return next(parent for parent in [folder, *folder.parents] if parent.exists())


def decide(
    settings: config.Recipe | config.CtcRecipe,
    student: Encoder,
    teacher: Encoder | None,
    train: Sequence[MonoCut],
    longest: float,
) -> Plan:
    """Everything that follows from recipe, models, audio and machine, each with its reason.

    Args:
        settings: the recipe.
        student: what is trained.
        teacher: what runs beside it, if anything.
        train: what it is trained on.
        longest: seconds of the longest clip that may be in memory.
    """
    where, why_there = device(settings.train)
    arithmetic, why_arithmetic = precision(settings.train, where)
    micro, recompute, choices = micro_seconds(
        settings, student, teacher, where, arithmetic, longest
    )
    chosen = schedule(settings, train, micro)
    wanted, why_steps = steps(settings.train, chosen.steps_per_pass, data.seconds(train))
    workers = settings.batches.workers
    if workers == "auto":
        most = min(MOST_WORKERS, max(1, (os.cpu_count() or 1) - 1))
        workers = most if where == "cuda" else 0
    per_step = data.seconds(train) / chosen.steps_per_pass
    decided = Plan(
        steps=wanted,
        steps_per_pass=chosen.steps_per_pass,
        micro_seconds=micro,
        workers=workers,
        precision=arithmetic,
        device=where,
        gradient_checkpointing=recompute,
        choices=(
            Choice(name="device", value=where, reason=why_there),
            Choice(name="precision", value=arithmetic, reason=why_arithmetic),
            Choice(name="steps", value=f"{wanted:,}", reason=why_steps),
            Choice(
                name="audio per step",
                value=f"{per_step:.0f} s",
                reason=f"{counted(chosen.steps_per_pass, 'equal step')} a pass, as near to the recipe's "
                f"{settings.batches.seconds:g} s as it goes",
            ),
            *choices,
        ),
    )
    return compiling(decided, settings.train)


def compiling(decided: Plan, settings: config.Train) -> Plan:
    """The plan with layers compiled or not, where that is asked for; on a GPU it is tried otherwise.

    Raises:
        DistilkitError: they are to be, and cannot.
    """
    if settings.compile == "auto":
        return decided
    if settings.compile and (why := obstacle(decided.device)):
        raise DistilkitError(f"layers cannot be compiled here: {why}", "--set train.compile=auto")
    value = "on" if settings.compile else "off"
    return decided.chosen(COMPILING, value, "asked for", compiled=settings.compile)


def measured_steps(recipe: config.Recipe | config.CtcRecipe) -> int:
    """How many steps a plan takes, the one that warms up counted: few long ones, or more short ones."""
    return 1 + min(max(2, round(MEASURED / recipe.batches.seconds)), 12)


def worth_measuring(recipe: config.Recipe | config.CtcRecipe, steps: int) -> bool:
    """Whether so many steps take so long that a few of them may be measured beforehand."""
    return measured_steps(recipe) <= MEASURED_SHARE * steps


def front_end(width: int) -> Choice:
    """What becomes of a frozen front end whose output of that many channels is shared, or not with 0."""
    why = (
        "the teacher's serves both"
        if width
        else "the student's own runs too: it is another, or hears something else"
    )
    return Choice(name="conv front end", value="frozen", reason=why)


def disk(student: int, trained: int) -> int:
    """Bytes that a run writes: two checkpoints (trained weights and two moments), another while it
    replaces the older one, and the result.
    """
    return 4 * ((CHECKPOINTS + 1) * 3 * trained + student)


def check_disk(folder: Path, needed: int) -> None:
    """Refuse a run that would fill the disk.

    Raises:
        DistilkitError: less is free than the run writes.
    """
    place = existing(folder)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DistilkitError(
            f"`{place}` has {gib(free)} free; the run writes {gib(needed)}",
            "--out on another disk",
        )


def peak_gib(where: str) -> float:
    """The most memory this process has held, in GiB: of the GPU, or on a CPU of its own."""
    import resource
    import sys

    if where == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
