"""Two processes under torchrun: the run of one, shared."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distilkit.distill import distill
from distilkit.runs import Run


@pytest.mark.slow
def test_two_processes_train_as_one(speech: Path, teacher_folder: Path, tmp_path: Path) -> None:
    """Without dropout both runs see the same windows a step, so they must take the same way."""
    from conftest import quick

    changes = ["student.dropout=0", "train.steps=4", "train.validate_every=2"]
    distill([speech], teacher=str(teacher_folder), out=tmp_path / "one", recipe=quick(*changes))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text((tmp_path / "one" / "recipe.toml").read_text())
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        "29517",
    ]
    command += ["-m", "distilkit", "distill", str(speech), "--teacher", str(teacher_folder)]
    command += ["--recipe", str(recipe), "--out", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/two/student\n"
    one, two = (Run(tmp_path / name).rows("metrics.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        assert b["audio_seconds"] == pytest.approx(a["audio_seconds"])
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
    assert two[-1]["valid"]["loss"] == pytest.approx(one[-1]["valid"]["loss"], abs=1e-4)
    assert (
        json.loads((tmp_path / "two" / "student" / "config.json").read_text())["num_hidden_layers"]
        == 2
    )
