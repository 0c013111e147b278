"""What audio a run uses, and what was left out: from `audio.jsonl.gz` and `skipped.tsv`."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distilkit.data import tables
from distilkit.errors import DistilkitError
from distilkit.files import MALFORMED

BARS = 24  # of the histogram of lengths
LISTED = 20  # files of a kind that are named with their reasons
FAST = 1 / 50  # seconds; lengths are counted in steps of this


@dataclass
class Sources:
    """What was used."""

    lengths: dict[str, Counter[int]] = field(
        default_factory=lambda: {"train": Counter(), "valid": Counter()}
    )  # windows by their length in steps of 1/50 s
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "valid": 0.0})
    rates: Counter[int] = field(
        default_factory=Counter
    )  # Hz of the user's files; 0 where not known
    suffixes: Counter[str] = field(default_factory=Counter)
    speakers: dict[str, set[str]] = field(default_factory=lambda: {"train": set(), "valid": set()})
    kinds: dict[str, tuple[int, float]] = field(default_factory=dict)  # of what was left out
    left_out: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # path and reason

    @property
    def windows(self) -> int:
        """How many windows there are."""
        return sum(counts.total() for counts in self.lengths.values())

    def bars(self) -> tuple[list[float], dict[str, list[int]]]:
        """Edges in seconds, and how many windows of each split lie between them."""
        every = [length for counts in self.lengths.values() for length in counts]
        low, high = min(every), max(every) + 1
        width = max(1, -(-(high - low) // BARS))
        low -= low % width
        bars = -(-(high - low) // width)
        counted = {split: [0] * bars for split in self.lengths}
        for split, counts in self.lengths.items():
            for length, count in counts.items():
                counted[split][(length - low) // width] += count
        return [(low + bar * width) * FAST for bar in range(bars + 1)], counted


def read(folder: Path) -> Sources:
    """What the run in a folder uses; of a file that is missing or damaged as much as can be read."""
    found, files = Sources(), set[str]()
    with suppress(*MALFORMED):
        for row in windows(folder / "audio.jsonl.gz"):
            _take(found, row, files)
    with (
        suppress(OSError, ValueError),
        (folder / "skipped.tsv").open(encoding="utf-8", errors="replace") as rows,
    ):
        next(rows, "")
        for line in rows:
            kind, seconds, path, reason = (line.rstrip("\n").split("\t") + [""] * 4)[:4]
            count, lasting = found.kinds.get(kind, (0, 0.0))
            found.kinds[kind] = count + 1, lasting + float(seconds or 0)
            if count < LISTED:
                found.left_out.setdefault(kind, []).append((path, reason))
    return found


def _take(found: Sources, row: dict[str, Any], files: set[str]) -> None:
    """Count a window."""
    custom = row.get("custom") or {}
    split = "valid" if custom.get("split") == "valid" else "train"
    found.lengths[split][int(row["duration"] / FAST)] += 1
    found.seconds[split] += row["duration"]
    found.speakers[split] |= {
        said["speaker"] for said in row["supervisions"] if said.get("speaker")
    }
    source = custom.get("source") or row["recording"]["id"]
    if source not in files:
        files.add(source)
        found.rates[custom.get("rate", 0)] += 1
        found.suffixes[Path(source).suffix.lower() or "none"] += 1


def windows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of `audio.jsonl.gz`, up to where it is damaged."""
    with suppress(DistilkitError):
        for _, row in tables.json_lines(path):
            yield row
