"""Commands in a process that ends at once where any code in it, a library's in C too, opens an internet socket.

python tests/offline.py commands.json said/

The file holds command lines, without the program's name. What each says goes to a file of its own, and its exit
status into `status.json`. On Linux the kernel ends the process by SIGSYS, with where it was on standard error;
elsewhere, and for names that are looked up, Python's own audit does.
"""

import contextlib
import ctypes
import faulthandler
import json
import os
import platform
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

SOCKET = {"x86_64": 41, "aarch64": 198}  # the system call's number
SECCOMP, NO_NEW_PRIVILEGES, FILTER = 22, 38, 2  # of prctl
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # instructions of the kernel's filters
ALLOW, TRAP = 0x7FFF0000, 0x00030000
NUMBER, FAMILY = 0, 16  # where the call's number and its first argument lie


class Instruction(ctypes.Structure):
    """One line of a filter."""

    _fields_ = [
        ("code", ctypes.c_ushort),
        ("true", ctypes.c_ubyte),
        ("false", ctypes.c_ubyte),
        ("value", ctypes.c_uint),
    ]


class Program(ctypes.Structure):
    """A filter as the kernel takes it."""

    _fields_ = [("length", ctypes.c_ushort), ("lines", ctypes.POINTER(Instruction))]


def forbid() -> None:
    """From here on, in this process and its children: no socket but those within the machine (AF_UNIX)."""
    socket.has_ipv6 = False  # urllib3 would open one when it is imported, to see whether it can

    def audited(event: str, arguments: tuple[Any, ...]) -> None:
        asks = event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
        if asks or (event == "socket.connect" and isinstance(arguments[1], tuple)):
            faulthandler.dump_traceback()
            os.kill(os.getpid(), signal.SIGSYS)

    sys.addaudithook(audited)
    faulthandler.register(signal.SIGSYS, chain=True)
    number = SOCKET.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return
    lines = (Instruction * 6)(
        Instruction(LOAD, 0, 0, NUMBER),
        Instruction(EQUAL, 0, 3, number),
        Instruction(LOAD, 0, 0, FAMILY),
        Instruction(EQUAL, 1, 0, socket.AF_UNIX),
        Instruction(RETURN, 0, 0, TRAP),
        Instruction(RETURN, 0, 0, ALLOW),
    )
    libc = ctypes.CDLL(None, use_errno=True)
    for call in (
        (NO_NEW_PRIVILEGES, 1, 0, 0, 0),
        (SECCOMP, FILTER, ctypes.byref(Program(len(lines), lines)), 0, 0),
    ):
        if libc.prctl(*call):
            raise OSError(ctypes.get_errno(), "the kernel takes no filter")


def main(commands: Path, said: Path) -> None:
    """Run every command of a file in turn; the process's status is 0 when all could be tried."""
    forbid()
    from distilkit import cli
    from distilkit.export import verify

    verify.CLIPS, verify.LONGEST, verify.ROUNDS, verify.TIMED_SECONDS = 4, 5.0, 1, 0.5  # type: ignore[misc]
    status = {}
    for number, line in enumerate(json.loads(commands.read_text())):
        print(
            f"{time.process_time():.1f} s", line, file=sys.stderr, flush=True
        )  # the last is to blame
        sys.argv = ["distilkit", *line]
        place = said / f"{number:02d}-{line[0]}"
        with place.open("w") as stream, contextlib.redirect_stdout(stream):
            with contextlib.redirect_stderr(stream):
                try:
                    cli.main()
                    status[number] = 0
                except SystemExit as end:
                    status[number] = int(end.code or 0)
    (said / "status.json").write_text(json.dumps(list(status.values())))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
