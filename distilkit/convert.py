"""Checkpoints of one format written as another: a Hugging Face folder, or s3prl's distiller.

What is written holds the same weights, to the bit, in fp32.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from distilkit import leftovers, teachers
from distilkit.cards import converted_card
from distilkit.encoder import FAMILIES, Encoder, front_norm
from distilkit.errors import DistilkitError
from distilkit.files import replacing
from distilkit.hub import DEFAULT_TEACHER, locate
from distilkit.runs import Run
from distilkit.students import parameters, save
from distilkit.teachers import Checkpoint
from distilkit.teachers.layout import ACTIVATIONS, names
from distilkit.teachers.weights import old_norm

HEADS = {
    "output_layer.0.weight",
    "output_layer.0.bias",
    "output_layer.2.weight",
    "output_layer.2.bias",
}
S3PRL_TEACHERS = {
    DEFAULT_TEACHER: "hubert_base",
    "facebook/hubert-large-ll60k": "hubert_large_ll60k",
}  # what s3prl calls them


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was read, and where it was written."""

    facts: dict[str, Any]  # of `describe`
    output: Path
    format: str
    notes: tuple[str, ...]  # about the writing


def convert(name: str, out: Path, format: str = "huggingface") -> Converted:
    """Read a checkpoint of any format and write it as another, whole or not at all.

    Args:
        name: a file, folder, run, hub id or bundle, as `teachers.load` takes it.
        out: a folder for `huggingface`, a file for `s3prl`; it must not exist.
        format: key of FORMATS.

    Raises:
        DistilkitError: `out` exists, `name` cannot be read, or the format cannot hold the model.
    """
    leftovers.vacate(out)
    encoder, checkpoint = teachers.load(name)
    notes = []
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DistilkitError(
            f"cannot make `{out.parent}`: {error.strerror}", "--out in a folder you can write"
        ) from error
    with replacing(out, new=True) as beside:
        notes = FORMATS[format](encoder, checkpoint, beside, name)
    return Converted(
        facts=describe(encoder, checkpoint), output=out, format=format, notes=tuple(notes)
    )


def describe(encoder: Encoder, checkpoint: Checkpoint) -> dict[str, Any]:
    """What was detected, for people: format, family, sizes, normalisation, notes."""
    shape = encoder.model.config
    layers = ", ".join(map(str, checkpoint.head_layers))
    return {
        "is": f"a {FAMILIES[checkpoint.family]} encoder",
        "format": checkpoint.format,
        "family": checkpoint.family,
        "source": checkpoint.source,
        "parameters": f"{parameters(encoder.model) / 1e6:.2f} M",
        "transformer layers": encoder.depth,
        "width": encoder.width,
        "attention heads": int(shape.num_attention_heads),
        "conv front end": f"{len(shape.conv_dim)} layers, {max(shape.conv_dim)} wide",
        "norm of the front end": front_norm(shape),
        "stable layer norm": bool(getattr(shape, "do_stable_layer_norm", False)),
        "waveform normalised": encoder.normalise,
        "prediction heads": f"for layers {layers}" if checkpoint.heads else "none",
        "notes": list(checkpoint.notes),
    }


def _run_of(name: str) -> dict[str, Any]:
    """What run.json says, where the name is a run or the student of one."""
    place = locate(name)
    run = Run(place.parent)
    return run.read() if place.is_dir() and run.exists else {}


def _huggingface(encoder: Encoder, checkpoint: Checkpoint, folder: Path, name: str) -> list[str]:
    """A folder that stock transformers loads; a student's heads beside its weights."""
    save(encoder, folder, converted_card(name, describe(encoder, checkpoint)))
    if checkpoint.heads:
        save_file(
            {key: _ready(value) for key, value in checkpoint.heads.items()},
            folder / "heads.safetensors",
            metadata={"layers": ",".join(map(str, checkpoint.head_layers))},
        )
    return []


def _s3prl(encoder: Encoder, checkpoint: Checkpoint, file: Path, name: str) -> list[str]:
    """A file of plain dicts that s3prl's distiller upstream and its `--past_exp` read.

    Source: s3prl `pretrain/runner.py` and `upstream/distiller/builder.py`.
    """
    run, shape = _run_of(name), encoder.model.config
    activations = {new: old for old, new in reversed(ACTIVATIONS.items())}
    refusals = {
        f"is a {FAMILIES[checkpoint.family]}": checkpoint.family != "hubert",
        "has a norm before its projection": getattr(shape, "feat_proj_layer_norm", True),
        "has biases in its front end": shape.conv_bias,
        "has a batch norm before its positional convolution": getattr(
            shape, "conv_pos_batch_norm", False
        ),
        "projects to the width of its front end": shape.conv_dim[-1] == shape.hidden_size,
        "wants normalised waveforms": encoder.normalise,
        f"uses `{shape.hidden_act}`": shape.hidden_act not in activations,
        f"has norms with epsilon {shape.layer_norm_eps}": shape.layer_norm_eps != 1e-5,
    }
    for what, there in refusals.items():
        if there:
            raise DistilkitError(
                f"`{checkpoint.source}` {what}, which s3prl's distiller cannot hold",
                "distilkit convert without --format writes a Hugging Face folder",
            )
    theirs = names(shape)
    weights = {
        old_norm(theirs(key)): _ready(value)
        for key, value in encoder.model.state_dict().items()
        if key != "masked_spec_embed"
    }
    heads, layers, notes = checkpoint.heads or {}, list(checkpoint.head_layers), []
    if set(heads) != HEADS or not layers:
        # Without heads s3prl's model returns its own layers, and wants one number for each.
        layers, kind, target = list(range(encoder.depth + 1)), "self-hidden", encoder.width
        notes = ["no prediction heads: s3prl can use the student, but not train it further"]
    else:
        kind, target = "expand-last", int(heads["output_layer.2.weight"].shape[-1])
        weights |= {key: _ready(value) for key, value in heads.items()}
        if len(layers) == 1:  # of a single head s3prl makes an ordinary linear map
            weights["output_layer.2.layer.weight"] = weights.pop("output_layer.2.weight")[
                0
            ].T.clone()
            weights["output_layer.2.layer.bias"] = weights.pop("output_layer.2.bias").flatten()
    teacher = dict(run.get("teacher") or {})
    taught = str(teacher.get("name", DEFAULT_TEACHER))
    settings = {
        "extractor_mode": "default" if front_norm(shape) == "group" else "layer_norm",
        "extractor_conv_feature_layers": str(
            list(zip(shape.conv_dim, shape.conv_kernel, shape.conv_stride, strict=True))
        ),
        "extractor_dropout": 0.0,
        "feature_grad_mult": 0.1,
        "conv_pos": shape.num_conv_pos_embeddings,
        "conv_pos_groups": shape.num_conv_pos_embedding_groups,
        "encoder_layers": encoder.depth,
        "encoder_embed_dim": encoder.width,
        "encoder_ffn_embed_dim": shape.intermediate_size,
        "encoder_attention_heads": shape.num_attention_heads,
        "activation_fn": activations[shape.hidden_act],
        "layer_norm_first": bool(shape.do_stable_layer_norm),
        "attention_type": "original",
        "dropout": shape.hidden_dropout,
        "attention_dropout": shape.attention_dropout,
        "activation_dropout": shape.activation_dropout,
        "encoder_layerdrop": 0.0,
        "final_dim": target,
        "out_layer_type": kind,
        "task_emb_type": kind,
        "n_tasks": len(layers),
        "pred_layer_id": layers,
        "loss_type": "l1",
        "feat_pen_loss": 0.0,
        "cosine_loss": 1.0,
        "init_teacher_conv_layers": True,
        "init_teacher_encoder_layers": True,
    }
    content = {
        "Distiller": weights,
        "Config": {
            "distiller": settings,
            "teacher": {
                "model": S3PRL_TEACHERS.get(taught, taught),
                "n_layers": int(teacher.get("layers", max(layers, default=encoder.depth))),
            },
            "task": {"sequence_length": 250_000},
            "audio": {"target_level": "None"},
        },
        "Step": int(dict(run.get("plan") or {}).get("steps", 0)),
        "Optimizer": {},
        "Args": {},
    }
    made = io.BytesIO()  # where torch itself writes, it says of a full disk `unexpected pos`
    torch.save(content, made)
    file.write_bytes(made.getbuffer())
    return notes


def _ready(tensor: Tensor) -> Tensor:
    """A copy to be written: on the CPU, in fp32, of one piece."""
    kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", kind, copy=True).contiguous()


FORMATS: dict[str, Callable[[Encoder, Checkpoint, Path, str], list[str]]] = {
    "huggingface": _huggingface,
    "s3prl": _s3prl,
}
