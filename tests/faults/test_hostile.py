"""A few dozen tries of hostile input of each kind; and the harness notices all that it is there to notice."""

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace

import found
import hostile
import numpy as np
import pytest
from mutate import Seed

from distilkit.errors import DistilkitError

TRIES = 42


@pytest.mark.slow
def test_hostile_input_is_used_or_refused(tmp_path: Path) -> None:
    line = [sys.executable, str(Path(hostile.__file__)), "--tries", str(TRIES), "--seed", "77"]
    environment = {**os.environ, "HOSTILE_CASES": str(tmp_path / "cases")}
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    rows = [json.loads(row) for row in done.stdout.splitlines()]
    assert [row["kind"] for row in rows] == list(hostile.KINDS)
    for row in rows:
        assert (row["tries"], row["failed"]) == (TRIES, 0)
        assert set(row["outcomes"]) == {"used", "refused"}
    assert not (tmp_path / "cases").exists()


# ------------------------------------------------------------- that the harness can fail


def fill() -> None:
    """Much more memory than is allowed, and less than the process may ask for."""
    held = bytearray(100 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])


def crash() -> None:
    ctypes.string_at(0)


def say(problem: str) -> None:
    raise DistilkitError(problem)


def lose() -> None:
    raise AssertionError("a file is neither used nor listed")


def spin() -> None:
    while True:
        pass


OUTSIDE = Path("../outside")
ENDS: dict[str, tuple[Callable[[], object], str, str]] = {
    "used": (lambda: None, "used", ""),
    "refused": (lambda: say("`a` is damaged"), "refused", "`a` is damaged"),
    "another exception": (lambda: {}["a"], "exception", "KeyError: 'a'"),
    "an assertion of a library": (lambda: np.testing.assert_equal(1, 2), "exception", "AssertionError"),
    "an end": (lambda: sys.exit(3), "exception", "SystemExit: 3"),
    "an end without a word": (lambda: os._exit(0), "exception", "status 0"),
    "a signal": (crash, "signal", "SIGSEGV"),
    "the processor busy": (spin, "hang", "in spin"),
    "waiting": (lambda: time.sleep(99), "hang", "(most recent call first)"),
    "memory": (fill, "memory", "MiB: "),
    "more memory than there is": (lambda: bytearray(1 << 40), "exception", "MemoryError"),
    "a file lost": (lose, "lost or wrong", "neither used nor listed"),
    "an error that says nothing": (lambda: say(" "), "lost or wrong", "says nothing"),
    "code that ran": (lambda: Path("ran").touch(), "escaped", "code ran"),
    "a command that ran": (lambda: os.system("touch ran"), "escaped", "code ran"),
    "a file outside written": (lambda: (OUTSIDE / "new").touch(), "escaped", "outside was opened: ['new']"),
    "a file outside changed": (lambda: os.utime(OUTSIDE / "canary", (1, 1)), "escaped", "a file outside was written"),
    "a file outside gone": (lambda: (OUTSIDE / "canary").unlink(), "escaped", "a file outside was written"),
    "a file outside read": (lambda: (OUTSIDE / "canary").read_text(), "escaped", "outside was opened: ['canary']"),
    "one read by a program": (lambda: os.system("cat ../outside/canary"), "escaped", "outside was opened: ['canary']"),
    "one read and refused": (lambda: say((OUTSIDE / "canary").read_text()), "escaped", "then: do not read this"),
}  # fmt: skip


def module(end: Callable[[], object]) -> SimpleNamespace:
    """A kind of input whose damaged form ends in a certain way."""

    def seeds(folder: Path) -> list[Seed]:
        (folder / "one").mkdir()
        (folder / "one" / "file").write_text("whole")
        return [Seed(name="one", folder=folder / "one")]

    def mutate(seed: Seed, folder: Path, rng: Random) -> str:
        (folder / "file").write_text("damaged")
        return "damage"

    def use(seed: Seed, folder: Path, told: str) -> tuple[str, str]:
        if (folder / "file").read_text() == "damaged":
            end()
        return "used", ""

    return SimpleNamespace(seeds=seeds, mutate=mutate, use=use, enclosed=lambda *_: True)


@pytest.mark.parametrize("name", ENDS)
def test_each_way_to_fail_is_noticed(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    end, outcome, said = ENDS[name]
    monkeypatch.setitem(sys.modules, "mutate_this", module(end))
    monkeypatch.setattr(hostile, "KINDS", {"this": "mutate_this"})
    monkeypatch.setattr(hostile, "LONGEST", 3)
    if name == "waiting":
        monkeypatch.setattr(hostile, "WAITING", 3.0)
    monkeypatch.setattr(hostile, "MOST_BYTES", 64 << 20)
    monkeypatch.setenv("HOSTILE_CASES", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["hostile.py", "--kind", "this", "--tries", "1"])
    with pytest.raises(SystemExit) as ended:
        hostile.main()
    failed = outcome not in ("used", "refused")
    assert ended.value.code == failed
    row = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert row["outcomes"] == {outcome: 1}
    assert row["failed"] == failed
    if failed:
        kept = tmp_path / "this-0-0"
        assert (kept / "input" / "file").read_text() == "damaged"
        assert said in json.loads((kept / "result.json").read_text())["said"]
    else:
        assert list(tmp_path.iterdir()) == []
    assert not Path("ran").exists()


def test_undamaged_input_must_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that is refused already, tries would show nothing."""
    refusing = module(lambda: None)
    refusing.use = lambda *_: say("no")
    monkeypatch.setitem(sys.modules, "mutate_this", refusing)
    monkeypatch.setattr(hostile, "KINDS", {"this": "mutate_this"})
    with pytest.raises(AssertionError, match="refused"):
        next(hostile.tried("this", 1))


def test_a_try_is_the_same_each_time() -> None:
    from mutate_audio import WAYS, damaged

    content = bytes(range(256)) * 9
    for number in range(50):
        first, again = (damaged(content, Random(f"a {number}"), WAYS) for _ in range(2))
        assert first == again


def test_what_was_found_has_its_test() -> None:
    assert found.missing() == []
    assert len(set(found.DEFECTS.values())) == len(found.DEFECTS)
    page = found.TESTS.parent / "docs" / "concepts" / "safety.md"
    assert f"at least {len(found.DEFECTS)}." in page.read_text(encoding="utf-8")
