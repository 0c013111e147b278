"""The conv front end: exact for clips of any length, and lean.

It makes 50 frames a second of 16,000 samples, and is where most of a student's time and memory goes: its
first convolution alone gives 3,200 vectors a second. The clips of a batch run through it one behind the
other, as one long clip, block by block; frames that saw two clips are left out at the end. So clips of all
lengths share each convolution, and nothing is padded but the last block. For the backward pass only what the
convolutions give is kept; norms, activations, and the first convolution, which is a hundredth of the
work, are computed again.

Letters in names: B clips in a batch, S samples, T frames, N windows, C channels, K taps.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, chain, pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers.models.hubert.modeling_hubert import HubertFeatureEncoder

from distilkit.convolutions import arithmetic, frames_first, on_cpu

ON_CPU, ON_GPU = 512, 1024  # frames of a block: 10 s and 20 s
LEAST = 32  # frames, where there are but few sizes of blocks

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
        clips = [wave_S[:length] for wave_S, length in zip(input_values, lengths, strict=True)]
        layers = list(self.conv_layers)
        hop, reach = _steps(layers)
        widths = [-(-length // hop) for length in lengths]  # in frames
        blocks = _blocks(sum(widths), input_values)
        taps_BKC = None
        if isinstance(getattr(layers[0], "layer_norm", None), nn.GroupNorm):
            low = arithmetic(input_values)
            clips = [(clip - clip.mean()).to(low) for clip in clips]  # which the norm takes away
            taps_BKC = _normed(layers[0], clips)
        row = [
            pad(clip, (0, width * hop - len(clip)))
            for clip, width in zip(clips, widths, strict=True)
        ]
        wave_S = torch.cat(row)
        wave_S = pad(wave_S, (0, sum(blocks) * hop + reach - hop - len(wave_S)))
        starts, found_TC = [0, *accumulate(widths[:-1])], list[Tensor]()
        for at, end in pairwise(accumulate(blocks, initial=0)):
            own_S, places = (
                wave_S[at * hop : end * hop + reach - hop],
                (start - at for start in starts),
            )
            found_TC.append(self._block(own_S, taps_BKC, [place * hop for place in places]))
        own = [_frames(layers, length) for length in lengths]
        widths[-1] += sum(blocks) - sum(widths)
        pairs = ((count, width - count) for count, width in zip(own, widths, strict=True))
        frames_TC = torch.cat(found_TC) if found_TC[1:] else found_TC[0]
        clips_TC = list(torch.split(frames_TC, list(chain(*pairs)))[::2])
        joined_BTC = pad_sequence(clips_TC, batch_first=True) if lengths[1:] else clips_TC[0][None]
        behind = _frames(layers, input_values.shape[1]) - joined_BTC.shape[1]
        return pad(joined_BTC, (0, 0, 0, behind)).mT

    def _block(self, wave_S: Tensor, taps_BKC: Tensor | None, starts: list[int]) -> Tensor:
        """Frames (T, C) of a piece of the row; `starts` are samples of it at which clips begin."""
        first, second, *_ = layers = list(self.conv_layers)
        if taps_BKC is None:
            hidden = self._again(partial(_begun, first, second), wave_S)
        else:
            stride = first.conv.stride[0]
            begin = partial(_begun_normed, first, second, [start // stride for start in starts])
            hidden = self._again(begin, wave_S, taps_BKC)
        for before, layer in pairwise(layers[1:]):
            hidden = self._again(partial(_next, before, layer), hidden)
        return _behind(layers[-1], hidden)[0].T

    def _again(self, run: Callable[..., Tensor], *given: Tensor) -> Tensor:
        """Run up to a convolution; for the backward pass, up to what that convolution takes once more."""
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in self.parameters()):
            found: Tensor = checkpoint(run, *given, use_reentrant=False, preserve_rng_state=False)
            return found
        return run(*given)


def _steps(layers: Sequence[Layer]) -> tuple[int, int]:
    """Samples from one frame to the next, and samples that a frame sees."""
    hop = reach = 1
    for layer in layers:
        reach += (layer.conv.kernel_size[0] - 1) * hop
        hop *= layer.conv.stride[0]
    return hop, reach


def _frames(layers: Sequence[Layer], length: int) -> int:
    """What layers make of so many samples."""
    for layer in layers:
        length = (length - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
    return length


def _blocks(frames: int, wave: Tensor) -> list[int]:
    """Sizes of blocks of so many frames or a few more.

    For bf16 oneDNN makes code anew for every size of a product, on a processor, so there are few.
    """
    size, found = (ON_CPU, list[int]()) if on_cpu(wave) else (ON_GPU, [])
    few = on_cpu(wave) and arithmetic(wave) == torch.bfloat16
    while frames > 0:
        while few and LEAST < size > frames:
            size //= 2
        found.append(size if few else min(size, frames))
        frames -= found[-1]
    return found


def _normed(first: Layer, clips: Sequence[Tensor]) -> Tensor:
    """The taps that convolve and normalise each clip, (B, K, C); the last of them sees ones.

    A channel's mean and variance over time follow from those of what the taps see.
    """
    wide = torch.float32 if clips[0].device.type == "mps" else torch.float64  # which has no other
    conv, norm = first.conv, first.layer_norm
    means, spreads = [], []
    for clip_S in clips:
        seen_NK = clip_S.unfold(0, conv.kernel_size[0], conv.stride[0]).to(wide)
        mean_K = seen_NK.mean(0)
        means.append(mean_K)
        spreads.append((seen_NK - mean_K).T @ (seen_NK - mean_K) / len(seen_NK))
    taps_KC = conv.weight[:, 0].to(wide).T
    variance_BC = (torch.stack(spreads) @ taps_KC * taps_KC).sum(1)
    scale_BC = norm.weight / (variance_BC + norm.eps).sqrt()
    shift_BC = norm.bias - scale_BC * (torch.stack(means) @ taps_KC)
    if conv.bias is not None:
        shift_BC = shift_BC + 0 * conv.bias  # which the norm takes away
    return torch.cat([scale_BC[:, None] * taps_KC, shift_BC[:, None]], 1).to(clips[0])


def _begun_normed(
    first: Layer, second: Layer, starts: list[int], wave_S: Tensor, taps_BKC: Tensor
) -> Tensor:
    """Two layers up to the second convolution; `starts` are windows at which clips begin."""
    seen_NK = wave_S.unfold(0, first.conv.kernel_size[0], first.conv.stride[0])
    seen_NK = pad(seen_NK, (0, 1), value=1.0)
    ends = [*starts[1:], len(seen_NK)]
    pieces = [(max(0, at), end) for at, end in zip(starts, ends, strict=True)]
    inside = [i for i, (at, end) in enumerate(pieces) if at < min(end, len(seen_NK))]
    taps_KC = taps_BKC[inside[0] : inside[-1] + 1].flatten(0, 1)
    if inside[1:]:  # columns of its own for each clip
        parts = seen_NK.new_zeros(len(seen_NK), len(inside), seen_NK.shape[1])
        for column, i in enumerate(inside):
            own = slice(*pieces[i])
            parts[own, column] = seen_NK[own]
        seen_NK = parts.flatten(1)
    # In the order that the next convolution takes.
    last = frames_first(second.conv, wave_S)
    hidden = (seen_NK @ taps_KC).T if last else taps_KC.T @ seen_NK.T
    found: Tensor = second.conv(first.activation(hidden[None]))
    return found


def _begun(first: Layer, second: Layer, wave_S: Tensor) -> Tensor:
    """Two layers up to the second convolution, where there is no norm over time."""
    return _next(first, second, first.conv(wave_S[None, None]))


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
