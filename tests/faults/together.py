"""The same command several times at once, as two terminals or the jobs of a cluster do it; one of them may be killed.

For each kind of work of `kills.py`: one run to the end. Then tries, in one of two ways. In one folder: two or three
processes with the same command, the same results to write and the same cache, each begun when it is drawn to. At
least one does its work, unless it is the one that is killed; the others do it too, or end with one error. In one
cache: each has a folder of its own, and does its work. Where one was killed, it is started once more, as a user
would. In the end the files must be those of the undisturbed run, with the same bytes, and no others.

python tests/faults/together.py [--in folder cache] [--kind NAME ...] [--tries 10] [--seed 0] [--record]
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from kills import (
    KINDS,
    MOST_SECONDS,
    REFUSALS,
    Bench,
    Kind,
    again,
    ended,
    kill,
    make_inputs,
    warm_up,
)

KILLED = -signal.SIGKILL
WAYS = ("folder", "cache")
REFUSED = 1  # exit status


def benches(scratch: Path, way: str, count: int) -> list[Bench]:
    """Benches for processes that share the folder they work in, or only the cache."""
    first = Bench(scratch)
    first.fresh()
    found = [first]
    for number in range(1, count):
        other = Bench(scratch / f"other{number}")
        other.scratch.mkdir(exist_ok=True)
        other.inputs, other.cache, other.temporary = {}, first.cache, first.temporary
        if way == "folder":
            other.work = first.work
        else:
            other.fresh()
        found.append(other)
    return found


def run(
    group: Sequence[Bench], kind: Kind, seconds: float, rng: random.Random
) -> tuple[list[int | None], str]:
    """Start a command on each bench, perhaps kill one; how each ended, and what was done."""
    starts = sorted(rng.choice((0.0, rng.uniform(0.0, seconds))) for _ in group)
    victim = rng.choice((None, rng.randrange(len(group))))
    wait, began = rng.uniform(0.0, 1.5 * seconds), time.monotonic()
    children = []
    for bench, start in zip(group, starts, strict=True):
        time.sleep(max(0.0, began + start - time.monotonic()))
        children.append(bench.start(kind.begin))
    story = f"begun after {', '.join(f'{start:.2f}' for start in starts)} s"
    codes: dict[int, int | None] = {}
    if victim is not None:
        code = ended(children[victim], wait)
        codes[victim] = kill(children[victim]) if code is None else code
        if codes[victim] == KILLED:
            story += f", the {('first', 'second', 'third')[victim]} killed {wait:.2f} s later"
    for number, child in enumerate(children):
        if number not in codes and (code := ended(child)) is None:
            kill(child)
            codes[number] = None
        elif number not in codes:
            codes[number] = code
    return [codes[number] for number in range(len(group))], story


def differences(group: Sequence[Bench], whole: dict[str, str], way: str) -> list[str]:
    """What is missing, left over or another, in every folder."""
    found = []
    for number, bench in enumerate(group[:1] if way == "folder" else group):
        wanted = whole
        if number:  # the cache and the folder for temporary files are the first one's
            wanted = {
                name: what
                for name, what in whole.items()
                if name.split("/")[0] not in ("cache", "tmp")
            }
        files = bench.files()
        found += [f"{name} is missing" for name in wanted if name not in files]
        found += [f"{name} is left over" for name in files if name not in wanted]
        found += [
            f"{name} differs" for name in files if wanted.get(name, files[name]) != files[name]
        ]
    return found


def one(
    scratch: Path, inputs: dict[str, str], kind: Kind, way: str, whole: dict[str, str], seconds: float,
    rng: random.Random,
) -> str:  # fmt: skip
    """One try, and what went wrong, if anything did."""
    group = benches(scratch, way, rng.choice((2, 2, 3)))
    for bench in group:
        bench.inputs = inputs
    codes, story = run(group, kind, seconds, rng)
    for bench, code in zip(group, codes, strict=True):
        said = bench.said()
        if code is None:
            return f"{story}: one did not end within {MOST_SECONDS:g} s: {said[-500:]}"
        clear = code == REFUSED and said.count("error:") == 1 and "Traceback" not in said
        if code not in (0, KILLED) and not (clear and way == "folder"):
            return f"{story}: ended with {codes}: {said[-1500:]}"
    if way == "folder" and KILLED not in codes and 0 not in codes:
        return f"{story}: none did its work: {' / '.join(bench.said()[-500:] for bench in group)}"
    for bench, code in zip(group, codes, strict=True):
        if code == KILLED:
            code = ended(bench.start(again(bench, kind)))
            if code != 0 and not REFUSALS.search(bench.said()):
                return f"{story}: started again, it ended with {code}: {bench.said()[-800:]}"
    wrong = differences(group, whole, way)
    return f"{story}, ended with {codes}: {', '.join(wrong[:6])}" if wrong else ""


def main() -> None:
    """Run campaigns, one after the other; exit status 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    quick = [name for name in KINDS if not KINDS[name].most]
    parser.add_argument("--in", nargs="+", choices=WAYS, default=list(WAYS), dest="ways")
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=quick, metavar="NAME")
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="append to docs/benchmarks/results")
    asked = parser.parse_args()
    warm_up()
    failed = False
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name).resolve()
        inputs = make_inputs(scratch / "inputs")
        for kind in asked.kind:
            bench = Bench(scratch)
            bench.inputs = inputs
            bench.fresh()
            began = time.monotonic()
            if ended(bench.start(KINDS[kind].begin)) != 0:
                raise SystemExit(f"{kind} undisturbed: {bench.said()}")
            seconds, whole = time.monotonic() - began, bench.files()
            for way in asked.ways:
                began, rng = time.monotonic(), random.Random(f"{asked.seed} {kind} {way}")
                problems = 0
                for number in range(asked.tries):
                    problem = one(scratch, inputs, KINDS[kind], way, whole, seconds, rng)
                    problems += bool(problem)
                    if problem:
                        print(f"{kind} in one {way}, {number}: {problem}", flush=True)
                print(f"{kind} in one {way}: {asked.tries} tries, {problems} failures", flush=True)
                failed |= bool(problems)
                row = {
                    "kind": kind,
                    "tries": asked.tries,
                    "seed": asked.seed,
                    "failures": problems,
                    "command": f"python tests/faults/together.py --in {way} --kind {kind} "
                    f"--tries {asked.tries} --seed {asked.seed}",
                    "seconds": round(time.monotonic() - began),
                }
                if asked.record:
                    from record import record

                    record("reliability", {"what": f"together, in one {way}", **row})
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
