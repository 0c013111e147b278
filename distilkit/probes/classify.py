"""Tasks that give a clip a label: keywords, intents, speakers, emotions.

Letters in names: N clips, L layers, D width.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from lhotse import MonoCut
from torch import Tensor
from torch.nn.functional import cross_entropy

from distilkit.data import Skipped
from distilkit.data.layouts import SPEAKERS
from distilkit.errors import DistilkitError
from distilkit.probes.examples import (
    Asked,
    Example,
    Solved,
    Split,
    belonging,
    choose,
    columns,
    gather,
    slots,
    split,
    values,
)
from distilkit.probes.features import Features
from distilkit.probes.heads import Effort, Judged, Mixed, Pooled, fit
from distilkit.probes.metrics import ACCURACY, Array, Metric, Rows, accuracy, majority

KEYWORDS = ("keyword", "command", "word", "digit", "label")
EMOTIONS = ("emotion", "emotion_label", "feeling", "mood")
INTENTS = ("intent", "action", "object", "location")
NOTHING = "(nothing)"  # a slot that was not spoken


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Clips with labels from one or more columns."""

    names: tuple[str, ...]  # of the columns
    examples: list[Example]  # each label a tuple of one value for each column
    splits: list[Split]
    skipped: list[Skipped]

    @property
    def cuts(self) -> Sequence[MonoCut]:
        """All examples'."""
        return [item.cut for item in self.examples]

    @property
    def metrics(self) -> Sequence[Metric]:
        """Accuracy; with several columns that of all of them together first, as SUPERB counts intents."""
        if len(self.names) == 1:
            return (ACCURACY,)
        each = [replace(ACCURACY, name=name, measure=partial(_of, name)) for name in self.names]
        return (ACCURACY, *each)

    @property
    def facts(self) -> Mapping[str, Any]:
        """Examples, speakers, classes, and what is right without listening."""
        whole = [str(item.label) for item in self.examples]
        return {
            "examples": len(self.examples),
            "speakers": len({item.speaker for item in self.examples if item.speaker}),
            "columns": list(self.names),
            "classes": {
                name: dict(Counter(item.label[place] for item in self.examples).most_common())
                for place, name in enumerate(self.names)
            },
            "most_frequent": round(majority(whole), 4),
        }

    def groups(self, split: Split) -> list[tuple[str, ...]]:
        """Each tested clip's speaker."""
        return [belonging(self.examples[place]) for place in split.test]

    def solve(self, features: Features, split: Split, effort: Effort, seed: int) -> Solved:
        """Fit a linear head on the means over time, and label the clips that are tested."""
        mean_LND = features.means(self.cuts).transpose(0, 1).contiguous()
        classes = [
            sorted({self.examples[place].label[column] for place in split.train})
            for column in range(len(self.names))
        ]
        ends = np.cumsum([0, *map(len, classes)]).tolist()
        answer_NC = torch.tensor(
            [
                [
                    named.index(value) if value in named else -100
                    for value, named in zip(item.label, classes, strict=True)
                ]
                for item in self.examples
            ]
        )
        trained_LND = mean_LND[:, split.train]
        center_LD, spread_LD = trained_LND.mean(1), trained_LND.std(1, correction=0)

        def build() -> Pooled:
            return Pooled(Mixed(center_LD, spread_LD), ends[-1])

        def parts(head: Pooled, places: Sequence[int]) -> list[Tensor]:
            logits = head(mean_LND[:, places])
            return [logits[:, a:b] for a, b in zip(ends, ends[1:], strict=False)]

        def loss(head: Pooled, places: list[int]) -> Tensor:
            total = torch.zeros(())
            for column, logits in enumerate(parts(head, places)):
                total = total + cross_entropy(logits, answer_NC[places, column])
            return total

        def right(head: Pooled, places: Sequence[int]) -> Tensor:
            guessed = torch.stack([logits.argmax(1) for logits in parts(head, places)], 1)
            return guessed == answer_NC[places]

        def judge(head: Pooled) -> Judged:
            known = [place for place in split.dev if (answer_NC[place] >= 0).all()]
            cost = float(loss(head, known)) if known else 0.0
            return float(right(head, split.dev).all(1).float().mean()), -cost

        head, rate = fit(build, loss, judge, split.train, effort, seed)
        with torch.no_grad():
            right_NC = right(head, split.test)
            weights = head.mixed.mix.weight.softmax(0)
        rows = {"right": right_NC.all(1).numpy()}
        if len(self.names) > 1:
            rows |= {f"right {name}": right_NC[:, i].numpy() for i, name in enumerate(self.names)}
        return Solved(rows=rows, chosen={"rate": rate, "layers": weights.tolist()})


def _of(name: str, rows: Rows, weights_N: Array) -> float:
    return accuracy({"right": rows[f"right {name}"]}, weights_N)


def _labels(
    cuts: Sequence[MonoCut],
    names: tuple[str, ...],
    asked: Asked,
    task: str,
    *,
    by_speaker: bool = True,
) -> Labels:
    def label(cut: MonoCut) -> tuple[str, ...]:
        values = [cut.custom["columns"].get(name, "") for name in names]
        return tuple(value or NOTHING for value in values) if any(values) else ()

    examples, skipped = gather(cuts, label, least=2)
    for place, name in enumerate(names):
        there = {item.label[place] for item in examples}
        if len(there) < 2:
            only = f"one class only, `{next(iter(there))}`," if there else "no class twice"
            raise DistilkitError(
                f"{only} in column `{name}`: {task} needs two", "--label COLUMN, or more recordings"
            )
    splits = split(examples, asked, task, by_speaker=by_speaker)
    return Labels(names=names, examples=examples, splits=splits, skipped=skipped)


def keywords(cuts: Sequence[MonoCut], asked: Asked) -> Labels:
    """Keyword spotting: which of a few words is said."""
    return _labels(
        cuts, choose(cuts, KEYWORDS, asked.columns, "keywords"), asked, "keyword spotting"
    )


def intents(cuts: Sequence[MonoCut], asked: Asked) -> Labels:
    """Intent classification: all that an order asks for, a column each, right at once.

    Without columns that were asked for: those named so, and those whose values are said in the text.
    """
    there = columns(cuts)
    named = [name for name in there if name.lower() in INTENTS and len(values(cuts, name)) > 1]
    found = asked.columns or (*named, *slots(cuts))
    names = choose(cuts, INTENTS, found, "intents")
    return _labels(cuts, names, asked, "intent classification")


def speakers(cuts: Sequence[MonoCut], asked: Asked) -> Labels:
    """Speaker identification: who of those heard in training speaks; recordings, not speakers, are split."""
    names = choose(cuts, SPEAKERS, asked.columns, "speakers")
    return _labels(cuts, names, asked, "speaker identification", by_speaker=False)


def emotions(cuts: Sequence[MonoCut], asked: Asked) -> Labels:
    """Emotion recognition, on speakers left out."""
    return _labels(
        cuts, choose(cuts, EMOTIONS, asked.columns, "emotions"), asked, "emotion recognition"
    )
