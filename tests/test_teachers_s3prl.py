"""s3prl's distiller: student and heads equal what the original implementation computed."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import make_model
from formats import clip, pretend, read, refused, saved
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import HubertModel

from distilkit.encoder import Encoder, encode

CONVS = "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2"


def student(**changes: object) -> HubertModel:
    return make_model(num_hidden_layers=2, feat_proj_layer_norm=False, **changes)


def distiller_weights(model: HubertModel) -> dict[str, Tensor]:
    """A student's weights as s3prl's DistillerModel has them, one module after the other."""
    found: dict[str, Tensor] = {}

    def put(prefix: str, module: nn.Module) -> None:
        found.update(
            {f"{prefix}.{n}": t.detach() for n, t in module.named_parameters(recurse=False)}
        )

    for i, block in enumerate(model.feature_extractor.conv_layers):
        put(f"feature_extractor.conv_layers.{i}.0", block.conv)
        if isinstance(getattr(block, "layer_norm", None), nn.GroupNorm):
            put(f"feature_extractor.conv_layers.{i}.2", block.layer_norm)
        elif hasattr(block, "layer_norm"):
            put(f"feature_extractor.conv_layers.{i}.2.1", block.layer_norm)
    put("post_extract_proj", model.feature_projection.projection)
    position = model.encoder.pos_conv_embed.conv
    put("encoder.pos_conv.0", position)
    found["encoder.pos_conv.0.weight_g"] = position.parametrizations.weight.original0.detach()
    found["encoder.pos_conv.0.weight_v"] = position.parametrizations.weight.original1.detach()
    for i, layer in enumerate(model.encoder.layers):
        for part in ("q", "k", "v", "out"):
            put(
                f"encoder.layers.{i}.self_attn.{part}_proj",
                getattr(layer.attention, f"{part}_proj"),
            )
        put(f"encoder.layers.{i}.self_attn_layer_norm", layer.layer_norm)
        put(f"encoder.layers.{i}.fc1", layer.feed_forward.intermediate_dense)
        put(f"encoder.layers.{i}.fc2", layer.feed_forward.output_dense)
        put(f"encoder.layers.{i}.final_layer_norm", layer.final_layer_norm)
    put("encoder.layer_norm", model.encoder.layer_norm)
    return found


def head_weights(count: int, width: int = 32, target: int = 48) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return {
        "output_layer.0.weight": torch.randn(width * count, width),
        "output_layer.0.bias": torch.randn(width * count),
        "output_layer.2.weight": torch.randn(count, width, target),
        "output_layer.2.bias": torch.randn(1, 1, count, target),
    }


def distiller_file(weights: dict[str, Tensor], **changes: object) -> dict[str, object]:
    settings = {
        "extractor_mode": "default", "extractor_conv_feature_layers": CONVS, "extractor_dropout": 0.0,
        "feature_grad_mult": 0.1, "conv_pos": 16, "conv_pos_groups": 4, "encoder_layers": 2,
        "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64, "encoder_attention_heads": 4,
        "activation_fn": "gelu", "layer_norm_first": False, "attention_type": "original", "dropout": 0.1,
        "attention_dropout": 0.1, "activation_dropout": 0.1, "encoder_layerdrop": 0.0, "final_dim": 48,
        "out_layer_type": "expand-last", "n_tasks": 3, "task_emb_type": "expand-last", "loss_type": "l1",
        "feat_pen_loss": 0.0, "cosine_loss": 1.0, "pred_layer_id": [4, 8, 12],
    }  # fmt: skip
    return {
        "Optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 2e-4, "params": [0]}]},
        "Step": 200_000,
        "Args": Namespace(upstream="distiller", device="cuda", multi_gpu=True),
        "Runner": {"runner": {"total_steps": 200_000}},
        "Distiller": weights,
        "Config": {
            "distiller": settings | changes,
            "teacher": {"model": "hubert_base", "n_layers": 12},
            "task": {"sequence_length": 250_000},
            "audio": {"target_level": "None"},
        },
    }


def last(encoder: Encoder, wave_BS: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return encode(encoder, wave_BS, [wave_BS.shape[1]] * len(wave_BS), [0, 1, 2])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({}, {}),
        (
            {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
            {"extractor_mode": "layer_norm", "layer_norm_first": True},
        ),
    ],
)
def test_a_student_and_its_heads(
    tmp_path: Path, changes: dict[str, object], settings: dict[str, object], legacy: bool
) -> None:
    model, heads = student(**changes), head_weights(3)
    content = distiller_file(distiller_weights(model) | heads, **settings)
    path = saved(
        content, tmp_path / "states-200000.ckpt", _use_new_zipfile_serialization=not legacy
    )
    encoder, checkpoint = read(path)
    assert (checkpoint.format, checkpoint.family, encoder.normalise) == ("s3prl", "hubert", False)
    assert checkpoint.notes == ("has heads for layers 4, 8, 12 of its teacher",)
    assert checkpoint.head_layers == (4, 8, 12)
    assert checkpoint.heads is not None
    assert set(checkpoint.heads) == set(heads)
    assert all(torch.equal(checkpoint.heads[name], tensor) for name, tensor in heads.items())
    with torch.no_grad():
        output = model(clip(), output_hidden_states=True)
    wanted = [*output.hidden_states[:2], output.last_hidden_state]
    for got, one in zip(last(encoder, clip()), wanted, strict=True):
        torch.testing.assert_close(got, one, rtol=1e-5, atol=1e-5)
    position, other = encoder.model.encoder.pos_conv_embed, model.encoder.pos_conv_embed
    hidden = torch.rand(1, 20, 32)
    assert torch.equal(position(hidden), other(hidden))


def test_a_single_head_is_an_ordinary_linear_map(tmp_path: Path) -> None:
    heads = head_weights(1)
    linear = nn.Linear(32, 48)
    weights = distiller_weights(student()) | {
        "output_layer.0.weight": heads["output_layer.0.weight"],
        "output_layer.0.bias": heads["output_layer.0.bias"],
        "output_layer.2.layer.weight": linear.weight.detach(),
        "output_layer.2.layer.bias": linear.bias.detach(),
    }
    content = distiller_file(weights, n_tasks=1, pred_layer_id=[12])
    _, checkpoint = read(saved(content, tmp_path / "a.ckpt"))
    assert checkpoint.head_layers == (12,)
    assert checkpoint.heads is not None
    inner = torch.rand(7, 32)
    weight, bias = (checkpoint.heads[f"output_layer.2.{part}"] for part in ("weight", "bias"))
    torch.testing.assert_close(inner @ weight[0] + bias[0, 0, 0], linear(inner))


def test_pickled_schedules_of_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = object.__new__(pretend(monkeypatch, "optimizers.WarmupLinearSchedule"))
    schedule.__dict__ = {"warmup": 0.07, "t_total": 200_000.0}
    content = distiller_file(distiller_weights(student()) | head_weights(3))
    content["Optimizer"] = {"state": {}, "param_groups": [{"schedule": schedule}]}
    path = saved(content, tmp_path / "a.ckpt")
    monkeypatch.undo()
    assert read(path)[1].head_layers == (4, 8, 12)


def test_without_heads(tmp_path: Path) -> None:
    content = distiller_file(
        distiller_weights(student()), out_layer_type="none", task_emb_type="none"
    )
    _, checkpoint = read(saved(content, tmp_path / "a.ckpt"))
    assert (checkpoint.heads, checkpoint.head_layers, checkpoint.notes) == (None, (), ())


def test_heads_of_another_form_are_left_out_with_a_note(tmp_path: Path) -> None:
    heads = head_weights(3, width=16)  # `out_layer_inter_dim`
    heads["output_layer.0.weight"] = torch.rand(48, 32)
    _, checkpoint = read(
        saved(distiller_file(distiller_weights(student()) | heads), tmp_path / "a.ckpt")
    )
    assert checkpoint.heads is None
    assert checkpoint.notes[0].startswith("left out the head (output_layer.0.bias, ")
    assert (
        checkpoint.notes[1] == "its heads have another form than ours, so distillation cannot go on"
    )


@pytest.mark.parametrize("key", ["task_emb_type", "attention_type", "out_layer_type"])
def test_other_kinds_of_distiller_are_refused(tmp_path: Path, key: str) -> None:
    path = saved(
        distiller_file(distiller_weights(student()), **{key: "sparse"}), tmp_path / "a.ckpt"
    )
    assert refused(path)[0] == f"`{path}` has `{key}` sparse, which no model here computes"


def test_weights_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    weights = distiller_weights(student()) | head_weights(3)
    weights["x.weight"] = weights.pop("post_extract_proj.bias")
    weights["encoder.layers.0.fc1.bias"] = torch.rand(3)
    path = saved(distiller_file(weights), tmp_path / "a.ckpt")
    assert refused(path)[0] == (
        f"the weights in `{path}` do not fit its settings: missing `post_extract_proj.bias`; unexpected "
        "`x.weight`; of another shape `encoder.layers.0.fc1.bias` (3,) instead of (64,)"
    )


def test_no_settings(tmp_path: Path) -> None:
    path = saved({"Distiller": distiller_weights(student())}, tmp_path / "a.ckpt")
    assert refused(path)[0] == f"`{path}` holds no settings (`Config`, `distiller`)"


def test_the_original_implementations_student(tmp_path: Path, shared: Path) -> None:
    """A student in s3prl's own names; its last layer and predictions computed by the original code."""
    tensors = load_file(shared / "golden" / "distiller_reference.safetensors")
    weights = {
        n.removeprefix("student0."): t for n, t in tensors.items() if n.startswith("student0.")
    }
    content = distiller_file(
        weights, encoder_embed_dim=64, encoder_ffn_embed_dim=128, final_dim=64,
        extractor_conv_feature_layers="[(32,10,5)] + [(32,3,2)]*4 + [(32,2,2)]*2",
    )  # fmt: skip
    encoder, checkpoint = read(saved(content, tmp_path / "student.ckpt"))
    hidden = last(encoder, tensors["wav"])[-1]
    torch.testing.assert_close(hidden, tensors["student_hidden_last"], rtol=1e-5, atol=1e-5)
    heads = checkpoint.heads
    assert heads is not None
    inner = gelu(hidden @ heads["output_layer.0.weight"].T + heads["output_layer.0.bias"])
    parts = inner.unflatten(-1, (3, 64))
    predicted = torch.einsum("btni,nio->bnto", parts, heads["output_layer.2.weight"])
    predicted = predicted + heads["output_layer.2.bias"][0, 0, :, None]
    torch.testing.assert_close(predicted, tensors["pred"], rtol=1e-5, atol=1e-5)
