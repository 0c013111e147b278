"""What the ten tasks are measured by, and how sure a number is.

A measure takes columns of equal length, a row for each thing that was judged (an utterance, a trial, a
conversation), and a weight for each row; so a bootstrap is the same measure under other weights.

Letters in names: N rows, G groups, R draws.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DRAWS = 1000
CONFIDENCE = 0.95
TARGET = 0.05  # prior of a trial of one speaker: VoxCeleb Speaker Recognition Challenge
QUESST_BETA = 0.01 * (1 / 0.0008 - 1)  # QUESST 2014: a miss costs 100 false alarms, prior 0.0008

Array = npt.NDArray[np.float64]
Rows = Mapping[str, npt.NDArray[np.generic]]
Measure = Callable[[Rows, Array], float]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that says how well a task was done."""

    name: str
    measure: Measure
    higher: bool  # whether more is better
    percent: bool = True


def accuracy(rows: Rows, weights_N: Array) -> float:
    """Share that is right: `right` 0 or 1."""
    return float(np.average(rows["right"].astype(float), weights=weights_N))


def error_rate(rows: Rows, weights_N: Array) -> float:
    """Errors for each thing that was said: `errors` over `spoken` (words, phones, seconds ...)."""
    spoken = float(weights_N @ rows["spoken"].astype(float))
    return float(weights_N @ rows["errors"].astype(float)) / spoken if spoken else 0.0


def value_errors(rows: Rows, weights_N: Array) -> float:
    """The same of the values of slots: `value_errors` over `value_spoken`."""
    return error_rate({"errors": rows["value_errors"], "spoken": rows["value_spoken"]}, weights_N)


def slot_f1(rows: Rows, weights_N: Array) -> float:
    """Mean of each utterance's `f1`."""
    return float(np.average(rows["f1"].astype(float), weights=weights_N))


def equal_error_rate(rows: Rows, weights_N: Array) -> float:
    """The rate at which as many pairs are wrongly refused as wrongly taken.

    `score` says how alike two clips are, `same` whether one speaker is heard in both. Between two
    thresholds both rates go along a straight line.
    """
    misses, alarms = _rates(rows, weights_N)
    above = int(np.argmax(alarms >= misses))  # alarms grow and misses fall with lower thresholds
    if above == 0:
        return float(alarms[0])
    gap = misses - alarms
    share = gap[above - 1] / (gap[above - 1] - gap[above])
    return float(alarms[above - 1] + share * (alarms[above] - alarms[above - 1]))


def detection_cost(rows: Rows, weights_N: Array) -> float:
    """The least cost of detection (minDCF) for a prior of 0.05, costs of 1, over that of a constant answer.

    Source: NIST Speaker Recognition Evaluation 2016, equation 2.
    """
    misses, alarms = _rates(rows, weights_N)
    return float((TARGET * misses + (1 - TARGET) * alarms).min() / TARGET)


def _rates(rows: Rows, weights_N: Array) -> tuple[Array, Array]:
    """Rates of misses and false alarms at every threshold, from above the highest score downwards."""
    same_N = rows["same"].astype(bool)
    score_N = rows["score"].astype(float)
    order = np.argsort(-score_N, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score_N[order]) != 0, True))  # equal scores go together
    hits = np.cumsum((weights_N * same_N)[order])[ends]
    wrong = np.cumsum((weights_N * ~same_N)[order])[ends]
    hits, wrong = np.append(0.0, hits), np.append(0.0, wrong)
    return 1 - hits / max(hits[-1], 1e-12), wrong / max(wrong[-1], 1e-12)


def term_weighted_value(rows: Rows, weights_N: Array) -> float:
    """The maximum term-weighted value (MTWV): 1 is best, 0 is to find nothing.

    For each `query` the rates of misses and of false alarms among all clips that were searched; 1 less
    their weighted sum, averaged over queries, at the best threshold for all. `same` says whether a
    clip holds what was asked for. Queries that are nowhere do not count.

    Source: Anguera et al., QUESST2014, MediaEval 2014; NIST STD 2006 evaluation plan.
    """
    query_N = rows["query"].astype(int)
    same_N = rows["same"].astype(bool)
    there = np.zeros(query_N.max() + 1)
    absent, weight = there.copy(), there.copy()
    np.add.at(there, query_N, same_N)
    np.add.at(absent, query_N, ~same_N)
    weight[query_N] = weights_N  # all rows of a query weigh the same
    weight *= there > 0
    if not weight.sum():
        return 0.0
    share = weight / weight.sum()
    gains = np.where(
        same_N,
        (share / np.maximum(there, 1))[query_N],
        -QUESST_BETA * (share / np.maximum(absent, 1))[query_N],
    )
    score_N = rows["score"].astype(float)
    order = np.argsort(-score_N, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score_N[order]) != 0, True))
    return float(max(0.0, np.cumsum(gains[order])[ends].max(initial=0.0)))


ACCURACY = Metric(name="accuracy", measure=accuracy, higher=True)
PER = Metric(name="PER", measure=error_rate, higher=False)
WER = Metric(name="WER", measure=error_rate, higher=False)
DER = Metric(name="DER", measure=error_rate, higher=False)
F1 = Metric(name="slot-type F1", measure=slot_f1, higher=True)
CER = Metric(name="slot-value CER", measure=value_errors, higher=False)
EER = Metric(name="EER", measure=equal_error_rate, higher=False)
MIN_DCF = Metric(name="minDCF", measure=detection_cost, higher=False, percent=False)
MTWV = Metric(name="MTWV", measure=term_weighted_value, higher=True, percent=False)


# ----------------------------------------------------------------------------------------- slots


def slots(tokens: Sequence[str]) -> list[tuple[str, str]]:
    """The slots in a sequence of characters with marks such as `B-size` and `E-size`: name and value.

    A value ends at the mark of its own slot; marks of others inside it are left out. As SUPERB reads
    them (s3prl, downstream/ctc/metric.py), a slot that is empty, or never ended, is none.
    """
    found: list[tuple[str, str]] = []
    place = 0
    while place < len(tokens):
        name = tokens[place][2:]
        end = f"E-{name}"
        if len(tokens[place]) > 1 and tokens[place].startswith("B-") and end in tokens[place + 1 :]:
            last = tokens.index(end, place + 1)
            inside = [token if len(token) == 1 else " " for token in tokens[place + 1 : last]]
            value = " ".join("".join(inside).split())
            if value:
                found.append((name, value))
                place = last
        place += 1
    return found


def slot_type_f1(said: Sequence[tuple[str, str]], heard: Sequence[tuple[str, str]]) -> float:
    """F1 of which slots occur in an utterance, however often; 1 where there are none in either.

    Source: SUPERB, arXiv 2105.01051, section 4.3; s3prl, downstream/ctc/metric.py.
    """
    there, found = {name for name, _ in said}, {name for name, _ in heard}
    return 2 * len(there & found) / (len(there) + len(found)) if there or found else 1.0


def slot_value_errors(
    said: Sequence[tuple[str, str]], heard: Sequence[tuple[str, str]]
) -> tuple[int, int]:
    """Characters wrong in the values of the slots that were said, and characters that were said.

    Each value is held against the nearest one that was heard for the same slot, else against nothing.

    Source: as `slot_type_f1`.
    """
    from distilkit.rates import errors

    wrong = spoken = 0
    for name, value in said:
        nearest = min(
            (errors([value], [other]).characters.errors for slot, other in heard if slot == name),
            default=len(value),
        )
        wrong, spoken = wrong + nearest, spoken + len(value)
    return wrong, spoken


# ------------------------------------------------------------------------------------- certainty


def draws(groups: Sequence[tuple[str, ...]], seed: int = 0) -> Iterator[Array]:
    """Weights of rows, (N,), each time that groups (speakers, queries ...) are drawn anew with repetition.

    A row counts as often as its groups were drawn: of two, as the product; so what two speakers have
    to do with each other is drawn with both.

    Args:
        groups: for each row the one or two that it belongs to.
        seed: of the draws.

    Source: Bisani and Ney, ICASSP 2004, section 3.
    """
    names = sorted({name for row in groups for name in row})
    place = {name: index for index, name in enumerate(names)}
    first_N = np.array([place[row[0]] for row in groups])
    last_N = np.array([place[row[-1]] for row in groups])
    paired_N = first_N != last_N
    rng = np.random.default_rng(seed)
    for _ in range(DRAWS):
        counts_G = rng.multinomial(len(names), [1 / len(names)] * len(names)).astype(float)
        weights_N = counts_G[first_N]
        weights_N[paired_N] *= counts_G[last_N[paired_N]]
        if weights_N.sum():
            yield weights_N


def interval(values_R: Sequence[float]) -> tuple[float, float]:
    """The middle 95% of what was drawn."""
    low, high = np.quantile(values_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def score(metric: Metric, value: float) -> float:
    """A metric as a share of what is perfect: of an error rate what is left, and never less than 0."""
    return max(0.0, value if metric.higher else 1 - value)


def majority(labels: Sequence[str]) -> float:
    """The share of the most frequent label: what can be had without listening."""
    return Counter(labels).most_common(1)[0][1] / len(labels) if labels else 0.0
