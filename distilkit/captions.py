"""Transcripts as text, JSON and subtitles."""

import json
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape

from distilkit import config
from distilkit.decode import Word

LINE = 42  # characters
LINES = 2
CUE_SECONDS = 7.0
PAUSE_SECONDS = 0.8  # between two words, from which on a new subtitle begins


@dataclass(frozen=True, kw_only=True)
class Cue:
    """A subtitle: when it is shown (seconds), and its one or two lines."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """What is said in a file; `words` is None where times were not asked for."""

    file: str
    text: str
    words: list[Word] | None = None


def cues(words: Iterable[Word]) -> list[Cue]:
    """Words as subtitles: at most two lines of 42 characters, at most 7 s, broken at pauses.

    A word that is longer than a line, as where a language writes no spaces, is cut evenly where it
    has to be. A shorter one that lasts more than 7 s is not shown for the rest of them.

    Args:
        words: in the order of time.
    """
    found: list[list[Word]] = []
    for word in (part for whole in words for part in _parts(whole)):
        if found and _fits(found[-1], word):
            found[-1].append(word)
        else:
            found.append([word])
    return [
        Cue(
            start=group[0].start,
            end=min(group[-1].end, group[0].start + CUE_SECONDS),
            text="\n".join(_wrapped(group)),
        )
        for group in found
    ]


def _fits(group: Sequence[Word], word: Word) -> bool:
    """Whether a word may stand in the same subtitle as those before it."""
    return (
        word.start - group[-1].end < PAUSE_SECONDS
        and word.end - group[0].start <= CUE_SECONDS
        and len(_wrapped([*group, word])) <= LINES
    )


def _wrapped(group: Sequence[Word]) -> list[str]:
    return textwrap.wrap(" ".join(word.text for word in group), LINE, break_on_hyphens=False)


def _parts(word: Word) -> list[Word]:
    """A word that is longer than a line as pieces that each fit into a subtitle; others whole."""
    length, seconds = len(word.text), word.end - word.start
    if length <= LINE:
        return [word]
    count = max(math.ceil(length / (LINE * LINES)), math.ceil(seconds / CUE_SECONDS))
    edges = [round(length * part / count) for part in range(count + 1)]
    return [
        replace(
            word,
            text=word.text[edges[part] : edges[part + 1]],
            start=word.start + seconds * part / count,
            end=word.start + seconds * (part + 1) / count,
        )
        for part in range(count)
    ]


# --------------------------------------------------------------------------------------- formats


def _txt(transcript: Transcript) -> str:
    """The text on a line."""
    return f"{transcript.text}\n"


def _json(transcript: Transcript) -> str:
    """One JSON object on a line; with `words` where their times were asked for."""
    whole = asdict(transcript)
    if transcript.words is None:
        del whole["words"]
    return json.dumps(whole, ensure_ascii=False) + "\n"


def _srt(transcript: Transcript) -> str:
    """SubRip: subtitles with numbers. It knows no escapes; only its arrow must not occur in text."""
    return "".join(
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n"
        f"{cue.text.replace('-->', '->')}\n\n"
        for number, cue in enumerate(cues(transcript.words or ()), start=1)
    )


def _vtt(transcript: Transcript) -> str:
    """WebVTT, in which `&`, `<` and `>` are written as in HTML (W3C WebVTT, section 4.2)."""
    return "WEBVTT\n\n" + "".join(
        f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{escape(cue.text, quote=False)}\n\n"
        for cue in cues(transcript.words or ())
    )


def _clock(seconds: float, point: str) -> str:
    """A time as HH:MM:SS,mmm; the hours grow beyond two digits."""
    rest, thousandths = divmod(round(seconds * 1000), 1000)
    minutes, rest = divmod(rest, 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}{point}{thousandths:03d}"


FORMATS: dict[config.TranscriptFormat, Callable[[Transcript], str]] = {
    "txt": _txt,
    "json": _json,
    "srt": _srt,
    "vtt": _vtt,
}
