"""torchaudio's state dicts and bundles: HuBERT, wav2vec 2.0 and WavLM.

A state dict holds no settings: widths and layers are read from the shapes, the rest follows from what
all published models have in common, and a note says what was assumed.

Source: `torchaudio/models/wav2vec2/components.py`, `wavlm_attention.py` and
`torchaudio/pipelines/_wav2vec2/impl.py`.
"""

import re
import threading
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig

from distilkit.errors import DistilkitError, did_you_mean
from distilkit.hub import TIMEOUT, TORCHAUDIO
from distilkit.teachers import files
from distilkit.teachers.checkpoint import Checkpoint, Source
from distilkit.teachers.files import AGAIN
from distilkit.teachers.weights import assumed_normalise, fit, old_norm

KERNELS, STRIDES = [10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2]
ATTENTION_HEADS = {768: 12, 1024: 16, 1280: 16, 1920: 16}  # of every published width
HEAD_WIDTH = 64  # of narrower models
MAX_DISTANCE = 800  # of WavLM's position buckets; it is no weight's size
HEADS = ("aux.", "logit_generator.", "label_embs_concat", "final_proj.")
LAYER = "encoder.transformer.layers.0."
SITE = "https://download.pytorch.org/torchaudio/models/"


def detects(source: Source) -> bool:
    """Whether it is a bundle's name, or a file with torchaudio's names of weights."""
    if str(source.path).startswith(TORCHAUDIO):
        return True
    return any(isinstance(name, str) and LAYER in name for name in source.content)


def read(source: Source) -> Checkpoint:
    """Read an encoder: strictly, in fp32, CTC heads left out with a note.

    Raises:
        DistilkitError: no such bundle, out of reach, sizes that leave the settings open, weights that
            do not fit.
    """
    name = str(source.path)
    bundle = bundles(name) if name.startswith(TORCHAUDIO) else None
    held = files.load(_download(name, str(bundle._path))) if bundle else source.content
    inner = next((key for key in held if LAYER in key), LAYER)
    prefix = inner[: inner.index(LAYER)]
    weights = _split({key.removeprefix(prefix): value for key, value in held.items()})
    shape, notes = _shape(source, weights, bundle)
    if bundle:
        normalise, notes = bool(bundle._normalize_waveform), []
    else:
        normalise, assumed = assumed_normalise(shape.feat_extract_norm)
        notes = [*notes, assumed]
    return fit(
        source,
        shape,
        weights,
        _names(),
        normalise=normalise,
        format="torchaudio",
        left_out=HEADS,
        notes=notes,
    )


def bundles(name: str) -> Any:
    """The bundle that `torchaudio:NAME` names.

    Raises:
        DistilkitError: there is none.
    """
    from torchaudio import pipelines

    known = {
        key: value
        for key, value in vars(pipelines).items()
        if isinstance(value, pipelines.Wav2Vec2Bundle)
    }
    wanted = name.removeprefix(TORCHAUDIO)
    if wanted not in known:
        near = did_you_mean(wanted.upper(), known)
        raise DistilkitError(
            f"torchaudio has no bundle `{wanted}`; it has {', '.join(sorted(known))}",
            near.replace("`", f"`{TORCHAUDIO}", 1) if near else f"{TORCHAUDIO}HUBERT_BASE",
        )
    return known[wanted]


def _download(name: str, file: str) -> Path:
    """The bundle's file in torch's cache, fetched if it is not there.

    Raises:
        DistilkitError: out of reach, which is known after some seconds.
    """
    address = file if file.startswith("https:") else SITE + file
    path = Path(torch.hub.get_dir()) / "checkpoints" / address.rsplit("/", 1)[1]
    if path.is_file():
        return path
    answered: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            answered.append(answer.status < 400)

    def quietly() -> None:
        try:
            ask()
        except Exception:  # whatever it is, nothing has answered
            answered.append(False)

    asking = threading.Thread(target=quietly, daemon=True)  # looking up a name has no time limit
    asking.start()
    asking.join(2 * TIMEOUT)
    try:
        if not answered or not answered[0]:
            raise OSError("no answer")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(path))
    except Exception as error:  # of the network, of proxies, a full disk
        raise DistilkitError(
            f"`{name}` is not in the local cache (`{path}`), and `{address}` cannot be reached",
            "give a local checkpoint, or go online once",
        ) from error
    return path


def _split(weights: Mapping[str, Any]) -> dict[str, Any]:
    """WavLM's packed projection of queries, keys and values as three."""
    found: dict[str, Any] = {}
    for name, value in weights.items():
        packed = re.fullmatch(r"(.*\.attention)\.attention\.in_proj_(weight|bias)", name)
        if packed and isinstance(value, Tensor) and len(value) % 3 == 0:
            for part, tensor in zip("qkv", value.chunk(3), strict=True):
                found[f"{packed[1]}.{part}_proj.{packed[2]}"] = tensor
        else:
            found[re.sub(r"\.attention\.attention\.out_proj\.", ".attention.out_proj.", name)] = (
                value
            )
    return found


def _names() -> Callable[[str], str]:
    def theirs(name: str) -> str:
        if name == "masked_spec_embed":
            return "mask_generator.mask_embedding"
        name = re.sub(r"^encoder\.", "encoder.transformer.", name)
        return re.sub(r"^feature_projection\.", "encoder.feature_projection.", name)

    return theirs


def _shape(
    source: Source, weights: Mapping[str, Any], bundle: Any
) -> tuple[PreTrainedConfig, list[str]]:
    """The configuration that the sizes of the weights say, and what was assumed."""
    sizes = {
        old_norm(name): tuple(value.shape)
        for name, value in weights.items()
        if isinstance(value, Tensor)
    }
    conv, layer = "feature_extractor.conv_layers", "encoder.transformer.layers"
    position = "encoder.transformer.pos_conv_embed.conv"
    needed = {
        f"{conv}.0.conv.weight": 3,
        "encoder.feature_projection.projection.weight": 2,
        f"{LAYER}feed_forward.intermediate_dense.weight": 2,
        f"{position}.weight_v": 3,
    }  # and how many sizes each has
    lacking = [name for name, count in needed.items() if len(sizes.get(name, ())) != count]
    if lacking:
        raise DistilkitError(f"`{source}` lacks the weights `{'`, `'.join(lacking)}`", AGAIN)
    count = len(
        [name for name in sizes if re.fullmatch(rf"{re.escape(conv)}\.\d+\.conv\.weight", name)]
    )
    convs = [sizes.get(f"{conv}.{i}.conv.weight", (0, 0, 0)) for i in range(count)]
    kernels = [size[-1] if len(size) == 3 else 0 for size in convs]
    if kernels != KERNELS:
        raise DistilkitError(
            f"`{source}` has convolutions of {kernels} samples; their strides are known "
            f"only for {KERNELS}",
            "give a Hugging Face folder of this model, whose config.json says them",
        )
    width = sizes["encoder.feature_projection.projection.weight"][0]
    gates = sizes.get(f"{LAYER}attention.gru_rel_pos_const")
    buckets = sizes.get(f"{LAYER}attention.rel_attn_embed.weight")
    heads, notes = ATTENTION_HEADS.get(width), []
    if gates is not None:
        heads = gates[1] if len(gates) == 4 else None
    elif heads is None and width < min(ATTENTION_HEADS) and width % HEAD_WIDTH == 0:
        heads = width // HEAD_WIDTH
        notes = [f"attention heads assumed {HEAD_WIDTH} wide; a state dict does not say it"]
    if heads is None:
        raise DistilkitError(
            f"`{source}` is {width} wide; how many attention heads such a model has cannot be told from "
            f"its weights (known: {', '.join(map(str, ATTENTION_HEADS))}, and multiples of "
            f"{HEAD_WIDTH} below)",
            "give a Hugging Face folder of this model, whose config.json says it",
        )
    deep = f"{conv}.1.layer_norm.weight" in sizes
    wavlm = buckets is not None
    plain = bundle is None or "hubert" in str(bundle._path)
    shape = CONFIG_MAPPING["wavlm" if wavlm else "hubert" if plain else "wav2vec2"](
        hidden_size=width,
        num_hidden_layers=len({n.split(".")[3] for n in sizes if n.startswith(f"{layer}.")}),
        num_attention_heads=heads,
        intermediate_size=sizes[f"{LAYER}feed_forward.intermediate_dense.weight"][0],
        conv_dim=[size[0] for size in convs],
        conv_kernel=KERNELS,
        conv_stride=STRIDES,
        conv_bias=f"{conv}.0.conv.bias" in sizes,
        feat_extract_norm="layer" if deep else "group",
        do_stable_layer_norm=deep,
        num_conv_pos_embeddings=sizes[f"{position}.weight_v"][2],
        num_conv_pos_embedding_groups=max(1, width // max(1, sizes[f"{position}.weight_v"][1])),
        layerdrop=0.0,
        **({"num_buckets": buckets[0], "max_bucket_distance": MAX_DISTANCE} if buckets else {}),
    )
    order = "before" if deep else "after"
    notes.append(f"layer norms assumed {order} each block, as usual for this front end")
    if plain and not wavlm:
        notes.append(
            "read as a HuBERT; a wav2vec 2.0 of torchaudio has the same names and computes the same"
        )
    if wavlm:
        notes.append(f"position buckets assumed to reach {MAX_DISTANCE} frames")
    return shape, notes
