"""Error rates of words and characters: counts, intervals, alignments."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import jiwer
import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Count:
    """How many of something (words, characters) were said, and what became of them."""

    spoken: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def errors(self) -> int:
        """Wrong, missing and surplus ones."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors for each one spoken."""
        return self.errors / max(1, self.spoken)


@dataclass(frozen=True, kw_only=True)
class Errors:
    """The errors in some utterances, in words and in characters."""

    words: Count
    characters: Count


def errors(said: Sequence[str], heard: Sequence[str]) -> Errors:
    """Count the errors in what was heard, by the alignment with the fewest of them (Levenshtein).

    Args:
        said: what was said in each utterance, normalised.
        heard: what was heard, likewise.
    """
    if not said:
        nothing = Count(spoken=0, substitutions=0, deletions=0, insertions=0)
        return Errors(words=nothing, characters=nothing)
    return Errors(
        words=_count(jiwer.process_words(list(said), list(heard))),
        characters=_count(jiwer.process_characters(list(said), list(heard))),
    )


def _count(found: jiwer.WordOutput | jiwer.CharacterOutput) -> Count:
    return Count(
        spoken=found.hits + found.substitutions + found.deletions,
        substitutions=found.substitutions,
        deletions=found.deletions,
        insertions=found.insertions,
    )


def interval(wrong: Sequence[int], spoken: Sequence[int], seed: int = 0) -> tuple[float, float]:
    """The 95% interval of a rate, by drawing utterances anew with repetition, 1,000 times.

    Args:
        wrong: errors of each utterance, or of each speaker.
        spoken: words, or characters, said in each.
        seed: of the draws.

    Source: Bisani and Ney, Bootstrap estimates for confidence intervals in ASR performance
    evaluation, ICASSP 2004.
    """
    return _middle(_drawn(wrong, spoken, seed))


def difference(
    one: Sequence[Count], other: Sequence[Count], seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """By how much the second rate is above the first, and the 95% interval of that.

    Args:
        one: what became of each utterance in one place.
        other: and in another; the same utterances, drawn anew together.
        seed: of the draws.

    Source: Bisani and Ney, ICASSP 2004, section 4.
    """
    wrong = [[count.errors for count in counts] for counts in (one, other)]
    spoken = [[count.spoken for count in counts] for counts in (one, other)]
    first, second = (_drawn(w, s, seed) for w, s in zip(wrong, spoken, strict=True))
    rates = [sum(w) / max(1, sum(s)) for w, s in zip(wrong, spoken, strict=True)]
    return rates[1] - rates[0], _middle(second - first)


def _drawn(wrong: Sequence[int], spoken: Sequence[int], seed: int) -> npt.NDArray[np.float64]:
    """The rate in each of the draws."""
    errors_N, spoken_N = np.asarray(wrong), np.asarray(spoken)
    draws = np.random.default_rng(seed).integers(len(errors_N), size=(RESAMPLES, len(errors_N)))
    rates: npt.NDArray[np.float64] = errors_N[draws].sum(1) / np.maximum(1, spoken_N[draws].sum(1))
    return rates


def _middle(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def aligned(said: str, heard: str) -> str:
    """Both texts word below word, with a line that marks what was substituted, deleted, inserted."""
    found = jiwer.process_words(said, heard)
    text = jiwer.visualize_alignment(found, show_measures=False, skip_correct=False)
    lines = [line for line in text.split("\n") if line.startswith(("REF:", "HYP:", "     "))]
    return "\n".join(line.rstrip() for line in lines)


def pairs(said: str, heard: str) -> list[tuple[str, str]]:
    """Both texts word beside word, in the order of the alignment; an empty word is none."""
    if not said:
        return [("", word) for word in heard.split()]
    found = jiwer.process_words(said, heard)
    (chunks,), (words,), (others,) = found.alignments, found.references, found.hypotheses
    matched = []
    for chunk in chunks:
        left = words[chunk.ref_start_idx : chunk.ref_end_idx]
        right = others[chunk.hyp_start_idx : chunk.hyp_end_idx]
        matched += list(zip_longest(left, right, fillvalue=""))
    return matched


def confusions(said: Sequence[str], heard: Sequence[str]) -> dict[tuple[str, str], int]:
    """How often which word was heard as which, most often first; an empty word is none."""
    counts = Counter(
        pair
        for one, other in zip(said, heard, strict=True)
        for pair in pairs(one, other)
        if pair[0] != pair[1]
    )
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
