"""LightHuBERT: a sub-network equals the whole network cut while it computes, as the original does it."""

import math
from pathlib import Path

import pytest
import torch
from formats import clip, fairseq_file, read, reference, refused, saved, settings
from formats import fairseq_weights as weights_of
from torch import Tensor
from torch.nn.functional import conv1d, gelu, group_norm, layer_norm, linear, softmax

from distilkit.encoder import Encoder, encode
from distilkit.teachers import lighthubert
from distilkit.teachers.lighthubert import Part

PUBLISHED = lighthubert.PARTS
# The published sizes, a third as wide; heads stay 64 wide.
SMALL = {
    "base": {
        "base": Part(width=192),
        "min": Part(width=128, ratio=3.5),
        "max": Part(width=256),
    },
    "small": {
        "small": Part(width=128),
        "min": Part(width=64, ratio=3.0, dropped=(1, 3)),
        "max": Part(width=192),
    },
    "stage1": {"max": Part(width=256)},
}
KINDS = [(kind, name) for kind, parts in SMALL.items() for name in parts]


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lighthubert, "PARTS", SMALL)


def whole(**changes: object) -> dict[str, Tensor]:
    """The weights of a supernet, 256 wide with 4 layers, as the authors' code names them."""
    weights = weights_of(reference(width=256, layers=4))
    torch.manual_seed(9)
    for i in range(4):  # four splits of 256
        weights[f"encoder.layers.{i}.fc1.weight"] = torch.randn(1024, 256) * 0.08
        weights[f"encoder.layers.{i}.fc1.bias"] = torch.randn(1024) * 0.2
        weights[f"encoder.layers.{i}.fc2.weight"] = torch.randn(256, 1024) * 0.08
    weights["encoder.pos_conv.0.weight_g"] *= 1 + torch.rand(1, 1, 16)
    return weights | {"layer_pred_heads.3.weight": torch.rand(256, 256)} | changes  # type: ignore[return-value]


def written(
    path: Path,
    kind: str,
    weights: dict[str, Tensor] | None = None,
    *,
    normalize: object = True,
    **changes: object,
) -> str:
    names = {
        "base": "config/supernet/Supernet-Base.yaml",
        "small": "a/supernet-small.YAML",
        "stage1": None,
    }
    model = settings(width=256, layers=4) | {
        "_name": "student_hubert" if kind == "stage1" else "hubert_pruner",
        "encoder_ffn_embed_dim": 1024, "encoder_attention_heads": 4, "pruner_supernet": names[kind],
    }  # fmt: skip
    task = {} if normalize is None else {"normalize": normalize}
    return saved(fairseq_file(weights or whole(), model | changes, task), path)


def cut(weights: dict[str, Tensor], part: Part, wave_BS: Tensor) -> list[Tensor]:
    """What the supernet computes when each of its modules takes only a corner of its weights."""
    width, groups = part.width, 4
    size, splits = int(width * part.ratio), math.ceil(part.ratio)

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(
            x, (width,), weights[f"{name}.weight"][:width], weights[f"{name}.bias"][:width]
        )

    x = wave_BS[:, None]
    for i, step in enumerate((5, 2, 2, 2, 2, 2, 2)):
        name = f"feature_extractor.conv_layers.{i}"
        x = conv1d(x, weights[f"{name}.0.weight"], stride=step)
        if i == 0:
            x = group_norm(x, 16, weights[f"{name}.2.weight"], weights[f"{name}.2.bias"])
        x = gelu(x)
    x = layer_norm(
        x.transpose(1, 2), (16,), weights["layer_norm.weight"], weights["layer_norm.bias"]
    )
    x = linear(
        x, weights["post_extract_proj.weight"][:width], weights["post_extract_proj.bias"][:width]
    )
    direction, length = (
        weights["encoder.pos_conv.0.weight_v"],
        weights["encoder.pos_conv.0.weight_g"],
    )
    kernel = length * direction / direction.pow(2).sum((0, 1), keepdim=True).sqrt()
    position = conv1d(
        x.transpose(1, 2), kernel[:width, : width // groups], weights["encoder.pos_conv.0.bias"][:width],
        padding=8, groups=groups,
    )  # fmt: skip
    x = norm(x + gelu(position[..., :-1]).transpose(1, 2), "encoder.layer_norm")
    found = [x]
    for i in range(4):
        if i in part.dropped:
            continue
        name = f"encoder.layers.{i}"
        heads = []
        parts = {}
        for p in "qkv":
            w, b = (weights[f"{name}.self_attn.{p}_proj.{kind}"] for kind in ("weight", "bias"))
            parts[p] = linear(x, w[:width, :width], b[:width])
        for h in range(width // 64):
            at = slice(64 * h, 64 * h + 64)
            scores = softmax(parts["q"][..., at] / 8 @ parts["k"][..., at].transpose(1, 2), -1)
            heads.append(scores @ parts["v"][..., at])
        w, b = (weights[f"{name}.self_attn.out_proj.{kind}"] for kind in ("weight", "bias"))
        x = norm(
            x + linear(torch.cat(heads, -1), w[:width, :width], b[:width]),
            f"{name}.self_attn_layer_norm",
        )
        one, bias = weights[f"{name}.fc1.weight"][:, :width], weights[f"{name}.fc1.bias"]
        two = weights[f"{name}.fc2.weight"][:width]
        if size < 1024:  # of each split of 256, the first `width` units, until there are enough
            one = torch.cat([s[:width] for s in one.split(256)[:splits]])[:size]
            bias = torch.cat([s[:width] for s in bias.split(256)[:splits]])[:size]
            two = torch.cat([s[:, :width] for s in two.split(256, 1)[:splits]], 1)[:, :size]
        y = linear(gelu(linear(x, one, bias)), two, weights[f"{name}.fc2.bias"][:width])
        x = norm(x + y, f"{name}.final_layer_norm")
        found.append(x)
    return found


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_every_sub_network(tmp_path: Path, kind: str, name: str) -> None:
    weights, part = whole(), SMALL[kind][name]
    path = written(tmp_path / "light.pt", kind, weights)
    encoder, checkpoint = read(f"{path}:{name}")
    wanted = cut(weights, part, clip())
    assert (encoder.width, encoder.depth) == (part.width, 4 - len(part.dropped))
    with torch.no_grad():
        raw = Encoder(model=encoder.model, normalise=False)
        got = encode(raw, clip(), [clip().shape[1]], range(encoder.depth + 1))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert (checkpoint.format, checkpoint.family) == ("lighthubert", "hubert")
    assert checkpoint.source == f"{path}:{name}"
    assert checkpoint.notes == (
        f"sub-network `{name}` of {', '.join(SMALL[kind])}; its heads are left out",
    )


@pytest.mark.parametrize("kind", SMALL)
def test_without_a_name_it_is_the_first(tmp_path: Path, kind: str) -> None:
    encoder, checkpoint = read(written(tmp_path / "light.pt", kind))
    name, part = next(iter(SMALL[kind].items()))
    assert encoder.width == part.width
    assert checkpoint.notes[0].startswith(f"sub-network `{name}` of ")


def test_padding_changes_nothing(tmp_path: Path) -> None:
    encoder, _ = read(written(tmp_path / "light.pt", "small"))
    clips = [clip(0.5)[0], clip(0.9)[0]]
    with torch.no_grad():
        batch = encode(
            encoder,
            torch.nn.utils.rnn.pad_sequence(clips, batch_first=True),
            [len(c) for c in clips],
            [4],
        )[0]
        alone = encode(encoder, clips[0][None], [len(clips[0])], [4])[0]
    torch.testing.assert_close(batch[:1, : alone.shape[1]], alone, rtol=1e-5, atol=1e-5)


def test_the_published_names() -> None:
    """As in the authors' `LightHuBERTSupernetConfig`: widths, and the least and the whole of each."""
    assert {
        kind: {name: p.width for name, p in held.items()} for kind, held in PUBLISHED.items()
    } == {
        "base": {"base": 640, "min": 512, "max": 768},
        "small": {"small": 384, "min": 256, "max": 512},
        "stage1": {"max": 768},
    }
    assert {(k, n): p.ratio for k, held in PUBLISHED.items() for n, p in held.items() if n == "min"} == {
        ("base", "min"): 3.5, ("small", "min"): 3.0,
    }  # fmt: skip
    assert PUBLISHED["small"]["min"].dropped == (7, 11)


@pytest.mark.parametrize(
    ("normalize", "wanted", "notes"),
    [
        (True, True, []),
        (
            False,
            False,
            ["its task says `normalize` false; s3prl normalises waveforms all the same"],
        ),
        (None, True, ["no `normalize` in its task: waveform normalisation on, as s3prl has it"]),
    ],
)
def test_normalisation(tmp_path: Path, normalize: object, wanted: bool, notes: list[str]) -> None:
    encoder, checkpoint = read(written(tmp_path / "light.pt", "base", normalize=normalize))
    assert encoder.normalise == wanted
    assert list(checkpoint.notes[1:]) == notes


def test_no_such_sub_network(tmp_path: Path) -> None:
    path = written(tmp_path / "light.pt", "base")
    assert refused(f"{path}:smal") == (
        f"`{path}` has no sub-network `smal`; it has base, min, max", f"{path}:base",
    )  # fmt: skip
    assert refused(f"{path}:bse")[1] == "did you mean `base`?"
    assert refused(f"{path}x:base")[0].startswith(f"no such model: `{path}x:base` is neither")


def test_other_formats_have_no_parts(tmp_path: Path) -> None:
    path = saved(reference().state_dict(), tmp_path / "a.pth")
    assert refused(f"{path}:base") == (
        f"`{path}` is a torchaudio checkpoint, which has no parts such as `base`", path,
    )  # fmt: skip


def test_settings_that_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.pt", "base", pruner_supernet="mine.yaml")
    assert (
        refused(path)[0]
        == f"`{path}` does not say which supernet it is (`pruner_supernet` is `mine.yaml`)"
    )
    path = written(tmp_path / "b.pt", "base", pos_conv_depth=5)
    assert refused(path)[0] == f"`{path}` has `pos_conv_depth` 5, which no model here computes"
    path = written(tmp_path / "c.pt", "base", encoder_ffn_embed_dim=512)
    assert refused(path)[0] == f"`{path}` is 256 wide, which is not a published size"


def test_weights_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    weights = whole()
    weights["x"] = weights.pop("encoder.layer_norm.bias")
    weights["mask_emb"] = torch.rand(3)
    path = written(tmp_path / "a.pt", "base", weights)
    assert refused(path)[0] == (
        f"the weights in `{path}` do not fit its settings: missing `encoder.layer_norm.bias`; unexpected `x`; "
        "of another shape `mask_emb` (3,) instead of (256,)"
    )


def test_the_encoder_is_an_ordinary_hubert(tmp_path: Path) -> None:
    encoder, _ = read(written(tmp_path / "light.pt", "small"))
    assert isinstance(encoder, Encoder)
    assert encoder.model.config.model_type == "hubert"
    assert encoder.model.config.num_attention_heads == 2
