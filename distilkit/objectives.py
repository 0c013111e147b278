"""Losses: pure functions that return a sum and a count, and the heads that they train.

A loss is a sum over frames with the number of frames beside it, never a mean: the training loop
divides once per optimizer step, so splitting a batch changes nothing.

Letters in names: B clips in a batch, T frames, N predicted layers, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, gelu, logsigmoid, normalize

from distilkit import config

TEMPERATURE = 0.1  # of the cosine similarity between a frame and a unit
UNIT_WIDTH = 256  # of the space in which frames and units are compared


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A sum over frames that can be back-propagated, and its parts."""

    total: Tensor  # scalar
    parts: dict[str, Tensor]  # scalars without gradient, sums over the same frames


class Heads(nn.Module):
    """One prediction head for each teacher layer, all on the student's last, as in DistilHuBERT.

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

    def forward(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Predictions of each layer, N tensors (B, T, D), from the student's last, (B, T, D)."""
        (hidden_BTD,) = hidden
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


class PairHeads(nn.Module):
    """One linear map for each pair of a student layer and the teacher layer that it predicts.

    Source: FitHuBERT (arXiv 2207.00555, section 3.3), without its hints' weights.
    """

    def __init__(self, width: int, target_width: int, layers: int) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(nn.Linear(width, target_width) for _ in range(layers))

    def forward(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Predictions, N tensors (B, T, D), from N student layers, (B, T, D) each."""
        return [pair(layer) for pair, layer in zip(self.pairs, hidden, strict=True)]

    def named(self) -> dict[str, Tensor]:
        """The weights by name."""
        return dict(self.named_parameters())


class UnitHeads(nn.Module):
    """For each codebook, how much a frame resembles each of its units.

    The frame is mapped to 256 numbers and compared with one learned vector per unit by their cosine, over
    a temperature of 0.1.

    Source: HuBERT, arXiv 2106.07447, equation 3.
    """

    def __init__(self, width: int, clusters: Sequence[int]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(width, UNIT_WIDTH) for _ in clusters)
        self.units = nn.ParameterList(torch.rand(count, UNIT_WIDTH) for count in clusters)

    def forward(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Logits, one (B, T, K) for each codebook, from one or as many student layers (B, T, D)."""
        layers = list(hidden) * (len(self.maps) if len(hidden) == 1 else 1)
        return [
            normalize(layer_map(layer_BTD).float(), dim=-1)
            @ normalize(units_KD.float(), dim=-1).T
            / TEMPERATURE
            for layer_map, units_KD, layer_BTD in zip(self.maps, self.units, layers, strict=True)
        ]

    def named(self) -> dict[str, Tensor]:
        """The weights by name."""
        return dict(self.named_parameters())


def load_named(heads: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Take weights under the names that `named` gives; names and shapes must fit."""
    own: dict[str, Tensor] = heads.named()  # type: ignore[operator]
    wanted, given = ({n: tuple(t.shape) for n, t in sorted(x.items())} for x in (own, tensors))
    if wanted != given:
        raise KeyError(f"heads {given} for {wanted}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def mask_spans(mask_BT: Tensor, frames: Sequence[int], probability: float, length: int) -> Tensor:
    """Frames for the student to guess: random spans, bool (B, T), from torch's random state.

    A clip of n frames gets `probability * n / length` spans (a fraction of one by chance, at least
    one), which start anywhere and may overlap: at 0.8 about half of the frames are hidden. A span
    is at most half of its clip.

    Source: wav2vec 2.0, arXiv 2006.11477, section 3.1, as used by HuBERT.
    """
    hidden_BT = torch.zeros_like(mask_BT)
    for index, count in enumerate(frames):
        span = min(length, max(1, count // 2))
        spans = max(1, int(probability * count / span + float(torch.rand(()))))
        starts = torch.randperm(count - span + 1)[:spans]
        places = (starts[:, None] + torch.arange(span)).flatten().to(mask_BT.device)
        hidden_BT[index, places] = True
    return hidden_BT


def frame_weights(mask_BT: Tensor, hidden_BT: Tensor, visible: float) -> Tensor:
    """Weights (B, T) whose mean over each clip's frames is 1: `visible` to 1 for the masked ones."""
    weight_BT = torch.where(hidden_BT, 1.0, visible) * mask_BT
    share_B1 = weight_BT.sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True)
    return weight_BT / share_B1


def layerwise(
    predicted: Sequence[Tensor],
    target: Sequence[Tensor],
    mask_BT: Tensor,
    weight_BT: Tensor | None = None,
    *,
    settings: config.Objective,
) -> Loss:
    """Distance plus cosine term to each chosen teacher layer, averaged over the layers.

    For a frame, as published: `mean_n( mean_d |p - t| - log sigmoid(cos(p, t)) )`; the mean squared
    distance and `1 - cos` may stand beside or in place of them. Padded frames do not count; the
    original code averaged over them too.

    Args:
        predicted: N tensors (B, T, D), one per head.
        target: N tensors (B, T, D), the teacher's layers.
        mask_BT: True where a frame belongs to its clip.
        weight_BT: weights of frames, 1 when None.
        settings: the N layers (for the names of the parts) and the weights of the terms.

    Source: arXiv 2110.01900, equation 1; s3prl `pretrain/distiller/pretrain_expert.py`.
    """
    assert isinstance(settings.layers, list), "presets are resolved beforehand"
    weights = {
        "l1": settings.l1_weight,
        "l2": settings.l2_weight,
        "cosine": settings.cosine_weight,
    }
    parts: dict[str, Tensor] = {}
    total = torch.zeros((), device=mask_BT.device)
    weight_BT = mask_BT.float() if weight_BT is None else weight_BT * mask_BT
    outside_BT1 = ~mask_BT[..., None]
    for layer, prediction, teacher in zip(settings.layers, predicted, target, strict=True):
        # Not by index, which on a GPU waits for all that came before.
        prediction = prediction.float().masked_fill(outside_BT1, 0.0)
        teacher = teacher.float().masked_fill(outside_BT1, 0.0)
        cosine = cosine_similarity(prediction, teacher, dim=-1)
        terms = {
            "l1": (prediction - teacher).abs().mean(-1),
            "l2": (prediction - teacher).square().mean(-1) if settings.l2_weight else None,
            "cosine": -logsigmoid(cosine) if settings.cosine == "log-sigmoid" else 1 - cosine,
        }
        for name, term in terms.items():
            if term is not None:
                value = (term * weight_BT).sum()
                parts[f"{name}_{layer}"] = value.detach()
                if weights[name]:
                    total = total + weights[name] * value / len(settings.layers)
    return Loss(total=total, parts=parts)


def units(
    predicted: Sequence[Tensor],
    target: Sequence[Tensor],
    mask_BT: Tensor,
    weight_BT: Tensor | None = None,
    *,
    settings: config.Objective,
) -> Loss:
    """Cross-entropy of the right unit, averaged over the codebooks; natural logarithm.

    Args:
        predicted: N tensors (B, T, K), logits.
        target: N tensors (B, T) of whole numbers, the units.
        mask_BT: True where a frame belongs to its clip.
        weight_BT: weights of frames, 1 when None.
        settings: the layers that the units come from, for the names of the parts.

    Source: HuBERT, arXiv 2106.07447, equation 1 (masked); DiceHuBERT, arXiv 2507.02911 (a teacher's
    units); unmasked where nothing is masked.
    """
    names = ["mfcc"] if settings.features == "mfcc" else settings.layers
    parts: dict[str, Tensor] = {}
    total = torch.zeros((), device=mask_BT.device)
    weight_BT = mask_BT.float() if weight_BT is None else weight_BT * mask_BT
    for name, logits_BTK, unit_BT in zip(names, predicted, target, strict=True):
        logits_BTK = logits_BTK.float().masked_fill(~mask_BT[..., None], 0.0)
        entropy_BT = cross_entropy(logits_BTK.mT, unit_BT, reduction="none")
        entropy = (entropy_BT * weight_BT).sum()
        parts[f"entropy_{name}"] = entropy.detach()
        parts[f"right_{name}"] = ((logits_BTK.argmax(-1) == unit_BT) * weight_BT).sum()
        total = total + entropy / len(predicted)
    return Loss(total=total, parts=parts)


OBJECTIVES: dict[config.ObjectiveName, Callable[..., Loss]] = {
    "layerwise": layerwise,
    "units": units,
}
