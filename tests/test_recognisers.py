"""Recognisers: exact in any batch, the same in stock transformers, refused where they do not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_model, voice
from transformers import (
    AutoModelForCTC,
    HubertForCTC,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2ForCTC,
)

from distilkit import config, recognisers, teachers, tokenizers
from distilkit.encoder import Encoder, exact
from distilkit.errors import DistilkitError
from distilkit.layer_mix import MixedHubertForCTC
from distilkit.listeners import hear_stream
from distilkit.pauses import levels
from distilkit.students import save
from distilkit.tokenizers import DELIMITER


def made(folder: Path, letters: Path, **settings: object) -> recognisers.Recogniser:
    """A recogniser with a random head on a teacher, its blank not too likely."""
    torch.manual_seed(3)
    _, checkpoint = teachers.load(str(folder))
    found = recognisers.build(
        checkpoint,
        tokenizers.load(letters),
        config.Recogniser(**settings),  # type: ignore[arg-type]
    )
    with torch.no_grad():
        found.model.lm_head.weight.mul_(20)
    found.model.eval()
    return found


CLIPS = [voice(seconds, seed) for seed, seconds in enumerate((1.0, 2.5, 0.4))]


@pytest.mark.parametrize("which", ["teacher_folder", "large_folder"])
@pytest.mark.parametrize("layers", ["last", "weighted"])
def test_a_clip_is_heard_the_same_alone_and_in_a_batch(
    which: str, layers: str, letters: Path, request: pytest.FixtureRequest
) -> None:
    recogniser = made(request.getfixturevalue(which), letters, layers=layers)
    together = recognisers.hear(recogniser, CLIPS, "cpu")
    for clip, rows_TK in zip(CLIPS, together, strict=True):
        (alone_TK,) = recognisers.hear(recogniser, [clip], "cpu")
        assert alone_TK.shape == rows_TK.shape
        assert np.abs(alone_TK - rows_TK).max() < 1e-4
        assert np.allclose(np.exp(rows_TK).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("which", ["teacher_folder", "large_folder"])
def test_stock_transformers_gives_the_same_logits(
    which: str, letters: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from transformers import AutoProcessor

    recogniser = made(request.getfixturevalue(which), letters)
    recognisers.save(recogniser, tmp_path / "model", "# card\n")
    stock = AutoModelForCTC.from_pretrained(tmp_path / "model").eval()
    assert type(stock) is HubertForCTC
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    inputs = processor(CLIPS[1], sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        theirs_TK = stock(**inputs).logits[0].log_softmax(-1).numpy()
    (ours_TK,) = recognisers.hear(recogniser, [CLIPS[1]], "cpu")
    assert np.abs(theirs_TK - ours_TK).max() < 1e-4
    again = recognisers.load(str(tmp_path / "model"))
    (read_TK,) = recognisers.hear(again, [CLIPS[1]], "cpu")
    assert np.array_equal(read_TK, ours_TK)
    assert again.normalise == recogniser.normalise
    assert again.tokenizer.tokens == recogniser.tokenizer.tokens


def test_a_weighted_sum_of_layers_travels_with_its_code(
    teacher_folder: Path, letters: Path, tmp_path: Path
) -> None:
    recogniser = made(teacher_folder, letters, layers="weighted")
    assert isinstance(recogniser.model, MixedHubertForCTC)
    with torch.no_grad():
        recogniser.model.layer_mix.weight.copy_(torch.arange(13) / 3)
    recognisers.save(recogniser, tmp_path / "model", "# card\n")
    stock = AutoModelForCTC.from_pretrained(tmp_path / "model", trust_remote_code=True).eval()
    assert type(stock).__name__ == "MixedHubertForCTC"
    assert not type(stock).__module__.startswith("distilkit")
    wave_BS = torch.from_numpy(CLIPS[0])[None]
    with torch.no_grad():
        theirs_TK = stock(wave_BS).logits[0].log_softmax(-1).numpy()
    (ours_TK,) = recognisers.hear(recogniser, [CLIPS[0]], "cpu")
    assert np.abs(theirs_TK - ours_TK).max() < 1e-4
    (read_TK,) = recognisers.hear(recognisers.load(str(tmp_path / "model")), [CLIPS[0]], "cpu")
    assert np.array_equal(read_TK, ours_TK)
    # The sum is not simply the last layer.
    plain = made(teacher_folder, letters)
    (last_TK,) = recognisers.hear(plain, [CLIPS[0]], "cpu")
    assert np.abs(last_TK - ours_TK).max() > 0.1


def test_windows_are_those_of_the_stock_pipeline(large_folder: Path, letters: Path) -> None:
    """A long recording in blocks of odd sizes: every frame once, each from the window that it is inside."""
    recogniser = made(large_folder, letters)
    sound = np.concatenate([voice(9.7, seed) for seed in range(8)])
    blocks = (sound[at : at + 12_345] for at in range(0, len(sound), 12_345))
    pieces = list(hear_stream(recogniser, blocks))
    rows_TK = np.concatenate([rows for rows, _ in pieces])
    levels_T = np.concatenate([levels(part) for _, part in pieces])
    assert np.allclose(levels_T, levels(sound), atol=1e-3)
    windows, step, keep = 480_000, 320_000, 1250
    expected = []
    for start in range(0, len(sound), step):
        (part_TK,) = recognisers.hear(recogniser, [sound[start : start + windows]], "cpu")
        last = start + windows >= len(sound)
        expected.append(part_TK[250 if start else 0 : None if last else keep])
        if last:
            break
    assert len(expected) == 4
    assert np.array_equal(rows_TK, np.concatenate(expected))
    assert len(rows_TK) == (len(sound) - 400) // 320 + 1


@pytest.mark.parametrize("seconds", [0.025, 29.9, 30.0, 30.02, 50.0, 50.01])
def test_no_frame_is_lost_or_doubled_at_the_edges(
    seconds: float, letters: Path, tmp_path: Path
) -> None:
    save(
        Encoder(model=exact(make_model(num_hidden_layers=1)), normalise=False),
        tmp_path / "small",
        "#\n",
    )
    recogniser = made(tmp_path / "small", letters)
    sound = voice(seconds, 1)
    pieces = list(hear_stream(recogniser, [sound]))
    assert sum(len(rows) for rows, _ in pieces) == (len(sound) - 400) // 320 + 1


def test_any_family_that_has_frames_like_hubert(letters: Path, tmp_path: Path) -> None:
    shape = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        conv_dim=[16] * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        vocab_size=len(tokenizers.load(letters)), pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = Wav2Vec2ForCTC(shape).eval()
    theirs.save_pretrained(tmp_path / "w2v")
    tokenizers.save(tokenizers.load(letters), tmp_path / "w2v", False)
    recogniser = recognisers.load(str(tmp_path / "w2v"))
    (ours_TK,) = recognisers.hear(recogniser, [CLIPS[0]], "cpu")
    with torch.no_grad():
        scores_TK = theirs(torch.from_numpy(CLIPS[0])[None]).logits[0].log_softmax(-1)
    assert np.abs(scores_TK.numpy() - ours_TK).max() < 1e-4
    with pytest.raises(DistilkitError, match="cannot be `weighted` for a wav2vec2"):
        _, checkpoint = teachers.load(str(tmp_path / "w2v"))
        recognisers.build(checkpoint, recogniser.tokenizer, config.Recogniser(layers="weighted"))


# ------------------------------------------------------------------------------------- bad input


def test_an_encoder_is_no_recogniser(teacher_folder: Path) -> None:
    with pytest.raises(DistilkitError, match="is no recogniser: it is a `HubertModel`") as caught:
        recognisers.load(str(teacher_folder))
    assert caught.value.hint == (
        f"distilkit finetune-ctc DATA --tokenizer DIR --model {teacher_folder}"
    )


def test_a_config_that_promises_a_head_that_is_not_there(
    teacher_folder: Path, letters: Path, tmp_path: Path
) -> None:
    recogniser = made(teacher_folder, letters)
    recognisers.save(recogniser, tmp_path / "model", "#\n")
    save(Encoder(model=recogniser.encoder.model, normalise=False), tmp_path / "bare", "#\n")
    (tmp_path / "bare" / "model.safetensors").replace(tmp_path / "model" / "model.safetensors")
    with pytest.raises(DistilkitError, match="without a CTC head"):
        recognisers.load(str(tmp_path / "model"))


@pytest.mark.parametrize("change", ["more", "fewer", "blank"])
def test_the_tokenizer_of_another_model(
    change: str, teacher_folder: Path, letters: Path, tmp_path: Path
) -> None:
    recognisers.save(made(teacher_folder, letters), tmp_path / "model", "#\n")
    path = tmp_path / "model" / "config.json"
    if change == "more":
        other = tokenizers.train(["abcdefghijklmnopqrstuvwxyz"], config.Tokenizer(), config.Text())
        tokenizers.save(other, tmp_path / "model", False)
        said = "another model's: it has 29 tokens"
    elif change == "fewer":
        other = tokenizers.train(["abc"], config.Tokenizer(), config.Text())
        tokenizers.save(other, tmp_path / "model", False)
        said = "another model's: it has 6 tokens"
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token_id": 2}))
        said = "another model's: its blank is token 0, the model's 2"
    with pytest.raises(DistilkitError, match=said):
        recognisers.load(str(tmp_path / "model"))


def test_a_tokenizer_may_have_tokens_behind_the_head_that_nobody_says(
    teacher_folder: Path, letters: Path, tmp_path: Path
) -> None:
    """Wav2Vec2CTCTokenizer adds `<s>` and `</s>` unless told otherwise; such models are on the hub."""
    folder = tmp_path / "model"
    recognisers.save(made(teacher_folder, letters), folder, "#\n")
    own = recognisers.load(str(folder))
    vocabulary = {name: place for place, name in enumerate(own.tokenizer.tokens)}
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    found = recognisers.load(str(folder))
    assert len(found.tokenizer) == len(own.tokenizer) + 2
    clip = voice(1.0, 3)
    ((heard_TK,), (own_TK,)) = (one.to("cpu").logprobs([clip]) for one in (found, own))
    assert heard_TK.shape == (len(own_TK), len(found.tokenizer))
    np.testing.assert_array_equal(heard_TK[:, :-2], own_TK)
    assert np.all(np.isneginf(heard_TK[:, -2:]))


def test_words_end_with_whatever_the_tokenizer_says(
    teacher_folder: Path, letters: Path, tmp_path: Path
) -> None:
    tokenizer = tokenizers.load(letters)
    names = [" " if name == DELIMITER else name for name in tokenizer.tokens]
    vocabulary = {name: place for place, name in enumerate(names)}
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(vocabulary))
    stock = Wav2Vec2CTCTokenizer(
        str(path), bos_token=None, eos_token=None, word_delimiter_token=" "
    )
    other = tokenizers.Tokenizer(stock=stock, text=tokenizer.text)
    assert other.tokens == tokenizer.tokens
    assert other.characters == tokenizer.characters


def test_a_folder_without_tokenizer_or_config(
    teacher_folder: Path, letters: Path, tmp_path: Path
) -> None:
    recognisers.save(made(teacher_folder, letters), tmp_path / "model", "#\n")
    for name in ("vocab.json", "tokenizer_config.json", "processor_config.json", "text.json"):
        (tmp_path / "model" / name).unlink(missing_ok=True)
    with pytest.raises(DistilkitError, match="no tokenizer"):
        recognisers.load(str(tmp_path / "model"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DistilkitError, match=r"it has no config.json"):
        recognisers.load(str(tmp_path / "empty"))


def test_code_in_a_models_folder_is_never_run(
    teacher_folder: Path, letters: Path, tmp_path: Path
) -> None:
    recognisers.save(made(teacher_folder, letters, layers="weighted"), tmp_path / "model", "#\n")
    (tmp_path / "model" / "layer_mix.py").write_text("raise SystemExit('ran')\n")
    recognisers.load(str(tmp_path / "model"))
