"""Labelled clips, and how they are split: by speaker where one is known, or as the data says.

What cannot be used is listed with its reason; what makes a task impossible is an error.
"""

import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lhotse import MonoCut

from distilkit import config
from distilkit.data import Skipped, tables
from distilkit.data.layouts import LANGUAGES, SPEAKERS, TEXTS
from distilkit.data.splits import together
from distilkit.errors import DistilkitError, did_you_mean
from distilkit.normalisation import normalise
from distilkit.probes.features import Features
from distilkit.probes.heads import Effort
from distilkit.probes.metrics import Metric, Rows
from distilkit.stored import window_key

CONFLICT, LONE, UNLABELLED, TWICE = "two labels", "one example", "no label", "duplicate"
FOLDS = 5
LEAST_SPEAKERS = 6  # two on each side of a split
SAID = 0.9  # share of a column's values that are in the text where it is a slot
AMONG = 0.5  # share of them that are said among other words
SPLITS = ("split", "subset", "partition")  # columns that say which side a recording is on
SIDES = {
    "train": ("train", "training"),
    "dev": ("dev", "development", "valid", "validation", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user asked of a task."""

    columns: tuple[str, ...] = ()  # of labels; empty finds them
    lexicon: Path | None = None
    folder: Path = Path()  # where sound that is made up may be written
    folds: int = FOLDS
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which examples are trained on, decide when to stop, and are tested on."""

    train: list[int]
    dev: list[int]
    test: list[int]


@dataclass(frozen=True, kw_only=True)
class Solved:
    """What a system did on the test side of a split."""

    rows: Rows
    chosen: dict[str, Any] = field(default_factory=dict)  # learning rate, layer ...


class Problem(Protocol):
    """A task on some data: what has to be heard, and how a system does on each split."""

    @property
    def cuts(self) -> Sequence[MonoCut]:
        """The clips whose frames are wanted."""

    @property
    def splits(self) -> Sequence[Split]:
        """Each is solved on its own."""

    @property
    def skipped(self) -> Sequence[Skipped]:
        """What of the data is not used, and why."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """What is measured; the first counts."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Sizes, for the user to read."""

    def groups(self, split: Split) -> list[tuple[str, ...]]:
        """What each row of a split belongs to, and is drawn anew with."""

    def solve(self, features: Features, split: Split, effort: Effort, seed: int) -> Solved:
        """Train on a split and test."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A clip, who is heard, and its label."""

    cut: MonoCut
    speaker: str  # empty where nobody says
    label: Any


def speaker(cut: MonoCut) -> str:
    """Who is heard; empty where nobody says."""
    return str(cut.supervisions[0].speaker or "")


def text(cut: MonoCut) -> str:
    """What is said; empty where nobody says."""
    return str(cut.supervisions[0].text or "")


def columns(cuts: Iterable[MonoCut]) -> Counter[str]:
    """The columns of labels, and how many clips have one."""
    found: Counter[str] = Counter()
    for cut in cuts:
        for name, value in cut.custom["columns"].items():
            found[name] += bool(value)
    return found


def values(cuts: Iterable[MonoCut], name: str) -> set[str]:
    """What a column says, nothing left out."""
    return {cut.custom["columns"].get(name, "") for cut in cuts} - {""}


def slots(cuts: Sequence[MonoCut]) -> tuple[str, ...]:
    """The columns whose values are said in the text of their clips, among other words: slots of an order."""
    found = []
    for name in columns(cuts):
        if name.lower() in (*TEXTS, *SPEAKERS, *LANGUAGES):
            continue
        rows = [(cut.custom["columns"].get(name, ""), text(cut)) for cut in cuts]
        rows = [(plain(value), plain(whole)) for value, whole in rows if value and whole]
        said = sum(f" {value} " in f" {whole} " for value, whole in rows)
        among = sum(value != whole for value, whole in rows)
        varied = len({value for value, _ in rows}) > 1
        if varied and said >= SAID * len(rows) and among >= AMONG * len(rows):
            found.append(name)
    return tuple(found)


def plain(words: str) -> str:
    """Words as tokenizers see them: lower case, without punctuation."""
    return normalise(words, config.Text())


def choose(
    cuts: Sequence[MonoCut], wanted: Sequence[str], asked: Sequence[str], task: str
) -> tuple[str, ...]:
    """The columns that were asked for, else the first of the wanted ones that is there.

    Raises:
        DistilkitError: not there; names those that are.
    """
    there = columns(cuts)
    known = [name for name, count in there.items() if count]
    listed = tables.quoted(known)
    for name in asked:
        if not there[name]:
            empty = "has no value in" if name in there else "is no column of"
            raise DistilkitError(
                f"`{name}` {empty} this data; its columns are {listed}",
                did_you_mean(name, known)
                or (f"--label {shlex.quote(known[0])}" if known else None),
            )
    if asked:
        return tuple(asked)
    found = tables.column(known, wanted)
    if found is None:
        raise DistilkitError(
            f"no column for {task}: expected {tables.quoted(wanted, 'or')}, "
            f"and the columns are {listed}",
            f"--label {shlex.quote(known[0]) if known else 'COLUMN'}",
        )
    return (found,)


def gather(
    cuts: Sequence[MonoCut], label: Callable[[MonoCut], Any], least: int = 1
) -> tuple[list[Example], list[Skipped]]:
    """The clips that have a label, each sound once, with classes of at least so many examples.

    Args:
        cuts: with `custom["columns"]`.
        label: of a clip; empty or None where it has none, a `Skipped` where it cannot be used.
        least: examples that a label must have, in each column where there are several.

    Returns:
        The examples, and what is left out: without label, twice, or with two labels.
    """
    skipped: list[Skipped] = []
    sounds: dict[str, list[Example]] = {}
    for cut in cuts:
        found = label(cut)
        if isinstance(found, Skipped):
            skipped.append(found)
        elif not found:
            skipped.append(left(cut, "it has no label", UNLABELLED))
        else:
            one = Example(cut=cut, speaker=speaker(cut), label=found)
            sounds.setdefault(window_key(cut), []).append(one)
    examples: list[Example] = []
    for first, *others in sounds.values():
        said = list(dict.fromkeys(_shown(item.label) for item in (first, *others)))
        if len(said) > 1:
            reason = f"the same sound has {len(said)} labels: {' / '.join(said[:3])}"
            skipped += [left(item.cut, reason, CONFLICT) for item in (first, *others)]
            continue
        examples.append(first)
        reason = f"the same sound and label as {first.cut.id}"
        skipped += [left(item.cut, reason, TWICE) for item in others]
    counts = Counter(part for item in examples for part in _parts(item.label))
    kept = []
    for item in examples:
        rare = [value for place, value in _parts(item.label) if counts[place, value] < least]
        if rare:
            skipped.append(left(item.cut, f"the only example of `{rare[0]}`", LONE))
        else:
            kept.append(item)
    return kept, skipped


def _shown(label: Any) -> str:
    """A label as a user reads it: words of several columns or phones apart, characters together."""
    if isinstance(label, str):
        return label
    return ("" if all(len(part) == 1 for part in label) else " ").join(label)


def _parts(label: Any) -> list[tuple[int, Any]]:
    """The values of a label of several columns, or its one, each with its place."""
    return list(enumerate(label if isinstance(label, tuple) else (label,)))


def left(cut: MonoCut, reason: str, kind: str) -> Skipped:
    """A clip that is left out."""
    return Skipped(path=cut.id, reason=reason, kind=kind, seconds=cut.duration)


def split(
    examples: Sequence[Example], asked: Asked, task: str, *, by_speaker: bool = True
) -> list[Split]:
    """Rotations of `asked.folds` folds alike in labels: one tests, the next decides, the others train.

    Folds hold whole speakers where at least three are known and `by_speaker`, else whole recordings. Where a
    column says which side a clip is on, that is the one split.

    Raises:
        DistilkitError: fewer than three speakers or recordings, or a side that is not known.
    """
    given = _given(examples)
    if given is not None:
        return [given]
    groups = together([item.cut for item in examples])
    known = {group for group, item in zip(groups, examples, strict=True) if item.speaker}
    if not by_speaker or len(known) < 3 or len(set(groups)) < 3:
        groups = [item.cut.recording.id for item in examples]
    if len(set(groups)) < 3:
        raise DistilkitError(
            f"{len(set(groups))} recordings for {task}: they cannot be split in three",
            "give more recordings",
        )
    numbers = folded([str(item.label) for item in examples], groups, asked.folds, asked.seed)
    return rotations(numbers)


def people(
    cuts: Sequence[MonoCut], asked: Asked, task: str
) -> tuple[list[Example], list[Skipped], list[Split]]:
    """Clips by speaker, and splits with at least two speakers on each side."""
    (column,) = choose(cuts, SPEAKERS, asked.columns[:1], "speakers")
    examples, skipped = gather(cuts, lambda cut: cut.custom["columns"].get(column, ""), least=2)
    names = sorted({item.label for item in examples})
    if len(names) < LEAST_SPEAKERS:
        listed = f"{len(names)} speakers" if len(names) > 1 else "one speaker only"
        raise DistilkitError(
            f"{listed} with two clips in column `{column}`: {task} needs {LEAST_SPEAKERS}, two on each "
            "side of a split",
            "give recordings of more people, or --label COLUMN",
        )
    folds = max(3, min(asked.folds, len(names) // 2))
    numbers = folded([""] * len(examples), [item.label for item in examples], folds, asked.seed)
    alone = {
        number
        for number in set(numbers)
        if len({x.label for x, n in zip(examples, numbers, strict=True) if n == number}) < 2
    }
    if alone:  # a speaker with as much as several others: count heads, not clips
        turn = {name: place % folds for place, name in enumerate(names)}
        numbers = [turn[item.label] for item in examples]
    return examples, skipped, rotations(numbers)


def rotations(numbers: Sequence[int]) -> list[Split]:
    """A split for each fold: it tests, the next one decides, the others train."""
    count = max(numbers) + 1
    found = []
    for test in range(count):
        dev = (test + 1) % count
        sides: dict[str, list[int]] = {"train": [], "dev": [], "test": []}
        for place, number in enumerate(numbers):
            sides["test" if number == test else "dev" if number == dev else "train"].append(place)
        found.append(Split(**sides))
    return found


def folded(labels: Sequence[str], groups: Sequence[str], folds: int, seed: int) -> list[int]:
    """The fold of each example, at least three: groups stay together, labels are spread."""
    from sklearn.model_selection import StratifiedGroupKFold

    count = max(3, min(folds, len(set(groups))))
    numbers = [0] * len(labels)
    if max(Counter(labels).values()) < count:  # nothing that could be spread
        labels = [""] * len(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of labels with fewer examples than folds
        chosen = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        for number, (_, test) in enumerate(chosen.split(labels, labels, groups)):
            for place in test:
                numbers[place] = number
    there = sorted(set(numbers))  # a fold may be empty where groups are few
    return [there.index(number) for number in numbers]


def _given(examples: Sequence[Example]) -> Split | None:
    name = tables.column(columns(item.cut for item in examples), SPLITS)
    if name is None or not any(item.cut.custom["columns"].get(name) for item in examples):
        return None
    sides: dict[str, list[int]] = {side: [] for side in SIDES}
    for place, item in enumerate(examples):
        said = item.cut.custom["columns"].get(name, "")
        side = next((side for side, names in SIDES.items() if said.lower() in names), None)
        if side is None:
            raise DistilkitError(
                f"`{said}` in column `{name}` is no side of a split ({item.cut.id})",
                "write train, dev or test",
            )
        sides[side].append(place)
    if not sides["train"] or not sides["test"]:
        raise DistilkitError(
            f"column `{name}` gives nothing to {'train on' if not sides['train'] else 'test on'}",
            "write train, dev or test, or call the column something else",
        )
    if not sides["dev"]:
        groups = together([examples[place].cut for place in sides["train"]])
        labels = [str(examples[place].label) for place in sides["train"]]
        numbers = folded(labels, groups, FOLDS, 0) if len(set(groups)) > 2 else None
        if numbers is None:
            raise DistilkitError(
                f"column `{name}` names no `dev` clips, and too few recordings train to hold some out",
                "write dev beside some of them",
            )
        sides["dev"] = [p for p, number in zip(sides["train"], numbers, strict=True) if not number]
        sides["train"] = [p for p, number in zip(sides["train"], numbers, strict=True) if number]
    return Split(**sides)


def belonging(item: Example) -> tuple[str, ...]:
    """What an example is drawn anew with: all of its speaker's, else of its recording's."""
    return (f"speaker {item.speaker}" if item.speaker else f"recording {item.cut.recording.id}",)
