"""Convolutions over time, right and quick on a processor.

oneDNN brings what it convolves into an order of its own and back, makes code anew in fp32 for the gradient of
the input at every width that it meets, and takes long for one channel. Here a convolution is the product of
its windows, which overlap in memory: frames first, channels last. One in groups or with padding is oneDNN's,
and the gradient of its input another convolution, with the taps turned round. Equal but for rounding.

Letters in names: B clips in a batch, T frames in, N frames out, C channels in, O channels out, K taps.
"""

import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, pad

NARROW = 16  # channels of a group, below which oneDNN may go wrong in bf16
FLAGS = Path("/proc/cpuinfo")
TRIED = 1024, 768, 768  # a product that shows what bf16 is worth
WORTH = 1.2  # times as fast as fp32, from which on it is taken


def arithmetic(given: Tensor) -> torch.dtype:
    """What products of a tensor are computed in: what autocast says, or its own type."""
    kind = given.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else given.dtype


def on_cpu(given: Tensor) -> bool:
    """Whether a processor computes with it, for which all of this is; elsewhere torch has its own ways."""
    return given.device.type == "cpu"


def has_bf16() -> bool:
    """Whether this processor has instructions for products in bf16, by its flags; only Linux tells."""
    if not FLAGS.is_file():
        return False
    words = set(FLAGS.read_text(encoding="utf-8", errors="replace").split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


@cache
def bf16_is_quick() -> bool:
    """Whether a product in bf16 takes less time than one in fp32 here: both are tried, in milliseconds.

    Instructions alone do not say it: an Intel Xeon without AMX has those of AVX-512, and is slower with them.
    """
    for kind in (torch.float32, torch.bfloat16):
        _seconds(kind)  # the first is not quick yet
    both = [(_seconds(torch.float32), _seconds(torch.bfloat16)) for _ in range(6)]
    return min(plain for plain, _ in both) > WORTH * min(low for _, low in both)


def _seconds(kind: torch.dtype) -> float:
    """What a product takes."""
    rows, ins, outs = TRIED
    given, weight = torch.ones(rows, ins, dtype=kind), torch.ones(outs, ins, dtype=kind)
    began = time.perf_counter()
    torch.mm(given, weight.T)
    return time.perf_counter() - began


def frames_first(conv: nn.Module, given: Tensor) -> bool:
    """Whether a convolution takes products of windows of what it is given, in memory frame by frame."""
    return on_cpu(given) or bool(getattr(conv, "products", False))


class LeanConv(nn.Conv1d):
    """A convolution that is quick on a processor, and right in bf16 on every one.

    With AMX, oneDNN (in torch 2.14) gives something else in bf16 where a group has an even number of channels
    below 16: the same products are taken of the same rounded numbers in fp32, which is as cheap.
    """

    products = False  # whether it takes products elsewhere than on a processor too

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.compiler.is_exporting() or not frames_first(self, input):
            return self._stock(input, weight, bias)
        low, grouped = arithmetic(input), self.groups > 1
        if on_cpu(input) and low == torch.float16:
            return self._stock(input, weight, bias)
        if self._plain() and not grouped and self.padding == (0,):
            return _product(input.to(low), weight.to(low), bias, self.stride[0])
        if not on_cpu(input):
            return self._stock(input, weight, bias)
        if low != torch.bfloat16:
            return self._turned(input, weight, bias)
        if not grouped or self.in_channels // self.groups >= NARROW:
            return self._stock(input, weight, bias)
        input, weight = _rounded(input), _rounded(weight)
        bias = None if bias is None else _rounded(bias)
        with torch.autocast("cpu", enabled=False):
            return self._turned(input, weight, bias).to(low)

    def _turned(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        asked = torch.is_grad_enabled() and input.requires_grad
        padding = self.padding[0]
        known = self._plain() and self.stride == (1,) and int(padding) < self.kernel_size[0]
        if not asked or not known:
            return self._stock(input, weight, bias)
        found = self._stock(input.detach(), weight, bias)
        behind: Tensor = _Behind.apply(found, input, weight, padding, self.groups)
        return behind

    def _plain(self) -> bool:
        """Whether its taps are neighbours, and its padding so many zeros."""
        named = isinstance(self.padding, str)
        return self.padding_mode == "zeros" and self.dilation == (1,) and not named

    def _stock(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found: Tensor = super()._conv_forward(input, weight, bias)
        return found


def _product(input_BCT: Tensor, weight_OCK: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """A convolution without padding as a product; (B, O, N) with the channels last in memory."""
    _, channels, taps = weight_OCK.shape
    frames_BTC = input_BCT.mT
    if channels == 1:  # windows so small that to copy them is quicker
        frames_BTC, stride = input_BCT[:, 0].unfold(1, taps, stride).flatten(1)[..., None], taps
    frames_BTC, weight_OX = frames_BTC.contiguous(), weight_OCK.transpose(1, 2).flatten(1)
    given = frames_BTC, weight_OX, bias if bias is None else bias.to(input_BCT)
    if not torch.is_grad_enabled():
        return _multiplied(*given, stride).mT
    shape = _Asked.apply(*given, stride)
    with torch.no_grad():
        found_BNO = _multiplied(*given, stride)
    answered: Tensor = _Answered.apply(shape, found_BNO)
    return answered.mT


def _shares(frames_BTC: Tensor, taps: int, stride: int) -> list[tuple[Tensor, slice]]:
    """What a convolution sees at each step, (B * N, X), cut where the next step begins; and which X that are.

    So cut, the windows of one clip do not overlap, and need not be copied.
    """
    count, frames, channels = frames_BTC.shape
    outs, step = (frames - taps) // stride + 1, stride * channels
    found = []
    for at in range(0, taps * channels, step):
        size, steps = (count, outs, min(step, taps * channels - at)), (frames * channels, step, 1)
        place = frames_BTC.storage_offset() + at
        share = frames_BTC.as_strided(size, steps, place).flatten(0, 1)
        found.append((share, slice(at, at + size[-1])))
    return found


def _multiplied(frames_BTC: Tensor, weight_OX: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """What the convolution gives, (B, N, O): a product for each share of its windows, added up."""
    taps = weight_OX.shape[1] // frames_BTC.shape[2]
    # The smallest share first: in bf16 its sum is rounded twice.
    (share, own), *others = reversed(_shares(frames_BTC, taps, stride))
    weight = weight_OX[:, own].T
    found = share @ weight if bias is None else torch.addmm(bias, share, weight)
    for share, own in others:
        found.addmm_(share, weight_OX[:, own].T)
    return found.view(len(frames_BTC), -1, len(weight_OX))


class _Asked(torch.autograd.Function):
    """The gradients of a convolution that is not computed yet.

    What they take is kept before it is: so a checkpointed piece that ends with it is computed again up to it.
    """

    @staticmethod
    def forward(
        ctx: Any, frames_BTC: Tensor, weight_OX: Tensor, bias: Tensor | None, stride: int
    ) -> Tensor:
        ctx.save_for_backward(frames_BTC, weight_OX)
        ctx.stride = stride
        count, frames, channels = frames_BTC.shape
        outs = (frames - weight_OX.shape[1] // channels) // stride + 1
        return frames_BTC.new_empty(1).expand(count, outs, len(weight_OX))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (frames_BTC, weight_OX), stride = ctx.saved_tensors, ctx.stride
        count, frames, channels = frames_BTC.shape
        given_RO = gradients[0].flatten(0, 1)
        shares = _shares(frames_BTC, weight_OX.shape[1] // channels, stride)
        ahead = weight = bias = None
        if ctx.needs_input_grad[0]:
            ahead = _ahead(gradients[0], weight_OX, channels, stride)[:, :frames]
            if ahead.shape[1] < frames:  # the last ones were not seen
                ahead = pad(ahead, (0, 0, 0, frames - ahead.shape[1]))
        if ctx.needs_input_grad[1]:
            weight = torch.cat([given_RO.T @ share for share, _ in shares], 1)
        if ctx.needs_input_grad[2]:
            bias = given_RO.sum(0)
        return ahead, weight, bias, None


def _ahead(given_BNO: Tensor, weight_OX: Tensor, channels: int, stride: int) -> Tensor:
    """The gradient of the frames, (B, T, C), and of some behind the last that was seen."""
    count, outs, _ = given_BNO.shape
    step, width = stride * channels, weight_OX.shape[1]
    # In runs of a step: with each of them but the last ones a window begins.
    found = given_BNO.new_empty(count, outs + (width - 1) // step, step)
    found[:, outs:] = 0
    found[:, :outs, width:] = 0
    for clip, given_NO in zip(found, given_BNO, strict=True):
        torch.mm(given_NO, weight_OX[:, :step], out=clip[:outs, :width])
        for at in range(step, width, step):
            share = given_NO @ weight_OX[:, at : at + step]
            clip[at // step :][:outs, : share.shape[1]] += share
    return found.view(count, -1, channels)


class _Answered(torch.autograd.Function):
    """Gives on what was computed, and the gradient of it to what had asked."""

    @staticmethod
    def forward(ctx: Any, asked: Tensor, found: Tensor) -> Tensor:
        return found.view_as(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Behind(torch.autograd.Function):
    """Gives a convolution's output on, and takes the gradient of its input, which it did not see, as above.

    It saves nothing: a checkpointed piece that ends with a convolution then is computed again up to it only.
    """

    @staticmethod
    def forward(
        ctx: Any,
        found_BOT: Tensor,
        input_BCT: Tensor,
        weight_OCK: Tensor,
        padding: int,
        groups: int,
    ) -> Tensor:
        ctx.how = weight_OCK, padding, groups
        return found_BOT.view_as(found_BOT)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (given_BOT,) = gradients
        with torch.no_grad():
            return given_BOT, _turned(given_BOT, *ctx.how), None, None, None


def _turned(given_BOT: Tensor, weight_OCK: Tensor, padding: int, groups: int) -> Tensor:
    """The gradient of the input (B, C, T) at stride 1: the outputs', convolved with the taps backwards."""
    outs, ins, taps = weight_OCK.shape
    turned = weight_OCK.view(groups, outs // groups, ins, taps).transpose(1, 2).flip(-1)
    turned = turned.reshape(groups * ins, outs // groups, taps)
    return conv1d(given_BOT, turned, padding=taps - 1 - padding, groups=groups)


def _rounded(given: Tensor) -> Tensor:
    """In fp32, the numbers that bf16 has of it."""
    return given.to(torch.bfloat16).float()


def lean(part: nn.Module) -> None:
    """Make the convolutions over time in a part of a model lean, in place; parametrisations are kept."""
    for module in part.modules():
        if isinstance(module, nn.Conv1d) and not isinstance(module, LeanConv):
            module.__class__ = type("LeanConv1d", (LeanConv, type(module)), {})
