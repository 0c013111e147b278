"""Losses: pure functions that return a sum and a count, and the heads that they train.

A loss is a sum over frames with the number of frames beside it, never a mean: the training loop
divides once per optimizer step, so splitting a batch changes nothing.

Letters in names: B clips in a batch, T frames, N predicted layers, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, gelu, logsigmoid

from distilkit import config


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A sum over frames that can be back-propagated, its parts, and how many frames it sums."""

    total: Tensor  # scalar
    frames: int
    parts: dict[str, Tensor]  # scalars without gradient, sums over the same frames


class Heads(nn.Module):
    """One prediction head for each teacher layer, as in DistilHuBERT.

    Linear to N inner vectors, GELU, then one linear map per layer. The state dict uses the names of
    s3prl's distiller (`output_layer.0`, `output_layer.2`).

    Source: arXiv 2110.01900, section 3.1; s3prl `upstream/distiller/model.py` and `module.py`.
    """

    def __init__(self, width: int, target_width: int, layers: int) -> None:
        super().__init__()
        self.layers = layers
        self.inner = nn.Linear(width, width * layers)
        self.weight_NDD = nn.Parameter(torch.empty(layers, width, target_width))
        self.bias_ND = nn.Parameter(torch.empty(layers, target_width))
        bound = width**-0.5
        nn.init.uniform_(self.weight_NDD, -bound, bound)
        nn.init.uniform_(self.bias_ND, -bound, bound)

    def forward(self, hidden_BTD: Tensor) -> list[Tensor]:
        """Predictions of each layer, N tensors (B, T, D)."""
        inner = gelu(self.inner(hidden_BTD)).unflatten(-1, (self.layers, -1))  # type: ignore[no-untyped-call]
        return [inner[..., i, :] @ self.weight_NDD[i] + self.bias_ND[i] for i in range(self.layers)]

    def named(self) -> dict[str, Tensor]:
        """The weights under s3prl's names."""
        return {
            "output_layer.0.weight": self.inner.weight,
            "output_layer.0.bias": self.inner.bias,
            "output_layer.2.weight": self.weight_NDD,
            "output_layer.2.bias": self.bias_ND[None, None],
        }

    def load_named(self, tensors: dict[str, Tensor]) -> None:
        """Take weights under s3prl's names; their shapes must fit."""
        with torch.no_grad():
            for name, parameter in self.named().items():
                parameter.copy_(tensors[name])


def layerwise(
    predicted: Sequence[Tensor],
    target: Sequence[Tensor],
    mask_BT: Tensor,
    *,
    layers: Sequence[int],
    l1_weight: float = 1.0,
    cosine_weight: float = 1.0,
) -> Loss:
    """L1 plus log-sigmoid cosine to each chosen teacher layer, averaged over the layers.

    For a frame: `mean_n( l1_weight * mean_d |p - t| - cosine_weight * log sigmoid(cos(p, t)) )`.
    Padded frames do not count; the original code averaged over them too.

    Args:
        predicted: N tensors (B, T, D), one per head.
        target: N tensors (B, T, D), the teacher's layers.
        mask_BT: True where a frame belongs to its clip.
        layers: the N layer numbers, for the names of the parts.
        l1_weight: weight of the L1 distance.
        cosine_weight: weight of the cosine term.

    Source: arXiv 2110.01900, equation 1; s3prl `pretrain/distiller/pretrain_expert.py`.
    """
    parts: dict[str, Tensor] = {}
    total = torch.zeros((), device=mask_BT.device)
    for layer, prediction, teacher in zip(layers, predicted, target, strict=True):
        prediction, teacher = prediction.float(), teacher.float()
        l1 = (prediction - teacher).abs().mean(-1)[mask_BT].sum()
        cosine = -logsigmoid(cosine_similarity(prediction, teacher, dim=-1))[mask_BT].sum()
        parts[f"l1_{layer}"], parts[f"cosine_{layer}"] = l1.detach(), cosine.detach()
        total = total + (l1_weight * l1 + cosine_weight * cosine) / len(layers)
    return Loss(total=total, frames=int(mask_BT.sum()), parts=parts)


OBJECTIVES: dict[config.ObjectiveName, Callable[..., Loss]] = {
    "layerwise": layerwise,
}
