"""fp16 on a CPU, as far as torch goes there: accelerate takes it on GPUs only, and so does `train.precision`.

The losses and gradients are those of torch's autocast and loss scaling, which are the same code on both.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import make_model, quick
from torch import Tensor

from distilkit import config, loop
from distilkit.batches import Batch
from distilkit.distill import distill
from distilkit.encoder import Encoder, exact
from distilkit.errors import DistilkitError
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


class Odd:
    """A layer whose loss or gradient is not finite in some steps, in fp16."""

    def __init__(self, wrong: Callable[[int], bool], loss: Callable[[Tensor], Tensor]) -> None:
        self.accelerator = loop.accelerator("cpu", "fp16")
        self.settings = config.load_recipe("paper").train
        torch.manual_seed(0)
        self.bare = torch.nn.Linear(2, 2)
        self.module, self.optimizer = self.accelerator.prepare(
            self.bare, loop.optimizer(self.bare, self.settings)
        )
        self.wrong, self.loss = wrong, loss

    def loss_of(self, module: torch.nn.Module, batch: Batch) -> Loss:
        said = module(torch.ones(1, 2)).square().sum()
        return Loss(total=self.loss(said) if self.wrong(int(batch.ids[0])) else said, parts={})

    def fit(self, start: int, steps: int) -> Iterator[loop.Step]:
        clips = (
            [Batch(ids=(str(number),), wave_BS=torch.zeros(1, 800), lengths=(800,))]
            for number in itertools.count(start + 1)
        )
        return loop.fit(
            self.accelerator, self.module, self.optimizer, clips, self.loss_of, self.settings,
            start=start, steps=steps,
        )  # fmt: skip


def endless(said: Tensor) -> Tensor:
    """An L1 distance to what is infinite: the gradient is finite, and the scaler alone would take the step."""
    return (said - torch.inf).abs()


def steep(said: Tensor) -> Tensor:
    """A loss that is finite and whose gradient is not, which in fp16 may be an overflow."""
    return (said - said.detach()).sqrt()


def test_a_loss_that_is_not_finite_changes_nothing(half: None) -> None:
    """Nor the loss scale, which did not do it."""
    odd = Odd(lambda number: number in (1, 3, 4), endless)
    before = odd.bare.weight.detach().clone()
    fit = odd.fit(0, 2_000)
    step = next(fit)
    assert not step.updated
    assert step.broken.startswith("the loss is inf")
    assert torch.equal(odd.bare.weight, before)
    assert odd.accelerator.scaler.get_scale() == 2.0**16
    assert [step.updated for step in itertools.islice(fit, 4)] == [True, False, False, True]
    assert not torch.equal(odd.bare.weight, before)
    assert odd.accelerator.scaler.get_scale() == 2.0**16


def test_losses_that_are_not_finite_end_a_run_in_fp16_too(half: None) -> None:
    odd = Odd(lambda number: number % 2 == 0, endless)
    with pytest.raises(DistilkitError, match="step 22: 11 of the last 22 steps .* clips `22`"):
        list(odd.fit(0, 1_000))


@pytest.mark.parametrize("every", [1, 2, 12])
def test_overflows_without_end_are_an_error(half: None, every: int) -> None:
    """In a row or not; resumed, at the same step. The loss scale is the count."""
    odd = Odd(lambda number: number % every == 0, steep)
    last = 21 * every
    with pytest.raises(DistilkitError, match=f"step {last}: fp16 overflows, .* to 0.03125; clips"):
        list(odd.fit(0, 1_000))
    stopped, again = (Odd(odd.wrong, steep) for _ in range(2))
    begun = list(itertools.islice(stopped.fit(0, 1_000), 15 * every))
    assert sum(not step.updated and not step.broken for step in begun) == 15
    saved = loop.state(stopped.accelerator, stopped.module, stopped.optimizer)
    loop.restore(again.accelerator, again.module, again.optimizer, *saved)
    with pytest.raises(DistilkitError, match=f"step {last}: fp16 overflows"):
        list(again.fit(15 * every, 1_000))


def test_a_loss_scale_may_settle(half: None) -> None:
    odd = Odd(lambda number: number <= 20, steep)
    steps = list(odd.fit(0, 60))
    assert [step.updated for step in steps] == [False] * 20 + [True] * 40
    assert odd.accelerator.scaler.get_scale() == loop.MIN_SCALE


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
