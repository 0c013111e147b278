"""What the commands share: streams, progress on a terminal or in a log, signals."""

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from distilkit.data import Skipped

LEADER = os.environ.get("RANK", "0") == "0"  # of several processes, the one that speaks
errors = Console(stderr=True, quiet=not LEADER)  # progress and logs; results go to stdout
UNLISTED = ("not audio", "no label")  # kinds of which the number says all
LOG_SECONDS = 5.0  # between two progress lines where there is no terminal


class RateColumn(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        """The rate, once there is one."""
        return Text(f"{task.speed:,.1f}/s" if task.speed else "", style="progress.data.speed")


def say(text: str) -> None:
    """A line of log, as it stands."""
    errors.print(text, markup=False, highlight=False, soft_wrap=True)


def result(text: str) -> None:
    """A line of result."""
    if LEADER:
        print(text)


def document(value: Any) -> None:
    """One JSON document as the result."""
    result(json.dumps(value, indent=2, ensure_ascii=False))


def track(items: Iterable[Any], *, description: str, total: int) -> Iterator[Any]:
    """Show progress over items: a bar on a terminal, a line every few seconds elsewhere."""
    if errors.is_terminal:
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeRemainingColumn(),
            console=errors,
            transient=True,
        ) as progress:
            yield from progress.track(items, total=total, description=description)
        return
    began = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown >= LOG_SECONDS:
            say(f"{description}: {done} of {total}, {done / (now - began):.0f}/s")
            shown = now


def training_bar() -> Progress:
    """The bar of a training run; its tasks carry a field `numbers`."""
    return Progress(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=errors,
        expand=True,
    )


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A small table; the first column stands out."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for place, column in enumerate(columns):
        made.add_column(column, style="cyan" if place == 0 else "", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def show(made: Table, *, to_result: bool = False) -> None:
    """Print a table, as log or as result; as wide as it needs where there is no terminal."""
    console = Console(file=sys.stdout) if to_result else errors
    if not console.is_terminal:
        console = Console(file=console.file, width=200)
    console.print(made)


def left_out(skipped: "Sequence[Skipped]", where: str, shown: int = 8) -> None:
    """Say what is not used: how much of each kind, and the first ones with their reasons."""
    if not skipped:
        return
    counts = Counter(item.kind for item in skipped)
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    say(f"left out: {said}" + (f" ({where})" if where else ""))
    for item in [item for item in skipped if item.kind not in UNLISTED][:shown]:
        say(f"  {item.path}: {item.reason}")


class Stop:
    """Whether SIGINT or SIGTERM has arrived; a second one ends at once."""

    asked = False

    def __call__(self) -> bool:
        """Whether to stop after this step."""
        return self.asked


@contextmanager
def stopping() -> Iterator[Stop]:
    """Let SIGINT and SIGTERM ask to stop instead of stopping at once."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        say("stopping after this step; again to stop at once, without saving")
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
