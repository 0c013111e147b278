"""Transcribed recordings to lhotse cuts: one for each utterance; all else is listed, with its reason.

What reads which layout stands in `layouts.LAYOUTS`.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING, Any

from distilkit import config
from distilkit.audio import FRAME_SAMPLES, SAMPLE_RATE
from distilkit.data.common import MAX_UNUSABLE, Tracker, untracked
from distilkit.data.find import Found, shown
from distilkit.data.layouts import FILES, LAYOUTS, TEXTS, detect, folders
from distilkit.data.scan import Clip, Skipped, cache_folder, scan
from distilkit.data.sources import NO_AUDIO, NO_TEXT, Source, Utterance, broken, source
from distilkit.data.tables import (
    TABLES,
    column,
    json_lines,
    lines_of,
    plain,
    suffix,
    table,
    text_column,
)
from distilkit.data.windows import Windows, recorded, seconds
from distilkit.errors import DistilkitError
from distilkit.wording import counted

if TYPE_CHECKING:
    from lhotse import MonoCut, Recording

__all__ = ["LAYOUTS", "Facts", "Transcripts", "Utterance", "facts", "read", "survey", "texts"]

EMPTY = "empty text"  # kinds of what is left out, beside those of `sources` and `scan`
TWICE = "two texts"
LONG = "too long"
FOLDERS = "folders"  # the layout of recordings without text, where labels are wanted
SHORT = "too short"
SPEECHLESS = (None, "audiofolder")  # layouts of a file that may hold text alone
LESS = (NO_TEXT, EMPTY, "duplicate")  # kinds that say nothing against the other transcripts

RARE = 5  # a character seen fewer times than this is rare
NEAR_END = 0.01  # seconds; a part that ends this near the end of its file goes on to the end
BEYOND_END = 0.1  # seconds; how far rounded times may reach beyond the end of a file
# Windows serve only to find silence here; what is too short is decided for each utterance.
SCANNED = config.Data(min_seconds=FRAME_SAMPLES / SAMPLE_RATE, window_seconds=5.0)


@dataclass(frozen=True, kw_only=True)
class Transcripts:
    """What a set of inputs holds: utterances with text, and what is left out."""

    cuts: "Sequence[MonoCut]"  # whole utterances with one supervision each
    skipped: list[Skipped]
    layouts: tuple[str, ...]  # what was detected, one for each input

    def reasons(self) -> Counter[str]:
        """How many utterances or files were left out, by kind."""
        return Counter(item.kind for item in self.skipped)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What utterances hold, in numbers."""

    utterances: int
    hours: float
    speakers: int  # those that are known
    languages: Counter[str]  # utterances of each that is known
    words: int  # separated by white space
    alphabet: Counter[str]  # how often each character occurs, white space left out
    left_out: Counter[str]  # by kind

    @property
    def rare(self) -> str:
        """Characters seen fewer than `RARE` times, in order."""
        return "".join(sorted(sign for sign, count in self.alphabet.items() if count < RARE))

    @property
    def missing_files(self) -> int:
        """Transcripts whose audio is not there."""
        return self.left_out[NO_AUDIO]

    @property
    def empty_texts(self) -> int:
        """Transcripts without a word."""
        return self.left_out[EMPTY]


def read(
    inputs: Sequence[str | Path],
    settings: config.Transcribed,
    *,
    cache: Path | None = None,
    track: Tracker = untracked,
) -> Transcripts:
    """Read transcribed recordings in any of `LAYOUTS`; each audio file is decoded once.

    Args:
        inputs: folders, manifests, tables, or single recordings with their text beside them.
        settings: the shortest and longest utterance, and the column of texts.
        cache: where decoded copies go; the user's cache folder when None.
        track: wraps an iterable to show progress; called with `description` and `total`.

    Raises:
        DistilkitError: an input is missing, has no text, or cannot be read; or most of the
            transcripts cannot be used.
    """
    found = survey(inputs, settings, cache=cache, track=track)
    _check(inputs, found.cuts, found.skipped)
    return found


def survey(
    inputs: Sequence[str | Path],
    settings: config.Transcribed,
    *,
    cache: Path | None = None,
    labels: bool = False,
    track: Tracker = untracked,
) -> Transcripts:
    """The same, however few of the transcripts can be used.

    With `labels`, every recording is taken, whether it has text or not, and however often it is there;
    each cut's `custom` holds the `columns` of its row, and the `digest` of its recording's sound. Of
    recordings without a table the one column is `label`, the name of their folder.
    """
    cache = cache or cache_folder()
    sources = [source(Path(item), settings.text_column, cache, labels) for item in inputs]
    layouts = tuple(_layout(item) for item in sources)
    utterances, skipped = _items(sources, layouts)
    if not labels:
        skipped += _without_text(sources, utterances)
        utterances, unsettled = _settled(utterances)
        skipped += unsettled
    found = _files(sources, utterances)
    skipped += [
        Skipped(path=shown(item.path), reason=f"{_name(item)}there is no such file", kind=NO_AUDIO)
        for item in utterances
        if _key(item.path) not in found
    ]
    clips: dict[str, Clip | Skipped] = {}
    scanned = scan(found.values(), SCANNED, cache)
    tracked = track(scanned, description="reading audio", total=len(found))
    for key, clip in zip(found, tracked, strict=True):
        clips[key] = clip
    cuts = Windows()
    for made in _cuts(_with_clips(utterances, clips), settings, labels):
        if isinstance(made, Skipped):
            skipped.append(made)
        else:
            cuts.append(made)
    return Transcripts(cuts=cuts, skipped=skipped, layouts=layouts)


def texts(inputs: Sequence[str | Path], text_column: str = "") -> tuple[list[str], list[Skipped]]:
    """Only the transcripts; no audio is opened, and none need be there.

    Args:
        inputs: as `read` takes them, tables with a column of texts, or plain text files, a sentence a
            line (also gzipped).
        text_column: the column of texts in a table; empty finds it.

    Raises:
        DistilkitError: an input is missing, has no text, or cannot be read.
    """
    found: list[str] = []
    skipped: list[Skipped] = []
    for item in inputs:
        place = source(Path(item), text_column)
        layout = detect(place)
        alone: tuple[list[str], list[Skipped]] | None = None
        if place.folder != place.place and not place.files[0].audio and layout in SPEECHLESS:
            alone = _sentences(place)
        if alone is None:
            utterances, unread = _items([place], (_layout(place),))
            utterances, unsettled = _settled(utterances)
            alone = [utterance.text for utterance in utterances], unread + unsettled
        sentences, left = alone
        if not sentences:
            why = "".join(f"\n  {item.path}: {item.reason}" for item in left[:5])
            hint = "mend what is listed" if left else "give a file with a sentence a line"
            raise DistilkitError(f"no text in `{item}`{':' if why else ''}{why}", hint)
        found += sentences
        skipped += left
    return found, skipped


def _sentences(place: Source) -> tuple[list[str], list[Skipped]] | None:
    """The column of texts of a table that names no audio, or the lines of a text file; else None."""
    path = place.place
    if suffix(path) not in TABLES:
        return [line.strip() for _, line in lines_of(path)], []
    columns, rows = table(path)
    if column(columns, FILES):
        return None
    chosen = text_column(path, columns, TEXTS, place.text_column, ())
    found: list[str] = []
    left: list[Skipped] = []
    for line, row in rows:
        try:
            if isinstance(row, str):
                raise ValueError(row)
            text = plain(row.get(chosen))
        except ValueError as error:
            left.append(broken(path, line, error))
            continue
        if text.strip():
            found.append(text)
        else:
            reason = f"line {line}: its text is empty"
            left.append(Skipped(path=shown(path), reason=reason, kind=EMPTY))
    return found, left


def _layout(place: Source) -> str:
    found = detect(place)
    if found is None and place.labels:
        return FOLDERS
    if found is None:
        if place.place.name.lower().endswith((".json", ".jsonl", ".jsonl.gz")):
            for _ in json_lines(place.place):
                pass  # says which line is broken, if one is
        audio = sum(item.audio for item in place.files)
        raise DistilkitError(
            f"no text in `{place.place}`: {counted(audio, 'audio file')}, and none of the layouts "
            f"{', '.join(LAYOUTS)}",
            "write the words of NAME.wav to NAME.txt beside it, or give a metadata.csv with the "
            "columns file_name and transcription",
        )
    return found


def _items(
    sources: Sequence[Source], layouts: Sequence[str]
) -> tuple[list[Utterance], list[Skipped]]:
    utterances: list[Utterance] = []
    skipped: list[Skipped] = []
    for place, layout in zip(sources, layouts, strict=True):
        read = folders if layout == FOLDERS else LAYOUTS[layout].read
        for item in read(place):
            if isinstance(item, Utterance):
                utterances.append(item)
            else:
                skipped.append(item)
    return utterances, skipped


def _key(path: Path) -> str:
    return intern(os.path.abspath(path))  # one string for all utterances of a file


def _name(item: Utterance) -> str:
    """The utterance, where its file's name does not say which it is."""
    return "" if shown(item.path.as_posix()).endswith(item.id) else f"`{item.id}`: "


def _without_text(sources: Iterable[Source], utterances: Iterable[Utterance]) -> list[Skipped]:
    """Audio files of the folders that no transcript names, each once."""
    used = {_key(item.path) for item in utterances}
    others = {
        _key(found.path): found.path for place in sources for found in place.files if found.audio
    }
    return [
        Skipped(path=shown(path), reason="no transcript names it", kind=NO_TEXT)
        for key, path in others.items()
        if key not in used
    ]


def _settled(utterances: Iterable[Utterance]) -> tuple[list[Utterance], list[Skipped]]:
    """One text for each stretch of audio; where there are several, nobody knows which is right."""
    skipped: list[Skipped] = []
    stretches: dict[tuple[str, float, float | None], Utterance] = {}
    more: dict[tuple[str, float, float | None], list[Utterance]] = {}
    for item in utterances:
        if item.text.strip():
            place = (_key(item.path), item.start, item.seconds)
            if stretches.setdefault(place, item) is not item:
                more.setdefault(place, []).append(item)
        else:
            reason = f"{_name(item)}its transcript is empty"
            skipped.append(Skipped(path=shown(item.path), reason=reason, kind=EMPTY))
    settled = []
    for place, first in stretches.items():
        others = more.get(place, [])
        said = list(dict.fromkeys(" ".join(item.text.split()) for item in (first, *others)))
        if len(said) == 1:
            settled.append(first)
            kind, reason = "duplicate", "the same audio with the same text was there before"
        else:
            kind, reason = TWICE, f"{len(said)} texts for it: {' / '.join(said[:3])}"
            others = [first, *others]
        skipped += [
            Skipped(path=shown(item.path), reason=_name(item) + reason, kind=kind)
            for item in others
        ]
    return settled, skipped


def _files(sources: Sequence[Source], utterances: Iterable[Utterance]) -> dict[str, Found]:
    """The audio files that are there, each once, with an id that no other has."""
    prefixed = len(sources) > 1
    folders = [(_key(place.folder), place.folder.resolve().name) for place in sources]
    found: dict[str, Found] = {}
    taken: Counter[str] = Counter()
    for item in utterances:
        key = _key(item.path)
        if key in found or not os.path.exists(item.path):
            continue
        id = item.path.name
        for folder, name in folders:
            if key.startswith(folder.rstrip("/") + "/"):
                below = Path(os.path.relpath(key, folder)).as_posix()
                id = f"{name}/{below}" if prefixed else below
                break
        id = _unique(shown(id), taken)
        found[key] = Found(path=item.path, id=id, audio=True)
    return found


def _unique(id: str, taken: Counter[str]) -> str:
    taken[id] += 1
    return id if taken[id] == 1 else _unique(f"{id}#{taken[id]}", taken)


def _with_clips(
    utterances: list[Utterance], clips: Mapping[str, Clip | Skipped]
) -> Iterator[tuple[Utterance, Clip | Skipped]]:
    """Utterances with what their file turned out to be; where it is there. The list is used up."""
    utterances.reverse()
    while utterances:
        item = utterances.pop()
        if clip := clips.get(_key(item.path)):
            yield item, clip


def _cuts(
    pairs: Iterable[tuple[Utterance, Clip | Skipped]], settings: config.Transcribed, labels: bool
) -> "Iterator[MonoCut | Skipped]":
    """Cuts of the utterances whose audio is sound and of a length that can be used.

    Files with the same sound share one recording, so that a split never parts them.
    """
    sounds: dict[str, Clip] = {}
    recordings: dict[str, Recording] = {}
    abouts: dict[str, dict[str, Any]] = {}  # which the cuts of a recording share
    seen: dict[tuple[str, int, int, str], str] = {}
    taken: Counter[str] = Counter()
    for item, clip in pairs:
        if isinstance(clip, Skipped):
            yield Skipped(path=clip.path, reason=_name(item) + clip.reason, kind=clip.kind)
            continue
        first, samples = _stretch(item, clip)
        problem = _problem(item, clip, first, samples, settings)
        same = (clip.digest, first, samples, " ".join(item.text.split()))
        if not problem and same in seen and not labels:
            problem = "duplicate", f"same sound and text as {seen[same]}"
        if problem:
            yield Skipped(
                path=shown(clip.source),
                reason=_name(item) + problem[1],
                kind=problem[0],
                seconds=max(0, samples) / SAMPLE_RATE,
            )
            continue
        whole = (first, samples) == (0, clip.samples)
        id = _unique(clip.id if whole and not _name(item) else item.id, taken)
        seen[same] = id
        sound = sounds.setdefault(clip.digest, clip)
        if sound.id not in recordings:
            recordings[sound.id] = recorded(sound.id, sound.path, sound.samples)
        if clip.id not in abouts:
            abouts[clip.id] = {
                "source": str(clip.source.absolute()),
                "digest": clip.digest,
                "rate": clip.rate,
                "stamp": sound.stamp,  # of the file that is read
            }
        about = abouts[clip.id]
        if labels:
            about = about | {"columns": _columns(item)}
        yield _cut(item, id, recordings[sound.id], first, samples, about)


def _stretch(item: Utterance, clip: Clip) -> tuple[int, int]:
    """First sample and samples of an utterance, at 16 kHz."""
    first = round(item.start * SAMPLE_RATE)
    if item.seconds is None:
        return first, clip.samples - first
    end = round((item.start + item.seconds) * SAMPLE_RATE)
    if abs(end - clip.samples) < NEAR_END * SAMPLE_RATE or (
        clip.samples < end <= clip.samples + BEYOND_END * SAMPLE_RATE
    ):
        end = clip.samples
    return first, end - first


def _problem(
    item: Utterance, clip: Clip, first: int, samples: int, settings: config.Transcribed
) -> tuple[str, str] | None:
    """Kind and reason, where an utterance cannot be used."""
    seconds = samples / SAMPLE_RATE
    if first + samples > clip.samples or first > clip.samples:
        end = (first + max(0, samples)) / SAMPLE_RATE
        there = clip.samples / SAMPLE_RATE
        return "unusable", f"ends at {end:.2f} s of a recording of {there:.2f} s"
    if seconds < settings.min_seconds:
        return SHORT, f"{max(0.0, seconds):.3f} s is shorter than {settings.min_seconds:g} s"
    if seconds > settings.max_seconds:
        return LONG, f"{seconds:.2f} s is longer than {settings.max_seconds:g} s"
    if not any(at < first + samples and first < at + length for at, length in clip.windows):
        return "unusable", "silent"
    return None


def _columns(item: Utterance) -> dict[str, str]:
    """Of its row, else what is known of it."""
    said = {"transcription": item.text, "speaker": item.speaker, "language": item.language}
    return dict(item.columns or {name: value for name, value in said.items() if value})


def _cut(
    item: Utterance,
    id: str,
    recording: "Recording",
    first: int,
    samples: int,
    about: dict[str, Any],
) -> "MonoCut":
    from lhotse import MonoCut, SupervisionSegment

    words = SupervisionSegment(
        id=id,
        recording_id=recording.id,
        start=0.0,
        duration=samples / SAMPLE_RATE,
        text=item.text.strip(),
        language=item.language or None,
        speaker=item.speaker or None,
    )
    return MonoCut(
        id=id,
        start=first / SAMPLE_RATE,
        duration=samples / SAMPLE_RATE,
        channel=0,
        supervisions=[words],
        recording=recording,
        custom=about,
    )


def _check(
    inputs: Sequence[str | Path], cuts: "Sequence[MonoCut]", skipped: Sequence[Skipped]
) -> None:
    """Refuse a collection without transcripts, or most of whose transcripts are of no use."""
    unusable = [item for item in skipped if item.kind not in LESS]
    tried = len(cuts) + len(unusable)
    names = ", ".join(f"`{item}`" for item in inputs)
    if not tried:
        empty = sum(item.kind == EMPTY for item in skipped)
        raise DistilkitError(
            f"no words in {names}: {empty or 'no'} transcripts"
            + (", and all of them are empty" if empty else ""),
            "--text-column NAME, with the column that holds the text",
        )
    if len(unusable) > MAX_UNUSABLE * tried:
        listed = "".join(f"\n  {item.path}: {item.reason}" for item in unusable[:5])
        more = f"\n  and {len(unusable) - 5} more" if len(unusable) > 5 else ""
        hints = {
            LONG: "--set data.max_seconds=60, or cut the recordings",
            SHORT: f"--set data.min_seconds={FRAME_SAMPLES / SAMPLE_RATE}",
            NO_AUDIO: "give the folder that the names in the transcripts count from",
        }
        ((kind, _),) = Counter(item.kind for item in unusable).most_common(1)
        raise DistilkitError(
            f"{len(unusable)} of {tried} transcripts in {names} cannot be used:{listed}{more}",
            hints.get(kind, "mend or remove them"),
        )


def facts(
    cuts: "Sequence[MonoCut]", skipped: Iterable[Skipped], form: Callable[[str], str] = str
) -> Facts:
    """Utterances in numbers: how much, by whom, in which words and characters.

    Args:
        cuts: the utterances.
        skipped: what was left out.
        form: what is done to each text before it is counted.
    """
    speakers: set[str] = set()
    languages, alphabet = Counter[str](), Counter[str]()
    words = 0
    for cut in cuts:
        (said,) = cut.supervisions
        text = form(said.text).split()
        words += len(text)
        alphabet.update("".join(text))
        languages[said.language or ""] += 1
        speakers.add(said.speaker or "")
    del languages[""]
    return Facts(
        utterances=len(cuts),
        hours=seconds(cuts) / 3600,
        speakers=len(speakers - {""}),
        languages=languages,
        words=words,
        alphabet=alphabet,
        left_out=Counter(item.kind for item in skipped),
    )
