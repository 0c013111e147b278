"""Nothing depends on the clock of the wall: where it is set back in mid-run, the result is what it was."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from conftest import make_model, quick

from distilkit.distill import distill, prepare, train
from distilkit.embed import embed
from distilkit.encoder import Encoder, exact
from distilkit.runs import Run

AHEAD = 4e9  # a time that is yet to come


def set_back(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """From here on the clock goes back an hour each time that it is asked; what it said."""
    said, told = [2e9], time.strftime

    def earlier() -> float:
        said.append(said[-1] - 3600.0)
        return said[-1]

    def written(form: str, at: time.struct_time | None = None) -> str:
        return told(form, at or time.gmtime(earlier()))

    monkeypatch.setattr(time, "time", earlier)
    monkeypatch.setattr(time, "time_ns", lambda: int(earlier() * 1e9))
    monkeypatch.setattr(time, "strftime", written)
    return said


def from_the_future(folder: Path) -> None:
    """What is there was written while the clock was ahead, the first file last."""
    for later, path in enumerate(sorted(folder.rglob("*"), reverse=True)):
        os.utime(path, (AHEAD + later, AHEAD + later))


def test_a_run_and_its_resumption(
    speech: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"teacher": str(teacher_folder), "recipe": quick("targets.store=fp16")}
    whole = distill([speech], out=tmp_path / "whole", **options).parent
    said, out, done = set_back(monkeypatch), tmp_path / "broken", list[int]()
    for step in train(prepare([speech], out=out, **options), lambda: len(done) == 4):
        done.append(step.number)
    assert [path.name for path in sorted((out / "checkpoints").iterdir())][-1] == "step-00000005"
    gone = subprocess.Popen(["true"])
    gone.wait()
    (out / ".lock").write_text(f"process {gone.pid} on here, since 2099-01-01 00:00\n")
    from_the_future(out)
    rest = [step.number for step in train(prepare([], out=out, resume=True))]
    assert rest == [6], "the newest checkpoint is the one of the last step, whatever its time"
    for name in ("metrics.jsonl", "student/model.safetensors", "heads.safetensors"):
        assert (whole / name).read_bytes() == (out / name).read_bytes(), name
    assert Run(out).finished
    assert len(said) > 1, "the clock was never asked: this test shows nothing"


def test_embeddings_that_were_there_are_kept(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_back(monkeypatch)
    encoder, out = Encoder(model=exact(make_model()), normalise=False), tmp_path / "out"
    done, _, _ = embed([speech], encoder, out=out)
    before = {path: path.read_bytes() for path in sorted(out.rglob("*.npy"))}
    assert len(before) == len(done) == 12
    first = next(iter(before))
    first.unlink()
    from_the_future(out)
    embed([speech], encoder, out=out)
    assert {path: path.read_bytes() for path in sorted(out.rglob("*.npy"))} == before
    assert [path for path in before if path.stat().st_mtime < AHEAD] == [first]
