"""What fits: tried in turn, and the fastest taken."""

from pathlib import Path

import pytest
import torch
from conftest import Run as Command
from conftest import make_model, quick

from distilkit import distill, loop, plan, resuming, training
from distilkit.cli import course
from distilkit.encoder import Encoder, encode, exact
from distilkit.errors import DistilkitError
from distilkit.plan import Trial
from distilkit.runs import Run

GIB = 2**30


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


GOOD = {
    "steps": 4, "steps_per_pass": 2, "micro_seconds": 4.0, "workers": 0, "precision": "fp32", "device": "cpu",
    "gradient_checkpointing": False, "choices": [], "stored": None, "stored_bytes": 0, "front_width": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    "lie",
    [
        {"steps": 0}, {"steps": 4.5}, {"steps": True}, {"steps": "4"}, {"steps_per_pass": -1},
        {"micro_seconds": float("nan")}, {"micro_seconds": 0}, {"micro_seconds": [4]}, {"workers": 10**6},
        {"workers": -1}, {"precision": "fp8"}, {"precision": ["fp32"]}, {"device": "moon"}, {"device": {}},
        {"gradient_checkpointing": "yes"}, {"stored": "fp8"}, {"stored_bytes": -1}, {"front_width": 1.5},
        {"choices": 3}, {"choices": [{"name": "a"}]}, {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_plan_that_no_run_can_have(lie: dict[str, object], tmp_path: Path) -> None:
    with training.reading(Run(tmp_path)):
        assert resuming.decided(GOOD).steps == 4
    with pytest.raises(DistilkitError, match="is damaged: "), training.reading(Run(tmp_path)):
        resuming.decided({**GOOD, **lie})


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
    found = plan.widest(card, (False, True), 100, int(room * GIB))
    assert found is not None
    assert found[:2] == (count, recompute)
    assert why in found[3]
    assert found[2].peak <= room * GIB


def test_what_is_asked_for_is_not_tried_otherwise() -> None:
    card = Card(10.0)
    assert plan.widest(card, (True,), 100, 10 * GIB)
    assert all(recompute for _, recompute in card.tried)


def test_no_more_than_a_step() -> None:
    card = Card(1000.0)
    found = plan.widest(card, (False,), 6, 1000 * GIB)
    assert found is not None
    assert found[0] == 6
    assert [count for count, _ in card.tried] == [1, 2, 4, 6]


def test_what_does_not_fit_is_one_error(speech: Path, teacher_folder: Path, tmp_path: Path) -> None:
    assert plan.widest(Card(0.5), (False, True), 100, GIB // 2) is None
    job = distill.prepare([speech], teacher=str(teacher_folder), out=tmp_path, recipe=quick())
    with pytest.raises(DistilkitError, match=r"one clip of 15.6 s does not fit into 0.50 GiB"):
        plan.measured(job.plan, None, 15.625, GIB // 2)


def test_a_gpu_is_measured_and_the_plan_says_so(
    speech: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a card that is pretended; what is tried are real parts."""
    recipe = quick("batches.micro_seconds=auto", "batches.seconds=60")
    job = distill.prepare([speech], teacher=str(teacher_folder), out=tmp_path, recipe=recipe)
    card, parts = Card(4.0), []

    def attempt(made: training.Parts, accelerator: object, cuts: list[object]) -> Trial | None:
        parts.append(made.module.model.is_activation_checkpointing)
        return card(len(cuts), made.module.model.is_activation_checkpointing)

    monkeypatch.setattr(training, "attempt", attempt)
    monkeypatch.setattr(plan, "memory", lambda where, settings=None: 4 * GIB)
    on_card = plan.replace(job.plan, device="cuda")
    accelerator = loop.accelerator("cpu", "fp32")
    found = training.settle(
        recipe,
        on_card,
        lambda again: distill.likely(job, accelerator, again),
        accelerator,
        job.train,
        15.0,
    )
    assert (found.micro_seconds, found.gradient_checkpointing) == (60.0, True)
    assert {False, True} == set(parts)
    said = {choice.name: choice for choice in found.choices}
    assert len(said) == len(found.choices)
    assert said["in memory at once"].value == "60 s of audio"
    assert "measured: 3.00 GiB of 4.00 GiB" in said["in memory at once"].reason
    asked = quick("batches.micro_seconds=30")
    assert (
        training.settle(
            asked, on_card, lambda again: pytest.fail("tried"), accelerator, job.train, 15.0
        )
        is on_card
    )


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
    made = distill.likely(job, accelerator, False)
    before = {name: value.clone() for name, value in made.module.state_dict().items()}
    found = training.attempt(made, accelerator, job.train[:3])
    assert found is not None
    assert found.seconds > 0
    assert found.peak > 0
    assert all(torch.equal(value, before[name]) for name, value in made.module.state_dict().items())
    assert not (tmp_path / "run").exists()


def test_a_trial_without_room(speech: Path, teacher_folder: Path, tmp_path: Path) -> None:
    job = distill.prepare([speech], teacher=str(teacher_folder), out=tmp_path, recipe=quick())
    accelerator = loop.accelerator("cpu", "fp32")
    made = distill.likely(job, accelerator, False)

    def full(*_: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    tight = training.replace(made, loss_of=full)
    assert training.attempt(tight, accelerator, job.train[:1]) is None


# ------------------------------------------------------------------------------------ --memory


@pytest.mark.parametrize(
    ("text", "gib"),
    [
        ("6GB", 6.0),
        ("6 gb", 6.0),
        ("6", 6.0),
        ("1.5GiB", 1.5),
        (".5GB", 0.5),
        ("512MB", 0.5),
        ("1TB", 1024.0),
    ],
)
def test_amounts_of_memory(text: str, gib: float) -> None:
    assert course.memory_gib(text) == gib


@pytest.mark.parametrize("text", ["", "GB", "six", "6 apples", "0GB", "-1GB", "1e3GB", "6GB6"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(DistilkitError, match="is no amount of memory"):
        course.memory_gib(text)


def test_less_memory_is_less_at_once(run: Command, speech: Path, teacher_folder: Path) -> None:
    asked = ("distill", speech, "--teacher", teacher_folder, "--recipe", "smoke", "--steps", "1")
    more = (
        "--set",
        "objective.layers=[4]",
        "--set",
        "train.device=cpu",
        "--set",
        "batches.seconds=40",
    )
    for place, option in (("a", ()), ("b", ("--memory", "20MB"))):
        code, _, err = run(*asked, *more, "--out", place, *option)
        assert code == 0, err

    def lasting(place: str) -> float:
        return float(plan_of(place)["micro_seconds"])

    def plan_of(place: str) -> dict[str, object]:
        return Run(Path(place)).read()["plan"]

    assert lasting("b") < lasting("a")
    assert plan_of("b")["gradient_checkpointing"] is True
    code, _, err = run(*asked, "--out", "c", "--memory", "lots")
    assert code == 1
    assert "`--memory lots` is no amount of memory" in err
    code, _, err = run(*asked, "--out", "d", "--vram", "100TB")
    assert code == 1
    assert "is more than the" in err


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize(
    ("frozen", "recompute", "dropout"),
    [(False, False, 0.0), (True, False, 0.0), (False, True, 0.0), (False, False, 0.1)],
)
def test_the_estimate_follows_what_is_kept(
    norm: str, frozen: bool, recompute: bool, dropout: float
) -> None:
    """What autograd keeps of four clips: each block of memory once, weights left out."""
    shape: dict[str, object] = {"conv_dim": [64] * 7, "hidden_size": 96, "intermediate_size": 384}
    shape |= {"attention_dropout": dropout, "feat_extract_norm": norm}
    model = exact(make_model(num_hidden_layers=2, **shape)).train()
    if frozen:
        model.feature_extractor._freeze_parameters()
    if recompute:
        model.activation_checkpointing_enable()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        block = tensor.untyped_storage()
        if block.data_ptr() not in weights:
            kept[block.data_ptr()] = block.nbytes(), tensor
        return tensor

    seconds, clips = 8.0, 4
    wave_BS = torch.randn(clips, int(seconds * 16_000))
    encoder = Encoder(model=model, normalise=False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        encode(encoder, wave_BS, [wave_BS.shape[1]] * clips, [2])
    found = sum(size for size, _ in kept.values()) / (clips * seconds)
    said = plan.bytes_per_second(
        model.config, "fp32", frozen_front=frozen, recompute=recompute,
        attended=seconds if dropout else 0.0,
    )  # fmt: skip
    assert 0.5 * said < found < said


@pytest.mark.parametrize(("seconds", "steps"), [(4.0, 13), (8.0, 13), (20.0, 6), (120.0, 3)])
def test_a_plan_takes_a_few_long_steps_or_more_short_ones(
    seconds: float, steps: int, speech: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first warms up; what is said is the mean of the others."""
    recipe = quick(f"batches.seconds={seconds}")
    assert training.measured_steps(recipe) == steps
    taken = [9.0, *[1.0, 3.0] * 6][:steps]
    made = [
        loop.Step(
            number=number, loss=1.0, parts={}, grad_norm=1.0, learning_rate=0.1, audio_seconds=4.0,
            seconds=each,
        )
        for number, each in enumerate(taken, start=1)
    ]  # fmt: skip
    monkeypatch.setattr(loop, "fit", lambda *given, **settings: iter(made[: settings["steps"]]))
    job = distill.prepare([speech], teacher=str(teacher_folder), out=Path("a"), recipe=recipe)
    wanted = sum(taken[1:]) / len(taken[1:])
    assert distill.measure(job).seconds_per_step == pytest.approx(wanted)
