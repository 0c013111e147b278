"""fairseq's names and settings, which s3prl, LightHuBERT and WavLM share.

Source: `fairseq/models/wav2vec/wav2vec2.py`, `hubert/hubert.py` and
`examples/data2vec/models/data2vec_audio.py`; s3prl `upstream/distiller/module.py`; for WavLM
github.com/microsoft/unilm, `wavlm/WavLM.py` and `modules.py`.
"""

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from distilkit.encoder import front_norm
from distilkit.errors import DistilkitError

ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "gelu_accurate": "gelu_new", "gelu_fast": "gelu_new"}
NEEDED = (
    "encoder_layers",
    "encoder_embed_dim",
    "encoder_ffn_embed_dim",
    "encoder_attention_heads",
    "conv_feature_layers",
)
OTHER = "give another checkpoint; docs/reference/teachers.md says what can be read"
MOST_CONVS = 64


def shape_of(where: object, settings: Mapping[str, Any], family: str) -> PreTrainedConfig:
    """A configuration of transformers from fairseq's settings.

    Args:
        where: the checkpoint, for messages.
        settings: `cfg.model` of a checkpoint, as plain values.
        family: `model_type` of transformers.

    Raises:
        DistilkitError: a setting is missing, or is one that transformers has no model for.
    """
    lacking = [key for key in NEEDED if settings.get(key) is None]
    if lacking:
        raise DistilkitError(f"the settings in `{where}` lack {', '.join(lacking)}", OTHER)
    mode = settings.get("extractor_mode", "default")
    stable = bool(settings.get("layer_norm_first", False))
    activation = str(settings.get("activation_fn", "gelu"))
    depth = whole(where, settings, "pos_conv_depth", 1)
    deep = family == "data2vec-audio"
    refusals = {
        f"`extractor_mode` {mode}": mode not in ("default", "layer_norm"),
        f"`layer_type` {settings.get('layer_type')}": settings.get("layer_type", "transformer")
        != "transformer",
        f"`activation_fn` {activation}": activation not in ACTIVATIONS,
        f"`pos_conv_depth` {depth}": (depth > 1) != deep,
        "no gated relative positions": family == "wavlm" and not settings.get("gru_rel_pos"),
        "`quantize_input`": bool(settings.get("quantize_input")),
        "`layer_norm_first` beside deep positional convolutions": deep and stable,
        "`extractor_mode` default beside deep positional convolutions": deep and mode == "default",
    }
    for what, there in refusals.items():
        if there:
            raise DistilkitError(f"`{where}` has {what}, which no model here computes", OTHER)
    convs = conv_layers(where, str(settings["conv_feature_layers"]))
    kernel = whole(where, settings, "conv_pos", 128)
    position = (
        {"num_conv_pos_embeddings": depth, "conv_pos_kernel_size": max(3, kernel // depth)}
        if deep
        else {
            "num_conv_pos_embeddings": kernel,
            "do_stable_layer_norm": stable,
            "feat_extract_norm": "group" if mode == "default" else "layer",
        }
    )
    if family == "wavlm":
        position["num_buckets"] = whole(where, settings, "num_buckets", 320)
        position["max_bucket_distance"] = whole(where, settings, "max_distance", 1280)
    if family == "hubert":
        position["conv_pos_batch_norm"] = bool(settings.get("conv_pos_batch_norm", False))
    try:
        return CONFIG_MAPPING[family](
            hidden_size=int(settings["encoder_embed_dim"]),
            num_hidden_layers=int(settings["encoder_layers"]),
            num_attention_heads=int(settings["encoder_attention_heads"]),
            intermediate_size=int(settings["encoder_ffn_embed_dim"]),
            hidden_act=ACTIVATIONS[activation],
            conv_dim=[width for width, _, _ in convs],
            conv_kernel=[size for _, size, _ in convs],
            conv_stride=[step for _, _, step in convs],
            conv_bias=bool(settings.get("conv_bias", False)),
            num_conv_pos_embedding_groups=int(settings.get("conv_pos_groups", 16)),
            hidden_dropout=float(settings.get("dropout", 0.1)),
            attention_dropout=float(settings.get("attention_dropout", 0.1)),
            activation_dropout=float(settings.get("activation_dropout", 0.0)),
            feat_proj_dropout=float(settings.get("dropout_input", 0.0)),
            layerdrop=0.0,
            **position,
        )
    except Exception as error:  # its checks have exceptions of their own
        reason = str(error).strip().split("\n")[-1].strip()
        raise DistilkitError(f"the settings in `{where}` are not valid: {reason}", OTHER) from error


def whole(where: object, settings: Mapping[str, Any], key: str, default: int) -> int:
    """A setting that is a whole number, or its default where there is none.

    Raises:
        DistilkitError: it is something else.
    """
    value = settings.get(key)
    if value is None:
        return default
    if not isinstance(value, int):
        raise DistilkitError(f"`{where}` has `{key}` {value}, which is no whole number", OTHER)
    return value


def conv_layers(where: object, expression: str) -> list[tuple[int, int, int]]:
    """The (width, kernel, stride) of each convolution from an expression such as `[(512,2,2)] * 2`.

    It is taken apart, never evaluated: lists, tuples, whole numbers, `+` and `*` are all it may hold.

    Raises:
        DistilkitError: the expression holds anything else.
    """
    try:
        if len(expression) > 2_000:
            raise ValueError("too long")
        found = _value(ast.parse(expression.strip(), mode="eval").body)
        layers = [(int(width), int(kernel), int(stride)) for width, kernel, stride in found]
        if not layers:
            raise ValueError("empty")
    except (
        SyntaxError,
        ValueError,
        TypeError,
        RecursionError,
        MemoryError,
        OverflowError,
    ) as error:
        raise DistilkitError(
            f"`{where}` describes its convolutions as `{expression[:80]}`, which is not a list of "
            "(width, kernel, stride)",
            OTHER,
        ) from error
    return layers


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(item) for item in node.elts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Add) and isinstance(left, list) and isinstance(right, list):
            return left + right
        if isinstance(left, int) and isinstance(right, list):
            left, right = right, left
        if isinstance(left, list) and isinstance(right, int) and len(left) * right <= MOST_CONVS:
            return left * right
    raise ValueError("not a list of convolutions")


def names(shape: PreTrainedConfig) -> Callable[[str], str]:
    """fairseq's name of each of a model's weights, by our name."""
    norm = r".2.1." if front_norm(shape) == "layer" else r".2."
    batch_norm = getattr(shape, "conv_pos_batch_norm", False)
    rules = [
        (r"^masked_spec_embed$", "mask_emb"),
        (r"^(feature_extractor\.conv_layers\.\d+)\.conv\.", r"\1.0."),
        (r"^(feature_extractor\.conv_layers\.\d+)\.layer_norm\.", r"\1" + norm),
        (r"^feature_projection\.layer_norm\.", "layer_norm."),
        (r"^feature_projection\.projection\.", "post_extract_proj."),
        (r"^encoder\.pos_conv_embed\.layers\.(\d+)\.conv\.", r"encoder.pos_conv.\1.0."),
        (r"^encoder\.pos_conv_embed\.batch_norm\.", "encoder.pos_conv.0."),
        (r"^encoder\.pos_conv_embed\.conv\.", f"encoder.pos_conv.{int(batch_norm)}."),
        (r"^(encoder\.layers\.\d+)\.attention\.gru_rel_pos_linear\.", r"\1.self_attn.grep_linear."),
        (r"^(encoder\.layers\.\d+)\.attention\.gru_rel_pos_const$", r"\1.self_attn.grep_a"),
        (
            r"^(encoder\.layers\.\d+)\.attention\.rel_attn_embed\.",
            r"\1.self_attn.relative_attention_bias.",
        ),
        (r"^(encoder\.layers\.\d+)\.attention\.", r"\1.self_attn."),
        (r"^(encoder\.layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
        (r"^(encoder\.layers\.\d+)\.feed_forward\.intermediate_dense\.", r"\1.fc1."),
        (r"^(encoder\.layers\.\d+)\.feed_forward\.output_dense\.", r"\1.fc2."),
    ]

    def theirs(name: str) -> str:
        for pattern, new in rules:
            found, count = re.subn(pattern, new, name)
            if count:
                return found
        return name

    return theirs
