"""Speaker verification: whether two clips of people never heard before are of one of them.

Letters in names: B clips in a batch, N frames, T frames of a clip, D width, C channels, K speakers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations
from typing import Any

import numpy as np
import torch
from lhotse import MonoCut
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, relu

from distilkit.data import Skipped
from distilkit.probes.examples import Asked, Example, Solved, Split, people
from distilkit.probes.features import Features
from distilkit.probes.heads import Effort, Judged, Mixed, chunks, fit, padded, spread
from distilkit.probes.metrics import EER, MIN_DCF, Array, Metric, Rows

STATISTICS = 64  # training clips whose frames say what mean and spread are
CHANNELS, GATHERED = 64, 192  # of the x-vector network; SUPERB's has 512 and 1,500
CONTEXTS = ((5, 1), (3, 2), (3, 3), (1, 1))  # kernel and dilation of its layers
MARGIN, SCALE = 0.4, 30.0  # of the additive margin softmax, as SUPERB's
TRIALS = 4000  # of one and of two speakers, the most in a split


class Voiceprint(nn.Module):
    """A vector for a voice: a time-delay network, statistics over time, two linear layers.

    Source: x-vectors, Snyder et al., ICASSP 2018; SUPERB; s3prl, `sv_voxceleb1`.
    """

    def __init__(self, mixed: Mixed, speakers: int) -> None:
        super().__init__()
        self.mixed = mixed
        self.enter = nn.Linear(mixed.mean_LD.shape[1], CHANNELS)
        self.delays = nn.ModuleList(
            nn.Conv1d(CHANNELS, CHANNELS, kernel, dilation=dilation, padding="same")
            for kernel, dilation in CONTEXTS
        )
        self.gather = nn.Conv1d(CHANNELS, GATHERED, 1)
        self.print = nn.Linear(2 * GATHERED, CHANNELS)
        self.leave = nn.Linear(CHANNELS, CHANNELS)
        self.centres = nn.Parameter(torch.randn(speakers, CHANNELS))

    def forward(self, states: Sequence[Tensor], lengths: Tensor) -> Tensor:
        """The vector of each clip, (B, C); `lengths` in frames."""
        entered_BCT = padded(self.enter(self.mixed(states)), lengths).mT
        own_B1T = (torch.arange(entered_BCT.shape[2]) < lengths[:, None])[:, None]
        for delay in self.delays:
            entered_BCT = relu(delay(entered_BCT)) * own_B1T
        gathered_BCT = relu(self.gather(entered_BCT)) * own_B1T
        count_B1 = lengths[:, None]
        mean_BC = gathered_BCT.sum(2) / count_B1
        square_BC = ((gathered_BCT - mean_BC[..., None]).square() * own_B1T).sum(2) / count_B1
        deviation_BC = (square_BC + 1e-6).sqrt()
        found: Tensor = relu(self.print(torch.cat([mean_BC, deviation_BC], 1)))
        return found

    def cosines(self, print_BC: Tensor) -> Tensor:
        """How near each clip is to each training speaker, (B, K)."""
        left_BC = relu(self.leave(print_BC))
        return normalize(left_BC, dim=1) @ normalize(self.centres, dim=1).T


@dataclass(frozen=True, kw_only=True)
class Trials:
    """Clips of speakers; pairs of those that are tested are told apart."""

    examples: list[Example]  # each label a speaker
    splits: list[Split]
    skipped: list[Skipped]

    @property
    def cuts(self) -> Sequence[MonoCut]:
        """All examples'."""
        return [item.cut for item in self.examples]

    @property
    def metrics(self) -> Sequence[Metric]:
        """EER and minDCF, each the mean of the splits', whose networks differ."""
        return tuple(
            Metric(
                name=each.name,
                measure=partial(_by_split, each),
                higher=each.higher,
                percent=each.percent,
            )
            for each in (EER, MIN_DCF)
        )

    @property
    def facts(self) -> Mapping[str, Any]:
        """How many speakers, clips and trials."""
        pairs = [pair for split in self.splits for pair in self._pairs(split.test)]
        same = sum(self._same(pair) for pair in pairs)
        return {
            "examples": len(self.examples),
            "speakers": len({item.label for item in self.examples}),
            "trials": {"one speaker": same, "two speakers": len(pairs) - same},
        }

    def _same(self, pair: tuple[int, int]) -> bool:
        return bool(self.examples[pair[0]].label == self.examples[pair[1]].label)

    def _pairs(self, places: Sequence[int]) -> list[tuple[int, int]]:
        """Pairs of clips: all, or as many as `TRIALS` of each kind."""
        found: list[tuple[int, int]] = []
        both = list(combinations(places, 2))
        for kind in (True, False):
            chosen = [pair for pair in both if self._same(pair) is kind]
            if len(chosen) > TRIALS:
                picked = np.random.default_rng(len(chosen)).permutation(len(chosen))[:TRIALS]
                chosen = [chosen[place] for place in sorted(picked.tolist())]
            found += chosen
        return found

    def groups(self, split: Split) -> list[tuple[str, ...]]:
        """The one or two speakers of each trial."""
        return [
            tuple(dict.fromkeys(str(self.examples[place].label) for place in pair))
            for pair in self._pairs(split.test)
        ]

    def solve(self, features: Features, split: Split, effort: Effort, seed: int) -> Solved:
        """Train on some speakers, and compare clips of others."""
        names = sorted({self.examples[place].label for place in split.train})
        answer = {name: number for number, name in enumerate(names)}
        mean_LD, spread_LD = spread(
            features.frames(self.examples[place].cut) for place in split.train[:STATISTICS]
        )

        def prints(head: Voiceprint, places: Sequence[int]) -> Tensor:
            found: Tensor = head(*features.rows([self.examples[place].cut for place in places]))
            return found

        def loss(head: Voiceprint, places: list[int]) -> Tensor:
            wanted_B = torch.tensor([answer[self.examples[place].label] for place in places])
            cosine_BK = head.cosines(prints(head, places))
            margin_BK = torch.zeros_like(cosine_BK)
            margin_BK[torch.arange(len(places)), wanted_B] = MARGIN
            return cross_entropy(SCALE * (cosine_BK - margin_BK), wanted_B)

        def judge(head: Voiceprint) -> Judged:
            rows = self._rows(partial(prints, head), split.dev, effort.batch)
            return (-EER.measure(rows, np.ones(len(rows["score"]))),)

        head, rate = fit(
            lambda: Voiceprint(Mixed(mean_LD, spread_LD), len(names)),
            loss,
            judge,
            split.train,
            effort,
            seed,
            [item.cut.num_samples for item in self.examples],
        )
        with torch.no_grad():
            rows = self._rows(partial(prints, head), split.test, effort.batch)
        number = next(i for i, each in enumerate(self.splits) if each.test == split.test)
        weights = head.mixed.mix.weight.softmax(0).tolist()
        return Solved(
            rows={**rows, "split": np.full(len(rows["score"]), number)},
            chosen={"rate": rate, "layers": weights},
        )

    def _rows(self, prints: Any, places: Sequence[int], batch: int) -> Rows:
        """Cosines of the clips of each pair."""
        lengths = [item.cut.num_samples for item in self.examples]
        groups = chunks(places, batch, lengths)
        unit_BC = normalize(torch.cat([prints(group) for group in groups]), dim=1)
        cosine_BB = (unit_BC @ unit_BC.T).double().numpy()
        at = {place: row for row, place in enumerate(chain.from_iterable(groups))}
        pairs = self._pairs(places)
        return {
            "score": np.array([cosine_BB[at[one], at[other]] for one, other in pairs]),
            "same": np.array([self._same(pair) for pair in pairs]),
        }


def _by_split(metric: Metric, rows: Rows, weights_N: Array) -> float:
    """The mean over splits that have trials of both kinds."""
    found = []
    for number in np.unique(rows["split"]):
        own = rows["split"] == number
        part = {name: column[own] for name, column in rows.items()}
        weights = weights_N[own]
        if weights[part["same"]].sum() and weights[~part["same"]].sum():
            found.append(metric.measure(part, weights))
    return float(np.mean(found)) if found else 0.0


def verification(cuts: Sequence[MonoCut], asked: Asked) -> Trials:
    """Speaker verification: whether two clips of people never heard before are of one of them."""
    examples, skipped, splits = people(cuts, asked, "speaker verification")
    return Trials(examples=examples, splits=splits, skipped=skipped)
