"""Error rates: counts by hand, intervals that cover, alignments that can be read."""

import numpy as np
import pytest

from distilkit import rates


def test_counts_by_hand() -> None:
    found = rates.errors(["the cat sat", "on a mat"], ["the bat sat down", "a mat"])
    assert found.words == rates.Count(spoken=6, substitutions=1, deletions=1, insertions=1)
    assert found.words.errors == 3
    assert found.words.rate == 0.5
    # b for c; " down" is 5 more; "on " is 3 fewer
    assert found.characters == rates.Count(spoken=19, substitutions=1, deletions=3, insertions=5)


def test_silence_is_all_missing_and_nothing_said_divides_by_one() -> None:
    assert rates.errors(["a b"], [""]).words == rates.Count(
        spoken=2, substitutions=0, deletions=2, insertions=0
    )
    assert rates.errors([], []).words.rate == 0.0
    assert rates.errors([""], ["a"]).words.rate == 1.0


def test_the_interval_holds_the_rate_and_narrows_with_more_utterances() -> None:
    rng = np.random.default_rng(0)
    wrong = rng.binomial(10, 0.3, size=400)
    spoken = np.full(400, 10)
    low, high = rates.interval(wrong, spoken)
    assert low < wrong.sum() / spoken.sum() < high
    fewer = rates.interval(wrong[:25], spoken[:25])
    assert fewer[1] - fewer[0] > 2.5 * (high - low)
    assert rates.interval(wrong, spoken) == (low, high)  # the same draws each time
    # Of independent words the standard error is known: sqrt(p q / n), and 95% are 1.96 of them.
    assert high - low == pytest.approx(2 * 1.96 * (0.3 * 0.7 / 4000) ** 0.5, rel=0.15)


def test_an_alignment_stands_word_below_word() -> None:
    lines = rates.aligned("the cat sat", "the bat sat down").split("\n")
    assert [line.split() for line in lines] == [
        ["REF:", "the", "cat", "sat", "****"],
        ["HYP:", "the", "bat", "sat", "down"],
        ["S", "I"],
    ]


def test_what_is_heard_as_what() -> None:
    found = rates.confusions(
        ["the cat sat", "a cat sat", "a dog"], ["the bat sat", "a bat", "a dog runs"]
    )
    assert found == {("cat", "bat"): 2, ("", "runs"): 1, ("sat", ""): 1}
    assert next(iter(found)) == ("cat", "bat")


def test_a_difference_is_drawn_in_pairs() -> None:
    """Both vary much, the difference hardly at all: alone, neither interval would say so."""
    rng = np.random.default_rng(0)

    def counts(wrong: np.ndarray) -> list[rates.Count]:
        return [
            rates.Count(spoken=20, substitutions=int(w), deletions=0, insertions=0) for w in wrong
        ]

    hard = rng.integers(0, 15, size=200)
    by, (low, high) = rates.difference(counts(hard), counts(hard + rng.integers(1, 3, size=200)))
    assert by == pytest.approx(1.5 / 20, abs=0.01)
    assert 0.05 <= low < by < high <= 0.1
    alone = rates.interval(hard, np.full(200, 20))
    assert high - low < 0.2 * (alone[1] - alone[0])
