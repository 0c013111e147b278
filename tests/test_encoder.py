"""A clip gives the same whatever it is batched with, and the same as stock transformers alone."""

import copy
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import LARGE, make_model, voice
from formats import FAMILIES, family
from transformers import AutoModel, HubertModel, Wav2Vec2FeatureExtractor

from distilkit import teachers
from distilkit.encoder import (
    FRONT,
    Encoder,
    encode,
    exact,
    fingerprint,
    frame_mask,
    in_bf16,
    prepare,
    same_front,
    scale_conv_gradients,
    truncated,
)

BATCH_NORM = {"conv_pos_batch_norm": True}
MIXED = (400, 719, 720, 3_201, 16_000, 16_001, 23_456, 31_999, 48_000)


def pad(clips: list[np.ndarray]) -> torch.Tensor:
    tensors = [torch.from_numpy(clip) for clip in clips]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)


def alone(model: HubertModel, clip: np.ndarray, normalise: bool) -> list[torch.Tensor]:
    """Stock transformers on one clip: hidden states, the last one behind the final norm."""
    extractor = Wav2Vec2FeatureExtractor(do_normalize=normalise)
    inputs = extractor(clip, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        output = model(inputs.input_values, output_hidden_states=True)
    return [*output.hidden_states[:-1], output.last_hidden_state]


@pytest.mark.parametrize(
    ("changes", "normalise"),
    [
        ({}, False),
        ({}, True),
        (LARGE, True),
        (LARGE, False),
        (BATCH_NORM, False),
        (LARGE | BATCH_NORM, True),
    ],
)
def test_a_padded_clip_equals_the_clip_alone(changes: dict[str, object], normalise: bool) -> None:
    stock = make_model(**changes)
    encoder = Encoder(model=exact(copy.deepcopy(stock)), normalise=normalise)
    clips = [0.3 + voice(n / 16_000 + 1e-6, n)[:n] for n in MIXED]
    layers = list(range(encoder.depth + 1))
    with torch.no_grad():
        batch = encode(encoder, pad(clips), [len(clip) for clip in clips], layers)
    for index, clip in enumerate(clips):
        for layer, wanted in enumerate(alone(stock, clip, normalise)):
            got = batch[layer][index, : wanted.shape[1]]
            assert (got - wanted[0]).norm() / wanted.norm() < 3e-5, (layer, len(clip))


def test_waveforms_are_prepared_as_the_feature_extractor_does() -> None:
    """By itself: behind the first norm of a model, a wrong scale no longer shows."""
    clips = [0.3 + voice(n / 16_000 + 1e-6, n)[:n] for n in (400, 1_000)]
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    padded = pad(clips)
    padded[0, 400:] = 7.0  # whatever lies behind the end
    got = prepare(padded, [400, 1_000], True)
    assert not got[0, 400:].any()
    for row, clip in zip(got, clips, strict=True):
        wanted = extractor(clip, sampling_rate=16_000, return_tensors="pt").input_values[0]
        torch.testing.assert_close(row[: len(clip)], wanted, rtol=1e-5, atol=1e-5)


def test_stock_transformers_is_not_exact() -> None:
    """The reason for all this; if it fails, `exact` may have become needless."""
    model = make_model()
    clips = [voice(1.0, 1), voice(2.0, 2)]
    mask = torch.tensor([[1] * 16_000 + [0] * 16_000, [1] * 32_000])
    with torch.no_grad():
        padded = model(pad(clips), attention_mask=mask).last_hidden_state[0, :49]
    wanted = alone(model, clips[0], False)[-1][0]
    assert (padded - wanted).norm() / wanted.norm() > 0.01


def test_equal_lengths_give_what_the_stock_model_gives() -> None:
    stock = make_model()
    model = exact(copy.deepcopy(stock))
    wave_BS = pad([voice(1.0, 1), voice(1.0, 2)])
    with torch.no_grad():
        (got,) = encode(Encoder(model=model, normalise=False), wave_BS, [16_000] * 2, [12])
        wanted = stock(wave_BS).last_hidden_state
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, BATCH_NORM])
def test_exact_keeps_the_state_dict(changes: dict[str, object]) -> None:
    stock = make_model(**changes)
    model = exact(copy.deepcopy(stock))
    assert list(model.state_dict()) == list(stock.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), stock.parameters(), strict=True)
    )


@pytest.mark.parametrize("changes", [{}, LARGE])
def test_a_front_end_does_not_run_where_its_output_is_known(changes: dict[str, object]) -> None:
    encoder = Encoder(model=exact(make_model(**changes)), normalise=True)
    own = encoder.model.feature_extractor
    for lengths in (MIXED, (16_000, 16_000)):
        clips = pad([0.3 + voice(n / 16_000 + 1e-6, n)[:n] for n in lengths])
        layers = [FRONT, 0, 2, encoder.depth]
        with torch.no_grad():
            front_BTC, *wanted = encode(encoder, clips, lengths, layers)
            again, *found = encode(
                encoder, torch.zeros_like(clips), lengths, layers, front_BTC=front_BTC
            )
        assert front_BTC.shape == (len(lengths), wanted[0].shape[1], 16)
        assert torch.equal(again, front_BTC)
        for one, other in zip(wanted, found, strict=True):
            assert torch.equal(one, other)
        assert encoder.model.feature_extractor is own
        assert not own._forward_hooks


@pytest.mark.parametrize("changes", [{}, LARGE])
def test_equal_front_ends_are_told_from_others(changes: dict[str, object]) -> None:
    one = Encoder(model=exact(make_model(**changes)), normalise=False)
    shallow = Encoder(
        model=exact(make_model(**{**changes, "num_hidden_layers": 2})), normalise=False
    )
    shallow.model.feature_extractor.load_state_dict(one.model.feature_extractor.state_dict())
    assert same_front(one, shallow)
    assert not same_front(one, Encoder(model=one.model, normalise=True))
    for other in ({"conv_dim": [16] * 6 + [24]}, {"conv_stride": (5, 2, 2, 2, 2, 4, 1)}):
        model = make_model(**{**changes, **other})
        if "conv_stride" in other:
            model.feature_extractor.load_state_dict(one.model.feature_extractor.state_dict())
        assert not same_front(one, Encoder(model=exact(model), normalise=False))
    with torch.no_grad():
        shallow.model.feature_extractor.conv_layers[6].conv.weight[3, 2, 1] += 0.1
    assert not same_front(one, shallow)


@pytest.mark.parametrize("changes", [{}, LARGE])
def test_truncating_changes_nothing_below(changes: dict[str, object]) -> None:
    encoder = Encoder(model=exact(make_model(**changes)), normalise=False)
    wave_BS, layers = pad([voice(1.0, 1)]), [0, 1, 3]
    with torch.no_grad():
        wanted = encode(encoder, wave_BS, [16_000], layers)
        short = truncated(encoder, 3)
        got = encode(short, wave_BS, [16_000], layers)
    assert len(short.model.encoder.layers) == 3
    assert len(encoder.model.encoder.layers) == encoder.depth == short.depth
    weights = dict(encoder.model.named_parameters())
    assert all(weights[name] is weight for name, weight in short.model.named_parameters())
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("changes", [{}, BATCH_NORM])
def test_gradients_of_a_padded_batch_equal_those_alone(changes: dict[str, object]) -> None:
    """Also with gradient checkpointing, which runs the norm again in the backward pass."""
    clips = [voice(n / 16_000 + 1e-6, n)[:n] for n in (5_000, 16_000, 9_000)]
    gradients = []
    for split, checkpointing in (([0, 1, 2], False), (None, False), ([0, 1, 2], True)):
        model = exact(make_model(hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
                                 feat_proj_dropout=0.0, apply_spec_augment=False, **changes)).train()  # fmt: skip
        if checkpointing:
            model.activation_checkpointing_enable()
        encoder = Encoder(model=model, normalise=False)
        for group in [split] if split else [[0], [1], [2]]:
            chosen = [clips[i] for i in group]
            lengths = [len(clip) for clip in chosen]
            (hidden,) = encode(encoder, pad(chosen), lengths, [12])
            mask = frame_mask(lengths, hidden.shape[1], hidden.device)
            hidden[mask].pow(2).sum().backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() / gradients[0].norm() < 1e-5


def test_conv_gradients_are_scaled_and_no_others() -> None:
    gradients = []
    for factor in (1.0, 0.1):
        model = exact(make_model(apply_spec_augment=False))
        scale_conv_gradients(model, factor)
        (hidden,) = encode(
            Encoder(model=model, normalise=False), pad([voice(0.5, 1)]), [8_000], [12]
        )
        hidden.pow(2).sum().backward()
        gradients.append(
            {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        )
    for name, full in gradients[0].items():
        factor = 0.1 if name.startswith("feature_extractor") else 1.0
        assert (gradients[1][name] - full * factor).norm() <= 1e-4 * factor * full.norm(), name


def test_auto_model_reads_what_exact_models_save(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("saved")
    model = exact(make_model())
    model.save_pretrained(folder)
    again, found = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True)
    )


# ---------------------------------------------------------------------------------- other families


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("normalise", [False, True])
def test_a_padded_clip_of_every_family_equals_the_clip_alone(name: str, normalise: bool) -> None:
    stock = family(name)
    encoder = Encoder(model=exact(copy.deepcopy(stock)), normalise=normalise)
    clips = [0.3 + voice(n / 16_000 + 1e-6, n)[:n] for n in MIXED]
    layers = list(range(encoder.depth + 1))
    with torch.no_grad():
        batch = encode(encoder, pad(clips), [len(clip) for clip in clips], layers)
        again = encode(encoder, pad(clips[4:5]), [16_000], layers)  # lengths are forgotten
    for index, clip in enumerate(clips):
        for layer, wanted in enumerate(alone(stock, clip, normalise)):
            got = batch[layer][index, : wanted.shape[1]]
            assert (got - wanted[0]).norm() / wanted.norm() < 3e-5, (layer, len(clip))
            if index == 4:
                assert (again[layer] - wanted).norm() / wanted.norm() < 3e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_in_double_precision_nothing_is_left_of_the_padding(name: str) -> None:
    """What the test above allows is rounding: layer norms enlarge it where a clip is silent."""
    model = exact(family(name)).double()
    encoder = Encoder(model=model, normalise=True)
    clips = [torch.from_numpy(voice(n / 16_000 + 1e-6, n)[:n]).double() for n in MIXED]
    wave_BS = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    with torch.no_grad():
        batch = encode(encoder, wave_BS, [len(clip) for clip in clips], [0, 1, 3])
        for index, clip in enumerate(clips):
            for got, wanted in zip(
                batch, encode(encoder, clip[None], [len(clip)], [0, 1, 3]), strict=True
            ):
                assert (got[index, : wanted.shape[1]] - wanted[0]).norm() / wanted.norm() < 1e-11


@pytest.mark.parametrize("name", ["data2vec", "WavLM", "wav2vec 2.0"])
def test_stock_transformers_is_not_exact_for_other_families(name: str) -> None:
    """Or the care taken of them would be needless. WavLM and wav2vec 2.0 share HuBERT's group norm."""
    model = family(name)
    clips = [voice(1.0, 1), voice(2.0, 2)]
    mask = torch.tensor([[1] * 16_000 + [0] * 16_000, [1] * 32_000])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the masks of WavLM
        padded = model(pad(clips), attention_mask=mask).last_hidden_state[0, :49]
    wanted = alone(model, clips[0], False)[-1][0]
    assert (padded - wanted).norm() / wanted.norm() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_exact_keeps_every_familys_state_dict(name: str) -> None:
    stock = family(name)
    model = exact(copy.deepcopy(stock))
    assert list(model.state_dict()) == list(stock.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), stock.parameters(), strict=True)
    )
    assert exact(model) is model


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_of_every_family_equal_those_alone(name: str) -> None:
    clips = [voice(n / 16_000 + 1e-6, n)[:n] for n in (5_000, 16_000, 9_000)]
    still = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0)  # fmt: skip
    gradients = []
    for groups in ([[0, 1, 2]], [[0], [1], [2]]):
        model = exact(family(name, apply_spec_augment=False, **still)).train()
        for group in groups:
            chosen = [clips[i] for i in group]
            lengths = [len(clip) for clip in chosen]
            (hidden,) = encode(Encoder(model=model, normalise=False), pad(chosen), lengths, [3])
            mask = frame_mask(lengths, hidden.shape[1], hidden.device)
            hidden[mask].pow(2).sum().backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    assert (gradients[1] - gradients[0]).norm() / gradients[0].norm() < 1e-5


def test_wavlms_attention_equals_the_stock_one_in_gradients_too() -> None:
    stock = family(
        "WavLM",
        apply_spec_augment=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        activation_dropout=0.0,
    )
    lean = exact(copy.deepcopy(stock))
    for model in (stock, lean):
        model.train()(pad([voice(0.5, 1)])).last_hidden_state.pow(2).sum().backward()
    largest = max(float(p.grad.abs().max()) for p in stock.parameters() if p.grad is not None)
    for (name, a), (_, b) in zip(stock.named_parameters(), lean.named_parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_can_be_truncated_and_shown_masked_frames(name: str) -> None:
    encoder = Encoder(model=exact(family(name)), normalise=False)
    wave_BS = pad([voice(1.0, 1)])
    hidden_BT = torch.zeros(1, 49, dtype=torch.bool)
    hidden_BT[0, 5:15] = True
    with torch.no_grad():
        wanted = encode(encoder, wave_BS, [16_000], [0, 2])
        masked = encode(encoder, wave_BS, [16_000], [0, 2], hidden_BT)
        got = encode(truncated(encoder, 2), wave_BS, [16_000], [0, 2])
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert not torch.allclose(masked[0], wanted[0])


@pytest.mark.parametrize("name", [*FAMILIES, "HuBERT", "HuBERT, batch norm"])
def test_weights_in_bf16_give_the_very_same_under_autocast(name: str) -> None:
    shapes = {"HuBERT": {}, "HuBERT, batch norm": BATCH_NORM}
    made = make_model(**shapes[name]) if name in shapes else family(name)
    encoder = Encoder(model=exact(made.eval()), normalise=False)
    wave_BS, lengths = pad([voice(1.0, 1), voice(0.7, 2)]), [16_000, 11_200]
    before = fingerprint(encoder.model)
    low = in_bf16(encoder)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted = encode(encoder, wave_BS, lengths, [0, 2, 3])
        got = encode(low, wave_BS, lengths, [0, 2, 3])
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert fingerprint(encoder.model) == before
    kinds = Counter[torch.dtype]()
    for weight in low.model.parameters():
        kinds[weight.dtype] += weight.numel()
    assert kinds[torch.bfloat16] > 4 * kinds[torch.float32]


def test_in_bf16_batches_have_few_widths() -> None:
    """oneDNN makes code anew for each. What is put behind a batch changes nothing in it."""
    encoder = Encoder(model=exact(make_model().eval()), normalise=False)
    seen: list[int] = []
    encoder.model.encoder.register_forward_hook(
        lambda _module, inputs, _output: seen.append(inputs[0].shape[1])
    )
    for count in range(50, 64):
        wave_BS = pad([voice(2.0, 1)[: 400 + 320 * (count - 1)]])
        hidden_BT = torch.arange(count)[None] % 7 == 0
        with torch.no_grad():
            asked = encoder, wave_BS, [wave_BS.shape[1]], [FRONT, 0, 3]
            wanted = encode(*asked, hidden_BT)
            with torch.autocast("cpu", torch.bfloat16):
                got = encode(*asked, hidden_BT)
                again = encode(*asked, hidden_BT, front_BTC=got[0])
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
        for near, exactly in zip(got, wanted, strict=True):
            assert near.shape == exactly.shape
            assert torch.cosine_similarity(near.float(), exactly, dim=2).min() > 0.99
    assert set(seen[::3]) == set(range(50, 64))
    assert set(seen[1::3] + seen[2::3]) == {52, 56, 60, 64}


def tiny_states(low: bool) -> list[torch.Tensor]:
    encoder, _ = teachers.load("tiny")  # 10 channels in each group of its positional convolution
    wave_BS, lengths = pad([voice(2.0, 1), voice(1.1, 2)]), [32_000, 17_600]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=low):
        states = encode(encoder, wave_BS, lengths, [0, 4, 12])
    inside = frame_mask(lengths, states[0].shape[1], wave_BS.device)
    return [state_BTD.float()[inside] for state_BTD in states]


def test_bf16_of_narrow_groups_is_right_on_every_processor() -> None:
    for near, wanted in zip(tiny_states(True), tiny_states(False), strict=True):
        assert torch.cosine_similarity(near, wanted, dim=-1).min() > 0.99
