"""LightHuBERT's checkpoints: one file holds many sub-networks, and one of them is read.

A sub-network is a corner of every weight: the first D of its rows and columns, whole heads of 64, a
share of each quarter of the feed-forward part, and for shallow ones fewer layers. What is left is an
ordinary HuBERT. `FILE:NAME` chooses; without a name it is the one that the authors evaluate.

Source: arXiv 2203.15610; github.com/mechanicalsea/lighthubert, `lighthubert/lighthubert.py` and
`modules/scaling_*.py`; s3prl `upstream/lighthubert/expert.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distilkit.errors import DistilkitError, did_you_mean
from distilkit.teachers.checkpoint import Checkpoint, Source
from distilkit.teachers.files import AGAIN, plain
from distilkit.teachers.layout import OTHER, names, shape_of
from distilkit.teachers.weights import fit, old_norm

KINDS = ("hubert_pruner", "student_hubert")  # a supernet; the whole student of the first stage
HEAD_WIDTH = 64
DEFAULTS = {  # of LightHuBERTConfig
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "extractor_mode": "layer_norm",
    "conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A sub-network: its width, the feed-forward part's share of that, and which layers it has."""

    width: int
    ratio: float = 4.0
    dropped: tuple[int, ...] = ()  # layers, from 0


PARTS = {
    "base": {
        "base": Part(width=640),
        "min": Part(width=512, ratio=3.5),
        "max": Part(width=768),
    },
    "small": {
        "small": Part(width=384),
        "min": Part(width=256, ratio=3.0, dropped=(7, 11)),
        "max": Part(width=512),
    },
    "stage1": {"max": Part(width=768)},
}  # by supernet; the first is the one without a name


def detects(source: Source) -> bool:
    """Whether the file is LightHuBERT's."""
    held = source.content
    settings = plain(held.get("cfg"))
    model = settings.get("model") if isinstance(settings, dict) else None
    return isinstance(held.get("model"), Mapping) and (
        isinstance(model, dict) and model.get("_name") in KINDS
    )


def read(source: Source) -> Checkpoint:
    """Read a sub-network: strictly, in fp32, prediction heads left out with a note.

    Raises:
        DistilkitError: no such sub-network, other settings than the published ones, weights that do
            not fit.
    """
    config = plain(source.content["cfg"])
    settings, task = DEFAULTS | config["model"], config.get("task")
    supernet = _supernet(source, settings)
    parts = PARTS[supernet]
    name = source.part or next(iter(parts))
    if name not in parts:
        raise DistilkitError(
            f"`{source.path}` has no sub-network `{name}`; it has {', '.join(parts)}",
            did_you_mean(name, parts) or f"{source.path}:{next(iter(parts))}",
        )
    full = shape_of(source, settings, "hubert")
    part = parts[name]
    if part.width * 4 > full.intermediate_size or full.hidden_size % HEAD_WIDTH:
        raise DistilkitError(
            f"`{source}` is {full.hidden_size} wide, which is not a published size", OTHER
        )
    whole = {
        str(key): value
        for key, value in source.content["model"].items()
        if not str(key).startswith("layer_pred_heads.")
    }
    checked = fit(source, full, whole, names(full), normalise=True, format="lighthubert")
    kept = [layer for layer in range(full.num_hidden_layers) if layer not in part.dropped]
    shape = shape_of(
        source,
        settings
        | {
            "encoder_embed_dim": part.width,
            "encoder_ffn_embed_dim": int(part.width * part.ratio),
            "encoder_attention_heads": part.width // HEAD_WIDTH,
            "encoder_layers": len(kept),
        },
        "hubert",
    )
    tensors = _corner(checked.model.state_dict(), part, kept, full.num_conv_pos_embedding_groups)
    normalise = task.get("normalize") if isinstance(task, dict) else None
    notes = [f"sub-network `{name}` of {', '.join(parts)}; its heads are left out"]
    if not isinstance(normalise, bool):
        normalise = True
        notes.append("no `normalize` in its task: waveform normalisation on, as s3prl has it")
    elif not normalise:
        notes.append("its task says `normalize` false; s3prl normalises waveforms all the same")
    return fit(
        source,
        shape,
        tensors,
        lambda our: our,
        normalise=normalise,
        format="lighthubert",
        notes=notes,
    )


def _supernet(source: Source, settings: Mapping[str, Any]) -> str:
    if settings["_name"] == "student_hubert":
        return "stage1"
    file = str(settings.get("pruner_supernet") or "").lower()
    for name in ("base", "small"):
        if file.endswith(f"{name}.yaml"):
            return name
    raise DistilkitError(
        f"`{source}` does not say which supernet it is (`pruner_supernet` is `{file}`)", AGAIN
    )


def _corner(
    weights: Mapping[str, Tensor], part: Part, kept: list[int], groups: int
) -> dict[str, Tensor]:
    """The sub-network's weights, under our names."""
    conv = "encoder.pos_conv_embed.conv"
    norm_g, norm_v = f"{conv}.weight_g", f"{conv}.weight_v"
    held = {old_norm(name): value for name, value in weights.items()}
    # The original norms the whole weight and then cuts; the corner's own norm makes up for it.
    cut = torch._weight_norm(held.pop(norm_v), held.pop(norm_g), 2)
    cut = cut[: part.width, : part.width // groups]
    found = {norm_v: cut, norm_g: cut.norm(dim=(0, 1), keepdim=True)}
    inner = _feed_forward(int(part.width * part.ratio), part.width, held)
    for name, value in held.items():
        if name.startswith("encoder.layers."):
            number, rest = name.removeprefix("encoder.layers.").split(".", 1)
            if int(number) not in kept:
                continue
            name = f"encoder.layers.{kept.index(int(number))}.{rest}"
        if name.startswith(("feature_extractor.", "feature_projection.layer_norm.")):
            found[name] = value
        elif ".intermediate_dense." in name:
            value = value[inner]
            found[name] = value[:, : part.width] if value.ndim == 2 else value
        elif name.endswith(".output_dense.weight"):
            found[name] = value[: part.width][:, inner]
        elif name == "feature_projection.projection.weight":
            found[name] = value[: part.width]
        elif value.ndim == 2:
            found[name] = value[: part.width, : part.width]
        else:
            found[name] = value[: part.width]
    return found


def _feed_forward(size: int, width: int, held: Mapping[str, Tensor]) -> Tensor:
    """Which units of the feed-forward part it has: of each split, as wide as the whole model, a share.

    The whole part is used as it is.
    """
    full, whole = held["encoder.layers.0.feed_forward.intermediate_dense.weight"].shape
    if size == full:
        return torch.arange(full)
    share = int(size / (size / width))
    starts = range(math.ceil(size / width))
    return torch.cat([torch.arange(min(share, size - i * share)) + i * whole for i in starts])
