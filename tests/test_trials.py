"""What fits and what is quickest: tried in turn, and the fastest taken."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Run as Command
from conftest import quick

from distilkit import config, distill, loop, plan, training, trials
from distilkit.data import untracked
from distilkit.distill.job import Job
from distilkit.errors import DistilkitError
from distilkit.kernels import Compiled
from distilkit.plan import Plan
from distilkit.runs import Run
from distilkit.trials import Trial

GIB = 2**30
PLAN = Plan(
    steps=4, steps_per_pass=2, micro_seconds=4.0, workers=0, precision="fp32", device="cuda",
    gradient_checkpointing=False, choices=(),
)  # fmt: skip


class Card:
    """A GPU of so many GiB: kept or recomputed, a clip takes so much time and memory."""

    def __init__(self, room: float, *, kept: float = 2.0, recomputed: float = 0.5) -> None:
        self.room, self.each = room, {False: kept, True: recomputed}
        self.tried: list[tuple[int, bool]] = []

    def __call__(self, count: int, recompute: bool) -> Trial | None:
        self.tried.append((count, recompute))
        peak = 1.0 + count * self.each[recompute]
        if peak > 1.5 * self.room:
            return None
        # a launch costs as much as half a clip; recomputing a quarter more
        return Trial(seconds=(1 + 0.5 / count) * (1.25 if recompute else 1), peak=int(peak * GIB))


@pytest.mark.parametrize(
    ("room", "count", "recompute", "why"),
    [
        (100.0, 8, False, "16 at once are no faster"),
        (10.0, 4, False, "8 at once do not fit into 10.00 GiB"),
        (4.0, 4, True, "8 at once do not fit into 4.00 GiB"),
        (1.6, 1, True, "2 at once do not fit"),
    ],
)
def test_the_fastest_that_fits(room: float, count: int, recompute: bool, why: str) -> None:
    card = Card(room)
    found = trials.widest(card, (False, True), 100, int(room * GIB))
    assert found is not None
    assert found[:2] == (count, recompute)
    assert why in found[3]
    assert found[2].peak <= room * GIB


def test_what_is_asked_for_is_not_tried_otherwise() -> None:
    card = Card(10.0)
    assert trials.widest(card, (True,), 100, 10 * GIB)
    assert all(recompute for _, recompute in card.tried)


def test_no_more_than_a_step() -> None:
    card = Card(1000.0)
    found = trials.widest(card, (False,), 6, 1000 * GIB)
    assert found is not None
    assert found[0] == 6
    assert [count for count, _ in card.tried] == [1, 2, 4, 6]


def test_what_does_not_fit_is_one_error(speech: Path, teacher_folder: Path, tmp_path: Path) -> None:
    assert trials.widest(Card(0.5), (False, True), 100, GIB // 2) is None
    job = distill.prepare([speech], teacher=str(teacher_folder), out=tmp_path, recipe=quick())
    with pytest.raises(DistilkitError, match=r"one clip of 15.6 s does not fit into 0.50 GiB"):
        trials.measured(job.plan, None, 15.625, GIB // 2)


class Settled:
    """A run settled on a card that is pretended; what is tried are real parts."""

    def __init__(
        self, audio: Path, teacher: Path, place: Path, patch: pytest.MonkeyPatch, *changes: str
    ) -> None:
        recipe = quick("batches.micro_seconds=auto", "batches.seconds=60", *changes)
        job = distill.prepare([audio], teacher=str(teacher), out=place, recipe=recipe)
        card = Card(4.0)
        self.tried: list[tuple[bool, bool, bool]] = []

        def attempt(made: training.Parts, accelerator: object, cuts: list[object]) -> Trial | None:
            model = made.module.model
            front = model.feature_extractor.conv_layers[1].conv.products
            compiled = isinstance(model.encoder.layers[0], Compiled)
            again = model.is_activation_checkpointing
            self.tried.append((again, front, compiled))
            found = card(len(cuts), again)
            return found and replace(
                found,
                seconds=1e4 * found.seconds * (0.8 if front else 1) * (0.9 if compiled else 1),
            )

        patch.setattr(trials, "attempt", attempt)
        patch.setattr(plan, "memory", lambda where, settings=None: 4 * GIB)
        accelerator = loop.accelerator("cpu", "fp32")
        self.plan = trials.settle(
            recipe,
            replace(job.plan, device="cuda"),
            lambda planned: distill.likely(job, accelerator, planned),
            accelerator,
            job.train,
            15.0,
        )
        self.said = {choice.name: choice for choice in self.plan.choices}
        assert len(self.said) == len(self.plan.choices)


def test_a_gpu_is_measured_and_the_plan_says_so(
    speech: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Settled(speech, teacher_folder, tmp_path, monkeypatch)
    assert (found.plan.micro_seconds, found.plan.gradient_checkpointing) == (60.0, True)
    assert {again for again, *_ in found.tried} == {False, True}
    assert found.said["in memory at once"].value == "60 s of audio"
    assert "measured: 3.00 GiB of 4.00 GiB" in found.said["in memory at once"].reason
    assert found.plan.products
    assert found.said["convolutions"].value == "products of windows"
    assert found.said["convolutions"].reason == "measured: as products 1.25 times as fast"
    assert found.plan.compiled
    assert found.said["compiled layers"].value == "on"
    assert found.said["compiled layers"].reason.startswith("measured: 1.11 times as fast, after ")
    # all that is tried behind a choice is tried with it
    assert [front for _, front, _ in found.tried] == [False, *[True] * (len(found.tried) - 1)]
    assert found.tried[-1] == (True, True, True)


def test_what_is_asked_for_on_a_gpu_stays(
    speech: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("batches.micro_seconds=30", "train.gradient_checkpointing=true", "train.compile=false")
    found = Settled(speech, teacher_folder, tmp_path, monkeypatch, *asked)
    assert (found.plan.micro_seconds, found.plan.gradient_checkpointing) == (30.0, True)
    assert found.said["in memory at once"].reason == "asked for"
    assert found.tried == [(True, False, False), (True, True, False)]
    assert found.plan.products
    assert not found.plan.compiled


def test_layers_that_are_not_to_be_compiled_on_a_gpu(
    speech: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Settled(speech, teacher_folder, tmp_path, monkeypatch, "train.compile=false")
    assert found.said["compiled layers"].reason == "asked for"
    assert not any(compiled for *_, compiled in found.tried)
    assert not found.plan.compiled


@dataclass
class Ways:
    """A card on which ways of computing take so long for a second of audio, or fail."""

    stock: float | Exception | None = 1.0
    products: float | Exception | None = 1.0
    compiled: float | Exception | None = 1.0
    peak: int = GIB

    def __call__(self, count: int, planned: Plan) -> Trial | None:
        taken = self.compiled if planned.compiled else self.stock
        taken = self.products if planned.products else taken
        if isinstance(taken, Exception):
            raise taken
        return None if taken is None else Trial(seconds=taken, peak=self.peak)


@pytest.mark.parametrize(
    ("ways", "products", "why"),
    [
        (Ways(products=0.5), True, "measured: as products 2.00 times as fast"),
        (Ways(products=0.98), False, "measured: as products 1.02 times as fast"),
        (Ways(products=3.0), False, "measured: as products 0.33 times as fast"),
        (Ways(products=None), False, "as products: out of memory"),
        (
            Ways(products=RuntimeError("CUBLAS\nat")),
            False,
            "as products: cannot be done here: CUBLAS",
        ),
    ],
)
def test_convolutions_as_is_quicker(ways: Ways, products: bool, why: str) -> None:
    found = trials.convolved(PLAN, ways)
    assert found.products is products
    assert [(choice.name, choice.reason) for choice in found.choices] == [("convolutions", why)]


def test_convolutions_where_nothing_fits_are_left() -> None:
    assert trials.convolved(PLAN, Ways(stock=None)) is PLAN


@pytest.mark.parametrize(
    ("ways", "audio", "compiled", "why"),
    [
        (Ways(compiled=0.8), 3600.0, True, "measured: 1.25 times as fast, after 0 s of compiling"),
        (Ways(compiled=0.8), 890.0, False, "14 min 50 s of steps are over before that pays"),
        (
            Ways(compiled=0.98),
            3600.0,
            False,
            "measured: 1.02 times as fast, after 0 s of compiling",
        ),
        (Ways(compiled=1.5), 3600.0, False, "measured: 0.67 times as fast, after 0 s of compiling"),
        (Ways(compiled=None), 3600.0, False, "out of memory"),
        (Ways(compiled=0.5, peak=9 * GIB), 3600.0, False, "does not fit into 8.00 GiB"),
        (
            Ways(compiled=ImportError("no triton\nat")),
            3600.0,
            False,
            "cannot be done here: no triton",
        ),
    ],
)
def test_layers_are_compiled_where_it_pays(
    ways: Ways, audio: float, compiled: bool, why: str
) -> None:
    found = trials.compiled(PLAN, ways, 1, Trial(seconds=1.0, peak=GIB), audio, 8 * GIB)
    assert found.compiled is compiled
    assert [(choice.name, choice.reason) for choice in found.choices] == [("compiled layers", why)]


def test_compiling_that_takes_longer_than_it_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 200.0])
    monkeypatch.setattr(trials.time, "perf_counter", lambda: next(clock))
    plain = Trial(seconds=1.0, peak=GIB)
    found = trials.compiled(PLAN, Ways(compiled=0.9), 1, plain, 1500.0, 8 * GIB)
    assert not found.compiled  # it saves 150 s


def test_a_file_that_is_gone_is_no_reason_against_a_way_of_computing() -> None:
    gone = Ways(compiled=DistilkitError("`a.wav` can no longer be read", "put it back"))
    with pytest.raises(DistilkitError, match="can no longer be read"):
        trials.compiled(PLAN, gone, 1, Trial(seconds=1.0, peak=GIB), 3600.0, 8 * GIB)


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["targets.store=fp16"],
        ["objective.name=units", "objective.clusters=8"],
        ["objective.name=units", "objective.clusters=8", "targets.store=fp16"],
        ["objective.name=units", "objective.clusters=8", "objective.features=mfcc"],
    ],
)
def test_a_trial_takes_what_the_run_will_and_leaves_nothing(
    speech: Path, teacher_folder: Path, tmp_path: Path, changes: list[str]
) -> None:
    job = distill.prepare(
        [speech], teacher=str(teacher_folder), out=tmp_path / "run", recipe=quick(*changes)
    )
    accelerator = loop.accelerator("cpu", "fp32")
    made = distill.likely(job, accelerator, job.plan)
    before = {name: value.clone() for name, value in made.module.state_dict().items()}
    found = trials.attempt(made, accelerator, job.train[:3])
    assert found is not None
    assert found.seconds > 0
    assert found.peak > 0
    assert all(torch.equal(value, before[name]) for name, value in made.module.state_dict().items())
    assert not (tmp_path / "run").exists()


def test_a_trial_without_room(speech: Path, teacher_folder: Path, tmp_path: Path) -> None:
    job = distill.prepare([speech], teacher=str(teacher_folder), out=tmp_path, recipe=quick())
    accelerator = loop.accelerator("cpu", "fp32")
    made = distill.likely(job, accelerator, job.plan)

    def full(*_: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    tight = training.replace(made, loss_of=full)
    assert trials.attempt(tight, accelerator, job.train[:1]) is None


# ------------------------------------------------------------------------------------ --hours


def taking(each: float, targets: float = 0.0) -> Callable[[Plan], plan.Measured]:
    """A measurement on a machine that is pretended."""
    return lambda planned: plan.Measured(
        seconds_per_step=each, peak_gib=1.0, target_seconds=targets if planned.stored else 0.0
    )


@pytest.mark.parametrize(
    ("hours", "steps", "why"),
    [
        ("auto", 4, {}),
        (1.0, 4, {}),
        (0.11, 2, {"steps": ("2", "as many as fit into 6 min 36 s: 1 pass; 4 were meant")}),
    ],
)
def test_no_more_steps_than_time(
    hours: float | str, steps: int, why: dict[str, tuple[str, str]]
) -> None:
    settings = config.Train(hours=hours)  # type: ignore[arg-type]
    found = trials.in_time(PLAN, settings, taking(180.25))
    assert found.steps == steps
    assert {choice.name: (choice.value, choice.reason) for choice in found.choices} == why


def test_targets_take_time_too() -> None:
    found = trials.in_time(replace(PLAN, stored="fp16"), config.Train(hours=1.0), taking(900, 1200))
    assert found.steps == 2


def test_so_do_units() -> None:
    measured = replace(taking(900, 600)(replace(PLAN, stored="fp16")), unit_seconds=600.0)
    assert trials.in_time(PLAN, config.Train(hours=1.0), lambda planned: measured).steps == 2
    assert measured.preparing == (
        "10 min 00 s to find the units and 10 min 00 s for the teacher's targets"
    )
    assert replace(measured, target_seconds=0.0).preparing == "10 min 00 s to find the units"


def test_time_for_not_even_a_step() -> None:
    with pytest.raises(
        DistilkitError, match="`train.hours` 0.5 is over before the end of the first step"
    ) as e:
        trials.in_time(replace(PLAN, stored="fp16"), config.Train(hours=0.5), taking(900, 1200))
    assert "of 15 min 00 s, before them 20 min 00 s for the teacher's targets" in str(e.value)
    assert e.value.hint == "--hours 0.584"


@pytest.mark.parametrize(
    ("hours", "steps", "stored"),
    [(1.0, 20, "fp16"), (0.5, 10, "fp16"), (0.25, 1, None), (0.17, 1, None)],
)
def test_a_distillation_in_the_time_that_there_is(
    hours: float, steps: int, stored: str | None,
    speech: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Steps of two minutes. In less than two passes the teacher runs beside, which takes longer,
    also where its targets alone would take all the time.
    """
    asked: list[str | None] = []

    def measured(job: Job, track: object) -> Job:
        asked.append(job.plan.stored)
        taken = taking(120.0 if job.plan.stored else 600.0, 600.0)(job.plan)
        return replace(job, taken=taken)

    monkeypatch.setattr(distill, "measure", measured)
    recipe = quick(f"train.hours={hours}", "targets.store=auto", "train.steps=20")
    job = distill.prepare([speech], teacher=str(teacher_folder), out=tmp_path, recipe=recipe)
    assert (job.plan.steps, job.plan.stored) == (steps, stored)
    assert asked == (["fp16"] if stored else ["fp16", None])
    said = {choice.name: choice for choice in job.plan.choices}
    assert len(said) == len(job.plan.choices)
    assert (said["targets"].value == "as it goes") is (stored is None)
    passes = f"for {steps / job.plan.steps_per_pass:.3g} passes"
    assert said["targets"].reason.endswith(passes if stored else "there is no time for two passes")
    assert job.facts["plan"]["steps"] == steps


def test_a_run_in_the_time_that_there_is(
    run: Command, speech: Path, teacher_folder: Path, transcribed: Path, letters: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Measured in earnest, with so many steps that they cannot be made in it."""
    shared = ("--steps", "1000000", "--set", "train.device=cpu", "--hours", "0.004")
    shared += ("--set", "batches.seconds=4", "--set", "batches.micro_seconds=4")
    began = time.monotonic()
    code, _, err = run(
        "distill", speech, "--teacher", teacher_folder, "--recipe", "smoke", "--out", "a",
        "--set", "objective.layers=[4]", *shared,
    )  # fmt: skip
    assert code == 0, err
    assert "as many as fit into 14 s" in " ".join(err.split())
    made = Run(Path("a")).read()["plan"]["steps"]
    assert 0 < made < 1_000_000
    assert len(Run(Path("a")).rows("metrics.jsonl")) == made
    assert time.monotonic() - began < 120  # on a busy machine
    code, _, err = run(
        "finetune-ctc", transcribed, "--tokenizer", letters, "--model", teacher_folder, "--out", "b",
        *shared,
    )  # fmt: skip
    assert code == 0, err
    assert 0 < len(Run(Path("b")).rows("metrics.jsonl")) < 1_000_000
    code, _, err = run(
        "distill", speech, "--teacher", teacher_folder, "--recipe", "smoke", "--out", "c",
        "--set", "objective.layers=[4]", *shared, "--hours", "0.0000001",
    )  # fmt: skip
    assert code == 1
    assert "is over before the end of the first step" in err
    assert not Path("c").exists()


def test_a_step_is_measured_by_the_share_of_it_that_a_process_has(
    speech: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the slowest of all processes takes is what counts."""
    job = distill.prepare([speech], teacher=str(teacher_folder), out=tmp_path, recipe=quick())
    schedules = []
    made = [
        loop.Step(
            number=number, loss=1.0, parts={}, grad_norm=1.0, learning_rate=0.1, audio_seconds=4.0, seconds=2.0
        )
        for number in (1, 2)
    ]  # fmt: skip
    monkeypatch.setattr(plan, "schedule", lambda *given: schedules.append(given[3:]))
    monkeypatch.setattr(trials.batches, "stream", lambda *given, **more: None)
    monkeypatch.setattr(loop, "fit", lambda *given, **more: iter(made))
    monkeypatch.setattr(trials, "gather_object", lambda own: [*own, 5.0 + own[0]])
    second = SimpleNamespace(process_index=1, num_processes=2, prepare=lambda *given: given)
    parts = SimpleNamespace(module=None, optimizer=None, beside=None, loss_of=None)
    found = trials.measure(job.recipe, job.plan, parts, second, job.train, untracked)  # type: ignore[arg-type]
    assert schedules == [(1, 2)]
    assert found.seconds_per_step == 7.0


def test_compiling_has_to_pay_in_the_time_that_there_is(
    speech: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "in_time", lambda decided, *given: decided)
    found = Settled(speech, teacher_folder, tmp_path, monkeypatch, "train.hours=0.2")
    assert found.said["compiled layers"].reason == "12 min 00 s of steps are over before that pays"
    assert not found.plan.compiled
