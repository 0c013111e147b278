"""What is built in: the teacher `tiny`, the words, and what the demo says of a student."""

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distilkit import demo, hub, teachers
from distilkit.audio import load
from distilkit.config import Student
from distilkit.students import build

TINY = hub.BUILT_IN["tiny"]


def test_tiny_is_small_and_of_the_teachers_form() -> None:
    encoder, checkpoint = teachers.load("tiny")
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= 8_000_000
    assert encoder.depth == 12
    assert checkpoint.model.config.feat_extract_norm == "group"
    assert not encoder.normalise
    assert checkpoint.notes == ()
    weights = load_file(TINY / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert {p.dtype for p in checkpoint.model.parameters()} == {torch.float32}


def test_tiny_has_a_card_that_says_what_it_is_for() -> None:
    card = (TINY / "README.md").read_text(encoding="utf-8")
    for heading in (
        "What it is for",
        "What it is not for",
        "Data",
        "How it was made",
        "What was measured",
    ):
        assert f"## {heading}" in card


def test_tiny_is_the_built_in_one_whatever_lies_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    assert hub.locate("tiny") == TINY
    assert hub.locate("./tiny") == Path("tiny")


def test_every_voice_says_every_word() -> None:
    with (demo.WORDS / "metadata.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    voices = {row["speaker"] for row in rows}
    words = {row["transcription"] for row in rows}
    assert (len(voices), len(words)) == (12, 20)
    assert len({(row["speaker"], row["transcription"]) for row in rows}) == len(rows) == 240
    assert len(voices) % demo.VOICES_OUT == 0
    for row in rows[::40]:
        assert 0.3 < len(load(demo.WORDS / row["file_name"])) / 16_000 < 2


def test_what_a_student_kept() -> None:
    teacher, _ = teachers.load("tiny")
    student, _ = build(teacher, Student(architecture="paper-ln"))
    kept = demo.compare(student, teacher)
    assert kept.student_parameters < 0.3 * kept.teacher_parameters
    assert kept.speed_up > 1
    assert kept.teacher_words > 0.5
    fresh, _ = build(teacher, Student(architecture="paper-ln", start="random"))
    assert demo.compare(fresh, teacher).student_words < kept.student_words - 0.2
