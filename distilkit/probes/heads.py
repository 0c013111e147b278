"""Small heads on frozen frames: a learned sum of layers, what SUPERB puts on it, and how it is trained.

Letters in names: B clips in a batch, N clips or frames, L layers, T frames of a clip, D width,
K classes or tokens.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from distilkit.layer_mix import LayerMix

PROJECTED = 256  # SUPERB's `project_dim` and `projector_dim`
LEAST_SPREAD = (
    1e-2  # of a number over clips, as a share of the layer's; what hardly changes stays small
)
MIX = "mixed.mix.weight"
MIX_RATE = 10.0  # times the rate of the rest: heads here see hundreds of steps, SUPERB's 200,000
SORTED = 8  # batches whose clips are sorted by length together
CLIP_NORM = 1.0  # SUPERB's `gradient_clipping`

Judged = tuple[float, ...]  # more is better; the first number counts, the others part equals


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long a head is trained."""

    rates: tuple[float, ...]  # learning rates that are tried
    trial: int  # steps at each rate; the best goes on
    steps: int  # at the most, the trial's included
    batch: int  # clips in a step
    every: int  # steps between looks at the development split
    patience: int  # looks without a better one until it ends


class Mixed(nn.Module):
    """The learned sum of standardised layers.

    SUPERB takes layers as they are. Here each number is brought to zero mean and unit variance over the
    training clips first; a linear head can undo that, so it changes what is learned in few steps, not
    what can be said.
    """

    def __init__(self, mean_LD: Tensor, spread_LD: Tensor) -> None:
        super().__init__()
        least = LEAST_SPREAD * spread_LD.square().mean(1, keepdim=True).sqrt()
        self.register_buffer("mean_LD", mean_LD)
        self.register_buffer("spread_LD", spread_LD.maximum(least).clamp_min(1e-6))
        self.mix = LayerMix(len(mean_LD))
        self.mean_LD: Tensor
        self.spread_LD: Tensor

    def forward(self, states: Sequence[Tensor] | Tensor) -> Tensor:
        """The sum, (N, D), of L states (N, D) of clips or frames; a stack of them where they are few."""
        weight_LD = self.mix.weight.softmax(0)[:, None] / self.spread_LD
        total_ND = -(self.mean_LD * weight_LD).sum(0)
        if isinstance(states, Tensor):
            return total_ND + (states * weight_LD[:, None]).sum(0)
        for state_ND, weight_D in zip(states, weight_LD, strict=True):
            total_ND = total_ND + state_ND * weight_D
        return total_ND


class Pooled(nn.Module):
    """Classes of a clip: a projection and a linear layer on the mean over time.

    The mean of projected frames is the projection of their mean, so that the mean alone is needed.

    Source: SUPERB, arXiv 2105.01051; s3prl, `UtteranceLevel` with `MeanPooling`.
    """

    def __init__(self, mixed: Mixed, classes: int) -> None:
        super().__init__()
        self.mixed = mixed
        self.project = nn.Linear(mixed.mean_LD.shape[1], PROJECTED)
        self.classify = nn.Linear(PROJECTED, classes)

    def forward(self, mean_LBD: Tensor) -> Tensor:
        """Logits (B, K)."""
        logits: Tensor = self.classify(self.project(self.mixed(mean_LBD)))
        return logits


class Framed(nn.Module):
    """Tokens of each frame: a projection and a linear layer, for CTC over phones.

    Source: SUPERB; s3prl, `FrameLevel`.
    """

    def __init__(self, mixed: Mixed, tokens: int) -> None:
        super().__init__()
        self.mixed = mixed
        self.project = nn.Linear(mixed.mean_LD.shape[1], PROJECTED)
        self.classify = nn.Linear(PROJECTED, tokens)

    def forward(self, states: Sequence[Tensor], lengths: Tensor) -> Tensor:
        """Logits (B, T, K) of L states (N, D), clip after clip; `lengths` in frames."""
        return padded(self.classify(self.project(self.mixed(states))), lengths)


class Recurrent(nn.Module):
    """Outputs of each frame behind LSTM layers: for CTC over characters (two ways), and for diarization.

    Layers run over padded clips, which is two to three times as fast on a processor as over packed
    ones; the way back begins at each clip's own end, so that padding changes nothing.

    Source: SUPERB; s3prl, `RNNs` and the model of its diarization; those are wider.
    """

    def __init__(
        self,
        mixed: Mixed,
        outputs: int,
        *,
        hidden: int,
        layers: int,
        both_ways: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.mixed = mixed
        ways = 1 + both_ways
        widths = [mixed.mean_LD.shape[1], *[ways * hidden] * (layers - 1)]

        def lstms() -> nn.ModuleList:
            return nn.ModuleList(nn.LSTM(width, hidden, batch_first=True) for width in widths)

        self.forth, self.back = lstms(), lstms() if both_ways else nn.ModuleList()
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(ways * hidden, outputs)

    def forward(self, states: Sequence[Tensor], lengths: Tensor) -> Tensor:
        """Logits (B, T, K) of L states (N, D), clip after clip; `lengths` in frames."""
        hidden_BTD = padded(self.mixed(states), lengths)
        place_T = torch.arange(hidden_BTD.shape[1])
        back_BT1 = torch.where(place_T < lengths[:, None], lengths[:, None] - 1 - place_T, place_T)[
            ..., None
        ]
        for layer, forth in enumerate(self.forth):
            ways = [forth(hidden_BTD)[0]]
            if self.back:
                turned_BTD = hidden_BTD.gather(1, back_BT1.expand_as(hidden_BTD))
                found_BTD = self.back[layer](turned_BTD)[0]
                ways.append(found_BTD.gather(1, back_BT1.expand_as(found_BTD)))
            hidden_BTD = self.dropout(torch.cat(ways, -1))
        logits: Tensor = self.classify(hidden_BTD)
        return logits


def padded(rows_NK: Tensor, lengths: Tensor) -> Tensor:
    """Frames of clips one behind the other, (N, K), as (B, T, K) with zeros behind each clip's end."""
    return pad_sequence(list(torch.split(rows_NK, lengths.tolist())), batch_first=True)


def spread(clips: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every number over all frames of some clips, (L, D) each."""
    count, total, square = 0, torch.zeros(()), torch.zeros(())
    for state_LTD in clips:
        count += state_LTD.shape[1]
        double = state_LTD.double()
        total = total + double.sum(1)
        square = square + double.square().sum(1)
    mean = total / count
    return mean.float(), (square / count - mean.square()).clamp_min(0).sqrt().float()


def fit(
    build: Callable[[], Any],
    loss: Callable[[Any, list[int]], Tensor],
    judge: Callable[[Any], Judged],
    train: Sequence[int],
    effort: Effort,
    seed: int,
    lengths: Sequence[int] | None = None,
) -> tuple[Any, float]:
    """Train a head at several rates, go on with the best, and return it as it was at its best.

    Args:
        build: makes a head; its weights are drawn from torch's random state.
        loss: of some of the training clips.
        judge: how good a head is on the development split.
        train: the clips to train on.
        effort: how long.
        seed: of weights, dropout and order.
        lengths: of every clip, so that those of a batch are alike; None where that does not matter.

    Returns:
        The head, in evaluation mode, and its learning rate.
    """
    sizes = None if lengths is None else [lengths[place] for place in train]
    tries = [
        _Try(build, batches(train, effort.batch, seed, sizes), effort, rate, seed)
        for rate in effort.rates
    ]
    for each in tries:
        each.go_on(loss, judge, effort.trial)
    best = max(tries, key=lambda each: each.best)
    best.go_on(loss, judge, effort.steps)
    best.head.load_state_dict(best.kept)
    return best.head.eval(), best.rate


class _Try:
    """A head at one learning rate, on its way."""

    def __init__(
        self,
        build: Callable[[], Any],
        order: Iterator[list[int]],
        effort: Effort,
        rate: float,
        seed: int,
    ) -> None:
        torch.manual_seed(seed)
        self.head, self.rate, self.effort = build(), rate, effort
        shares = [each for name, each in self.head.named_parameters() if name == MIX]
        others = [each for name, each in self.head.named_parameters() if name != MIX]
        groups: list[dict[str, Any]] = [
            {"params": others},
            {"params": shares, "lr": MIX_RATE * rate},
        ]
        self._optimizer = torch.optim.Adam(groups, lr=rate)
        self._batches = order
        self._random = torch.get_rng_state()
        self._step = self._since = 0
        self.best: Judged = (-float("inf"),)
        self.kept = copy.deepcopy(self.head.state_dict())

    def go_on(
        self,
        loss: Callable[[Any, list[int]], Tensor],
        judge: Callable[[Any], Judged],
        until: int,
    ) -> None:
        """Train up to step `until`, or until it no longer gets better."""
        torch.set_rng_state(self._random)
        while self._step < until and self._since < self.effort.patience:
            self._step += 1
            self.head.train()
            self._optimizer.zero_grad()
            wrong = loss(self.head, next(self._batches))
            if torch.isfinite(wrong):
                wrong.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.head.parameters(), CLIP_NORM)
                self._optimizer.step()
            if self._step % self.effort.every == 0 or self._step == until:
                self._look(judge)
        self._random = torch.get_rng_state()

    def _look(self, judge: Callable[[Any], Judged]) -> None:
        self.head.eval()
        with torch.no_grad():
            found = judge(self.head)
        self._since += 1
        if found > self.best:
            self.best, self._since = found, 0
            self.kept = copy.deepcopy(self.head.state_dict())


def batches(
    train: Sequence[int], size: int, seed: int, lengths: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Batches without end; each pass is a permutation, sorted by length within stretches of it.

    Args:
        train: the clips.
        size: of a batch.
        seed: of the order.
        lengths: of the clips; None leaves the permutation as it is.
    """
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(train)).tolist()
        groups = [order[first : first + size] for first in range(0, len(order), size)]
        if lengths is not None:
            groups = []
            for first in range(0, len(order), SORTED * size):
                part = sorted(order[first : first + SORTED * size], key=lambda at: -lengths[at])
                groups += [part[at : at + size] for at in range(0, len(part), size)]
            groups = [groups[at] for at in rng.permutation(len(groups))]
        for group in groups:
            yield [train[at] for at in group]


def chunks(places: Sequence[int], size: int, lengths: Sequence[int]) -> list[list[int]]:
    """All clips once, in batches of clips alike in length."""
    order = sorted(places, key=lambda place: -lengths[place])
    return [order[first : first + size] for first in range(0, len(order), size)]
