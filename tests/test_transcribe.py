"""Recordings to text: the same as stock transformers, any length, times where words are."""

import fcntl
import json
import signal
import subprocess
import sys
import termios
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import SAYINGS, make_model, voice

from distilkit import config, decode, leftovers, recognisers, teachers, tokenizers, transcribe
from distilkit.captions import FORMATS, Transcript
from distilkit.data import Found, Skipped, find
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


def test_a_word_in_doubt_is_written_behind_the_pause(letters: Path) -> None:
    """`all`, a second of silence, `well`: an `i` in the last frames of the first sound, or before the second."""
    tokenizer = tokenizers.load(letters)
    frames = {2: "a", 3: "l", 5: "l", 7: "|", 8: "i", 60: "|", 62: "w", 63: "e", 64: "l", 66: "l"}
    rows_TK = np.full((70, len(tokenizer)), -20.0, np.float32)
    rows_TK[:, tokenizer.blank] = -0.01
    for frame, letter in frames.items():
        rows_TK[frame, [tokenizer.blank, tokenizer.tokens.index(letter)]] = -9.0, -0.01
    letter = tokenizer.tokens.index("i")
    rows_TK[8, [tokenizer.blank, letter]] = -1.0, -0.5
    rows_TK[58, [tokenizer.blank, letter]] = -0.1, -2.0
    levels_T = np.full(70, -90.0, np.float32)
    levels_T[:10] = levels_T[57:] = -20.0
    said, words = transcribe.written([(rows_TK, levels_T)], tokenizer, None, timed=True)
    assert said == "all i well"
    assert words is not None
    assert [(word.text, word.start, word.end) for word in words] == [
        ("all", 0.0, 0.2),
        ("i", 1.14, 1.18),
        ("well", 1.24, 1.4),
    ]


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


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 2, 4, 5])
def test_a_folder_of_transcripts_is_gone_on_with(
    after: int, recogniser: recognisers.Recogniser, recordings: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(transcribe, "POOL_SECONDS", 4.0)
    heard: list[int] = []
    real = recognisers.Recogniser.logprobs

    def counted(self: recognisers.Recogniser, clips: list[np.ndarray]) -> list[np.ndarray]:
        heard.append(len(clips))
        return real(self, clips)

    monkeypatch.setattr(recognisers.Recogniser, "logprobs", counted)
    found = list(find([recordings]))

    def work(out: Path, most: int = 99) -> None:
        place = transcribe.targets(out, "txt", True)
        begun = transcribe.Begun(out, {"model": "m"}, found)
        for number, item in enumerate(
            transcribe.transcribe([recordings], recogniser, done=begun.has)
        ):
            if number == most:
                raise Killed
            if isinstance(item, Found):
                place(item.id)
            else:
                assert isinstance(item, Transcript)
                begun.write(item, place(item.file), "txt")
        begun.end()

    whole, out = tmp_path / "whole", tmp_path / "out"
    work(whole)
    all_of_it = len(heard)
    assert len(list(whole.iterdir())) == 5
    with pytest.raises(DistilkitError, match="is there already"):
        transcribe.targets(whole, "txt", True)
    with leftovers.held(out, out), pytest.raises(DistilkitError, match="out` is in use: another"):
        work(out)
    with pytest.raises(DistilkitError, match="is there already"):  # its owner has come to its end
        transcribe.Begun(whole, {"model": "n"}, found)
    if after < 5:
        with pytest.raises(Killed):
            work(out, after)
    if 0 < after < 5:
        with pytest.raises(DistilkitError, match="holds other transcripts: model m there, n here"):
            transcribe.Begun(out, {"model": "n"}, found)
        journal = (out / transcribe.BEGUN).read_text()
        for damaged in ("", "[]\n", "{\n", journal + '{"a": 1}\n', journal + "[1]\n"):
            (out / transcribe.BEGUN).write_text(damaged)
            with pytest.raises(DistilkitError, match="is damaged"):
                transcribe.Begun(out, {"model": "n"}, found)
        (out / transcribe.BEGUN).write_text(journal + '["half')
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.txt")}
    heard.clear()
    work(out)
    assert len(heard) < all_of_it or after in (0, 5)
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert sorted(path.name for path in out.iterdir()) == sorted(
        path.name for path in whole.iterdir()
    )
    for path in whole.iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_what_transcripts_depend_on(tmp_path: Path) -> None:
    model, lm = tmp_path / "model", tmp_path / "lm.arpa"
    model.mkdir()
    (model / "model.safetensors").write_text("a")
    lm.write_text("a")
    first = transcribe.settings(str(model), lm, None, "txt", False)
    assert first == transcribe.settings(str(model), lm, None, "txt", False)
    others = [
        transcribe.settings(str(model), None, None, "txt", False),
        transcribe.settings(str(model), lm, Search(width=4), "txt", False),
        transcribe.settings(str(model), lm, None, "json", False),
        transcribe.settings(str(model), lm, None, "txt", True),
    ]
    (model / "model.safetensors").write_text("another")
    others.append(transcribe.settings(str(model), lm, None, "txt", False))
    assert first not in others


def test_where_transcripts_are_written(tmp_path: Path) -> None:
    place = transcribe.targets(tmp_path / "out", "srt", True)
    one, two = "a/x.wav", "a/x.flac"
    assert place(one) == tmp_path / "out" / "a" / "x.srt"
    assert place(two) == tmp_path / "out" / "a" / "x.flac.srt"
    assert place(one) == tmp_path / "out" / "a" / "x.srt"
    three = "a/x.flac.ogg"  # its stem is what the second one is called
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
        transcribe.write(Transcript(file="x", text=""), tmp_path / "there" / "b" / "x.txt", "txt")
    transcribe.write(Transcript(file="x", text="hello"), tmp_path / "new" / "x.txt", "txt")
    assert (tmp_path / "new" / "x.txt").read_text() == FORMATS["txt"](
        Transcript(file="", text="hello")
    )


def test_memory_does_not_grow_with_the_recording(
    recogniser: recognisers.Recogniser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held of a long recording at once is a window of 20 s and a segment of 30."""
    held: list[int] = []
    cut = transcribe._between_words

    def watch(rows: np.ndarray, tokenizer: Tokenizer) -> int:
        held.append(len(rows if rows.base is None else rows.base))
        return cut(rows, tokenizer)

    monkeypatch.setattr(transcribe, "_between_words", watch)
    pieces = (silent(recognisers.hear(recogniser, [voice(20.0, n)], "cpu")[0]) for n in range(6))
    transcribe.written(pieces, recogniser.tokenizer, None, timed=False)
    assert held
    assert max(held) <= 1500 + 1000  # of 6,000 frames


# ------------------------------------------------------------------------------------------- live


def long_sound(seconds: float) -> np.ndarray:
    return np.concatenate([voice(10.0, seed) for seed in range(int(seconds / 10) + 1)])[
        : int(seconds * 16_000)
    ]


@pytest.mark.parametrize("seconds", [0.3, 29.0, 85.0])
@pytest.mark.parametrize("timed", [False, True])
def test_live_text_is_that_of_the_file(
    seconds: float, timed: bool, recogniser: recognisers.Recogniser, tmp_path: Path
) -> None:
    sound = long_sound(seconds)
    soundfile.write(tmp_path / "a.wav", sound, 16_000, "FLOAT")
    (whole,) = transcribe.transcribe([tmp_path / "a.wav"], recogniser, timed=timed)
    assert isinstance(whole, Transcript)
    blocks = (sound[at : at + 1_111] for at in range(0, len(sound), 1_111))
    passages = list(transcribe.live(blocks, recogniser, timed=timed))
    assert "".join(passage.text for passage in passages) == whole.text
    words = [word for passage in passages for word in passage.words or []]
    assert words == (whole.words or [])
    assert passages[-1].end == pytest.approx((len(sound) - 400) // 320 / 50 + 0.02)


@pytest.mark.parametrize("kind", ["char", "unigram"])
@pytest.mark.parametrize("most", [2.0, 30.0])
def test_passages_join_to_the_text(kind: config.TokenizerKind, most: float) -> None:
    """Spaces between passages are where words are, whether the last one said anything or not."""
    tokenizer = tokenizers.train(SAYINGS * 3, config.Tokenizer(kind=kind), config.Text())
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(8):
        words = " ".join(rng.choice(["a", "bee", "sees", "tall", "keeper"], 30))
        silence = np.full((int(rng.integers(1, 400)), len(tokenizer)), -9.0, np.float32)
        silence[:, tokenizer.blank] = -0.01
        # A token that ends a word stands behind each, and none before the silence in between.
        ending = words + " a" if kind == "unigram" else words + " "
        parts += [spoken(tokenizer, ending, 6, rng), silence]
    pieces = [silent(part) for part in parts]
    found = list(transcribe.passages(pieces, tokenizer, None, False, most))
    whole = np.concatenate(parts).argmax(1)
    assert "".join(passage.text for passage in found) == tokenizer.decode(whole)
    assert len(found) > 7
    assert sum(passage.text.startswith(" ") for passage in found) > 5


@pytest.mark.parametrize("delay", [4.0, 10.0, 60.0])
def test_live_text_comes_in_time_and_at_flat_memory(
    delay: float, recogniser: recognisers.Recogniser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a passage is told, its beginning is at most so long ago, and nothing longer was heard at once."""
    arrived, heard = 0, []
    sound = long_sound(130.0)
    real = recognisers.Recogniser.logprobs

    def watch(self: recognisers.Recogniser, clips: list[np.ndarray]) -> list[np.ndarray]:
        heard.append(max(map(len, clips)))
        return real(self, clips)

    def blocks() -> Iterator[np.ndarray]:
        nonlocal arrived
        for at in range(0, len(sound), 1_600):
            arrived = at + 1_600
            yield sound[at : at + 1_600]

    monkeypatch.setattr(recognisers.Recogniser, "logprobs", watch)
    late, before = [], 0.0
    for passage in transcribe.live(blocks(), recogniser, delay=delay):
        assert passage.start == pytest.approx(before)
        late.append(arrived / 16_000 - passage.start)
        before = passage.end
    assert before == pytest.approx(130.0, abs=0.03)
    assert delay / 4 < max(late) <= delay + 0.2  # a block and a frame
    assert max(heard) <= delay / 2 * 16_000


def test_live_beam_search_knows_the_words_before(
    recogniser: recognisers.Recogniser, tmp_path: Path
) -> None:
    search = Search(model=train(SAYINGS, order=2), width=4)
    sound = long_sound(65.0)
    soundfile.write(tmp_path / "a.wav", sound, 16_000, "FLOAT")
    (whole,) = transcribe.transcribe([tmp_path / "a.wav"], recogniser, search=search)
    assert isinstance(whole, Transcript)
    told = "".join(passage.text for passage in transcribe.live([sound], recogniser, search=search))
    assert told == whole.text


def piped(content: bytes, *argv: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "distilkit", *map(str, argv)]
    return subprocess.run(command, input=content, capture_output=True)


def test_standard_input(recogniser: recognisers.Recogniser, tmp_path: Path) -> None:
    recognisers.save(recogniser, tmp_path / "model", "#\n")
    sound = (long_sound(65.0) * 32_000).astype("<i2")
    soundfile.write(tmp_path / "a.wav", sound, 16_000, "PCM_16")
    asks = ("--model", tmp_path / "model")
    whole = piped(b"", "transcribe", tmp_path / "a.wav", *asks)
    raw = piped(sound.tobytes(), "transcribe", "-", *asks)
    assert raw.returncode == 0, raw.stderr
    assert raw.stdout == whole.stdout != b"\n"
    wav = piped(
        (tmp_path / "a.wav").read_bytes(),
        "transcribe",
        "-",
        *asks,
        "--format",
        "json",
        "--timestamps",
    )
    rows = [json.loads(line) for line in wav.stdout.splitlines()]
    assert len(rows) > 2
    assert " ".join(row["text"] for row in rows).split() == whole.stdout.decode().split()
    assert all(row["start"] <= word["start"] for row in rows for word in row["words"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["-", "x.wav"], "`-` beside other inputs"),
        (["-", "--out", "x.txt"], "`--out x.txt` of standard input"),
        (["-", "--format", "srt"], "`--format srt` of standard input"),
        (["-"], "brings no sound"),
        (["x.wav", "--delay", "5"], "`--delay 5` of files"),
    ],
)
def test_what_standard_input_is_not_for(
    argv: list[str], said: str, recogniser: recognisers.Recogniser, tmp_path: Path
) -> None:
    recognisers.save(recogniser, tmp_path / "model", "#\n")
    done = piped(b"", "transcribe", *argv, "--model", tmp_path / "model")
    assert done.returncode == 1
    assert said in done.stderr.decode()
    assert b"hint:" in done.stderr


def test_an_interrupt_ends_the_source_and_nothing_heard_is_lost(
    recogniser: recognisers.Recogniser, tmp_path: Path
) -> None:
    recognisers.save(recogniser, tmp_path / "model", "#\n")
    sound = (long_sound(25.0) * 32_000).astype("<i2")
    soundfile.write(tmp_path / "a.wav", sound, 16_000, "PCM_16")
    whole = piped(b"", "transcribe", tmp_path / "a.wav", "--model", tmp_path / "model")
    process = subprocess.Popen(
        [sys.executable, "-m", "distilkit", "transcribe", "-", "--model", str(tmp_path / "model")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(sound.tobytes())
    process.stdin.flush()
    while array("i", fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4)))[0]:
        time.sleep(0.05)
    time.sleep(0.5)  # all has been read
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 130
    assert said == whole.stdout
