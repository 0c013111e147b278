"""From frames to text: greedy, beam search with a language model, and times of words.

Letters in names: T frames, K tokens, N prefixes that are kept, C tokens that are tried.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from distilkit.audio import FRAME_RATE
from distilkit.ngram import END, UNKNOWN, Context, NGram
from distilkit.tokenizers import DELIMITER, SPACE, Tokenizer

if TYPE_CHECKING:
    from torchaudio.functional import TokenSpan

LogProbs = npt.NDArray[np.floating]  # (T, K), natural logarithms of probabilities
LEAST = -12.0  # natural logarithm; a token less likely than this in a frame begins nothing there
TRIED = 32  # tokens that are tried in a frame, the most likely ones
LEAST_WORD = -10.0  # logarithm (base 10); least of any word, so that every word stays possible
APART = 0.6  # seconds between two tokens; no one word is said with such a silence in it
DOUBT = 10.0  # natural logarithm; by so little a word may be likelier before a pause than behind
UNKNOWN_LETTER = -1.0  # logarithm (base 10); for each letter of a word that the model lacks


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word, when it is said (seconds), and how sure the model is of it (0 to 1)."""

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Search:
    """Beam search in place of greedy decoding; the fields are options of `beam`."""

    model: NGram | None = None
    width: int = 32
    weight: float = 0.75
    bonus: float = 2.0


# ---------------------------------------------------------------------------------------- search


def decoded(
    logprobs_TK: LogProbs,
    tokenizer: Tokenizer,
    search: Search | None = None,
    *,
    context: Context | None = None,
    ends: bool = True,
) -> list[int]:
    """The tokens of frames: by beam search, or greedy where `search` is None; as these say."""
    if search is None:
        return greedy(logprobs_TK, tokenizer)
    return beam(
        logprobs_TK,
        tokenizer,
        search.model,
        width=search.width,
        weight=search.weight,
        bonus=search.bonus,
        context=context,
        ends=ends,
    )


def greedy(logprobs_TK: LogProbs, tokenizer: Tokenizer) -> list[int]:
    """The most likely token of each frame, repeats joined and blanks dropped.

    Args:
        logprobs_TK: logarithms of the tokens' probabilities, (T, K).
        tokenizer: says which token is the blank.

    Source: Graves et al., Connectionist Temporal Classification, ICML 2006, section 3.2.
    """
    path_T = logprobs_TK.argmax(1)
    kept_T = path_T != tokenizer.blank
    kept_T[1:] &= path_T[1:] != path_T[:-1]
    return [int(token) for token in path_T[kept_T]]


def beam(
    logprobs_TK: LogProbs,
    tokenizer: Tokenizer,
    model: NGram | None = None,
    *,
    width: int = Search.width,
    weight: float = Search.weight,
    bonus: float = Search.bonus,
    context: Context | None = None,
    ends: bool = True,
) -> list[int]:
    """The most likely tokens, summed over their paths, with a language model of words if given.

    A word is scored when it ends: at the delimiter, at a token that begins the next word, and at
    the last frame. Until then the best word that begins with its letters stands for it, or else
    prefixes whose words have not ended would crowd out the others. A word that the model lacks is
    possible: it is `<unk>`, spelled letter by letter.

    A long recording is decoded piece by piece, cut between words: `context` is what `following`
    gives for the piece before, and `ends` is false for all pieces but the last.

    Args:
        logprobs_TK: logarithms of the tokens' probabilities, (T, K).
        tokenizer: says which token is the blank, and where words end.
        model: scores words; without one `weight`, `bonus`, `context` and `ends` have no effect.
        width: prefixes that are kept after each frame.
        weight: factor on the language model's logarithms.
        bonus: added for every word (natural logarithm), since a language model prefers few.
        context: words before the first frame; None at the beginning of a sentence.
        ends: whether the sentence ends with the last frame.

    Source: Hannun et al., First-Pass Large Vocabulary Continuous Speech Recognition using
    Bi-Directional Recurrent DNNs, arXiv 1408.2873, algorithm 1; look-ahead: Ortmanns, Ney and
    Eiden, Language-Model Look-Ahead for Large Vocabulary Speech Recognition, ICSLP 1996.
    """
    blank = tokenizer.blank
    tree = _Prefixes(tokenizer, model, weight, bonus, context)
    kept = [0]  # the empty prefix
    last_N = np.array([blank])
    silent_N, going_N = np.zeros(1), np.full(1, -np.inf)  # paths that end in the blank, in a token
    for row_K in np.asarray(logprobs_TK, np.float64):
        tried_C = _tried(row_K, blank)
        both_N = np.logaddexp(silent_N, going_N)
        # The same token again is the same prefix, unless a blank stands between them.
        before_NC = np.where(last_N[:, None] == tried_C, silent_N[:, None], both_N[:, None])
        grown_NC = before_NC + row_K[tried_C]
        silent_N, going_N = both_N + row_K[blank], going_N + row_K[last_N]
        _join(kept, tree, tried_C, grown_NC, going_N)
        # What has grown is ranked by what it grew from until the next frame.
        worth_N = np.array([tree.worth[prefix] for prefix in kept])
        score = np.concatenate(
            [np.logaddexp(silent_N, going_N) + worth_N, (grown_NC + worth_N[:, None]).ravel()]
        )
        best = _best(score, width)
        stays = best[best < len(kept)]
        parents, columns = np.divmod(best[best >= len(kept)] - len(kept), len(tried_C) or 1)
        new = tried_C[columns]
        silent_N = np.concatenate([silent_N[stays], np.full(len(new), -np.inf)])
        going_N = np.concatenate([going_N[stays], grown_NC[parents, columns]])
        last_N = np.concatenate([last_N[stays], new])
        kept = [kept[place] for place in stays] + [
            tree.child(kept[parent], token)
            for parent, token in zip(parents.tolist(), new.tolist(), strict=True)
        ]
    total_N = np.logaddexp(silent_N, going_N) + [tree.whole(prefix, ends) for prefix in kept]
    return tree.tokens(kept[int(total_N.argmax())])


def following(
    ids: Sequence[int], tokenizer: Tokenizer, model: NGram, context: Context | None = None
) -> Context:
    """The words before the next piece of a recording, for `beam`.

    Args:
        ids: tokens of this piece.
        tokenizer: says where words end.
        model: the one that `beam` uses.
        context: the words before this piece; None at the beginning of a sentence.
    """
    found = model.start() if context is None else context
    for places in _split(ids, tokenizer):
        _, found = model.score(found, _spelled(ids, places, tokenizer))
    return found


def _tried(row_K: npt.NDArray[np.float64], blank: int) -> npt.NDArray[np.intp]:
    """The tokens of a frame that may begin something, in the order of their ids."""
    tried = _best(np.where(row_K > LEAST, row_K, -np.inf), TRIED)
    return np.delete(tried, tried == blank)


def _best(score: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.intp]:
    """Where the `width` greatest numbers are that are more than minus infinity, in order."""
    best: npt.NDArray[np.intp] = np.flatnonzero(score > -np.inf)
    if len(best) > width:
        best = np.sort(best[np.argpartition(-score[best], width - 1)[:width]])
    return best


def _join(
    kept: Sequence[int],
    tree: "_Prefixes",
    tried_C: npt.NDArray[np.intp],
    grown_NC: npt.NDArray[np.float64],
    going_N: npt.NDArray[np.float64],
) -> None:
    """Give what grows into a prefix that is kept already to that prefix, in place."""
    row = {prefix: place for place, prefix in enumerate(kept)}
    column = {token: place for place, token in enumerate(tried_C.tolist())}
    found = [
        (place, row[tree.parent[prefix]], column[tree.last[prefix]])
        for place, prefix in enumerate(kept)
        if tree.parent[prefix] in row and tree.last[prefix] in column
    ]
    if found:
        places, rows, columns = np.array(found).T
        going_N[places] = np.logaddexp(going_N[places], grown_NC[rows, columns])
        grown_NC[rows, columns] = -np.inf


class _Prefixes:
    """Every prefix of a search once, by number, and what the language model makes of its words."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        model: NGram | None,
        weight: float,
        bonus: float,
        context: Context | None,
    ) -> None:
        self.names, self.model = tokenizer.tokens, model
        self.weight, self.bonus = weight * math.log(10), bonus
        self.children: dict[tuple[int, int], int] = {}
        self.parent, self.last = [-1], [-1]
        self.word = [""]  # the word that has begun and not ended
        self.context = [(model.start() if context is None else context) if model else ()]
        self.past = [0.0]  # what the words are worth that have ended
        self.worth = [0.0]  # and what the one that has not may be worth
        self.ended: list[tuple[Context, float] | None] = [None]  # if it ended here

    def child(self, prefix: int, token: int) -> int:
        """A prefix with one more token."""
        found = self.children.setdefault((prefix, token), len(self.parent))
        if found == len(self.parent):
            name, word = self.names[token], self.word[prefix]
            context, past = self.context[prefix], self.past[prefix]
            if _begins(name):
                context, past = self.end(prefix)
                word = ""
            word += _letters(name)
            self.parent.append(prefix)
            self.last.append(token)
            self.word.append(word)
            self.context.append(context)
            self.past.append(past)
            self.worth.append(past + self.ahead(word))
            self.ended.append(None)
        return found

    def ahead(self, word: str) -> float:
        """What a word that begins so may be worth."""
        if self.model is None or not word:
            return 0.0
        value = self.model.ahead(word)
        if value is None:
            return self.value(self.model.score((), UNKNOWN)[0], word, known=False)
        return self.value(value, word, known=True)

    def value(self, value: float, word: str, *, known: bool) -> float:
        """What a word is worth whose logarithm the model gives."""
        value = max(value, LEAST_WORD) + (0.0 if known else UNKNOWN_LETTER * len(word))
        return self.weight * value + self.bonus

    def end(self, prefix: int) -> tuple[Context, float]:
        """The context and what the words of a prefix are worth, if the last one ended here."""
        found = self.ended[prefix]
        if found is None:
            found = self.context[prefix], self.past[prefix]
            word = self.word[prefix]
            if self.model is not None and word:
                value, context = self.model.score(found[0], word)
                known = self.model.knows(word)
                found = context, found[1] + self.value(value, word, known=known)
            self.ended[prefix] = found
        return found

    def whole(self, prefix: int, ends: bool) -> float:
        """What a prefix is worth behind the last frame."""
        context, worth = self.end(prefix)
        if self.model is not None and ends:
            worth += self.weight * max(self.model.score(context, END)[0], LEAST_WORD)
        return worth

    def tokens(self, prefix: int) -> list[int]:
        """All tokens of a prefix, first to last."""
        found = []
        while prefix:
            found.append(self.last[prefix])
            prefix = self.parent[prefix]
        return found[::-1]


# ----------------------------------------------------------------------------------------- words


def words(
    logprobs_TK: LogProbs,
    ids: Sequence[int],
    tokenizer: Tokenizer,
    offset: float = 0.0,
    pauses: Sequence[float] = (),
) -> list[Word]:
    """When each word is said, by the most likely path of frames through its tokens.

    A word begins with the first frame of its first token and ends behind the last frame of its last
    one; where silence parts its tokens, most of them say when. The last word before a pause is
    moved behind it where the path hardly minds. Frame t stands for the 20 ms from
    t/50 s, about the middle of the 25 ms that it hears.

    Args:
        logprobs_TK: logarithms of the tokens' probabilities, (T, K).
        ids: tokens, at least one path of frames for them exists; of `greedy` or `beam`.
        tokenizer: says which token is the blank, and where words end.
        offset: seconds at the first frame.
        pauses: of each pause from when on a word belongs to what is said behind it, in seconds from
            the first frame, in order; of `pauses.turns`.

    Source: Kürzinger et al., CTC-Segmentation, arXiv 2007.09127; torchaudio's `forced_align`.
    """
    if not ids:
        return []
    spans, _ = _aligned(logprobs_TK, ids, tokenizer.blank)
    split = _split(ids, tokenizer)
    for pause in pauses:
        _later(spans, split, logprobs_TK, ids, tokenizer.blank, round(pause * FRAME_RATE))
    found = []
    for places in split:
        said = [spans[place] for place in places]
        frames = sum(len(span) for span in said)
        sure = sum(span.score * len(span) for span in said) / frames
        near = _most(said)
        found.append(
            Word(
                text=_spelled(ids, places, tokenizer),
                start=round(offset + near[0].start / FRAME_RATE, 3),
                end=round(offset + near[-1].end / FRAME_RATE, 3),
                confidence=round(min(float(sure), 1.0), 4),
            )
        )
    return found


def _aligned(
    logprobs_TK: LogProbs, ids: Sequence[int], blank: int, first: int = 0
) -> "tuple[list[TokenSpan], float]":
    """Where each token lies on the most likely path, counted from frame `first`, and the path's logarithm."""
    if not ids or not len(logprobs_TK):
        return [], float(logprobs_TK[:, blank].sum()) if not ids else -math.inf
    import torch
    from torchaudio.functional import TokenSpan, forced_align, merge_tokens

    if len(ids) + sum(one == other for one, other in pairwise(ids)) > len(logprobs_TK):
        return [], -math.inf
    rows_BTK = torch.from_numpy(np.array(logprobs_TK, np.float32, order="C"))[None]
    path_BT, scores_BT = forced_align(
        rows_BTK, torch.tensor([list(ids)], dtype=torch.int32), blank=blank
    )
    spans = merge_tokens(path_BT[0], scores_BT[0].exp(), blank=blank)
    moved = [TokenSpan(one.token, one.start + first, one.end + first, one.score) for one in spans]
    return moved, float(scores_BT.sum())


def _later(
    spans: "list[TokenSpan]",
    split: Sequence[Sequence[int]],
    logprobs_TK: LogProbs,
    ids: Sequence[int],
    blank: int,
    pause: int,
) -> None:
    """Move the last word that begins before a pause behind it, if that costs the path no more than `DOUBT`.

    A path pays nothing for the wait between two words, and the first word behind a pause, in doubt, is
    often laid where the last one before it faded.
    """
    before = [place for place, places in enumerate(split) if spans[places[0]].start < pause]
    if not before:
        return
    word = split[before[-1]]
    first = split[before[-1] - 1][-1] + 1 if before[-1] else 0
    last = split[before[-1] + 1][0] if before[-1] + 1 < len(split) else len(ids)
    begin = spans[first - 1].end if first else 0
    end = spans[last].start if last < len(ids) else len(logprobs_TK)
    if not begin <= pause <= end:
        return
    ways = []
    for parted in {first, word[0], word[-1] + 1, last}:  # tokens between words lie on either side
        left, cost = _aligned(logprobs_TK[begin:pause], ids[first:parted], blank, begin)
        right, more = _aligned(logprobs_TK[pause:end], ids[parted:last], blank, pause)
        ways.append((cost + more, parted <= word[0], left + right))
    least = max(cost for cost, *_ in ways)
    cost, _, found = max((way for way in ways if way[1]), key=lambda way: way[0])
    if math.isfinite(cost) and cost > least - DOUBT:
        spans[first:last] = found


def _most(said: Sequence["TokenSpan"]) -> Sequence["TokenSpan"]:
    """The most of a word's tokens that no silence parts, of equally many the last ones.

    A first letter in doubt is often laid a second before the others, where its like was said.
    """
    parted = [0]
    for place, (before, after) in enumerate(pairwise(said), start=1):
        if (after.start - before.end) / FRAME_RATE >= APART:
            parted.append(place)
    runs = [said[first:last] for first, last in pairwise([*parted, len(said)])]
    return max(reversed(runs), key=len)


def _split(ids: Sequence[int], tokenizer: Tokenizer) -> list[list[int]]:
    """For each word, which of the tokens spell it; what adds no letter is left out."""
    found: list[list[int]] = [[]]
    for place, token in enumerate(ids):
        name = tokenizer.tokens[token]
        if _begins(name):
            found.append([])
        if _letters(name):
            found[-1].append(place)
    return [places for places in found if places]


def _spelled(ids: Sequence[int], places: Sequence[int], tokenizer: Tokenizer) -> str:
    return "".join(_letters(tokenizer.tokens[ids[place]]) for place in places)


def _begins(name: str) -> bool:
    """Whether the word before a token ends with it."""
    return name == DELIMITER or name.startswith(SPACE)


def _letters(name: str) -> str:
    """What a token adds to its word."""
    return "" if name == DELIMITER else name.removeprefix(SPACE)
