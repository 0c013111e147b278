"""Convolutions over time, right and quick on a processor, where oneDNN computes them.

In fp32, oneDNN makes code anew for the gradient of a convolution's input at every width that it meets.
That takes longer than to run it, and clips have many widths. The same gradient is a matrix product where
there is a stride, and a convolution with the taps turned round where there is none: equal but for
rounding, and no slower at known widths.

Letters in names: B clips in a batch, T frames in, N frames out, C channels in, O channels out, K taps.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d

NARROW = 16  # channels of a group, below which oneDNN may go wrong in bf16


class LeanConv(nn.Conv1d):
    """A convolution whose gradients do not wait for oneDNN, and that is right in bf16 on every processor.

    With AMX, oneDNN (in torch 2.14) gives something else in bf16 where a group has an even number of channels
    below 16: the same products are taken of the same rounded numbers in fp32, which is as cheap.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            return self._fp32(input, weight, bias)
        low = input.device.type == "cpu" and torch.get_autocast_dtype("cpu") == torch.bfloat16
        narrow = self.groups > 1 and self.in_channels // self.groups < NARROW
        if not (low and narrow):
            return self._stock(input, weight, bias)
        input, weight = _rounded(input), _rounded(weight)
        bias = None if bias is None else _rounded(bias)
        with torch.autocast("cpu", enabled=False):
            return self._fp32(input, weight, bias).to(torch.bfloat16)

    def _fp32(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        asked = torch.is_grad_enabled() and input.requires_grad and input.dtype == torch.float32
        if not asked or not self._known():
            return self._stock(input, weight, bias)
        found = self._stock(input.detach(), weight, bias)
        behind: Tensor = _Behind.apply(
            found, input, weight, self.stride[0], self.padding[0], self.groups
        )
        return behind

    def _known(self) -> bool:
        """Whether it is of the two kinds below."""
        if isinstance(self.padding, str) or self.padding_mode != "zeros" or self.dilation != (1,):
            return False
        if self.stride == (1,):
            return self.padding[0] < self.kernel_size[0]
        return self.groups == 1 and self.padding == (0,)

    def _stock(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found: Tensor = super()._conv_forward(input, weight, bias)
        return found


class _Behind(torch.autograd.Function):
    """Gives a convolution's output on, and takes the gradient of its input, which it did not see, as above.

    It saves nothing: a checkpointed piece that ends with a convolution then is computed again up to it only.
    """

    @staticmethod
    def forward(
        ctx: Any,
        found_BON: Tensor,
        input_BCT: Tensor,
        weight_OCK: Tensor,
        stride: int,
        padding: int,
        groups: int,
    ) -> Tensor:
        ctx.how = weight_OCK, input_BCT.shape[-1], stride, padding, groups
        return found_BON.view_as(found_BON)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        (given_BON,) = gradients
        weight_OCK, frames, stride, padding, groups = ctx.how
        with torch.no_grad():
            if stride == 1:
                found = _turned(given_BON, weight_OCK, padding, groups)
            else:
                found = _strided(given_BON, weight_OCK, stride, frames)
        return given_BON, found, None, None, None, None


def _turned(given_BON: Tensor, weight_OCK: Tensor, padding: int, groups: int) -> Tensor:
    """The gradient of the input (B, C, T) at stride 1: the outputs', convolved with the taps backwards."""
    outs, ins, taps = weight_OCK.shape
    turned = weight_OCK.view(groups, outs // groups, ins, taps).transpose(1, 2).flip(-1)
    turned = turned.reshape(groups * ins, outs // groups, taps)
    return conv1d(given_BON, turned, padding=taps - 1 - padding, groups=groups)


def _strided(given_BON: Tensor, weight_OCK: Tensor, stride: int, frames: int) -> Tensor:
    """The gradient of the input (B, C, T) at a stride: a product gives each tap's share."""
    _, ins, taps = weight_OCK.shape
    count, _, outs = given_BON.shape
    shares = torch.matmul(weight_OCK.permute(2, 1, 0).flatten(0, 1), given_BON)
    shares_BKCN = shares.view(count, taps, ins, outs)
    most = max(outs + (taps - 1) // stride, -(-frames // stride))
    found = given_BON.new_zeros(count, ins, most, stride)
    for tap in range(taps):
        place = found[:, :, tap // stride : tap // stride + outs, tap % stride]
        if tap < stride:
            place.copy_(shares_BKCN[:, tap])
        else:
            place.add_(shares_BKCN[:, tap])
    return found.flatten(2)[..., :frames]


def _rounded(given: Tensor) -> Tensor:
    """In fp32, the numbers that bf16 has of it."""
    return given.to(torch.bfloat16).float()


def lean(part: nn.Module) -> None:
    """Make the convolutions over time in a part of a model lean, in place; parametrisations are kept."""
    for module in part.modules():
        if isinstance(module, nn.Conv1d) and not isinstance(module, LeanConv):
            module.__class__ = type("LeanConv1d", (LeanConv, type(module)), {})
