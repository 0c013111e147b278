"""The loop: gradients do not depend on the split, resuming is exact, numbers must be finite."""

import itertools
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_model, quick, voice

from distilkit import config, loop, plan
from distilkit.assembly import build, loss_function
from distilkit.batches import Batch, load
from distilkit.cli import console, course
from distilkit.data import collect
from distilkit.encoder import Encoder, exact
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

    def __init__(self, *changes: str, **shape: object) -> None:
        self.recipe = quick(*changes)
        teacher = Encoder(model=exact(make_model(**shape)), normalise=False)
        torch.manual_seed(1)
        self.distiller, _ = build(teacher, self.recipe)
        self.accelerator = loop.accelerator("cpu", "fp32")
        self.module, self.optimizer = self.accelerator.prepare(
            self.distiller, loop.optimizer(self.distiller, self.recipe.train)
        )
        teach = LiveTargets(teacher, self.recipe.objective.layers)
        cpu = torch.device("cpu")
        self.loss_of = loss_function(self.recipe, teach, lambda _: None, cpu)

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
    assert [one.audio_seconds, many.audio_seconds] == pytest.approx([sum(SIZES) / 16_000] * 2)


def steps_of(setting: Setting, start: int, steps: int) -> list[loop.Step]:
    batches = ([batch([n % 8]), batch([(n + 3) % 8])] for n in itertools.count(start))
    return list(setting.fit(batches, start, steps))


@pytest.mark.parametrize("shape", [{}, {"conv_pos_batch_norm": True}])
def test_resuming_is_exact_to_the_bit(tmp_path: Path, shape: dict[str, object]) -> None:
    """With dropout, through a checkpoint on disk, into a fresh process's worth of objects."""
    whole = Setting(**shape)
    wanted = steps_of(whole, 0, 7)
    first = Setting(**shape)
    batches = ([batch([n % 8]), batch([(n + 3) % 8])] for n in itertools.count())
    begun = list(itertools.islice(first.fit(batches, 0, 7), 4))
    run = Run(tmp_path / "run")
    run.create({"run.json": "{}"})
    run.save_checkpoint(4, *loop.state(first.accelerator, first.module, first.optimizer))
    second = Setting(**shape)
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


def test_everything_random_follows_from_seed_step_and_process() -> None:
    def drawn(*place: int) -> tuple[float, ...]:
        loop.seed_step(*place)
        return float(torch.rand(())), float(np.random.rand()), random.random()

    here = drawn(3, 7, 1)
    assert drawn(3, 7, 1) == here
    for other in ((4, 7, 1), (3, 8, 1), (3, 7, 0)):
        assert all(a != b for a, b in zip(drawn(*other), here, strict=True)), other


def test_gradients_are_clipped_after_their_norm_is_taken() -> None:
    setting = Setting("train.clip_norm=0.01")
    norms: list[float] = []
    step = setting.optimizer.step

    def watching() -> None:
        gradients = [p.grad.norm() for p in setting.distiller.parameters() if p.grad is not None]
        norms.append(float(torch.stack(gradients).norm()))
        step()

    setting.optimizer.step = watching
    (result,) = setting.fit(iter([[batch([1])]]), 0, 1)
    assert norms == pytest.approx([0.01], rel=1e-3)
    assert result.grad_norm > 0.1


@pytest.mark.parametrize("micro_seconds", [1.0, 8.0])
def test_validation_is_the_mean_over_all_frames_without_dropout(
    speech: Path, micro_seconds: float
) -> None:
    setting = Setting()
    windows = collect([speech], config.Data(valid_fraction=0.0)).train[:5]
    got = loop.validate(
        setting.accelerator, setting.module, windows, setting.loss_of, micro_seconds
    )
    assert setting.module.training
    setting.module.eval()
    with torch.no_grad():
        alone = [load([window]) for window in windows]
        losses = [setting.loss_of(setting.module, one) for one in alone]
    frames = sum(one.frames for one in alone)
    assert got["loss"] == pytest.approx(float(sum(loss.total for loss in losses)) / frames)
    for name in losses[0].parts:
        wanted = float(sum(loss.parts[name] for loss in losses)) / frames
        assert got[name] == pytest.approx(wanted), name


def test_the_loop_trains_what_was_left_in_evaluation_mode() -> None:
    setting, other = Setting(), Setting()
    other.module.eval()
    batches = [[batch([1])]]
    (one,), (two,) = (each.fit(iter(batches), 0, 1) for each in (setting, other))
    assert one.loss == two.loss


def test_the_schedule_of_the_learning_rate() -> None:
    train = config.Train(learning_rate=1.0, warmup_fraction=0.2)
    rates = [loop.learning_rate(n, 10, train) for n in range(1, 11)]
    assert rates == pytest.approx([0.5, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0.0])


def broken(*ids: int) -> Batch:
    """A batch with a sample that is no number."""
    bad = batch(list(ids))
    bad.wave_BS[0, 100] = float("nan")
    return bad


def test_steps_that_are_not_finite_are_left_out() -> None:
    """Two in a row change nothing; what comes after them trains as if they had not been."""
    setting, other = Setting(), Setting()
    done = list(setting.fit(iter([[batch([3])], [broken(1, 2)], [broken(4)], [batch([5])]]), 0, 4))
    assert [step.updated for step in done] == [True, False, False, True]
    assert done[1].broken == "the loss is nan, its gradient norm nan; clips `1`, `2`"
    assert (done[0].broken, done[3].broken) == ("", "")
    left = [next(other.fit(iter([[batch([3])]]), 0, 4)), *other.fit(iter([[batch([5])]]), 3, 4)]
    assert [step.loss for step in left] == [done[0].loss, done[3].loss]
    for one, two in zip(setting.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(one, two)


def test_too_many_in_a_row_name_step_and_clips() -> None:
    setting = Setting()
    bad = [[broken(1, 2)], [broken(1)], [batch([3])], [broken(4)], [broken(1)], [broken(1, 2)]]
    with pytest.raises(DistilkitError, match="step 6, the 3rd in a row: the loss is nan.*`1`, `2`"):
        list(setting.fit(iter(bad), 0, 100))


def test_too_many_in_all_name_steps_and_clips() -> None:
    """Never two in a row, and the student would learn from half of the steps."""
    setting = Setting()
    every = itertools.cycle([[broken(7, 0)], [batch([7])]])
    with pytest.raises(DistilkitError) as told:
        list(setting.fit(every, 0, 1_000))
    assert str(told.value).startswith(
        "step 21: 11 of the last 21 steps were left out (1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21): "
        "the loss is nan, its gradient norm nan; clips `7`, `0`"
    )
    assert "metrics.jsonl" in str(told.value.hint)
    assert "--set train.learning_rate" in str(told.value.hint)


@pytest.mark.parametrize(
    ("before", "number", "steps", "ends"),
    [
        ([*range(10, 100, 10)], 100, 1_000, False),  # 10 of 100
        ([5, *range(10, 100, 10)], 100, 1_000, True),
        (
            [5, *range(10, 100, 10)],
            105,
            1_000,
            False,
        ),  # the first is 101 steps back, in a stretch of its own
        ([4, 8], 12, 1_000, False),
        ([2, 5], 8, 20, False),  # three may be in any run
        ([2, 5, 8], 11, 20, True),
        ([2, 5, 8, 11], 14, 50, False),
        ([2, 5, 8, 11, 14], 17, 50, True),
        ([1], 2, 20, False),
        ([6, 7], 8, 1_000, True),
    ],
)
def test_steps_that_were_left_out_before_count(
    before: list[int], number: int, steps: int, ends: bool
) -> None:
    setting = Setting()
    done = loop.fit(
        setting.accelerator, setting.module, setting.optimizer, iter([[broken(7)]]), setting.loss_of,
        setting.recipe.train, start=number - 1, steps=steps, broken=before,
    )  # fmt: skip
    if ends:
        with pytest.raises(DistilkitError, match=f"step {number}.* clips `7`"):
            next(done)
    else:
        assert next(done).broken


def test_a_gradient_that_is_not_finite_is_noticed() -> None:
    setting = Setting()

    def steep(module: torch.nn.Module, batch: Batch) -> Loss:
        loss = setting.loss_of(module, batch)
        return Loss(total=(loss.total - loss.total.detach()).sqrt(), parts={})

    step = next(
        loop.fit(
            setting.accelerator, setting.module, setting.optimizer, iter([[batch([1])]]), steep,
            setting.recipe.train, start=0, steps=2,
        )
    )  # fmt: skip
    assert step.broken.startswith("the loss is 0, its gradient norm nan")
    assert not step.updated
    assert all(parameter.isfinite().all() for parameter in setting.module.parameters())


def test_what_is_frozen_stays() -> None:
    setting = Setting()
    before = {name: p.clone() for name, p in setting.distiller.named_parameters()}
    steps_of(setting, 0, 2)
    moved = {n for n, p in setting.distiller.named_parameters() if not torch.equal(p, before[n])}
    assert set(before) - moved == {"model.masked_spec_embed"}


def test_groups_have_learning_rates_of_their_own_and_begin_when_they_shall() -> None:
    """AdamW's first update of a weight is the learning rate itself, whatever the gradient."""
    module = torch.nn.Module()
    names = ("plain", "fast", "late")
    for name in names:
        module.register_parameter(name, torch.nn.Parameter(torch.ones(1)))
    settings = quick(
        "train.warmup_fraction=0.0", "train.learning_rate=0.01", "train.weight_decay=0.0"
    ).train
    groups = [
        loop.Group(params=[module.plain]),
        loop.Group(params=[module.fast], scale=3.0),
        loop.Group(params=[module.late], after=1),
    ]
    accelerator = loop.accelerator("cpu", "fp32")
    ready, optimizer = accelerator.prepare(module, loop.optimizer(module, settings, groups))

    def loss_of(of: torch.nn.Module, micro: Batch) -> Loss:
        return Loss(total=sum(getattr(of, name).sum() for name in names), parts={})

    one = itertools.repeat([batch([0])])
    seen = []
    for _ in loop.fit(
        accelerator, ready, optimizer, one, loss_of, settings, start=0, steps=100_000
    ):
        seen.append({name: getattr(module, name).item() for name in names})
        if len(seen) == 2:
            break
    assert 1 - seen[0]["plain"] == pytest.approx(0.01, rel=1e-2)
    assert 1 - seen[0]["fast"] == pytest.approx(0.03, rel=1e-2)
    assert seen[0]["late"] == 1.0
    assert seen[1]["late"] < 1.0


# ------------------------------------------------------------------------------ out of memory


class Tight:
    """Memory that holds so many seconds, padding counted."""

    def __init__(self, setting: Setting, seconds: float, error: type[Exception], text: str) -> None:
        self.setting, self.seconds, self.error, self.text = setting, seconds, error, text
        self.loss_of, self.held = setting.loss_of, []
        setting.loss_of = self

    def __call__(self, module: torch.nn.Module, given: Batch) -> Loss:
        self.held.append(given.padded_seconds)
        loss = self.loss_of(module, given)
        if given.padded_seconds > self.seconds:
            loss.total.backward()  # what is left of it must not count
            raise self.error(self.text)
        return loss


ENDS = [
    (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB"),
    (
        RuntimeError,
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate",
    ),
    (RuntimeError, "could not create a primitive"),
    (MemoryError, ""),
]


@pytest.mark.parametrize(("error", "text"), ENDS)
def test_out_of_memory_halves_what_is_in_it_and_nothing_else(
    error: type[Exception], text: str
) -> None:
    groups = [list(range(8)), [2, 1], [5, 1, 4, 3, 7, 0, 6]]
    wanted = list(
        Setting("student.dropout=0").fit(
            iter([[batch(sorted(g, key=lambda i: -SIZES[i]))] for g in groups]), 0, 3
        )
    )
    setting = Setting("student.dropout=0")
    tight = Tight(setting, 2.5, error, text)
    found = list(
        setting.fit(iter([[batch(sorted(g, key=lambda i: -SIZES[i]))] for g in groups]), 0, 3)
    )
    for step, same in zip(found, wanted, strict=True):
        assert step.loss == pytest.approx(same.loss, rel=1e-5)
        assert step.grad_norm == pytest.approx(same.grad_norm, rel=1e-4)
        assert step.audio_seconds == same.audio_seconds
    assert [step.lowered for step in found] == [2.0, 0.0, 0.0]
    # 8 s, a half of it, a half of that; then what fits without another try
    assert tight.held[:3] == [8.0, 4.0, 2.0]
    assert max(tight.held[3:]) <= 2.0


def test_another_error_is_not_taken_for_memory() -> None:
    setting = Setting()
    Tight(setting, 0.0, RuntimeError, "mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1"):
        next(setting.fit(iter([[batch([0, 1])]]), 0, 1))


def test_one_clip_that_does_not_fit_is_one_error() -> None:
    setting = Setting()
    Tight(setting, 0.1, torch.OutOfMemoryError, "CUDA out of memory")
    with pytest.raises(
        DistilkitError, match=r"step 1: out of memory .* one clip of 1.0 s"
    ) as error:
        next(setting.fit(iter([[batch([1, 0])]]), 0, 1))
    assert "--set train.gradient_checkpointing=true" in str(error.value.hint)


def test_what_is_split_keeps_its_targets() -> None:
    whole = batch([1, 3, 2, 0, 7])
    targets = torch.arange(5 * 49 * 2).reshape(5, 49, 2)
    whole = replace(whole, targets=(targets, targets[..., 0]))
    parts = whole.within(2.0)
    assert [len(part.ids) for part in parts] == [2, 1, 2]
    assert sum((part.ids for part in parts), ()) == whole.ids
    for part in parts:
        assert part.wave_BS.shape[1] == max(part.lengths)
        for id, wave, length, frames_TD, frames_T in zip(
            part.ids, part.wave_BS, part.lengths, *part.targets, strict=True
        ):
            row = whole.ids.index(id)
            assert torch.equal(wave[:length], whole.wave_BS[row, :length])
            assert torch.equal(frames_TD, targets[row, : len(frames_TD)])
            assert torch.equal(frames_T, targets[row, : len(frames_T), 0])
            assert len(frames_T) == (max(part.lengths) - 400) // 320 + 1


FAULTS = """
import resource, sys
import torch
from distilkit import loop
if sys.argv[1] == "kept":
    loop.accelerator("cpu", "fp32")
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(12):
    torch.ones(20_000_000)
before = faults()
for _ in range(5):
    torch.ones(20_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again() -> None:
    """A page is 4 KiB: five blocks of 80 MB are some 100,000 of them."""
    counts = {}
    for how in ("given back", "kept"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
        )
        counts[how] = int(done.stdout)
    assert counts["kept"] < 1_000
    assert counts["given back"] > 50_000


def test_waiting_for_audio_is_told_apart() -> None:
    def slow() -> Iterator[list[Batch]]:
        for _ in range(3):
            time.sleep(0.2)
            yield [batch([0])]

    for step in Setting().fit(slow(), 0, 3):
        assert 0.2 <= step.waited < step.seconds


@pytest.mark.parametrize(
    ("device", "waited", "said"), [("cuda", 0.3, True), ("cuda", 0.05, False), ("cpu", 0.3, False)]
)
def test_a_gpu_that_waits_for_audio_is_told_of(
    device: str, waited: float, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(console, "say", lines.append)
    monkeypatch.setattr(console, "warn", lines.append)
    monkeypatch.setattr(plan, "peak_gib", lambda device: 0.0)
    decided = plan.Plan(
        steps=4, steps_per_pass=1, micro_seconds=4.0, workers=3, precision="fp32", device=device,
        gradient_checkpointing=False, choices=(),
    )  # fmt: skip
    watch = course.Watch(decided)
    for number in range(1, 5):
        watch(
            loop.Step(
                number=number, loss=1.0, parts={}, grad_norm=1.0, learning_rate=0.1, audio_seconds=4.0,
                seconds=1.0, waited=waited,
            )
        )  # fmt: skip
    watch.say_waited()
    assert any("30.0% of the time" in line and "workers=6" in line for line in lines) == said
    assert said or not any("waiting" in line for line in lines)
