"""The parts put together: presets, layers, heads that go on, and who hears what."""

import shlex
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import LARGE, make_model, quick, voice
from torch import Tensor, nn

from distilkit import assembly, config, loop
from distilkit.assembly import Existing, check, resolve
from distilkit.audio import frames
from distilkit.batches import Batch
from distilkit.codebooks import Codebook
from distilkit.encoder import Encoder, encode, exact, frame_mask
from distilkit.errors import DistilkitError
from distilkit.objectives import Heads, PairHeads, UnitHeads, layerwise
from distilkit.targets import Targets, live_units, parted

CPU = torch.device("cpu")
NO_TEACHER = ["objective.name=units", "objective.features=mfcc"]
NOISE = config.Noise(
    probability=1.0, snr=[0.0, 5.0], reverberation=0.5, band=0.5, voice=0.5, equaliser=0.5
)


def teacher(**changes: object) -> Encoder:
    return Encoder(model=exact(make_model(**changes)), normalise=False)


def batch(*seconds: float) -> Batch:
    waves = [torch.from_numpy(voice(s, seed)) for seed, s in enumerate(seconds or (0.6, 0.35))]
    return Batch(
        ids=tuple(map(str, range(len(waves)))),
        wave_BS=torch.nn.utils.rnn.pad_sequence(waves, batch_first=True),
        lengths=tuple(len(wave) for wave in waves),
    )


def preset(name: str) -> config.Recipe:
    return config.load_recipe("smoke", [f"objective.layers={name}"])


@pytest.mark.parametrize(
    ("name", "depth", "layers"),
    [
        ("all-round", 12, [4, 8, 12]),
        ("all-round", 24, [8, 16, 24]),
        ("all-round", 6, [2, 4, 6]),
        ("all-round", 4, [1, 3, 4]),
        ("all-round", 2, [1, 2]),
        ("all-round", 1, [1]),
        ("content", 12, [8]),
        ("content", 24, [16]),
        ("speaker", 12, [4]),
        ("speaker", 2, [1]),
    ],
)
def test_presets_are_scaled_to_the_depth(name: str, depth: int, layers: list[int]) -> None:
    assert resolve(preset(name), depth).objective.layers == layers


def test_numbers_stay_and_without_a_teacher_there_is_nothing_to_scale() -> None:
    recipe = quick("objective.layers=[3,9]")
    assert resolve(recipe, 24) is recipe
    assert resolve(preset("content"), None).objective.layers == "content"
    assert resolve(preset("content"), 12).train == preset("content").train


def test_what_needs_a_teacher() -> None:
    for changes in ([], ["objective.name=units"]):
        with pytest.raises(
            DistilkitError, match="needs a teacher, and `--teacher none` is none"
        ) as c:
            check(quick(*changes), None, "none")
        typed = [word for word in str(c.value.hint).split() if word != "--set"]
        check(quick(*changes, *typed), None, "none")


def test_layers_the_teacher_lacks() -> None:
    small = teacher(**LARGE)
    for layers, hint in (("[2,4,9]", "[2,4]"), ("[7]", "[4]")):
        with pytest.raises(DistilkitError, match="but the teacher `x` has 4") as caught:
            check(quick(f"objective.layers={layers}"), small, "x")
        assert (
            caught.value.hint == f'--set "objective.layers={hint}"'
        )  # zsh takes bare brackets as a pattern
        check(quick(*shlex.split(str(caught.value.hint))[1:]), small, "x")
    check(quick("objective.layers=[9]", *NO_TEACHER), small, "x")  # MFCC has no layers


# ------------------------------------------------------------------------------------------ heads


@pytest.mark.parametrize(
    ("changes", "kind", "layers"),
    [
        ([], Heads, (2,)),
        (["objective.student_layers=[1,2,2]"], PairHeads, (1, 2, 2)),
        (["objective.name=units"], UnitHeads, (2,)),
        (["objective.name=units", "objective.student_layers=[0,1,2]"], UnitHeads, (0, 1, 2)),
        (NO_TEACHER, UnitHeads, (2,)),
    ],
)
def test_heads_and_the_layers_they_read(
    changes: list[str], kind: type[nn.Module], layers: tuple[int, ...]
) -> None:
    distiller, _ = assembly.build(teacher(), quick("objective.clusters=9", *changes))
    assert isinstance(distiller.heads, kind)
    assert distiller.layers == layers
    clip = batch()
    distiller.eval()
    found = distiller(clip.wave_BS, clip.lengths)
    units = kind is UnitHeads
    count = 1 if changes == NO_TEACHER else 3
    assert [tuple(t.shape) for t in found] == [(2, 29, 9 if units else 32)] * count
    read = encode(distiller.student, clip.wave_BS, clip.lengths, layers)
    for one, other in zip(found, distiller.heads(read), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("layers", ["[1,1,1]", "[0,1,1]", "[1,2,2]"])
@pytest.mark.parametrize("stable", [False, True])
def test_everything_that_is_trained_gets_a_gradient(layers: str, stable: bool) -> None:
    """Several processes wait for the gradient of whatever is."""
    more = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"} if stable else {}
    model = exact(make_model(**more))
    distiller, _ = assembly.build(
        Encoder(model=model, normalise=False), quick(f"objective.student_layers={layers}")
    )
    clip = batch()
    sum(each.sum() for each in distiller(clip.wave_BS, clip.lengths)).backward()
    for name, weight in distiller.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, name


@pytest.mark.parametrize("layers", ["[1,2]", "[1,2,3]"])
def test_student_layers_that_do_not_fit(layers: str) -> None:
    with pytest.raises(
        DistilkitError, match="does not name one of the student's 2 layers for each"
    ):
        assembly.build(teacher(), quick(f"objective.student_layers={layers}"))


def heads_of(recipe: config.Recipe) -> tuple[Encoder, dict[str, Tensor]]:
    first = teacher()
    torch.manual_seed(7)
    distiller, _ = assembly.build(first, recipe)
    return distiller.student, {n: t.detach().clone() for n, t in distiller.heads.named().items()}


@pytest.mark.parametrize(
    ("changes", "layers", "again", "taken"),
    [
        ([], (4, 8, 12), [], True),
        ([], (4, 8, 11), [], False),
        ([], (12, 8, 4), [], False),
        (["objective.layers=[4,8]"], (4, 8), [], False),
        (["objective.student_layers=[1,1,2]"], (4, 8, 12), [], False),
        (["objective.name=units"], (4, 8, 12), ["objective.name=units"], False),
        (["objective.name=units"], (4, 8, 12), ["objective.name=units", "objective.codebook=x"], True),
        (NO_TEACHER, (), [*NO_TEACHER, "objective.codebook=x"], True),
        (NO_TEACHER, (), NO_TEACHER, False),
    ],
)  # fmt: skip
def test_heads_go_on_where_they_predict_the_same(
    changes: list[str], layers: tuple[int, ...], again: list[str], taken: bool
) -> None:
    """Clusters that are found anew are numbered anew: heads for others are worse than fresh ones."""
    student, heads = heads_of(quick(*changes))
    existing = Existing(student=student, heads=heads, head_layers=layers)
    distiller, begins = assembly.build(teacher(), quick(*again), existing)
    found = distiller.heads.named()
    same = [n in heads and torch.equal(found[n], heads[n]) for n in found]
    assert all(same) if taken else not any(same)
    assert begins.text.endswith(", heads") is taken
    weights = student.model.state_dict()
    assert all(torch.equal(t, weights[n]) for n, t in distiller.model.state_dict().items())


# -------------------------------------------------------------------------------------- who hears


class Spy(nn.Module):
    """Predicts nothing; remembers what it hears."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[Tensor, Tensor | None]] = []

    def forward(
        self,
        wave_BS: Tensor,
        lengths: Sequence[int],
        hidden_BT: Tensor | None = None,
        front_BTC: Tensor | None = None,
    ) -> list[Tensor]:
        assert not torch.is_autocast_enabled("cpu")
        assert front_BTC is None
        self.heard.append((wave_BS, hidden_BT))
        return [torch.zeros(len(lengths), 29, 8)]


def spied(
    recipe: config.Recipe, module: Spy, given: Batch, codebook: Codebook | None = None
) -> list[Tensor]:
    """Run the loss once on a module; what the teacher heard."""
    heard: list[Tensor] = []

    def seen(wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        heard.append(wave_BS)
        return [torch.ones(len(lengths), 29, 8)]

    targets: Targets = live_units(seen, codebook) if codebook else seen
    loss_of = assembly.loss_function(recipe, targets, lambda _: None, CPU)
    loss_of(module, given)
    return heard


def test_the_teacher_hears_it_clean_and_the_student_disturbed() -> None:
    recipe = quick("objective.layers=[4]").model_copy(update={"noise": NOISE})
    given, spy = batch(), Spy()
    before = given.wave_BS.clone()
    (heard,) = spied(recipe, spy.train(), given)
    assert torch.equal(heard, before)
    assert torch.equal(given.wave_BS, before)
    disturbed = spy.heard[0][0]
    assert all(not torch.equal(a, b) for a, b in zip(disturbed, before, strict=True))
    assert not disturbed[1, given.lengths[1] :].any()


def test_what_is_held_out_is_not_disturbed() -> None:
    recipe = quick("objective.layers=[4]", "objective.mask_probability=0.5")
    recipe = recipe.model_copy(update={"noise": NOISE})
    given, spy = batch(), Spy()
    spied(recipe, spy.eval(), given)
    wave_BS, hidden_BT = spy.heard[0]
    assert torch.equal(wave_BS, given.wave_BS)
    assert hidden_BT is not None  # guessing masked frames is the task itself
    assert hidden_BT.any(1).all()


def test_no_mask_unless_asked() -> None:
    spy = Spy()
    spied(quick("objective.layers=[4]"), spy, batch())
    assert spy.heard[0][1] is None


def test_masked_frames_weigh_more_than_visible_ones() -> None:
    recipe = quick(
        "objective.layers=[4]", "objective.mask_probability=0.4", "objective.visible_weight=0"
    )
    given, spy = batch(), Spy().eval()
    torch.manual_seed(0)

    def seen(wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        return [torch.arange(29.0)[None, :, None].expand(len(lengths), -1, 8)]

    loss = assembly.loss_function(recipe, seen, lambda _: None, CPU)(spy, given)
    hidden_BT = spy.heard[0][1]
    assert hidden_BT is not None
    mask_BT = frame_mask(given.lengths, 29, CPU)
    assert not (hidden_BT & ~mask_BT).any()
    wanted = 0.0
    for hidden_T, mask_T in zip(hidden_BT, mask_BT, strict=True):
        mean = float(torch.arange(29.0)[hidden_T].mean())
        wanted += mean * int(mask_T.sum())  # the L1 distance of the masked frames counts for all
    assert float(loss.parts["l1_4"]) == pytest.approx(wanted, rel=1e-5)


def test_units_are_those_of_the_clean_recording() -> None:
    recipe = quick("objective.layers=[4]", "objective.name=units", "objective.clusters=2")
    codebook = Codebook(
        features="layers", layers=(4,), centres=(torch.stack([torch.zeros(8), torch.ones(8)]),)
    )

    class Sure(Spy):
        def forward(self, *heard: object) -> list[Tensor]:
            super().forward(*heard)
            return [torch.tensor([-20.0, 20.0]).expand(2, 29, 2)]

    spy = Sure()
    spied(recipe, spy, batch(), codebook)

    def seen(wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        return [torch.ones(2, 29, 8)]

    loss = assembly.loss_function(recipe, live_units(seen, codebook), lambda _: None, CPU)(
        spy, batch()
    )
    assert float(loss.total) == pytest.approx(0, abs=1e-4)
    assert float(loss.parts["right_4"]) == batch().frames


@pytest.mark.parametrize("asked", [True, False])
def test_what_is_clustered_is_normalised_over_each_clip(asked: bool) -> None:
    changes = [
        "objective.name=units",
        "objective.layers=[0,3]",
        f"objective.normalise={str(asked).lower()}",
    ]
    given = batch(0.6, 0.35)
    one = teacher()
    told = assembly.features(one, quick(*changes).objective)(given.wave_BS, given.lengths)
    for layer, feature_BTD in zip([0, 3], told, strict=True):
        for row, count in enumerate((29, 17)):
            frames_TD = feature_BTD[row, :count]
            wave = given.wave_BS[row : row + 1, : given.lengths[row]]
            with torch.no_grad():
                (wanted_BTD,) = encode(one, wave, [given.lengths[row]], [layer])
            if asked:
                spread = wanted_BTD[0].std(0, correction=0)
                wanted_BTD = (wanted_BTD - wanted_BTD.mean(1)) / spread
            assert torch.allclose(frames_TD, wanted_BTD[0], atol=1e-4)


@pytest.mark.parametrize(
    "changes", [[], ["objective.student_layers=[1,2,2]"], ["student.layers=3"]]
)
def test_noise_and_masks_are_finite_and_follow_the_step(changes: list[str]) -> None:
    recipe = quick("objective.mask_probability=0.6", *changes).model_copy(update={"noise": NOISE})
    torch.manual_seed(0)
    one = teacher()
    distiller, _ = assembly.build(one, recipe)
    seen = assembly.features(one, recipe.objective)
    loss_of = assembly.loss_function(recipe, seen, lambda _: None, CPU)
    distiller.train()
    losses = []
    for number in (1, 1, 2):
        loop.seed_step(0, number)
        distiller.zero_grad()
        loss = loss_of(distiller, batch())
        loss.total.backward()
        losses.append(float(loss.total.detach()))
        grads = [p.grad for p in distiller.parameters() if p.requires_grad]
        assert all(g is not None and g.isfinite().all() for g in grads)
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


FROZEN = "train.freeze_front_end=true"


@pytest.mark.parametrize(
    "changes", [[], ["objective.normalise=true"], ["objective.mask_probability=0.5"]]
)
@pytest.mark.parametrize("large", [False, True])
def test_a_shared_front_end_changes_neither_loss_nor_gradients(
    changes: list[str], large: bool
) -> None:
    recipe = quick("objective.layers=[1,4]", "student.dropout=0", FROZEN, *changes)
    one = teacher(**(LARGE if large else {}))
    losses, grads = [], []
    for front in (False, True):
        torch.manual_seed(0)
        distiller, _ = assembly.build(one, recipe)
        assert assembly.shared_front(one, distiller.student, recipe) == 16
        seen = assembly.features(one, recipe.objective, front=front)
        loss_of = assembly.loss_function(recipe, seen, lambda _: None, CPU, front)
        torch.manual_seed(1)
        loss = loss_of(distiller.train(), batch())
        loss.total.backward()
        losses.append(float(loss.total.detach()))
        grads.append({name: p.grad for name, p in distiller.named_parameters()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, grad in grads[0].items():
        if name.startswith("model.feature_extractor."):
            assert grad is None
            assert grads[1][name] is None
        elif grad is not None or "masked_spec" not in name:
            torch.testing.assert_close(grads[1][name], grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ([FROZEN], 16),
        ([FROZEN, "student.architecture=hubert"], 16),
        ([FROZEN, "objective.name=units"], 16),
        ([], 0),
        ([FROZEN, "noise.probability=0.1"], 0),
        ([FROZEN, "objective.part_seconds=[1,2]"], 0),
        ([FROZEN, *NO_TEACHER], 0),
    ],
)
def test_when_a_front_end_is_shared(changes: list[str], shared: int) -> None:
    one, recipe = teacher(), quick(*changes)
    distiller, _ = assembly.build(one, recipe)
    assert assembly.shared_front(one, distiller.student, recipe) == shared
    assert assembly.shared_front(None, distiller.student, recipe) == 0
    with torch.no_grad():
        distiller.model.feature_extractor.conv_layers[2].conv.weight.mul_(1.1)
    assert assembly.shared_front(one, distiller.student, recipe) == 0


@pytest.mark.parametrize("change", ["student.start=random", "student.architecture=thin-conv"])
def test_a_front_end_that_begins_at_random_is_not_frozen(change: str) -> None:
    with pytest.raises(DistilkitError, match="freeze_front_end") as caught:
        assembly.build(teacher(), quick(FROZEN, change))
    assembly.build(teacher(), quick(change, str(caught.value.hint).removeprefix("--set ")))


def test_plain_distillation_is_the_loss_of_its_parts() -> None:
    """Neither noise nor masks: teacher's layers against heads on the student's last layer."""
    recipe = quick()
    one = teacher()
    distiller, _ = assembly.build(one, recipe)
    distiller.eval()
    given = batch()
    seen = assembly.features(one, recipe.objective)
    loss = assembly.loss_function(recipe, seen, lambda _: None, CPU)(distiller, given)
    with torch.no_grad():
        target = encode(teacher(), given.wave_BS, given.lengths, [4, 8, 12])
        predicted = distiller(given.wave_BS, given.lengths)
    wanted = layerwise(
        predicted, target, frame_mask(given.lengths, 29, CPU), settings=recipe.objective
    )
    assert float(loss.total.detach()) == pytest.approx(float(wanted.total), rel=1e-6)


def test_masks_reach_the_student_new_or_not() -> None:
    recipe = quick("objective.mask_probability=0.5")
    given = batch()
    hide = torch.zeros(2, 29, dtype=torch.bool)
    hide[:, 3:6] = True
    for existing in (None, Existing(student=teacher(num_hidden_layers=3))):
        distiller, _ = assembly.build(teacher(), recipe, existing)
        assert distiller.student.depth == (2 if existing is None else 3)
        assert distiller.model.masked_spec_embed.requires_grad
        distiller.eval()
        seen, unseen = (distiller(given.wave_BS, given.lengths, h)[0] for h in (hide & False, hide))
        assert not torch.allclose(seen, unseen)


def test_parts_keep_frames_beside_their_samples_and_lose_none() -> None:
    lengths = [16_000, 4_000, 399 + 320]
    wave_BS = torch.zeros(3, 16_000)
    target_BT = torch.full((3, frames(16_000)), -1)
    for row, length in enumerate(lengths):
        wave_BS[row, :length] = torch.arange(length)
        target_BT[row, : frames(length)] = torch.arange(frames(length))
    longest = set()
    for seed in range(40):
        torch.manual_seed(seed)
        parts_PS, ends, (part_PT, again_PT1) = parted(
            wave_BS, lengths, [target_BT, target_BT[..., None]], (0.1, 0.5)
        )
        assert torch.equal(part_PT, again_PT1[..., 0])
        counts = [frames(end) for end in ends]
        assert parts_PS.shape == (len(ends), max(ends))
        assert part_PT.shape == (len(ends), max(counts))
        heard = []
        for row, (end, count) in enumerate(zip(ends, counts, strict=True)):
            first = int(part_PT[row, 0])
            assert part_PT[row, :count].tolist() == list(range(first, first + count))
            assert parts_PS[row, :end].tolist() == list(range(first * 320, first * 320 + end))
            heard += part_PT[row, :count].tolist()
        assert heard == [frame for length in lengths for frame in range(frames(length))]
        whole = counts[
            : next(n for n in range(len(ends)) if sum(counts[: n + 1]) == frames(16_000)) + 1
        ]
        assert max(whole) - min(whole) <= 1
        assert ends[-1] == lengths[2]
        longest.add(max(whole))
    assert len(longest) > 6
    assert min(longest) >= 2
    assert max(longest) <= frames(8_000)


def test_the_student_hears_parts_of_what_the_teacher_hears() -> None:
    recipe = quick("objective.layers=[4]", "objective.part_seconds=[0.2,0.2]")
    given = batch(0.6, 0.15)  # 29 and 7 frames; 0.2 s are 9

    class Frames(Spy):
        def forward(self, *heard: Any) -> list[Tensor]:
            super().forward(*heard)
            return [torch.zeros(5, 8, 8)]

    def seen(wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        assert torch.equal(wave_BS, given.wave_BS)
        return [torch.ones(2, 29, 8)]

    loss_of = assembly.loss_function(recipe, seen, lambda _: None, CPU)
    spy = Frames()
    loss = loss_of(spy.train(), given)
    wave_PS = spy.heard[0][0]
    assert len(wave_PS) == 5
    assert wave_PS.shape[1] < 400 + 8 * 320
    assert given.frames == 36
    assert float(loss.parts["l1_4"]) == pytest.approx(36.0)
    whole = Spy()
    loss_of(whole.eval(), given)
    assert torch.equal(whole.heard[0][0], given.wave_BS)


def test_layers_may_be_normalised_and_their_heads_begin_anew() -> None:
    student, heads = heads_of(quick())
    existing = Existing(student=student, heads=heads, head_layers=(4, 8, 12))
    changed = quick("objective.normalise=true")
    assert not assembly.build(teacher(), changed, existing)[1].text.endswith(", heads")
