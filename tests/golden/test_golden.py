"""Distillation gives the numbers it gave before, and those of the original implementation."""

import json
import re
from pathlib import Path

import pytest
import torch
from make import FILE, fixture, run, shape, values
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity, logsigmoid
from transformers import HubertModel

from distilkit.objectives import Heads, load_named


def test_own_values() -> None:
    wanted, got = json.loads(FILE.read_text()), values(run(*fixture()))
    assert got["step_0"] == pytest.approx(wanted["step_0"], abs=1e-5)
    assert got["loss"] == pytest.approx(wanted["loss"], abs=1e-4)
    assert got["grad_norm"] == pytest.approx(wanted["grad_norm"], abs=1e-3)
    assert wanted["loss"][-1] < 0.5 * wanted["loss"][0]


def test_step_0_by_hand() -> None:
    """The same first loss and gradient norm, written out with nothing but stock transformers."""
    teacher, heads, wave_BS = fixture()
    student = HubertModel(shape().__class__(**{**shape().to_dict(), "num_hidden_layers": 2, "feat_proj_layer_norm": False, "apply_spec_augment": False}))  # fmt: skip
    student.load_state_dict(teacher.state_dict(), strict=False)
    with torch.no_grad():
        hidden = teacher.eval()(wave_BS, output_hidden_states=True).hidden_states
    student.feature_extractor.register_forward_hook(
        lambda _m, _i, out: out.register_hook(lambda gradient: 0.1 * gradient) and None
    )
    last_BTD = student.train()(wave_BS).last_hidden_state
    predicted = heads([last_BTD])
    loss = torch.zeros(())
    for prediction, layer in zip(predicted, (4, 8, 12), strict=True):
        target = hidden[layer]
        cosine = cosine_similarity(prediction, target, dim=-1)
        loss = loss + ((prediction - target).abs().mean() - logsigmoid(cosine).mean()) / 3
    loss.backward()
    trained = [*student.parameters(), *heads.parameters()]
    norm = torch.stack([p.grad.norm() for p in trained if p.grad is not None]).norm()
    wanted = json.loads(FILE.read_text())["step_0"]
    assert loss.item() == pytest.approx(wanted["loss"], abs=1e-5)
    assert norm.item() == pytest.approx(wanted["grad_norm"], abs=1e-5)


def test_original_values(shared: Path) -> None:
    """Step 0 to 1e-5 and 50 steps to 1e-4 of the original implementation's own numbers."""
    tensors = load_file(shared / "golden" / "distiller_reference.safetensors")
    wanted = json.loads((shared / "golden" / "distiller_reference.json").read_text())
    teacher, heads = HubertModel(shape()), Heads(64, 64, 3)
    weights = {
        our_name(name.removeprefix("teacher.")): tensor
        for name, tensor in tensors.items()
        if name.startswith("teacher.")
    }
    found = teacher.load_state_dict(weights, strict=False)
    assert not found.missing_keys
    assert all(name.startswith(("final_proj", "label_embs")) for name in found.unexpected_keys)
    load_named(
        heads,
        {
            name.removeprefix("student0."): tensor
            for name, tensor in tensors.items()
            if name.startswith("student0.output_layer")
        },
    )
    steps = run(teacher, heads, tensors["wav"])
    first = steps[0]
    assert first.loss == pytest.approx(wanted["total"], abs=1e-5)
    assert first.grad_norm == pytest.approx(wanted["grad_norm"], abs=1e-5)
    for layer in (4, 8, 12):
        assert first.parts[f"l1_{layer}"] == pytest.approx(wanted[f"rec_l{layer}"], abs=1e-5)
        assert first.parts[f"cosine_{layer}"] == pytest.approx(wanted[f"sim_l{layer}"], abs=1e-5)
    assert [step.loss for step in steps] == pytest.approx(wanted["curve"], abs=1e-4)


def our_name(name: str) -> str:
    """fairseq's name of a weight as transformers has it."""
    conv = "encoder.pos_conv_embed.conv"
    for old, new in (
        ("post_extract_proj", "feature_projection.projection"),
        ("encoder.pos_conv.0.weight_g", f"{conv}.parametrizations.weight.original0"),
        ("encoder.pos_conv.0.weight_v", f"{conv}.parametrizations.weight.original1"),
        ("encoder.pos_conv.0", conv),
        ("self_attn_layer_norm", "layer_norm"),
        ("self_attn", "attention"),
        ("fc1", "feed_forward.intermediate_dense"),
        ("fc2", "feed_forward.output_dense"),
        ("mask_emb", "masked_spec_embed"),
    ):
        name = name.replace(old, new)
    name = re.sub(r"conv_layers\.(\d)\.0\.", r"conv_layers.\1.conv.", name)
    name = re.sub(r"conv_layers\.(\d)\.2\.", r"conv_layers.\1.layer_norm.", name)
    return f"feature_projection.{name}" if name.startswith("layer_norm.") else name
