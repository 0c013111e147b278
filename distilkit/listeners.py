"""Whatever turns sound into frames or text: models of PyTorch and exported ones alike; no torch here.

Recordings of any length are heard in windows that overlap, at flat memory.

Letters in names: S samples, T frames, L layers, D width, K tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from distilkit.audio import FRAME_SAMPLES, HOP_SAMPLES, SAMPLE_RATE, Samples, frames
from distilkit.tokenizers import Tokenizer

MAX_PADDING = 0.3  # of a clip in a micro-batch; what is shorter goes to the next one
WINDOW_SECONDS = 20.0  # a long recording is embedded in such windows ...
CONTEXT_SECONDS = 2.0  # ... of which this much at either end only serves its neighbour
HEARD_SECONDS = 30.0  # it is transcribed in such windows ...
HEARD_CONTEXT = 1 / 6  # ... of which this share at either end only serves its neighbour

Frames = npt.NDArray[np.float32]
LogProbs = npt.NDArray[np.float32]


class Encodes(Protocol):
    """A model that gives hidden states."""

    @property
    def depth(self) -> int:
        """Transformer layers."""

    @property
    def width(self) -> int:
        """Size of a frame's vector, D."""

    @property
    def digest(self) -> str:
        """Changes when the model does."""

    def to(self, device: str) -> "Encodes":
        """The same, ready on a device."""

    def states(self, clips: Sequence[Samples], layers: Sequence[int]) -> list[Frames]:
        """Chosen layers of whole clips, (L, T, D) each; no clip depends on the others.

        Args:
            clips: mono float32 samples at 16 kHz, at least `FRAME_SAMPLES` each.
            layers: from 0, the input of the first layer, to the model's depth.
        """


class Hears(Protocol):
    """A recogniser."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Of its head."""

    def to(self, device: str) -> "Hears":
        """The same, ready on a device."""

    def logprobs(self, clips: Sequence[Samples]) -> list[LogProbs]:
        """Logarithms of the tokens' probabilities, (T, K) for each clip; no clip depends on the others.

        Args:
            clips: mono float32 samples at 16 kHz, at least `FRAME_SAMPLES` each.
        """


class Stream:
    """Blocks of samples, read as asked for, and how many there were."""

    def __init__(self, blocks: Iterable[Samples]) -> None:
        self.samples = 0
        self._blocks = iter(blocks)

    def take(self, least: int) -> Samples:
        """At least so many samples, or what is left."""
        taken: list[Samples] = [np.zeros(0, np.float32)]
        while sum(map(len, taken)) < least:
            block = next(self._blocks, None)
            if block is None:
                break
            self.samples += len(block)
            taken.append(block)
        return np.concatenate(taken)


def _windows(
    stream: Stream, head: Samples, window: int, context: int
) -> Iterator[tuple[Samples, int, int]]:
    """Windows of a recording, and which of each one's frames are its own: first, and behind the last.

    Args:
        stream: the recording.
        head: what was read of it already.
        window: samples of a window.
        context: samples at either end of it that only serve its neighbour; whole frames' steps.
    """
    waiting, lead = head, 0
    while True:
        waiting = np.concatenate([waiting, stream.take(window + 1 - len(waiting))])
        last = len(waiting) <= window
        end = frames(len(waiting)) if last else (window - context) // HOP_SAMPLES
        if end > lead:
            yield waiting[:window], lead, end
        if last:
            return
        waiting = waiting[window - 2 * context :]
        lead = context // HOP_SAMPLES


def encode_stream(
    listener: Encodes, head: Samples, stream: Stream, layers: Sequence[int]
) -> Iterator[Frames]:
    """Chosen layers of a long recording, piece by piece, (L, t, D) each, at flat memory.

    Windows of `WINDOW_SECONDS` overlap by twice `CONTEXT_SECONDS`; of an overlap each side keeps its
    half, so every frame has at least about that much sound on both sides of it.

    Args:
        listener: the model.
        head: what was read of the recording already.
        stream: the rest of it.
        layers: which layers, from 0 to the model's depth.
    """
    window, context = int(WINDOW_SECONDS * SAMPLE_RATE), int(CONTEXT_SECONDS * SAMPLE_RATE)
    for wave_S, first, end in _windows(stream, head, window, context):
        (piece_LTD,) = listener.states([wave_S], layers)
        yield piece_LTD[:, first:end]


def hear_stream(
    listener: Hears, blocks: Iterable[Samples], seconds: float = HEARD_SECONDS
) -> Iterator[tuple[LogProbs, Samples]]:
    """What a recogniser hears in a recording of any length, at flat memory: piece by piece, (t, K), and
    the samples of these frames.

    Windows are those of transformers' pipeline with `chunk_length_s=30`: of two neighbours that
    overlap, each gives the half that is nearer to its middle. A recording of up to one window is heard whole.

    Args:
        listener: the recogniser.
        blocks: mono float32 samples at 16 kHz, as they come.
        seconds: how long a window is.
    """
    context = int(seconds * HEARD_CONTEXT * SAMPLE_RATE) // HOP_SAMPLES * HOP_SAMPLES
    window = round(context / HEARD_CONTEXT)
    for wave_S, first, end in _windows(Stream(blocks), np.zeros(0, np.float32), window, context):
        (piece_TK,) = listener.logprobs([wave_S])
        yield (
            piece_TK[first:end],
            wave_S[first * HOP_SAMPLES : (end - 1) * HOP_SAMPLES + FRAME_SAMPLES],
        )


# ---------------------------------------------------------------------------------------- batches


def grouped(chosen: Sequence[int], lengths: Sequence[int], micro_seconds: float) -> list[list[int]]:
    """Windows, longest first, in micro-batches of similar lengths.

    A group's padded size stays below `micro_seconds`, and no clip in it is more than
    `MAX_PADDING` padding; one window always fits.
    """
    groups: list[list[int]] = []
    for index in chosen:
        if groups:
            group, longest = groups[-1], lengths[groups[-1][0]]
            fits = (len(group) + 1) * longest <= micro_seconds * SAMPLE_RATE
            if fits and lengths[index] >= (1 - MAX_PADDING) * longest:
                group.append(index)
                continue
        groups.append([index])
    return groups


def in_order(lengths: Sequence[int], micro_seconds: float) -> list[list[int]]:
    """All windows once, in micro-batches of similar lengths: for validation and embeddings."""
    chosen = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return grouped(chosen, lengths, micro_seconds)
