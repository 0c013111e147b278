"""lhotse's manifests and Shar: cuts or recordings with supervisions.

Rows are read as plain JSON; nothing that they name is run or fetched.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from distilkit.audio import AudioError
from distilkit.data import archives, tables
from distilkit.data.find import shown
from distilkit.data.scan import Skipped
from distilkit.data.sources import (
    NO_AUDIO,
    NO_TEXT,
    Item,
    Source,
    Utterance,
    anywhere,
    broken,
)
from distilkit.errors import DistilkitError

MALFORMED = (LookupError, TypeError, AttributeError, ValueError)
NO_SOUND = (".json", ".nodata", ".nometa")  # what else an archive of sound holds


def _lhotse_kind(path: Path) -> str:
    row = tables.first_row(path)
    if "sources" in row:
        return "recordings"
    if "recording_id" in row:
        return "supervisions"
    return "cuts" if str(row.get("type", "")).endswith("Cut") or "recording" in row else ""


def _lhotse_manifests(source: Source) -> list[tuple[Path, ...]]:
    """Cut manifests, else pairs of recordings and supervisions; each is found from either."""
    kinds = {path: _lhotse_kind(path) for path in source.top(".jsonl", ".jsonl.gz")}
    cuts: list[tuple[Path, ...]] = [(path,) for path, kind in kinds.items() if kind == "cuts"]
    pairs: list[tuple[Path, ...]] = []
    for path, kind in kinds.items():
        if kind in ("recordings", "supervisions"):
            other = "supervisions" if kind == "recordings" else "recordings"
            partner = path.with_name(path.name.replace(kind, other))
            if partner != path and _lhotse_kind(partner) == other:
                pairs.append((path, partner) if kind == "recordings" else (partner, path))
    return cuts or list(dict.fromkeys(pairs))


def is_lhotse(source: Source) -> bool:
    """Whether there are cut manifests, or recordings with supervisions."""
    return bool(_lhotse_manifests(source))


def lhotse(source: Source) -> Iterator[Item]:
    """lhotse: cut manifests with supervisions, or recordings with supervisions.

    Raises:
        DistilkitError: a source is not a file (a command is never run).
    """
    for manifests in _lhotse_manifests(source):
        yield from _cuts(*manifests) if len(manifests) == 1 else _supervised(*manifests)


def _cuts(manifest: Path) -> Iterator[Item]:
    locate = cache(partial(anywhere, manifest.parent))
    for line, row in tables.json_lines(manifest):
        try:
            recording = row["recording"]
            path = _lhotse_file(recording, manifest, locate)
            yield from _said(row, recording, path, manifest, line)
        except MALFORMED as error:
            yield broken(manifest, line, error)


def _supervised(recordings: Path, supervisions: Path) -> Iterator[Item]:
    locate = cache(partial(anywhere, recordings.parent))
    known, used = {str(row.get("id")): row for _, row in tables.json_lines(recordings)}, set()
    for line, row in tables.json_lines(supervisions):
        id = str(row.get("recording_id"))
        used.add(id)
        if id not in known:
            reason = f"line {line}: there is no recording `{id}`"
            yield Skipped(path=shown(supervisions), reason=reason, kind=NO_AUDIO)
            continue
        try:
            whole = {
                "id": id,
                "start": 0.0,
                "channel": row.get("channel", 0),
                "supervisions": [row],
            }
            path = _lhotse_file(known[id], recordings, locate)
            yield from _said(whole, known[id], path, supervisions, line)
        except MALFORMED as error:
            yield broken(supervisions, line, error)
    for id in known:
        if id not in used:
            reason = f"`{id}` has no supervision"
            yield Skipped(path=shown(recordings), reason=reason, kind=NO_TEXT)


def _lhotse_file(
    recording: Mapping[str, Any], manifest: Path, locate: Callable[[str], Path]
) -> Path:
    for sound in recording["sources"]:
        if sound["type"] != "file":
            raise DistilkitError(
                f"`{manifest}` has a source of type `{sound['type']}`; only files are read",
                "write the audio to files, and name the files there",
            )
    if len(recording["sources"]) != 1:
        raise ValueError(f"`{recording['id']}` is in {len(recording['sources'])} files, not in one")
    return locate(str(recording["sources"][0]["source"]))


def _said(
    cut: Mapping[str, Any], recording: Mapping[str, Any], path: Path, manifest: Path, line: int
) -> Iterator[Item]:
    """The utterances of a cut: each supervision, in seconds of the recording."""
    changes = {change["name"] for change in recording.get("transforms") or []} - {"Resample"}
    if changes:
        raise ValueError(f"`{cut['id']}` has its sound changed by {tables.quoted(sorted(changes))}")
    channels = {channel for sound in recording["sources"] for channel in sound["channels"]}
    supervisions = cut.get("supervisions") or []
    if not supervisions:
        reason = f"line {line}: `{cut['id']}` has no supervision"
        yield Skipped(path=shown(manifest), reason=reason, kind=NO_TEXT)
    for words in supervisions:
        try:
            of = words.get("channel", 0)
            if not channels <= set(of if isinstance(of, list) else [of]):
                raise ValueError(f"`{words['id']}` is on one of {len(channels)} channels of a file")
            if words["duration"] is None:
                raise KeyError("duration")
            # Rounded, so that 0.1 + 0.2 is 0.3.
            start = tables.seconds(round(float(cut["start"]) + float(words["start"]), 9))
            yield Utterance(
                id=shown(tables.plain(words["id"])),
                path=path,
                text=tables.plain(words.get("text")),
                speaker=tables.plain(words.get("speaker")),
                language=tables.plain(words.get("language")),
                start=start or 0.0,
                seconds=tables.seconds(words["duration"]),
            )
        except MALFORMED as error:
            yield broken(manifest, line, error)


def _shards(source: Source) -> list[tuple[Path, Path]]:
    """Shards of lhotse Shar: the manifest of cuts and the sound of each."""
    if not source.place.is_dir():
        return []
    numbers = (path for path in source.top(".jsonl", ".jsonl.gz") if path.name.startswith("cuts."))
    pairs = [(path, path.with_name(f"recording.{path.name.split('.')[1]}.tar")) for path in numbers]
    return pairs if any(sound.is_file() for _, sound in pairs) else []


def is_shar(source: Source) -> bool:
    """Whether there are shards of cuts with their sound."""
    return bool(_shards(source))


def shar(source: Source) -> Iterator[Item]:
    """lhotse Shar: `cuts.NUMBER.jsonl.gz` beside `recording.NUMBER.tar`.

    Raises:
        DistilkitError: a shard cannot be read.
    """
    for manifest, sounds in _shards(source):
        sound_of = _archive(sounds, source.cache)
        for line, row in tables.json_lines(manifest):
            try:
                id, recording = tables.plain(row["id"]), row["recording"]
                path = sounds / id
                if source.cache is not None:
                    sound = sound_of(id)
                    if sound is None:
                        reason = f"`{id}` of {manifest.name} is not in it"
                        yield Skipped(path=shown(sounds), reason=reason, kind=NO_AUDIO)
                        continue
                    path = archives.kept(sound, f"{sounds.resolve()}/{id}", source.cache)
                yield from _said(row, recording, path, manifest, line)
            except AudioError as error:
                yield Skipped(path=shown(sounds), reason=f"`{id}`: {error}", kind="unusable")
            except MALFORMED as error:
                yield broken(manifest, line, error)


def _archive(sounds: Path, cache: Path | None) -> Callable[[str], bytes | None]:
    """What gives the encoded sound of a cut out of a shard; None where the shard lacks it.

    lhotse's own reader ends without a word where an archive holds less than the manifest.
    """
    if cache is None or not sounds.is_file():
        return lambda id: None
    try:
        members = {
            held.name.rpartition(".")[0]: held
            for held in archives.listed(sounds)
            if not held.problem and not held.name.endswith(NO_SOUND)
        }
        return lambda id: archives.read(members[id]) if id in members else None
    except AudioError as error:
        raise DistilkitError(f"`{sounds}` cannot be read as lhotse Shar: {error}") from error
