"""Reports in a real browser: nothing fetched, nothing broken, sound that plays, legible for everyone."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from reports import make_hostile, make_long

from distilkit import report
from distilkit.runs import Run

HERE = Path(__file__).parent
MODULES = (
    HERE.parents[1] / "build" / "browser"
)  # where `make browser` puts playwright-core and axe-core
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

pytestmark = pytest.mark.browser


def lacking() -> str:
    """What this machine lacks for these tests."""
    if not any(map(shutil.which, BROWSERS)):
        return "no Chromium here"
    if not shutil.which("node"):
        return "no Node.js here"
    if not (MODULES / "node_modules" / "axe-core").is_dir():
        return "playwright-core and axe-core are not there; `make browser` fetches them"
    return ""


@pytest.fixture(scope="module")
def seen(
    distilled: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What Chromium found on each page, in light and dark, wide and narrow."""
    if reason := lacking():
        if os.environ.get("DISTILKIT_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    runs = tmp_path_factory.mktemp("runs")
    for name, source in (
        ("distilled", distilled),
        ("tuned", tuned),
        ("hostile", tuned),
        ("long", distilled),
    ):
        shutil.copytree(source, runs / name)
    make_hostile(runs / "hostile")
    make_long(runs / "long")
    shutil.copytree(distilled, runs / "begun", ignore=shutil.ignore_patterns("student", "*.json"))
    shutil.copy(distilled / "run.json", runs / "begun")
    pages = [report.Report(Run(folder)).write() for folder in sorted(runs.iterdir())]
    browser = next(filter(None, map(shutil.which, BROWSERS)))
    command = ["node", HERE / "check.mjs", MODULES, browser, *pages]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(found) == 4 * len(pages) == 20
    return found


def failures(seen: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Where a list of faults is not empty."""
    return {
        f"{Path(each['file']).parent.name}, {each['colorScheme']}, {each['width']}": each[name]
        for each in seen
        if each[name]
    }


def test_nothing_is_said_fetched_or_missing(seen: list[dict[str, Any]]) -> None:
    for name in ("said", "asked", "broken"):
        assert failures(seen, name) == {}
    assert all(each["charts"] >= 4 for each in seen)


def test_everyone_can_read_it(seen: list[dict[str, Any]]) -> None:
    """Names, contrast, structure by axe-core; letters of 12 pixels or more; nothing beyond the edge."""
    for name in ("violations", "small", "overflow"):
        assert failures(seen, name) == {}


def test_paper_is_white_and_nothing_is_torn(seen: list[dict[str, Any]]) -> None:
    """Printed: no links and players, tables and pictures whole, no heading at the end of a page."""
    assert failures(seen, "paper") == {}


def test_recordings_play(seen: list[dict[str, Any]]) -> None:
    for each in seen:
        if Path(each["file"]).parent.name == "tuned":
            assert 1 <= len(each["audio"]) <= 8
        for player in each["audio"]:
            assert player["failed"] == ""
            assert 1.0 < player["duration"] < 3.5
            assert player["played"] > 0
            assert player["label"].startswith("Recording ")


def test_the_cursor_reads_values(seen: list[dict[str, Any]]) -> None:
    for each in seen:
        cursor = each["cursor"]
        assert cursor["inside"].startswith("step ")
        assert cursor["inside"] != cursor["before"] == cursor["after"]


def test_a_long_run_opens_within_a_second(seen: list[dict[str, Any]]) -> None:
    pages = [each for each in seen if Path(each["file"]).parent.name == "long"]
    assert min(each["opened"] for each in pages) < 1000
    assert Path(pages[0]["file"]).stat().st_size < 3_000_000
