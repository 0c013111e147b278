"""A few of the tries of `together.py`, and that a wrong end is noticed."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import together
from kills import Kind

KINDS = ("tokenizer", "targets", "embed-packed", "recipes-copy")
TRIES = 2


@pytest.mark.slow
def test_the_same_command_at_once(tmp_path: Path) -> None:
    script = Path(__file__).with_name("together.py")
    command = [sys.executable, str(script), "--kind", *KINDS, "--tries", str(TRIES)]
    place = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.findall(rf"(\S+) in one (\w+): {TRIES} tries, 0 failures", done.stdout)
    assert said == [(kind, way) for kind in KINDS for way in together.WAYS]
    assert list(tmp_path.iterdir()) == []


class Ended(together.Bench):
    """Stands for a process that ended so, said this, and left these files."""

    def __init__(self, scratch: Path, said: str, files: dict[str, str]) -> None:
        super().__init__(scratch)
        self.told, self.left = said, files

    def said(self) -> str:
        return self.told

    def files(self) -> dict[str, str]:
        return self.left


REFUSAL = "error: `run` is in use\n\nhint: wait"


@pytest.mark.parametrize(
    ("way", "codes", "said", "files", "problem"),
    [
        ("folder", [0, 1], REFUSAL, {"out": "a"}, ""),
        ("folder", [0, 0], "", {"out": "a"}, ""),
        ("folder", [1, 1], REFUSAL, {}, "none did its work"),
        ("folder", [0, 1], f"Traceback\n{REFUSAL}", {"out": "a"}, "ended with"),
        ("folder", [0, 1], f"{REFUSAL} {REFUSAL}", {"out": "a"}, "ended with"),
        ("folder", [0, -11], "", {"out": "a"}, "ended with"),
        ("folder", [0, None], "", {"out": "a"}, "did not end"),
        ("folder", [0, 0], "", {"out": "b"}, "out differs"),
        ("folder", [0, 0], "", {"out": "a", "more": "x"}, "more is left over"),
        ("folder", [0, 0], "", {}, "out is missing"),
        ("cache", [0, 1], REFUSAL, {"out": "a"}, "ended with"),
        ("cache", [0, 0], "", {"out": "b"}, "out differs"),
    ],
)
def test_a_wrong_end_is_noticed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    codes: list[int | None],
    said: str,
    files: dict[str, str],
    problem: str,
) -> None:
    group = [Ended(tmp_path / str(number), said, files) for number in range(2)]
    monkeypatch.setattr(together, "benches", lambda *_: group)
    monkeypatch.setattr(together, "run", lambda *_: (codes, "begun"))
    kind, whole = Kind(begin=["tokenizer"]), {"out": "a"}
    found = together.one(tmp_path, {}, kind, way, whole, 1.0, random.Random(0))
    assert problem in found
    assert bool(problem) == bool(found)
