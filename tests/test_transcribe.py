"""Recordings to text: the same as stock transformers, any length, times where words are."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import SAYINGS, make_model, voice

from distilkit import config, decode, recognisers, teachers, tokenizers, transcribe
from distilkit.captions import FORMATS, Transcript
from distilkit.data import Skipped
from distilkit.decode import Search
from distilkit.encoder import Encoder, exact
from distilkit.errors import DistilkitError
from distilkit.ngram import train
from distilkit.students import save
from distilkit.tokenizers import Tokenizer

# Run where distilkit cannot be imported: what a user of stock transformers gets.
STOCK = """
import json, sys
sys.modules["distilkit"] = None
import soundfile, torch, transformers
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
recognise = transformers.pipeline("automatic-speech-recognition", model=sys.argv[1])
assert recognise.type == "ctc", recognise.type
texts = []
for name in sys.argv[2:]:
    samples, rate = soundfile.read(name, dtype="float32")
    texts.append(recognise({"raw": samples, "sampling_rate": rate}, chunk_length_s=30)["text"])
print(json.dumps(texts))
"""


def stock_texts(model: Path, files: list[Path]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(model), *map(str, files)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    texts: list[str] = json.loads(done.stdout.splitlines()[-1])
    return texts


def talkative(
    folder: Path, tokenizer: Tokenizer, normalise: bool = False
) -> recognisers.Recogniser:
    """A recogniser with random weights that says something in most frames."""
    shape = (
        {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
        if normalise
        else {}
    )
    model = make_model(5, num_hidden_layers=2, **shape)
    save(Encoder(model=exact(model), normalise=normalise), folder / "base", "#\n")
    _, checkpoint = teachers.load(str(folder / "base"))
    torch.manual_seed(1)
    made = recognisers.build(checkpoint, tokenizer, config.Recogniser())
    with torch.no_grad():
        made.model.lm_head.weight.normal_().mul_(2)
        made.model.lm_head.bias[tokenizer.blank] += 4.0
    made.model.eval()
    return made


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    for place, seconds in enumerate((0.5, 1.5, 2.5, 7.0)):
        soundfile.write(folder / f"clip{place}.wav", voice(seconds, place), 16_000, "PCM_16")
    long = np.concatenate([voice(11.3, 20 + place) for place in range(9)])
    soundfile.write(folder / "long.wav", long, 16_000, "PCM_16")
    return folder


@pytest.mark.parametrize("kind", ["char", "unigram", "bpe"])
def test_stock_transformers_without_distilkit_writes_the_same(
    kind: config.TokenizerKind, recordings: Path, tmp_path: Path
) -> None:
    size: int | str = "auto" if kind == "char" else 24
    tokenizer = tokenizers.train(SAYINGS * 3, config.Tokenizer(kind=kind, size=size), config.Text())  # type: ignore[arg-type]
    made = talkative(tmp_path, tokenizer, normalise=kind == "bpe")
    recognisers.save(made, tmp_path / "model", "#\n")
    recogniser = recognisers.load(str(tmp_path / "model"))
    files = sorted(recordings.glob("*.wav"))
    ours = [
        item for item in transcribe.transcribe(files, recogniser) if isinstance(item, Transcript)
    ]
    assert [item.file for item in ours] == [path.name for path in files]
    assert [item.text for item in ours] == stock_texts(tmp_path / "model", files)
    assert all(len(item.text) > 5 for item in ours[1:])
    assert len(ours[-1].text) > 300  # it says a lot, so that equal means something
    timed = transcribe.transcribe(files, recogniser, timed=True)
    for item, plain in zip(timed, ours, strict=True):
        assert isinstance(item, Transcript)
        assert item.words is not None
        assert item.text == plain.text
        starts = [word.start for word in item.words]
        assert starts == sorted(starts)


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory: pytest.TempPathFactory, letters: Path) -> recognisers.Recogniser:
    return talkative(tmp_path_factory.mktemp("talkative"), tokenizers.load(letters))


def test_files_are_heard_in_order_whatever_their_lengths(
    recogniser: recognisers.Recogniser, recordings: Path
) -> None:
    files = [recordings / f"{name}.wav" for name in ("clip3", "long", "clip0", "clip2", "clip1")]
    together = [
        item for item in transcribe.transcribe(files, recogniser) if isinstance(item, Transcript)
    ]
    assert [item.file for item in together] == [path.name for path in files]
    for item, path in zip(together, files, strict=True):
        (alone,) = transcribe.transcribe([path], recogniser)
        assert isinstance(alone, Transcript)
        assert alone.text == item.text


def test_what_cannot_be_heard_is_skipped_with_its_reason(
    recogniser: recognisers.Recogniser, recordings: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "bad.wav").write_bytes(b"RIFFnothing")
    soundfile.write(tmp_path / "short.wav", voice(0.02, 1), 16_000)
    soundfile.write(tmp_path / "good.wav", voice(1.0, 1), 16_000)
    found = list(transcribe.transcribe([tmp_path], recogniser))
    by = {Path(item.path).name: item for item in found if isinstance(item, Skipped)}
    assert by["notes.txt"].kind == "not audio"
    assert by["bad.wav"].kind == "unusable"
    assert by["short.wav"].reason == "0.020 s is shorter than one frame (0.025 s)"
    assert [item.file for item in found if isinstance(item, Transcript)] == ["good.wav"]


def spoken(tokenizer: Tokenizer, text: str, blanks: int, rng: np.random.Generator) -> np.ndarray:
    """Frames that say a text: each token for one to three frames, with blanks between."""
    path: list[int] = []
    for token in tokenizer.encode(text):
        path += [token] * int(rng.integers(1, 4)) + [tokenizer.blank] * int(
            rng.integers(1, 1 + blanks)
        )
    rows = np.full((len(path), len(tokenizer)), -9.0, np.float32)
    rows[np.arange(len(path)), path] = -0.01
    return rows


def silent(rows_TK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames with levels that tell nothing of pauses."""
    return rows_TK, np.full(len(rows_TK), -30.0, np.float32)


@pytest.mark.parametrize("kind", ["char", "unigram"])
def test_segments_are_cut_between_words_and_lose_nothing(kind: config.TokenizerKind) -> None:
    tokenizer = tokenizers.train(SAYINGS * 3, config.Tokenizer(kind=kind), config.Text())
    rng = np.random.default_rng(0)
    text = " ".join(rng.choice(["a", "bee", "sees", "tall", "keeper"], 400))
    rows_TK = spoken(tokenizer, text, 6, rng)
    pieces = [silent(rows_TK[at : at + 700]) for at in range(0, len(rows_TK), 700)]
    found = list(transcribe.segments(pieces, tokenizer))
    assert len(found) > 3
    assert [last for *_, last in found] == [False] * (len(found) - 1) + [True]
    assert np.array_equal(np.concatenate([rows for _, rows, _, _ in found]), rows_TK)
    assert [start for start, *_ in found] == [
        0,
        *np.cumsum([len(rows) for _, rows, _, _ in found])[:-1],
    ]
    parts = [
        tokenizer.decode(decode.greedy(rows, tokenizer), frames=False) for _, rows, _, _ in found
    ]
    assert " ".join(parts) == text  # no word is cut in two
    assert all(len(rows) <= 1500 for _, rows, _, _ in found)
    said, words = transcribe.written(pieces, tokenizer, None, timed=True)
    assert said == text
    assert words is not None
    assert " ".join(word.text for word in words) == text
    assert words[-1].end == pytest.approx(len(rows_TK) / 50, abs=0.2)


def test_segments_where_no_word_ends(letters: Path) -> None:
    tokenizer = tokenizers.load(letters)
    silence = np.full((4000, len(tokenizer)), -9.0, np.float32)
    silence[:, tokenizer.blank] = 0.0
    rows = list(transcribe.segments([silent(silence)], tokenizer))
    assert sum(len(part) for _, part, _, _ in rows) == 4000
    noise = np.full((4000, len(tokenizer)), -9.0, np.float32)
    noise[:, 5] = 0.0  # one endless letter
    assert (
        sum(len(part) for _, part, _, _ in transcribe.segments([silent(noise)], tokenizer)) == 4000
    )
    nothing = list(transcribe.segments([], tokenizer))
    assert [len(part) for _, part, _, _ in nothing] == [0]
    assert transcribe.written([], tokenizer, None, timed=True) == ("", [])
    assert transcribe.written([], tokenizer, Search(), timed=False) == ("", None)


def test_a_language_model_hears_across_segments(letters: Path) -> None:
    """Two words that sound alike: only the one before the cut says which it is."""
    tokenizer = tokenizers.load(letters)
    rng = np.random.default_rng(0)
    rows = [spoken(tokenizer, text, 3, rng) for text in ("no ", "bee")]
    unsure = rows[1]
    b, s = tokenizer.encode("b")[0], tokenizer.encode("s")[0]
    unsure[:, [b, s]] = np.where(unsure[:, [b]] > -1, np.log(0.5), unsure[:, [b, s]])
    model = train([["no", "bee"]] * 9 + [["a", "see"]] * 9, 2)
    pause = np.full((2000, len(tokenizer)), -9.0, np.float32)
    pause[:, tokenizer.blank] = -0.01
    search = Search(model=model, weight=3.0)
    assert (
        transcribe.written(
            [silent(part) for part in (rows[0], pause, unsure)], tokenizer, search, False
        )[0]
        == "no bee"
    )
    rows = [spoken(tokenizer, text, 3, rng) for text in ("a ", "see")]
    assert (
        transcribe.written(
            [silent(part) for part in (rows[0], pause, unsure)], tokenizer, search, False
        )[0]
        == "a see"
    )


def test_where_transcripts_are_written(tmp_path: Path) -> None:
    place = transcribe.targets(tmp_path / "out", "srt", True)
    one, two = Transcript(file="a/x.wav", text=""), Transcript(file="a/x.flac", text="")
    assert place(one) == tmp_path / "out" / "a" / "x.srt"
    assert place(two) == tmp_path / "out" / "a" / "x.flac.srt"
    assert place(one) == tmp_path / "out" / "a" / "x.srt"
    three = Transcript(file="a/x.flac.ogg", text="")  # its stem is what the second one is called
    assert place(three) == tmp_path / "out" / "a" / "x.flac.ogg.srt"
    single = transcribe.targets(tmp_path / "said.txt", "txt", False)
    assert single(one) == tmp_path / "said.txt"
    below = transcribe.targets(tmp_path / "said", "txt", False)
    assert below(one) == tmp_path / "said" / "a" / "x.txt"
    (tmp_path / "there").write_text("x")
    with pytest.raises(DistilkitError, match="is there already"):
        transcribe.targets(tmp_path / "there", "txt", False)
    with pytest.raises(DistilkitError, match="several recordings") as caught:
        transcribe.targets(tmp_path / "said.txt", "txt", True)
    assert caught.value.hint == f"--out {tmp_path / 'said'} for a folder, or no --out and > " + str(
        tmp_path / "said.txt"
    )
    with pytest.raises(DistilkitError, match="disagree") as caught:
        transcribe.targets(tmp_path / "said.txt", "srt", False)
    assert caught.value.hint == "--format txt"
    with pytest.raises(DistilkitError, match="cannot make"):
        transcribe.write(one, tmp_path / "there" / "below" / "x.txt", "txt")
    transcribe.write(Transcript(file="x", text="hello"), tmp_path / "new" / "x.txt", "txt")
    assert (tmp_path / "new" / "x.txt").read_text() == FORMATS["txt"](
        Transcript(file="", text="hello")
    )


def test_memory_does_not_grow_with_the_recording(
    recogniser: recognisers.Recogniser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held of a long recording at once is a window and a segment."""
    held: list[int] = []
    cut = transcribe._between_words

    def watch(rows: np.ndarray, tokenizer: Tokenizer) -> int:
        held.append(len(rows))
        return cut(rows, tokenizer)

    monkeypatch.setattr(transcribe, "_between_words", watch)
    pieces = (silent(recognisers.hear(recogniser, [voice(20.0, n)], "cpu")[0]) for n in range(6))
    transcribe.written(pieces, recogniser.tokenizer, None, timed=False)
    assert held
    assert max(held) <= 1500
