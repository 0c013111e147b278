"""Every file under folders, files and manifests, each once."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distilkit.audio import SUFFIXES, AudioError
from distilkit.data import archives
from distilkit.data.archives import Held
from distilkit.data.tables import json_lines
from distilkit.errors import DistilkitError, present


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file that may hold audio, and the id its recording gets."""

    path: Path  # of what lies in an archive the archive's, and its name in there
    id: str
    audio: bool  # whether its name says that it holds audio, or the user named it
    held: Held | None = None  # where it is in an archive
    problem: str = ""  # why it cannot be read, where that is known already

    @property
    def reason(self) -> str:
        """Why a file that is not `audio` is left out."""
        if self.path.suffix.lower() in SUFFIXES:
            return "hidden: its name or its folder's begins with a dot"
        return f"not an audio file ({self.path.suffix.lower() or 'no suffix'})"


def find(inputs: Sequence[str | Path], *, unpack: bool = False) -> Iterator[Found]:
    """Every file under the inputs, each once, in a fixed order; links that go round are harmless.

    Args:
        inputs: folders, files, lhotse manifests.
        unpack: whether to look into archives.

    Raises:
        DistilkitError: an input does not exist or cannot be reached, or is a manifest with sources
            that are not files.
    """
    seen: set[tuple[int, int]] = set()
    taken: Counter[str] = Counter()
    several = len(inputs) > 1
    for root in map(Path, inputs):
        present(root)
        for path, name, audio in _candidates(root, several, seen):
            there = Found(path=path, id=name, audio=audio)
            inside = unpack and path.suffix.lower() == archives.SUFFIX and not _hidden(path, root)
            for found in _unpacked(there) if inside else [there]:
                id = shown(found.id)
                taken[id] += 1
                yield replace(found, id=id if taken[id] == 1 else f"{id}#{taken[id]}")


def _hidden(path: Path, root: Path) -> bool:
    """Whether a file below a folder, or a folder above it there, begins with a dot."""
    below = path.relative_to(root).parts if path.is_relative_to(root) else ()
    return any(part.startswith(".") for part in below)


def _unpacked(archive: Found) -> Iterator[Found]:
    """What lies in an archive; the archive itself only where it is damaged."""
    try:
        for held in archives.listed(archive.path):
            name = Path(held.name)  # without the `./` that many begin with
            hidden = any(part.startswith(".") and part != ".." for part in name.parts)
            audio = name.suffix.lower() in SUFFIXES and not hidden
            id = f"{archive.id}/{name.as_posix()}"
            path = archive.path / name
            yield Found(path=path, id=id, audio=audio, held=held, problem=held.problem)
    except AudioError as error:
        yield replace(archive, audio=True, problem=str(error))


def shown(path: Path | str) -> str:
    """A path as text that can be written anywhere: bytes that are not UTF-8 become `\\udcff`."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _candidates(
    root: Path, several: bool, seen: set[tuple[int, int]]
) -> Iterator[tuple[Path, str, bool]]:
    if root.is_dir():
        prefix = f"{root.resolve().name}/" if several else ""
        for path in _walk(root, seen):
            audio = path.suffix.lower() in SUFFIXES or path.is_dir()
            # What macOS, editors and trash bins leave begins with a dot.
            hidden = _hidden(path, root)
            yield path, prefix + path.relative_to(root).as_posix(), audio and not hidden
    elif root.name.endswith((".jsonl", ".jsonl.gz")):
        for path in dict.fromkeys(_manifest_files(root)):
            yield path, path.name, True
    else:
        yield root, root.name, True


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Files below a folder, sorted; each folder is entered once, whatever links to it.

    A folder that cannot be opened is given back itself; decoding it says why.
    """
    waiting = [(folder, True)]
    while waiting:
        path, is_folder = waiting.pop()
        if not is_folder:
            yield path
            continue
        try:
            status = path.stat()
            key = (status.st_dev, status.st_ino)
            if key not in seen:
                seen.add(key)
                entries = sorted(os.scandir(path), key=lambda entry: entry.name, reverse=True)
                waiting += [(Path(entry.path), _is_folder(entry)) for entry in entries]
        except OSError:
            yield path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that goes round in a circle: decoding will say so
        return False


def _manifest_files(manifest: Path) -> Iterator[Path]:
    """The audio files that a lhotse recording or cut manifest names, each name once.

    Raises:
        DistilkitError: not a manifest, or a source that is not a file (a command is never run).
    """
    names: set[str] = set()
    try:
        for _, row in json_lines(manifest):
            recording = row.get("recording", row)
            for source in recording["sources"]:
                if source["type"] != "file":
                    raise DistilkitError(
                        f"`{manifest}` has a source of type `{source['type']}`; only files are read"
                    )
                if source["source"] not in names:
                    names.add(source["source"])
                    yield _beside(Path(source["source"]), manifest)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise DistilkitError(
            f"`{manifest}` is not a lhotse manifest of recordings or cuts",
            "give the folder with the audio instead",
        ) from error


def _beside(path: Path, manifest: Path) -> Path:
    """A relative path is taken from the working folder, as lhotse does, or from the manifest's."""
    if "\0" in str(path):
        raise ValueError("a name with a zero byte")
    other = manifest.parent / path
    return other if not path.exists() and other.exists() else path
