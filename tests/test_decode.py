"""Decoding: the search against all paths, the language model's part, times of words, subtitles."""

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import jiwer
import numpy as np
import pytest

from distilkit import config, decode, ngram
from distilkit.decode import (
    Search,
    beam,
    decoded,
    following,
    greedy,
    words,
)
from distilkit.tokenizers import Tokenizer, train


@dataclass
class Tokens:
    """A tokenizer, as far as decoding knows it."""

    tokens: list[str]
    blank: int = 0

    def decode(self, ids: Sequence[int], *, frames: bool) -> str:
        assert not frames
        whole = "".join(self.tokens[token] for token in ids)
        return " ".join(whole.replace("|", " ").replace("▁", " ").split())


def text(ids: Sequence[int], tokenizer: Tokens) -> str:
    return tokenizer.decode(ids, frames=False)


LETTERS = Tokens(["<pad>", "a", "b", "|"])
PIECES = Tokens(["a", "▁b", "<pad>", "▁"], blank=2)
ALPHABET = Tokens(["<pad>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz"])
WIDE = 10_000
Ids = tuple[int, ...]


def drawn(seed: int, frames: int = 6, tokens: int = 4, sharp: float = 1.5) -> np.ndarray:
    """Random posteriors, as logarithms."""
    logits_TK = np.random.default_rng(seed).normal(0, sharp, (frames, tokens))
    return (logits_TK - np.log(np.exp(logits_TK).sum(1, keepdims=True))).astype(np.float32)


def said(spelled: str, tokenizer: Tokens = ALPHABET, sure: float = 0.9) -> np.ndarray:
    """Posteriors of which each frame prefers the token of a letter; `_` is the blank, ` ` the `|`."""
    names = {"_": "<pad>", " ": "|"}
    count = len(tokenizer.tokens)
    share_TK = np.full((len(spelled), count), (1 - sure) / (count - 1))
    for frame, letter in enumerate(spelled):
        share_TK[frame, tokenizer.tokens.index(names.get(letter, letter))] = sure
    return np.log(share_TK).astype(np.float32)


def joined(path: Ids, blank: int) -> Ids:
    return tuple(token for token, _ in itertools.groupby(path) if token != blank)


def all_paths(logprobs_TK: np.ndarray, blank: int) -> dict[Ids, float]:
    """The probability of every sequence of tokens, by trying every path."""
    found: dict[Ids, float] = defaultdict(float)
    frames, tokens = logprobs_TK.shape
    for path in itertools.product(range(tokens), repeat=frames):
        value = sum(float(row_K[token]) for row_K, token in zip(logprobs_TK, path, strict=True))
        found[joined(path, blank)] += math.exp(value)
    return found


# ---------------------------------------------------------------------------------------- greedy


def test_greedy_joins_repeats_and_drops_blanks() -> None:
    found = greedy(said("__hhe_l_lll_oo_"), ALPHABET)
    assert found == [ALPHABET.tokens.index(letter) for letter in "hello"]
    assert all(type(token) is int for token in found)
    assert greedy(said("___"), ALPHABET) == []
    assert greedy(said("aa"), ALPHABET) == [3]
    assert greedy(said("a")[:0], ALPHABET) == []
    assert greedy(drawn(0, 6, 4), PIECES) == list(joined(tuple(drawn(0).argmax(1)), 2))


# ------------------------------------------------------------------------------------------ beam


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("tokenizer", [LETTERS, PIECES], ids=["letters", "pieces"])
def test_a_wide_beam_finds_what_trying_all_paths_finds(tokenizer: Tokens, seed: int) -> None:
    logprobs_TK = drawn(seed)
    wanted = all_paths(logprobs_TK, tokenizer.blank)
    found = beam(logprobs_TK, tokenizer, width=WIDE, bonus=3.0)
    assert tuple(found) == max(wanted, key=lambda ids: wanted[ids])


def test_paths_are_summed() -> None:
    """The best path is blank twice (0.36); `a` has three paths that together have 0.64."""
    logprobs_TK = np.log(np.array([[0.6, 0.4], [0.6, 0.4]]))
    tokenizer = Tokens(["<pad>", "a"])
    assert greedy(logprobs_TK, tokenizer) == []
    assert beam(logprobs_TK, tokenizer) == [1]


SENTENCES = [["a", "b"], ["b", "ab", "b"], ["ab"], ["a", "a"], ["aa"], ["b", "ba"]]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("ends", [True, False], ids=["ends", "goes on"])
@pytest.mark.parametrize("tokenizer", [LETTERS, PIECES], ids=["letters", "pieces"])
def test_a_wide_beam_with_a_language_model_too(tokenizer: Tokens, seed: int, ends: bool) -> None:
    model = ngram.train(SENTENCES, 3)
    weight, bonus = [(0.5, 1.0), (2.0, 0.5), (0.2, 3.0)][seed % 3]
    context = [None, ("b", "a"), ()][seed // 3 % 3]
    logprobs_TK = drawn(100 + seed, sharp=1.0)

    def worth(ids: Ids, share: float) -> float:
        now = (ngram.BEGIN,) if context is None else context
        total = math.log(share)
        for word in text(ids, tokenizer).split():
            value, now = model.score(now, word)
            letters = 0 if (word,) in model.logs else len(word)
            total += weight * math.log(10) * (max(value, -10) - letters) + bonus
        if ends:
            total += weight * math.log(10) * model.score(now, ngram.END)[0]
        return total

    shares = all_paths(logprobs_TK, tokenizer.blank)
    wanted = max(shares, key=lambda ids: worth(ids, shares[ids]))
    options: dict[str, Any] = {"weight": weight, "bonus": bonus, "context": context, "ends": ends}
    assert tuple(beam(logprobs_TK, tokenizer, model, width=WIDE, **options)) == wanted


def test_the_brute_force_cases_differ_from_greedy() -> None:
    """Otherwise the tests above would say little."""
    model = ngram.train(SENTENCES, 3)
    cases = [(drawn(seed), drawn(100 + seed, sharp=1.0)) for seed in range(12)]
    assert sum(greedy(x, LETTERS) != beam(x, LETTERS) for x, _ in cases) >= 3
    assert sum(beam(x, LETTERS) != beam(x, LETTERS, model) for _, x in cases) >= 3


def test_a_narrower_beam_is_no_better() -> None:
    worse = []
    for width in (1, 8, 64):
        found = []
        for seed in range(20):
            shares = all_paths(drawn(seed, sharp=0.7), 0)
            ids = beam(drawn(seed, sharp=0.7), LETTERS, width=width)
            found.append(shares[tuple(ids)] / max(shares.values()))
        assert max(found) == 1
        worse.append(sum(share < 1 for share in found))
    assert worse[0] > worse[1] > worse[2] == 0


def textbook(
    logprobs_TK: np.ndarray,
    tokenizer: Tokens,
    width: int,
    worth: Callable[[Ids], float],
    whole: Callable[[Ids], float],
) -> Ids:
    """Prefix beam search with a dictionary of prefixes; new ones have the rank of their parents."""
    kept: dict[Ids, tuple[float, float]] = {(): (1.0, 0.0)}
    for row_K in np.exp(logprobs_TK.astype(np.float64)):
        grown: dict[Ids, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for ids, (silent, going) in kept.items():
            for token, share in enumerate(row_K):
                if token == tokenizer.blank:
                    grown[ids][0] += (silent + going) * share
                elif ids[-1:] == (token,):
                    grown[ids][1] += going * share
                    grown[*ids, token][1] += silent * share
                else:
                    grown[*ids, token][1] += (silent + going) * share
        rank = {
            ids: math.log(sum(shares)) + worth(ids if ids in kept else ids[:-1])
            for ids, shares in grown.items()
            if sum(shares)
        }
        best = sorted(rank, key=lambda ids: -rank[ids])[:width]
        kept = {ids: (grown[ids][0], grown[ids][1]) for ids in best}
    return max(kept, key=lambda ids: math.log(sum(kept[ids])) + whole(ids))


@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_a_narrow_beam_is_the_textbooks(width: int) -> None:
    """Also where a prefix is dropped and grown anew while a longer one stays."""
    for seed in range(40):
        logprobs_TK = drawn(seed, frames=12, sharp=0.7)
        wanted = textbook(logprobs_TK, LETTERS, width, lambda _: 0.0, lambda _: 0.0)
        assert tuple(beam(logprobs_TK, LETTERS, width=width)) == wanted


@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_words_ahead_rank_the_prefixes(width: int) -> None:
    """With one-letter tokens that each are a word, what a prefix is worth is easily said."""
    tokenizer = Tokens(["<pad>", "▁a", "▁b", "▁c"])
    model = ngram.train([["a", "b"], ["b", "b", "a"], ["a", "b"], ["b", "a", "a", "b"]], 2)

    def worth(ids: Ids, ahead: int = 1) -> float:
        """Words count in their context, but the last one, which has not ended, without one."""
        total, now = 0.0, model.start()
        for place, word in enumerate(text(ids, tokenizer).split()):
            alone = model.score((), word)[0]
            value, now = model.score(now, word)
            value = alone if place >= len(ids) - ahead else value
            total += 1.5 * math.log(10) * (value - (word == "c")) + 0.7
        return total

    for seed in range(40):
        logprobs_TK = drawn(seed, frames=12, sharp=0.7)
        wanted = textbook(logprobs_TK, tokenizer, width, worth, lambda ids: worth(ids, ahead=0))
        options = {"width": width, "weight": 1.5, "bonus": 0.7}
        assert tuple(beam(logprobs_TK, tokenizer, model, **options, ends=False)) == wanted


def test_no_frames_and_nothing_but_blanks() -> None:
    model = ngram.train(SENTENCES, 2)
    for lm in (None, model):
        assert beam(said("a")[:0], ALPHABET, lm) == []
        assert beam(said("____", sure=0.999999), ALPHABET, lm) == []


def lexicon(*sentences: str) -> ngram.NGram:
    return ngram.train([line.split() for line in sentences], 2)


def test_the_language_model_chooses_among_words() -> None:
    model = lexicon("the cat sat", "the cat ran", "a cart came", "a cart went")
    logprobs_TK = said("the ca_t")
    frame = 6  # the blank, or an `r`
    logprobs_TK[frame, ALPHABET.tokens.index("r")] = math.log(0.45)
    logprobs_TK[frame, 0] = math.log(0.45)
    assert text(beam(logprobs_TK, ALPHABET, model), ALPHABET) == "the cat"
    logprobs_TK[:4] = said("a_ _")
    assert text(beam(logprobs_TK, ALPHABET, model), ALPHABET) == "a cart"


def test_a_word_that_the_model_lacks_is_possible() -> None:
    model = lexicon("the cat sat", "the cat ran")
    logprobs_TK = said("the emu sat", sure=0.99)
    assert text(beam(logprobs_TK, ALPHABET, model), ALPHABET) == "the emu sat"
    logs = {("the",): -0.5, ("sat",): -0.5, ("</s>",): -0.5}
    nothing = ngram.NGram(order=1, logs=logs, backoffs={})  # without `<unk>`
    assert text(beam(logprobs_TK, ALPHABET, nothing, weight=0.5), ALPHABET) == "the emu sat"


def cab_or_cat() -> np.ndarray:
    logprobs_TK = said("the cat")
    logprobs_TK[6, ALPHABET.tokens.index("b")] = math.log(0.8)
    logprobs_TK[6, ALPHABET.tokens.index("t")] = math.log(0.1)
    return logprobs_TK


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("TRIED", 2, "the cat"),
        ("TRIED", 1, "the cab"),
        ("LEAST", math.log(0.09), "the cat"),
        ("LEAST", math.log(0.11), "the cab"),
    ],
)
def test_unlikely_tokens_are_not_tried(
    monkeypatch: pytest.MonkeyPatch, name: str, value: float, found: str
) -> None:
    monkeypatch.setattr(decode, name, value)
    ids = beam(cab_or_cat(), ALPHABET, lexicon("the cat sat", "the cat ran"))
    assert text(ids, ALPHABET) == found


def test_a_word_that_the_model_lacks_costs_more_than_any_it_has() -> None:
    model = lexicon("the cat sat", "the cat ran")
    logprobs_TK = cab_or_cat()
    assert text(beam(logprobs_TK, ALPHABET), ALPHABET) == "the cab"
    assert text(beam(logprobs_TK, ALPHABET, model), ALPHABET) == "the cat"
    assert text(beam(logprobs_TK, ALPHABET, model, weight=0.0), ALPHABET) == "the cab"


def noisy(sentence: str, seed: int) -> np.ndarray:
    """Posteriors of a sentence, a frame for each letter and one or two blanks, some letters wrong."""
    rng = np.random.default_rng(seed)
    rows = []
    for letter in sentence:
        for favourite in [0] * int(rng.integers(1, 3)) + [ALPHABET.tokens.index(letter)]:
            row_K = rng.normal(0, 1, len(ALPHABET.tokens))
            row_K[favourite] += 6
            if favourite and rng.random() < 0.15:
                row_K[rng.integers(2, len(row_K))] += rng.uniform(3, 8)
            rows.append(row_K - math.log(np.exp(row_K).sum()))
    return np.array(rows)


@pytest.mark.parametrize("weight", [0.3, 0.5, 1.0])
def test_a_language_model_mends_most_errors(weight: float) -> None:
    """Without a look at the words ahead it makes more errors than it mends: words run together."""
    rng = random.Random(0)
    known = ["".join(rng.choices("aeioubdfghklmnprst", k=rng.randint(2, 7))) for _ in range(300)]
    draw = [" ".join(rng.choices(known, k=8)) for _ in range(220)]
    model, said = lexicon(*draw[20:]), draw[:20]
    heard = [noisy(sentence.replace(" ", "|"), seed) for seed, sentence in enumerate(said)]
    plain = [text(greedy(rows_TK, ALPHABET), ALPHABET) for rows_TK in heard]
    better = [text(beam(rows_TK, ALPHABET, model, weight=weight), ALPHABET) for rows_TK in heard]
    assert jiwer.wer(said, plain) > 0.25
    assert jiwer.wer(said, better) < 0.06


def test_what_is_asked_for_is_searched() -> None:
    model, logprobs_TK = lexicon("the cat sat", "the cat ran"), cab_or_cat()
    assert decoded(logprobs_TK, ALPHABET) == greedy(logprobs_TK, ALPHABET)
    for search in (Search(), Search(model=model), Search(model=model, weight=0.0, bonus=2.0)):
        assert decoded(logprobs_TK, ALPHABET, search) == beam(
            logprobs_TK, ALPHABET, search.model, weight=search.weight, bonus=search.bonus
        )
    words_TK = said("in_to")
    words_TK[2, ALPHABET.tokens.index("|")] = math.log(0.05)
    many = Search(model=lexicon("in to", "into"), weight=0.1, bonus=5.0)
    assert text(decoded(words_TK, ALPHABET, many), ALPHABET) == "in to"
    paths_TK = np.log(np.array([[0.6, 0.4], [0.6, 0.4]]))
    assert decoded(paths_TK, Tokens(["<pad>", "a"]), Search(width=8)) == [1]
    assert decoded(paths_TK, Tokens(["<pad>", "a"]), Search(width=1)) == []
    options: dict[str, Any] = {"context": ("b", "a"), "ends": False}
    other = ngram.train(SENTENCES, 3)
    for seed in range(10):
        assert decoded(drawn(seed), LETTERS, Search(model=other, weight=3.0), **options) == beam(
            drawn(seed), LETTERS, other, weight=3.0, **options
        )


def test_the_bonus_is_for_words() -> None:
    model = lexicon("in to", "into")
    logprobs_TK = said("in_to")
    logprobs_TK[2, ALPHABET.tokens.index("|")] = math.log(0.05)
    few = beam(logprobs_TK, ALPHABET, model, weight=0.1, bonus=0.0)
    many = beam(logprobs_TK, ALPHABET, model, weight=0.1, bonus=5.0)
    assert [text(ids, ALPHABET) for ids in (few, many)] == ["into", "in to"]


@pytest.mark.parametrize(("first", "second"), [("abe", "ba"), ("eve", "ca")])
def test_a_long_recording_piece_by_piece(first: str, second: str) -> None:
    """The words of one piece decide between two in the next, as they do in one search."""
    model = lexicon("abe ba", "eve ca", "abe ba", "eve ca")
    piece = said("ba")
    piece[0, ALPHABET.tokens.index("c")] = piece[0, ALPHABET.tokens.index("b")] = math.log(0.45)
    begun = beam(said(first), ALPHABET, model, ends=False)
    context = following(begun, ALPHABET, model)
    assert context == (first,)
    assert text(beam(piece, ALPHABET, model, context=context), ALPHABET) == second
    whole = beam(np.concatenate([said(f"{first} "), piece]), ALPHABET, model)
    assert text(whole, ALPHABET) == f"{first} {second}"


def test_the_context_of_a_piece() -> None:
    model = ngram.train(SENTENCES, 3)
    ids = [ALPHABET.tokens.index(name) for name in "ab|b||x|"[:-1]]
    assert following(ids, ALPHABET, model) == ("b", ngram.UNKNOWN)
    assert following(ids[:2], ALPHABET, model) == (ngram.BEGIN, "ab")
    assert following([], ALPHABET, model) == (ngram.BEGIN,)
    assert following([2], ALPHABET, model, ("a", "b")) == ("a", "b")
    assert following(ids[:2], ALPHABET, model, ("a", "b")) == ("b", "ab")


# ----------------------------------------------------------------------------------------- words


def any_ids(seed: int, tokenizer: Any) -> list[int]:
    """Tokens at random, the one that ends or begins words more often than others."""
    rng = random.Random(seed)
    marks = [place for place, name in enumerate(tokenizer.tokens) if name in ("|", "▁")]
    ids = [place for place in range(len(tokenizer.tokens)) if place != tokenizer.blank]
    return [rng.choice(marks if marks and rng.random() < 0.3 else ids) for _ in range(12)]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    """Real ones."""
    lines = ["hello world, it is all well that ends well", "aa bb ab ba", "tell bess to call anna"]
    return {
        kind: train(lines * 3, config.Tokenizer(kind=kind), config.Text())
        for kind in get_args(config.TokenizerKind)
    }


@pytest.mark.parametrize("kind", get_args(config.TokenizerKind))
def test_words_are_those_of_the_tokenizers_text(
    tokenizers: dict[str, Tokenizer], kind: config.TokenizerKind
) -> None:
    tokenizer = tokenizers[kind]
    model = ngram.train([["hello", "world"]], 6)
    for seed in range(60):
        ids = any_ids(seed, tokenizer)
        logprobs_TK = drawn(seed, 30, len(tokenizer))
        said = tokenizer.decode(ids, frames=False).split()
        assert [word.text for word in words(logprobs_TK, ids, tokenizer)] == said
        known = [word if model.knows(word) else ngram.UNKNOWN for word in said]
        assert following(ids, tokenizer, model) == tuple([ngram.BEGIN, *known][-5:])


@pytest.mark.parametrize("kind", get_args(config.TokenizerKind))
def test_real_tokenizers_are_decoded(
    tokenizers: dict[str, Tokenizer], kind: config.TokenizerKind
) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode("tell anna all is well")
    path = [token for each in ids for token in (tokenizer.blank, each, each)]
    logprobs_TK = np.full((len(path), len(tokenizer)), -9.0)
    logprobs_TK[np.arange(len(path)), path] = -0.01
    for found in (
        greedy(logprobs_TK, tokenizer),
        beam(logprobs_TK, tokenizer),
        beam(logprobs_TK, tokenizer, ngram.train([["tell", "ana"]], 2)),
    ):
        assert found == ids
        assert tokenizer.decode(found, frames=False) == "tell anna all is well"


def test_times_of_words() -> None:
    """Frames of 20 ms: `hello` is in 2 to 8, `oo` in 11 to 14."""
    logprobs_TK = said("__hel_llo_ oo_o__")
    found = words(logprobs_TK, greedy(logprobs_TK, ALPHABET), ALPHABET)
    assert [(word.text, word.start, word.end) for word in found] == [
        ("hello", 0.04, 0.18),
        ("oo", 0.22, 0.30),
    ]
    later = words(logprobs_TK, greedy(logprobs_TK, ALPHABET), ALPHABET, offset=61.5)
    assert [(word.start, word.end) for word in later] == [(61.54, 61.68), (61.72, 61.8)]


def test_times_of_subwords() -> None:
    """A token that spells nothing (`▁` alone) is no part of the word that it begins."""
    logprobs_TK = np.log(np.full((9, 4), 0.02))
    for frame, token in enumerate([2, 3, 2, 0, 0, 1, 2, 0, 2]):
        logprobs_TK[frame, token] = math.log(0.94)
    found = words(logprobs_TK, [3, 0, 1, 0], PIECES)
    assert [(word.text, word.start, word.end) for word in found] == [
        ("a", 0.06, 0.1),
        ("ba", 0.1, 0.16),
    ]


@pytest.mark.parametrize(
    ("frames", "start", "end"),
    [
        ("h" + "_" * 30 + "ello", 0.62, 0.70),  # the first letter in doubt
        ("hell" + "_" * 30 + "o", 0.00, 0.08),
        ("h" + "_" * 29 + "ello", 0.00, 0.68),  # drawled
        ("ho" + "_" * 30 + "le", 0.64, 0.68),
        ("h" + "_" * 30 + "eel" + "_" * 40 + "o", 0.62, 0.68),
    ],
)
def test_most_letters_say_when_where_silence_parts_a_word(
    frames: str, start: float, end: float
) -> None:
    logprobs_TK = said(frames)
    (found,) = words(logprobs_TK, greedy(logprobs_TK, ALPHABET), ALPHABET)
    assert found.text == "".join(letter for letter, _ in itertools.groupby(frames) if letter != "_")
    assert (found.start, found.end) == (start, end)


def doubt(before: float, behind: float) -> np.ndarray:
    """`to`, a pause, `sea`: an `i` behind one or before the other, so likely; half a second of pause."""
    logprobs_TK = said("to _" + "_" * 30 + "_ sea")
    for frame, sure in ((3, before), (34, behind)):
        logprobs_TK[frame] = math.log(1e-9)
        logprobs_TK[frame, [0, ALPHABET.tokens.index("i")]] = np.log([1 - sure, sure])
    return logprobs_TK


def test_a_word_in_doubt_belongs_behind_a_pause() -> None:
    ids = [ALPHABET.tokens.index(letter) for letter in "to|i|sea"]

    def times(logprobs_TK: np.ndarray, *pauses: float) -> list[tuple[float, float]]:
        found = words(logprobs_TK, ids, ALPHABET, pauses=pauses)
        assert [word.text for word in found] == ["to", "i", "sea"]
        assert [(found[0].start, found[0].end), (found[2].start, found[2].end)] == ends
        return [(found[1].start, found[1].end)]

    ends = [(0.0, 0.04), (0.72, 0.78)]
    assert times(doubt(0.6, 0.01)) == [(0.06, 0.08)]
    assert times(doubt(0.6, 0.01), 0.4) == [(0.68, 0.7)]
    assert times(doubt(0.6, 0.01), 0.02, 0.1, 0.4, 0.76) == [(0.68, 0.7)]  # pauses in words, too
    assert times(doubt(0.999999, 1e-7), 0.4) == [(0.06, 0.08)]  # surely said before it
    assert times(doubt(0.01, 0.6), 0.4) == [(0.68, 0.7)]
    assert times(doubt(0.6, 0.01), 9.0) == [(0.06, 0.08)]  # none
    (only,) = words(said("_oo___"), [ALPHABET.tokens.index("o")], ALPHABET, pauses=[0.07])
    assert (only.start, only.end) == (0.02, 0.06)


def test_words_stay_in_order_wherever_pauses_are() -> None:
    rng = np.random.default_rng(0)
    moved = 0
    for seed in range(200):
        tokenizer = (LETTERS, PIECES)[seed % 2]
        frames = int(rng.integers(5, 60))
        logprobs_TK = drawn(seed, frames, sharp=float(rng.uniform(0.5, 4)))
        ids = greedy(logprobs_TK, tokenizer)
        pauses = sorted(rng.uniform(0, frames / 50, rng.integers(1, 4)))
        plain = words(logprobs_TK, ids, tokenizer)
        found = words(logprobs_TK, ids, tokenizer, pauses=pauses)
        assert [word.text for word in found] == [word.text for word in plain]
        assert all(0 <= word.start < word.end <= frames / 50 + 1e-9 for word in found)
        assert all(one.end <= other.start + 1e-9 for one, other in itertools.pairwise(found))
        moved += found != plain
    assert moved > 20


def test_confidence_is_the_mean_probability_of_the_words_frames() -> None:
    logprobs_TK = np.log(np.full((5, 4), 0.1))
    for frame, (token, sure) in enumerate([(1, 0.7), (1, 0.6), (0, 0.9), (2, 0.2), (3, 0.9)]):
        logprobs_TK[frame, token] = math.log(sure)
    (found,) = words(logprobs_TK, [1, 2, 3], LETTERS)
    assert found.text == "ab"
    assert found.confidence == pytest.approx((0.7 + 0.6 + 0.2) / 3, abs=1e-4)
    assert words(np.zeros((3, 4)), [1], LETTERS)[0].confidence == 1.0


def test_the_most_likely_path_is_taken() -> None:
    """Of all paths of the tokens, that of `forced_align` is the best."""
    for seed in range(10):
        logprobs_TK = drawn(seed, frames=7)
        ids = beam(logprobs_TK, LETTERS, width=3)
        if not text(ids, LETTERS):
            continue
        paths = [
            path for path in itertools.product(range(4), repeat=7) if joined(path, 0) == tuple(ids)
        ]
        best = max(paths, key=lambda path: logprobs_TK[np.arange(7), path].sum())
        letters = [frame for frame, token in enumerate(best) if token in (1, 2)]
        found = words(logprobs_TK, ids, LETTERS)
        assert " ".join(word.text for word in found) == text(ids, LETTERS)
        assert found[0].start == pytest.approx(letters[0] * 0.02)
        assert found[-1].end == pytest.approx((letters[-1] + 1) * 0.02)


def test_no_words() -> None:
    assert words(said("___"), [], ALPHABET) == []
    assert words(said("_ _"), [2], ALPHABET) == []
