"""The conv front end: exact for clips of any length, and lean.

It makes 50 frames a second of 16,000 samples, and is where most of a student's time and memory goes: its
first convolution alone gives 3,200 vectors a second. The clips of a batch run through it one behind the
other, as one long clip, and frames that saw two clips are left out at the end. So clips of all lengths share
each convolution, and none is padded by more than a frame. Little audio is in it at once, and for the
backward pass only what the convolutions give is kept; norms, activations, and the first convolution, which
is a hundredth of the work, are computed again.

Letters in names: B clips in a batch, S samples, T frames, N windows, C channels, K taps.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, chain, pairwise
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers.models.hubert.modeling_hubert import HubertFeatureEncoder

from distilkit.audio import SAMPLE_RATE
from distilkit.convolutions import arithmetic

# Channels times seconds of audio at once; processors are slower with more.
ON_CPU, ON_GPU = 4096, 32768
BEGUN = 8192  # in the widest part

Layer: TypeAlias = Any  # of transformers: a convolution, perhaps a norm, and an activation


class LeanFront(HubertFeatureEncoder):  # type: ignore[misc]
    """The front end of HuBERT and its relatives: the modules and the state dict of the stock one.

    Base models normalise the first convolution's output over the whole time axis. Here that is each
    clip's own, and padding is left out.
    """

    lengths: list[int] | None = None  # samples of each clip; None where nothing is padded

    def forward(self, input_values: Tensor) -> Tensor:
        """Waves (B, S) to (B, C, T); frames behind a clip's end are 0."""
        lengths = self.lengths or [input_values.shape[1]] * len(input_values)
        most = ON_CPU if input_values.device.type == "cpu" else ON_GPU
        found_TC: list[Tensor] = []
        for some in self._together(lengths, most):
            found_TC += self._part([input_values[i, : lengths[i]] for i in some])
        joined_BTC = pad_sequence(found_TC, batch_first=True) if lengths[1:] else found_TC[0][None]
        behind = _frames(self.conv_layers, input_values.shape[1]) - joined_BTC.shape[1]
        return pad(joined_BTC, (0, 0, 0, behind)).mT

    def _together(self, lengths: Sequence[int], most: int) -> list[range]:
        """Neighbours that are no more than so many channels times seconds, or one clip alone."""
        room, found = 0.0, list[range]()
        for i, length in enumerate(lengths):
            taken = self.conv_layers[0].conv.out_channels * length / SAMPLE_RATE
            if taken > room:
                room = most
                found.append(range(i, i))
            room -= taken
            found[-1] = range(found[-1].start, i + 1)
        return found

    def _part(self, clips: list[Tensor]) -> tuple[Tensor, ...]:
        """Each clip's frames, (T, C)."""
        first, second, *_ = layers = list(self.conv_layers)
        (taps, stride), (next_taps, next_stride) = _size(first), _size(second)
        hop = prod(_size(layer)[1] for layer in layers)
        lengths = [len(clip) for clip in clips]
        widths = [-(-length // hop) * hop for length in lengths]
        # Behind a piece are as many samples as two convolutions see beyond what they step over.
        more = next_taps - next_stride
        behind = taps - stride + more * stride
        shares = zip(clips, lengths, widths, strict=True)
        wave_S = torch.cat([pad(clip, (0, width - length)) for clip, length, width in shares])
        wave_S = pad(wave_S, (0, behind))
        begun, starts = [], [0, *accumulate(widths)]
        for some in self._together(widths, BEGUN):
            own = [_frames([first], lengths[i]) for i in some]
            apart = [widths[i] // stride for i in some]
            apart[-1] += more
            begin = partial(_begun, first, second, own=own, apart=apart)
            begun.append(
                self._again(begin, wave_S[starts[some.start] : starts[some.stop] + behind])
            )
        hidden = _joined(begun)
        for before, layer in pairwise(layers[1:]):
            hidden = self._again(partial(_next, before, layer), hidden)
        (found_TC,) = _behind(layers[-1], hidden).mT
        own = [_frames(layers, length) for length in lengths]
        apart = [width // hop for width in widths]
        apart[-1] += len(found_TC) - sum(apart)
        return _split(found_TC, own, apart)[::2]

    def _again(self, run: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
        """Run up to a convolution; for the backward pass, up to what that convolution takes once more."""
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in self.parameters()):
            found: Tensor = checkpoint(run, given, use_reentrant=False, preserve_rng_state=False)
            return found
        return run(given)


def _size(layer: Layer) -> tuple[int, int]:
    """Taps and stride."""
    taps, stride = layer.conv.kernel_size, layer.conv.stride
    return int(taps[0]), int(stride[0])


def _frames(layers: Sequence[Layer], length: int) -> int:
    """What layers make of so many samples."""
    for taps, stride in map(_size, layers):
        length = (length - taps) // stride + 1
    return length


def _split(given: Tensor, own: list[int], apart: list[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Each clip's own frames, and behind them those up to the next one's, which saw two clips."""
    pairs = ((count, width - count) for count, width in zip(own, apart, strict=True))
    return torch.split(given, list(chain(*pairs)), dim)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One (1, C, T) of several, in the order of the first one's memory."""
    return torch.cat([part.mT for part in parts], 1).mT if parts[1:] else parts[0]


def _begun(first: Layer, second: Layer, wave_S: Tensor, own: list[int], apart: list[int]) -> Tensor:
    """Two layers up to the second convolution, (1, C, T); of the first, `apart` frames are a clip's."""
    norm, conv = getattr(first, "layer_norm", None), first.conv
    if not isinstance(norm, nn.GroupNorm):
        return _next(first, second, conv(wave_S[None, None]))
    if wave_S.device.type == "cpu" and conv.bias is None:
        hidden = _normed(conv, norm, wave_S, own, apart)
    else:
        parts = _split(conv(wave_S[None, None]), own, apart, dim=-1)
        hidden = _joined([part if i % 2 else norm(part) for i, part in enumerate(parts)])
    found: Tensor = second.conv(first.activation(hidden))
    return found


def _normed(
    conv: nn.Conv1d, norm: nn.GroupNorm, wave_S: Tensor, own: list[int], apart: list[int]
) -> Tensor:
    """The first convolution and its norm over each clip's own frames, (1, C, T), as one product.

    Each channel's mean and variance follow from those of what the taps see, and then are part of the taps.
    """
    (taps,), (stride,) = conv.kernel_size, conv.stride
    taps_CK, found, start = conv.weight[:, 0].double(), [], 0
    for count, width in zip(own, apart, strict=True):
        clip_S = wave_S[start : start + (width - 1) * stride + taps]
        start += width * stride
        clip_S = clip_S - clip_S[: (count - 1) * stride + taps].mean()  # which the norm takes away
        seen_NK = clip_S.to(arithmetic(clip_S)).unfold(0, taps, stride)
        own_NK = seen_NK[:count].double()
        mean_K = own_NK.mean(0)
        spread_KK = (own_NK - mean_K).T @ (own_NK - mean_K) / count
        variance_C = (taps_CK @ spread_KK * taps_CK).sum(1)
        scale_C = norm.weight / (variance_C + norm.eps).sqrt()
        shift_C = norm.bias - scale_C * (taps_CK @ mean_K)
        # A last tap that sees ones: so the shift is in the product, and its gradient too.
        normed = torch.cat([scale_C[:, None] * taps_CK, shift_C[:, None]], 1).to(seen_NK)
        found.append(pad(seen_NK, (0, 1), value=1.0) @ normed.T)
    return _joined([part_TC.T[None] for part_TC in found])


def _behind(layer: Layer, given_BCT: Tensor) -> Tensor:
    """What a layer that has no norm over time makes of its convolution's output."""
    norm = getattr(layer, "layer_norm", None)
    normed = given_BCT if norm is None else norm(given_BCT.mT).mT
    found: Tensor = layer.activation(normed)
    return found


def _next(before: Layer, layer: Layer, given_BCT: Tensor) -> Tensor:
    """From one convolution's output to the next one's."""
    found: Tensor = layer.conv(_behind(before, given_BCT))
    return found
