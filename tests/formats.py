"""Checkpoints of other libraries, written independently of the readers, and what they compute.

The reference is torchaudio's own model (or stock transformers, where torchaudio has none); its weights
are collected module by module, so no map of names is shared with the package.
"""

import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import voice
from torch import Tensor, nn
from torchaudio.models import Wav2Vec2Model, wav2vec2_model, wavlm_model
from transformers import (
    AutoModel,
    Data2VecAudioConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Wav2Vec2Config,
    WavLMConfig,
)

from distilkit import teachers
from distilkit.encoder import Encoder, encode
from distilkit.errors import DistilkitError
from distilkit.teachers import Checkpoint

STABLE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
CONVS = "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2"
SIZES: dict[str, dict[str, object]] = {
    "base": {"stable": False, "width": 128, "layers": 3},
    "large": {"stable": True, "width": 192, "layers": 3},
    "xlarge": {"stable": True, "width": 256, "layers": 4, "bias": True},
}


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norms that are not the identity, gates and biases that are not zero: a forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "norm" in name or "rel_pos" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def reference(
    *, width: int = 128, layers: int = 3, stable: bool = False, bias: bool = False,
    aux: int | None = None, wavlm: bool = False, heads: int | None = None, seed: int = 0,
) -> Wav2Vec2Model:  # fmt: skip
    """torchaudio's own model, small; heads are 64 wide as in the published ones."""
    torch.manual_seed(seed)
    settings: dict[str, object] = {
        "extractor_mode": "layer_norm" if stable else "group_norm",
        "extractor_conv_layer_config": [(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] * 2,
        "extractor_conv_bias": bias,
        "encoder_embed_dim": width,
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": 16,
        "encoder_pos_conv_groups": 4,
        "encoder_num_layers": layers,
        "encoder_num_heads": heads or width // 64,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": 96,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": stable,
        "encoder_layer_drop": 0.0,
        "aux_num_out": aux,
    }
    if wavlm:
        settings |= {"encoder_num_buckets": 40, "encoder_max_distance": 800}
    return shaken((wavlm_model if wavlm else wav2vec2_model)(**settings), seed)


def fairseq_weights(model: Wav2Vec2Model) -> dict[str, Tensor]:
    """A torchaudio model's weights as fairseq's state dict has them, one module after the other."""
    found: dict[str, Tensor] = {}

    def put(prefix: str, module: nn.Module) -> None:
        for name, tensor in module.named_parameters(recurse=False):
            found[f"{prefix}.{name}"] = tensor.detach().clone()

    def gated(prefix: str, attention: nn.Module) -> None:
        """WavLM's, as its authors name it."""
        packed = attention.attention
        for part, rows in (("q", 0), ("k", 1), ("v", 2)):
            width = packed.embed_dim
            rows_of = slice(rows * width, rows * width + width)
            found[f"{prefix}.{part}_proj.weight"] = packed.in_proj_weight.detach()[rows_of].clone()
            found[f"{prefix}.{part}_proj.bias"] = packed.in_proj_bias.detach()[rows_of].clone()
        put(f"{prefix}.out_proj", packed.out_proj)
        put(f"{prefix}.grep_linear", attention.gru_rel_pos_linear)
        found[f"{prefix}.grep_a"] = attention.gru_rel_pos_const.detach().clone()
        if attention.rel_attn_embed is not None:
            put(f"{prefix}.relative_attention_bias", attention.rel_attn_embed)

    transformer = model.encoder.transformer
    for i, block in enumerate(model.feature_extractor.conv_layers):
        put(f"feature_extractor.conv_layers.{i}.0", block.conv)
        if isinstance(block.layer_norm, nn.GroupNorm):
            put(f"feature_extractor.conv_layers.{i}.2", block.layer_norm)
        elif block.layer_norm is not None:
            put(f"feature_extractor.conv_layers.{i}.2.1", block.layer_norm)
    put("layer_norm", model.encoder.feature_projection.layer_norm)
    put("post_extract_proj", model.encoder.feature_projection.projection)
    position = transformer.pos_conv_embed.conv
    found["encoder.pos_conv.0.bias"] = position.bias.detach().clone()
    parts = position.parametrizations.weight
    found["encoder.pos_conv.0.weight_g"] = parts.original0.detach().clone()
    found["encoder.pos_conv.0.weight_v"] = parts.original1.detach().clone()
    for i, layer in enumerate(transformer.layers):
        if hasattr(layer.attention, "q_proj"):
            for part in ("q", "k", "v", "out"):
                put(
                    f"encoder.layers.{i}.self_attn.{part}_proj",
                    getattr(layer.attention, f"{part}_proj"),
                )
        else:
            gated(f"encoder.layers.{i}.self_attn", layer.attention)
        put(f"encoder.layers.{i}.self_attn_layer_norm", layer.layer_norm)
        put(f"encoder.layers.{i}.fc1", layer.feed_forward.intermediate_dense)
        put(f"encoder.layers.{i}.fc2", layer.feed_forward.output_dense)
        put(f"encoder.layers.{i}.final_layer_norm", layer.final_layer_norm)
    put("encoder.layer_norm", transformer.layer_norm)
    found["mask_emb"] = torch.rand(position.bias.shape)
    assert sum(t.numel() for n, t in found.items() if n != "mask_emb") == sum(
        p.numel() for n, p in model.named_parameters() if not n.startswith("aux")
    )
    return found


def settings(
    *, width: int = 128, layers: int = 3, stable: bool = False, bias: bool = False
) -> dict[str, object]:
    """`cfg.model` of a fairseq checkpoint of the same model."""
    return {
        "_name": "hubert", "label_rate": 50, "extractor_mode": "layer_norm" if stable else "default",
        "encoder_layers": layers, "encoder_embed_dim": width, "encoder_ffn_embed_dim": 96,
        "encoder_attention_heads": width // 64, "activation_fn": "gelu", "dropout": 0.1,
        "attention_dropout": 0.1, "activation_dropout": 0.0, "encoder_layerdrop": 0.05,
        "dropout_input": 0.1, "dropout_features": 0.1, "final_dim": 24, "untie_final_proj": True,
        "layer_norm_first": stable, "conv_feature_layers": CONVS, "conv_bias": bias, "logit_temp": 0.1,
        "conv_pos": 16, "conv_pos_groups": 4, "mask_prob": 0.8,
    }  # fmt: skip


def fairseq_file(weights: dict[str, Tensor], model: object, task: object) -> dict[str, object]:
    """The top level of a fairseq checkpoint."""
    return {
        "args": None,
        "cfg": {"_name": None, "common": {"fp16": True}, "model": model, "task": task},
        "model": weights,
        "criterion": None,
        "optimizer_history": [{"num_updates": 400_000, "lr_scheduler_state": {"best": None}}],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1}, "metrics": {}},
        "last_optimizer_state": None,
    }


FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, object]]] = {
    "wav2vec 2.0": (Wav2Vec2Config, {}),
    "wav2vec 2.0, large": (Wav2Vec2Config, STABLE),
    "WavLM": (WavLMConfig, {}),
    "WavLM, large": (WavLMConfig, {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    "data2vec": (Data2VecAudioConfig, {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 7}),
    "data2vec, even": (
        Data2VecAudioConfig,
        {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 6},
    ),
}


def family(
    name: str, model: type[PreTrainedModel] | None = None, **changes: object
) -> PreTrainedModel:
    """A small model of another family, by stock transformers; its norms are not the identity."""
    kind, settings = FAMILIES[name]
    shape = kind(**{
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
        "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
        "layerdrop": 0.0, **settings, **changes,
    })  # fmt: skip
    torch.manual_seed(0)
    return shaken(model(shape) if model else AutoModel.from_config(shape))  # type: ignore[return-value]


def clip(seconds: float = 0.8) -> Tensor:
    return torch.from_numpy(voice(seconds, 3))[None]


@torch.no_grad()
def parts_of(model: Wav2Vec2Model, wave_BS: Tensor) -> dict[str, Tensor]:
    """What torchaudio's model computes, component by component, then whole."""
    features, _ = model.feature_extractor(wave_BS, None)
    projected = model.encoder.feature_projection(features)
    found = {
        "conv features": features,
        "projection": projected,
        "positional conv": model.encoder.transformer.pos_conv_embed(projected),
    }
    layers = model.extract_features(wave_BS)[0]
    found |= {f"layer {i + 1}": value for i, value in enumerate(layers[:-1])}
    # The last one stands behind the final norm, as `encode` has it; of a CTC model before the head.
    aux, model.aux = model.aux, None
    found["whole"] = model(wave_BS)[0]
    model.aux = aux
    return found


@torch.no_grad()
def ours(encoder: Encoder, wave_BS: Tensor) -> dict[str, Tensor]:
    """The same of what was read."""
    model, length = encoder.model, wave_BS.shape[1]
    raw = Encoder(model=model, normalise=False)
    encode(raw, wave_BS, [length], [0])  # tells the norms that nothing is padded
    features = model.feature_extractor(wave_BS).transpose(1, 2)
    projected = model.feature_projection(features)
    projected = projected[0] if isinstance(projected, tuple) else projected
    hidden = encode(raw, wave_BS, [length], range(1, encoder.depth + 1))
    return {
        "conv features": features,
        "projection": projected,
        "positional conv": model.encoder.pos_conv_embed(projected),
        **{f"layer {i + 1}": value for i, value in enumerate(hidden[:-1])},
        "whole": hidden[-1],
    }


def assert_same(model: Wav2Vec2Model, encoder: Encoder, tolerance: float = 1e-5) -> float:
    """Every component, then the whole, within a tolerance relative to its size; the largest seen."""
    wave_BS, largest = clip(), 0.0
    read = ours(encoder, wave_BS)
    reference_parts = parts_of(model, wave_BS)
    assert list(read) == list(reference_parts)
    for name, wanted in reference_parts.items():
        got = read[name]
        assert got.shape == wanted.shape, name
        away = float((got - wanted).abs().max() / wanted.abs().max())
        assert away < tolerance, (name, away)
        largest = max(largest, away)
    return largest


def saved(content: object, path: Path, **options: object) -> str:
    torch.save(content, path, **options)  # type: ignore[arg-type]
    return str(path)


def read(path: object) -> tuple[Encoder, Checkpoint]:
    encoder, checkpoint = teachers.load(str(path))
    assert not any(module.training for module in encoder.model.modules())
    assert {p.dtype for p in encoder.model.parameters()} == {torch.float32}
    assert all(p.requires_grad and not p.is_meta for p in encoder.model.parameters())
    return encoder, checkpoint


def refused(path: object) -> tuple[str, str]:
    with pytest.raises(DistilkitError) as caught:
        teachers.load(str(path))
    assert caught.value.hint
    assert "\n" not in caught.value.problem
    return caught.value.problem, caught.value.hint


def pretend(monkeypatch: pytest.MonkeyPatch, name: str) -> type:
    """A class of a library that need not be installed, so that it can be pickled under its own name."""
    module, _, own = name.rpartition(".")
    for i in range(module.count(".") + 1):
        part = module.rsplit(".", i)[0]
        if part not in sys.modules:
            monkeypatch.setitem(sys.modules, part, ModuleType(part))
    known = getattr(sys.modules[module], own, None)
    if isinstance(known, type) and hasattr(known, "pretended"):
        return known
    made = type(own, (), {"__module__": module, "__qualname__": own, "pretended": True})
    monkeypatch.setattr(sys.modules[module], own, made, raising=False)
    return made


def omegaconf(monkeypatch: pytest.MonkeyPatch, value: object) -> object:
    """Settings as omegaconf 2.0 pickles them: containers of nodes with metadata."""
    kinds = {
        dict: "omegaconf.dictconfig.DictConfig", list: "omegaconf.listconfig.ListConfig",
        str: "omegaconf.nodes.StringNode", int: "omegaconf.nodes.IntegerNode",
        float: "omegaconf.nodes.FloatNode", bool: "omegaconf.nodes.BooleanNode",
        type(None): "omegaconf.nodes.AnyNode",
    }  # fmt: skip
    name = kinds[type(value)]
    node = object.__new__(pretend(monkeypatch, name))
    meta = "ContainerMetadata" if isinstance(value, dict | list) else "Metadata"
    metadata = object.__new__(pretend(monkeypatch, f"omegaconf.base.{meta}"))
    metadata.__dict__ = {
        "ref_type": dict,
        "object_type": str,
        "optional": True,
        "key": None,
        "flags": {},
    }
    if isinstance(value, dict):
        content: object = {key: omegaconf(monkeypatch, item) for key, item in value.items()}
    elif isinstance(value, list):
        content = [omegaconf(monkeypatch, item) for item in value]
    else:
        content = value
    held = "_content" if isinstance(value, dict | list) else "_val"
    node.__dict__ = {"_metadata": metadata, "_parent": None, held: content}
    return node


def namespace(value: dict[str, object]) -> Namespace:
    return Namespace(**value)
