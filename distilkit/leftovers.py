"""What killed processes leave behind, and how it goes.

A temporary folder is locked by the process that made it: the next one that makes such a folder can
tell that nobody holds it any more. What `files.replacing` writes beside its place has its process in
its name, and where that runs. Of what another machine or container writes on a disk that both see,
only the disk's clock tells: it is left over once nothing of it has changed for a day.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from distilkit.errors import DistilkitError
from distilkit.files import discard
from distilkit.unfinished import NAME, beside, here

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = ".distilkit-"  # of temporary folders; nobody else's begin so
OWNERS = (
    100  # that may remove a folder, one after the other, before it is taken for one without locks
)
DAY = 24 * 3600.0  # seconds in which every process that lives and writes has written something


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


@contextmanager
def held(folder: Path, out: Path) -> Iterator[None]:
    """Hold a folder that results are written into, made if need be: nobody else writes there meanwhile.

    The lock goes with the process, however it ends. On a disk without locks nothing is held.

    Args:
        folder: it may be gone at the end.
        out: what the user calls it.

    Raises:
        DistilkitError: another process holds it, or it cannot be made.
    """
    handle = -1
    for _ in range(OWNERS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DistilkitError(
                f"cannot make `{folder}`: {error.strerror}", "another --out"
            ) from error
        try:
            handle = _locked(folder)
            if os.path.samestat(os.fstat(handle), folder.stat()):
                break
            os.close(handle)  # of a folder that whoever had it has removed; another has its place
            handle = -1
        except BlockingIOError as error:
            raise DistilkitError(
                f"`{out}` is in use: another process writes it", "wait for it, or another --out"
            ) from error
        except FileNotFoundError:
            continue  # whoever had it has just removed it
        except OSError:
            break
    try:
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def save_tensors(tensors: "dict[str, Tensor]", path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file that lies in a folder with others.

    The library writes under a name of its own beside the file first, which nobody would know for left
    over where the process is killed. So it does that in a folder that has our kind of name.

    Args:
        tensors: each contiguous.
        path: where, if need be beside the place that it is to take.
        metadata: what is said of them.

    Raises:
        OSError: the folder cannot be made, or the file cannot be moved out of it.
        SafetensorError: the file cannot be written.
    """
    from safetensors.torch import save_file

    within = path.with_name(f"{path.name}.0") if NAME.fullmatch(path.name) else beside(path)
    discard(within)
    within.mkdir()
    try:
        save_file(tensors, within / path.name, metadata)
        (within / path.name).replace(path)
    finally:
        discard(within)


def tidy(path: Path) -> None:
    """Remove what processes that are gone left beside a file or folder that they were writing.

    To be called before this process writes there.
    """
    there = path.parent.iterdir() if path.parent.is_dir() else ()
    _mend(entry for entry in there if entry.name.startswith(f".{path.name}.") and _left(entry))


def vacate(out: Path) -> None:
    """The same for what is to be made new.

    Raises:
        DistilkitError: something is there.
    """
    tidy(out)
    if os.path.lexists(out):
        raise DistilkitError(f"`{out}` already exists", "another --out, or remove it first")


def tidy_below(folder: Path) -> None:
    """The same for all that lies in a folder, at any depth."""
    _mend(left_below(folder))


def remove(folder: Path) -> None:
    """Remove a folder: at any moment it is there whole, or what is there of it counts as left over."""
    leaving = beside(folder)
    try:
        folder.rename(leaving)
    except OSError:  # a full disk may have no room for another name
        leaving = folder
    discard(leaving)


def left_below(folder: Path) -> list[Path]:
    """What processes that are gone left half-written in a folder, at any depth."""
    found = (
        Path(place, name)
        for place, folders, files in os.walk(folder)
        for name in (*folders, *files)
    )
    return [entry for entry in found if _left(entry)]


def _left(entry: Path) -> bool:
    """Whether what lies beside its place is nobody's any more; in doubt it is somebody's."""
    found = NAME.fullmatch(entry.name)
    if found is None:
        return False
    if found["where"] != here():  # or it does not say where, as names did once
        return _untouched(entry) > DAY
    process = int(found["process"])
    if process == os.getpid() or not psutil.pid_exists(process):
        return True
    try:
        lived: float = time.time() - psutil.Process(process).create_time()
    except psutil.Error:  # another user's, which may not be looked at
        return False
    return _untouched(entry) > lived + DAY  # of one that had the number before


def _untouched(entry: Path) -> float:
    """Seconds since anything in a file or folder was written or moved; 0 where that cannot be told.

    Both ends of it are by the clock of the disk, which may be another machine's.
    """
    try:
        with tempfile.TemporaryFile(dir=entry.parent) as file:
            now = os.fstat(file.fileno()).st_mtime
        seen = [path.lstat() for path in (entry, *entry.rglob("*"))]
    except OSError:  # it is going just now, or not ours to remove
        return 0.0
    return now - max(max(one.st_mtime, one.st_ctime) for one in seen)


def _mend(left: Iterable[Path]) -> None:
    for entry in sorted(left):  # what was there before comes before what was to replace it
        found = NAME.fullmatch(entry.name)
        assert found
        place = entry.with_name(found["name"])
        with suppress(FileNotFoundError, PermissionError):  # gone meanwhile, or another user's
            if found["what"] == "old" and not os.path.lexists(place):
                entry.rename(place)
            else:
                discard(entry)
