"""Kill -9 at random moments, resume, and compare with a run that nobody disturbed, byte for byte.

For each kind of work: one run to the end, whose files are what counts. Then tries, each in an empty folder: the
same command is killed, at a random time or in the midst of writing (at a place drawn from all those where the
undisturbed run changed files; half of a write is written), started again as a user would, perhaps killed again,
and let go to its end. Afterwards the same files must be there, with the same bytes, and no others: in the
folder that it ran in, in the cache, and in the system's folder for temporary files. After every kill the newest
checkpoint is loaded. No process may be left.

python tests/faults/kills.py [--kind NAME ...] [--kills 50] [--seed 0] [--record]
"""

import argparse
import gzip
import hashlib
import importlib
import json
import os
import pkgutil
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
sys.path[:0] = [str(Path(__file__).parents[1] / "benchmarks"), str(Path(__file__).parents[1])]

from writes import Place, Watch  # noqa: E402

Arguments = list[str]
MOST_SECONDS = 300.0  # that a command may take
LEFT_SECONDS = 15.0  # after which no process of a killed command may be left
MOST_TRIES = 3  # for each kill that is asked for: a try may come to its end before it is killed
REPORTS = ("report.html", "report.json")  # hold times, and are made again by `distilkit report`
CLOCKS = ("speed.jsonl", ".lock", *REPORTS)  # files that tell of time, or of the process
REFUSALS = re.compile(r"is finished|exists|already|is there")  # where all is done


def sets(*changes: str) -> Arguments:
    return [word for change in changes for word in ("--set", change)]


TRAIN = sets(
    "train.precision=fp32", "train.device=cpu", "train.validate_every=5", "train.checkpoint_every=2",
    "batches.micro_seconds=6", "data.valid_fraction=0.2", "train.memory_gib=4",
)  # fmt: skip
DISTIL = [
    "distill",
    "{speech}",
    "--teacher",
    "{teacher}",
    "--recipe",
    "smoke",
    "--out",
    "run",
    *TRAIN,
]
TUNE = [
    "finetune-ctc", "{said}", "--model", "{teacher}", "--tokenizer", "{letters}", "--recipe", "ctc",
    "--out", "run", *TRAIN, *sets("train.steps=12", "batches.seconds=6"),
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A command that is killed."""

    begin: Arguments  # with the names of inputs in braces
    resume: Arguments = field(
        default_factory=list
    )  # once the run is there; the same again when empty
    every: int = 0  # optimizer steps between checkpoints; 0 where there are none
    run: str = "run"  # the folder of the run, where there is one
    most: int = 0  # kills of what takes minutes each time; 0 for as many as are asked for


KINDS = {
    "distill-live": Kind(
        begin=[*DISTIL, "--resume", *sets("train.steps=12", "batches.seconds=6", "targets.store=none")],
        resume=["distill", "--resume", "--out", "run"],
        every=2,
    ),
    "distill-stored": Kind(
        begin=[*DISTIL, "--resume", *sets("train.steps=12", "batches.seconds=6", "targets.store=fp16")],
        resume=["distill", "--resume", "--out", "run"],
        every=2,
    ),
    "distill-units": Kind(
        begin=[
            *DISTIL, "--resume", *sets("train.steps=8", "batches.seconds=6", "objective.name=units"),
            *sets("objective.layers=[6]", "objective.clusters=8"),
        ],
        resume=["distill", "--resume", "--out", "run"],
        every=2,
    ),
    "targets": Kind(
        begin=[
            *DISTIL, "--resume", *sets("train.steps=2", "batches.seconds=60", "targets.store=int8"),
            *sets("targets.folder=kept", "data.window_seconds=2", "data.valid_minutes=0.1"),
            *sets("batches.micro_seconds=2"),
        ],
        resume=["distill", "--resume", "--out", "run"],
        every=2,
    ),
    "finetune-ctc": Kind(
        begin=[*TUNE, "--resume"], resume=["finetune-ctc", "--resume", "--out", "run"], every=2
    ),
    "finetune-lora": Kind(
        begin=[*TUNE, "--resume", "--lora", "--rank", "4", "--merge"],
        resume=["finetune-ctc", "--resume", "--out", "run"],
        every=2,
    ),
    "embed-folder": Kind(begin=["embed", "{speech}", "--model", "{teacher}", "--out", "vectors"]),
    "embed-packed": Kind(
        begin=["embed", "{speech}", "--model", "{teacher}", "--out", "vectors.npz", "--format", "npz"]
    ),
    "embed-long": Kind(begin=["embed", "{long}", "--model", "{teacher}", "--layer", "all"]),
    "embed-parquet": Kind(
        begin=[
            "embed", "{speech}", "--model", "{teacher}", "--out", "vectors.parquet",
            *("--format", "parquet"),
        ]
    ),
    "units": Kind(
        begin=["units", "{speech}", "--model", "{teacher}", "--clusters", "8", "--out", "units"]
    ),
    "export": Kind(begin=["export", "{teacher}", "--data", "{few}", "--int8", "--out", "exported"]),
    "export-mobile": Kind(
        begin=["export", "{teacher}", "--mobile", "--out", "exported"], most=6
    ),
    "demo": Kind(
        begin=["demo", "--steps", "2", "--resume", "--out", "demo"],
        resume=["demo", "--resume", "--out", "demo"],
        run="demo/run",
        most=12,
    ),
    "probe": Kind(
        begin=["probe", "sid", "{said}", "--model", "{teacher}", "--workers", "0", "--out", "page.html"]
    ),
    "probe-workers": Kind(
        begin=["probe", "sid", "{said}", "--model", "{teacher}", "--workers", "2", "--out", "page.html"]
    ),
    "transcribe": Kind(begin=["transcribe", "{speech}", "--model", "{recogniser}", "--out", "texts"]),
    "transcribe-one": Kind(
        begin=[
            "transcribe", "{long}", "--model", "{recogniser}", "--lm", "{words}",
            *("--format", "srt", "--out", "texts.srt"),
        ]
    ),
    "evaluate": Kind(begin=["evaluate", "{said}", "--model", "{recogniser}", "--out", "said.csv"]),
    "lm": Kind(begin=["lm", "{said}", "--tokenizer", "{letters}", "--out", "words.arpa.gz"]),
    "layers": Kind(begin=["layers", "{few}", "--model", "{teacher}", "--out", "pictures"]),
    "report": Kind(begin=["report", "{run}", "--out", "page.html"]),
    "recipes-copy": Kind(begin=["recipes", "copy", "smoke", "mine.toml"]),
    "tokenizer": Kind(
        begin=["tokenizer", "{said}", "--kind", "unigram", "--vocab-size", "24", "--out", "tokens"]
    ),
    "plan": Kind(begin=[*DISTIL, "--plan", *sets("train.steps=12", "batches.seconds=6")]),
    "convert": Kind(begin=["convert", "{teacher}", "--out", "converted"]),
    "convert-s3prl": Kind(begin=["convert", "{run}", "--format", "s3prl", "--out", "student.ckpt"]),
}  # fmt: skip


# -------------------------------------------------------------------------------------- processes


def in_child(work: Callable[[], None], log: Path) -> int:
    """Start a function in a process of its own, the first of a group; what it prints goes to a file."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(out, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 1
    try:
        work()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


def ended(child: int, seconds: float = MOST_SECONDS) -> int | None:
    """Wait for a process: its exit status, negative for a signal; None where it is still there."""
    limit = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > limit:
            return None
        time.sleep(0.002)


def kill(child: int) -> int | None:
    os.kill(child, signal.SIGKILL)
    return ended(child)


def gone(group: int) -> bool:
    """Whether every process of a group has ended, or ends within `LEFT_SECONDS`."""
    limit = time.monotonic() + LEFT_SECONDS
    while time.monotonic() < limit:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    return False


def warm_up() -> None:
    """Import all that commands import, so that those that are forked need not; computes nothing."""
    import distilkit

    for module in pkgutil.walk_packages(distilkit.__path__, "distilkit."):
        if not module.name.endswith(("__main__", "on_device")) and ".assets" not in module.name:
            importlib.import_module(module.name)
    for name in ("av", "lhotse", "sklearn.cluster", "transformers.models.hubert.modeling_hubert"):
        importlib.import_module(name)


# ------------------------------------------------------------------------------------------ a try


def content(path: Path) -> bytes:
    """What is compared of a file: all of it but for times, of decoded copies and of timed exports, and free memory."""
    if path.name == "audio.jsonl.gz":
        return re.sub(rb'"stamp": "[^"]*"', b"", gzip.decompress(path.read_bytes()))
    if path.name == "run.json":
        return re.sub(rb'"[^"]* of audio fit in half of [^"]*"', b"", path.read_bytes())
    if path.name == "export.json":
        return re.sub(rb'milliseconds": ({[^}]*}|[\d.]+)', b"", path.read_bytes())
    if path.name == "README.md":
        return re.sub(rb"[\d.]+ ms|- Took .*", b"", path.read_bytes())
    return path.read_bytes()


class Bench:
    """A scratch folder with inputs, and the folder in which commands run."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.work, self.log = scratch / "work", scratch / "log.txt"
        self.cache, self.temporary = self.work / "cache", self.work / "tmp"
        self.inputs: dict[str, str] = {}

    def command(self, arguments: Sequence[str]) -> list[str]:
        return [word.format(**self.inputs) if word[:1] == "{" else word for word in arguments]

    def start(
        self,
        arguments: Sequence[str],
        end: tuple[Place, int] | None = None,
        any_end: int = 0,
        full: bool = False,
    ) -> int:
        """Start a command in the work folder; at a change of files it ends, or the disk is full, if asked for."""
        words, counted = self.command(arguments), self.scratch / "counted.json"
        counted.unlink(missing_ok=True)
        self.temporary.mkdir(parents=True, exist_ok=True)

        def work() -> None:
            from distilkit import cli

            os.chdir(self.work)
            os.environ |= {"DISTILKIT_CACHE": str(self.cache), "TMPDIR": str(self.temporary)}
            tempfile.tempdir = None
            sys.argv = ["distilkit", *words]
            watch = Watch(end, any_end, counted, full)
            try:
                cli.main()
            finally:
                watch.tell()

        return in_child(work, self.log)

    def counted(self) -> dict[Place, int]:
        """How often the last command came to each place where it changes files."""
        path = self.scratch / "counted.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def fresh(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)

    def files(self) -> dict[str, str]:
        """Every file and folder below the work folder, with a digest of what it holds."""
        found = {}
        for path in sorted(self.work.rglob("*")):
            if path.name in REPORTS:
                continue
            name = path.relative_to(self.work).as_posix()
            if path.is_dir() or path.name in CLOCKS:
                found[name] = ""
            else:
                found[name] = hashlib.sha256(content(path)).hexdigest()
        return found

    def said(self) -> str:
        return self.log.read_text(errors="replace").strip()


@dataclass
class Found:
    """What a campaign found."""

    tries: int = 0
    kills: int = 0
    in_writing: int = 0
    places: set[Place] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def checked(bench: Bench, kind: Kind, before: int) -> tuple[int, str]:
    """The step of the newest checkpoint that loads, and what is wrong with that.

    Args:
        bench: where.
        kind: what was killed.
        before: what this was before the kill.
    """
    told = bench.scratch / "checked.json"
    told.unlink(missing_ok=True)

    def work() -> None:
        from distilkit.runs import Run

        run = Run(bench.work / kind.run)
        saved = run.load_checkpoint() if run.exists else None
        rows = len(run.rows("metrics.jsonl")) if run.exists else 0
        told.write_text(json.dumps([int(saved[1]["step"]) if saved else 0, rows]))

    log = bench.scratch / "checked.txt"
    if ended(in_child(work, log)) != 0:
        return before, f"no checkpoint loads: {log.read_text()[-500:]}"
    step, rows = json.loads(told.read_text())
    least = max(before, (rows - 1) // kind.every * kind.every)
    return step, "" if step >= least else f"the checkpoint of step {least} is gone: {step} is there"


def again(bench: Bench, kind: Kind) -> Arguments:
    """What a user types to go on."""
    there = (bench.work / kind.run / "run.json").is_file()
    return kind.resume if kind.resume and there else kind.begin


def one(
    bench: Bench, kind: Kind, whole: dict[str, str], seconds: float,
    places: dict[Place, int], later: Counter[Place], rng: random.Random, found: Found, in_writing: bool,
) -> str:  # fmt: skip
    """One try: kills, resuming, and what is wrong in the end, if anything is."""
    bench.fresh()
    story, groups, step = list[str](), list[int](), 0
    for number in range(rng.choice((1, 2, 2, 3, 4))):
        end, any_end, wait = None, 0, rng.uniform(0.0, 0.95 * seconds)
        writing = in_writing if number == 0 else rng.random() < 0.5
        if writing:
            pool = dict(later) if number and later and rng.random() < 0.5 else places
            fresh = [place for place in pool if place not in found.places] or list(pool)
            place = rng.choice(sorted(fresh))
            end, wait = (place, rng.randint(1, pool[place])), MOST_SECONDS
        child = bench.start(again(bench, kind) if number else kind.begin, end, any_end)
        code = ended(child, wait)
        if code is None:
            code = kill(child)
        if code != -signal.SIGKILL:
            if number == 0 and code != 0:
                return f"ended with {code} before it was killed: {bench.said()[-800:]}"
            story.append("came to its end" if code == 0 else f"refused: {bench.said()[-200:]}")
            break
        found.kills += 1
        if end:
            found.in_writing += 1
            found.places.add(end[0])
        story.append(f"killed at {end[0]}, time {end[1]}" if end else f"killed after {wait:.2f} s")
        if kind.every:
            step, problem = checked(bench, kind, step)
            if problem:
                return f"{'; '.join(story)}: {problem}"
        groups.append(child)
    child = bench.start(again(bench, kind))
    code = ended(child)
    if code is None:
        kill(child)
        return f"{'; '.join(story)}: started again, it did not end within {MOST_SECONDS:g} s"
    if code == 0:
        for place, count in bench.counted().items():
            later[place] = max(later[place], count)
    elif not REFUSALS.search(bench.said()):  # all was done when it was killed
        return f"{'; '.join(story)}: started again, it ended with {code}: {bench.said()[-800:]}"
    elif kind.resume and ended(bench.start(["report", kind.run])) != 0:
        return f"{'; '.join(story)}: no report of the finished run: {bench.said()[-800:]}"
    files = bench.files()
    wrong = [f"{name} is missing" for name in whole if name not in files]
    wrong += [f"{name} is left over" for name in files if name not in whole]
    wrong += [f"{name} differs" for name in files if name in whole and files[name] != whole[name]]
    if wrong:
        return f"{'; '.join(story)}: {', '.join(wrong[:6])}"
    if not all(map(gone, groups)):
        return f"{'; '.join(story)}: a process was left"
    return ""


def campaign(bench: Bench, name: str, kills: int, seed: int, verbose: bool) -> Found:
    """Tries of a kind until there were so many kills."""
    kind, found, rng = KINDS[name], Found(), random.Random(f"{seed} {name}")
    wholes = []
    for _ in range(2):  # twice, for what differs between them is no fault of kills
        bench.fresh()
        began = time.monotonic()
        code = ended(bench.start(kind.begin))
        seconds = time.monotonic() - began
        if code != 0:
            raise SystemExit(f"{name} undisturbed ended with {code}: {bench.said()}")
        wholes.append(bench.files())
    places = bench.counted()
    differ = [path for path in wholes[0] if wholes[0][path] != wholes[1].get(path)]
    if differ or wholes[0].keys() != wholes[1].keys():
        raise SystemExit(f"{name}: two undisturbed runs differ in {differ or 'their files'}")
    print(
        f"{name}: {seconds:.1f} s undisturbed, {sum(places.values())} changes at {len(places)} places"
    )
    later: Counter[Place] = Counter()
    while found.kills < kills and found.tries < MOST_TRIES * kills:
        writing = found.tries % 2 == 0
        problem = one(bench, kind, wholes[0], seconds, places, later, rng, found, writing)
        if problem:
            found.problems.append(problem)
            print(f"{name} {found.tries}: {problem}", flush=True)
        elif verbose:
            print(f"{name} {found.tries}: as it should be", flush=True)
        found.tries += 1
    if found.kills < kills:
        raise SystemExit(f"{name}: {found.tries} tries gave {found.kills} kills only")
    known = len(places.keys() | later.keys())
    print(
        f"{name}: {found.tries} tries, {found.kills} kills, {found.in_writing} in writing at "
        f"{len(found.places)} of {known} places, {len(found.problems)} failures",
        flush=True,
    )
    return found


# ----------------------------------------------------------------------------------------- inputs


def make_inputs(folder: Path) -> dict[str, str]:
    """Recordings, a teacher, a tokenizer and a recogniser, made in a process of their own."""
    log = folder / "inputs.txt"
    folder.mkdir(parents=True, exist_ok=True)

    def work() -> None:
        import conftest
        import numpy as np
        import soundfile

        from distilkit import cli
        from distilkit.encoder import Encoder, exact
        from distilkit.students import save

        save(
            Encoder(model=exact(conftest.make_model()), normalise=False),
            folder / "teacher",
            "# t\n",
        )
        for index in range(14):
            rate, suffix = ((16_000, "wav"), (22_050, "flac"), (16_000, "flac"), (8_000, "wav"))[
                index % 4
            ]
            seconds = 34.0 if index == 5 else 0.6 + 0.25 * index
            for place in ("speech", "few")[: 1 + (index in (2, 3))]:
                path = folder / place / f"{'ab'[index % 2]}/clip{index:02d}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, conftest.voice(seconds, index, rate), rate, "PCM_16")
        soundfile.write(folder / "long.wav", np.tile(conftest.voice(45.0, 99), 3), 16_000, "PCM_16")
        said = folder / "said"
        said.mkdir()
        rows = ["file_name,transcription,speaker"]
        for index in range(16):
            path = said / f"clip{index:02d}.flac"
            soundfile.write(path, conftest.voice(1.2 + 0.1 * index, index), 16_000, "PCM_16")
            rows.append(f'{path.name},"{conftest.SAYINGS[index % 4]}",who{index // 4}')
        (said / "metadata.csv").write_text("\n".join(rows) + "\n")
        for words in (
            ["tokenizer", str(said), "--out", str(folder / "letters")],
            ["finetune-ctc", str(said), "--tokenizer", str(folder / "letters"), "--recipe", "ctc",
             "--model", str(folder / "teacher"), "--out", str(folder / "recogniser"), *TRAIN,
             *sets("train.steps=2", "batches.seconds=6")],
            ["distill", str(folder / "speech"), "--teacher", str(folder / "teacher"), "--recipe",
             "smoke", "--out", str(folder / "run"), *TRAIN,
             *sets("train.steps=2", "batches.seconds=6")],
            ["lm", str(said), "--tokenizer", str(folder / "letters"), "--out", str(folder / "words")],
        ):  # fmt: skip
            sys.argv = ["distilkit", *words]
            try:
                cli.main()
            except SystemExit as end:
                if end.code:
                    raise

    if ended(in_child(work, log)) != 0:
        raise SystemExit(f"inputs could not be made: {log.read_text()}")
    names = ("speech", "few", "said", "teacher", "letters", "recogniser", "run", "words")
    return {name: str(folder / name) for name in names} | {"long": str(folder / "long.wav")}


def main() -> None:
    """Run campaigns, one after the other; exit status 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS), metavar="NAME")
    parser.add_argument("--kills", type=int, default=50, help="at least so many of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, help="an empty folder to work in, kept")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--record", action="store_true", help="append to docs/benchmarks/results")
    asked = parser.parse_args()
    warm_up()
    failed = False
    with tempfile.TemporaryDirectory() as name:
        scratch = (asked.scratch or Path(name)).resolve()
        bench = Bench(scratch)
        bench.inputs = make_inputs(scratch / "inputs")
        for kind in asked.kind:
            began = time.monotonic()
            kills = min(asked.kills, KINDS[kind].most or asked.kills)
            found = campaign(bench, kind, kills, asked.seed, asked.verbose)
            failed |= bool(found.problems)
            row = {
                "kind": kind,
                "tries": found.tries,
                "kills": found.kills,
                "in_writing": found.in_writing,
                "places": len(found.places),
                "seed": asked.seed,
                "failures": len(found.problems),
                "command": f"python tests/faults/kills.py --kind {kind} --kills {kills} --seed {asked.seed}",
                "seconds": round(time.monotonic() - began),
            }
            if asked.record:
                from record import record

                record("reliability", {"what": "kills", **row})
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
