"""What the student is to predict of a batch: hidden states of a teacher, or their units.

Letters in names: B clips in a batch, S samples, T frames, D width.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from distilkit.codebooks import Codebook, mfcc
from distilkit.encoder import Encoder, encode, truncated

Targets = Callable[[Tensor, Sequence[int]], list[Tensor]]


class LiveTargets:
    """The teacher run beside the student, up to the deepest layer asked for, without dropout.

    The original code left the teacher's dropout on; here the teacher is in evaluation mode.
    """

    def __init__(
        self,
        teacher: Encoder,
        layers: Sequence[int],
        device: torch.device | str = "cpu",
        autocast: AbstractContextManager[object] | None = None,
    ) -> None:
        self.layers = tuple(layers)
        self.teacher = truncated(teacher, max(1, *layers))  # layer 0 is what the first one takes
        self.teacher.model.to(device).eval().requires_grad_(False)
        self._autocast = autocast or nullcontext()

    def __call__(self, wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """Hidden states of the chosen layers, one (B, T, D) each, without gradient."""
        with torch.no_grad(), self._autocast:
            return encode(self.teacher, wave_BS, lengths, self.layers)


def live_mfcc(wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """MFCC as the only target, (B, T, 39)."""
    return [mfcc(wave_BS, lengths)]


def live_units(features: Targets, codebook: Codebook) -> Targets:
    """The units of those features: whole numbers (B, T) for each layer."""

    def units(wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        with torch.no_grad(), torch.autocast(wave_BS.device.type, enabled=False):
            return codebook.units(features(wave_BS, lengths))

    return units
