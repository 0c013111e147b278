"""What needs a GPU: `make gpu`, which fails where there is none."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import quick

from distilkit import plan
from distilkit.config import Train
from distilkit.distill import distill, prepare, train
from distilkit.runs import Run

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _gpu() -> None:
    assert torch.cuda.is_available(), "make gpu needs a GPU"


def losses(speech: Path, teacher: Path, out: Path, *changes: str) -> list[float]:
    recipe = quick("train.device=cuda", "student.dropout=0", *changes)
    distill([speech], teacher=str(teacher), out=out, recipe=recipe)
    return [row["loss"] for row in Run(out).rows("metrics.jsonl")]


def test_the_gpu_is_found_and_its_precision_has_a_reason() -> None:
    assert plan.device(Train())[0] == "cuda"
    chosen, reason = plan.precision(Train(), "cuda")
    assert chosen in ("bf16", "fp16")
    assert reason


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.02), ("fp16", 0.02)]
)
def test_the_gpu_follows_the_cpu(
    speech: Path, teacher_folder: Path, tmp_path: Path, precision: str, tolerance: float
) -> None:
    wanted = losses(speech, teacher_folder, tmp_path / "cpu", "train.device=cpu")
    got = losses(speech, teacher_folder, tmp_path / "gpu", f"train.precision={precision}")
    assert got == pytest.approx(wanted, rel=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("way", [{"products": True}, {"compiled": True}])
def test_every_way_of_computing_gives_the_same(
    speech: Path, teacher_folder: Path, tmp_path: Path, way: dict[str, bool], precision: str
) -> None:
    found = []
    for name, changes in (("plain", dict.fromkeys(way, False)), ("other", way)):
        recipe = quick(
            "train.device=cuda", "student.dropout=0", "targets.store=none", f"train.precision={precision}"
        )  # fmt: skip
        job = prepare([speech], teacher=str(teacher_folder), out=tmp_path / name, recipe=recipe)
        list(train(replace(job, plan=replace(job.plan, **changes))))
        found.append([row["loss"] for row in Run(tmp_path / name).rows("metrics.jsonl")])
    plain, other = found
    assert other == pytest.approx(plain, rel=1e-3 if precision == "fp32" else 0.02)


def test_a_plan_says_what_was_tried(speech: Path, teacher_folder: Path, tmp_path: Path) -> None:
    recipe = quick("train.device=cuda", "batches.micro_seconds=auto", "train.steps=100000000")
    job = prepare([speech], teacher=str(teacher_folder), out=tmp_path / "run", recipe=recipe)
    said = {choice.name: choice.reason for choice in job.plan.choices}
    for name in ("in memory at once", "convolutions", "compiled layers"):
        assert said[name].startswith("measured: "), said[name]


def test_resuming_on_a_gpu_goes_the_same_way(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    changes = ["train.device=cuda", "train.precision=fp16"]
    distill([speech], teacher=str(teacher_folder), out=tmp_path / "whole", recipe=quick(*changes))
    job = prepare(
        [speech], teacher=str(teacher_folder), out=tmp_path / "two", recipe=quick(*changes)
    )
    done: list[int] = []
    for step in train(job, stop=lambda: len(done) >= 2):
        done.append(step.number)
    list(train(prepare([], out=tmp_path / "two", resume=True)))
    one, two = (Run(tmp_path / name).rows("metrics.jsonl") for name in ("whole", "two"))
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-3)


def test_checkpointing_takes_less_memory(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    peaks = []
    for value in ("false", "true"):
        torch.cuda.reset_peak_memory_stats()
        losses(speech, teacher_folder, tmp_path / value, f"train.gradient_checkpointing={value}")
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < peaks[0]


@pytest.mark.parametrize("change", ["train.precision=bf16", "train.precision=fp16", "lora.rank=4"])
def test_finetuning_on_a_gpu(
    change: str, transcribed: Path, letters: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    from conftest import fine

    from distilkit import ctc

    recipe = fine("train.device=cuda", "train.gradient_checkpointing=true", change)
    options = {"tokenizer": letters, "model": str(teacher_folder), "recipe": recipe}
    job = ctc.prepare([transcribed], out=tmp_path / "run", **options)  # type: ignore[arg-type]
    steps = list(ctc.train(job))
    assert len(steps) == 6
    assert all(step.loss > 0 for step in steps)
    assert job.run.finished
