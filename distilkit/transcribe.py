"""From recordings to text: files and folders, of any length at flat memory, with times of words when asked.

Letters in names: T frames, K tokens.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distilkit import config, leftovers
from distilkit.audio import FRAME_RATE, FRAME_SAMPLES, SAMPLE_RATE, Samples, decode
from distilkit.captions import FORMATS, Transcript
from distilkit.data import Found, Skipped, find, stamp
from distilkit.data.find import shown
from distilkit.decode import Search, Word, decoded, following, words
from distilkit.errors import DistilkitError, enclosed_below
from distilkit.files import append_line, discard, make_parent, parse_json, write_text
from distilkit.listeners import HEARD_SECONDS, Hears, LogProbs, hear_stream, in_order
from distilkit.pauses import Levels, bounded, levels, stretches, turns
from distilkit.tokenizers import DELIMITER, SPACE, Tokenizer

Heard = tuple[LogProbs, Levels]  # of the same frames

SEGMENT_SECONDS = 30.0  # how much of a recording is decoded and aligned at once
DELAY = HEARD_SECONDS + SEGMENT_SECONDS  # of text behind sound that is still going on
BATCH_SECONDS = 60.0  # audio in memory at once, padding counted
BEGUN = ".transcripts.jsonl"  # in a folder of transcripts until all are written
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
    done: Callable[[Found], bool] = lambda item: False,
) -> Iterator[Transcript | Skipped | Found]:
    """Write down what is said in every recording, in order; files that are not audio are skipped.

    Args:
        inputs: audio files, folders, lhotse manifests.
        recogniser: the model and its tokenizer, of PyTorch or exported.
        search: beam search; greedy decoding when None.
        timed: whether to find out when each word is said.
        device: torch device to compute on.
        done: which recordings need not be heard; they are given back as they were found, and the
            others are heard with the batch mates that they would have had.

    Raises:
        DistilkitError: an input is missing.
    """
    recogniser.to(device)
    waiting: list[tuple[Found, Samples]] = []

    def told(item: Found, pieces: Iterable[Heard]) -> Transcript:
        text, found = written(pieces, recogniser.tokenizer, search, timed)
        return Transcript(file=item.id, text=text, words=found)

    def flush() -> Iterator[Transcript | Found]:
        clips = [clip for _, clip in waiting]
        kept = {place for place, (item, _) in enumerate(waiting) if done(item)}
        rows_of: dict[int, LogProbs] = {}
        for chosen in in_order([len(clip) for clip in clips], BATCH_SECONDS):
            if kept.issuperset(chosen):
                continue
            rows = recogniser.logprobs([clips[place] for place in chosen])
            rows_of |= dict(zip(chosen, rows, strict=True))
        for place, (item, _) in enumerate(waiting):
            yield item if place in kept else told(item, [(rows_of[place], levels(clips[place]))])
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
                if done(item):
                    yield item
                    continue
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
            sounds = stretches(levels_T)
            spoken = bounded(words(rows_TK, said, tokenizer, pauses=turns(sounds)), sounds)
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


def targets(out: Path, format: config.TranscriptFormat, several: bool) -> Callable[[str], Path]:
    """Where the transcript of each file is to be written: `out` itself for one, else a file below it.

    Args:
        out: a file, which one recording needs, or a folder.
        format: what is written.
        several: whether there may be more than one recording.

    Raises:
        DistilkitError: something is there already, or its name says that it is a file where there
            has to be a folder, or one of another format.
    """
    leftovers.tidy(out)
    leftovers.tidy(out / BEGUN)
    begun = (out / BEGUN).is_file()
    if out.exists() and not begun and not (out.is_dir() and not any(out.iterdir())):
        raise DistilkitError(f"`{out}` is there already", "another --out")
    named = "" if is_folder(out) else out.suffix.removeprefix(".").lower()
    if named and several:
        raise DistilkitError(
            f"`{out}` is named like a file, and there are several recordings",
            f"--out {out.with_suffix('')} for a folder"
            + ("" if format in TIMED else f", or no --out and > {out}"),
        )
    if named and named != format:
        raise DistilkitError(f"`{out}` and `--format {format}` disagree", f"--format {named}")
    if named:
        return lambda _: out
    taken: dict[str, str] = {}

    def place(whole: str) -> Path:
        stem = whole.rpartition(".")[0] or whole
        names = chain([stem, whole], (f"{whole}#{number}" for number in count(2)))
        return out / f"{next(n for n in names if taken.setdefault(n, whole) == whole)}.{format}"

    return place


def is_folder(out: Path) -> bool:
    """Whether the name of what is to be written is that of a folder: no format's."""
    return out.suffix.removeprefix(".").lower() not in FORMATS


def settings(
    source: str, lm: Path | None, search: Search | None, format: str, timed: bool
) -> dict[str, Any]:
    """What transcripts depend on, beside the recordings.

    Args:
        source: where the model was read from.
        lm: the language model's file.
        search: beam search; greedy decoding when None.
        format: what is written.
        timed: whether words have times.
    """
    place = Path(source).resolve()
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    stamps = "\n".join(f"{file.name} {stamp(file)}" for file in files)
    how = {"width": search.width, "weight": search.weight, "bonus": search.bonus} if search else {}
    return {
        "model": str(place),
        "weights": hashlib.sha1(stamps.encode(), usedforsecurity=False).hexdigest()[:12],
        "lm": f"{lm.resolve()} {stamp(lm)}" if lm else "none",
        **how,
        "format": format,
        "times": timed,
    }


class Begun:
    """A folder of transcripts that are not all written yet: it says of itself which of them are.

    Args:
        out: the folder; of a file, or of nothing that is to be written, nothing is noted.
        settings: whatever they depend on.
        found: the recordings.

    Raises:
        DistilkitError: it holds transcripts of other settings, or another process writes there.
    """

    def __init__(
        self, out: Path | None, settings: Mapping[str, Any], found: Iterable[Found]
    ) -> None:
        self._file = out / BEGUN if out is not None and is_folder(out) else None
        self._settings = json.loads(json.dumps(settings))
        self._paths = {item.id: item.path for item in found}
        self._written: dict[str, str] = {}
        self._out, self._holding = out, ExitStack()
        if out is None or self._file is None:
            return
        with ExitStack() as holding:
            holding.enter_context(leftovers.held(out, out))
            if self._file.is_file():
                self._go_on(out, self._file)
            elif any(out.iterdir()):  # whoever held it has come to its end
                raise DistilkitError(f"`{out}` is there already", "another --out")
            self._holding = holding.pop_all()

    def _go_on(self, out: Path, file: Path) -> None:
        """Read what was written by the call that was stopped."""
        enclosed_below(out)  # it is written to
        leftovers.tidy_below(out)
        try:
            first, *lines = file.read_text(encoding="utf-8").split("\n")[:-1]
            there, rows = parse_json(first), [parse_json(line) for line in lines]
            if not isinstance(there, dict):
                raise ValueError("no settings")
            self._written = {str(name): str(stamp) for name, stamp in rows}
        except (OSError, ValueError, TypeError) as error:
            raise DistilkitError(
                f"`{file}` is damaged: {error}", "another --out, or remove the folder"
            ) from error
        if there != self._settings:
            changed = ", ".join(
                f"{key} {there.get(key)} there, {value} here"
                for key, value in self._settings.items()
                if there.get(key) != value
            )
            raise DistilkitError(
                f"`{out}` holds other transcripts: {changed}", "another --out, or remove it"
            )
        write_text(file, "".join(f"{line}\n" for line in (first, *lines)))

    def has(self, item: Found, path: Path | None = None) -> bool:
        """Whether the transcript of a recording is there, and the recording is what it was.

        Args:
            item: the recording.
            path: where its transcript lies.
        """
        there = path is None or path.is_file()
        return there and self._written.get(item.id) == stamp(item.path)

    def write(self, transcript: Transcript, path: Path, format: config.TranscriptFormat) -> None:
        """Write a transcript, and note that it was."""
        if self._file is not None and not self._file.is_file():
            write_text(self._file, json.dumps(self._settings) + "\n")
        write(transcript, path, format)
        if self._file is not None:
            row = transcript.file, stamp(self._paths[transcript.file])
            append_line(self._file, json.dumps(row))

    def close(self) -> None:
        """Let others write there; a folder into which nothing was written goes."""
        if self._out is not None and self._file is not None:
            with suppress(OSError):  # it is not empty
                self._out.rmdir()
        self._holding.close()

    def end(self) -> None:
        """All are written."""
        if self._file is not None:
            discard(self._file)


def write(transcript: Transcript, path: Path, format: config.TranscriptFormat) -> None:
    """Write a transcript into a file of its own, whole."""
    make_parent(path)
    write_text(path, FORMATS[format](transcript))
