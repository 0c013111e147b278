"""The report of a run: one page that needs nothing else, written while it trains and completed at its end.

The page follows from files of the run folder alone. What takes long (likeness of layers, speed, the worst
utterances) is measured once, when the run is done, and kept in `report.json`.
"""

import time
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from distilkit import plan
from distilkit.data import Tracker, untracked
from distilkit.errors import DistilkitError
from distilkit.files import MALFORMED, parse_json, write_text
from distilkit.pages import PROBES
from distilkit.report import measure, page, sources
from distilkit.report.history import History
from distilkit.report.measure import FILE, MEASURES, missing, reason
from distilkit.report.told import Told, recipe
from distilkit.runs import Run

__all__ = ["FILE", "MEASURES", "PAGE", "Report", "complete", "damaged", "missing", "reason"]

PAGE = "report.html"
SHARE = 0.01  # of the time of a run that its report may take


class Report:
    """The report of one run, to be written again and again: logs are read on, not anew.

    Args:
        run: the run; its folder is there.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._written = self._took = 0.0

    def write(self, state: str = "", out: Path | None = None, *, sound: bool = True) -> Path:
        """Write the page, whole or not at all, and return its path.

        Args:
            state: what the run is doing, a key of `page.STATES`; it does not matter once it is finished.
            out: where to; into the run folder when None.
            sound: whether recordings may be played.

        Raises:
            DistilkitError: it cannot be written, or a log is damaged.
        """
        path = out or self._run.folder / PAGE
        write_text(path, page.render(self.told(state, sound)))
        return path

    def told(self, state: str = "", sound: bool = True) -> Told:
        """What the page is made of, with what was added to the logs.

        Raises:
            DistilkitError: a line of a log is damaged.
        """
        folder = self._run.folder
        self._read.history.read()
        return replace(
            self._read,
            measured=measure.kept(folder),
            probes=_probes(folder),
            finished=self._run.finished,
            state=state,
            sound=sound,
        )

    @cached_property
    def _read(self) -> Told:
        """What of the run does not change, and its logs."""
        folder = self._run.folder
        settings = recipe(folder, self._run.kind)
        early = plan.measured_steps(settings) if settings else 0
        return Told(
            folder=folder,
            facts=self._run.read(),
            recipe=settings,
            history=History(folder, early),
            sources=sources.read(folder),
        )

    def update(self, state: str) -> str:
        """Write the page while the run goes on, and return what went wrong, if anything did.

        Where writing takes more than a hundredth of the time, pages that show a run training are left out.
        """
        began = time.monotonic()
        if state == "training" and self._written and began - self._written < self._took / SHARE:
            return ""
        try:
            self.write(state)
        except Exception as error:  # no run ends because of its report
            return f"the report could not be written: {reason(error)}"
        finally:
            self._written = time.monotonic()
            self._took = self._written - began
        return ""


def damaged(run: Run, error: Exception) -> DistilkitError:
    """Which file of a run says other things than it should, so that there is no page: one of `MALFORMED`."""
    told = Report(run).told()
    without = {FILE: replace(told, measured={}), PROBES: replace(told, probes={})}
    for name, rest in without.items():
        with suppress(*MALFORMED):
            page.render(rest)
            file = told.folder / name
            again = f"rm {file}; distilkit report {told.folder}"
            return DistilkitError(f"`{file}` is damaged: {reason(error)}", again)
    file = told.folder / "run.json"
    return DistilkitError(f"`{file}` is damaged: {reason(error)}", "start again with a new --out")


def _probes(folder: Path) -> dict[str, Any]:
    try:
        found = parse_json((folder / PROBES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def complete(
    run: Run, out: Path | None = None, *, sound: bool = True, track: Tracker = untracked
) -> tuple[Path, dict[str, str]]:
    """Measure what is missing of a finished run, and write its report.

    Args:
        run: finished or not.
        out: where to; into the run folder when None.
        sound: whether recordings may be played.
        track: wraps an iterable to show progress.

    Returns:
        The page, and what could not be measured with the reason; the page says it too.

    Raises:
        DistilkitError: there is no run, a log is damaged, or the page cannot be written.
    """
    run.read()
    names, problems = missing(run), dict[str, str]()
    if names:
        problems = measure.measure(run, names, track)
    return Report(run).write(out=out, sound=sound), problems
