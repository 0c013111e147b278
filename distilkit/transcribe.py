"""From recordings to text: files and folders, of any length at flat memory, with times of words when asked.

Letters in names: T frames, K tokens.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distilkit import config
from distilkit.audio import FRAME_RATE, FRAME_SAMPLES, SAMPLE_RATE, Samples, decode
from distilkit.captions import FORMATS, Transcript
from distilkit.data import Found, Skipped, find
from distilkit.data.find import shown
from distilkit.decode import Search, Word, decoded, following, words
from distilkit.errors import DistilkitError
from distilkit.listeners import HEARD_SECONDS, Hears, LogProbs, hear_stream, in_order
from distilkit.pauses import Levels, bounded, levels, stretches
from distilkit.runs import make_parent, write_text
from distilkit.tokenizers import DELIMITER, SPACE, Tokenizer

Heard = tuple[LogProbs, Levels]  # of the same frames

SEGMENT_SECONDS = 30.0  # how much of a recording is decoded and aligned at once
DELAY = HEARD_SECONDS + SEGMENT_SECONDS  # of text behind sound that is still going on
BATCH_SECONDS = 60.0  # audio in memory at once, padding counted
POOL_SECONDS = 480.0  # read ahead, so that clips of similar length share a batch
TIMED: tuple[config.TranscriptFormat, ...] = (
    "srt",
    "vtt",
)  # formats that are nothing without times


def transcribe(
    inputs: Sequence[str | Path],
    recogniser: Hears,
    *,
    search: Search | None = None,
    timed: bool = False,
    device: str = "cpu",
) -> Iterator[Transcript | Skipped]:
    """Write down what is said in every recording, in order; files that are not audio are skipped.

    Args:
        inputs: audio files, folders, lhotse manifests.
        recogniser: the model and its tokenizer, of PyTorch or exported.
        search: beam search; greedy decoding when None.
        timed: whether to find out when each word is said.
        device: torch device to compute on.

    Raises:
        DistilkitError: an input is missing.
    """
    recogniser.to(device)
    waiting: list[tuple[Found, Samples]] = []

    def told(item: Found, pieces: Iterable[Heard]) -> Transcript:
        text, found = written(pieces, recogniser.tokenizer, search, timed)
        return Transcript(file=item.id, text=text, words=found)

    def flush() -> Iterator[Transcript]:
        clips = [clip for _, clip in waiting]
        rows_of: dict[int, LogProbs] = {}
        for chosen in in_order([len(clip) for clip in clips], BATCH_SECONDS):
            rows = recogniser.logprobs([clips[place] for place in chosen])
            rows_of |= dict(zip(chosen, rows, strict=True))
        for place, (item, _) in enumerate(waiting):
            yield told(item, [(rows_of[place], levels(clips[place]))])
        waiting.clear()

    for item in find(inputs):
        if not item.audio:
            yield Skipped(path=shown(item.path), reason=item.reason, kind="not audio")
            continue
        try:
            blocks = decode(item.path).blocks
            head = _take(blocks, int(HEARD_SECONDS * SAMPLE_RATE))
            if len(head) < FRAME_SAMPLES:
                raise DistilkitError(
                    f"{len(head) / SAMPLE_RATE:.3f} s is shorter than one frame (0.025 s)"
                )
            if len(head) > HEARD_SECONDS * SAMPLE_RATE:
                yield from flush()
                heard = hear_stream(recogniser, chain([head], blocks))
                yield told(item, ((rows_TK, levels(wave_S)) for rows_TK, wave_S in heard))
                continue
        except DistilkitError as error:
            yield from flush()
            yield Skipped(
                path=shown(item.path), reason=shown(error.about(item.path)), kind="unusable"
            )
            continue
        waiting.append((item, head))
        if sum(len(clip) for _, clip in waiting) >= POOL_SECONDS * SAMPLE_RATE:
            yield from flush()
    yield from flush()


def _take(blocks: Iterator[Samples], most: int) -> Samples:
    """More than `most` samples, or all there are."""
    parts = [np.zeros(0, np.float32)]
    while sum(map(len, parts)) <= most and (block := next(blocks, None)) is not None:
        parts.append(block)
    return np.concatenate(parts)


def written(
    pieces: Iterable[Heard], tokenizer: Tokenizer, search: Search | None, timed: bool
) -> tuple[str, list[Word] | None]:
    """The text of a recording, and its words with their times when asked.

    Args:
        pieces: logarithms of the tokens' probabilities, (t, K), and levels in dB, (t,), in order.
        tokenizer: of the model.
        search: beam search; greedy decoding when None.
        timed: whether to align.
    """
    said = list(passages(pieces, tokenizer, search, timed))
    found = [word for passage in said for word in passage.words or []]
    return "".join(passage.text for passage in said), found if timed else None


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A part of a recording, cut between words: seconds, text that continues the last one's, words."""

    start: float
    end: float
    text: str
    words: list[Word] | None


def passages(
    pieces: Iterable[Heard],
    tokenizer: Tokenizer,
    search: Search | None,
    timed: bool,
    most: float = SEGMENT_SECONDS,
) -> Iterator[Passage]:
    """The text of a recording bit by bit, as soon as it is decided; joined, it is that of the whole.

    Args:
        pieces: logarithms of the tokens' probabilities, (t, K), and levels in dB, (t,), in order.
        tokenizer: of the model.
        search: beam search; greedy decoding when None.
        timed: whether to align.
        most: seconds that are decoded and aligned at once.
    """
    context, before = None, list[int]()
    for start, rows_TK, levels_T, last in segments(pieces, tokenizer, most):
        said = decoded(rows_TK, tokenizer, search, context=context, ends=last)
        if search is not None and search.model is not None:
            context = following(said, tokenizer, search.model, context)
        found = None
        if timed:
            spoken = bounded(words(rows_TK, said, tokenizer), stretches(levels_T))
            found = [_later(word, start / FRAME_RATE) for word in spoken]
        text = tokenizer.decode(before + said, frames=False)
        yield Passage(
            start=start / FRAME_RATE,
            end=(start + len(rows_TK)) / FRAME_RATE,
            text=text[len(tokenizer.decode(before, frames=False)) :],
            words=found,
        )
        before = said if tokenizer.decode(said, frames=False) else before + said


def live(
    blocks: Iterable[Samples],
    recogniser: Hears,
    *,
    search: Search | None = None,
    timed: bool = False,
    delay: float = DELAY,
    device: str = "cpu",
) -> Iterator[Passage]:
    """Write down a source as it goes on, at flat memory.

    Args:
        blocks: mono float32 samples at 16 kHz, as they arrive.
        recogniser: the model and its tokenizer, of PyTorch or exported.
        search: beam search; greedy decoding when None.
        timed: whether to find out when each word is said.
        delay: seconds, at the most, between a word and its text, the time for computing left out. With
            `DELAY` the text is that of the recording as a file; with less, less is heard around each word.
        device: torch device to compute on.
    """
    recogniser.to(device)
    heard = hear_stream(recogniser, blocks, delay / 2)
    pieces = ((rows_TK, levels(wave_S)) for rows_TK, wave_S in heard)
    yield from passages(pieces, recogniser.tokenizer, search, timed, delay / 2)


def _later(word: Word, seconds: float) -> Word:
    start, end = round(word.start + seconds, 3), round(word.end + seconds, 3)
    return replace(word, start=start, end=end)


def segments(
    pieces: Iterable[Heard], tokenizer: Tokenizer, seconds: float = SEGMENT_SECONDS
) -> Iterator[tuple[int, LogProbs, Levels, bool]]:
    """Pieces of at most so many seconds, cut between words: first frame, (t, K), (t,), whether the last.

    Joined, their greedy tokens are those of the whole.
    """
    most = int(seconds * FRAME_RATE)
    rows_TK, levels_T = np.zeros((0, len(tokenizer)), np.float32), np.zeros(0, np.float32)
    start = 0
    for more_TK, more_T in pieces:
        rows_TK = np.concatenate([rows_TK, more_TK]) if len(rows_TK) else more_TK
        levels_T = np.concatenate([levels_T, more_T])
        while len(rows_TK) > most:
            cut = _between_words(rows_TK[:most], tokenizer)
            yield start, rows_TK[:cut], levels_T[:cut], False
            rows_TK, levels_T, start = rows_TK[cut:], levels_T[cut:], start + cut
    yield start, rows_TK, levels_T, True


def _between_words(rows_TK: LogProbs, tokenizer: Tokenizer) -> int:
    """The frame in the second half that begins the next segment, in the longest pause there is.

    Where no word ends, it is the middle of the longest stretch of blanks; without any, the end.
    """
    path_T = rows_TK.argmax(1)
    ends_K = np.array([name == DELIMITER for name in tokenizer.tokens])
    begins_K = np.array([name.startswith(SPACE) for name in tokenizer.tokens])
    blank_T = path_T == tokenizer.blank
    pause_T = _runs(blank_T | ends_K[path_T])
    new_T = np.concatenate([[True], path_T[1:] != path_T[:-1]])
    after_T = new_T & np.concatenate([[False], ends_K[path_T[:-1]]])  # behind the end of a word
    before_T = new_T & begins_K[path_T]  # at the first token of the next
    half = len(path_T) // 2
    around_T = np.maximum(pause_T, np.concatenate([[0], pause_T[:-1]]))
    worth_T = np.where(after_T | before_T, around_T + 1, 0)[half:]
    if worth_T.any():
        return half + int(worth_T.argmax())
    silent_T = _runs(blank_T)[half:]
    if silent_T.any():
        longest = np.flatnonzero(silent_T == silent_T.max())
        return half + int(longest[len(longest) // 2])
    return len(path_T)


def _runs(inside_T: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """For each frame that is inside, how long its stretch is; 0 for the others."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside_T, [False]]).astype(np.int8)))
    lengths_T = np.zeros(len(inside_T), np.int64)
    for first, last in edges.reshape(-1, 2):
        lengths_T[first:last] = last - first
    return lengths_T


def targets(
    out: Path, format: config.TranscriptFormat, several: bool
) -> Callable[[Transcript], Path]:
    """Where each transcript is to be written: `out` itself for one recording, else a file below it.

    Args:
        out: a file, which one recording needs, or a folder.
        format: what is written.
        several: whether there may be more than one recording.

    Raises:
        DistilkitError: something is there already, or its name says that it is a file where there
            has to be a folder, or one of another format.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DistilkitError(f"`{out}` is there already", "another --out")
    named = out.suffix.removeprefix(".").lower()
    if named in FORMATS and several:
        raise DistilkitError(
            f"`{out}` is named like a file, and there are several recordings",
            f"--out {out.with_suffix('')} for a folder"
            + ("" if format in TIMED else f", or no --out and > {out}"),
        )
    if named in FORMATS and named != format:
        raise DistilkitError(f"`{out}` and `--format {format}` disagree", f"--format {named}")
    if named in FORMATS:
        return lambda _: out
    taken: dict[str, str] = {}

    def place(transcript: Transcript) -> Path:
        whole = transcript.file
        stem = whole.rpartition(".")[0] or whole
        names = chain([stem, whole], (f"{whole}#{number}" for number in count(2)))
        return out / f"{next(n for n in names if taken.setdefault(n, whole) == whole)}.{format}"

    return place


def write(transcript: Transcript, path: Path, format: config.TranscriptFormat) -> None:
    """Write a transcript into a file of its own, whole."""
    make_parent(path)
    write_text(path, FORMATS[format](transcript))
