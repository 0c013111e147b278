"""Lean convolutions: torch's numbers and gradients, as products or without oneDNN's gradient of the input."""

import copy
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from distilkit import convolutions, plan
from distilkit.config import Train
from distilkit.convolutions import LeanConv, lean

FRONT = [
    (3, 2),
    (2, 2),
    (10, 5),
    (3, 4),
]  # taps and stride; the last leaves frames out between its taps
KINDS = {
    **{
        f"{taps} taps, stride {stride}": dict(kernel_size=taps, stride=stride)
        for taps, stride in FRONT
    },
    "with bias": dict(kernel_size=3, stride=2, bias=True),
    "positions, even": dict(kernel_size=8, padding=4, groups=4, bias=True),
    "positions, odd": dict(kernel_size=5, padding=2, groups=2),
    "one tap": dict(kernel_size=1),
    "of another kind": dict(kernel_size=3, stride=2, padding=1),
    "dilated": dict(kernel_size=3, dilation=2),
    "padded by name": dict(kernel_size=3, padding="same"),
    "padded more than it has taps": dict(kernel_size=2, padding=3),
    "strided groups": dict(kernel_size=3, stride=2, groups=2),
}


def made(**shape: object) -> tuple[nn.Conv1d, nn.Conv1d]:
    torch.manual_seed(0)
    stock = nn.Conv1d(16, 24, **{"bias": False, **shape})  # type: ignore[arg-type]
    ours = copy.deepcopy(stock)
    lean(ours)
    assert isinstance(ours, LeanConv)
    return stock, ours


def learned(conv: nn.Conv1d, x_BCT: torch.Tensor) -> list[torch.Tensor | None]:
    x_BCT = x_BCT.clone().requires_grad_()
    found = conv(x_BCT)
    found.backward(torch.randn(found.shape, generator=torch.Generator().manual_seed(1)))
    return [found.detach(), x_BCT.grad, *(weight.grad for weight in conv.parameters())]


@pytest.mark.parametrize("width", [10, 63, 64, 65, 66])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_and_gradients_are_torchs(kind: str, width: int) -> None:
    stock, ours = made(**KINDS[kind])
    x_BCT = torch.randn(3, 16, width)
    for wanted, got in zip(learned(stock, x_BCT), learned(ours, x_BCT), strict=True):
        assert wanted is not None
        assert got is not None
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_a_frozen_weight_gets_no_gradient() -> None:
    _, ours = made(kernel_size=3, stride=2)
    ours.requires_grad_(False)
    _, behind, weight = learned(ours, torch.randn(2, 16, 40))
    assert behind is not None
    assert weight is None


def test_a_parametrisation_is_kept() -> None:
    stock, ours = (weight_norm(conv, dim=2) for conv in made(kernel_size=8, padding=4, groups=4))
    lean(ours)
    assert isinstance(ours, LeanConv)
    x_BCT = torch.randn(2, 16, 40)
    assert len(list(ours.parameters())) == 2
    for wanted, got in zip(learned(stock, x_BCT), learned(ours, x_BCT), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    once = type(ours)
    lean(ours)
    assert type(ours) is once


SAID = """
import torch
from torch import nn
from distilkit.convolutions import lean
part = nn.Sequential(nn.Conv1d(16, 16, 3, stride=2), nn.Conv1d(16, 16, 8, padding=4, groups=4))
if {lean}:
    lean(part)
part(torch.randn(2, 16, 200, requires_grad=True)).sum().backward()
"""


@pytest.mark.parametrize("ours", [True, False])
def test_onednn_makes_no_gradient_of_the_input(ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is what it takes long to make code for. torch's own asks for it, or this test says nothing."""
    monkeypatch.setenv("ONEDNN_VERBOSE", "1")
    command = [sys.executable, "-c", SAID.format(lean=ours)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "onednn_verbose" not in said:
        pytest.skip("this torch has no oneDNN")
    assert ("backward_data" in said) is not ours
    assert "backward_weights" in said


def test_narrow_groups_in_bf16_are_computed_in_fp32_of_rounded_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that a processor on which oneDNN is right sees the change too."""
    own, seen = nn.Conv1d._conv_forward, []

    def watched(self: nn.Conv1d, x_BCT: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        seen.append((x_BCT.dtype, torch.is_autocast_enabled("cpu")))
        return own(self, x_BCT, *rest)

    monkeypatch.setattr(nn.Conv1d, "_conv_forward", watched)
    torch.manual_seed(0)
    narrow, wide = nn.Conv1d(20, 20, 5, groups=2), nn.Conv1d(64, 64, 5, groups=2)
    for conv in (narrow, wide):
        lean(conv)
    x_BCT = torch.randn(2, 20, 50)
    plain = nn.Conv1d(20, 20, 5, groups=2)
    rounded = {name: v.to(torch.bfloat16).float() for name, v in narrow.state_dict().items()}
    plain.load_state_dict(rounded)
    with torch.autocast("cpu", torch.bfloat16):
        got = narrow(x_BCT)
        wide(torch.randn(2, 64, 50))
    assert seen == [(torch.float32, False), (torch.float32, True)]
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, plain(x_BCT.to(torch.bfloat16).float()).to(torch.bfloat16))
    got.float().sum().backward()
    assert narrow.weight.grad is not None
    with torch.no_grad():
        plain.load_state_dict(narrow.state_dict())
    assert torch.equal(narrow(x_BCT), plain(x_BCT))  # in fp32 it is what it was


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_under_autocast_it_is_torchs_but_for_rounding(low: torch.dtype, groups: int) -> None:
    stock, ours = made(kernel_size=3, stride=2, groups=groups)
    x_BCT = torch.randn(2, 16, 40)
    found = []
    for conv in (stock, ours):
        given = x_BCT.clone().requires_grad_()
        with torch.autocast("cpu", low):
            out = conv(given)
        assert out.dtype == low
        out.float().sum().backward()
        found.append((out, given.grad, conv.weight.grad))
    for wanted, got in zip(*found, strict=True):
        assert torch.equal(got, wanted) or low is torch.bfloat16
        torch.testing.assert_close(got, wanted, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("low", "quick"), [(0.5, True), (0.9, False), (1.8, False)])
def test_bf16_is_taken_where_it_is_quicker(
    low: float, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On processors that are pretended; their instructions are those of this one, or said to be there."""
    took = {torch.float32: 1.0, torch.bfloat16: low}
    monkeypatch.setattr(convolutions, "_seconds", took.__getitem__)
    monkeypatch.setattr(plan, "bf16_is_quick", convolutions.bf16_is_quick.__wrapped__)
    monkeypatch.setattr(plan, "has_bf16", lambda: True)
    chosen, why = plan.precision(Train(), "cpu")
    assert chosen == ("bf16" if quick else "fp32")
    assert ("no quicker" in why) is not quick


def test_bf16_is_not_tried_where_it_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = tmp_path / "cpuinfo"
    flags.write_text("flags : fpu avx2 avx512f\n")
    monkeypatch.setattr(convolutions, "FLAGS", flags)
    monkeypatch.setattr(plan, "bf16_is_quick", lambda: pytest.fail("tried"))
    assert plan.precision(Train(), "cpu") == ("fp32", "no bf16 here")
    flags.write_text("flags : fpu avx2 avx512f amx_bf16\n")
    assert convolutions.has_bf16()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_product_is_timed_in_its_own_arithmetic(
    kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    product, seen = torch.mm, []

    def slow(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        seen.append(product(one, other))
        return seen[-1]

    monkeypatch.setattr(torch, "mm", slow)
    assert convolutions._seconds(kind) > 0.05
    assert [(found.dtype, *found.shape) for found in seen] == [(kind, 1024, 768)]
