"""Names of what is not whole yet: beside its place, with the process that writes it and where that runs.

The number of a process says who it is on one machine only, from one start of it to the next, and in a
container that counts its own. Machines may share a disk, so the name has a mark of that as well.
"""

import hashlib
import os
import re
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal

NAME = re.compile(
    r"\.(?P<name>(?!\.{1,2}\.(old|partial)-).+)\.(?P<what>old|partial)"  # of no folder itself
    r"-(?P<process>\d{1,9})(-(?P<where>[0-9a-f]{8}))?(\.\d+)?"
)


def beside(path: Path, what: Literal["old", "partial"] = "partial") -> Path:
    """Where this process keeps what is to lie at `path`, or what lay there, until all is done."""
    return path.with_name(f".{path.name}.{what}-{os.getpid()}-{here()}")


@cache
def here() -> str:
    """A mark of all processes whose numbers this one can tell apart.

    By the machine's name, which others may have too; on Linux also by its start, and the container.
    """
    known = [socket.gethostname()]
    with suppress(OSError):
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        known.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:8]
