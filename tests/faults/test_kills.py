"""A few of the kills of `kills.py`, of the kinds that resume in ways of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

KINDS = ("targets", "embed-packed", "units", "transcribe", "tokenizer")
KILLS = 3


@pytest.mark.slow
def test_killed_while_they_write(tmp_path: Path) -> None:
    script = Path(__file__).with_name("kills.py")
    command = [sys.executable, str(script), "--kind", *KINDS, "--kills", str(KILLS)]
    place = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.findall(r"(\S+): \d+ tries, (\d+) kills, (\d+) in writing", done.stdout)
    assert [name for name, _, _ in said] == list(KINDS)
    assert all(int(kills) >= KILLS and int(writing) for _, kills, writing in said)
    assert list(tmp_path.iterdir()) == []
