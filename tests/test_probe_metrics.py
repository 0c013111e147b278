"""Metrics of the ten tasks against other implementations, by hand and on random cases."""

import itertools
import re

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from distilkit.probes import metrics
from distilkit.probes.metrics import (
    DRAWS,
    QUESST_BETA,
    draws,
    interval,
    score,
    slot_type_f1,
    slot_value_errors,
    slots,
)
from distilkit.rates import errors

RNG = np.random.default_rng(0)


def even(rows: dict[str, np.ndarray]) -> np.ndarray:
    return np.ones(len(next(iter(rows.values()))))


# --------------------------------------------------------------------------------- verification


def trials(count: int, *, apart: float, ties: bool = False) -> dict[str, np.ndarray]:
    same = RNG.random(count) < 0.3
    same[:2] = True, False
    scores = RNG.normal(size=count) + apart * same
    return {"score": np.round(scores, 1) if ties else scores, "same": same}


def eer_by_trying(rows: dict[str, np.ndarray]) -> float:
    """Both rates at every threshold, one by one; where they cross, on the line between two."""
    scores, same = rows["score"], rows["same"]
    points = []
    for threshold in [np.inf, *sorted(set(scores.tolist()), reverse=True)]:
        taken = scores >= threshold
        points.append(
            (
                float((taken & ~same).sum() / (~same).sum()),
                float((~taken & same).sum() / same.sum()),
            )
        )
    for (alarm, miss), (more, less) in itertools.pairwise(points):
        if more >= less:
            share = (miss - alarm) / ((miss - alarm) + (more - less))
            return alarm + share * (more - alarm)
    raise AssertionError


def test_eer_by_hand() -> None:
    rows = {"score": np.array([3.0, 2.0, 1.0, 0.0]), "same": np.array([1, 0, 1, 0], bool)}
    assert metrics.equal_error_rate(rows, even(rows)) == 0.5
    apart = {"score": np.array([3.0, 2.0, 1.0, 0.0]), "same": np.array([1, 1, 0, 0], bool)}
    assert metrics.equal_error_rate(apart, even(apart)) == 0.0
    assert metrics.detection_cost(apart, even(apart)) == 0.0
    upside = {**apart, "score": -apart["score"]}
    assert metrics.equal_error_rate(upside, even(upside)) == 1.0
    assert metrics.detection_cost(upside, even(upside)) == 1.0
    alike = {**apart, "score": np.zeros(4)}
    assert metrics.equal_error_rate(alike, even(alike)) == 0.5


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("apart", [0.0, 0.7, 2.0])
def test_eer_and_cost_as_others_compute_them(apart: float, ties: bool) -> None:
    for count in (20, 301):
        rows = trials(count, apart=apart, ties=ties)
        weights = even(rows)
        assert metrics.equal_error_rate(rows, weights) == pytest.approx(eer_by_trying(rows))
        alarms, hits, _ = roc_curve(rows["same"], rows["score"], drop_intermediate=False)
        cost = (0.05 * (1 - hits) + 0.95 * alarms).min() / 0.05
        assert metrics.detection_cost(rows, weights) == pytest.approx(cost)


def test_a_weight_is_so_many_trials() -> None:
    rows = trials(60, apart=1.0)
    weights = RNG.integers(0, 4, 60)
    weights[:2] = 1
    many = {name: np.repeat(column, weights) for name, column in rows.items()}
    for metric in (metrics.EER, metrics.MIN_DCF):
        assert metric.measure(rows, weights.astype(float)) == pytest.approx(
            metric.measure(many, even(many))
        )


# ------------------------------------------------------------------------------ query by example


def mtwv_by_trying(rows: dict[str, np.ndarray]) -> float:
    best = 0.0  # nothing found
    for threshold in set(rows["score"].tolist()):
        values = []
        for query in set(rows["query"].tolist()):
            own = rows["query"] == query
            same, taken = rows["same"][own], rows["score"][own] >= threshold
            if not same.any():
                continue
            miss = (same & ~taken).sum() / same.sum()
            alarm = (~same & taken).sum() / max(1, (~same).sum())
            values.append(1 - miss - QUESST_BETA * alarm)
        best = max(best, float(np.mean(values)))
    return best


@pytest.mark.parametrize("apart", [0.0, 1.5, 4.0])
def test_mtwv_as_by_trying_every_threshold(apart: float) -> None:
    for queries in (1, 5, 9):
        query = np.repeat(np.arange(queries), 40)
        same = RNG.random(len(query)) < 0.15
        same[::40] = True
        if queries > 5:
            same[query == 3] = False  # said nowhere
        rows = {"score": RNG.normal(size=len(query)) + apart * same, "same": same, "query": query}
        found = metrics.term_weighted_value(rows, even(rows))
        assert found == pytest.approx(mtwv_by_trying(rows))


def test_mtwv_by_hand() -> None:
    assert pytest.approx(12.49) == QUESST_BETA
    rows = {
        "score": np.array([3.0, 0.0, 0.0, 2.0, 1.0, 0.0]),
        "same": np.array([1, 0, 0, 1, 1, 0], bool),
        "query": np.array([0, 0, 0, 1, 1, 1]),
    }
    assert metrics.term_weighted_value(rows, even(rows)) == 1.0
    worse = {**rows, "score": np.array([3.0, 0.0, 0.0, 2.0, 0.0, 1.0])}
    assert metrics.term_weighted_value(worse, even(worse)) == pytest.approx((1 + 0.5) / 2)
    assert metrics.term_weighted_value({**rows, "same": ~rows["same"]}, even(rows)) == 0.0
    nowhere = {**rows, "same": np.zeros(6, bool)}
    assert metrics.term_weighted_value(nowhere, even(rows)) == 0.0


# ----------------------------------------------------------------------------------------- slots


def s3prl_slots(text: str) -> list[tuple[str, str]]:
    """As SUPERB's scoring finds them in decoded text: by an expression."""
    found = re.findall(r"B\-(\S+) (.+?) E\-\1", re.sub(" +", " ", text))
    inner = [(name, re.sub(r"B\-(\S+) ", "", value)) for name, value in found]
    return [(name, re.sub(r" E\-(\S+)", "", value)) for name, value in inner]


def decoded(tokens: list[str]) -> str:
    """Tokens as the text in which marks are words."""
    return re.sub(" +", " ", "".join(f" {t} " if len(t) > 1 else t for t in tokens)).strip()


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [
        ([*"a ", "B-size", *"big", "E-size", *" cup"], [("size", "big")]),
        (
            ["B-size", *"big", "E-size", " ", "B-size", *"red", "E-size"],
            [("size", "big"), ("size", "red")],
        ),
        (["B-size", *"big"], []),
        (["B-size", *"big", "E-roast"], []),
        (["E-size", *"big", "E-size"], []),
        (["B-size", "E-size", *"a"], []),
        (["B-size", *"a ", "B-roast", *"dark", "E-roast", *" b", "E-size"], [("size", "a dark b")]),
        (["B-roast", "B-size", *"big", "E-size"], [("size", "big")]),
        ([], []),
    ],
)
def test_slots_are_found(tokens: list[str], wanted: list[tuple[str, str]]) -> None:
    assert slots(tokens) == wanted


def test_slots_as_superb_finds_them() -> None:
    marks = ["B-size", "E-size", "B-roast", "E-roast"]
    same = 0
    for _ in range(500):
        tokens = [str(x) for x in RNG.choice([*"abc ", *marks], int(RNG.integers(0, 14)))]
        theirs = [(name, value.strip()) for name, value in s3prl_slots(decoded(tokens))]
        # Where a value is empty, an expression takes the next mark for one.
        if all(value and not re.search("[BE]-", value) for _, value in theirs):
            same += bool(theirs)
            assert slots(tokens) == theirs, tokens
    assert same > 30


def f1_by_counting(said: list[tuple[str, str]], heard: list[tuple[str, str]]) -> float:
    there, found = {name for name, _ in said}, {name for name, _ in heard}
    if not there and not found:
        return 1.0
    right = sum(name in found for name in there)
    if not right:
        return 0.0
    precision, recall = right / len(found), right / len(there)
    return 2 * precision * recall / (precision + recall)


def test_slot_f1_and_values() -> None:
    pairs = [("a", "big"), ("b", "dark"), ("c", "two"), ("a", "small")]
    for _ in range(200):
        said = [pairs[i] for i in RNG.integers(0, 4, int(RNG.integers(0, 4)))]
        heard = [pairs[i] for i in RNG.integers(0, 4, int(RNG.integers(0, 4)))]
        assert slot_type_f1(said, heard) == pytest.approx(f1_by_counting(said, heard))
        wrong, spoken = slot_value_errors(said, heard)
        assert spoken == sum(len(value) for _, value in said)
        wanted = 0
        for name, value in said:
            others = [other for slot, other in heard if slot == name] or [""]
            wanted += min(distance(value, other) for other in others)
        assert wrong == wanted


def distance(one: str, other: str) -> int:
    """Levenshtein's, by its table."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row = row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(row[-1] + 1, before[j] + 1, before[j - 1] + (a != b)))
    return row[-1]


# ----------------------------------------------------------------------------------------- rates


def words_wrong(said: list[str], heard: list[str]) -> int:
    row = list(range(len(heard) + 1))
    for i, a in enumerate(said, 1):
        before, row = row, [i]
        for j, b in enumerate(heard, 1):
            row.append(min(row[-1] + 1, before[j] + 1, before[j - 1] + (a != b)))
    return row[-1]


def test_per_as_by_the_table() -> None:
    rows, wanted, total = [], 0, 0
    for _ in range(100):
        said = [str(x) for x in RNG.choice(["ah", "b", "k"], int(RNG.integers(1, 9)))]
        heard = [str(x) for x in RNG.choice(["ah", "b", "k"], int(RNG.integers(0, 9)))]
        count = errors([" ".join(said)], [" ".join(heard)]).words
        rows.append((count.errors, count.spoken))
        wanted, total = wanted + words_wrong(said, heard), total + len(said)
    columns = {"errors": np.array([a for a, _ in rows]), "spoken": np.array([b for _, b in rows])}
    assert metrics.error_rate(columns, np.ones(100)) == pytest.approx(wanted / total)


def test_accuracy_and_score() -> None:
    rows = {"right": np.array([True, False, True, True])}
    assert metrics.accuracy(rows, even(rows)) == 0.75
    assert metrics.accuracy(rows, np.array([0.0, 2.0, 1.0, 1.0])) == 0.5
    assert score(metrics.ACCURACY, 0.75) == 0.75
    assert score(metrics.WER, 0.25) == 0.75
    assert score(metrics.WER, 1.7) == 0.0
    assert metrics.majority(["a", "b", "a", "c"]) == 0.5


# ------------------------------------------------------------------------------------- certainty


def test_draws_keep_groups_together() -> None:
    groups = [("a",), ("a",), ("b",), ("c",)]
    found = list(draws(groups))
    assert 0.9 * DRAWS < len(found) <= DRAWS
    for weights in found:
        assert weights[0] == weights[1]
        assert weights[0] + weights[2] + weights[3] == 3  # three groups are drawn
    mean = np.mean(found, 0)
    np.testing.assert_allclose(mean, 1, atol=0.15)
    np.testing.assert_array_equal(found[7], list(draws(groups))[7])


def test_draws_of_pairs_are_products() -> None:
    groups = [("a",), ("b",), ("a", "b"), ("b", "a"), ("a", "a")]
    for weights in draws(groups):
        assert weights[2] == weights[3] == weights[0] * weights[1]
        assert weights[4] == weights[0]


def test_an_interval_covers_what_it_says() -> None:
    covered = 0
    for _ in range(60):
        right = RNG.random(150) < 0.7
        rows = {"right": right}
        values = [
            metrics.accuracy(rows, w)
            for w in itertools.islice(draws([(str(i),) for i in range(150)]), 200)
        ]
        low, high = interval(values)
        covered += low <= 0.7 <= high
    assert covered >= 50
