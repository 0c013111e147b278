"""Losses by hand, and that padding and splitting change nothing."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import cross_entropy

from distilkit import config
from distilkit.objectives import (
    Heads,
    PairHeads,
    UnitHeads,
    frame_weights,
    layerwise,
    load_named,
    mask_spans,
    units,
)

ONE, ALL = config.Objective(layers=[4]), config.Objective(layers=[4, 8])
UNITS = config.Objective(name="units", layers=[4])


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_worked_out_by_hand() -> None:
    predicted = [torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])]
    target = [torch.tensor([[[1.0, 0.0], [2.0, 0.0]]])]
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss = layerwise(predicted, target, mask, settings=ONE)
    same, orthogonal = math.log1p(math.exp(-1)), math.log(2)
    assert float(loss.parts["l1_4"]) == pytest.approx(0 + 2)
    assert float(loss.parts["cosine_4"]) == pytest.approx(same + orthogonal)
    assert float(loss.total) == pytest.approx(2 + same + orthogonal)
    weighted = layerwise(
        predicted,
        target,
        mask,
        settings=config.Objective(layers=[4], l1_weight=3.0, cosine_weight=0.5),
    )
    assert float(weighted.total) == pytest.approx(6 + 0.5 * (same + orthogonal))


def test_least_where_equal() -> None:
    target = [random(2, 5, 8, seed=1), random(2, 5, 8, seed=2)]
    mask = torch.ones(2, 5, dtype=torch.bool)
    least = layerwise(target, target, mask, settings=ALL).total
    for seed in range(3, 8):
        other = [t + 0.1 * random(2, 5, 8, seed=seed) for t in target]
        assert layerwise(other, target, mask, settings=ALL).total > least


def test_frames_behind_the_end_do_not_count() -> None:
    predicted, target = [random(2, 6, 8, seed=1)], [random(2, 6, 8, seed=2)]
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    first = layerwise(predicted, target, mask, settings=ONE)
    for value in (1e6, float("inf"), float("nan")):
        predicted[0][1, 4:], target[0][1, 4:] = value, float("inf")
        second = layerwise(predicted, target, mask, settings=ONE)
        assert first.total == second.total
        logits = random(2, 6, 5, seed=3)
        unit = torch.ones(2, 6, dtype=torch.long)
        third = units([logits], [unit], mask, settings=UNITS).total
        logits[1, 4:] = value
        assert units([logits], [unit], mask, settings=UNITS).total == third


def test_low_precision_is_compared_in_fp32() -> None:
    predicted, target = random(2, 6, 8, seed=1).bfloat16(), random(2, 6, 8, seed=2).bfloat16()
    mask = torch.ones(2, 6, dtype=torch.bool)
    low = layerwise([predicted], [target], mask, settings=ONE)
    full = layerwise([predicted.float()], [target.float()], mask, settings=ONE)
    assert low.total.dtype == torch.float32
    assert low.total == full.total


def test_splitting_a_batch_changes_nothing() -> None:
    predicted, target = [random(4, 6, 8, seed=1)], [random(4, 6, 8, seed=2)]
    mask = torch.ones(4, 6, dtype=torch.bool)
    whole = layerwise(predicted, target, mask, settings=ONE)
    parts = [
        layerwise([predicted[0][i : i + 1]], [target[0][i : i + 1]], mask[i : i + 1], settings=ONE)
        for i in range(4)
    ]
    assert float(sum(part.total for part in parts)) == pytest.approx(float(whole.total), rel=1e-6)


def test_heads_keep_their_weights_under_the_original_names() -> None:
    heads, other = Heads(8, 12, 3), Heads(8, 12, 3)
    named = heads.named()
    assert {name: tuple(t.shape) for name, t in named.items()} == {
        "output_layer.0.weight": (24, 8),
        "output_layer.0.bias": (24,),
        "output_layer.2.weight": (3, 8, 12),
        "output_layer.2.bias": (1, 1, 3, 12),
    }
    load_named(other, {name: tensor.detach().clone() for name, tensor in named.items()})
    hidden = random(2, 5, 8, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(heads([hidden]), other([hidden]), strict=True))
    assert heads([hidden])[0].shape == (2, 5, 12)


def test_heads_start_as_the_original_ones() -> None:
    """Uniform within the inverse root of the width, as `nn.Linear` and s3prl's SplitLinear."""
    for tensor in Heads(64, 64, 3).parameters():
        assert 0.9 * 64**-0.5 < tensor.abs().max() <= 64**-0.5


# ------------------------------------------------------------------------- other distances, by hand


def test_squared_distance_and_raw_cosine_by_hand() -> None:
    predicted = [
        torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]),
        torch.tensor([[[3.0, 0.0], [0.0, -1.0]]]),
    ]
    target = [torch.tensor([[[1.0, 0.0], [2.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])]
    mask = torch.ones(1, 2, dtype=torch.bool)
    settings = config.Objective(
        layers=[4, 8], l1_weight=0.0, l2_weight=0.5, cosine_weight=2.0, cosine="raw"
    )
    loss = layerwise(predicted, target, mask, settings=settings)
    assert {name: float(value) for name, value in loss.parts.items()} == pytest.approx(
        {
            "l1_4": 0 + 2, "l2_4": 0 + 4, "cosine_4": 0 + 1,
            "l1_8": 1 + 1, "l2_8": 2 + 2, "cosine_8": 0 + 2,
        }
    )  # fmt: skip
    assert float(loss.total) == pytest.approx((0.5 * 4 + 2 * 1 + 0.5 * 4 + 2 * 2) / 2)


def test_frames_have_their_weights() -> None:
    predicted, target = [random(2, 3, 8, seed=1)], [random(2, 3, 8, seed=2)]
    mask = torch.tensor([[True, True, True], [True, True, False]])
    weight = torch.tensor([[0.5, 2.0, 0.0], [1.5, 1.0, 9.0]])
    total = 0.0
    for b, t in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        one = [x[0][b : b + 1, t : t + 1] for x in (predicted, target)]
        alone = layerwise([one[0]], [one[1]], torch.ones(1, 1, dtype=torch.bool), settings=ONE)
        total += float(weight[b, t]) * float(alone.total)
    loss = layerwise(predicted, target, mask, weight, settings=ONE)
    assert float(loss.total) == pytest.approx(total, rel=1e-5)


# ------------------------------------------------------------------------------------------ units


def test_cross_entropy_by_hand() -> None:
    logits = [torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]]))]
    right = [torch.tensor([[0, 0, 2]])]
    mask = torch.tensor([[True, True, False]])
    loss = units(logits, right, mask, settings=UNITS)
    assert set(loss.parts) == {"entropy_4", "right_4"}
    assert float(loss.total) == pytest.approx(math.log(2) + math.log(10))
    assert float(loss.parts["right_4"]) == 1
    weight = torch.tensor([[3.0, 0.5, 100.0]])
    loss = units(logits, right, mask, weight, settings=UNITS)
    assert float(loss.total) == pytest.approx(3 * math.log(2) + 0.5 * math.log(10))
    assert float(loss.parts["right_4"]) == 3


def test_units_equal_torch_over_several_codebooks() -> None:
    logits = [random(2, 6, 5, seed=1).requires_grad_(), random(2, 6, 5, seed=2)]
    plain = [one.detach() for one in logits]
    right = [(random(2, 6, seed=s) * 10).long() % 5 for s in (3, 4)]
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    settings = config.Objective(name="units", layers=[2, 7])
    loss = units(logits, right, mask, settings=settings)
    for name, one, other in zip(("2", "7"), plain, right, strict=True):
        wanted = cross_entropy(one[mask], other[mask], reduction="sum")
        assert float(loss.parts[f"entropy_{name}"]) == pytest.approx(float(wanted), rel=1e-6)
        guessed = (one.argmax(-1) == other)[mask].sum()
        assert int(loss.parts[f"right_{name}"]) == int(guessed)
    wanted = (loss.parts["entropy_2"] + loss.parts["entropy_7"]) / 2
    assert float(loss.total.detach()) == pytest.approx(float(wanted), rel=1e-6)
    assert not any(part.requires_grad for part in loss.parts.values())
    loss.total.backward()
    assert logits[0].grad is not None
    assert not logits[0].grad[1, 4:].any()
    half = [one.bfloat16() for one in plain]
    low = units(half, right, mask, settings=settings)
    assert low.total == units([one.float() for one in half], right, mask, settings=settings).total


def test_units_of_mfcc_are_called_so() -> None:
    settings = config.Objective(name="units", features="mfcc", layers=[1, 2, 3])
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss = units([torch.zeros(1, 2, 4)], [torch.tensor([[1, 2]])], mask, settings=settings)
    assert set(loss.parts) == {"entropy_mfcc", "right_mfcc"}
    assert float(loss.total) == pytest.approx(2 * math.log(4))


def test_unit_heads_compare_by_cosine() -> None:
    torch.manual_seed(0)
    heads = UnitHeads(8, [3, 5])
    hidden = [random(2, 4, 8, seed=1), random(2, 4, 8, seed=2)]
    for given in (hidden, hidden[:1]):
        found = heads(given)
        assert [tuple(t.shape) for t in found] == [(2, 4, 3), (2, 4, 5)]
        for place, logits in enumerate(found):
            frame = heads.maps[place](given[place if len(given) == 2 else 0])[..., None, :]
            wanted = torch.cosine_similarity(frame, heads.units[place], dim=-1) / 0.1
            torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert heads(hidden)[0].dtype in (torch.float32, torch.bfloat16)
        assert heads(hidden)[0].isfinite().all()


# ------------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize("probability", [0.2, 0.8])
def test_spans_hide_their_share(probability: float) -> None:
    """Spans overlap, and no two start at one frame: a bit more than 1 - exp(-p) is hidden."""
    torch.manual_seed(0)
    mask = torch.ones(200, 500, dtype=torch.bool)
    hidden = mask_spans(mask, [500] * 200, probability, 10)
    assert hidden.dtype == torch.bool
    share = float(hidden.float().mean())
    assert share == pytest.approx(1 - (1 - probability / 10) ** 10, abs=0.01)
    assert (hidden.float().mean(0) > 0).all()  # also the first frame and the last
    assert hidden.float().mean(1).std() > 0  # clips are drawn on their own


def test_a_fraction_of_a_span_comes_by_chance() -> None:
    torch.manual_seed(0)
    mask = torch.ones(400, 40, dtype=torch.bool)
    runs = []
    for row in mask_spans(mask, [40] * 400, 0.375, 10).tolist():  # one and a half spans
        runs.append(sum(row))
    assert min(runs) == 10
    assert 0.35 < sum(count > 10 for count in runs) / 400 < 0.55


def test_spans_are_as_long_as_asked_and_lie_within_the_clip() -> None:
    mask = torch.zeros(3, 60, dtype=torch.bool)
    counts = [60, 30, 12]
    for row, count in zip(mask, counts, strict=True):
        row[:count] = True
    places = set()
    for seed in range(60):
        torch.manual_seed(seed)
        hidden = mask_spans(mask, counts, 1e-9, 7)  # one span each
        assert not (hidden & ~mask).any()
        for row, count in zip(hidden, counts, strict=True):
            where = row.nonzero().flatten().tolist()
            span = min(7, count // 2)
            assert where == list(range(where[0], where[0] + span))
            places.add((count, where[0]))
    assert (12, 0) in places
    assert (12, 6) in places


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_a_short_clip_keeps_half_of_its_frames_from_one_span(count: int) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        mask = torch.ones(1, count, dtype=torch.bool)
        hidden = mask_spans(mask, [count], 0.01, 10)
        assert 1 <= int(hidden.sum()) <= max(1, count // 2)


def test_weights_of_frames_are_1_on_average_over_each_clip() -> None:
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    hidden = torch.tensor([[True, True, False, False, False, False], [True] * 3 + [False] * 3])
    for visible in (0.0, 0.25, 1.0):
        weight = frame_weights(mask, hidden, visible)
        for row, inside in zip(weight, mask, strict=True):
            assert float(row[inside].mean()) == pytest.approx(1)
            assert not row[~inside].any()
        assert float(weight[0, 5]) == pytest.approx(visible * float(weight[0, 0]))
        assert float(weight[1, 3]) == pytest.approx(visible * float(weight[1, 0]))
    assert torch.equal(frame_weights(mask, hidden, 1.0), mask.float())


# ------------------------------------------------------------------------------------------ heads


def test_each_pair_has_a_map_of_its_own() -> None:
    heads = PairHeads(8, 12, 2)
    assert {name: tuple(t.shape) for name, t in heads.named().items()} == {
        "pairs.0.weight": (12, 8), "pairs.0.bias": (12,),
        "pairs.1.weight": (12, 8), "pairs.1.bias": (12,),
    }  # fmt: skip
    one, other = random(1, 3, 8, seed=1), random(1, 3, 8, seed=2)
    found = heads([one, other])
    for head, layer, prediction in zip(heads.pairs, (one, other), found, strict=True):
        torch.testing.assert_close(prediction, layer @ head.weight.T + head.bias)
    with pytest.raises(ValueError, match="zip"):
        heads([one])


def test_unit_heads_have_these_names() -> None:
    assert {name: tuple(t.shape) for name, t in UnitHeads(8, [3, 5]).named().items()} == {
        "maps.0.weight": (256, 8), "maps.0.bias": (256,), "units.0": (3, 256),
        "maps.1.weight": (256, 8), "maps.1.bias": (256,), "units.1": (5, 256),
    }  # fmt: skip


@pytest.mark.parametrize(
    "make", [lambda: Heads(8, 12, 2), lambda: PairHeads(8, 12, 2), lambda: UnitHeads(8, [3, 5])]
)
def test_heads_take_only_what_fits(make: Callable[[], torch.nn.Module]) -> None:
    heads = make()
    named = {name: t.detach().clone() for name, t in make().named().items()}
    before = {name: t.detach().clone() for name, t in heads.named().items()}
    first = sorted(named)[0]
    for wrong in (
        {name: t for name, t in named.items() if name != first},
        {**named, "more": torch.ones(1)},
        {**named, first: torch.ones(7, 7, 7)},
        {**named, first: torch.ones(1)},  # torch would repeat it
    ):
        with pytest.raises(KeyError, match="heads"):
            load_named(heads, wrong)
    assert all(torch.equal(t, before[name]) for name, t in heads.named().items())
    load_named(heads, named)
    assert all(torch.equal(t, named[name]) for name, t in heads.named().items())
    assert all(p.requires_grad for p in heads.parameters())
