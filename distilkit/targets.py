"""What the student is to predict of a batch: hidden states of a teacher, or their units.

Letters in names: B clips in a batch, S samples, T frames, D width.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from distilkit import config
from distilkit.audio import HOP_SAMPLES, SAMPLE_RATE, frames, samples
from distilkit.codebooks import Codebook, mfcc
from distilkit.encoder import Encoder, encode, frame_mask, in_bf16, truncated
from distilkit.kernels import STOCK, Kernels, apply

Targets = Callable[[Tensor, Sequence[int]], list[Tensor]]


class LiveTargets:
    """The teacher run beside the student, up to the deepest layer asked for, without dropout.

    It runs in bf16 where the student does, never in fp16, whose range the norms of large teachers leave.
    The original code left the teacher's dropout on; here the teacher is in evaluation mode.
    """

    def __init__(
        self,
        teacher: Encoder,
        layers: Sequence[int],
        device: torch.device | str = "cpu",
        arithmetic: config.Precision = "fp32",
        computed: Kernels = STOCK,
    ) -> None:
        self.layers = tuple(layers)
        self.teacher = truncated(teacher, max(1, *layers))  # layer 0 is what the first one takes
        self.teacher.model.eval().requires_grad_(False)
        self._device, self._low = torch.device(device), arithmetic == "bf16"
        if self._low:
            self.teacher = in_bf16(self.teacher)
        apply(self.teacher.model, computed)

    def __call__(self, wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """Hidden states of the chosen layers, one (B, T, D) each, without gradient."""
        self.teacher.model.to(self._device)  # not before it is needed there
        autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=self._low)
        with torch.no_grad(), autocast:
            return encode(self.teacher, wave_BS, lengths, self.layers)


def live_mfcc(wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """MFCC as the only target, (B, T, 39)."""
    return [mfcc(wave_BS, lengths)]


def normalised(features: Targets, count: int) -> Targets:
    """The first `count` features, (B, T, D), with zero mean and unit variance over each clip's own frames.

    What lies behind these is handed on.

    Source: van Niekerk et al., Interspeech 2021 (doi 10.21437/Interspeech.2021-1182): the mean over an
    utterance is where the speaker is.
    """

    def seen(wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        found = features(wave_BS, lengths)
        with torch.autocast(wave_BS.device.type, enabled=False):
            normed = [_over_time(feature_BTD.float(), lengths) for feature_BTD in found[:count]]
        return [*normed, *found[count:]]

    return seen


def _over_time(feature_BTD: Tensor, lengths: Sequence[int]) -> Tensor:
    own_BT1 = frame_mask(lengths, feature_BTD.shape[1], feature_BTD.device)[..., None]
    count_B11 = own_BT1.sum(1, keepdim=True)
    centred_BTD = feature_BTD - (feature_BTD * own_BT1).sum(1, keepdim=True) / count_B11
    spread_B1D = ((centred_BTD.square() * own_BT1).sum(1, keepdim=True) / count_B11).sqrt()
    return centred_BTD / spread_B1D.clamp_min(1e-3)


def live_units(features: Targets, codebook: Codebook) -> Targets:
    """The units of those features: whole numbers (B, T) for each layer; what lies behind is handed on."""
    count = len(codebook.centres)

    def units(wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        with torch.no_grad(), torch.autocast(wave_BS.device.type, enabled=False):
            found = features(wave_BS, lengths)
            return [*codebook.units(found[:count]), *found[count:]]

    return units


def parted(
    wave_BS: Tensor, lengths: Sequence[int], targets: Sequence[Tensor], seconds: Sequence[float]
) -> tuple[Tensor, list[int], list[Tensor]]:
    """Each clip in parts, alike in length, with its part of the targets; every frame is in one part.

    The longest that a part may be is drawn for all clips at once, evenly over the logarithm, from
    torch's random state.

    Args:
        wave_BS: mono float samples at 16 kHz, zeros behind each clip's end.
        lengths: samples of each clip.
        targets: (B, T, D) or (B, T) each.
        seconds: the lowest and the highest of what is drawn.

    Returns:
        Waves (P, S'), lengths and targets of all parts, the first clip's first.
    """
    low, high = (math.log(bound) for bound in seconds)
    most = max(1, frames(int(SAMPLE_RATE * math.exp(low + (high - low) * float(torch.rand(()))))))
    waves: list[Tensor] = []
    ends: list[int] = []
    parts: list[list[Tensor]] = [[] for _ in targets]
    for index, length in enumerate(lengths):
        own = frames(length)
        count = math.ceil(own / most)
        for first, after in pairwise(own * number // count for number in range(count + 1)):
            begin = first * HOP_SAMPLES
            end = begin + samples(after - first) if after < own else length
            waves.append(wave_BS[index, begin:end])
            ends.append(end - begin)
            for part, target in zip(parts, targets, strict=True):
                part.append(target[index, first:after])
    padded = [pad_sequence(part, batch_first=True) for part in parts]
    return pad_sequence(waves, batch_first=True), ends, padded
