"""Sound that lies in archives: shards of lhotse Shar or WebDataset, or any other tar."""

import hashlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distilkit import leftovers
from distilkit.audio import AudioError
from distilkit.errors import DistilkitError

SUFFIX = ".tar"  # not compressed: what is inside can be reached without reading all before it


@dataclass(frozen=True, kw_only=True)
class Held:
    """A file inside an archive."""

    archive: Path
    name: str
    at: int  # bytes from the archive's beginning
    size: int  # bytes
    problem: str = ""  # why it cannot be read


def listed(archive: Path) -> Iterator[Held]:
    """The files in a tar, in its order; folders are none.

    Raises:
        AudioError: it is none, is empty, or ends too early; what lies before has been yielded.
    """
    empty = True
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                if not member.isdir():
                    empty = False
                    whole = member.isreg() and not member.issparse()
                    yield Held(
                        archive=archive,
                        name=member.name,
                        at=member.offset_data,
                        size=member.size,
                        problem="" if whole else "a link, or no plain file, in an archive",
                    )
    except (tarfile.TarError, OSError, ValueError, MemoryError, OverflowError) as error:
        said = error or "it promises more than the memory holds"
        raise AudioError(f"not a whole archive: {said}") from error
    if empty:
        raise AudioError("an archive without files")


def read(held: Held) -> bytes:
    """The bytes of a file inside an archive.

    Raises:
        AudioError: the archive ends before they do, or cannot be read.
    """
    try:
        with held.archive.open("rb") as file:
            file.seek(held.at)
            there = max(0, os.fstat(file.fileno()).st_size - held.at)  # room for what is promised
            found = file.read(min(held.size, there))
    except OSError as error:
        raise AudioError(error.strerror or str(error)) from error
    if len(found) < held.size:
        raise AudioError(f"the archive ends after {len(found)} of its {held.size} bytes")
    return found


def kept(sound: bytes, name: str, cache: Path) -> Path:
    """Sound out of an archive or a table as a file in the cache, named after its place and its bytes.

    Raises:
        DistilkitError: it cannot be written.
    """
    origin = name.encode("utf-8", "surrogateescape") + b"\0"
    digest = hashlib.sha256(origin + sound).hexdigest()[:32]
    path = cache / digest[:2] / digest
    try:
        if not path.is_file() or path.stat().st_size != len(sound):
            path.parent.mkdir(parents=True, exist_ok=True)
            with leftovers.temporary(cache) as folder:
                (folder / path.name).write_bytes(sound)
                os.replace(folder / path.name, path)
    except OSError as error:
        raise DistilkitError(
            f"cannot keep audio in `{cache}`: {error.strerror or error}",
            "DISTILKIT_CACHE=FOLDER, with a folder that can be written and has room",
        ) from error
    return path
