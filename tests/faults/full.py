"""A disk that fills up while a command writes: one error, nothing half-written, and on with it once there is room.

For each kind of work of `kills.py`: one run to the end, watched for how much it has on the disk at most. Then tries: a
disk (tmpfs) with a share of that. The command has to end with one error that says what could not be written; what it
leaves is loaded. Then the disk grows, the same is started again as a user would, and the files must be those of the
undisturbed run, and no others. Needs root, to mount.

python tests/faults/full.py [--kind NAME ...] [--tries 10] [--seed 0] [--record]
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from kills import KINDS, Bench, Kind, again, checked, ended, make_inputs, warm_up

ROOM = 512  # MiB, of a disk on which all of it fits
LONGEST_MESSAGE = 12  # lines
SKIPPED = ("plan", "probe-workers")  # nothing of their own is written


class Disk(Bench):
    """A bench whose work folder is a disk of its own."""

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self.work.mkdir(parents=True)
        self._mount("-t", "tmpfs", "-o", f"size={ROOM}m", "tmpfs")

    def _mount(self, *options: str) -> None:
        subprocess.run(["mount", *options, str(self.work)], check=True)

    def resize(self, size: int) -> None:
        """Give it so many bytes."""
        self._mount("-o", f"remount,size={-(-size // 4096) * 4096}")

    def fresh(self) -> None:
        """Empty, and with room."""
        for path in self.work.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.resize(ROOM * 2**20)

    def used(self) -> int:
        """Bytes that are taken."""
        found = os.statvfs(self.work)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def close(self) -> None:
        """Take it away."""
        subprocess.run(["umount", str(self.work)], check=True)


def whole(disk: Disk, kind: Kind) -> tuple[dict[str, str], int]:
    """An undisturbed run: its files, and the most that it had on the disk."""
    disk.fresh()
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, disk.used())

    child = disk.start(kind.begin)
    watching = threading.Thread(target=watch)
    watching.start()
    code = ended(child)
    done.set()
    watching.join()
    if code != 0:
        raise SystemExit(f"undisturbed it ended with {code}: {disk.said()}")
    return disk.files(), most


def one(disk: Disk, kind: Kind, files: dict[str, str], size: int) -> tuple[bool, str]:
    """Whether the disk was too small, and what went wrong, if anything did."""
    disk.fresh()
    disk.resize(size)
    child = disk.start(kind.begin)
    code = ended(child)
    told = f"{size / 2**20:.2f} MiB"
    if code is None:
        os.killpg(child, signal.SIGKILL)
        ended(child)
        return True, f"{told}: it did not end"
    said, short = disk.said(), code != 0
    if short:
        if code != 1 or said.count("error:") != 1 or "Traceback" in said:
            return True, f"{told}: ended with {code}: {said[-1500:]}"
        lines = said[said.index("error:") :].splitlines()
        if "No space left" not in said and "disk" not in said:
            return True, f"{told}: the error does not say that the disk is full: {lines}"
        if len(lines) > LONGEST_MESSAGE:
            return True, f"{told}: an error of {len(lines)} lines: {lines[:3]}"
        left = [name for name in disk.files() if ".partial-" in name or ".old-" in name]
        if left:
            return True, f"{told}: half-written files are left: {left}"
    if kind.every and (problem := checked(disk, kind, 0)[1]):
        return short, f"{told}: {problem}"
    disk.resize(ROOM * 2**20)
    code = ended(disk.start(again(disk, kind))) if short else 0
    if code != 0:
        return short, f"{told}: with room again it ended with {code}: {disk.said()[-800:]}"
    now = disk.files()
    wrong = sorted(name for name in now.keys() | files.keys() if now.get(name) != files.get(name))
    return short, f"{told}: missing, left over or another: {wrong[:6]}" if wrong else ""


def main() -> None:
    """Try all kinds, one after the other; exit status 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    kinds = [name for name in KINDS if name not in SKIPPED]
    parser.add_argument("--kind", nargs="+", choices=kinds, default=kinds, metavar="NAME")
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="append to docs/benchmarks/results")
    asked = parser.parse_args()
    warm_up()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        disk = Disk(Path(folder).resolve())
        try:
            disk.inputs = make_inputs(disk.scratch / "inputs")
            for name in asked.kind:
                began, rng = time.monotonic(), random.Random(f"{asked.seed} {name}")
                files, most = whole(disk, KINDS[name])
                short, problems = 0, []
                for number in range(asked.tries):
                    # Over all sizes, so that every place where it writes has its turn; most write most
                    # to the cache at first, and results at last: every second is in the last quarter.
                    share = (number + rng.random()) / asked.tries
                    share = (3 + share) / 4 if number % 2 else share
                    small, problem = one(disk, KINDS[name], files, max(4096, int(share * most)))
                    short += small
                    if problem:
                        problems.append(problem)
                        print(f"{name} {number}: {problem}", flush=True)
                print(
                    f"{name}: {most / 2**20:.1f} MiB, {asked.tries} tries, {short} too small, "
                    f"{len(problems)} failures",
                    flush=True,
                )
                failed |= bool(problems)
                row = {
                    "kind": name,
                    "tries": asked.tries,
                    "too_small": short,
                    "seed": asked.seed,
                    "failures": len(problems),
                    "command": f"python tests/faults/full.py --kind {name} --tries {asked.tries} "
                    f"--seed {asked.seed}",
                    "seconds": round(time.monotonic() - began),
                }
                if asked.record:
                    from record import record

                    record("reliability", {"what": "disk full", **row})
        finally:
            disk.close()
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
