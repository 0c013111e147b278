"""Files that are written beside their place and moved there whole; JSON that is read with one clear error."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distilkit import unfinished
from distilkit.errors import DistilkitError

RUST = re.compile(r"\(os error (?P<number>\d+)\)")  # how safetensors says what the system said
DEVICES = Path("/dev")
MEANWHILE = "another --out: another process made it meanwhile"
UNWRITABLE = {  # what to do where something cannot be written
    errno.ENOSPC: "make room on that disk, or choose a folder on another",
    errno.EDQUOT: "make room within your quota, or choose a folder elsewhere",
    errno.EACCES: "choose a folder that you can write",
    errno.EPERM: "choose a folder that you can write",
    errno.EROFS: "choose a folder that can be written",
    errno.ENOTEMPTY: MEANWHILE,
    errno.EEXIST: MEANWHILE,
}


@contextmanager
def replacing(path: Path, *, new: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it takes the place of `path`, whole.

    Works for a file and for a folder. On an error `path` is as it was and nothing is left over. What is `new`
    takes nobody's place: where another process made a folder there meanwhile, that is an error.

    Raises:
        DistilkitError: it cannot be written, or `path` is a pipe or a device, whose place no file takes.
    """
    _check_replaceable(path)
    beside = unfinished.beside(path)
    discard(beside)
    try:
        yield beside
        made = [*beside.rglob("*"), beside] if beside.is_dir() else [beside]
        _share(made)
        _sync(made)
        if path.is_dir() and not path.is_symlink() and not new:
            old = unfinished.beside(path, "old")
            path.rename(old)
            try:
                beside.rename(path)
            except OSError:
                old.rename(path)
                raise
            discard(old)
        else:
            os.replace(beside, path)
        with suppress(OSError):  # it is there, whole: only a power cut could take its name
            _sync([path.parent])
    except OSError as error:
        raise unwritable(path, error) from error
    except Exception as error:
        if (found := RUST.search(str(error))) is None:
            raise
        number = int(found["number"])
        raise unwritable(path, OSError(number, os.strerror(number))) from error
    finally:
        discard(beside)


def unwritable(path: Path, error: OSError) -> DistilkitError:
    """What a user is told where a file or folder cannot be written."""
    hint = UNWRITABLE.get(error.errno or 0, "distilkit doctor")
    return DistilkitError(f"cannot write `{path}`: {error.strerror or error}", hint)


def discard(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
        return
    with suppress(FileNotFoundError, NotADirectoryError):  # nothing lies below a file
        path.unlink()


def make_parent(path: Path) -> None:
    """Make the folder that a file or folder is to lie in, and see before any work that it can be written.

    Raises:
        DistilkitError: it cannot be made, nothing can be written in it, or a pipe or a device is there.
    """
    _check_replaceable(path)
    parent = path.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DistilkitError(
            f"cannot make `{path.parent}`: {error.strerror}", "--out in a folder you can write"
        ) from error
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise unwritable(path, error) from error


def _check_replaceable(path: Path) -> None:
    """That root does not replace `/dev/null`, nor the name of its standard output, for all processes."""
    special = path.exists() and not (path.is_file() or path.is_dir())
    if special or path.absolute().parent == DEVICES:
        raise DistilkitError(
            f"`{path}` is not a place for a file: pipes and devices are not replaced",
            "--out with the name of a file or folder",
        )


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


# What goes wrong where JSON is whole and says other things than it should.
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def parse_json(text: str) -> Any:
    """What JSON says.

    Raises:
        ValueError: it is not JSON, or nested deeper than anything that was written in good faith.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("brackets within brackets without end") from error


def read_object(path: Path, hint: str | None = None) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        DistilkitError: it cannot be read, is not JSON, or holds something else.
    """
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise DistilkitError(f"`{path}` is damaged: {error}", hint) from error
    return found


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file.

    Raises:
        DistilkitError: it cannot be written; half of it may be there.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    except OSError as error:
        raise unwritable(path, error) from error


def _share(paths: Iterable[Path]) -> None:
    """Let others read what the user's umask lets them read: safetensors' files are their owner's alone."""
    os.umask(mask := os.umask(0o077))  # it can be read only by setting it
    for path in paths:
        if path.is_symlink():
            continue  # what it leads to is not ours
        mode = path.stat().st_mode
        shared = mode | (0o777 if path.is_dir() else 0o666) & ~mask
        if shared != mode:
            with suppress(OSError):  # not every file system has modes
                path.chmod(stat.S_IMODE(shared))


def _sync(paths: Iterable[Path]) -> None:
    """Ask the system to put these files, and the entries of these folders, on the disk."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def digest(file: Path) -> str:
    """The SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
