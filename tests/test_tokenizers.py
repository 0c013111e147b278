"""Tokenizers: no character is lost, paths of frames become the text again, stock transformers agrees."""

import csv
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import sentencepiece
from test_normalisation import AS_IS, odd_texts

from distilkit import cli, config, tokenizers
from distilkit.cli import tokenizer as command
from distilkit.config import Text
from distilkit.errors import DistilkitError
from distilkit.normalisation import normalise
from distilkit.tokenizers import KINDS, Tokenizer, train

LINES = [
    "The bookkeeper's aardvark wheezed: all good, 12 bees!",
    "It\u2019s a well-known tree; see the queen's bee.",
    "Fährt Herr Weiß die Straße hinauf?",
    "No llama sees less grass than Zoë",
    "the bee keeps the tree, the tree keeps the bee",
    "see see see three bees see three trees",
] * 3
KIND = pytest.mark.parametrize("kind", KINDS)


def made(
    kind: str, lines: list[str] = LINES, text: Text | None = None, size: Any = "auto"
) -> Tokenizer:
    settings = config.Tokenizer(kind=kind, size=size)  # type: ignore[arg-type]
    return train(lines, settings, text or Text())


def path_of(ids: list[int], seed: int, blank: int = 0) -> list[int]:
    """A path of frames that says these tokens: repeats, and blanks where they may or must be."""
    draw = random.Random(seed)
    frames = [blank] * draw.randint(0, 2)
    for token, following in zip(ids, [*ids[1:], None], strict=True):
        frames += [token] * draw.randint(1, 3)
        if token == following or draw.random() < 0.3:
            frames += [blank] * draw.randint(1, 3)
    return frames


@KIND
def test_text_through_tokens_and_back(kind: str) -> None:
    tokenizer = made(kind)
    for place, line in enumerate(LINES):
        text = tokenizer.normalise(line)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids, frames=False) == text
        assert {tokenizer.blank, 1} & set(ids) == set()
        for seed in range(4):
            assert tokenizer.decode(path_of(ids, seed + 10 * place)) == text


@KIND
def test_a_path_in_detail(kind: str) -> None:
    tokenizer = made(kind, ["al la lal", "a l"], size=5 if kind != "char" else "auto")
    space, a, letter = (
        tokenizer.tokens.index(x) for x in ("|" if kind == "char" else "▁", "a", "l")
    )
    blank = tokenizer.blank
    assert tokenizer.decode([a, letter, letter, blank, letter, a, a]) == "alla"
    assert tokenizer.decode([a, letter, letter, letter, a]) == "ala"
    assert tokenizer.decode([a, a, space, space, blank, space, letter]) == "a l"
    assert tokenizer.decode([blank, blank]) == tokenizer.decode([]) == ""
    assert tokenizer.decode([a, a], frames=False) == "aa"


@KIND
def test_blank_and_special_tokens(kind: str) -> None:
    tokenizer = made(kind)
    assert tokenizer.blank == 0
    assert tokenizer.tokens[:2] == ["<pad>", "<unk>"]
    assert {"<s>", "</s>"} & set(tokenizer.tokens) == set()
    assert len(tokenizer) == len(tokenizer.tokens) == len(set(tokenizer.tokens))
    if kind == "char":  # in an order that does not change from one process to the next
        assert tokenizer.tokens[2:] == ["|", *sorted(tokenizer.characters - {" "})]


@KIND
def test_every_character_has_a_token(kind: str) -> None:
    """Also rare ones, those of very long lines, and what SentencePiece keeps for itself."""
    once = [chr(code) for code in range(0xC0, 0x180)]
    odd = [text for text in odd_texts(300, 2) if normalise(text, AS_IS)]
    lines = [*odd, " ".join(once), "x" * 100 + " ab" * 3000 + " \u0416", "<pad> | <unk>"]
    tokenizer = made(kind, lines, AS_IS)
    for line in lines:
        text = tokenizer.normalise(line)
        assert set(text) <= tokenizer.characters
        assert tokenizer.unknown(text) == []
        ids = tokenizer.encode(text)
        assert 1 not in ids
        assert tokenizer.decode(path_of(ids, 0)) == text, ascii(text)


@KIND
def test_unknown_characters_are_listed(kind: str) -> None:
    tokenizer = made(kind)
    text = "the \u0436 bee q\u00f1\u0436 see"
    assert tokenizer.unknown(text) == ["\u0436", "\u00f1"]
    ids = tokenizer.encode(text)
    assert 1 in ids
    assert tokenizer.decode(ids, frames=False).split()[::2] == ["the", "bee", "see"]


@KIND
def test_signs_of_their_own_in_transcripts_are_harmless(kind: str) -> None:
    tokenizer = made(kind, ["a|b <pad> c\u2581d", "<unk> <s>e</s>"], AS_IS)
    assert tokenizer.characters == set(" abcdepnuks")
    assert len([x for x in tokenizer.tokens if "|" in x]) == (kind == "char")
    text = tokenizer.normalise("a|b <pad>")
    assert tokenizer.decode(path_of(tokenizer.encode(text), 1)) == "a b pad"


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_too_many_and_too_few_subwords(kind: str) -> None:
    with pytest.raises(DistilkitError, match="`--vocab-size 9000` is too large") as caught:
        made(kind, size=9000)
    most = int(str(caught.value.hint).removeprefix("--vocab-size "))
    assert str(most) in caught.value.problem
    assert len(made(kind, size=most)) == most
    with pytest.raises(DistilkitError, match=f"`--vocab-size {most + 1}` is too large"):
        made(kind, size=most + 1)
    with pytest.raises(DistilkitError, match="`--vocab-size 8` is too small") as caught:
        made(kind, size=8)
    least = int(str(caught.value.hint).removeprefix("--vocab-size "))
    assert len(made(kind, size=least)) == least
    with pytest.raises(DistilkitError, match=f"`--vocab-size {least - 1}` is too small"):
        made(kind, size=least - 1)


@pytest.mark.parametrize("size", [4, 9000])
def test_characters_have_one_size(size: int) -> None:
    with pytest.raises(DistilkitError, match=f"`--vocab-size {size}` does not fit") as caught:
        made("char", size=size)
    fits = int(re.findall(r"--vocab-size (\d+)", str(caught.value.hint))[0])
    assert len(made("char", size=fits)) == len(made("char")) == fits


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_how_many_subwords_there_are_by_default(kind: str) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 7))) for _ in range(400)]
    lines = [" ".join(draw.choices(words, k=10)) for _ in range(300)]
    assert len(made(kind, lines)) == 3000 // tokenizers.WORDS
    assert len(made(kind, ["ab ba"])) == 5
    assert len(made(kind, ["aaa"] * 5000)) < 10  # less than 100: the text gives no more


@KIND
def test_no_text(kind: str) -> None:
    for lines in ([], [""], ["...", "\u200b!"]):
        with pytest.raises(DistilkitError, match="the transcripts hold no text") as caught:
            made(kind, lines)
        assert caught.value.hint == "other transcripts, or --punctuation keep"
    assert made(kind, ["..."], AS_IS).characters == set(" .")


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_subwords_are_those_of_sentencepiece(kind: str) -> None:
    draw = random.Random(5)
    parts = ["".join(draw.choices("aeioubcdst", k=draw.randint(1, 4))) for _ in range(60)]
    words = ["".join(draw.choices(parts, k=draw.randint(1, 4))) for _ in range(300)]
    lines = LINES + [" ".join(draw.choices(words, k=8)) for _ in range(200)]
    tokenizer = made(kind, lines, size=200)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    assert [pieces.id_to_piece(i) for i in range(pieces.get_piece_size())] == tokenizer.tokens
    for line in lines:
        text = tokenizer.normalise(line)
        assert tokenizer.encode(text) == pieces.encode(text)


def real_transcripts(shared: Path) -> list[str]:
    lines = []
    for table in sorted((shared / "speech").glob("*/metadata.csv")):
        with table.open(encoding="utf-8", newline="") as file:
            lines += [row.get("transcription") or "" for row in csv.DictReader(file)]
    return sorted({line for line in lines if line.strip()})


@pytest.mark.parametrize("size", [100, 400])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_subwords_are_those_of_sentencepiece_on_real_text(
    shared: Path, kind: str, size: int
) -> None:
    lines = real_transcripts(shared)
    assert len(lines) > 700
    tokenizer = made(kind, lines, size=size)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    for place, line in enumerate(lines):
        text = tokenizer.normalise(line)
        ids = tokenizer.encode(text)
        assert ids == pieces.encode(text), text
        assert tokenizer.decode(path_of(ids, place)) == text


# ----------------------------------------------------------------------------------------- files

SHIPPED = {
    "char": {"vocab.json"},
    "unigram": {"tokenizer.json", "tokenizer.model"},
    "bpe": {"tokenizer.json", "tokenizer.model"},
}
COMMON = {"preprocessor_config.json", "processor_config.json", "text.json", "tokenizer_config.json"}


@KIND
def test_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    text = Text(case="upper", punctuation="keep", language="tr")
    tokenizer = made(kind, text=text)
    for name in "ab":
        tokenizers.save(made(kind, text=text), tmp_path / name)
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert set(files) == COMMON | SHIPPED[kind]
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert not any(str(tmp_path).encode() in content for content in files.values())
    again = tokenizers.load(tmp_path / "a")
    assert again.tokens == tokenizer.tokens
    assert again.text == text
    assert again.model == tokenizer.model
    assert tokenizers.fingerprint(again) == tokenizers.fingerprint(tokenizer)
    for line in LINES:
        ids = again.encode(again.normalise(line))
        assert ids == tokenizer.encode(tokenizer.normalise(line))
        assert again.decode(path_of(ids, 3)) == tokenizer.normalise(line)
    tokenizers.save(again, tmp_path / "c")
    assert tokenizers.fingerprint(tokenizers.load(tmp_path / "c")) == tokenizers.fingerprint(again)


@pytest.mark.parametrize("normalised", [False, True])
def test_how_the_model_hears_waveforms(normalised: bool, tmp_path: Path) -> None:
    tokenizers.save(made("char"), tmp_path, normalised)
    said = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert said["do_normalize"] is said["return_attention_mask"] is normalised
    assert said["sampling_rate"] == 16_000


STOCK = """
import json, sys
sys.modules["distilkit"] = None  # whoever imports it now fails
from transformers import AutoProcessor, AutoTokenizer, Wav2Vec2Processor
said = {}
for kind, (folder, texts, paths) in json.load(sys.stdin).items():
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    again = Wav2Vec2Processor(processor.feature_extractor, tokenizer)
    said[kind] = {
        "types": [type(tokenizer).__name__, type(processor).__name__],
        "size": len(tokenizer),
        "blank": tokenizer.pad_token_id,
        "rate": processor.feature_extractor.sampling_rate,
        "ids": [tokenizer(text)["input_ids"] for text in texts],
        "texts": [one.batch_decode(paths) for one in (tokenizer, processor, again)],
    }
json.dump(said, sys.stdout)
"""


def test_stock_transformers_alone_says_the_same(tmp_path: Path) -> None:
    asked, wanted = {}, {}
    for kind in KINDS:
        tokenizer = made(kind, text=AS_IS)
        tokenizers.save(tokenizer, tmp_path / kind)
        texts = [tokenizer.normalise(line) for line in LINES]
        ids = [tokenizer.encode(text) for text in texts]
        paths = [path_of(line, place) for place, line in enumerate(ids)]
        asked[kind] = [str(tmp_path / kind), texts, paths]
        stock = "Wav2Vec2CTCTokenizer" if kind == "char" else "ParakeetTokenizer"
        wanted[kind] = {
            "types": [stock, "Wav2Vec2Processor"],
            "size": len(tokenizer),
            "blank": 0,
            "rate": 16_000,
            "ids": ids,
            "texts": [texts] * 3,
        }
    done = subprocess.run(
        [sys.executable, "-c", STOCK],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert json.loads(done.stdout) == wanted


def test_the_fingerprint_tells_tokenizers_apart() -> None:
    tokenizer = made("char")
    others = [
        made("char", LINES[:3]),
        made("bpe"),
        made("char", text=Text(language="de")),
        Tokenizer(stock=tokenizers._stock_characters(tokenizer.tokens[:3] + tokenizer.tokens[:2:-1]), text=Text()),
    ]  # fmt: skip
    found = [tokenizers.fingerprint(one) for one in [tokenizer, *others]]
    assert len(set(found)) == 5
    assert len(others[3]) == len(tokenizer)
    assert found[0] == tokenizers.fingerprint(made("char"))
    assert all(re.fullmatch("[0-9a-f]{64}", one) for one in found)


LETTERS = {letter: place for place, letter in enumerate("ETAONIHSRDLUMWCFGYPBVK'XJQZ", start=5)}
VOCABULARY = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, **LETTERS}
NAMES = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
CLASS = {"tokenizer_class": "Wav2Vec2CTCTokenizer"}


def folder_of(folder: Path, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text)
    return folder


@pytest.mark.parametrize("lower", [False, True])
def test_the_tokenizer_of_a_published_model(lower: bool, tmp_path: Path) -> None:
    """As facebook/wav2vec2-base-960h has it; with do_lower_case it would read lower case."""
    settings = {**NAMES, "do_lower_case": lower}
    model = {"model_type": "wav2vec2"}
    folder = folder_of(tmp_path / "it", vocab=VOCABULARY, tokenizer_config=settings, config=model)
    tokenizer = tokenizers.load(folder)
    assert (len(tokenizer), tokenizer.blank) == (32, 0)
    assert tokenizer.tokens == list(VOCABULARY)
    assert tokenizer.text == Text(case="upper")
    assert tokenizer.characters == {" ", *LETTERS}
    text = tokenizer.normalise("It\u2019s all good, 3 bees \u00f6")
    assert text == "IT'S ALL GOOD 3 BEES \u00d6"
    assert tokenizer.unknown(text) == ["3", "\u00d6"]
    known = "IT'S ALL GOOD BEES"
    ids = tokenizer.encode(known)
    assert ids[:4] == [VOCABULARY[x] for x in "IT'S"]
    assert tokenizer.decode(path_of(ids, 1)) == known
    tokenizers.save(tokenizer, tmp_path / "again")
    again = tokenizers.load(tmp_path / "again")
    assert tokenizers.fingerprint(again) == tokenizers.fingerprint(tokenizer)
    assert again.decode(path_of(again.encode(known), 2)) == known


def test_a_blank_that_is_not_the_first_token(tmp_path: Path) -> None:
    vocabulary = {"|": 0, "a": 1, "b": 2, ".": 3, "A": 4, "[UNK]": 5, "[PAD]": 6}
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "bos_token": None, "eos_token": None}
    folder = folder_of(tmp_path, vocab=vocabulary, tokenizer_config={**names, **CLASS})
    tokenizer = tokenizers.load(folder)
    assert (len(tokenizer), tokenizer.blank) == (7, 6)
    assert tokenizer.text == Text(case="keep", punctuation="keep")
    assert tokenizer.decode(path_of(tokenizer.encode("Aa bb."), 1, blank=6)) == "Aa bb."


def plain_fast(folder: Path) -> None:
    tokenizers.save(made("bpe"), folder)
    told = json.loads((folder / "tokenizer_config.json").read_text())
    told["tokenizer_class"] = "PreTrainedTokenizerFast"
    folder_of(folder, tokenizer_config=told)


def own_code(folder: Path) -> None:
    auto = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    folder_of(folder, vocab=VOCABULARY, tokenizer_config={**NAMES, **auto})
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Own: pass\n")


def odd_text(content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        tokenizers.save(made("char"), folder)
        (folder / "text.json").write_bytes(content.encode("latin-1"))

    return write


def vocabulary(content: Any, **changes: Any) -> Callable[[Path], None]:
    settings = {**NAMES, **CLASS, **changes}
    return lambda folder: void(folder_of(folder, vocab=content, tokenizer_config=settings))


def void(_: object) -> None:
    pass


def without_unknown(folder: Path) -> None:
    """One of ours, whose table of tokens gives the unknown one no number."""
    tokenizers.save(
        tokenizers.train(["a bee"], config.Tokenizer(kind="char"), config.Text()), folder
    )
    table = folder / "vocab.json"
    table.write_text(json.dumps({**json.loads(table.read_text()), "<unk>": None}))


NONE = "no tokenizer in `{}`: "
NOT = "the tokenizer in `{}` is not for CTC: "
DAMAGED = "`{}/text.json` is damaged: "
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (void, NONE + "none of tokenizer_config.json, tokenizer.json, vocab.json"),
    "missing": (Path.rmdir, NONE + "no such folder"),
    "broken": (vocabulary("{"), NONE + "Expecting property name"),
    "no table": (vocabulary(["a"]), NONE),
    "no numbers": (vocabulary({"<pad>": "x", "a": "0"}), NONE),
    "gaps": (vocabulary({**VOCABULARY, "Z": 99}), NOT + "its tokens are not numbered from 0"),
    "a limit that is no number": (vocabulary(VOCABULARY, model_max_length="x"), NOT + "its `model_max_length` is no number"),
    "a space that is no text": (vocabulary(VOCABULARY, replace_word_delimiter_char={"a": 1}), NOT + "its `replace_word_delimiter_char` is no text"),
    "no blank": (vocabulary(VOCABULARY, pad_token=None), NOT + "it has no padding token"),
    "no unknown": (without_unknown, NOT + "it has no token for characters that are unknown"),
    "no tokens": (vocabulary({"<pad>": 0, "<unk>": 1, "<s>": 2, "</s>": 3, "|": 4}), NOT + "it has no tokens"),
    "plain": (plain_fast, NOT + "it does not join repeats and drop blanks"),
    "code": (own_code, NONE),
    "text": (odd_text('{"case": "Lower"}'), DAMAGED + "1 validation error for Text case Input should be"),
    "text, half": (odd_text('{"case":'), DAMAGED),
    "text, bytes": (odd_text('{"case":\xff}'), DAMAGED),
    "text, other keys": (odd_text('{"cases": "keep"}'), DAMAGED),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_a_tokenizer(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "it"
    folder.mkdir()
    spoil, problem = REFUSED[name]
    spoil(folder)
    with pytest.raises(DistilkitError) as caught:
        tokenizers.load(folder)
    assert caught.value.problem.startswith(problem.format(folder))
    assert caught.value.hint == "distilkit tokenizer DATA --out DIR"
    assert "\n" not in caught.value.problem
    assert not (folder / "ran").exists()


# --------------------------------------------------------------------------------------- command


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process, in a folder that holds `lines.txt`."""
    (tmp_path / "lines.txt").write_text("\n".join(LINES), encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["distilkit", "tokenizer", *arguments])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


Run = Callable[..., tuple[int, str, str]]


def test_the_command_offers_what_the_settings_know() -> None:
    for name in ("TokenizerKind", "UnicodeForm", "Case", "Punctuation", "Digits"):
        assert get_args(getattr(command, name)) == get_args(getattr(config, name))
    assert set(get_args(config.TokenizerKind)) == set(KINDS)


def test_the_command_writes_a_folder(run: Run) -> None:
    code, out, err = run("lines.txt", "--out", "new/tokens")
    assert (code, out) == (0, "new/tokens\n")
    tokenizer = tokenizers.load(Path("new/tokens"))
    assert tokenizers.fingerprint(tokenizer) == tokenizers.fingerprint(made("char"))
    rows = {line.split("  ")[0].strip(): line for line in err.splitlines()}
    words = sum(len(normalise(line, Text()).split()) for line in LINES)
    assert f"{words} words" in rows["text"]
    assert "18 lines" in rows["text"]
    assert "15 lines" in rows["normalised"]
    assert "NFKC, lower case, punctuation removed, digits kept" in rows["normalised"]
    assert "`,` 6, `:` 3" in rows["taken away"]
    assert "'12abdefghiklmnopqrstuvwzßäë" in rows["alphabet"]
    assert "`1` 3, `2` 3, `m` 3, `q` 3, `v` 3, `ä` U+00E4 3" in rows["rare"]
    assert str(len(tokenizer)) in rows["tokens"]
    assert "Fährt Herr Weiß die Straße hinauf?" in err
    assert "fährt herr weiß die straße hinauf\n" in re.sub(" +\n", "\n", err)


def test_the_command_sets_everything(run: Run) -> None:
    options = "--kind bpe --vocab-size 40 --form NFD --case upper --punctuation keep"
    code, out, _ = run(
        "lines.txt",
        *options.split(),
        "--digits",
        "spell",
        "--language",
        "de",
        "--out",
        "it",
        "--json",
    )
    assert code == 0
    said = json.loads(out)
    tokenizer = tokenizers.load(Path("it"))
    text = Text(form="NFD", case="upper", punctuation="keep", digits="spell", language="de")
    assert tokenizer.text == text
    assert type(tokenizer.stock).__name__ == "ParakeetTokenizer"
    assert said["tokens"] == len(tokenizer) == 40
    assert said["text"] == text.model_dump()
    assert said["fingerprint"] == tokenizers.fingerprint(tokenizer)
    assert (said["output"], said["kind"], said["lines"], said["empty"]) == ("it", "bpe", 18, 0)
    assert said["gone"] == {}
    assert (said["changed"], len(said["examples"])) == (18, 1)
    assert set(said["alphabet"]) | {" "} == tokenizer.characters
    assert said["words"] == sum(len(normalise(line, text).split()) for line in LINES)


def test_the_command_reads_a_column(run: Run, tmp_path: Path) -> None:
    table = 'file_name,text,heard\na.wav,abc,"xyz"\nb.wav,abc,\nc.wav,abc,zyx\n'
    (tmp_path / "metadata.csv").write_text(table)
    code, out, err = run("metadata.csv", "--text-column", "heard", "--out", "it", "--json")
    assert code == 0
    said = json.loads(out)
    assert set(said["alphabet"]) == set("xyz")
    assert [Path(item["path"]).name for item in said["skipped"]] == ["b.wav"]
    assert "left out: 1 empty text" in err


def test_what_the_terminal_shows_is_harmless(run: Run, tmp_path: Path) -> None:
    odd = "[bold]a\x1b[31mb \u202ec \u0915\u093e\n...\n"
    (tmp_path / "odd.txt").write_text(odd, encoding="utf-8")
    code, _, err = run("odd.txt", "--out", "it")
    assert code == 0
    assert "\x1b[31m" not in err
    assert "[bold]a\ufffd[31mb" in err
    assert "`\u25cc\u093e` U+093E 1" in err
    assert "U+001B 1" in err
    assert "1 of them without a word" in err
    code, out, _ = run("odd.txt", "--out", "it2", "--json")
    assert (code, json.loads(out)["empty"]) == (0, 1)


def test_a_sign_that_stays_somewhere_is_not_taken_away(run: Run, tmp_path: Path) -> None:
    (tmp_path / "odd.txt").write_text("\u0915\u094d\u200d\u0937 so\u200dso!", encoding="utf-8")
    code, out, _ = run("odd.txt", "--out", "it", "--json")
    assert (code, json.loads(out)["gone"]) == (0, {"!": 1})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("lines.txt --out there", "error: `there` already exists\n\nhint: another --out, or remove"),
        ("lines.txt --out it --vocab-size 900", "error: `--vocab-size 900` does not fit: "),
        ("lines.txt --out it --kind bpe --vocab-size 9000", "error: `--vocab-size 9000` is too large: "),
        ("lines.txt --out it --digits spell --language xx", "error: digits cannot be spelled"),
        ("lines --out it", "error: no such file or folder: `lines`"),
        ("lines.txt --out dots.txt/it", "error: cannot make `dots.txt`: File exists\n"),
        ("dots.txt --out it", "error: the transcripts hold no text once they are normalised\n"),
    ],
    ids=["there", "one size", "too large", "language", "missing", "below a file", "no text"],
)  # fmt: skip
def test_the_command_refuses(arguments: str, said: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "dots.txt").write_text("...\n")
    before = sorted(tmp_path.iterdir())
    code, out, err = run(*arguments.split())
    assert (code, out) == (1, "")
    assert err.startswith(said)
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_is_written_whole_or_not(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Tokenizer, folder: Path) -> None:
        folder.mkdir()
        (folder / "vocab.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenizers, "save", full)
    code, out, err = run("lines.txt", "--out", "it")
    assert (code, out) == (1, "")
    assert err.startswith("error: cannot write `it`: No space left on device\n")
    assert [path.name for path in tmp_path.iterdir()] == ["lines.txt"]
