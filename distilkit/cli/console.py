"""What the commands share: streams, progress on a terminal or in a log, signals."""

import json
import logging
import os
import shlex
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
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

from distilkit.errors import DistilkitError

if TYPE_CHECKING:
    from distilkit.data import Skipped

LEADER = os.environ.get("RANK", "0") == "0"  # of several processes, the one that speaks
errors = Console(stderr=True, quiet=not LEADER)  # progress and logs; results go to stdout
UNLISTED = ("not audio", "no label")  # kinds of which the number says all
LOG_SECONDS = 5.0  # between two progress lines where there is no terminal
NOTHING = "nothing was written"  # what most commands leave when they are interrupted


class RateColumn(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        """The rate, once there is one."""
        return Text(f"{task.speed:,.1f}/s" if task.speed else "", style="progress.data.speed")


def manner(*, quiet: bool, verbose: bool) -> None:
    """How much is said beside results and errors: nothing, as usual, or what the libraries log too."""
    errors.quiet = quiet or not LEADER
    interruption(NOTHING)
    if quiet:
        warnings.simplefilter("ignore")
        os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    if verbose:
        os.environ |= {"HF_HUB_VERBOSITY": "info", "TRANSFORMERS_VERBOSITY": "info"}
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")


def say(text: str) -> None:
    """A line of log, as it stands."""
    errors.print(text, markup=False, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """A line that is said even when little is: what failed, what an interruption leaves."""
    before, errors.quiet = errors.quiet, not LEADER
    say(text)
    errors.quiet = before


def problem(error: DistilkitError) -> None:
    """An error and its hint."""
    before, errors.quiet = errors.quiet, not LEADER
    errors.print(f"[bold red]error:[/] {escape(error.problem)}", highlight=False, soft_wrap=True)
    if error.hint:
        errors.print(f"\n[bold cyan]hint:[/] {escape(error.hint)}", highlight=False, soft_wrap=True)
    errors.quiet = before


_left: str | Callable[[], str] = NOTHING
_again: str | None = None


def interruption(left: str | Callable[[], str], again: str | None = None) -> None:
    """Note what is there when the command is interrupted from here on, and what goes on with it.

    Args:
        left: what was written; a function where that grows.
        again: what to type to go on; None where only this command from its beginning will do.
    """
    global _left, _again
    _left, _again = left, again


def interrupted() -> str:
    """What an interruption leaves, and what to type."""
    left = _left() if callable(_left) else _left
    typed = f"go on with: {_again}" if _again else f"again with: {typed_again()}"
    return f"interrupted: {left}\n{typed}"


def typed_again(*more: str) -> str:
    """This command line, to be typed once more, with options behind the program's name."""
    return shlex.join(["distilkit", *more, *sys.argv[1:]])


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
    console = Console(file=sys.stdout, quiet=not LEADER) if to_result else errors
    if not console.is_terminal:
        console = Console(file=console.file, width=200, quiet=console.quiet)
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
