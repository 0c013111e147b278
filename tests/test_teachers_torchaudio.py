"""torchaudio's state dicts and bundles: equal to torchaudio's own model, part by part."""

import socket
import time
from pathlib import Path

import pytest
import torch
from formats import SIZES, assert_same, read, reference, refused, saved
from safetensors.torch import save_file
from torchaudio import pipelines
from torchaudio.models import HuBERTPretrainModel, hubert_pretrain_model

from distilkit import hub
from distilkit.teachers import torchaudio as reader

ASSUMED = (
    "layer norms assumed {} each block, as usual for this front end",
    "read as a HuBERT; a wav2vec 2.0 of torchaudio has the same names and computes the same",
    "waveform normalisation assumed {}, as usual for `feat_extract_norm` {}",
)


def note(stable: object) -> list[str]:
    words = ("before", "on", "layer") if stable else ("after", "off", "group")
    return [ASSUMED[0].format(words[0]), ASSUMED[1], ASSUMED[2].format(*words[1:])]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["parametrizations", "weight_g", "safetensors"])
def test_every_size(tmp_path: Path, size: str, form: str) -> None:
    model = reference(**SIZES[size])
    weights = model.state_dict()
    if form == "weight_g":
        weights = {
            name.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v"): tensor
            for name, tensor in weights.items()
        }  # fmt: skip
        assert any(name.endswith("weight_g") for name in weights)
    if form == "safetensors":
        path = str(tmp_path / "hubert.safetensors")
        save_file(dict(weights), path)
    else:
        path = saved(weights, tmp_path / "hubert.pth")
    encoder, checkpoint = read(path)
    assert assert_same(model, encoder) < 1e-5
    assert (checkpoint.format, checkpoint.family) == ("torchaudio", "hubert")
    assert encoder.normalise == SIZES[size]["stable"]
    assert list(checkpoint.notes) == [
        "attention heads assumed 64 wide; a state dict does not say it",
        *note(SIZES[size]["stable"]),
    ]


@pytest.mark.parametrize("stable", [False, True])
def test_wavlm(tmp_path: Path, stable: bool) -> None:
    """Heads are told by the gates' sizes, so they need not be 64 wide."""
    model = reference(wavlm=True, stable=stable, width=96, heads=3)
    encoder, checkpoint = read(saved(model.state_dict(), tmp_path / "wavlm.pth"))
    assert assert_same(model, encoder) < 1e-5
    assert (checkpoint.family, encoder.model.config.num_buckets) == ("wavlm", 40)
    assert "position buckets assumed to reach 800 frames" in checkpoint.notes


def test_a_ctc_head_is_left_out(tmp_path: Path) -> None:
    model = reference(stable=True, aux=29)
    encoder, checkpoint = read(saved(model.state_dict(), tmp_path / "asr.pth"))
    assert checkpoint.notes[0] == "left out the head (aux.bias, aux.weight)"
    assert_same(model, encoder)


def test_a_model_in_pre_training(tmp_path: Path) -> None:
    """Its encoder stands behind a prefix, its mask embedding and logits beside."""
    model: HuBERTPretrainModel = hubert_pretrain_model(
        extractor_mode="group_norm", extractor_conv_layer_config=[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] * 2,
        extractor_conv_bias=False, encoder_embed_dim=128, encoder_projection_dropout=0.0, encoder_pos_conv_kernel=16,
        encoder_pos_conv_groups=4, encoder_num_layers=2, encoder_num_heads=2, encoder_attention_dropout=0.0,
        encoder_ff_interm_features=96, encoder_ff_interm_dropout=0.0, encoder_dropout=0.0, encoder_layer_norm_first=False,
        encoder_layer_drop=0.0, mask_prob=0.8, mask_selection="static", mask_other=0.0, mask_length=10,
        no_mask_overlap=False, mask_min_space=1, mask_channel_prob=0.0, mask_channel_selection="static",
        mask_channel_other=0.0, mask_channel_length=10, no_mask_channel_overlap=False, mask_channel_min_space=1,
        skip_masked=False, skip_nomask=False, num_classes=20, final_dim=8, feature_grad_mult=None,
    )  # fmt: skip
    encoder, checkpoint = read(saved(model.state_dict(), tmp_path / "pre.pth"))
    assert_same(model.wav2vec2.eval(), encoder)
    mask = encoder.model.masked_spec_embed
    assert torch.equal(mask, model.mask_generator.mask_embedding)
    assert checkpoint.notes[0].startswith("left out the head (logit_generator.")


@pytest.mark.parametrize("width", [100, 896, 1152])
def test_heads_that_cannot_be_told(tmp_path: Path, width: int) -> None:
    model = reference(width=width, layers=1, heads=4)
    path = saved(model.state_dict(), tmp_path / "a.pth")
    assert refused(path) == (
        f"`{path}` is {width} wide; how many attention heads such a model has cannot be told from its "
        "weights (known: 768, 1024, 1280, 1920, and multiples of 64 below)",
        "give a Hugging Face folder of this model, whose config.json says it",
    )


def test_convolutions_whose_strides_are_unknown(tmp_path: Path) -> None:
    weights = reference().state_dict()
    weights["feature_extractor.conv_layers.6.conv.weight"] = torch.rand(16, 16, 4)
    path = saved(weights, tmp_path / "a.pth")
    assert refused(path)[0] == (
        f"`{path}` has convolutions of [10, 3, 3, 3, 3, 2, 4] samples; their strides are known only for "
        "[10, 3, 3, 3, 3, 2, 2]"
    )


def test_weights_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    weights = reference().state_dict()
    weights["x"] = weights.pop("encoder.transformer.layers.1.final_layer_norm.bias")
    weights["encoder.transformer.layers.2.attention.q_proj.weight"] = torch.rand(5, 5)
    path = saved(weights, tmp_path / "a.pth")
    assert refused(path)[0] == (
        f"the weights in `{path}` do not fit its settings: missing "
        "`encoder.transformer.layers.1.final_layer_norm.bias`; unexpected `x`; of another shape "
        "`encoder.transformer.layers.2.attention.q_proj.weight` (5, 5) instead of (128, 128)"
    )


def test_half_a_model(tmp_path: Path) -> None:
    weights = {n: t for n, t in reference().state_dict().items() if "projection" not in n}
    path = saved(weights, tmp_path / "a.pth")
    assert (
        refused(path)[0]
        == f"`{path}` lacks the weights `encoder.feature_projection.projection.weight`"
    )


# ---------------------------------------------------------------------------------------- bundles


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_a_bundle_from_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reference()
    torch.save(model.state_dict(), cache / "hubert_fairseq_base_ls960.pth")
    encoder, checkpoint = read("torchaudio:HUBERT_BASE")
    assert_same(model, encoder)
    assert (checkpoint.source, checkpoint.family) == ("torchaudio:HUBERT_BASE", "hubert")
    assert (checkpoint.notes, encoder.normalise) == ((), False)
    torch.save(model.state_dict(), cache / "wav2vec2_fairseq_base_ls960.pth")
    assert read("torchaudio:WAV2VEC2_BASE")[1].family == "wav2vec2"


def test_every_bundle_is_told_right_by_its_sizes() -> None:
    """Heads, norms and normalisation that sizes do not say are what torchaudio's tables say."""
    count = 0
    for bundle in vars(pipelines).values():
        if isinstance(bundle, pipelines.Wav2Vec2Bundle):
            held = bundle._params
            stable = held["extractor_mode"] == "layer_norm"
            assert reader.ATTENTION_HEADS[held["encoder_embed_dim"]] == held["encoder_num_heads"]
            assert held["encoder_layer_norm_first"] == bundle._normalize_waveform == stable
            convs = held["extractor_conv_layer_config"]
            assert [size for _, size, _ in convs] == reader.KERNELS
            assert [step for _, _, step in convs] == reader.STRIDES
            assert held.get("encoder_max_distance", 800) == reader.MAX_DISTANCE
            assert bundle._sample_rate == 16_000
            count += 1
    assert count > 20


def test_an_unknown_bundle() -> None:
    problem, hint = refused("torchaudio:HUBERT_BAS")
    assert problem.startswith("torchaudio has no bundle `HUBERT_BAS`; it has HUBERT_ASR_LARGE, ")
    assert hint == "did you mean `torchaudio:HUBERT_BASE`?"


@pytest.mark.parametrize("way", ["refused", "silent"])
def test_a_bundle_out_of_reach(cache: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """One clear error, soon, also where looking up a name never ends."""
    if way == "silent":
        monkeypatch.setattr(reader, "TIMEOUT", 0.2)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: time.sleep(60))
    began = time.monotonic()
    problem, hint = refused("torchaudio:HUBERT_BASE")
    assert time.monotonic() - began < 10
    assert problem == (
        f"`torchaudio:HUBERT_BASE` is not in the local cache (`{cache / 'hubert_fairseq_base_ls960.pth'}`), and "
        "`https://download.pytorch.org/torchaudio/models/hubert_fairseq_base_ls960.pth` cannot be reached"
    )
    assert hint == "give a local checkpoint, or go online once"
    assert not list(cache.iterdir())


def test_time_out_leaves_room() -> None:
    assert 2 * hub.TIMEOUT <= 8


def test_a_bundle_that_is_fetched(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = reference()
    torch.save(model.state_dict(), tmp_path / "there.pth")
    monkeypatch.setattr(
        torch.hub,
        "download_url_to_file",
        lambda url, to: Path(to).write_bytes((tmp_path / "there.pth").read_bytes()),
    )

    class Answer:
        status = 200

        def __enter__(self) -> "Answer":
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(reader.urllib.request, "urlopen", lambda *_a, **_k: Answer())
    encoder, _ = read("torchaudio:HUBERT_BASE")
    assert_same(model, encoder)
    assert [file.name for file in cache.iterdir()] == ["hubert_fairseq_base_ls960.pth"]
