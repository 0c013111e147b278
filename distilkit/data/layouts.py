"""Recordings with text, in the layouts that people have: a reader for each, detected, not declared.

A reader says which audio file (or part of one) holds which words, and who says them; what does not
fit together is listed with its reason. Readers decode nothing, and run no commands.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from distilkit.data import tables
from distilkit.data.archives import kept
from distilkit.data.find import shown
from distilkit.data.manifests import is_lhotse, is_shar, lhotse, shar
from distilkit.data.scan import Skipped
from distilkit.data.sources import (
    BROKEN,
    NO_AUDIO,
    NO_TEXT,
    Item,
    Source,
    Utterance,
    anywhere,
    broken,
    by_name,
    inside,
    relative,
)
from distilkit.errors import DistilkitError

FILES = ("file_name", "path", "audio_filepath", "audio", "file", "filename", "audio_file", "wav")
TEXTS = ("transcription", "transcript", "text", "sentence", "normalized_text", "normalised_text")
SPEAKERS = ("speaker", "speaker_id", "speaker_name", "client_id", "spk", "reader")
LANGUAGES = ("language", "locale", "lang")
PART = ("offset", "duration")
SIDECARS = (".txt", ".lab", ".TXT", ".LAB", ".Txt", ".Lab")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A way to lay out recordings with text."""

    detects: Callable[[Source], bool]
    read: Callable[[Source], Iterator[Item]]


def detect(source: Source) -> str | None:
    """The first layout of `LAYOUTS` that fits, or None."""
    return next((name for name, layout in LAYOUTS.items() if layout.detects(source)), None)


# ---------------------------------------------------------------------------------------- tables


def _from_table(
    path: Path, source: Source, locate: Callable[[str], Path | Skipped]
) -> Iterator[Item]:
    """Utterances of a table; `offset` and `duration` in seconds say which part of a file.

    Raises:
        DistilkitError: no column of files or of texts; names those that are there.
    """
    columns, rows = tables.table(path)
    if not columns:
        return
    file = tables.column(columns, FILES)
    if file is None:
        raise DistilkitError(
            f"`{path}` has no column of files: its columns are {tables.quoted(columns)}; "
            f"expected {tables.quoted(FILES, 'or')}",
            "call the column of files `file_name`; --text-column names the one of texts",
        )
    others = (*FILES, *SPEAKERS, *LANGUAGES, *PART)
    text = tables.column(columns, TEXTS) if source.labels and not source.text_column else None
    if not source.labels or source.text_column:
        text = tables.text_column(path, columns, TEXTS, source.text_column, others)
    labels = [name for name in columns if name != file] if source.labels else []
    names = {"speaker": tables.column(columns, SPEAKERS)}
    names["language"] = tables.column(columns, LANGUAGES)
    offset, duration = (tables.column(columns, [name]) for name in PART)
    locate = cache(locate)  # a million rows may name a thousand files
    for line, row in rows:
        try:
            if isinstance(row, str):
                raise ValueError(row)
            said = {key: tables.plain(row.get(name)) for key, name in names.items() if name}
            start = (tables.seconds(row.get(offset)) or 0.0) if offset else 0.0
            name, found = _sound_of_row(row.get(file), path, line, source, locate)
            if isinstance(found, Skipped):
                yield replace(found, reason=f"{found.reason} ({path.name}, line {line})")
                continue
            yield Utterance(
                id=f"{name}@{start:g}" if start else name,
                path=found,
                text=tables.plain(row.get(text)) if text else "",
                start=start,
                seconds=tables.seconds(row.get(duration)) if offset in row and duration else None,
                columns={name: _label(row.get(name)) for name in labels},
                **said,
            )
        except ValueError as error:
            yield broken(path, line, error)


def _label(value: object) -> str:
    """A value as a label; empty where it is neither text nor a number."""
    return "" if isinstance(value, dict | list) else tables.plain(value).strip()


def _sound_of_row(
    value: object, path: Path, line: int, source: Source, locate: Callable[[str], Path | Skipped]
) -> tuple[str, Path | Skipped]:
    """The id and the file of a row; sound that stands in the row itself is kept in the cache."""
    if isinstance(value, dict):  # as Hugging Face writes it to Parquet
        sound, name = value.get("bytes"), tables.plain(value.get("path"))
        if isinstance(sound, bytes):
            id = f"{relative(path, source)}/{name or line}"
            if source.cache is None:
                return id, path / str(line)
            return id, kept(sound, f"{path.resolve()}/{line}", source.cache)
        value = name
    found = locate(tables.plain(value))
    return (relative(found, source) if isinstance(found, Path) else ""), found


def _audiofolder_tables(source: Source) -> list[Path]:
    if source.place.is_dir():
        paths = source.below("metadata.csv", "metadata.jsonl", ".parquet")
        return [
            path
            for path in paths
            if path.stem.lower() == "metadata" or path.suffix.lower() == ".parquet"
        ]
    ending = tables.suffix(source.place)
    if ending in (".csv", ".tsv", ".parquet"):
        return [source.place]
    row = tables.first_row(source.place) if ending == ".jsonl" else {}
    return [source.place] if tables.column(row, FILES) else []


def _is_audiofolder(source: Source) -> bool:
    return bool(_audiofolder_tables(source))


def _audiofolder(source: Source) -> Iterator[Item]:
    """Hugging Face's `audiofolder`: a table whose `file_name` counts from the table's folder."""
    for path in _audiofolder_tables(source):
        yield from _from_table(path, source, partial(inside, path.parent))


def _nemo_tables(source: Source) -> list[Path]:
    paths = [path for path in source.top(".json", ".jsonl") if path.name != "metadata.jsonl"]
    return [path for path in paths if "audio_filepath" in tables.first_row(path)]


def _is_nemo(source: Source) -> bool:
    return bool(_nemo_tables(source))


def _nemo(source: Source) -> Iterator[Item]:
    """NeMo: JSON lines with `audio_filepath`, `text`, and for parts `offset` and `duration`."""
    for path in _nemo_tables(source):
        yield from _from_table(path, source, partial(anywhere, path.parent))


def _is_common_voice(source: Source) -> bool:
    return (source.folder / "clips").is_dir() and bool(source.top(".tsv"))


def _common_voice(source: Source) -> Iterator[Item]:
    """Common Voice: `validated.tsv`, else train, dev and test, or the table that was named."""
    paths = {path.name.lower(): path for path in source.top(".tsv")}
    if source.place.is_dir():
        own = (
            ["validated.tsv"] if "validated.tsv" in paths else ["train.tsv", "dev.tsv", "test.tsv"]
        )
        paths = {name: paths[name] for name in own if name in paths} or paths
    for path in paths.values():
        yield from _from_table(path, source, partial(inside, source.folder / "clips"))


def _ljspeech_table(source: Source) -> Path | None:
    if not (source.folder / "wavs").is_dir():
        return None
    for path in source.top("metadata.csv"):
        first, *rest = tables.header(path).split("|")
        if path.name.lower() == "metadata.csv" and rest and first.lower() not in FILES:
            return path
    return None


def _is_ljspeech(source: Source) -> bool:
    return _ljspeech_table(source) is not None


def _ljspeech(source: Source) -> Iterator[Item]:
    """LJSpeech: `metadata.csv` of `id|text|text spelled out`, audio in `wavs/`; the last text there is."""
    table, named = _ljspeech_table(source), by_name(".wav")
    for _, line in tables.lines_of(table) if table else ():
        name, *texts = line.split("|")
        text = next((text for text in reversed(texts) if text.strip()), "")
        path = named(source.folder / "wavs", name.strip())
        if isinstance(path, Skipped):
            yield path
        else:
            yield Utterance(id=relative(path, source), path=path, text=text)


def _is_librispeech(source: Source) -> bool:
    return bool(source.below(".trans.txt"))


def _librispeech(source: Source) -> Iterator[Item]:
    """LibriSpeech: `SPEAKER-CHAPTER.trans.txt` beside `SPEAKER-CHAPTER-NUMBER.flac`."""
    named = by_name(".flac")
    for table in source.below(".trans.txt"):
        for _, line in tables.lines_of(table):
            name, text = _pair(line)
            path = named(table.parent, name)
            if isinstance(path, Skipped):
                yield path
            else:
                speaker, more, _ = name.partition("-")
                yield Utterance(
                    id=relative(path, source),
                    path=path,
                    text=text,
                    speaker=speaker if more else "",
                )


# ----------------------------------------------------------------------------------------- Kaldi


def _is_kaldi(source: Source) -> bool:
    return source.has("wav.scp", "text")


def _kaldi(source: Source) -> Iterator[Item]:
    """Kaldi: `wav.scp`, `text`, and where they are there `segments` and `utt2spk`.

    Raises:
        DistilkitError: `wav.scp` holds a command, or a name has two entries.
    """
    folder = source.place
    sounds = _kaldi_table(folder / "wav.scp")
    for name, value in sounds.items():
        if value.startswith("|") or value.endswith("|"):
            raise DistilkitError(
                f"`{folder / 'wav.scp'}` has a command for `{name}`; commands are never run",
                "write the audio to files, and name the files there",
            )
    cut = (folder / "segments").is_file()
    parts = _kaldi_table(folder / "segments") if cut else {name: name for name in sounds}
    speakers = _kaldi_table(folder / "utt2spk") if (folder / "utt2spk").is_file() else {}
    texts = [_pair(line) for _, line in tables.lines_of(folder / "text")]
    for name, text in texts:
        try:
            recording, *times = parts[name].split() if cut else [parts[name]]
            start = tables.seconds(times[0]) or 0.0 if cut else 0.0
            end = tables.seconds(times[1]) if cut and times[1] != "-1" else None
            path = anywhere(folder, sounds[recording])
        except KeyError as error:
            reason = f"`{name}`: `{error.args[0]}` is not in {'segments or ' * cut}wav.scp"
            yield Skipped(path=shown(folder / "text"), reason=reason, kind=NO_AUDIO)
            continue
        except (ValueError, IndexError):
            reason = f"`{name} {parts[name]}` is not a name, a recording and two times"
            yield Skipped(path=shown(folder / "segments"), reason=reason, kind=BROKEN)
            continue
        yield Utterance(
            id=shown(name),
            path=path,
            text=text,
            speaker=speakers.get(name, ""),
            start=start,
            seconds=None if end is None else max(0.0, end - start),
        )
    for name in sorted(set(parts) - {name for name, _ in texts}):
        table = folder / ("segments" if cut else "wav.scp")
        yield Skipped(path=shown(table), reason=f"`{name}` is not in text", kind=NO_TEXT)


def _pair(line: str) -> tuple[str, str]:
    name, *rest = line.split(maxsplit=1)
    return name, rest[0].strip() if rest else ""


def _kaldi_table(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in tables.lines_of(path):
        name, value = _pair(line)
        if found.setdefault(name, value) != value:
            raise DistilkitError(
                f"`{path}` has two entries for `{name}`, the second on line {number}",
                "keep one of them",
            )
    return found


# ------------------------------------------------------------------------- text files beside audio


def _is_sidecars(source: Source) -> bool:
    return any(found.audio and _sidecars(found.path) for found in source.files)


def _sidecars(path: Path) -> list[Path]:
    found: dict[int, Path] = {}
    for text in map(path.with_suffix, SIDECARS):
        if text != path and os.path.isfile(text):
            found.setdefault(text.stat().st_ino, text)  # where capitals are small letters, once
    return list(found.values())


def _sidecar_files(source: Source) -> Iterator[Item]:
    """A text file beside each audio file: `NAME.txt` or `NAME.lab` beside `NAME.wav`."""
    used: set[Path] = set()
    for found in source.files:
        for file in _sidecars(found.path) if found.audio else []:
            used.add(file)
            try:
                text = " ".join(tables.text_of(file).split())
            except DistilkitError as error:
                reason, convert = error.about(file), " ".join((error.hint or "").split()[:5])
                reason += f" (`{convert}` converts it)" if convert.startswith("iconv") else ""
                yield Skipped(path=shown(file), reason=reason, kind=BROKEN)
                continue
            yield Utterance(id=relative(found.path, source), path=found.path, text=text)
    for file in source.below(".txt", ".lab"):
        if file not in used:
            reason = "no audio file of this name beside it"
            yield Skipped(path=shown(file), reason=reason, kind=NO_AUDIO)


def folders(source: Source) -> Iterator[Utterance]:
    """Recordings without a table: the name of its folder is the label of each, as in `audiofolder`."""
    for found in source.files:
        if found.audio:
            above = found.path.parent
            labels = {"label": above.name} if above != source.folder else {}
            yield Utterance(
                id=relative(found.path, source), path=found.path, text="", columns=labels
            )


LAYOUTS: dict[str, Layout] = {  # the first that fits is taken
    "lhotse Shar": Layout(detects=is_shar, read=shar),
    "lhotse": Layout(detects=is_lhotse, read=lhotse),
    "Kaldi": Layout(detects=_is_kaldi, read=_kaldi),
    "NeMo": Layout(detects=_is_nemo, read=_nemo),
    "Common Voice": Layout(detects=_is_common_voice, read=_common_voice),
    "LibriSpeech": Layout(detects=_is_librispeech, read=_librispeech),
    "LJSpeech": Layout(detects=_is_ljspeech, read=_ljspeech),
    "audiofolder": Layout(detects=_is_audiofolder, read=_audiofolder),
    "text files": Layout(detects=_is_sidecars, read=_sidecar_files),
}
