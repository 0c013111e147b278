"""fp16 on a CPU, as far as torch goes there: accelerate takes it on GPUs only, and so does `train.precision`.

The losses and gradients are those of torch's autocast and loss scaling, which are the same code on both.
"""

import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import make_model, quick

from distilkit import config, loop
from distilkit.batches import Batch
from distilkit.distill import distill
from distilkit.encoder import Encoder, exact
from distilkit.objectives import Loss
from distilkit.runs import Run
from distilkit.students import save

FULL = torch.finfo(torch.float16).max  # 65,504


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs train in fp16 with loss scaling, whatever their recipe says."""
    real = loop.accelerator

    def made(device: str, precision: object) -> Accelerator:
        found = real("cpu", "fp32")
        found.state._mixed_precision, found.native_amp = "fp16", True
        found.scaler = torch.amp.GradScaler("cpu")
        return found

    monkeypatch.setattr(loop, "accelerator", made)


def loud(folder: Path, scale: float) -> Path:
    """A teacher whose layers from the third on give numbers of that size, as those of data2vec and others do."""
    model = make_model()
    with torch.no_grad():
        for layer in model.encoder.layers[2:]:
            layer.final_layer_norm.weight.mul_(scale)
            layer.final_layer_norm.bias.mul_(scale)
    save(Encoder(model=exact(model), normalise=False), folder, "# loud\n")
    return folder


@pytest.mark.parametrize("normalise", ["true", "false"])
def test_a_teacher_beyond_what_fp16_holds_trains(
    half: None, speech: Path, tmp_path: Path, normalise: str
) -> None:
    teacher, out = loud(tmp_path / "teacher", 1e6), tmp_path / "run"
    recipe = quick(
        "train.steps=10", "train.learning_rate=5e-3", "batches.seconds=1", "data.valid_fraction=0.0", "targets.store=none", f"objective.normalise={normalise}",
        "train.warmup_fraction=0.0", "student.dropout=0.0",
    )  # fmt: skip
    clips = [speech / "a/clip00.flac", speech / "b/clip01.wav"]  # fp16 is slow on a CPU
    distill(clips, teacher=str(teacher), out=out, recipe=recipe)
    rows = Run(out).rows("metrics.jsonl")
    assert len(rows) == 10
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert not any(row.get("broken") for row in rows)
    assert sum(row.get("updated", True) for row in rows) > 5
    cosines = [row["cosine_12"] for row in rows]
    assert cosines[-1] < cosines[0]
    if normalise == "false":
        assert rows[0]["l1_12"] > FULL, "the teacher is not beyond fp16: this test shows nothing"


def test_a_loss_that_is_not_finite_changes_nothing(half: None) -> None:
    """Of an L1 distance to what is infinite the gradient is not: the scaler alone would take the step."""
    module = torch.nn.Linear(2, 2)
    before = module.weight.detach().clone()
    accelerator = loop.accelerator("cpu", "fp16")
    settings = config.load_recipe("paper").train
    module, optimizer = accelerator.prepare(module, loop.optimizer(module, settings))

    def loss_of(module: torch.nn.Module, batch: Batch) -> Loss:
        return Loss(total=(module(torch.ones(1, 2)) - torch.inf).abs().sum(), parts={})

    clip = Batch(ids=("a",), wave_BS=torch.zeros(1, 800), lengths=(800,))
    step = next(
        loop.fit(
            accelerator, module, optimizer, iter([[clip]]), loss_of, settings, start=0, steps=2
        )
    )
    assert not step.updated
    assert step.broken
    assert torch.equal(accelerator.unwrap_model(module).weight, before)


def test_a_step_that_overflows_is_left_out_and_noticed(half: None) -> None:
    module = torch.nn.Linear(2, 2)
    before = module.weight.detach().clone()
    accelerator = loop.accelerator("cpu", "fp16")
    settings = config.load_recipe("paper").train
    optimizer = accelerator.prepare_optimizer(loop.optimizer(module, settings))
    for broken in (True, False):
        accelerator.scaler.scale(module(torch.ones(1, 2)).sum()).backward()
        if broken:
            module.weight.grad.fill_(torch.inf)
        optimizer.step()
        optimizer.zero_grad()
        assert optimizer.step_was_skipped is broken
        assert torch.equal(module.weight, before) is broken
