"""Hugging Face folders and hub ids."""

import json
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers import logging as transformers_logging

from distilkit import hub
from distilkit.audio import SAMPLE_RATE
from distilkit.encoder import FAMILIES, MODELS, exact, front_norm
from distilkit.errors import DistilkitError
from distilkit.teachers.checkpoint import Checkpoint, Source
from distilkit.teachers.files import AGAIN, unsafe
from distilkit.teachers.weights import UNUSED, assumed_normalise, refuse

HEADS = (
    "lm_head.",
    "final_proj.",
    "label_embs_concat",
    "projector.",
    "classifier.",
    "layer_weights",
    "quantizer.",
    "project_q.",
    "project_hid.",
    "tdnn.",
    "objective.",
    "feature_extractor.weight",  # of a speaker model, behind its encoder
    "feature_extractor.bias",
)
STUDENT_HEADS = "heads.safetensors"


def detects(source: Source) -> bool:
    """Whether it is a Hugging Face folder."""
    return (source.path / "config.json").is_file()


def read(source: Source) -> Checkpoint:
    """Read an encoder from a Hugging Face folder: strictly, in fp32, heads for other tasks left out.

    A student's prediction heads are read too, from `heads.safetensors` in the folder or in its run.

    Raises:
        DistilkitError: another family, missing or unexpected weights, damaged files.
    """
    path = source.path
    shape = configuration(path)
    if (path / "adapter_config.json").exists():  # transformers would apply it, and say nothing
        raise DistilkitError(
            f"`{path}` holds a PEFT adapter beside its weights, which is not read",
            "merge it with `merge_and_unload` and save again, or remove adapter_config.json",
        )
    model, found = weights(path, shape, MODELS[shape.model_type])
    heads = sorted(name for name in found["unexpected_keys"] if name.startswith(HEADS))
    refuse(
        f"the weights in `{path}` do not fit its config.json",
        missing=[f"`{name}`" for name in found["missing_keys"] - {UNUSED}],
        unexpected=[f"`{name}`" for name in found["unexpected_keys"] - {UNUSED, *heads}],
        misshaped=[
            f"`{name}` {tuple(there)} instead of {tuple(here)}"
            for name, there, here in found["mismatched_keys"]
        ],
    )
    notes = [f"left out the head ({', '.join(heads)})"] if heads else []
    normalise, assumed = normalises(path, front_norm(shape))
    notes += [assumed] if assumed else []
    student, layers = _student_heads(path)
    return Checkpoint(
        model=exact(model).eval(),
        normalise=normalise,
        format="huggingface",
        source=str(path),
        notes=tuple(notes),
        heads=student,
        head_layers=layers,
    )


def weights(
    path: Path, shape: PreTrainedConfig, kind: type[PreTrainedModel]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model from the weights in a folder, in fp32, and which names did not fit.

    Raises:
        DistilkitError: no weights, damaged ones, or a pickle that holds more.
    """
    if not any((path / name).exists() for name in hub.WEIGHTS):
        raise DistilkitError(f"`{path}` holds no weights: none of {', '.join(hub.WEIGHTS)}", AGAIN)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, found = kind.from_pretrained(
            path,
            config=shape,
            dtype=torch.float32,
            attn_implementation=None if shape.model_type == "wavlm" else "sdpa",
            local_files_only=True,
            ignore_mismatched_sizes=True,  # the caller looks at them
            output_loading_info=True,
        )
    except UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        raise unsafe(path, wanted[1] if wanted else None) from error
    except Exception as error:  # safetensors, zip, JSON and shape errors alike
        reason = str(error).strip().split("\n")[0].split(". ")[0].rstrip(".")
        raise DistilkitError(f"`{path}` cannot be loaded: {reason}", AGAIN) from error
    return model, found


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DistilkitError(f"`{path}` is damaged: {error}", AGAIN) from error
    if not isinstance(content, dict):
        raise DistilkitError(f"`{path}` is damaged: not a JSON object", AGAIN)
    return content


def configuration(path: Path) -> PreTrainedConfig:
    """The configuration of a model in a folder.

    Raises:
        DistilkitError: damaged, not valid, or of another family.
    """
    settings = _json(path / "config.json")
    kind = settings.get("model_type")
    if kind not in MODELS:
        raise DistilkitError(
            f"`{path}` is a `{kind}` model; only {', '.join(f'`{name}`' for name in MODELS)} can be read",
            f"--teacher {hub.DEFAULT_TEACHER}, or another model of these families",
        )
    try:
        shape = CONFIG_MAPPING[kind].from_dict(settings, layerdrop=0.0)
    except Exception as error:  # its checks have exceptions of their own
        reason = str(error).strip().split("\n")[-1].strip()
        raise DistilkitError(f"`{path}/config.json` is not valid: {reason}", AGAIN) from error
    if getattr(shape, "add_adapter", False):
        raise DistilkitError(
            f"`{path}` is a {FAMILIES[kind]} with convolutions behind it (`add_adapter`): "
            "its frames are longer",
            "give the model that it was fine-tuned from",
        )
    return shape


def _student_heads(path: Path) -> tuple[dict[str, Tensor] | None, tuple[int, ...]]:
    """A student's prediction heads and the teacher's layers that they predict, if they are kept."""
    file = path / STUDENT_HEADS
    if not file.is_file() and (path.parent / "run.json").is_file():
        file = path.parent / STUDENT_HEADS
    if not file.is_file():
        return None, ()
    try:
        with safe_open(file, "pt") as held:
            layers = tuple(
                int(n) for n in (held.metadata() or {}).get("layers", "").split(",") if n
            )
            return {name: held.get_tensor(name) for name in held.keys()}, layers  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise DistilkitError(
            f"`{file}` is damaged: {error}", "remove it to go on without"
        ) from error


def normalises(path: Path, norm: str) -> tuple[bool, str | None]:
    """`do_normalize` where the files say it, else what is usual, and a note about that."""
    nested, flat = path / "processor_config.json", path / "preprocessor_config.json"
    settings = _json(nested).get("feature_extractor") if nested.is_file() else None
    if not isinstance(settings, dict):
        settings = _json(flat) if flat.is_file() else None
    if settings is None:
        usual, assumed = assumed_normalise(norm)
        return usual, f"no preprocessor_config.json: {assumed}"
    rate = settings.get("sampling_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        raise DistilkitError(
            f"`{path}` wants audio at `{rate}` Hz; only models for {SAMPLE_RATE} Hz can be read",
            f"--teacher {hub.DEFAULT_TEACHER}, or another model for {SAMPLE_RATE} Hz",
        )
    value = settings.get("do_normalize")
    if value is None:
        return True, "no `do_normalize` in the preprocessor's file: on, as transformers takes it"
    if not isinstance(value, bool):
        raise DistilkitError(
            f"`do_normalize` of `{path}` cannot be `{value}`", "write true or false there"
        )
    return value, None
