"""What `large.py` says is too much."""

from typing import Any

import large
import pytest

FLAT: dict[str, Any] = {
    "seconds": 60.0,
    "peak_gib": 0.4,
    "quarters_gib": [0.1, 0.4, 0.4, 0.4],
}
TRAINED = {"read_seconds": 40.0, "first_step_seconds": 60.0}


@pytest.mark.parametrize(
    ("what", "changes", "problems"),
    [
        ("inspect flac", {}, []),
        ("inspect flac", {"peak_gib": 0.6}, ["inspect flac: 0.6 GiB, 0.5 at most"]),
        ("inspect flac", {"seconds": 301.0}, ["inspect flac: read in 301.0 s, 300 at most"]),
        ("embed one file", {"seconds": 9_000.0}, []),
        (
            "embed one file",
            {"quarters_gib": [0.1, 0.3, 0.35, 0.4]},
            ["embed one file: grows from 0.3 to 0.4 GiB"],
        ),
        ("distill one file", {"seconds": 9_000.0, **TRAINED}, []),
        (
            "distill one file",
            {**TRAINED, "read_seconds": None},
            ["distill one file: read in None s, 300 at most"],
        ),
        (
            "resume one file",
            {**TRAINED, "first_step_seconds": 0},
            ["resume one file: first step after 0 s, 450 at most"],
        ),
    ],
)
def test_what_is_too_much(what: str, changes: dict[str, Any], problems: list[str]) -> None:
    assert large.beyond(what, FLAT | changes) == problems


def test_every_command_has_its_limits() -> None:
    commands = {"inspect", "plan", "distill", "resume", "embed", "transcribe", "tokenizer"}
    assert large.MOST.keys() == commands | {"finetune-ctc"}
