"""Progress on a terminal: bars that keep their place, whatever is printed or typed beside them."""

from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

NARROW = 70  # columns below which there is no room for the rate
TYPED = 3  # columns left free: the terminal shows `^C` there, which would else break the line


class Said(ProgressColumn):
    """A cell that is made of the task, in a width of its own, so that the bar beside it does not jump."""

    def __init__(self, say: Callable[[Task], str], width: int = 0) -> None:
        super().__init__()
        self._say, self._width = say, width

    def render(self, task: Task) -> Text:
        """The cell, to the right of its place."""
        return Text(self._say(task).rjust(self._width), style="progress.remaining", no_wrap=True)


def done(task: Task) -> str:
    """`  47/1,200`."""
    total = f"{int(task.total or 0):,}"
    return f"{int(task.completed):>{len(total)},}/{total}"


def rate(task: Task) -> str:
    """Items a second, once there is a rate."""
    return f"{task.speed:,.1f}/s" if task.speed else ""


def elapsed(task: Task) -> str:
    """Since it began."""
    from distilkit.audio import clock

    return clock(task.elapsed or 0.0)


def left(task: Task) -> str:
    """How long it will still take, once that can be told."""
    from distilkit.audio import clock

    remaining = task.time_remaining
    return "" if remaining is None else f"left {clock(remaining)}"


_shown: list["Bars"] = []


class Bars(Progress):
    """Bars, and a line below them."""

    below = ""

    def __init__(self, *columns: ProgressColumn, console: Console, **how: Any) -> None:
        self._on = console
        super().__init__(*columns, console=console, **how)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, and the line: cut where the terminal ends."""
        width = max(20, self._on.width - TYPED)
        yield Constrain(self.make_tasks_table(self.tasks), width)
        if self.below:
            yield Constrain(Text(self.below, no_wrap=True, overflow="ellipsis"), width)

    def start(self) -> None:
        """Begin to show them."""
        super().start()
        _shown.append(self)

    def stop(self) -> None:
        """Show them no more."""
        super().stop()
        if self in _shown:
            _shown.remove(self)


def still() -> None:
    """End what is shown, so that what is printed from here on stays."""
    for bars in list(_shown):
        bars.stop()


def counting(console: Console) -> Bars:
    """A bar that counts, and goes when all is counted."""
    wide = console.width >= NARROW
    return Bars(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=min(40, max(5, console.width - 60))),
        Said(done),
        *([Said(rate, 9)] if wide else []),
        Said(left, 15),
        console=console,
        transient=True,
    )


def training(console: Console) -> Bars:
    """A bar of optimizer steps, with their numbers below."""
    return Bars(
        TextColumn("step"),
        Said(done),
        BarColumn(bar_width=None),
        Said(elapsed, 11),
        Said(left, 16),
        console=console,
        expand=True,
    )
