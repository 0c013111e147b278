"""Losses by hand, and that padding and splitting change nothing."""

import math

import pytest
import torch

from distilkit import config
from distilkit.objectives import Heads, layerwise, load_named

ONE, ALL = config.Objective(layers=[4]), config.Objective(layers=[4, 8])


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_worked_out_by_hand() -> None:
    predicted = [torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])]
    target = [torch.tensor([[[1.0, 0.0], [2.0, 0.0]]])]
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss = layerwise(predicted, target, mask, settings=ONE)
    same, orthogonal = math.log1p(math.exp(-1)), math.log(2)
    assert loss.frames == 2
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
    predicted[0][1, 4:], target[0][1, 4:] = 1e6, float("inf")
    second = layerwise(predicted, target, mask, settings=ONE)
    assert first.frames == second.frames == 10
    assert first.total == second.total


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
    assert sum(part.frames for part in parts) == whole.frames
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
