"""The loop: gradients do not depend on the split, resuming is exact, numbers must be finite."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import make_model, quick, voice

from distilkit import config, loop
from distilkit.batches import Batch
from distilkit.distill import Distiller, build, objective
from distilkit.encoder import Encoder, exact, frame_mask
from distilkit.errors import DistilkitError
from distilkit.objectives import Loss
from distilkit.runs import Run
from distilkit.targets import LiveTargets

SIZES = (5_000, 16_000, 9_000, 12_345, 8_000, 16_000, 7_777, 400)


def batch(indices: list[int]) -> Batch:
    clips = [torch.from_numpy(voice(SIZES[i] / 16_000 + 1e-6, i)[: SIZES[i]]) for i in indices]
    return Batch(
        ids=tuple(map(str, indices)),
        wave_BS=torch.nn.utils.rnn.pad_sequence(clips, batch_first=True),
        lengths=tuple(len(clip) for clip in clips),
    )


class Setting:
    """A teacher, a student, and what the loop needs of them."""

    def __init__(self, *changes: str) -> None:
        self.recipe = quick(*changes)
        teacher = Encoder(model=exact(make_model()), normalise=False)
        torch.manual_seed(1)
        student, heads = build(teacher, self.recipe)
        self.accelerator = loop.accelerator("cpu", "fp32")
        self.distiller = Distiller(student, heads)
        self.module, self.optimizer = self.accelerator.prepare(
            self.distiller, loop.optimizer(self.distiller, self.recipe.train)
        )
        self.teach = LiveTargets(teacher, self.recipe.objective.layers)

    def loss_of(self, module: torch.nn.Module, batch: Batch) -> Loss:
        target = self.teach(batch.wave_BS, batch.lengths)
        predicted = module(batch.wave_BS, batch.lengths)
        mask = frame_mask(batch.lengths, predicted[0].shape[1], batch.wave_BS.device)
        return objective(self.recipe.objective, predicted, target, mask)

    def fit(self, batches: Iterator[list[Batch]], start: int, steps: int) -> Iterator[loop.Step]:
        return loop.fit(
            self.accelerator, self.module, self.optimizer, batches, self.loss_of,
            self.recipe.train, start=start, steps=steps,
        )  # fmt: skip


@pytest.mark.parametrize("split", [[1] * 8, [4, 4], [5, 3], [7, 1]])
def test_gradients_do_not_depend_on_the_split(split: list[int]) -> None:
    """One micro-batch of 8 and 8 of 1, of unequal lengths: the same gradients, not only losses."""
    indices, results = list(range(8)), []
    for sizes in ([8], split):
        setting = Setting("student.dropout=0", "train.clip_norm=1e9")
        gradients: list[torch.Tensor] = []
        step = setting.optimizer.step

        def keep(
            setting: Setting = setting,
            gradients: list[torch.Tensor] = gradients,
            step: object = step,
        ) -> None:
            gradients += [
                p.grad.clone() for p in setting.distiller.parameters() if p.grad is not None
            ]

        setting.optimizer.step = keep
        groups = [indices[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
        (result,) = setting.fit(iter([[batch(group) for group in groups]]), 0, 1)
        results.append((result, torch.cat([g.flatten() for g in gradients])))
    (one, whole), (many, parts) = results
    assert (whole - parts).norm() / whole.norm() < 1e-5
    assert many.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
    assert many.loss == pytest.approx(one.loss, rel=1e-6)
    assert many.parts == pytest.approx(one.parts, rel=1e-5)


def steps_of(setting: Setting, start: int, steps: int) -> list[loop.Step]:
    batches = ([batch([n % 8]), batch([(n + 3) % 8])] for n in itertools.count(start))
    return list(setting.fit(batches, start, steps))


def test_resuming_is_exact_to_the_bit(tmp_path: Path) -> None:
    """With dropout, through a checkpoint on disk, into a fresh process's worth of objects."""
    whole = Setting()
    wanted = steps_of(whole, 0, 7)
    first = Setting()
    batches = ([batch([n % 8]), batch([(n + 3) % 8])] for n in itertools.count())
    begun = list(itertools.islice(first.fit(batches, 0, 7), 4))
    run = Run(tmp_path / "run")
    run.create({"run.json": "{}"})
    run.save_checkpoint(4, *loop.state(first.accelerator, first.module, first.optimizer))
    second = Setting()
    saved = run.load_checkpoint()
    assert saved is not None
    loop.restore(second.accelerator, second.module, second.optimizer, *saved)
    ended = steps_of(second, int(saved[1]["step"]), 7)

    def facts(step: loop.Step) -> tuple[object, ...]:
        return step.number, step.loss, step.parts, step.grad_norm, step.learning_rate

    assert [facts(step) for step in begun + ended] == [facts(step) for step in wanted]
    for one, two in zip(whole.distiller.parameters(), second.distiller.parameters(), strict=True):
        assert torch.equal(one, two)


def test_dropout_is_on_and_follows_the_step_number() -> None:
    same = [Setting() for _ in range(2)]
    losses = [next(s.fit(iter([[batch([1])]]), 0, 5)).loss for s in same]
    later = next(Setting().fit(iter([[batch([1])]]), 1, 5)).loss
    without = next(Setting("student.dropout=0").fit(iter([[batch([1])]]), 0, 5)).loss
    assert losses[0] == losses[1]
    assert losses[0] != later
    assert losses[0] != without


def test_the_schedule_of_the_learning_rate() -> None:
    train = config.Train(learning_rate=1.0, warmup_fraction=0.2)
    rates = [loop.learning_rate(n, 10, train) for n in range(1, 11)]
    assert rates == pytest.approx([0.5, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0.0])


def test_a_loss_that_is_not_finite_names_step_and_clips() -> None:
    setting = Setting()
    bad = batch([1, 2])
    bad.wave_BS[0, 100] = float("nan")
    with pytest.raises(DistilkitError, match="step 2: the loss is nan.*`1`, `2`"):
        list(setting.fit(iter([[batch([3])], [bad]]), 0, 4))


def test_what_is_frozen_stays() -> None:
    setting = Setting()
    before = {name: p.clone() for name, p in setting.distiller.named_parameters()}
    steps_of(setting, 0, 2)
    moved = {n for n, p in setting.distiller.named_parameters() if not torch.equal(p, before[n])}
    assert set(before) - moved == {"model.masked_spec_embed"}
