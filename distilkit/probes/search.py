"""Query by example: find the clips in which a spoken query is said, by dynamic time warping alone.

Letters in names: Q frames of a query, N clips that are searched, T frames of a clip, D width.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lhotse import MonoCut
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from distilkit.data import Skipped
from distilkit.errors import DistilkitError
from distilkit.probes.examples import Asked, Example, Solved, Split, choose, gather, plain, text
from distilkit.probes.features import Features
from distilkit.probes.heads import Effort, spread
from distilkit.probes.metrics import MTWV, Metric, Rows

QUERY_WORDS, QUERY_SECONDS = 3, 3.0  # the most that a query has
QUERIES, SEARCHED = 60, 400  # the most of each
HALVES = 2  # one chooses the layer, the other is judged by it


@dataclass(frozen=True, kw_only=True)
class Search:
    """Queries, and the clips that are searched for them."""

    queries: list[Example]
    searched: list[Example]
    skipped: list[Skipped]

    @property
    def cuts(self) -> Sequence[MonoCut]:
        """Queries and clips."""
        return [item.cut for item in (*self.queries, *self.searched)]

    @property
    def splits(self) -> Sequence[Split]:
        """Two halves of the queries, each judged by the layer that is best for the other."""
        halves = [list(range(half, len(self.queries), HALVES)) for half in range(HALVES)]
        return [Split(train=[], dev=halves[1 - i], test=halves[i]) for i in range(HALVES)]

    @property
    def metrics(self) -> Sequence[Metric]:
        """MTWV."""
        return (MTWV,)

    @property
    def facts(self) -> Mapping[str, Any]:
        """How many of what."""
        return {
            "queries": len(self.queries),
            "searched": len(self.searched),
            "terms": dict(Counter(item.label for item in self.queries).most_common()),
        }

    def groups(self, split: Split) -> list[tuple[str, ...]]:
        """The query of each row."""
        return [(self.queries[place].cut.id,) for place in split.test for _ in self.searched]

    def solve(self, features: Features, split: Split, effort: Effort, seed: int) -> Solved:
        """Take the layer that finds most for one half of the queries, and search for the other half."""
        del effort, seed  # nothing is trained
        mean_LD, spread_LD = spread(features.frames(cut) for cut in self.cuts)

        def layer_rows(layer: int, places: Sequence[int]) -> Rows:
            mean_D, spread_D = mean_LD[layer], spread_LD[layer].clamp_min(1e-9)
            rows = (features.layer(cut, layer) for cut in self.cuts)
            unit = [normalize((row_TD - mean_D) / spread_D, dim=1) for row_TD in rows]
            return self._rows(unit[: len(self.queries)], unit[len(self.queries) :], places)

        found = {}
        for layer in range(features.states):
            rows = layer_rows(layer, split.dev)
            found[layer] = MTWV.measure(rows, np.ones(len(rows["score"])))
        best = max(found, key=lambda layer: found[layer])  # of equals the lowest
        return Solved(rows=layer_rows(best, split.test), chosen={"layer": best})

    def _rows(
        self, queries: Sequence[Tensor], clips: Sequence[Tensor], places: Sequence[int]
    ) -> Rows:
        """For each query and clip: how well it fits, and whether the query is said there."""
        scores, same, numbers = [], [], []
        for place in places:
            cost_N = -subsequence_cost(queries[place], clips)
            scores.append((cost_N - cost_N.mean()) / max(float(cost_N.std()), 1e-9))
            term = self.queries[place].label
            same += [said(term, item.label) for item in self.searched]
            numbers += [place] * len(self.searched)
        return {
            "score": np.concatenate(scores),
            "same": np.array(same),
            "query": np.array(numbers),
        }


def subsequence_cost(query_QD: Tensor, clips: Sequence[Tensor]) -> np.ndarray:
    """The least cost of each clip's stretch that is most like the query, for each frame of the query.

    Each frame of the query meets one frame of the clip, the same, the next, or the one after that; the
    stretch may begin and end anywhere. Cost of two frames: e^(1 - cosine) - 1, brought to 0 to 1 over
    each of the query's frames.

    Args:
        query_QD: frames of unit length.
        clips: frames of unit length, (T, D) each.

    Source: SUPERB; s3prl, `quesst14_dtw` (asymmetric steps, open begin and end).
    """
    lengths = torch.tensor([len(clip) for clip in clips])
    clip_NTD = pad_sequence(list(clips), batch_first=True)
    own_NT = torch.arange(clip_NTD.shape[1]) < lengths[:, None]
    cost_QNT = torch.exp(1 - torch.einsum("qd,ntd->qnt", query_QD, clip_NTD)) - 1
    inf = torch.tensor(float("inf"))
    least = torch.where(own_NT, cost_QNT, inf).amin(2, keepdim=True)
    most = torch.where(own_NT, cost_QNT, -inf).amax(2, keepdim=True)
    cost_QNT = torch.where(own_NT, (cost_QNT - least) / (most - least).clamp_min(1e-9), inf)
    total_NT = cost_QNT[0]
    for cost_NT in cost_QNT[1:]:
        before = torch.stack([total_NT, *(_later(total_NT, step) for step in (1, 2))])
        total_NT = before.amin(0) + cost_NT
    found: np.ndarray = (total_NT.amin(1) / len(query_QD)).double().numpy()
    return found


def _later(total_NT: Tensor, step: int) -> Tensor:
    moved = torch.full_like(total_NT, float("inf"))
    moved[:, step:] = total_NT[:, :-step]
    return moved


def said(term: str, whole: str) -> bool:
    """Whether the words of a term are said, one behind the other."""
    return f" {term} " in f" {whole} "


def search(cuts: Sequence[MonoCut], asked: Asked) -> Search:
    """Query by example: short clips are searched for in all others, by their text or a column."""
    names = choose(cuts, (), asked.columns, "queries") if asked.columns else ()

    def label(cut: MonoCut) -> str:
        return plain(cut.custom["columns"].get(names[0], "") if names else text(cut))

    examples, skipped = gather(cuts, label)
    if not examples:
        raise DistilkitError("no text, which query by example needs", "--label COLUMN")
    rng = np.random.default_rng(asked.seed)
    order = [examples[place] for place in rng.permutation(len(examples))]
    waiting: dict[str, list[Example]] = defaultdict(list)
    for item in order:
        if len(item.label.split()) <= QUERY_WORDS and item.cut.duration <= QUERY_SECONDS:
            waiting[item.label].append(item)
    there = {term: sum(said(term, item.label) for item in examples) for term in waiting}
    terms = [term for term in waiting if there[term] > 1]
    queries: list[Example] = []
    for turn in range(QUERIES):  # each term in turn, at most half of what there is of it
        for term in terms:
            if turn < min(len(waiting[term]), (there[term] + 1) // 2) and len(queries) < QUERIES:
                queries.append(waiting[term][turn])
    if len({item.label for item in queries}) < 2 or len(queries) < 2 * HALVES:
        raise DistilkitError(
            f"query by example needs two terms that are said in several clips; {len(terms)} found "
            f"that are short (at most {QUERY_WORDS} words, {QUERY_SECONDS:g} s)",
            "give short clips of words that other clips say too",
        )
    asking = {id(item) for item in queries}
    wanted = {item.label for item in queries}
    others = [item for item in order if id(item) not in asking]
    others.sort(key=lambda item: not any(said(term, item.label) for term in wanted))
    return Search(queries=queries, searched=others[:SEARCHED], skipped=skipped)
