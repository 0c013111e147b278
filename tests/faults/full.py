"""A disk that fills up while a command writes: one error, nothing half-written, and on with it once there is room.

For each kind of work of `kills.py`: one run to the end. Then tries, in one of two ways. By places: at a place drawn
from all those where the undisturbed run takes room, half of a write is written, and from then on the process is told
that the disk is full; each place has its turn, the first time that it is come to and, if there are more, another. By
sizes: a disk (tmpfs, mounted, which takes root) with a share of what the undisturbed run had on it at most. The
command has to end with one error that says what could not be written; what it leaves is loaded. Then there is room,
the same is started again as a user would, and the files must be those of the undisturbed run, and no others.

python tests/faults/full.py [--by places sizes] [--kind NAME ...] [--tries 10] [--seed 0] [--record]
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
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from kills import KINDS, Bench, Kind, again, checked, ended, make_inputs, warm_up
from writes import MAY_NEED_ROOM, NEEDS_ROOM

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


def one(bench: Bench, kind: Kind, files: dict[str, str], child: int, told: str) -> tuple[bool, str]:
    """Whether the disk was too small for a command that was started, and what went wrong, if anything did."""
    code = ended(child)
    if code is None:
        os.killpg(child, signal.SIGKILL)
        ended(child)
        return True, f"{told}: it did not end"
    said, short = bench.said(), code != 0
    if short:
        if code != 1 or said.count("error:") != 1 or "Traceback" in said:
            return True, f"{told}: ended with {code}: {said[-1500:]}"
        lines = said[said.index("error:") :].splitlines()
        if "No space left" not in said and "disk" not in said:
            return True, f"{told}: the error does not say that the disk is full: {lines}"
        if len(lines) > LONGEST_MESSAGE:
            return True, f"{told}: an error of {len(lines)} lines: {lines[:3]}"
        left = [name for name in bench.files() if ".partial-" in name or ".old-" in name]
        if left:
            return True, f"{told}: half-written files are left: {left}"
    if kind.every and (problem := checked(bench, kind, 0)[1]):
        return short, f"{told}: {problem}"
    if isinstance(bench, Disk):
        bench.resize(ROOM * 2**20)
    code = ended(bench.start(again(bench, kind))) if short else 0
    if code != 0:
        return short, f"{told}: with room again it ended with {code}: {bench.said()[-800:]}"
    now = bench.files()
    wrong = sorted(name for name in now.keys() | files.keys() if now.get(name) != files.get(name))
    return short, f"{told}: missing, left over or another: {wrong[:6]}" if wrong else ""


Try = tuple[bool, str]  # whether there was too little room, and what went wrong


def by_sizes(disk: Disk, kind: Kind, tries: int, rng: random.Random) -> Iterator[Try]:
    """Disks of all sizes, so that many places where it writes have their turn."""
    files, most = whole(disk, kind)
    for number in range(tries):
        # Most write most to the cache at first, and results at last: every second is in the last quarter.
        share = (number + rng.random()) / tries
        share = (3 + share) / 4 if number % 2 else share
        size = max(4096, int(share * most))
        disk.fresh()
        disk.resize(size)
        yield one(disk, kind, files, disk.start(kind.begin), f"{size / 2**20:.2f} MiB")


def by_places(bench: Bench, kind: Kind, tries: int, rng: random.Random) -> Iterator[Try]:
    """Each place where it takes room, or so many of them, twice where it is come to more than once."""
    bench.fresh()
    if (code := ended(bench.start(kind.begin))) != 0:
        raise SystemExit(f"undisturbed it ended with {code}: {bench.said()}")
    files, counted = bench.files(), bench.counted()
    taking = [place for place in sorted(counted) if place.split()[-1] in NEEDS_ROOM + MAY_NEED_ROOM]
    chosen = [(place, 1) for place in taking]
    chosen += [(place, rng.randint(2, counted[place])) for place in taking if counted[place] > 1]
    for end in rng.sample(chosen, min(tries or len(chosen), len(chosen))):
        bench.fresh()
        yield one(
            bench, kind, files, bench.start(kind.begin, end, full=True), f"{end[0]}, time {end[1]}"
        )


WAYS = {"places": (Bench, by_places), "sizes": (Disk, by_sizes)}


def campaign(way: str, asked: argparse.Namespace) -> bool:
    """Try all kinds in one way, one after the other; whether anything is wrong."""
    make, tried_by = WAYS[way]
    failed = False
    with tempfile.TemporaryDirectory() as folder, ExitStack() as closing:
        scratch = Path(folder).resolve()
        bench = make(scratch)
        if isinstance(bench, Disk):
            closing.callback(bench.close)
        bench.inputs = make_inputs(scratch / "inputs")
        for name in asked.kind:
            began, rng = time.monotonic(), random.Random(f"{asked.seed} {name}")
            tries = asked.tries or (10 if way == "sizes" else 0)
            found = []
            for short, problem in tried_by(bench, KINDS[name], tries, rng):
                found.append((short, problem))
                if problem:
                    print(f"{name} {len(found) - 1}: {problem}", flush=True)
            short = sum(short for short, _ in found)
            problems = sum(bool(problem) for _, problem in found)
            print(f"{name}: {len(found)} tries, {short} too small, {problems} failures", flush=True)
            failed |= bool(problems)
            words = f"--by {way} --kind {name}" + (f" --tries {tries}" if tries else "")
            row = {
                "kind": name,
                "tries": len(found),
                "too_small": short,
                "seed": asked.seed,
                "failures": problems,
                "command": f"python tests/faults/full.py {words} --seed {asked.seed}",
                "seconds": round(time.monotonic() - began),
            }
            if asked.record:
                from record import record

                what = "disk full" if way == "sizes" else "disk full, by places"
                record("reliability", {"what": what, **row})
    return failed


def main() -> None:
    """Try all kinds but those that take minutes in both ways; exit status 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    kinds = [name for name in KINDS if name not in SKIPPED]
    parser.add_argument("--by", nargs="+", choices=WAYS, default=list(WAYS))
    quick = [name for name in kinds if not KINDS[name].most]
    parser.add_argument("--kind", nargs="+", choices=kinds, default=quick, metavar="NAME")
    parser.add_argument("--tries", type=int, help="10 sizes, and all places")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="append to docs/benchmarks/results")
    asked = parser.parse_args()
    warm_up()
    failed = [campaign(way, asked) for way in asked.by]
    raise SystemExit(int(any(failed)))


if __name__ == "__main__":
    main()
