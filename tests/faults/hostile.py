"""Hostile and damaged input of every kind through the real code, each try in a process of its own.

python tests/faults/hostile.py --kind audio --tries 1000 --seed 0 --record
python tests/faults/hostile.py --kind audio --seed 0 --only 17

A try may end in two ways: the input is used, or it is refused or listed with our own error. All else is a
failure: another exception, a signal, more than 10 seconds of the processor, more than a gigabyte, a file that is
neither used nor listed, code that ran, a file outside that was read or written. Failures are kept in a folder,
with what was said.
"""

import argparse
import contextlib
import ctypes
import importlib
import json
import os
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "benchmarks"), str(HERE.parents[1])]
os.environ.update(
    {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
)

from mutate import Seed  # noqa: E402

KINDS = {
    "audio": "mutate_audio",
    "checkpoints": "mutate_checkpoints",
    "text": "mutate_text",
    "runs": "mutate_runs",
}
LONGEST = 10  # seconds of the processor
WAITING = 60.0  # seconds on the clock, on a machine that has other work too
MOST_BYTES = 1 << 30  # that a try may take beyond what the process has when it begins
FAILED = ("exception", "signal", "hang", "memory", "lost or wrong", "escaped")
CANARY = "do not read this"


@dataclass(frozen=True)
class Result:
    """How a try ended."""

    number: int
    seed: str
    told: str  # what was done to it
    outcome: str  # `used`, `refused`, or one of FAILED
    said: str
    seconds: float  # of the processor
    mebibytes: float

    @property
    def failed(self) -> bool:
        """Whether it did not end as it should."""
        return self.outcome in FAILED


class Campaign:
    """Undamaged input of a kind, made once, and tries on damaged copies of it."""

    def __init__(self, kind: str, seed: int, folder: Path) -> None:
        self.module: Any = importlib.import_module(KINDS[kind])
        self.kind, self.seed, self.folder = kind, seed, folder
        (folder / "seeds").mkdir(parents=True)
        self.seeds: list[Seed] = self.module.seeds(folder / "seeds")
        for seed_ in self.seeds:  # what is not damaged is used, or the tries would show nothing
            result = self._try(-1, seed_, lambda *_: "nothing")
            assert result.outcome == "used", result

    def run(self, number: int) -> Result:
        """The try of that number: always the same."""
        chosen = self.seeds[number % len(self.seeds)]
        return self._try(number, chosen, self.module.mutate)

    def _try(self, number: int, seed: Seed, mutate: Callable[[Seed, Path, Random], str]) -> Result:
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        place, outside = work / "input", work / "outside"
        place.mkdir(parents=True)
        outside.mkdir()
        (outside / "canary").write_text(CANARY)
        shutil.copytree(seed.folder, work / "whole", symlinks=True)
        began = {}
        result = _in_a_process(lambda: self._case(number, seed, mutate, work), work, began)
        outcome, said = result["outcome"], result["said"]
        if outcome in ("used", "refused") and (escaped := _escaped(work)):
            outcome, said = "escaped", escaped
        return Result(
            number, seed.name, began.get("told", ""), outcome, said,
            round(result["seconds"], 2), round(result["mebibytes"], 1),
        )  # fmt: skip

    def _case(
        self, number: int, seed: Seed, mutate: Callable[[Seed, Path, Random], str], work: Path
    ) -> Iterator[dict[str, Any]]:
        """Damage a copy, then use it; what is yielded reaches the process that waits."""
        from distilkit.errors import DistilkitError

        rng = Random(f"{self.kind} {self.seed} {number}")
        if number < 0:
            shutil.copytree(seed.folder, work / "input", symlinks=True, dirs_exist_ok=True)
            told = "nothing"
        else:
            (work / "aside").mkdir()
            os.chdir(work / "aside")  # what is damaged twice is unpickled here, and may run
            told = mutate(seed, work / "input", rng)
            os.chdir(work)
            shutil.rmtree(work / "aside")
        (work / "outside" / "before").write_text(json.dumps(_listing(work / "outside")))
        Path("/proc/self/clear_refs").write_text("5")  # the damage may have taken more than its use
        spent = time.process_time()
        resource.setrlimit(resource.RLIMIT_CPU, (int(spent) + LONGEST, int(spent) + LONGEST + 5))
        yield {"told": told, "KiB": _status("VmRSS"), "seconds": spent}
        os.chdir(work / "input")
        opened = _watched(work / "outside")
        try:
            outcome, said = self.module.use(seed, work / "input", told)
            if (names := opened()) and self.module.enclosed(seed, told):
                outcome, said = "escaped", f"outside was opened: {names}"
            yield {"outcome": outcome, "said": said}
        except DistilkitError as error:
            outcome, said = "refused", error.problem
            if (names := opened()) and self.module.enclosed(seed, told):
                outcome, said = "escaped", f"outside was opened: {names}; then: {said}"
            elif not said.strip():
                outcome, said = "lost or wrong", "an error that says nothing"
            yield {"outcome": outcome, "said": said}
        except AssertionError as error:
            ours = traceback.extract_tb(error.__traceback__)[-1].filename.startswith(str(HERE))
            outcome = "lost or wrong" if ours else "exception"
            yield {"outcome": outcome, "said": traceback.format_exc()}
        except BaseException:
            yield {"outcome": "exception", "said": traceback.format_exc()}


def _in_a_process(
    case: Callable[[], Iterator[dict[str, Any]]], work: Path, told: dict[str, Any]
) -> dict[str, Any]:
    """Run a case in a forked process under limits, and say how it ended."""
    reads, writes = os.pipe()
    log = work / "log"
    child = os.fork()
    if child == 0:
        try:
            os.close(reads)
            _confine(log)
            with os.fdopen(writes, "w") as pipe:
                for row in case():
                    pipe.write(json.dumps(row) + "\n")
                    pipe.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)  # what the other process will tidy up is not ours
    os.close(writes)
    began, text, hung = 0.0, "", False
    with os.fdopen(reads, "rb") as pipe:
        while True:
            limit = WAITING - (time.monotonic() - began) if began else WAITING
            if not select.select([pipe], [], [], max(0.0, limit))[0]:
                os.kill(child, signal.SIGABRT)  # faulthandler says where it was
                time.sleep(0.2)
                os.kill(child, signal.SIGKILL)
                hung = True
                break
            part = os.read(pipe.fileno(), 1 << 16).decode()
            if not part:
                break
            text += part
            began = began or time.monotonic()  # from when the damage is done
    _, status, usage = os.wait4(child, 0)
    rows = [json.loads(line) for line in text.split("\n")[:-1]]
    told |= rows[0] if rows else {}
    grown = (usage.ru_maxrss - told["KiB"]) / 1024 if rows else 0.0
    spent = usage.ru_utime + usage.ru_stime - (rows[0]["seconds"] if rows else 0.0)
    shared = {"seconds": spent, "mebibytes": grown}
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    text = "\n".join(line for line in lines if not line.startswith("Extension modules"))
    dump = text.find("(most recent call first)")  # of faulthandler, which begins with where it was
    end = text[-3000:] if dump < 0 else text[max(0, dump - 200) : dump + 3000]
    if hung or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return {"outcome": "hang", "said": end} | shared
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return {"outcome": "signal", "said": f"{name}\n{end}"} | shared
    if len(rows) < 2:
        return {"outcome": "exception", "said": f"status {status}\n{end}"} | shared
    if grown > MOST_BYTES >> 20:
        return {"outcome": "memory", "said": f"{grown:.0f} MiB: {rows[-1]}"} | shared
    return rows[-1] | shared


def _confine(log: Path) -> None:
    """Give this process a log for its output, and less memory than the machine has."""
    import faulthandler

    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    warnings.simplefilter("default")  # where tests take them for errors
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGXCPU, file=2, chain=True)
    most = (_status("VmSize") << 10) + 6 * MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 30, 8 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _status(name: str) -> int:
    """A value of this process in KiB, as the system counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


OPENED, FOLDER = 0x20, 0x40000000  # of inotify


def _watched(folder: Path) -> Callable[[], list[str]]:
    """From here on, which files of a folder are opened, in Python or in C; called, it says their names."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(os.O_NONBLOCK)
    if handle < 0 or libc.inotify_add_watch(handle, os.fsencode(folder), OPENED) < 0:
        raise OSError(ctypes.get_errno(), "files cannot be watched")

    def opened() -> list[str]:
        names = set()
        with contextlib.suppress(BlockingIOError):
            while events := os.read(handle, 1 << 16):
                while events:
                    _, mask, _, size = struct.unpack("iIII", events[:16])
                    if not mask & FOLDER:
                        names.add(events[16 : 16 + size].rstrip(b"\0").decode())
                    events = events[16 + size :]
        return sorted(names)

    return opened


def _listing(folder: Path) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and path.name != "before"
    }


def _escaped(work: Path) -> str:
    """What was written outside, or run: a command that was called leaves `ran` behind."""
    before = work / "outside" / "before"
    if before.is_file() and _listing(work / "outside") != json.loads(before.read_text()):
        return "a file outside was written"
    ran = [path for path in work.rglob("ran") if path.is_file()]
    return f"code ran: {ran[0]}" if ran else ""


def tried(kind: str, tries: int, seed: int = 0, only: int | None = None) -> Iterator[Result]:
    """The results of a campaign, one by one; the cases that fail are kept."""
    with tempfile.TemporaryDirectory(prefix=f"hostile-{kind}-") as name:
        campaign = Campaign(kind, seed, Path(name))
        for number in range(tries) if only is None else [only]:
            result = campaign.run(number)
            if result.failed:
                keep(campaign, result)
            yield result


def keep(campaign: Campaign, result: Result) -> Path:
    """A failed case in a folder of its own, with what was said."""
    root = Path(os.environ.get("HOSTILE_CASES", Path(tempfile.gettempdir()) / "hostile-cases"))
    folder = root / f"{campaign.kind}-{campaign.seed}-{result.number}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(campaign.folder / "work" / "input", folder / "input", symlinks=True)
    (folder / "result.json").write_text(json.dumps(result.__dict__, indent=1))
    return folder


def main() -> None:
    """Run a campaign, say what failed, and record the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kind", choices=[*KINDS, "all"], default="all")
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one try")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    asked = parser.parse_args()
    codes = []
    for kind in KINDS if asked.kind == "all" else [asked.kind]:
        sys.stdout.flush()
        child = os.fork()  # once a process has trained, those that it forks cannot
        if child == 0:
            code = 2
            try:
                code = int(bool(_campaign(kind, asked)))
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(code)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    sys.exit(max(codes, key=abs))


def _campaign(kind: str, asked: argparse.Namespace) -> int:
    """One kind; how many tries failed."""
    began, results = time.monotonic(), []
    for result in tried(kind, asked.tries, asked.seed, asked.only):
        results.append(result)
        if result.failed or asked.verbose or asked.only is not None:
            print(f"{kind} {result.number} {result.outcome}: {result.seed}: {result.told[:300]}")
            print(f"  {result.said.strip()[-1500:]}", flush=True)
    counts = Counter(result.outcome for result in results)
    failed = sum(result.failed for result in results)
    values = {
        "kind": kind, "tries": len(results), "seed": asked.seed, "outcomes": dict(counts),
        "failed": failed, "formats": len({result.seed for result in results}),
        "longest seconds": max(result.seconds for result in results),
        "most MiB": max(result.mebibytes for result in results),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "command": f"python tests/faults/hostile.py --kind {kind} --tries {len(results)} --seed {asked.seed}",
    }  # fmt: skip
    if asked.record:
        from record import record

        record("reliability", {"what": "hostile input", **values})
    else:
        print(json.dumps(values))
    return failed


if __name__ == "__main__":
    import conftest  # noqa: F401  # quiet libraries, one thread

    with contextlib.suppress(KeyboardInterrupt):
        main()
