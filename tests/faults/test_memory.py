"""Memory that is taken away from a training process: however it ends, the run goes on to the same losses."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from conftest import quick, voice

from distilkit.distill import prepare, train
from distilkit.runs import Run

ROOM = 35  # MiB more than the process has when it begins to train; these steps take some 70
TIGHT = """
import resource, sys
from pathlib import Path
from distilkit.distill import prepare, train
from distilkit.errors import DistilkitError

job = prepare([], out=Path(sys.argv[1]), resume=True)
taken = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize:"))
most = (taken << 10) + (int(sys.argv[2]) << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    lowered = [step.lowered for step in train(job) if step.lowered]
except DistilkitError as error:
    sys.exit(error.problem)
print("lowered" if lowered else "not lowered")
"""


@pytest.mark.slow
def test_a_process_without_memory(teacher_folder: Path, tmp_path: Path) -> None:
    """Where an allocation fails, less is held at once; some libraries crash instead, as torch's backward pass does."""
    audio, out, whole = tmp_path / "audio", tmp_path / "run", tmp_path / "whole"
    audio.mkdir()
    for index in range(4):
        soundfile.write(audio / f"{index}.wav", voice(15.0, index), 16_000, "PCM_16")
    recipe = quick(
        "batches.seconds=60", "batches.micro_seconds=60", "data.valid_fraction=0.0", "train.steps=2",
        "train.checkpoint_every=1", "targets.store=none", "student.dropout=0.0",
    )  # fmt: skip
    steps = train(
        prepare([audio], teacher=str(teacher_folder), out=out, recipe=recipe), lambda: True
    )
    assert [step.number for step in steps] == [1]
    shutil.copytree(out, whole)
    list(train(prepare([], out=whole, resume=True)))
    done = subprocess.run(
        [sys.executable, "-c", TIGHT, str(out), str(ROOM)], capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert "not lowered" not in said, "there was memory enough: this test shows nothing"
    if done.returncode == 1:
        assert "memory" in done.stderr.splitlines()[-1], said
    else:
        assert done.returncode in (0, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGKILL), said
    if not Run(out).finished:
        list(train(prepare([], out=out, resume=True)))
    losses = [[row["loss"] for row in Run(place).rows("metrics.jsonl")] for place in (out, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[0]) == 2
