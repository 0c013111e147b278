"""Weights into a model, strictly: every weight of either side is used, named, or refused."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from distilkit.encoder import MODELS, check_sizes, exact
from distilkit.errors import DistilkitError
from distilkit.teachers.checkpoint import Checkpoint, Source
from distilkit.teachers.files import AGAIN

AnyModel = TypeVar("AnyModel", bound=PreTrainedModel)
UNUSED = "masked_spec_embed"  # a teacher never masks: checkpoints may lack it or have it needlessly


def fit(
    source: Source,
    shape: PreTrainedConfig,
    tensors: Mapping[str, Any],
    theirs: Callable[[str], str],
    *,
    normalise: bool,
    format: str,
    left_out: Sequence[str] = (),
    notes: Sequence[str] = (),
    heads: dict[str, Tensor] | None = None,
    head_layers: Sequence[int] = (),
) -> Checkpoint:
    """A checkpoint from its configuration and its weights, in fp32.

    Args:
        source: where it comes from, for messages.
        shape: the model's configuration.
        tensors: the weights, under the names of their library; `weight_g` and `weight_v` or
            torch's parametrizations.
        theirs: the library's name of a weight of ours.
        normalise: whether the model wants normalised waveforms.
        format: key of READERS.
        left_out: what names of weights begin with that are not the encoder's; a note says so.
        notes: what else the user should know.
        heads: a student's prediction heads, if there are any.
        head_layers: the layers that they predict.

    Raises:
        DistilkitError: weights that are missing, unexpected or of another shape, each by its name.
    """
    shape.layerdrop = 0.0
    files = [source.path] if source.path.is_file() else []
    model = empty(source, shape, MODELS[shape.model_type], files)
    there = {old_norm(name): value for name, value in tensors.items()}
    head = sorted(name for name in there if name.startswith(tuple(left_out)) and left_out)
    ours = {name: old_norm(theirs(name)) for name in model.state_dict()}
    sizes = {ours[name]: tensor.shape for name, tensor in model.state_dict().items()}
    mask, project = ours.get(UNUSED), "feature_projection.projection"
    fallback: dict[str, Tensor] = {}
    if mask is not None and mask not in there:
        fallback[mask] = torch.rand(sizes[mask], generator=torch.Generator().manual_seed(0))
    weight, bias = ours[f"{project}.weight"], ours[f"{project}.bias"]
    if not {weight, bias} & set(there) and shape.conv_dim[-1] == shape.hidden_size:
        fallback |= {weight: torch.eye(shape.hidden_size), bias: torch.zeros(shape.hidden_size)}
    extra = set(there) - set(sizes) - set(head) - {theirs(UNUSED)}
    extra |= {name for name in sizes if name in there and not isinstance(there[name], Tensor)}
    found = {name: there[name] for name in sizes if isinstance(there.get(name), Tensor)}
    whole = {
        ours[name] for name, tensor in model.state_dict().items() if not tensor.is_floating_point()
    }
    refuse(
        f"the weights in `{source}` do not fit its settings",
        missing=[f"`{name}`" for name in set(sizes) - set(there) - set(fallback)],
        unexpected=[f"`{name}`" for name in extra],
        misshaped=[
            f"`{name}` {tuple(tensor.shape)} instead of {tuple(sizes[name])}"
            for name, tensor in found.items()
            if tensor.shape != sizes[name]
        ],
        other=[
            f"`{name}` {str(tensor.dtype).removeprefix('torch.')}"
            for name, tensor in found.items()
            if not _plain(tensor, name in whole)
        ],
    )
    state = {}
    for name, their in ours.items():
        tensor = fallback[their] if their in fallback else there[their]
        kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
        state[name] = tensor.detach().to(kind, copy=True).contiguous()
    model.load_state_dict(state, assign=True)
    check_finite(source, state | (heads or {}))
    said = [f"left out the head ({_some(head)})"] if head else []
    return Checkpoint(
        model=exact(model).eval(),
        normalise=normalise,
        format=format,
        source=str(source),
        notes=(*said, *notes),
        heads=heads,
        head_layers=tuple(head_layers),
    )


def _plain(tensor: Tensor, whole: bool) -> bool:
    """Whether a tensor is numbers in memory, and whole ones where those are wanted."""
    dense = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
    return dense and not tensor.is_complex() and tensor.is_floating_point() != whole


def empty(
    where: object, shape: PreTrainedConfig, kind: type[AnyModel], files: Sequence[Path]
) -> AnyModel:
    """A model without memory for its weights, of a size that these files can hold.

    Settings are read before weights are: without this a line of text would fill the memory.

    Raises:
        DistilkitError: the settings do not fit one another, or want more than there is.
    """
    try:
        check_sizes(shape)
        with torch.device("meta"):
            model: AnyModel = kind(shape)
    except Exception as error:  # heads that do not divide the width, and the like
        raise DistilkitError(f"the settings in `{where}` do not fit: {error}", AGAIN) from error
    there = sum(file.stat().st_size for file in files)
    wanted = sum(weight.numel() for weight in model.parameters())
    if files and wanted > there:  # each takes a byte at the very least
        raise DistilkitError(
            f"the settings in `{where}` are of a model with {wanted:,} weights, and its files hold "
            f"{there:,} bytes",
            AGAIN,
        )
    return model


def check_finite(where: object, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that are no numbers: all that a model computes would be none.

    Raises:
        DistilkitError: names them.
    """
    broken = [f"`{name}`" for name, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise DistilkitError(
            f"weights in `{where}` are not finite numbers (NaN or inf): {_some(sorted(broken))}",
            AGAIN,
        )


def refuse(
    problem: str,
    *,
    missing: Sequence[str],
    unexpected: Sequence[str],
    misshaped: Sequence[str],
    other: Sequence[str] = (),
) -> None:
    """Raise where any of the lists names a weight.

    Raises:
        DistilkitError: with up to six names of each list.
    """
    listed = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": misshaped,
        "of another type": other,
    }
    problems = [f"{label} {_some(sorted(names))}" for label, names in listed.items() if names]
    if problems:
        raise DistilkitError(f"{problem}: {'; '.join(problems)}", AGAIN)


def old_norm(name: str) -> str:
    """A weight-normed weight's name as before torch 2: `weight_g`, `weight_v`."""
    return name.replace("parametrizations.weight.original0", "weight_g").replace(
        "parametrizations.weight.original1", "weight_v"
    )


def assumed_normalise(norm: str) -> tuple[bool, str]:
    """What is usual where nothing says whether waveforms are normalised, and a note about it."""
    usual = norm == "layer"
    return usual, (
        f"waveform normalisation assumed {'on' if usual else 'off'}, "
        f"as usual for `feat_extract_norm` {norm}"
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more
