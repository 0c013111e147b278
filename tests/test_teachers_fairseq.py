"""fairseq checkpoints: equal to torchaudio's own model part by part, whatever keeps the settings."""

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import make_model
from formats import (
    SIZES,
    assert_same,
    clip,
    fairseq_file,
    fairseq_weights,
    namespace,
    omegaconf,
    pretend,
    read,
    reference,
    refused,
    saved,
    settings,
    shaken,
)
from safetensors.torch import load_file
from torch import Tensor
from transformers import Data2VecAudioConfig, Data2VecAudioModel

from distilkit.encoder import Encoder, encode, exact
from distilkit.teachers.layout import conv_layers

HEADS = {
    "final_proj.weight": torch.rand(24, 128),
    "final_proj.bias": torch.rand(24),
    "label_embs_concat": torch.rand(504, 24),
}


def written(path: Path, size: str = "base", normalize: object = None, **changes: object) -> str:
    kind = SIZES[size]
    task = {"_name": "hubert_pretraining", "sample_rate": 16_000}
    task |= {} if normalize is None else {"normalize": normalize}
    weights = fairseq_weights(reference(**kind)) | HEADS
    return saved(fairseq_file(weights, settings(**kind) | changes, task), path)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_every_size_equals_torchaudio(tmp_path: Path, size: str, form: str) -> None:
    kind = SIZES[size]
    model = reference(**kind)
    content = fairseq_file(
        fairseq_weights(model) | HEADS, settings(**kind), {"normalize": kind["stable"]}
    )
    path = saved(content, tmp_path / "hubert.pt", _use_new_zipfile_serialization=form == "zip")
    encoder, checkpoint = read(path)
    assert assert_same(model, encoder) < 1e-5
    assert (checkpoint.format, checkpoint.family, checkpoint.source) == ("fairseq", "hubert", path)
    assert encoder.normalise == kind["stable"]
    assert checkpoint.notes == (
        "left out the head (final_proj.bias, final_proj.weight, label_embs_concat)",
    )
    assert (checkpoint.heads, checkpoint.head_layers) == (None, ())


def dictionary(monkeypatch: pytest.MonkeyPatch) -> object:
    made = object.__new__(pretend(monkeypatch, "fairseq.data.dictionary.Dictionary"))
    made.__dict__ = {
        "symbols": ["<s>", "0"],
        "count": [1, 2],
        "indices": {"<s>": 0},
        "bos_word": "<s>",
    }
    return made


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("form", ["omegaconf", "args", "dict"])
def test_every_form_of_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, legacy: bool
) -> None:
    """With a pickled Dictionary in `task_state`, as real files have; fairseq is not installed."""
    model = reference()
    content = fairseq_file(fairseq_weights(model), settings(), {"normalize": True})
    content["task_state"] = {"dictionaries": [dictionary(monkeypatch)]}
    if form == "omegaconf":
        content["cfg"] = omegaconf(monkeypatch, content["cfg"])
    elif form == "args":
        content |= {
            "cfg": None,
            "args": namespace(settings() | {"arch": "hubert", "normalize": True}),
        }
    path = saved(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    monkeypatch.undo()
    encoder, checkpoint = read(path)
    assert_same(model, encoder)
    assert (encoder.normalise, checkpoint.notes) == (True, ())


@pytest.mark.parametrize("form", ["dict", "args in w2v_args", "args", "sequence to sequence"])
def test_a_fine_tuned_checkpoint(tmp_path: Path, form: str) -> None:
    """The encoder's settings stand in `w2v_args`, its weights behind a prefix; the head is left out."""
    model = reference(stable=True)
    prefix = "encoder." if form.startswith("seq") else "w2v_encoder."
    weights = {
        f"{prefix}w2v_model.{name}": tensor for name, tensor in fairseq_weights(model).items()
    }
    weights |= {f"{prefix}proj.weight": torch.rand(32, 128), f"{prefix}proj.bias": torch.rand(32)}
    if form.startswith("seq"):
        weights["decoder.embed_tokens.weight"] = torch.rand(4, 4)
    flat = settings(stable=True) | {"normalize": True, "arch": "hubert"}
    inner: object = {"model": settings(stable=True), "task": {"normalize": True}}
    outer = {"_name": "hubert_ctc", "w2v_path": "/somewhere", "layerdrop": 0.1, "w2v_args": inner}
    content = fairseq_file(weights, outer, {"_name": "audio_finetuning", "normalize": True})
    if form == "args in w2v_args":
        outer["w2v_args"] = namespace(flat)
    if form == "args":
        args = namespace(
            {
                "arch": "wav2vec_ctc",
                "w2v_path": "/x",
                "w2v_args": namespace(flat),
                "normalize": True,
            }
        )
        content |= {"cfg": None, "args": args}
    encoder, checkpoint = read(saved(content, tmp_path / "ctc.pt"))
    assert_same(model, encoder)
    assert encoder.normalise
    assert len(checkpoint.notes) == 1
    assert (
        f"left out the head ({'decoder.' if form.startswith('seq') else f'{prefix}proj.bias'}"
        in checkpoint.notes[0]
    )


def test_a_fine_tuned_checkpoint_without_its_encoders_settings(tmp_path: Path) -> None:
    weights = {f"w2v_encoder.w2v_model.{n}": t for n, t in fairseq_weights(reference()).items()}
    outer = {"_name": "hubert_ctc", "w2v_path": "/somewhere", "w2v_args": None}
    path = saved(fairseq_file(weights, outer, {}), tmp_path / "ctc.pt")
    assert refused(path) == (
        f"`{path}` is fine-tuned, and holds no settings of its encoder (`w2v_args`)",
        "give the pre-trained checkpoint that it came from",
    )


def test_what_s3prl_makes_of_a_checkpoint(tmp_path: Path) -> None:
    model = reference(stable=True)
    content = {
        "task_cfg": {"normalize": True, "sample_rate": 16_000},
        "model_cfg": {key: value for key, value in settings(stable=True).items() if key != "_name"},
        "model_weight": fairseq_weights(model) | HEADS,
        "dictionaries_symbols": [["<s>", "0"]],
    }
    encoder, checkpoint = read(saved(content, tmp_path / "converted.pt"))
    assert_same(model, encoder)
    assert (checkpoint.family, encoder.normalise) == ("hubert", True)


def test_wav2vec_2(tmp_path: Path) -> None:
    model = reference()
    weights = fairseq_weights(model) | {
        "quantizer.vars": torch.rand(1, 8, 4),
        "quantizer.weight_proj.weight": torch.rand(8, 16),
        "project_q.weight": torch.rand(4, 8),
        "final_proj.weight": torch.rand(4, 128),
    }
    content = fairseq_file(
        weights, settings() | {"_name": "wav2vec2", "quantize_targets": True}, {"normalize": False}
    )
    encoder, checkpoint = read(saved(content, tmp_path / "wav2vec.pt"))
    assert assert_same(model, encoder) < 1e-5
    assert (checkpoint.family, encoder.normalise) == ("wav2vec2", False)
    assert checkpoint.notes == (
        "left out the head (final_proj.weight, project_q.weight, quantizer.vars, quantizer.weight_proj.weight)",
    )


@pytest.mark.parametrize("stable", [False, True])
def test_wavlm_as_its_authors_wrote_it(tmp_path: Path, stable: bool) -> None:
    model = reference(wavlm=True, stable=stable)
    told = settings(stable=stable) | {
        "relative_position_embedding": True, "gru_rel_pos": True, "num_buckets": 40, "max_distance": 800, "normalize": stable,
    }  # fmt: skip
    del told["_name"]
    encoder, checkpoint = read(
        saved({"cfg": told, "model": fairseq_weights(model)}, tmp_path / "WavLM.pt")
    )
    assert assert_same(model, encoder) < 1e-5
    assert (checkpoint.family, encoder.normalise, checkpoint.notes) == ("wavlm", stable, ())
    path = saved(
        {"cfg": told | {"gru_rel_pos": False}, "model": fairseq_weights(model)}, tmp_path / "b.pt"
    )
    assert (
        refused(path)[0]
        == f"`{path}` has no gated relative positions, which no model here computes"
    )


@pytest.mark.parametrize("place", ["model", "task"])
def test_settings_that_hold_themselves(tmp_path: Path, place: str) -> None:
    content = fairseq_file(fairseq_weights(reference()), settings(), {})
    content["cfg"][place]["again"] = content["cfg"]  # type: ignore[index]
    assert (
        refused(saved(content, tmp_path / "a.pt"))[0]
        == "the settings in a checkpoint are nested without end"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("conv_pos", "many"),
        ("pos_conv_depth", [1]),
        ("encoder_layers", "12a"),
        ("activation_fn", []),
    ],
)
def test_settings_of_another_kind(tmp_path: Path, key: str, value: object) -> None:
    """One clear error each, whatever a damaged or hostile file holds."""
    assert written(tmp_path / "a.pt", **{key: value}) in refused(tmp_path / "a.pt")[0]


def test_weights_of_another_kind(tmp_path: Path) -> None:
    weights: dict[object, object] = {
        **fairseq_weights(reference()),
        7: torch.ones(1),
        "mask_emb": "text",
    }
    path = saved(fairseq_file(weights, settings(), {}), tmp_path / "a.pt")  # type: ignore[arg-type]
    assert (
        refused(path)[0]
        == f"the weights in `{path}` do not fit its settings: unexpected `7`, `mask_emb`"
    )
    assert (
        "lack encoder_layers"
        in refused(saved({"model": {1: 2}, "cfg": {3: 4}}, tmp_path / "b.pt"))[0]
    )
    assert refused(saved({"model": [], "model_cfg": 1, "model_weight": 2}, tmp_path / "c.pt"))[
        0
    ].startswith("the settings in `")


def test_data2vec(tmp_path: Path) -> None:
    """Five positional convolutions; the reference is stock transformers, its modules written out by hand."""
    torch.manual_seed(0)
    model = shaken(Data2VecAudioModel(Data2VecAudioConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96,
        conv_dim=[16] * 7, num_conv_pos_embedding_groups=4, num_conv_pos_embeddings=3,
        conv_pos_kernel_size=5, layerdrop=0.0,
    )))  # fmt: skip
    weights: dict[str, object] = {
        "_ema": {"a": torch.rand(2)},
        "final_proj.weight": torch.rand(128, 128),
    }

    def put(prefix: str, module: torch.nn.Module) -> None:
        weights.update(
            {f"{prefix}.{name}": value.detach() for name, value in module.named_parameters()}
        )

    for i, block in enumerate(model.feature_extractor.conv_layers):
        put(f"feature_extractor.conv_layers.{i}.0", block.conv)
        put(f"feature_extractor.conv_layers.{i}.2.1", block.layer_norm)
    put("layer_norm", model.feature_projection.layer_norm)
    put("post_extract_proj", model.feature_projection.projection)
    for i, layer in enumerate(model.encoder.pos_conv_embed.layers):
        put(f"encoder.pos_conv.{i}.0", layer.conv)
    for i, layer in enumerate(model.encoder.layers):
        put(f"encoder.layers.{i}.self_attn", layer.attention)
        put(f"encoder.layers.{i}.self_attn_layer_norm", layer.layer_norm)
        put(f"encoder.layers.{i}.fc1", layer.feed_forward.intermediate_dense)
        put(f"encoder.layers.{i}.fc2", layer.feed_forward.output_dense)
        put(f"encoder.layers.{i}.final_layer_norm", layer.final_layer_norm)
    put("encoder.layer_norm", model.encoder.layer_norm)
    weights["mask_emb"] = model.masked_spec_embed.detach()
    changes = {
        "_name": "data2vec_audio",
        "extractor_mode": "layer_norm",
        "pos_conv_depth": 3,
        "conv_pos": 15,
    }
    content = fairseq_file(weights, settings(layers=2) | changes, {"normalize": True})  # type: ignore[arg-type]
    encoder, checkpoint = read(saved(content, tmp_path / "data2vec.pt"))
    assert (checkpoint.family, encoder.normalise) == ("data2vec-audio", True)
    assert checkpoint.notes == ("left out the head (_ema, final_proj.weight)",)
    with torch.no_grad():
        wanted = model(clip(), output_hidden_states=True)
        got = encode(
            Encoder(model=encoder.model, normalise=False), clip(), [clip().shape[1]], [0, 1, 2]
        )
    for one, other in zip(got, [*wanted.hidden_states[:2], wanted.last_hidden_state], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_batch_norm_before_the_positional_convolution(tmp_path: Path) -> None:
    model = make_model(
        num_hidden_layers=1,
        hidden_size=128,
        num_attention_heads=2,
        intermediate_size=96,
        conv_pos_batch_norm=True,
    )
    weights = fairseq_weights(reference(layers=1))
    for name in [name for name in weights if name.startswith("encoder.pos_conv.")]:
        del weights[name]
    position = model.encoder.pos_conv_embed
    weights |= {f"encoder.pos_conv.0.{n}": t for n, t in position.batch_norm.state_dict().items()}
    weights |= {f"encoder.pos_conv.1.{n}": t for n, t in position.conv.state_dict().items()}
    content = fairseq_file(
        weights, settings(layers=1) | {"conv_pos_batch_norm": True}, {"normalize": False}
    )
    encoder, _ = read(saved(content, tmp_path / "hubert.pt"))
    hidden = torch.rand(1, 30, 128)
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.model.encoder.pos_conv_embed(hidden),
            exact(model).encoder.pos_conv_embed(hidden),
        )


def test_no_projection_where_the_front_end_is_as_wide_as_the_rest(tmp_path: Path) -> None:
    """fairseq then has none; ours becomes the identity."""
    weights = fairseq_weights(reference(width=64))
    for i, inner in enumerate([1] + [64] * 6):
        size = (10, 3, 3, 3, 3, 2, 2)[i]
        weights[f"feature_extractor.conv_layers.{i}.0.weight"] = torch.rand(64, inner, size) - 0.5
    for part in ("feature_extractor.conv_layers.0.2", "layer_norm"):
        weights |= {f"{part}.weight": torch.rand(64), f"{part}.bias": torch.rand(64)}
    del weights["post_extract_proj.weight"], weights["post_extract_proj.bias"]
    changes = {"conv_feature_layers": "[(64,10,5)] + [(64,3,2)] * 4 + [(64,2,2)] * 2"}
    content = fairseq_file(weights, settings(width=64) | changes, {"normalize": False})
    encoder, _ = read(saved(content, tmp_path / "hubert.pt"))
    features = torch.rand(1, 9, 64)
    with torch.no_grad():
        normed = encoder.model.feature_projection.layer_norm(features)
        assert torch.equal(encoder.model.feature_projection(features), normed)


@pytest.mark.parametrize(
    ("size", "normalize", "wanted", "note"),
    [
        ("base", True, True, ""),
        ("large", False, False, ""),
        ("base", None, False, "no `normalize` in its task: waveform normalisation assumed off, as usual for `feat_extract_norm` group"),
        ("large", None, True, "no `normalize` in its task: waveform normalisation assumed on, as usual for `feat_extract_norm` layer"),
    ],
)  # fmt: skip
def test_whether_waveforms_are_normalised(
    tmp_path: Path, size: str, normalize: bool | None, wanted: bool, note: str
) -> None:
    encoder, checkpoint = read(written(tmp_path / "a.pt", size, normalize=normalize, final_dim=24))
    assert encoder.normalise == wanted
    assert list(checkpoint.notes[1:]) == ([note] if note else [])


def test_half_precision_is_read_as_fp32(tmp_path: Path) -> None:
    model = reference().half().float()
    weights = {name: tensor.half() for name, tensor in fairseq_weights(model).items()}
    encoder, _ = read(
        saved(fairseq_file(weights, settings(), {"normalize": False}), tmp_path / "a.pt")
    )
    assert_same(model, encoder)


# -------------------------------------------------------------------------------- what is refused


def test_weights_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    weights = fairseq_weights(reference())
    del weights["encoder.layers.1.fc1.weight"]
    weights["encoder.layers.1.fc9.weight"] = torch.rand(2)
    weights["encoder.layers.0.self_attn.q_proj.bias"] = torch.rand(5)
    path = saved(fairseq_file(weights, settings(), {}), tmp_path / "a.pt")
    assert refused(path)[0] == (
        f"the weights in `{path}` do not fit its settings: missing `encoder.layers.1.fc1.weight`; "
        "unexpected `encoder.layers.1.fc9.weight`; of another shape "
        "`encoder.layers.0.self_attn.q_proj.bias` (5,) instead of (128,)"
    )


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "a conformer": ({"layer_type": "conformer"}, "`FILE` has `layer_type` conformer, which no model here computes"),
    "an activation": ({"activation_fn": "swish"}, "`FILE` has `activation_fn` swish, which no model here computes"),
    "a mode": ({"extractor_mode": "rms"}, "`FILE` has `extractor_mode` rms, which no model here computes"),
    "quantised input": ({"quantize_input": True}, "`FILE` has `quantize_input`, which no model here computes"),
    "deep positions": ({"pos_conv_depth": 5}, "`FILE` has `pos_conv_depth` 5, which no model here computes"),
    "no depth": ({"encoder_layers": None}, "the settings in `FILE` lack encoder_layers"),
    "heads": ({"encoder_attention_heads": 3}, "the settings in `FILE` do not fit: embed_dim must be divisible"),
    "no number": ({"encoder_embed_dim": "wide"}, "the settings in `FILE` are not valid: "),
    "other frames": (
        {"conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] + [(16,2,1)]"},
        "`FILE` makes a frame of 400 samples every 160; only models with frames of 400 every 320 can be read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_are_refused(tmp_path: Path, name: str) -> None:
    changes, problem = REFUSED[name]
    path = written(tmp_path / "a.pt", **changes)
    assert refused(path)[0].startswith(problem.replace("FILE", path))


def test_another_sampling_rate(tmp_path: Path) -> None:
    content = fairseq_file(fairseq_weights(reference()), settings(), {"sample_rate": 8_000})
    path = saved(content, tmp_path / "a.pt")
    assert (
        refused(path)[0]
        == f"`{path}` wants audio at `8000` Hz; only models for 16000 Hz can be read"
    )


def test_convolutions_are_taken_apart() -> None:
    assert conv_layers("x", "[(512,10,5)] + [(512,3,2)] * 4 + 2 * [(512,2,2)]") == (
        [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2
    )
    assert conv_layers("x", " [(1, 2, 3), (4, 5, 6)]") == [(1, 2, 3), (4, 5, 6)]


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('touch MARKER')",
        "[(512,10,5)] + [__import__('os').system('touch MARKER')]",
        "[(512, 10, 5) for _ in range(3)]",
        "[(1,2,3)] * 1000000000",
        "[] * 99999999999999999999",  # found by fuzzing
        "[(1,2,3)] * 9 ** 9 ** 9",
        "[(1,2)]",
        "[(1,2,'x')]",
        "[]",
        "3",
        "",
        "(" * 5_000,
        "-" * 1_500 + "1",
    ],
)
def test_nothing_in_the_description_of_convolutions_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expression: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "a.pt", conv_feature_layers=expression)
    assert f"`{path}` describes its convolutions as `" in refused(path)[0]
    assert os.listdir(tmp_path) == ["a.pt"]


# --------------------------------------------------------------------------------------- reference


def golden(shared: Path, prefix: str) -> dict[str, Tensor]:
    tensors = load_file(shared / "golden" / "distiller_reference.safetensors")
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def test_the_original_implementations_teacher(tmp_path: Path, shared: Path) -> None:
    """A HuBERT in fairseq's own names with hidden states computed by the original code."""
    tensors = golden(shared, "")
    changes = {
        "conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2", "encoder_ffn_embed_dim": 128,
        "encoder_attention_heads": 4,
    }  # fmt: skip
    content = fairseq_file(
        golden(shared, "teacher."), settings(width=64, layers=12) | changes, {"normalize": False}
    )
    encoder, _ = read(saved(content, tmp_path / "teacher.pt"))
    with torch.no_grad():
        got = encode(encoder, tensors["wav"], [8_000] * 4, [0, 4, 8, 12])
    for layer, value in zip((0, 4, 8, 12), got, strict=True):
        torch.testing.assert_close(value, tensors[f"teacher_hidden_{layer}"], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_published_base_size(tmp_path: Path) -> None:
    """All 214 tensors of a base checkpoint with its heads, 94.62 M numbers; settings as published."""
    from torchaudio.models import hubert_base

    torch.manual_seed(0)
    model = shaken(hubert_base(encoder_projection_dropout=0.0, encoder_layer_drop=0.0))
    weights = fairseq_weights(model) | {
        "final_proj.weight": torch.rand(256, 768), "final_proj.bias": torch.rand(256), "label_embs_concat": torch.rand(504, 256),
    }  # fmt: skip
    published = settings(width=768, layers=12) | {
        "encoder_ffn_embed_dim": 3072, "conv_pos": 128, "conv_pos_groups": 16,
        "conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
    }  # fmt: skip
    encoder, checkpoint = read(
        saved(fairseq_file(weights, published, {"normalize": False}), tmp_path / "base.pt")
    )
    assert len(weights) == 214
    assert sum(tensor.numel() for tensor in weights.values()) == pytest.approx(94.70e6, rel=1e-3)
    assert assert_same(model, encoder) < 1e-5
    assert json.dumps(checkpoint.notes).count("left out") == 1
