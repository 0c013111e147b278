"""Cuts to batches under a budget of seconds; any step can be reached at once, so resume is exact.

Which windows an optimizer step sees is a pure function of (windows, seconds, seed, step): an epoch
is a permutation, cut into steps of nearly equal seconds. docs/decisions/0002 says why this is not
one of lhotse's samplers.

Letters in names: B clips in a batch, S samples.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from lhotse import MonoCut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler

from distilkit import data
from distilkit.audio import SAMPLE_RATE, frames
from distilkit.errors import DistilkitError
from distilkit.listeners import grouped, in_order

Beside = Callable[[MonoCut, Tensor], Sequence[Tensor]]  # what is kept of a window, given its sound
READERS = 2  # micro-batches that are read ahead, each by a thread
OUT_OF_MEMORY = (  # what torch, CUDA's libraries, the system, oneDNN and C++ say
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "could not create a primitive",
    "bad_alloc",
    "status_alloc_failed",
    "unable to find an engine",
)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A micro-batch: what is in memory at once."""

    ids: tuple[str, ...]
    wave_BS: Tensor  # float32, 16 kHz, zeros behind each clip's end
    lengths: tuple[int, ...]  # samples of each clip
    targets: tuple[Tensor, ...] = ()  # (B, T, D) or (B, T) each, where they are stored

    @property
    def frames(self) -> int:
        """Frames of all clips, padding left out."""
        return sum(frames(length) for length in self.lengths)

    @property
    def seconds(self) -> float:
        """Seconds of audio, padding left out."""
        return sum(self.lengths) / SAMPLE_RATE

    def pin_memory(self) -> "Batch":
        """The same in memory that a GPU copies from while the processor goes on; torch calls this."""
        targets = tuple(each.pin_memory() for each in self.targets)
        return replace(self, wave_BS=self.wave_BS.pin_memory(), targets=targets)

    @property
    def padded_seconds(self) -> float:
        """Seconds of audio, padding counted."""
        return self.wave_BS.numel() / SAMPLE_RATE

    def within(self, most: float) -> "list[Batch]":
        """The same clips in as few halves of halves as hold at most that many padded seconds each.

        A clip alone is never split.
        """
        if len(self.lengths) == 1 or self.padded_seconds <= most:
            return [self]
        middle = (len(self.lengths) + 1) // 2
        return [
            part
            for rows in (slice(0, middle), slice(middle, None))
            for part in self._rows(rows).within(most)
        ]

    def _rows(self, rows: slice) -> "Batch":
        lengths = self.lengths[rows]
        return Batch(
            ids=self.ids[rows],
            wave_BS=self.wave_BS[rows, : max(lengths)],
            lengths=lengths,
            targets=tuple(each[rows, : frames(max(lengths))] for each in self.targets),
        )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Which windows each optimizer step sees.

    Args:
        lengths: samples of every window.
        seconds: audio per optimizer step; a pass is cut into equal steps as near to it as it goes.
        micro_seconds: audio in memory at once, padding counted; one window always fits.
        seed: decides the order.
        rank, ranks: which of several processes this is; each takes an equal share of every step.
    """

    lengths: Sequence[int]
    seconds: float
    micro_seconds: float
    seed: int
    rank: int = 0
    ranks: int = 1

    @property
    def steps_per_pass(self) -> int:
        """Optimizer steps in one pass over the windows."""
        steps = round(sum(self.lengths) / SAMPLE_RATE / self.seconds)
        return max(1, min(steps, len(self.lengths) // self.ranks))

    def step(self, number: int) -> list[list[int]]:
        """The micro-batches of optimizer step `number` (from 1), as indices of windows."""
        return next(self.between(number, number))

    def between(self, first: int, last: int) -> Iterator[list[list[int]]]:
        """Those of one step after the other; each pass is drawn once."""
        steps, drawn = self.steps_per_pass, -1
        for number in range(first, last + 1):
            epoch, place = divmod(number - 1, steps)
            if epoch != drawn:
                order, edges = self._drawn(epoch, steps)
                drawn = epoch
            yield self._dealt(order[edges[place] : edges[place + 1]].tolist())

    def _drawn(self, epoch: int, steps: int) -> tuple[npt.NDArray[np.int64], list[int]]:
        """The windows in the order of a pass, and where its steps begin and end."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths))
        ends = np.asarray(self.lengths, dtype=np.int64)[order].cumsum()
        edges = np.searchsorted(ends, ends[-1] * np.arange(1, steps) / steps) + 1
        # Every step gets a window for each process, whatever their lengths.
        least = self.ranks * np.arange(1, steps)
        edges = np.maximum.accumulate(np.maximum(edges, least) - least) + least
        edges = np.minimum(edges, len(order) - self.ranks * np.arange(steps - 1, 0, -1))
        return order, [0, *edges.tolist(), len(order)]

    def _dealt(self, windows: Sequence[int]) -> list[list[int]]:
        """This process's share of a step, in micro-batches."""
        chosen = sorted(windows, key=lambda i: (-self.lengths[i], i))
        # Dealt back and forth, so that no process always has the longer windows.
        rounds = [range(self.ranks), range(self.ranks - 1, -1, -1)]
        share = [
            index
            for place, index in enumerate(chosen)
            if rounds[place // self.ranks % 2][place % self.ranks] == self.rank
        ]
        return grouped(share, self.lengths, self.micro_seconds)


class MicroBatches(Dataset[Batch | DistilkitError]):
    """Micro-batches by list of window indices; what cannot be loaded is an error that is returned.

    Raised in a process that loads, it would arrive as a traceback in text.
    """

    def __init__(self, cuts: Sequence[MonoCut], beside: Beside | None) -> None:
        self.cuts, self.beside = cuts, beside

    def __getitem__(self, chosen: list[int]) -> Batch | DistilkitError:
        """Load the chosen windows."""
        try:
            return load([self.cuts[index] for index in chosen], self.beside)
        except DistilkitError as error:
            return error


class _Steps(Sampler[list[int]]):
    def __init__(self, schedule: Schedule, first: int, last: int) -> None:
        self.schedule, self.first, self.last = schedule, first, last

    def __iter__(self) -> Iterator[list[int]]:
        for micro in self.schedule.between(self.first, self.last):
            yield from micro


def stream(
    cuts: Sequence[MonoCut],
    schedule: Schedule,
    *,
    first: int,
    last: int,
    workers: int,
    beside: Beside | None = None,
    pinned: bool = False,
) -> Iterator[list[Batch]]:
    """The micro-batches of optimizer steps `first` to `last`, a list for each step.

    With `workers`, that many processes load ahead; the batches are the same. What `beside` finds of
    each window comes with them; `pinned` ones are copied to a GPU in the background.
    """
    loader = DataLoader(
        MicroBatches(cuts, beside),
        sampler=_Steps(schedule, first, last),
        batch_size=None,
        num_workers=workers,
        pin_memory=pinned,
        prefetch_factor=4 if workers else None,
    )
    batches = iter(loader)
    for number, groups in enumerate(schedule.between(first, last), first):
        try:
            micro = [next(batches) for _ in groups]
        except RuntimeError as error:  # of torch's DataLoader
            if "worker" not in str(error):
                raise
            raise DistilkitError(
                f"step {number}: a process that loads audio ended ({str(error).splitlines()[0]}), most "
                "often for want of memory",
                "go on with --resume; --set batches.workers=0 in a new run loads without such processes",
            ) from error
        for batch in micro:
            if isinstance(batch, DistilkitError):
                raise batch
        yield micro


def whole(
    cuts: Sequence[MonoCut], micro_seconds: float, beside: Beside | None = None
) -> Iterator[Batch]:
    """All windows once, as micro-batches of similar lengths, with what `beside` finds of each."""
    for chosen in in_order(data.samples(cuts), micro_seconds):
        yield load([cuts[index] for index in chosen], beside)


def count(cuts: Sequence[MonoCut], micro_seconds: float) -> int:
    """How many micro-batches `whole` makes."""
    return len(in_order(data.samples(cuts), micro_seconds))


def ahead(groups: Iterable[Sequence[MonoCut]]) -> Iterator[Batch]:
    """A micro-batch of each group of windows, the next ones read while one is used.

    Raises:
        DistilkitError: a file is gone or no longer what it was, once it is that group's turn.
    """
    left = iter(groups)
    with ThreadPoolExecutor(READERS) as readers:
        waiting = deque(readers.submit(load, cuts) for cuts in islice(left, READERS))
        try:
            while waiting:
                batch = waiting.popleft().result()
                waiting.extend(readers.submit(load, cuts) for cuts in islice(left, 1))
                yield batch
        finally:
            readers.shutdown(cancel_futures=True)


def out_of_memory(error: Exception) -> bool:
    """Whether that is what an error says, of a GPU or a CPU; torch.OutOfMemoryError is a RuntimeError."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(word in said for word in OUT_OF_MEMORY)


def load(cuts: Sequence[MonoCut], beside: Beside | None = None) -> Batch:
    """Read windows into a micro-batch, with what `beside` finds of each.

    Raises:
        DistilkitError: a file is gone or no longer what it was.
    """
    clips = []
    for cut in cuts:
        name = cut.recording.sources[0].source
        try:
            clips.append(torch.from_numpy(cut.load_audio()[0]))
        except MemoryError:
            raise
        except Exception as error:  # lhotse wraps whatever its backends raise
            raise DistilkitError(
                f"`{name}` can no longer be read", "put it back and type the command with --resume"
            ) from error
        known = cut.custom or {}
        if "stamp" in known and not data.still(Path(name), known["stamp"], known["digest"]):
            raise DistilkitError(
                f"`{name}` is no longer the sound that it was when this began",
                "put it back and type the command with --resume, or start a new run",
            )
    found = [beside(cut, clip) for cut, clip in zip(cuts, clips, strict=True)] if beside else []
    return Batch(
        ids=tuple(cut.id for cut in cuts),
        wave_BS=pad_sequence(clips, batch_first=True),
        lengths=tuple(len(clip) for clip in clips),
        targets=tuple(
            pad_sequence(list(rows), batch_first=True) for rows in zip(*found, strict=True)
        ),
    )
