"""Which windows a step sees: all of them once a pass, in equal steps, the same on every call."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import soundfile
import torch
from conftest import voice
from lhotse import MonoCut

from distilkit import batches, config
from distilkit.batches import Batch, Schedule, load, stream
from distilkit.data import collect
from distilkit.errors import DistilkitError
from distilkit.listeners import in_order

DRAWN = Schedule._drawn


def lengths(count: int, seed: int, longest: float = 15.6) -> list[int]:
    rng = random.Random(seed)
    return [int(16_000 * rng.uniform(0.1, longest)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_pass_sees_every_window_once_and_every_process_has_work(seed: int, ranks: int) -> None:
    sizes = lengths(random.Random(seed).randint(3, 200), seed)
    seconds = random.Random(seed).choice([1.0, 16.0, 60.0, 375.0, 1e6])
    schedules = [
        Schedule(lengths=sizes, seconds=seconds, micro_seconds=32.0, seed=7, rank=r, ranks=ranks)
        for r in range(ranks)
    ]
    seen: Counter[int] = Counter()
    for step in range(1, schedules[0].steps_per_pass + 1):
        shares = [[i for group in s.step(step) for i in group] for s in schedules]
        assert all(shares), "a process without a window would hang the others"
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        seen.update(i for share in shares for i in share)
    assert seen == Counter(range(len(sizes)))


def test_steps_are_nearly_equal_and_near_what_was_asked() -> None:
    sizes = lengths(3_000, 1)
    schedule = Schedule(lengths=sizes, seconds=120.0, micro_seconds=60.0, seed=0)
    seconds = [
        sum(sizes[i] for group in schedule.step(n) for i in group) / 16_000
        for n in range(1, schedule.steps_per_pass + 1)
    ]
    assert min(seconds) > 100
    assert max(seconds) < 140
    assert sum(seconds) / len(seconds) == pytest.approx(120, rel=0.01)


def test_processes_take_turns_with_the_longer_windows() -> None:
    sizes = [16_000 * seconds for seconds in (8, 7, 4, 3)]
    shares = [
        Schedule(lengths=sizes, seconds=99.0, micro_seconds=8.0, seed=0, rank=r, ranks=2).step(1)
        for r in range(2)
    ]
    assert shares == [[[0], [3]], [[1], [2]]]


def test_passes_differ_and_calls_agree() -> None:
    sizes = lengths(50, 2)
    schedule = Schedule(lengths=sizes, seconds=30.0, micro_seconds=30.0, seed=0)
    again = Schedule(lengths=sizes, seconds=30.0, micro_seconds=30.0, seed=0)
    other = Schedule(lengths=sizes, seconds=30.0, micro_seconds=30.0, seed=1)
    steps = schedule.steps_per_pass
    assert schedule.step(3) == again.step(3)
    assert schedule.step(3) != schedule.step(3 + steps)
    assert schedule.step(3) != other.step(3)


def test_a_pass_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = Schedule(lengths=lengths(40, 3), seconds=30.0, micro_seconds=30.0, seed=0)
    first, last = 3, 2 * schedule.steps_per_pass + 1
    each = [schedule.step(number) for number in range(first, last + 1)]
    drawn = []
    monkeypatch.setattr(
        batches.Schedule,
        "_drawn",
        lambda self, epoch, steps: drawn.append(epoch) or DRAWN(self, epoch, steps),
    )
    assert list(schedule.between(first, last)) == each
    assert drawn == [0, 1, 2]


def test_micro_batches_stay_below_the_budget() -> None:
    sizes = lengths(300, 3)
    for step in range(1, 4):
        groups = Schedule(lengths=sizes, seconds=400.0, micro_seconds=40.0, seed=0).step(step)
        for group in groups:
            padded = len(group) * max(sizes[i] for i in group)
            assert padded <= 40.0 * 16_000 or len(group) == 1
            assert min(sizes[i] for i in group) >= 0.7 * max(sizes[i] for i in group)
        assert len(groups) < 2 * 400 / 40


def test_in_order_holds_all_once() -> None:
    sizes = lengths(77, 4)
    groups = in_order(sizes, 20.0)
    assert sorted(i for group in groups for i in group) == list(range(77))


def test_workers_change_nothing(speech: Path) -> None:
    windows = collect([speech], config.Data(valid_fraction=0.0)).train
    schedule = Schedule(
        lengths=[cut.num_samples for cut in windows], seconds=6.0, micro_seconds=4.0, seed=0
    )
    streams = [
        list(stream(windows, schedule, first=2, last=9, workers=workers)) for workers in (0, 2)
    ]
    assert len(streams[0]) == 8
    for one, two in zip(*streams, strict=True):
        assert [batch.ids for batch in one] == [batch.ids for batch in two]
        assert all(torch.equal(a.wave_BS, b.wave_BS) for a, b in zip(one, two, strict=True))
    resumed = list(stream(windows, schedule, first=5, last=9, workers=0))
    assert [[b.ids for b in step] for step in resumed] == [
        [b.ids for b in step] for step in streams[0][3:]
    ]


def test_a_vanished_file_is_one_clear_error(speech: Path, tmp_path: Path) -> None:
    copy = tmp_path / "only.wav"
    copy.write_bytes((speech / "b" / "clip01.wav").read_bytes())
    windows = collect([tmp_path], config.Data()).train
    copy.unlink()
    with pytest.raises(DistilkitError, match="can no longer be read"):
        load(windows)


def test_a_changed_file_is_one_clear_error_and_a_touched_one_is_none(
    speech: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "only.wav"
    sound = (speech / "b" / "clip01.wav").read_bytes()
    copy.write_bytes(sound)
    windows = collect([tmp_path], config.Data()).train
    before = load(windows)
    os.utime(copy, (1, 1))
    assert torch.equal(load(windows).wave_BS, before.wave_BS)
    copy.write_bytes(sound[:-200] + bytes(200))
    with pytest.raises(DistilkitError, match="only.wav` is no longer the sound that it was"):
        load(windows)
    copy.write_bytes(sound)
    assert torch.equal(load(windows).wave_BS, before.wave_BS)


def test_what_is_read_ahead_comes_in_turn(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two are read while one is used, no more; what cannot be read is said once it is its turn."""
    groups = [[cut] for cut in collect([speech], config.Data()).train[:6]]
    begun, real = [], load

    def slow(cuts: list[MonoCut]) -> Batch:
        begun.append(cuts[0].id)
        time.sleep(0.05 if cuts == groups[0] else 0)
        return real(cuts)

    monkeypatch.setattr(batches, "load", slow)
    coming = batches.ahead(groups)
    first = next(coming)
    time.sleep(0.5)
    assert sorted(begun) == sorted(group[0].id for group in groups[: batches.READERS + 1])
    for group, batch in zip(groups, [first, *coming], strict=True):
        assert batch.ids == (group[0].id,)
        assert torch.equal(batch.wave_BS, real(group).wave_BS)
    gone = tmp_path / "gone.wav"
    soundfile.write(gone, voice(1.0, 1), 16_000)
    missing = [[cut] for cut in collect([gone], config.Data()).train]
    gone.unlink()
    coming = batches.ahead([*groups[:2], *missing])
    assert [next(coming).ids for _ in range(2)] == [(group[0].id,) for group in groups[:2]]
    with pytest.raises(DistilkitError, match=r"`.*gone.wav` can no longer be read"):
        next(coming)


def test_a_process_that_loads_and_dies_is_one_clear_error(
    speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = collect([speech], config.Data()).train
    main, schedule = (
        os.getpid(),
        Schedule(
            lengths=[cut.num_samples for cut in windows], seconds=5.0, micro_seconds=3.0, seed=1
        ),
    )

    def dies(cuts: object, beside: object) -> None:
        assert os.getpid() != main
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("distilkit.batches.load", dies)
    with pytest.raises(DistilkitError, match="step 1: a process that loads audio ended") as caught:
        next(stream(windows, schedule, first=1, last=2, workers=1))
    assert "--resume" in str(caught.value.hint)
