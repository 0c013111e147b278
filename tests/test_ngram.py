"""Language models: probabilities by hand, sums to one, and ARPA files of every kind."""

import gzip
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from distilkit import cli, config, ngram, tokenizers
from distilkit.errors import DistilkitError
from distilkit.ngram import (
    BEGIN,
    END,
    FALLBACK,
    NEVER,
    UNKNOWN,
    NGram,
    held_out,
    read,
    train,
    write,
)

Run = Callable[..., tuple[int, str, str]]
SMALL = [["a", "b"], ["a", "b"], [], ["a", "c"]]
# By hand: counts of pairs 3 2 1 2 1, different words before a word 1 1 1 2, discounts 0.5 1 1.5.
ARPA = f"""\\data\\
ngram 1=6
ngram 2=5

\\1-grams:
-1\t<unk>
-99\t<s>\t{math.log10(0.5):.7g}
{math.log10(0.2):.7g}\ta\t{math.log10(0.5):.7g}
{math.log10(0.2):.7g}\tb\t{math.log10(0.5):.7g}
{math.log10(0.3):.7g}\t</s>
{math.log10(0.2):.7g}\tc\t{math.log10(0.5):.7g}

\\2-grams:
{math.log10(3 / 6 + 0.1):.7g}\t<s> a
{math.log10(1 / 3 + 0.1):.7g}\ta b
{math.log10(1 / 2 + 0.15):.7g}\tb </s>
{math.log10(1 / 6 + 0.1):.7g}\ta c
{math.log10(1 / 2 + 0.15):.7g}\tc </s>

\\end\\
"""


def text(count: int = 400, seed: int = 0) -> list[list[str]]:
    """Sentences in which some words follow others more often, rare words among them."""
    drawn = random.Random(seed)
    names = [f"w{place}" for place in range(40)]
    found = []
    for _ in range(count):
        words = [drawn.choice(names)]
        while drawn.random() < 0.8:
            near = int(words[-1][1:]) + 1 if drawn.random() < 0.5 else int(40 * drawn.random() ** 3)
            words.append(names[near % 40])
        found.append(words)
    return found


def total(model: NGram, context: Sequence[str]) -> float:
    """The probabilities of all that may come behind a context."""
    vocabulary = [gram[0] for gram in model.logs if len(gram) == 1 and gram[0] != BEGIN]
    return sum(10 ** model.score(tuple(context), word)[0] for word in vocabulary)


# -------------------------------------------------------------------------------------- training


def test_pairs_by_hand(tmp_path: Path) -> None:
    write(train(SMALL, 2), tmp_path / "lm.arpa")
    assert (tmp_path / "lm.arpa").read_text() == ARPA


def test_triples_by_hand() -> None:
    """Behind `<s>` pairs keep their counts, elsewhere different words before them count."""
    model = train(SMALL, 3)
    assert model.logs[BEGIN, "a"] == pytest.approx(math.log10(1.5 / 3 + 0.5 * 0.2))
    assert model.logs["a", "b"] == pytest.approx(math.log10(0.5 / 2 + 0.5 * 0.2))
    assert model.logs[BEGIN, "a", "b"] == pytest.approx(math.log10(1 / 3 + 0.5 * 0.35))
    assert model.logs["a", "c", END] == pytest.approx(math.log10(0.5 + 0.5 * (0.5 + 0.5 * 0.3)))
    assert model.sizes() == [6, 5, 4]
    assert model.sentence(["a", "b"]) == pytest.approx(
        math.log10(0.6) + math.log10(1 / 3 + 0.5 * 0.35) + model.logs["a", "b", END]
    )


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_sum_to_one_behind_every_context(order: int) -> None:
    model = train(text(), order)
    contexts = [(), *(gram for gram in model.backoffs if len(gram) < order)]
    contexts += [("nowhere",), ("w3", "nowhere"), (UNKNOWN, "w3"), (BEGIN, "w39", "w0"), (END,)]
    assert len(contexts) > 6 if order > 1 else len(contexts) == 6
    for context in contexts:
        assert total(model, context) == pytest.approx(1, abs=1e-9)
    for gram, value in model.logs.items():
        assert value < 0, gram


def test_discounts_by_hand() -> None:
    """With 6, 3, 2 and 1 n-grams that occur once to four times: 6 / (6 + 2 * 3) = 1/2."""
    counts = [1] * 6 + [2] * 3 + [3] * 2 + [4]
    assert ngram._discounts(counts) == pytest.approx(
        (1 - 2 * 0.5 * 3 / 6, 2 - 3 * 0.5 * 2 / 3, 3 - 4 * 0.5 * 1 / 2)
    )
    assert ngram._discounts(counts[:-1]) == FALLBACK
    assert ngram._discounts([*counts, *[3] * 7]) == FALLBACK, "the second would be below zero"
    assert ngram._discounts([]) == FALLBACK


def test_discounts_are_estimated_where_there_is_text() -> None:
    """A word seen once behind a context gives up another share than the fallback's half."""
    model = train(text(4000), 2)
    (context,) = [c for c in model.backoffs if c == ("w39",)]
    assert 10 ** model.backoffs[context] != pytest.approx(0.5, abs=0.01)
    counts = ngram._counts(text(4000), 2)
    discounts = ngram._discounts(counts[1].values())
    assert discounts != FALLBACK
    behind = [count for gram, count in counts[1].items() if gram[0] == "w39"]
    wanted = sum(discounts[min(count, 3) - 1] for count in behind) / sum(behind)
    assert 10 ** model.backoffs[context] == pytest.approx(wanted)


def test_it_expects_the_text_that_it_has_seen() -> None:
    sentences = text()
    kept, held = held_out(sentences)
    found = [train(kept, order).perplexity(held) for order in (1, 2, 3)]
    assert found[1] < 0.9 * found[0]
    assert found[2] < 1.1 * found[1]
    shuffled = [random.Random(1).sample(words, len(words)) for words in held]
    assert train(kept, 3).perplexity(shuffled) > 1.2 * found[2]


def test_perplexity_by_hand() -> None:
    model = train(SMALL, 2)
    value = 0.6 * (0.5 * 0.1) * 0.3  # `<s> a`, back off to `<unk>`, `</s>` behind `<unk>`
    assert model.perplexity([["a", "zebra"]]) == pytest.approx(value ** (-1 / 3))
    twice = model.perplexity([["a", "zebra"], ["a", "zebra"]])
    assert twice == pytest.approx(value ** (-1 / 3))
    assert math.isnan(model.perplexity([]))


def test_contexts() -> None:
    model = train(SMALL, 3)
    assert model.start() == (BEGIN,)
    assert model.score((BEGIN,), "a")[1] == (BEGIN, "a")
    assert model.score((BEGIN, "a"), "b")[1] == ("a", "b")
    assert model.score(("x", BEGIN, "a"), "b") == model.score((BEGIN, "a"), "b")
    assert model.score(("a",), "zebra")[1] == ("a", UNKNOWN)
    one = train(SMALL, 1)
    assert one.start() == ()
    assert one.score(("a",), "b") == (one.logs["b",], ())
    assert model.knows("a")
    assert not any(model.knows(word) for word in ("zebra", UNKNOWN, BEGIN, END, ""))


def test_the_words_ahead() -> None:
    long = "z" * 40
    model = train([["lake", "lamp"], ["lamp", "lid"], [long]], 2)
    assert model.ahead("la") == model.ahead("lamp") == model.logs["lamp",] > model.logs["lake",]
    assert model.ahead("lake") == model.logs["lake",]
    assert model.ahead("l") == model.logs["lamp",]
    assert model.ahead("z" * 32) == model.ahead(long) == model.logs[long,]
    assert max(map(len, model._ahead)) == 32
    assert [model.ahead(x) for x in ("lakes", "a", "<", "<unk>", "</s>")] == [None] * 5


@pytest.mark.parametrize("sentences", [[], [[], []]], ids=["none", "empty"])
def test_no_words(sentences: list[list[str]]) -> None:
    with pytest.raises(DistilkitError, match="the text holds no words"):
        train(sentences)


@pytest.mark.parametrize("mark", [BEGIN, END, UNKNOWN])
def test_marks_are_not_words(mark: str) -> None:
    with pytest.raises(DistilkitError, match=f"the text holds the word `{mark}`") as caught:
        train([["a"], ["b", mark]])
    assert caught.value.hint == f"take `{mark}` out of the text"


def test_what_is_held_out() -> None:
    sentences = [[f"w{place}"] for place in range(2000)]
    kept, held = held_out(sentences * 2)
    assert sorted(kept + held) == sorted(sentences * 2)
    assert 300 < len(held) < 500
    assert not {words[0] for words in kept} & {words[0] for words in held}


# ------------------------------------------------------------------------------------ ARPA files


def arpa(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "lm.arpa"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
@pytest.mark.parametrize("order", [1, 3])
def test_written_and_read(tmp_path: Path, name: str, order: int) -> None:
    model = train([*text(), ["größe", "日本"]], order)
    write(model, tmp_path / name)
    again = read(tmp_path / name)
    assert again.order == order
    assert again.logs == pytest.approx(model.logs, abs=1e-6)
    assert again.backoffs == pytest.approx(model.backoffs, abs=1e-6)
    assert again.knows("größe")
    assert total(again, (BEGIN,)) == pytest.approx(1, abs=1e-4)
    assert (tmp_path / name).read_bytes().startswith(b"\x1f\x8b") == name.endswith(".gz")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_equal_models_make_equal_files(tmp_path: Path) -> None:
    for name in ("a.gz", "b.gz"):
        write(train(SMALL, 2), tmp_path / name)
    packed = (tmp_path / "a.gz").read_bytes()
    assert packed == (tmp_path / "b.gz").read_bytes()
    assert packed[4:8] == bytes(4), "no time"
    assert gzip.decompress(packed).decode() == ARPA


def test_a_word_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(DistilkitError, match=r"is not Unicode: '.*\\udc80'"):
        write(train([["a\udc80"]], 1), tmp_path / "lm.arpa")
    assert list(tmp_path.iterdir()) == []


KENLM = ARPA.replace("-1\t<unk>\n", "-1\t<unk>\t0\n").replace("</s>\n", "</s>\t0\n", 1)
SRILM = "\n" + ARPA.replace("ngram 1=6", "ngram 1=5").replace("-1\t<unk>\n", "")
IRSTLM = "comment\n" + ARPA.replace("ngram 1=6", "ngram  1=         6").replace(
    "<unk>", "<UNK>"
).replace("\t", "  ")


@pytest.mark.parametrize(
    ("content", "unknown"),
    [
        (ARPA, -1.0),
        (KENLM, -1.0),
        (SRILM, NEVER),
        (IRSTLM, -1.0),
        (ARPA.replace("\n", "\r\n"), -1.0),
        (ARPA.replace("-1\t<unk>", "-inf\t<unk>"), NEVER),
        (ARPA.replace("-1\t<unk>", "-100\t<unk>"), NEVER),
        (ARPA + "anything behind the end\n", -1.0),
    ],
    ids=["ours", "kenlm", "srilm", "irstlm", "crlf", "inf", "-100", "behind"],
)
def test_files_of_other_tools(tmp_path: Path, content: str, unknown: float) -> None:
    model, ours = read(arpa(tmp_path, content)), train(SMALL, 2)
    assert model.order == 2
    assert model.score((), "zebra") == (unknown, (UNKNOWN,))
    # `</s>` has no weight in our files, 0 in KenLM's: the same.
    assert model.score(("b",), "zebra")[0] == pytest.approx(math.log10(0.5) + unknown, abs=1e-6)
    assert model.score((END,), "a")[0] == pytest.approx(math.log10(0.2), abs=1e-6)
    for words in (["a", "b"], ["c", "a", "a"], []):
        assert model.sentence(words) == pytest.approx(ours.sentence(words), abs=1e-5)


def test_a_weight_above_one_and_a_rounded_one(tmp_path: Path) -> None:
    """Katz smoothing gives weights above 1; rounding gives probabilities of 1 and a little."""
    content = ARPA.replace("-1\t<unk>", "0.0000004\t<unk>").replace(
        "-99\t<s>\t-0.30103", "-99\t<s>\t0.25"
    )
    model = read(arpa(tmp_path, content))
    assert model.logs[UNKNOWN,] == 0
    assert model.score((BEGIN,), "b")[0] == pytest.approx(0.25 + math.log10(0.2), abs=1e-6)


def test_lower_n_grams_may_be_pruned(tmp_path: Path) -> None:
    content = "\\data\\\nngram 1=2\nngram 2=0\nngram 3=1\n\\1-grams:\n-1 a -0.5\n-2 b\n\\2-grams:\n"
    model = read(arpa(tmp_path, content + "\\3-grams:\n-0.1 a a b\n\\end\\\n"))
    assert model.score(("a", "a"), "b") == (-0.1, ("a", "b"))
    assert model.score(("b", "a"), "b") == (-2.5, ("a", "b"))


DAMAGED = {
    "no head": ("not a model\n", 1, "the file has no `\\data\\`"),
    "empty": ("", 0, "the file has no `\\data\\`"),
    "cut": (ARPA[:-7], 18, "the file ends before `\\end\\`"),
    "cut in a line": (ARPA[: ARPA.index("\ta c")], 17, "an n-gram of order 2 does not have 1 fields"),
    "a count": (ARPA.replace("ngram 2=5", "ngram 2=6"), 20, "5 n-grams of order 2, but the head says 6"),
    "the first count": (ARPA.replace("1=6", "1=7"), 13, "6 n-grams of order 1, but the head says 7"),
    "counts in disorder": (ARPA.replace("ngram 1=6\n", ""), 2, "`ngram 1=` was expected"),
    "no counts": (ARPA.replace("ngram 1=6\nngram 2=5\n", ""), 3, "the head has no `ngram 1=`"),
    "a section less": (ARPA.replace("\\2-grams:", ""), 14, "`<s>` is there twice"),
    "a section more": (ARPA.replace("ngram 2=5\n", ""), 12, "the head has no `ngram 2=`"),
    "another section": (ARPA.replace("\\1-", "\\2-"), 5, "`\\1-grams:` was expected"),
    "nothing": ("\\data\\\n\n\\end\\\n", 3, "the head has no `ngram 1=`"),
    "no sections": ("\\data\\\nngram 1=1\n\\end\\\n", 3, "`\\1-grams:` was expected"),
    "a section missing at the end": ("\\data\\\nngram 1=1\nngram 2=1\n\\1-grams:\n-1 a\n\\end\\\n", 6, "`\\2-grams:` was expected"),
    "a word": (ARPA.replace("-1\t<unk>", "x\t<unk>"), 6, "`x` is not a logarithm"),
    "nan": (ARPA.replace("-1\t<unk>", "nan\t<unk>"), 6, "`nan` is not a logarithm"),
    "a weight": (ARPA.replace("a\t-0.30103", "a\tinf"), 8, "`inf` is not a logarithm"),
    "above one": (ARPA.replace("-1\t<unk>", "0.5\t<unk>"), 6, "0.5 is not the logarithm of a probability"),
    "twice": (ARPA.replace("c </s>", "b </s>"), 18, "`b </s>` is there twice"),
    "long": (ARPA.replace("<unk>", "x" * (1 << 16)), 6, "the line is too long"),
    "latin-1": (ARPA.replace("<unk>", "é").encode("latin-1"), 6, "can't decode byte 0xe9"),
    "kenlm's binary": (b"mmap lm http://kheafield.com/code format version 5\n\0\1", 1, "KenLM's binary form"),
    "nothing but lines": (b"\n" * 1_000_002, 1_000_001, "1000000 lines without an n-gram"),
    "gzip cut": (gzip.compress(ARPA.encode())[:14], 0, "Compressed file ended"),
    "gzip damaged": (gzip.compress(b"")[:10] + b"\xff" * 30, 0, "Error -3"),
    "gzip checksum": (gzip.compress(ARPA.encode())[:-8] + b"\0" * 8, 20, "CRC check failed"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    content, line, problem = DAMAGED[name]
    path = arpa(tmp_path, content)
    with pytest.raises(DistilkitError) as caught:
        read(path)
    start = f"`{path}` is not an ARPA file: line {line}: "
    assert caught.value.problem.startswith(start)
    assert problem in caught.value.problem[len(start) :]
    assert caught.value.hint == "distilkit lm TEXT --out lm.arpa"


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DistilkitError, match=r"^no language model `.*lm\.arpa`: no such file"):
        read(tmp_path / "lm.arpa")
    with pytest.raises(DistilkitError, match=r"^cannot read `.*`: Is a directory"):
        read(tmp_path)


# ------------------------------------------------------------------------------------ the command


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `distilkit lm` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["distilkit", "lm", *map(str, arguments)])
        code: int | str | None = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        output = capsys.readouterr()
        return int(code or 0), output.out, output.err

    return call


def written(path: Path, sentences: Sequence[Sequence[str]]) -> Path:
    path.write_text("".join(" ".join(words) + "\n" for words in sentences), encoding="utf-8")
    return path


def test_lm_of_a_text_file(run: Run, tmp_path: Path) -> None:
    sentences = text()
    written(tmp_path / "a.txt", [*sentences[:300], []])
    written(tmp_path / "b.txt", sentences[300:])
    code, out, err = run("a.txt", "b.txt", "--out", "deep/down/lm.arpa")
    assert (code, out) == (0, "deep/down/lm.arpa\n"), err
    assert read(tmp_path / "deep" / "down" / "lm.arpa").logs == pytest.approx(
        train(sentences).logs, abs=1e-6
    )
    kept, held = held_out(sentences)
    assert f"{train(kept).perplexity(held):.1f}" in err
    for count in train(sentences).sizes():
        assert f" {count:,}\n" in err


def test_lm_as_json(run: Run, tmp_path: Path) -> None:
    sentences = [*text(), ["never", "again"]]
    written(tmp_path / "a.txt", sentences)
    code, out, err = run("a.txt", "--out", "lm.arpa.gz", "--order", 2, "--json")
    found = json.loads(out)
    kept, held = held_out(sentences)
    model = train(kept, 2)
    held_words = [word for words in held for word in words]
    assert code == 0, err
    assert found == {
        "output": "lm.arpa.gz",
        "sentences": len(sentences),
        "words": sum(map(len, sentences)),
        "vocabulary": 42,
        "ngrams": train(sentences, 2).sizes(),
        "perplexity": round(model.perplexity(held), 2),
        "unknown": round(sum(not model.knows(x) for x in held_words) / len(held_words), 4),
        "not_writable": [],
        "skipped": [],
    }
    assert (tmp_path / "lm.arpa.gz").read_bytes().startswith(b"\x1f\x8b")
    assert read(tmp_path / "lm.arpa.gz").order == 2


def test_lm_of_a_text_too_short_to_hold_out(run: Run, tmp_path: Path) -> None:
    written(tmp_path / "a.txt", [["a", "b"]] * 20)
    code, out, err = run("a.txt", "--out", "lm.arpa", "--order", 2)
    assert (code, out) == (0, "lm.arpa\n")
    assert "not measured" in err
    assert json.loads(run("a.txt", "--out", "other.arpa", "--json")[1])["perplexity"] is None


def test_lm_in_the_tokenizers_form(run: Run, tmp_path: Path) -> None:
    settings = config.Text(case="upper")
    letters = ["the cat sat on a mat, don't ask"]
    tokenizers.save(tokenizers.train(letters, config.Tokenizer(), settings), tmp_path / "tokens")
    (tmp_path / "a.txt").write_text("The cat, it's!\n — \nA fox; the zoo\n")
    code, _, err = run("a.txt", "--out", "lm.arpa", "--tokenizer", "tokens", "--order", 1)
    assert code == 0, err
    model = read(tmp_path / "lm.arpa")
    wanted = {"THE", "CAT", "IT'S", "A", "FOX", "ZOO", BEGIN, END, UNKNOWN}
    assert {gram[0] for gram in model.logs} == wanted
    assert "the tokenizer in tokens cannot write `FOX`, `IT'S`, `ZOO`\n" in err
    _, out, _ = run("a.txt", "--out", "b.arpa", "--tokenizer", "tokens", "--json")
    assert json.loads(out)["not_writable"] == ["FOX", "IT'S", "ZOO"]
    run("a.txt", "--out", "plain.arpa", "--order", 1)
    assert read(tmp_path / "plain.arpa").knows("it's!")


def test_lm_names_twenty_words_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    tokens = tokenizers.train(["abc"], config.Tokenizer(), config.Text())
    tokenizers.save(tokens, tmp_path / "tokens")
    written(tmp_path / "a.txt", [["abc", *(f"x{place:02d}" for place in range(23))]])
    _, _, err = run("a.txt", "--out", "lm.arpa", "--tokenizer", "tokens")
    assert "`x00`, " in err
    assert ", `x19` and 3 more\n" in err


def test_lm_of_transcribed_data(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "metadata.csv").write_text(
        "file_name,words,other\na.wav,one two,x\nb.wav,two three,y\nc.wav,,z\n"
    )
    code, _, err = run("data", "--out", "lm.arpa", "--text-column", "words", "--order", 2)
    assert code == 0, err
    model = read(tmp_path / "lm.arpa")
    assert {gram[0] for gram in model.logs if len(gram) == 1} == {
        "one", "two", "three", BEGIN, END, UNKNOWN,
    }  # fmt: skip
    assert "c.wav" in err, "what has no text is said"
    _, out, _ = run("data", "--out", "b.arpa", "--text-column", "words", "--json")
    assert [Path(item["path"]).name for item in json.loads(out)["skipped"]] == ["c.wav"]


def test_lm_refuses(run: Run, tmp_path: Path) -> None:
    written(tmp_path / "a.txt", [["a", "<s>"]])
    (tmp_path / "there").write_text("mine")
    cases = [
        (
            ("nowhere.txt", "--out", "there"),
            "`there` already exists",
            "another --out, or remove it first",
        ),
        (("a.txt", "--out", "x"), "the text holds the word `<s>`", "take `<s>` out of the text"),
        (("nowhere.txt", "--out", "x"), "`nowhere.txt`", None),
        (
            ("a.txt", "--out", "x", "--tokenizer", "no"),
            "no tokenizer in `no`",
            "distilkit tokenizer",
        ),
    ]
    for arguments, problem, hint in cases:
        code, out, err = run(*arguments)
        assert (code, out) == (1, "")
        assert problem in err
        assert hint is None or f"hint: {hint}" in err
    assert (tmp_path / "there").read_text() == "mine"
    written(tmp_path / "a.txt", [["a"]])
    code, _, err = run("a.txt", "--out", "there/x")
    assert code == 1
    assert "cannot make `there`: File exists" in err
    assert run("a.txt", "--out", "x", "--order", 7)[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "there"]
