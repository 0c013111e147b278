"""Tasks that write something down: phones, words, words with slots.

Letters in names: B clips in a batch, L layers, T frames, D width, K tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from lhotse import MonoCut
from torch import Tensor, nn
from torch.nn.functional import ctc_loss

from distilkit.audio import frames
from distilkit.data import Skipped, tables
from distilkit.errors import DistilkitError
from distilkit.probes import phones as sounds
from distilkit.probes.examples import (
    Asked,
    Example,
    Solved,
    Split,
    belonging,
    choose,
    gather,
    left,
    plain,
    slots,
    split,
    text,
)
from distilkit.probes.features import Features
from distilkit.probes.heads import Effort, Framed, Judged, Mixed, Recurrent, chunks, fit, spread
from distilkit.probes.metrics import (
    CER,
    F1,
    PER,
    WER,
    Metric,
    Rows,
    slot_type_f1,
    slot_value_errors,
)
from distilkit.probes.metrics import slots as slots_of
from distilkit.rates import errors

BLANK = 0
STATISTICS = 64  # training clips whose frames say what mean and spread are
TOO_LONG, NOT_SAID = "too long", "not said"
HIDDEN, LAYERS, DROPOUT = 128, 1, 0.2  # of the LSTM; SUPERB has two layers, 1,024 wide

Tokens = tuple[str, ...]
Compare = Callable[
    [Tokens, Tokens], dict[str, float]
]  # what was said and heard; columns of a measure


@dataclass(frozen=True, kw_only=True)
class Written:
    """Clips with what is to be written, as tokens."""

    examples: list[Example]  # each label its tokens
    splits: list[Split]
    skipped: list[Skipped]
    metrics: tuple[Metric, ...]
    compare: Compare
    head: Callable[[Mixed, int], nn.Module]
    source: str  # where the tokens are from

    @property
    def cuts(self) -> Sequence[MonoCut]:
        """All examples'."""
        return [item.cut for item in self.examples]

    @cached_property
    def tokens(self) -> list[str]:
        """The tokens that occur; the blank is before them."""
        return sorted({token for item in self.examples for token in item.label})

    @property
    def facts(self) -> Mapping[str, Any]:
        """Examples, speakers, kinds of tokens."""
        return {
            "examples": len(self.examples),
            "speakers": len({item.speaker for item in self.examples if item.speaker}),
            "minutes": round(sum(item.cut.duration for item in self.examples) / 60, 2),
            "source": self.source,
            "tokens": len(self.tokens),
        }

    def groups(self, split: Split) -> list[tuple[str, ...]]:
        """Each tested clip's speaker."""
        return [belonging(self.examples[place]) for place in split.test]

    def solve(self, features: Features, split: Split, effort: Effort, seed: int) -> Solved:
        """Train a head with CTC, and write down the clips that are tested, greedily."""
        number = {token: place + 1 for place, token in enumerate(self.tokens)}
        lengths = [item.cut.num_samples for item in self.examples]
        answers = [torch.tensor([number[t] for t in item.label]) for item in self.examples]
        mean_LD, spread_LD = spread(
            features.frames(self.examples[place].cut) for place in split.train[:STATISTICS]
        )

        def build() -> nn.Module:
            return self.head(Mixed(mean_LD, spread_LD), len(self.tokens) + 1)

        def logits(head: nn.Module, places: Sequence[int]) -> tuple[Tensor, Tensor]:
            states, counts = features.rows([self.examples[place].cut for place in places])
            return head(states, counts), counts

        def loss(head: nn.Module, places: list[int]) -> Tensor:
            found_BTK, own = logits(head, places)
            return _ctc(found_BTK, own, [answers[place] for place in places])

        def judge(head: nn.Module) -> Judged:
            cost, counts = 0.0, []
            for places in chunks(split.dev, effort.batch, lengths):
                found_BTK, own = logits(head, places)
                cost += len(places) * float(_ctc(found_BTK, own, [answers[p] for p in places]))
                counts += self._compared(found_BTK, own, places)
            first = self.metrics[0]
            value = first.measure(_columns(counts), np.ones(len(counts)))
            return (value if first.higher else -value), -cost

        head, rate = fit(build, loss, judge, split.train, effort, seed, lengths)
        heard: dict[int, dict[str, float]] = {}
        with torch.no_grad():
            for places in chunks(split.test, effort.batch, lengths):
                found = self._compared(*logits(head, places), places)
                heard |= dict(zip(places, found, strict=True))
        counts = [heard[place] for place in split.test]
        weights = head.mixed.mix.weight.softmax(0).tolist()
        return Solved(rows=_columns(counts), chosen={"rate": rate, "layers": weights})

    def _compared(
        self, found_BTK: Tensor, lengths: Tensor, places: Sequence[int]
    ) -> list[dict[str, float]]:
        best_BT = found_BTK.argmax(-1).tolist()
        rows = []
        for row_T, length, place in zip(best_BT, lengths.tolist(), places, strict=True):
            ids = [token for token, _ in groupby(row_T[:length]) if token != BLANK]
            heard = tuple(self.tokens[token - 1] for token in ids)
            rows.append(self.compare(self.examples[place].label, heard))
        return rows


def _ctc(logits_BTK: Tensor, lengths: Tensor, answers: Sequence[Tensor]) -> Tensor:
    """The CTC loss for each token, mean over clips."""
    found: Tensor = ctc_loss(
        logits_BTK.float().log_softmax(-1).transpose(0, 1),
        torch.cat(list(answers)),
        lengths,
        torch.tensor([len(answer) for answer in answers]),
        blank=BLANK,
        zero_infinity=True,
    )
    return found


def _columns(counts: Sequence[Mapping[str, float]]) -> Rows:
    return {name: np.array([row[name] for row in counts]) for name in counts[0]}


# ----------------------------------------------------------------------------------------- tasks


def _framed(mixed: Mixed, tokens: int) -> nn.Module:
    return Framed(mixed, tokens)


def _recurrent(mixed: Mixed, tokens: int) -> nn.Module:
    return Recurrent(mixed, tokens, hidden=HIDDEN, layers=LAYERS, both_ways=True, dropout=DROPOUT)


def _phone_errors(said: Tokens, heard: Tokens) -> dict[str, float]:
    """Phones wrong."""
    count = errors([" ".join(said)], [" ".join(heard)]).words
    return {"errors": count.errors, "spoken": count.spoken}


def _word_errors(said: Tokens, heard: Tokens) -> dict[str, float]:
    """Words and characters wrong."""
    found = errors(["".join(said)], [" ".join("".join(heard).split())])
    return {
        "errors": found.words.errors,
        "spoken": found.words.spoken,
        "value_errors": found.characters.errors,
        "value_spoken": found.characters.spoken,
    }


def _slot_errors(said: Tokens, heard: Tokens) -> dict[str, float]:
    """Slots right, and characters of their values wrong."""
    there, found = slots_of(said), slots_of(heard)
    wrong, spoken = slot_value_errors(there, found)
    return {"f1": slot_type_f1(there, found), "value_errors": wrong, "value_spoken": spoken}


def _fitting(
    cuts: Sequence[MonoCut], label: Callable[[MonoCut], Tokens | Skipped]
) -> tuple[list[Example], list[Skipped]]:
    """Clips whose tokens CTC can write: a frame for each, and one between two equal ones."""

    def checked(cut: MonoCut) -> Tokens | Skipped:
        found = label(cut)
        if isinstance(found, Skipped):
            return found
        needed = len(found) + sum(a == b for a, b in zip(found, found[1:], strict=False))
        room = frames(cut.num_samples)
        if needed > room:
            return left(cut, f"{needed} tokens for {room} frames of 20 ms", TOO_LONG)
        return found

    return gather(cuts, checked)


def _unlabelled(
    examples: Sequence[Example], skipped: Sequence[Skipped], asked: Asked, task: str
) -> list[Split]:
    """Splits that only look at who speaks."""
    plainly = [Example(cut=item.cut, speaker=item.speaker, label="") for item in examples]
    if not plainly:
        shown = "".join(f"\n  {item.path}: {item.reason}" for item in skipped[:5])
        raise DistilkitError(f"no clip can be used for {task}{shown}", "distilkit inspect DATA")
    return split(plainly, asked, task)


def phones(cuts: Sequence[MonoCut], asked: Asked) -> Written:
    """Phoneme recognition: phones by CTC over frames."""
    if asked.columns:
        choose(cuts, (), asked.columns[:1], "phones")
    of, source = sounds.source(cuts, asked.columns, asked.lexicon)
    examples, skipped = _fitting(cuts, of)

    return Written(
        examples=examples,
        splits=_unlabelled(examples, skipped, asked, "phoneme recognition"),
        skipped=skipped,
        metrics=(PER,),
        compare=_phone_errors,
        head=_framed,
        source=source,
    )


def words(cuts: Sequence[MonoCut], asked: Asked) -> Written:
    """Speech recognition: characters by CTC behind an LSTM, decoded greedily."""
    _need_text(cuts, "speech recognition")
    examples, skipped = _fitting(cuts, lambda cut: tuple(plain(text(cut))))

    return Written(
        examples=examples,
        splits=_unlabelled(examples, skipped, asked, "speech recognition"),
        skipped=skipped,
        metrics=(WER, Metric(name="CER", measure=CER.measure, higher=False)),
        compare=_word_errors,
        head=_recurrent,
        source="text",
    )


def slot_filling(cuts: Sequence[MonoCut], asked: Asked) -> Written:
    """Slot filling: characters with a mark before and behind each slot's value, by CTC behind an LSTM."""
    _need_text(cuts, "slot filling")
    names = choose(cuts, (), asked.columns, "slots") if asked.columns else slots(cuts)
    if not names:
        raise DistilkitError(
            "no column for slot filling: no column's values are said in the text",
            "--label COLUMN, once for each slot",
        )
    examples, skipped = _fitting(cuts, lambda cut: marked(cut, names))

    return Written(
        examples=examples,
        splits=_unlabelled(examples, skipped, asked, "slot filling"),
        skipped=skipped,
        metrics=(F1, CER),
        compare=_slot_errors,
        head=_recurrent,
        source=f"text and {tables.quoted(names)}",
    )


def marked(cut: MonoCut, names: Sequence[str]) -> Tokens | Skipped:
    """A clip's text, its slots between marks: `B-size`, characters, `E-size`; longer values first."""
    whole: list[str] = list(plain(text(cut)))
    values = {name: plain(cut.custom["columns"].get(name, "")) for name in names}
    if not any(values.values()):
        return ()
    for name in sorted(names, key=lambda name: -len(values[name])):
        value = list(values[name])
        if not value:
            continue
        ends = (None, " ")
        place = next(
            (
                at
                for at in range(len(whole) - len(value) + 1)
                if whole[at : at + len(value)] == value
                and (whole[at - 1] if at else None) in ends
                and (whole[at + len(value)] if at + len(value) < len(whole) else None) in ends
            ),
            None,
        )
        if place is None:
            return left(cut, f"`{values[name]}` of column {name} is not in its text", NOT_SAID)
        whole[place : place + len(value)] = [f"B-{name}", *value, f"E-{name}"]
    return tuple(whole)


def _need_text(cuts: Sequence[MonoCut], task: str) -> None:
    if not any(text(cut) for cut in cuts):
        raise DistilkitError(
            f"no text, which {task} needs", "a column `transcription`, or --text-column NAME"
        )
