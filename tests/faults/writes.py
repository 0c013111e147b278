"""Every place where a process changes files, counted; and its end by SIGKILL in the midst of one, or a full disk.

Patched are Python's own ways (open, write, fsync, rename, unlink, mkdir ...) and the writers of safetensors,
Parquet and torch; libsndfile writes through Python's files. A write that is to be the last one writes half of what it was given.
"""

import builtins
import errno
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

PACKAGE = str(Path(__file__).parents[2] / "distilkit") + os.sep
CALLS = (
    "replace",
    "rename",
    "fsync",
    "unlink",
    "remove",
    "rmdir",
    "mkdir",
    "link",
    "symlink",
    "truncate",
)
LIBRARIES = ("safetensors", "parquet", "torch")
NEEDS_ROOM = ("create", "write", "mkdir", "link", "symlink", *LIBRARIES)
MAY_NEED_ROOM = ("fsync", "rename", "replace")  # on some file systems, now and then
Place = str  # the line of the package that changes a file, and how, as in `runs.py:57 replace`


class Watch:
    """What the process has done, and where it is to end."""

    def __init__(
        self, end: tuple[Place, int] | None, any_end: int, log: Path | None, full: bool = False
    ) -> None:
        """Patch this process.

        Args:
            end: a place, and at which time that it is come to the process ends there; None for nowhere.
            any_end: the number of the change, wherever it is, at which it ends; 0 for none.
            log: where to write how often each place was come to; see `tell`.
            full: it does not end there: from then on the disk is full.
        """
        self.process, self.counts, self.total = os.getpid(), dict[Place, int](), 0
        self.end, self.any_end, self.log = end, any_end, log
        self.full, self.spent = full, False
        self._open, self._raw_open = io.open, os.open
        for name in CALLS:
            setattr(os, name, partial(self._called, name, getattr(os, name)))
        os.open = self._opening_raw
        builtins.open = io.open = self._opening
        self._patch_libraries()

    def tell(self) -> None:
        """Write down how often each place was come to."""
        if self.log is not None and os.getpid() == self.process:
            self.spent = False
            self.log.write_text(json.dumps(self.counts))

    def tick(
        self, how: str, half: Callable[[], Any] = lambda: None, error: Exception | None = None
    ) -> None:
        """Count a change that is about to be made; end there, with half of it made, where that was asked for.

        Raises:
            OSError: the disk is full; `error`, where one is given.
        """
        if os.getpid() != self.process or _in_probe():
            return
        if self.spent and how in NEEDS_ROOM:
            raise error or _no_room()
        place = f"{_line()} {how}"
        self.counts[place] = self.counts.get(place, 0) + 1
        self.total += 1
        if (place, self.counts[place]) == self.end or self.total == self.any_end:
            half()
            if not self.full:
                os.kill(self.process, signal.SIGKILL)
            self.spent = True
            usage = shutil.disk_usage
            shutil.disk_usage = lambda path: usage(path)._replace(free=0)
            raise error or _no_room()

    def _called(self, name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
        self.tick(name)
        return real(*args, **more)

    def _opening_raw(self, path: Any, flags: int, *args: Any, **more: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            self.tick("open" if os.path.exists(path) else "create")
        return self._raw_open(path, flags, *args, **more)

    def _opening(
        self, file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None,
        errors: str | None = None, newline: str | None = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        if not set(mode) & set("wax+") or str(file).startswith(("/dev/", "/proc/")):
            return self._open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        self.tick("open" if os.path.exists(file) else "create")
        raw = _File(self, file, mode.replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    def _patch_libraries(self) -> None:
        import pyarrow.parquet
        import safetensors.torch
        import torch

        save, rows = torch.save, pyarrow.parquet.ParquetWriter.write_table
        real = safetensors.torch.serialize_file

        def serialize(tensors: Any, path: Any, **more: Any) -> None:
            def half() -> None:
                # Killed, it leaves a name of its own; of a full disk's file older ones leave a part.
                name = path if self.full else Path(path).with_name(".tmpAbC123")
                real(tensors, name, **more)
                os.truncate(name, os.path.getsize(name) // 2)

            said = "Error while serializing: I/O error: No space left on device (os error 28)"
            self.tick("safetensors", half, safetensors.SafetensorError(said))
            real(tensors, path, **more)

        def saved(content: Any, place: Any, **more: Any) -> None:
            if not isinstance(place, str | os.PathLike):
                save(content, place, **more)
                return

            def half() -> None:
                save(content, place, **more)
                os.truncate(place, os.path.getsize(place) // 2)

            self.tick("torch", half, RuntimeError("[enforce fail] . unexpected pos 576 vs 534"))
            save(content, place, **more)

        def rowed(writer: Any, table: Any, *args: Any, **more: Any) -> None:
            self.tick("parquet", lambda: rows(writer, table[: len(table) // 2], *args, **more))
            rows(writer, table, *args, **more)

        torch.save, pyarrow.parquet.ParquetWriter.write_table = saved, rowed
        safetensors.torch.serialize_file = serialize


class _File(io.FileIO):
    """A file whose writes are counted."""

    def __init__(self, watch: Watch, file: Any, mode: str, closefd: bool, opener: Any) -> None:
        self._watch = watch
        super().__init__(file, mode.replace("b", ""), closefd, opener)

    def write(self, data: Any) -> int:
        whole = memoryview(data).cast("B")
        self._watch.tick("write", lambda: super(_File, self).write(whole[: len(whole) // 2]))
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        self._watch.tick("truncate")
        return super().truncate(size)


def _no_room() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _in_probe() -> bool:
    """Whether Python tries folders for temporary files: it writes four bytes and removes them, which is not ours."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_get_default_tempdir":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _line() -> str:
    """The innermost line of the package that is being run."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            return f"{name.removeprefix(PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"
