"""fairseq's `.pt`, read without fairseq: HuBERT, wav2vec 2.0 and data2vec, pre-trained or fine-tuned.

Also the files that s3prl makes of them (`task_cfg`, `model_cfg`, `model_weight`), and WavLM's own
`.pt`, which has the same form.

Source: `fairseq/checkpoint_utils.py` and `fairseq/models/hubert/hubert_asr.py`; s3prl
`upstream/hubert/convert.py`; github.com/microsoft/unilm, `wavlm/WavLM.py`.
"""

from collections.abc import Mapping
from typing import Any

from distilkit.audio import SAMPLE_RATE
from distilkit.encoder import front_norm
from distilkit.errors import DistilkitError
from distilkit.teachers.checkpoint import Checkpoint, Source
from distilkit.teachers.files import AGAIN, plain
from distilkit.teachers.layout import OTHER, names, shape_of
from distilkit.teachers.weights import assumed_normalise, fit

INNER = "w2v_model."  # what a fine-tuned model's names of the encoder's weights hold
HEADS = (
    "final_proj.",
    "label_embs_concat",
    "target_glu.",
    "quantizer.",
    "project_q.",
    "_ema",
    "proj.",
    "w2v_encoder.proj.",
    "encoder.proj.",
    "decoder.",
)


def detects(source: Source) -> bool:
    """Whether the file is fairseq's, or s3prl's conversion of one."""
    held = source.content
    return (
        isinstance(held.get("model"), Mapping)
        and ("cfg" in held or "args" in held)
        or {
            "model_cfg",
            "model_weight",
        }
        <= set(held)
    )


def read(source: Source) -> Checkpoint:
    """Read an encoder: strictly, in fp32, heads left out with a note.

    Raises:
        DistilkitError: no settings, a model that transformers cannot compute, weights that do not fit.
    """
    held = source.content
    weights = {str(key): value for key, value in _mapping(held).items()}
    settings, task = _settings(source)
    inner = [name for name in weights if INNER in name]
    if inner:
        prefix = inner[0][: inner[0].index(INNER) + len(INNER)]
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    rate = task.get("sample_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        raise DistilkitError(
            f"`{source}` wants audio at `{rate}` Hz; only models for {SAMPLE_RATE} Hz can be read",
            OTHER,
        )
    family = _family(settings, weights, held)
    shape = shape_of(source, settings, family)
    normalise, notes = task.get("normalize", settings.get("normalize")), []
    if not isinstance(normalise, bool):
        normalise, assumed = assumed_normalise(front_norm(shape))
        notes = [f"no `normalize` in its task: {assumed}"]
    return fit(
        source,
        shape,
        weights,
        names(shape),
        normalise=normalise,
        format="fairseq",
        left_out=HEADS,
        notes=notes,
    )


def _mapping(held: Mapping[str, Any]) -> Mapping[Any, Any]:
    found = held.get("model") or held.get("model_weight")
    return found if isinstance(found, Mapping) else {}


def _settings(source: Source) -> tuple[dict[str, Any], dict[str, Any]]:
    """The encoder's settings and its task's; of a fine-tuned model those of `w2v_args`."""
    held = source.content
    if "model_cfg" in held:
        model, task = plain(held["model_cfg"]), plain(held.get("task_cfg") or {})
    else:
        model, task = _parts(plain(held.get("cfg") or held.get("args")))
    if isinstance(model, dict) and "w2v_path" in model:
        inner = model.get("w2v_args")
        if not inner:
            raise DistilkitError(
                f"`{source}` is fine-tuned, and holds no settings of its encoder (`w2v_args`)",
                "give the pre-trained checkpoint that it came from",
            )
        model, inner_task = _parts(inner)
        task = inner_task | {key: value for key, value in task.items() if value is not None}
    if not isinstance(model, dict) or not isinstance(task, dict):
        raise DistilkitError(f"the settings in `{source}` are damaged", AGAIN)
    return model, task


def _parts(settings: Any) -> tuple[Any, Any]:
    """`model` and `task` of a configuration; one flat namespace is both."""
    if not isinstance(settings, dict):
        return None, None
    if isinstance(settings.get("model"), dict):
        return settings["model"], settings.get("task") or {}
    return settings, {key: settings[key] for key in ("normalize", "sample_rate") if key in settings}


def _family(
    settings: Mapping[str, Any], weights: Mapping[str, Any], held: Mapping[str, Any]
) -> str:
    """Which model it is, by the name in its settings, else by its weights."""
    name = str(settings.get("_name") or settings.get("arch") or "")
    if settings.get("relative_position_embedding"):
        return "wavlm"
    if "data2vec" in name or "encoder.pos_conv.1.0.weight" in weights:
        return "data2vec-audio"
    hubert = "hubert" in name or "label_embs_concat" in weights or "dictionaries_symbols" in held
    other = "wav2vec" in name or any(
        key.startswith(("quantizer.", "project_q.")) for key in weights
    )
    return "wav2vec2" if other and not hubert else "hubert"
