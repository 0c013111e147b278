"""Hugging Face folders and hub ids."""

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
from distilkit.files import read_object
from distilkit.teachers.checkpoint import Checkpoint, Source
from distilkit.teachers.files import AGAIN, check_zip, unsafe
from distilkit.teachers.weights import UNUSED, assumed_normalise, check_finite, empty, refuse

HEADS = (
    "lm_head.",
    "layer_mix.",
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
# Settings of how to load and answer. They are left alone, as is all that is no setting of a model: code to
# import, kernels to fetch, ways to quantise.
LOADING = {"dtype", "output_attentions", "output_hidden_states", "return_dict"}
LOADING |= {"chunk_size_feed_forward", "problem_type", "id2label", "label2id"}
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
    files = _weight_files(path)
    empty(path, shape, kind, files)
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
        raise _unreadable(path, error) from error
    check_finite(path, model.state_dict())
    return model, found


def _weight_files(path: Path) -> list[Path]:
    """The files that transformers will take a folder's weights from; those of an index lie in the folder.

    Raises:
        DistilkitError: there are none, or one is elsewhere, damaged, or gone.
    """
    first = next((path / name for name in hub.WEIGHTS if (path / name).exists()), None)
    if first is None:
        raise DistilkitError(f"`{path}` holds no weights: none of {', '.join(hub.WEIGHTS)}", AGAIN)
    files = [first]
    if first.suffix == ".json":
        names = read_object(first, AGAIN).get("weight_map")
        named = set(names.values()) if isinstance(names, dict) else set()
        if not named or not all(isinstance(x, str) and Path(x).name == x for x in named):
            raise DistilkitError(
                f"`{first}` names files that are not in its folder, or none", AGAIN
            )
        files = [path / name for name in sorted(named)]
    for file in files:
        if not file.is_file():
            raise DistilkitError(f"`{file}` is gone", AGAIN)
        if file.suffix == ".bin":
            check_zip(file)
        elif file.suffix == ".safetensors":
            try:
                with safe_open(file, "pt"):  # looks at its header
                    pass
            except (SafetensorError, OSError) as error:
                raise _unreadable(path, error) from error
    return files


def _unreadable(path: Path, error: Exception) -> DistilkitError:
    reason = str(error).strip().split("\n")[0].split(". ")[0].rstrip(".")
    return DistilkitError(f"`{path}` cannot be loaded: {reason or type(error).__name__}", AGAIN)


def configuration(path: Path) -> PreTrainedConfig:
    """The configuration of a model in a folder.

    Raises:
        DistilkitError: damaged, not valid, or of another family.
    """
    settings = read_object(path / "config.json", AGAIN)
    kind = settings.get("model_type")
    if kind not in MODELS:
        raise DistilkitError(
            f"`{path}` is a `{kind}` model; only {', '.join(f'`{name}`' for name in MODELS)} can be read",
            f"{hub.DEFAULT_TEACHER}, or another model of these families",
        )
    try:
        known = CONFIG_MAPPING[kind]().to_dict().keys() - LOADING
        shape = CONFIG_MAPPING[kind].from_dict(
            {key: value for key, value in settings.items() if key in known}, layerdrop=0.0
        )
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
    settings = None
    if nested.is_file():
        settings = read_object(nested, AGAIN).get("feature_extractor")
    if not isinstance(settings, dict):
        settings = read_object(flat, AGAIN) if flat.is_file() else None
    if settings is None:
        usual, assumed = assumed_normalise(norm)
        return usual, f"no preprocessor_config.json: {assumed}"
    rate = settings.get("sampling_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        raise DistilkitError(
            f"`{path}` wants audio at `{rate}` Hz; only models for {SAMPLE_RATE} Hz can be read",
            f"{hub.DEFAULT_TEACHER}, or another model for {SAMPLE_RATE} Hz",
        )
    value = settings.get("do_normalize")
    if value is None:
        return True, "no `do_normalize` in the preprocessor's file: on, as transformers takes it"
    if not isinstance(value, bool):
        raise DistilkitError(
            f"`do_normalize` of `{path}` cannot be `{value}`", "write true or false there"
        )
    return value, None
