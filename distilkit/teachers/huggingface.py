"""Hugging Face folders and hub ids."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from transformers import HubertModel
from transformers import logging as transformers_logging

from distilkit.encoder import exact
from distilkit.errors import DistilkitError
from distilkit.teachers.checkpoint import Checkpoint

FILES = ["*.json", "*.safetensors", "pytorch_model*.bin", "README.md"]
HEADS = (
    "lm_head.",
    "final_proj.",
    "label_embs_concat",
    "projector.",
    "classifier.",
    "layer_weights",
)
UNUSED = "masked_spec_embed"  # a teacher never masks, so checkpoints may lack it


def detects(path: Path) -> bool:
    """Whether `path` is a Hugging Face folder."""
    return (path / "config.json").is_file()


def read(path: Path) -> Checkpoint:
    """Read a HuBERT from a Hugging Face folder: strictly, in fp32, heads for other tasks left out.

    Raises:
        DistilkitError: another family, missing or unexpected weights, damaged files.
    """
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise DistilkitError(f"`{path}/config.json` is damaged: {error}") from error
    if kind != "hubert":
        raise DistilkitError(
            f"`{path}` is a `{kind}` model; only `hubert` can be read", "give a HuBERT checkpoint"
        )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, found = HubertModel.from_pretrained(
            path,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
            layerdrop=0.0,
        )
    except Exception as error:  # config checks, safetensors, pickle and shape errors alike
        raise DistilkitError(
            f"`{path}` cannot be loaded: {str(error).strip().splitlines()[0]}",
            "download the checkpoint again",
        ) from error
    missing = sorted(name for name in found["missing_keys"] if name != UNUSED)
    heads = sorted(name for name in found["unexpected_keys"] if name.startswith(HEADS))
    unexpected = sorted(set(found["unexpected_keys"]) - set(heads))
    wrong = [str(item) for item in found["mismatched_keys"]]
    problems = [
        f"{label} {', '.join(f'`{name}`' for name in names[:6])}"
        + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        for label, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrong shape", wrong),
        )
        if names
    ]
    if problems:
        raise DistilkitError(
            f"the weights in `{path}` do not fit its config.json: {'; '.join(problems)}",
            "download the checkpoint again",
        )
    notes = [f"left out the head ({', '.join(heads)})"] if heads else []
    normalise, assumed = _normalises(path, model.config.feat_extract_norm)
    notes += [assumed] if assumed else []
    return Checkpoint(
        model=exact(model).eval(),
        normalise=normalise,
        format="huggingface",
        source=str(path),
        notes=tuple(notes),
    )


def _normalises(path: Path, norm: str) -> tuple[bool, str | None]:
    """`do_normalize` from the preprocessor's files, else what models with this norm are given."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (path / name).is_file():
            settings: dict[str, Any] = json.loads((path / name).read_text(encoding="utf-8"))
            settings = settings.get("feature_extractor", settings)
            if "do_normalize" in settings:
                return bool(settings["do_normalize"]), None
    assumed = norm == "layer"
    return assumed, (
        f"no preprocessor_config.json: waveform normalisation assumed {'on' if assumed else 'off'}, "
        f"as usual for `feat_extract_norm` {norm}"
    )


def download(name: str) -> Path:
    """The local folder of a hub id: from the cache, else downloaded.

    Raises:
        DistilkitError: offline and not in the cache, no such repository, no access.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=FILES, local_files_only=True))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        pass
    except HFValidationError as error:
        raise DistilkitError(f"`{name}` is not a hub id: {error}") from error
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "8")
    try:
        return Path(snapshot_download(name, allow_patterns=FILES, etag_timeout=8))
    except GatedRepoError as error:
        raise DistilkitError(f"`{name}` asks for permission on the hub", "hf auth login") from error
    except RepositoryNotFoundError as error:
        raise DistilkitError(
            f"the hub has no model `{name}`, or it is private", "check the name, or hf auth login"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise DistilkitError(
            f"`{name}` is not in the local cache, and the hub cannot be reached",
            "give a local folder with --teacher or --model, or go online once",
        ) from error
