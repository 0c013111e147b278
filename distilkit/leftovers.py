"""What killed processes leave behind, and how it goes.

A temporary folder is locked by the process that made it: the next one that makes such a folder can
tell that nobody holds it any more. What `runs.replacing` writes beside its place has the number of
its process in its name.
"""

import fcntl
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from distilkit.runs import discard

PREFIX = ".distilkit-"  # of temporary folders; nobody else's begin so
BESIDE = re.compile(r"\.(?P<name>.+)\.(?P<what>old|partial)-(?P<process>\d+)(\.\d+)?")


@contextmanager
def temporary(place: Path | None = None) -> Iterator[Path]:
    """A folder that is gone at the end; those that killed processes left there go at the beginning.

    Args:
        place: where, made if it is not there; where the system has temporary files when None.

    Raises:
        OSError: it cannot be made.
    """
    place = Path(tempfile.gettempdir()) if place is None else place
    place.mkdir(parents=True, exist_ok=True)
    clear(place)
    folder, handle = _made(place)
    try:
        yield folder
    finally:
        discard(folder)
        if handle >= 0:
            os.close(handle)


def clear(place: Path) -> None:
    """Remove the temporary folders that killed processes left in a place, if it is there."""
    found = list[Path]()
    with suppress(OSError):  # a place that cannot be read
        found = list(place.glob(f"{PREFIX}*"))
    for left in found:
        with suppress(OSError):  # in use, gone, or another user's
            handle = _locked(left)
            try:
                discard(left)
            finally:
                os.close(handle)


def _made(place: Path) -> tuple[Path, int]:
    """A new folder, locked; -1 where there are no locks, and nothing that is left is ever removed."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        try:
            return folder, _locked(folder)
        except (BlockingIOError, FileNotFoundError):
            continue  # taken for left over before it was locked
        except OSError:
            return folder, -1


def _locked(folder: Path) -> int:
    """Lock a folder; the lock goes with the handle, and that with the process.

    Raises:
        OSError: it is gone, another process has it, or it cannot be locked.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.stat()  # whoever had it before may have removed it
    except OSError:
        os.close(handle)
        raise
    return handle


def tidy(path: Path) -> None:
    """Remove what processes that are gone left beside a file or folder that they were writing.

    To be called before this process writes there.
    """
    there = path.parent.iterdir() if path.parent.is_dir() else ()
    _mend(entry for entry in there if entry.name.startswith(f".{path.name}.") and _left(entry.name))


def tidy_below(folder: Path) -> None:
    """The same for all that lies in a folder, at any depth."""
    _mend(left_below(folder))


def remove(folder: Path) -> None:
    """Remove a folder: at any moment it is there whole, or what is there of it counts as left over."""
    leaving = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    folder.rename(leaving)
    discard(leaving)


def left_below(folder: Path) -> list[Path]:
    """What processes that are gone left half-written in a folder, at any depth."""
    return [
        Path(place, name)
        for place, folders, files in os.walk(folder)
        for name in (*folders, *files)
        if _left(name)
    ]


def _left(name: str) -> bool:
    found = BESIDE.fullmatch(name) if name.startswith(".") else None
    process = int(found["process"]) if found else 0
    return found is not None and (process == os.getpid() or not psutil.pid_exists(process))


def _mend(left: Iterable[Path]) -> None:
    for entry in sorted(left):  # what was there before comes before what was to replace it
        found = BESIDE.fullmatch(entry.name)
        assert found
        place = entry.with_name(found["name"])
        if found["what"] == "old" and not os.path.lexists(place):
            entry.rename(place)
        else:
            discard(entry)
