"""Killed at any moment and resumed, a run ends as if nothing had happened: byte for byte."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLS = 10
STEPS = 60
OPTIONS = [
    "--set", "train.precision=fp32", "--set", "train.device=cpu",
    "--set", f"train.steps={STEPS}", "--set", "train.validate_every=7",
    "--set", "train.checkpoint_every=3", "--set", "batches.seconds=3",
    "--set", "data.valid_fraction=0.2",
]  # fmt: skip
COMPARED = {
    "distill": (
        "metrics.jsonl", "heads.safetensors", "student/model.safetensors", "student/README.md",
    ),
    "finetune-ctc": (
        "metrics.jsonl", "best.safetensors", "model/model.safetensors", "model/README.md", "model/vocab.json",
    ),
}  # fmt: skip
RESULT = {"distill": "student", "finetune-ctc": "model"}


@pytest.fixture(params=COMPARED)
def fresh(
    request: pytest.FixtureRequest,
    speech: Path,
    transcribed: Path,
    teacher_folder: Path,
    letters: Path,
) -> tuple[str, list[str]]:
    """A command, and the arguments of a new run but for --out."""
    if request.param == "distill":
        return "distill", [
            str(speech),
            "--teacher",
            str(teacher_folder),
            "--recipe",
            "smoke",
            *OPTIONS,
        ]
    tuned = ["--tokenizer", str(letters), "--model", str(teacher_folder)]
    return "finetune-ctc", [str(transcribed), *tuned, "--recipe", "ctc", *OPTIONS]


def timeless(file: Path) -> bytes:
    """A file's content, of a card without its line that holds a clock."""
    return re.sub(rb"^- Took .*$", b"", file.read_bytes(), flags=re.MULTILINE)


def start(command: str, arguments: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "distilkit", command, *arguments]
    return subprocess.Popen(
        line, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.mark.slow
def test_killed_ten_times_and_resumed(fresh: tuple[str, list[str]], tmp_path: Path) -> None:
    command, arguments = fresh
    begin = [*arguments, "--out"]
    whole = start(command, [*begin, str(tmp_path / "whole")])
    _, log = whole.communicate(timeout=300)
    assert whole.returncode == 0, log
    broken = tmp_path / "broken"
    again = ["--resume", "--out", str(broken)]
    rng, reached = random.Random(0), []
    for kill in range(KILLS):
        # Before the run folder is there, resuming needs the audio again, and simply begins.
        has_run = (broken / "run.json").is_file()
        process = start(
            command, again if has_run else [*begin, str(broken), *(["--resume"] if kill else [])]
        )
        before, limit = lines(broken), time.monotonic() + 120
        if kill % 5 == 0:
            limit = time.monotonic() + rng.uniform(
                0.2, 6.0
            )  # anywhere: imports, reading audio, loading
        # A fast machine must not come to the end between two kills.
        further = before + rng.randint(1, STEPS // (KILLS + 4))
        while lines(broken) < further and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        reached.append(lines(broken))
        assert lines(broken) < STEPS, "finished before the last kill; give the run more steps"
    last = start(command, again if (broken / "run.json").is_file() else [*begin, str(broken)])
    _, log = last.communicate(timeout=300)
    assert last.returncode == 0, log
    assert max(reached) > 3, "no kill fell into training"
    for name in COMPARED[command]:
        assert timeless(broken / name) == timeless(tmp_path / "whole" / name), name
    left = [path.name for path in broken.rglob(".*") if path.name != ".lock"]
    assert left == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_exits_130(
    fresh: tuple[str, list[str]], tmp_path: Path, number: signal.Signals
) -> None:
    command, arguments = fresh
    out = tmp_path / "run"
    options = ["--set", "train.checkpoint_every=1000", "--out", str(out)]
    process = start(command, [*arguments, *options])
    limit = time.monotonic() + 120
    while lines(out) < 2 and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(number)
    output, log = process.communicate(timeout=60)
    assert process.returncode == 130, log
    assert output == ""
    done = lines(out)
    assert f"saved after step {done} of {STEPS}" in log
    assert f"distilkit {command} --resume --out {out}" in log
    assert (out / "checkpoints" / f"step-{done:08d}").is_dir()
    process = start(command, ["--resume", "--out", str(out)])
    output, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    assert output == f"{out}/{RESULT[command]}\n"
    assert lines(out) == STEPS
