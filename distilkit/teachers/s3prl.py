"""Students of s3prl's distiller, with their prediction heads, so that distillation can go on.

Source: s3prl `upstream/distiller/model.py`, `module.py` and `pretrain/distiller/pretrain_expert.py`.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distilkit.errors import DistilkitError
from distilkit.teachers.checkpoint import Checkpoint, Source
from distilkit.teachers.files import plain
from distilkit.teachers.layout import OTHER, names, shape_of, whole
from distilkit.teachers.weights import fit

CONVS = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
DEFAULTS = {  # of DistillerConfig, for what an older file leaves out
    "encoder_layers": 1,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "activation_dropout": 0.1,
    "task_emb_type": "expand-last",
    "out_layer_type": "expand-last",
    "n_tasks": 12,
}
HEAD = "output_layer."


def detects(source: Source) -> bool:
    """Whether the file is a checkpoint of s3prl's distiller."""
    return isinstance(source.content.get("Distiller"), Mapping)


def read(source: Source) -> Checkpoint:
    """Read a student and its heads: strictly, in fp32. s3prl never normalises waveforms for it.

    Raises:
        DistilkitError: no settings, another kind of distiller, weights that do not fit.
    """
    weights: dict[str, Any] = {
        str(key): value for key, value in source.content["Distiller"].items()
    }
    config = plain(source.content.get("Config"))
    settings = config.get("distiller") if isinstance(config, dict) else None
    if not isinstance(settings, dict):
        raise DistilkitError(f"`{source}` holds no settings (`Config`, `distiller`)", OTHER)
    settings = DEFAULTS | settings
    wanted = {
        "task_emb_type": ("expand-last", "none", "self-hidden"),
        "attention_type": ("original", None),
        "out_layer_type": ("expand-last", "none", "self-hidden"),
    }
    for key, known in wanted.items():
        if settings.get(key) not in known:
            raise DistilkitError(
                f"`{source}` has `{key}` {settings[key]}, which no model here computes", OTHER
            )
    settings["conv_feature_layers"] = settings.get("extractor_conv_feature_layers", CONVS)
    shape = shape_of(source, settings, "hubert")
    shape.update({"feat_proj_layer_norm": False, "apply_spec_augment": False, "final_dropout": 0.0})
    heads, layers, notes = _heads(source, settings, weights)
    return fit(
        source,
        shape,
        {name: tensor for name, tensor in weights.items() if not (heads and HEAD in name)},
        names(shape),
        normalise=False,
        format="s3prl",
        left_out=[HEAD],
        notes=notes,
        heads=heads,
        head_layers=layers,
    )


def _heads(
    source: Source, settings: Mapping[str, Any], weights: Mapping[str, Any]
) -> tuple[dict[str, Tensor] | None, tuple[int, ...], list[str]]:
    """The heads as `objectives.Heads` names and shapes them, their layers, and what to say of them."""
    given = {name: weights[name] for name in weights if name.startswith(HEAD)}
    found = {name: value.float() for name, value in given.items() if isinstance(value, Tensor)}
    count, width = whole(source, settings, "n_tasks", 12), int(settings["encoder_embed_dim"])
    predicted = settings.get("pred_layer_id") or range(1, count + 1)
    layers = tuple(layer for layer in predicted if isinstance(layer, int))
    if {f"{HEAD}2.layer.weight", f"{HEAD}2.layer.bias"} <= set(
        found
    ):  # of a single head s3prl makes an ordinary linear map
        found[f"{HEAD}2.weight"] = found.pop(f"{HEAD}2.layer.weight").T[None].contiguous()
        found[f"{HEAD}2.bias"] = found.pop(f"{HEAD}2.layer.bias")[None, None, None]
    if not found:
        return None, (), []
    weight = found.get(f"{HEAD}2.weight")
    out = 0 if weight is None else weight.shape[-1]
    sizes = {
        f"{HEAD}0.weight": (width * count, width),
        f"{HEAD}0.bias": (width * count,),
        f"{HEAD}2.weight": (count, width, out),
        f"{HEAD}2.bias": (1, 1, count, out),
    }
    fits = {name: tuple(value.shape) for name, value in found.items()} == sizes
    if not fits or len(layers) != count:
        return None, (), ["its heads have another form than ours, so distillation cannot go on"]
    copies = {name: value.clone() for name, value in found.items()}
    return copies, layers, [f"has heads for layers {', '.join(map(str, layers))} of its teacher"]
