"""What the teacher says of a batch."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from distilkit.encoder import Encoder, encode, truncate


class LiveTargets:
    """The teacher run beside the student, up to the deepest layer asked for, without dropout.

    The original code left the teacher's dropout on; here the teacher is in evaluation mode.
    """

    def __init__(
        self,
        teacher: Encoder,
        layers: Sequence[int],
        autocast: AbstractContextManager[object] | None = None,
    ) -> None:
        self.teacher, self.layers = teacher, tuple(layers)
        self._autocast = autocast or nullcontext()
        teacher.model.eval().requires_grad_(False)
        truncate(teacher, max(layers))

    def __call__(self, wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """Hidden states of the chosen layers, one (B, T, D) each, without gradient."""
        with torch.no_grad(), self._autocast:
            return encode(self.teacher, wave_BS, lengths, self.layers)
