"""Hugging Face folders and hub ids."""

import json
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import HubertConfig, HubertModel
from transformers import logging as transformers_logging

from distilkit import hub
from distilkit.audio import SAMPLE_RATE
from distilkit.encoder import exact
from distilkit.errors import DistilkitError
from distilkit.teachers.checkpoint import Checkpoint

AGAIN = "download it again; in a git clone: git lfs pull"
HEADS = (
    "lm_head.",
    "final_proj.",
    "label_embs_concat",
    "projector.",
    "classifier.",
    "layer_weights",
)
UNUSED = "masked_spec_embed"  # a teacher never masks: checkpoints may lack it or have it needlessly


def detects(path: Path) -> bool:
    """Whether `path` is a Hugging Face folder."""
    return (path / "config.json").is_file()


def read(path: Path) -> Checkpoint:
    """Read a HuBERT from a Hugging Face folder: strictly, in fp32, heads for other tasks left out.

    Raises:
        DistilkitError: another family, missing or unexpected weights, damaged files.
    """
    shape = _config(path)
    if (path / "adapter_config.json").exists():  # transformers would apply it, and say nothing
        raise DistilkitError(
            f"`{path}` holds a PEFT adapter beside its weights, which is not read",
            "merge it with `merge_and_unload` and save again, or remove adapter_config.json",
        )
    if not any((path / name).exists() for name in hub.WEIGHTS):
        raise DistilkitError(f"`{path}` holds no weights: none of {', '.join(hub.WEIGHTS)}", AGAIN)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, found = HubertModel.from_pretrained(
            path,
            config=shape,
            dtype=torch.float32,
            attn_implementation="sdpa",
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are listed below instead
            output_loading_info=True,
        )
    except UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        raise DistilkitError(
            f"`{path}` holds a pickle with more than weights"
            + (f" (it calls `{wanted[1]}`)" if wanted else "")
            + "; it may run code when loaded, so it was not",
            "give a checkpoint with model.safetensors",
        ) from error
    except Exception as error:  # safetensors, zip, JSON and shape errors alike
        reason = str(error).strip().split("\n")[0].split(". ")[0].rstrip(".")
        raise DistilkitError(f"`{path}` cannot be loaded: {reason}", AGAIN) from error
    heads = sorted(name for name in found["unexpected_keys"] if name.startswith(HEADS))
    listed = {
        "missing": [f"`{name}`" for name in found["missing_keys"] - {UNUSED}],
        "unexpected": [f"`{name}`" for name in found["unexpected_keys"] - {UNUSED, *heads}],
        "of another shape": [
            f"`{name}` {tuple(there)} instead of {tuple(here)}"
            for name, there, here in found["mismatched_keys"]
        ],
    }
    problems = [
        f"{label} {', '.join(sorted(names)[:6])}"
        + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        for label, names in listed.items()
        if names
    ]
    if problems:
        raise DistilkitError(
            f"the weights in `{path}` do not fit its config.json: {'; '.join(problems)}", AGAIN
        )
    notes = [f"left out the head ({', '.join(heads)})"] if heads else []
    normalise, assumed = _normalises(path, shape.feat_extract_norm)
    notes += [assumed] if assumed else []
    return Checkpoint(
        model=exact(model).eval(),
        normalise=normalise,
        format="huggingface",
        source=str(path),
        notes=tuple(notes),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DistilkitError(f"`{path}` is damaged: {error}", AGAIN) from error
    if not isinstance(content, dict):
        raise DistilkitError(f"`{path}` is damaged: not a JSON object", AGAIN)
    return content


def _config(path: Path) -> HubertConfig:
    settings = _json(path / "config.json")
    kind = settings.get("model_type")
    if kind != "hubert":
        raise DistilkitError(
            f"`{path}` is a `{kind}` model; only `hubert` can be read",
            f"--teacher {hub.DEFAULT_TEACHER}, or another HuBERT",
        )
    try:
        return HubertConfig.from_dict(settings, layerdrop=0.0)
    except Exception as error:  # its checks have exceptions of their own
        reason = str(error).strip().split("\n")[-1].strip()
        raise DistilkitError(f"`{path}/config.json` is not valid: {reason}", AGAIN) from error


def _normalises(path: Path, norm: str) -> tuple[bool, str | None]:
    """`do_normalize` where the files say it, else what is usual, and a note about that."""
    nested, flat = path / "processor_config.json", path / "preprocessor_config.json"
    settings = _json(nested).get("feature_extractor") if nested.is_file() else None
    if not isinstance(settings, dict):
        settings = _json(flat) if flat.is_file() else None
    if settings is None:
        assumed = norm == "layer"
        return assumed, (
            f"no preprocessor_config.json: waveform normalisation assumed {'on' if assumed else 'off'}, "
            f"as usual for `feat_extract_norm` {norm}"
        )
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
