"""The logs of a run as curves of bounded size; what is added to the logs later is read on from there."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilkit.errors import DistilkitError
from distilkit.files import MALFORMED, parse_json

MOST = 400  # stretches of a curve
BROKEN = 20  # steps left out that are kept with their reason


@dataclass(frozen=True)
class Stretch:
    """What a curve did over some optimizer steps."""

    first: int
    last: int
    low: float
    mean: float
    high: float
    count: int = 1  # numbers in it

    @property
    def middle(self) -> float:
        """The step that stands for all of them."""
        return (self.first + self.last) / 2


class Curve:
    """A number of each optimizer step, kept as the least, mean and greatest of at most `MOST` stretches.

    A stretch is one step long at first; where there are too many, two become one. So a spike stays visible
    however long the run, and memory does not grow.
    """

    def __init__(self) -> None:
        self._width = 1
        self._parts: dict[int, list[float]] = {}  # low, high, sum, count, first step, last step
        self.last: tuple[int, float] | None = None

    def add(self, step: int, value: float) -> None:
        """Take the number of a step; steps ascend."""
        while (step - 1) // self._width >= MOST:
            self._halve()
        self.last = step, value
        part = self._parts.get((step - 1) // self._width)
        if part is None:
            self._parts[(step - 1) // self._width] = [value, value, value, 1, step, step]
            return
        part[0] = min(part[0], value)
        part[1] = max(part[1], value)
        part[2] += value
        part[3] += 1
        part[5] = step

    def _halve(self) -> None:
        self._width *= 2
        merged: dict[int, list[float]] = {}
        for place, part in self._parts.items():
            into = merged.setdefault(place // 2, part)
            if into is not part:
                merged[place // 2] = [
                    min(into[0], part[0]),
                    max(into[1], part[1]),
                    into[2] + part[2],
                    into[3] + part[3],
                    into[4],
                    part[5],
                ]
        self._parts = merged

    @property
    def stretches(self) -> list[Stretch]:
        """The curve, in order."""
        return [
            Stretch(int(first), int(last), low, total / count, high, int(count))
            for low, high, total, count, first, last in self._parts.values()
        ]


def coarser(stretches: Sequence[Stretch], most: int) -> list[Stretch]:
    """The same in at most `most` stretches: several become one."""
    each = -(-len(stretches) // most)
    groups = [stretches[at : at + each] for at in range(0, len(stretches), each or 1)]
    return [
        Stretch(
            group[0].first,
            group[-1].last,
            min(part.low for part in group),
            sum(part.mean * part.count for part in group) / sum(part.count for part in group),
            max(part.high for part in group),
            sum(part.count for part in group),
        )
        for group in groups
    ]


class Log:
    """A JSON-lines file that grows: each call of `new` gives the whole lines since the last one."""

    def __init__(self, path: Path) -> None:
        self.path, self._at = path, 0
        self.line = 0  # number of the newest row

    def new(self) -> Iterator[dict[str, Any]]:
        """The rows that were added; a line that is not whole yet is left for later."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._at += len(line)
                self.line += 1
                yield parse_json(line.decode("utf-8"))


class History:
    """The course of a run up to now, from `metrics.jsonl` and `speed.jsonl`.

    Args:
        folder: of the run.
        early: optimizer steps whose time and memory are what a plan would have measured.
    """

    def __init__(self, folder: Path, early: int = 0) -> None:
        self._metrics, self._speed = Log(folder / "metrics.jsonl"), Log(folder / "speed.jsonl")
        self._early = early
        self.curves: dict[str, Curve] = {}  # of training: loss, its parts, and so on
        self.checks: dict[str, Curve] = {}  # of what is held out
        self.first: dict[str, Any] = {}  # validation, as its row
        self.newest: dict[str, Any] = {}
        self.best: dict[str, Any] = {}  # the one with the fewest words wrong, or the least loss
        self.step = 0  # the last one that was logged
        self.left_out = 0  # steps
        self.broken: list[tuple[int, str]] = []  # the first `BROKEN` of them
        self.seconds = self.waited = self.audio_seconds = self.peak_gib = 0.0
        self.timed = 0  # steps
        self.early_seconds: list[float] = []  # of steps 2 to `early`
        self.early_gib = 0.0

    def read(self) -> None:
        """Take what was added to the logs.

        Raises:
            DistilkitError: a line is damaged.
        """
        for log, take in ((self._metrics, self._take), (self._speed, self._time)):
            try:
                for row in log.new():
                    take(row)
            except MALFORMED as error:
                raise DistilkitError(
                    f"`{log.path}` is damaged: line {log.line}: {error}",
                    f"remove that line: sed -i {log.line}d {log.path}",
                ) from error

    def _take(self, row: dict[str, Any]) -> None:
        self.step = step = int(row["step"])
        self.audio_seconds += row.get("audio_seconds", 0.0)
        if row.get("updated") is False:
            self.left_out += 1
            if row.get("broken") and len(self.broken) < BROKEN:
                self.broken.append((step, row["broken"]))
        for name, value in row.items():
            if name not in ("step", "audio_seconds", "updated") and _number(value):
                self.curves.setdefault(name, Curve()).add(step, value)
        if "valid" not in row:
            return
        for name, value in row["valid"].items():
            if _number(value):
                self.checks.setdefault(name, Curve()).add(step, value)
        self.newest = row
        self.first = self.first or row
        if not self.best or _rank(row) < _rank(self.best):
            self.best = row

    def _time(self, row: dict[str, Any]) -> None:
        self.seconds += row["seconds"]
        self.waited += row.get("waited", 0.0)
        self.timed += 1
        self.peak_gib = max(self.peak_gib, row["peak_gib"])
        if 1 < row["step"] <= self._early:
            self.early_seconds.append(row["seconds"])
            self.early_gib = row["peak_gib"]
        for name in ("seconds", "peak_gib"):
            self.curves.setdefault(name, Curve()).add(row["step"], row[name])


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _rank(row: dict[str, Any]) -> tuple[float, float]:
    valid = row["valid"]
    return valid.get("wer", valid["loss"]), valid["loss"]
