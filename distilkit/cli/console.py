"""What the commands share: streams, progress on a terminal or in a log, signals."""

import json
import logging
import os
import re
import shlex
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from distilkit.cli import bars
from distilkit.errors import CONTROLS, DistilkitError, harmless
from distilkit.wording import counted

if TYPE_CHECKING:
    from distilkit.data import Skipped

LEADER = os.environ.get("RANK", "0") == "0"  # of several processes, the one that speaks
errors = Console(stderr=True, quiet=not LEADER)  # progress and logs; results go to stdout
UNLISTED = ("not audio", "no label")  # kinds of which the number says all
NOT_AUDIO = ("file that is not audio", "files that are not audio")
NOUNS = {"not audio": NOT_AUDIO, "two texts": ("text beside another", "texts beside another")} | {
    kind: (kind, f"{kind}s") for kind in ("duplicate", "silent part", "empty text", "broken row")
}  # kinds that are counted as things
LOG_SECONDS = 5.0  # at least, between two lines of progress where there is no terminal
NOTHING = "nothing was written"  # what most commands leave when they are interrupted


def manner(*, quiet: bool, verbose: bool) -> None:
    """How much is said beside results and errors: nothing, as usual, or what the libraries log too."""
    errors.quiet = quiet or not LEADER
    interruption(NOTHING)
    if quiet:
        warnings.simplefilter("ignore")
        os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    if verbose:
        os.environ |= {"HF_HUB_VERBOSITY": "info", "TRANSFORMERS_VERBOSITY": "info"}
        logging.setLogRecordFactory(_record)
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")


def _record(*told: Any, **more: Any) -> logging.LogRecord:
    """A line of any library's log, without the secrets in it."""
    record = logging.LogRecord(*told, **more)
    record.msg, record.args = harmless(record.getMessage()), None
    return record


TYPED = re.compile(r"(?:^|\s)(?:--[a-z]|(?:distilkit|pip|hf|cp|iconv|make) )")  # what is copied


def whole(text: str) -> bool:
    """Whether a text is left as one line: in a log, and where it holds what is to be typed."""
    return not errors.is_terminal or TYPED.search(text) is not None


def say(text: str) -> None:
    """A line of log without secrets and what a terminal would obey, which has prose broken at words."""
    errors.print(harmless(text), markup=False, highlight=False, soft_wrap=whole(text))


def warn(text: str) -> None:
    """A line that is said even when little is: what failed, what an interruption leaves."""
    before, errors.quiet = errors.quiet, not LEADER
    say(text)
    errors.quiet = before


def problem(error: DistilkitError) -> None:
    """An error and its hint."""
    bars.still()
    before, errors.quiet = errors.quiet, not LEADER
    said = [f"[bold red]error:[/] {escape(error.problem)}"]
    said += [f"\n[bold cyan]hint:[/] {escape(error.hint)}"] if error.hint else []
    for text in said:
        errors.print(text, highlight=False, soft_wrap=whole(text))
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
    bars.still()
    left = _left() if callable(_left) else _left
    typed = f"go on with: {_again}" if _again else f"again with: {typed_again()}"
    return f"interrupted: {left}\n{typed}"


def typed_again(*more: str) -> str:
    """This command line, to be typed once more, with options behind the program's name."""
    return shlex.join(["distilkit", *more, *sys.argv[1:]])


def result(text: str) -> None:
    """A line of result."""
    if LEADER:
        print(visible(text))


def visible(text: str) -> str:
    """A result as it is; on a terminal without what that would obey, whatever a name or a model brings."""
    return text.translate(CONTROLS) if sys.stdout.isatty() else text


def document(value: Any) -> None:
    """One JSON document as the result."""
    result(json.dumps(value, indent=2, ensure_ascii=False))


def track(items: Iterable[Any], *, description: str, total: int) -> Iterator[Any]:
    """Show progress over items: a bar on a terminal, a line every so often elsewhere."""
    if errors.is_terminal:
        with bars.counting(errors) as progress:
            yield from progress.track(items, total=total, description=description)
        return
    began = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown >= pause(now - began):
            from distilkit.audio import clock

            rate = done / (now - began)
            left = clock((total - done) / rate)
            say(f"{description}: {done:,} of {total:,}, {rate:,.1f}/s, left {left}")
            shown = now


def pause(seconds: float) -> float:
    """Seconds between two lines of a log: few lines where a run is long.

    Args:
        seconds: that it has taken so far.
    """
    return min(60.0, max(LOG_SECONDS, seconds / 20))


NUMBER = re.compile(r"(?:[+-]?[\d.,]+(?:e[+-]\d+)?(?: ?(?:%|[A-Za-z]{1,3}(?:/s)?))?|not measured)?")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A small table; the first column stands out, columns of numbers stand to the right."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    listed = [[harmless(str(cell)) for cell in row] for row in rows]
    for place, column in enumerate(columns):
        cells = [row[place] for row in listed]
        numbers = place > 0 and any(cells) and all(map(NUMBER.fullmatch, cells))
        made.add_column(
            column,
            style="cyan" if place == 0 else "",
            overflow="fold",
            justify="right" if numbers else "left",
        )
    for row in listed:
        made.add_row(*map(Text, row))
    return made


def fits(made: Table) -> bool:
    """Whether a table of results is shown without breaking its cells."""
    console = Console(file=sys.stdout)
    wanted = Measurement.get(console, console.options.update(max_width=10_000), made).maximum
    return not console.is_terminal or wanted <= console.width


def show(made: Table, *, to_result: bool = False) -> None:
    """Print a table, as log or as result; as wide as it needs where there is no terminal."""
    console = Console(file=sys.stdout, quiet=not LEADER) if to_result else errors
    if console.is_terminal:
        console.print(made)
    elif not console.quiet:
        plain = Console(file=StringIO(), width=10_000)
        plain.print(made)
        lines = plain.file.getvalue().splitlines()  # type: ignore[attr-defined]
        console.file.write("".join(f"{line.rstrip()}\n" for line in lines))


def left_out(skipped: "Sequence[Skipped]", where: str, shown: int = 8) -> None:
    """Say what is not used: how much of each kind, and the first ones with their reasons."""
    if not skipped:
        return
    counts = Counter(item.kind for item in skipped)
    said = ", ".join(
        counted(count, *NOUNS[kind]) if kind in NOUNS else f"{count:,} {kind}"
        for kind, count in counts.items()
    )
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
        warn("stopping as soon as all is saved; again to stop at once, without saving")
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
