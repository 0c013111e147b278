"""Folders of wav2vec 2.0, WavLM and data2vec-audio: equal to stock transformers, and just as strict."""

import json
from pathlib import Path

import pytest
import torch
from formats import FAMILIES, clip, family, read, refused
from safetensors.torch import load_file, save_file
from transformers import (
    Data2VecAudioForCTC,
    PreTrainedModel,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    WavLMForCTC,
    WavLMForXVector,
)

from distilkit.encoder import encode


def saved(model: PreTrainedModel, folder: Path, normalise: bool = True) -> Path:
    model.save_pretrained(folder, save_original_format=False)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": normalise}))
    return folder


def assert_equal(encoder: object, model: PreTrainedModel) -> None:
    wave_BS = clip()
    normal_BS = (wave_BS - wave_BS.mean()) / (wave_BS.var(correction=0) + 1e-7).sqrt()
    with torch.no_grad():
        output = model(normal_BS, output_hidden_states=True)
        got = encode(encoder, wave_BS, [wave_BS.shape[1]], range(4))  # type: ignore[arg-type]
    for one, other in zip(got, [*output.hidden_states[:3], output.last_hidden_state], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(tmp_path: Path, name: str) -> None:
    model = family(name)
    encoder, checkpoint = read(saved(model, tmp_path / "teacher"))
    assert (checkpoint.family, checkpoint.format) == (model.config.model_type, "huggingface")
    assert (checkpoint.notes, encoder.normalise) == ((), True)
    assert_equal(encoder, model)


@pytest.mark.parametrize(
    ("name", "kind", "head"),
    [
        ("wav2vec 2.0", Wav2Vec2ForCTC, "lm_head.bias"),
        ("wav2vec 2.0, large", Wav2Vec2ForPreTraining, "project_hid.bias"),
        ("WavLM", WavLMForCTC, "lm_head.bias"),
        ("WavLM", WavLMForXVector, "feature_extractor.bias"),
        ("data2vec", Data2VecAudioForCTC, "lm_head.bias"),
    ],
)
def test_heads_are_left_out(
    tmp_path: Path, name: str, kind: type[PreTrainedModel], head: str
) -> None:
    model = family(name, kind, vocab_size=7)
    encoder, checkpoint = read(saved(model, tmp_path / "teacher"))
    (note,) = checkpoint.notes
    assert note.startswith("left out the head (")
    assert head in note
    assert_equal(encoder, model.base_model)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_that_do_not_fit_are_all_named(tmp_path: Path, name: str) -> None:
    folder = saved(family(name), tmp_path / "teacher")
    tensors = load_file(folder / "model.safetensors")
    tensors["x.weight"] = tensors.pop("encoder.layers.0.attention.k_proj.bias")
    tensors["encoder.layers.1.layer_norm.bias"] = torch.rand(5)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert refused(folder)[0] == (
        f"the weights in `{folder}` do not fit its config.json: missing `encoder.layers.0.attention.k_proj.bias`; "
        "unexpected `x.weight`; of another shape `encoder.layers.1.layer_norm.bias` (5,) instead of (32,)"
    )


def test_a_students_heads_are_read_from_its_folder_or_run(tmp_path: Path) -> None:
    from conftest import make_model

    heads = {"output_layer.0.weight": torch.rand(4, 2), "output_layer.0.bias": torch.rand(4)}
    run = tmp_path / "run"
    saved(make_model(num_hidden_layers=3), run / "student")
    save_file(heads, run / "heads.safetensors", metadata={"layers": "4,8"})
    assert read(run / "student")[1].heads is None  # a folder beside it is not a run's
    (run / "run.json").write_text("{}")
    for place in (run, run / "student"):
        checkpoint = read(place)[1]
        assert checkpoint.head_layers == (4, 8)
        assert checkpoint.heads is not None
        assert all(torch.equal(checkpoint.heads[name], heads[name]) for name in heads)
    save_file(heads, run / "student" / "heads.safetensors", metadata={"layers": "12"})
    assert read(run)[1].head_layers == (12,)
    (run / "student" / "heads.safetensors").write_bytes(b"nonsense")
    problem, hint = refused(run)
    assert problem.startswith(f"`{run / 'student' / 'heads.safetensors'}` is damaged: ")
    assert hint == "remove it to go on without"
