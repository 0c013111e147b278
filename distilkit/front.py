"""The conv front end: exact for padded batches, and lean.

It makes 50 frames a second of 16,000 samples, and is where most of a student's time and memory goes: its
first convolution alone gives 3,200 vectors a second. So it runs over little audio at once, and its widest
part clip by clip where lengths differ. For the backward pass only what the convolutions give is
kept; norms, activations, and the first convolution, which is a hundredth of the work, are computed again.

Letters in names: B clips in a batch, S samples, T frames, C channels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers.models.hubert.modeling_hubert import HubertFeatureEncoder

from distilkit.audio import SAMPLE_RATE

# Channels times seconds of audio at once; processors are slower with more.
ON_CPU, ON_GPU = 4096, 32768
BEGUN = 8192  # in the widest part


class LeanFront(HubertFeatureEncoder):  # type: ignore[misc]
    """The front end of HuBERT and its relatives: the modules and the state dict of the stock one.

    Base models normalise the first convolution's output over the whole time axis. Here that is each
    clip's own, and padding is left out.
    """

    lengths: list[int] | None = None  # samples of each clip; None where nothing is padded

    def forward(self, input_values: Tensor) -> Tensor:
        """Waves (B, S) to (B, C, T); frames behind a clip's end hold nothing of use."""
        lengths = self.lengths or [input_values.shape[1]] * len(input_values)
        most = ON_CPU if input_values.device.type == "cpu" else ON_GPU
        rows = self._rows(most, input_values)
        return _joined(
            [
                self._part(input_values[at : at + rows], lengths[at : at + rows])
                for at in range(0, len(lengths), rows)
            ]
        )

    def _rows(self, most: int, wave_BS: Tensor) -> int:
        channels = self.conv_layers[0].conv.out_channels
        return max(1, int(most * SAMPLE_RATE / (channels * wave_BS.shape[1])))

    def _part(self, wave_BS: Tensor, lengths: list[int]) -> Tensor:
        first, second, *_ = layers = list(self.conv_layers)
        rows, begun = self._rows(BEGUN, wave_BS), []
        for at in range(0, len(lengths), rows):
            own = lengths[at : at + rows]
            behind = partial(_behind, first, ends=_ends(first.conv, own))
            begin = partial(_convolved, [first.conv, behind, second.conv])
            begun.append(self._again(begin, wave_BS[at : at + rows, None, : max(own)]))
        hidden = _joined(begun)
        for before, layer in pairwise(layers[1:]):
            run = partial(_convolved, [partial(_behind, before), layer.conv])
            hidden = self._again(run, hidden)
        return _behind(layers[-1], hidden)

    def _again(self, run: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
        """Run up to a convolution; for the backward pass, up to what that convolution takes once more."""
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in self.parameters()):
            found: Tensor = checkpoint(run, given, use_reentrant=False, preserve_rng_state=False)
            return found
        return run(given)


def _ends(conv: nn.Conv1d, lengths: list[int]) -> list[int] | None:
    """Frames that a convolution gives of each clip; None where no clip is shorter than another."""
    found = [(length - conv.kernel_size[0]) // conv.stride[0] + 1 for length in lengths]
    return found if min(lengths) < max(lengths) else None


def _behind(layer: nn.Module, given_BCT: Tensor, ends: list[int] | None = None) -> Tensor:
    """What a layer makes of its convolution's output; a norm over time takes each clip's own frames."""
    norm = getattr(layer, "layer_norm", None)
    if isinstance(norm, nn.GroupNorm) and ends:
        own = [norm(given_BCT[i : i + 1, :, :end]) for i, end in enumerate(ends)]
        given_BCT = _joined(own)
    elif isinstance(norm, nn.GroupNorm):
        given_BCT = norm(given_BCT)
    elif isinstance(norm, nn.LayerNorm):
        given_BCT = norm(given_BCT.mT).mT
    assert isinstance(layer.activation, nn.Module)
    found: Tensor = layer.activation(given_BCT)
    return found


def _convolved(parts: Sequence[Callable[[Tensor], Tensor]], given: Tensor) -> Tensor:
    for part in parts:
        given = part(given)
    return given


def _joined(parts: list[Tensor]) -> Tensor:
    """(B, C, T) of parts that are of different lengths, zeros behind the shorter ones."""
    longest = max(part.shape[-1] for part in parts)
    if len(parts) == 1:
        return parts[0]
    return torch.cat([pad(part, (0, longest - part.shape[-1])) for part in parts])
