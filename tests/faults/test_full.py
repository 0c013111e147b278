"""A few of the places of `full.py` at which the disk is full, and that a wrong end is noticed."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import full
import pytest
from kills import Kind

KINDS = ("tokenizer", "lm", "convert-s3prl")
TRIES = 5


@pytest.mark.slow
def test_the_disk_is_full_at_some_places(tmp_path: Path) -> None:
    script = Path(__file__).with_name("full.py")
    command = [
        sys.executable,
        str(script),
        "--by",
        "places",
        "--kind",
        *KINDS,
        "--tries",
        str(TRIES),
    ]
    place = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.findall(r"(\S+): (\d+) tries, (\d+) too small, 0 failures", done.stdout)
    assert [name for name, *_ in said] == list(KINDS)
    assert all(int(tries) >= int(short) >= TRIES - 2 for _, tries, short in said)
    assert list(tmp_path.iterdir()) == []


WORDS = "error: cannot write `out`: No space left on device\n\nhint: make room"


class Ended:
    """Stands for a bench with a command that ended so, and what lies there."""

    def __init__(self, codes: list[int], said: str, files: dict[str, str]) -> None:
        self.codes, self.said, self.files = codes, lambda: said, lambda: files
        self.work = Path("nowhere")

    def start(self, arguments: list[str]) -> int:
        return 0


@pytest.mark.parametrize(
    ("codes", "said", "files", "problem"),
    [
        ([1, 0], WORDS, {"out": "a"}, ""),
        ([0], "", {"out": "a"}, ""),
        ([1, 0], WORDS, {}, r"missing, left over or another: \['out'\]"),
        ([0], "", {"out": "half"}, "missing, left over or another"),
        ([1, 0], WORDS, {"out": "a", ".out.partial-1": ""}, "half-written files are left"),
        ([1, 1], WORDS, {"out": "a"}, "with room again it ended with 1"),
        (
            [1, 0],
            "error: unexpected RuntimeError",
            {"out": "a"},
            "does not say that the disk is full",
        ),
        ([1, 0], f"Traceback\n{WORDS}", {"out": "a"}, "ended with 1: Traceback"),
        ([-11, 0], "", {"out": "a"}, "ended with -11"),
        ([1, 0], WORDS + "\nmore" * 20, {"out": "a"}, "an error of 23 lines"),
    ],
)
def test_a_wrong_end_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
    codes: list[int],
    said: str,
    files: dict[str, str],
    problem: str,
) -> None:
    left = list(codes)
    monkeypatch.setattr(full, "ended", lambda child: left.pop(0))
    bench = Ended(codes, said, files)
    short, found = full.one(bench, Kind(begin=[]), {"out": "a"}, 0, "there")  # type: ignore[arg-type]
    assert short == (codes[0] != 0)
    assert bool(found) == bool(problem)
    assert re.search(problem, found)
    if found:
        assert found.startswith("there: ")


def test_every_place_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that need room, the first time and another."""
    ends = []

    class Counted(Ended):
        def fresh(self) -> None: ...

        def counted(self) -> dict[str, int]:
            return {"a.py:1 create": 1, "a.py:2 write": 9, "a.py:3 unlink": 4, "a.py:4 fsync": 2}

        def start(self, arguments: list[str], end: object = None, full: bool = False) -> int:
            ends.append((end, full))
            return 0

    monkeypatch.setattr(full, "ended", lambda child: 0)
    monkeypatch.setattr(full, "one", lambda *given: (True, given[-1]))
    bench = Counted([], "", {})
    found = [told for _, told in full.by_places(bench, Kind(begin=[]), 0, random.Random(0))]  # type: ignore[arg-type]
    assert ends[0] == (None, False)
    assert all(asked for _, asked in ends[1:])
    assert sorted(found)[0] == "a.py:1 create, time 1"
    assert [told.rpartition(",")[0] for told in sorted(found)] == [
        "a.py:1 create",
        *["a.py:2 write"] * 2,
        *["a.py:4 fsync"] * 2,
    ]
