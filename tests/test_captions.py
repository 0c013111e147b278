"""Subtitles lose nothing and keep to their limits; every format can be read back."""

import itertools
import json
import random
from typing import get_args

import pytest

from distilkit import config
from distilkit.captions import FORMATS, Cue, Transcript, cues
from distilkit.decode import Word


def spoken(whole: str, each: float = 0.3, start: float = 0.0) -> list[Word]:
    """Words one after another without a pause."""
    return [
        Word(text=word, start=start + each * place, end=start + each * (place + 1), confidence=1.0)
        for place, word in enumerate(whole.split())
    ]


def test_cues_break_at_pauses() -> None:
    found = cues([*spoken("one two"), *spoken("three", start=1.395), *spoken("four", start=2.495)])
    assert [cue.text for cue in found] == ["one two three", "four"]
    assert (found[0].start, found[1].end) == (0.0, pytest.approx(2.795))
    assert found[0].end == pytest.approx(1.695)


def test_cues_break_after_seven_seconds_and_two_lines() -> None:
    found = cues(spoken("ha " * 20, each=0.5))
    assert [len(cue.text.split()) for cue in found] == [14, 6]
    assert [(cue.start, cue.end) for cue in found] == [(0.0, 7.0), (7.0, 10.0)]
    found = cues(spoken(" ".join(["twelve-chars"] * 8), each=0.1))
    assert [cue.text.count("\n") for cue in found] == [1, 0]
    assert found[0].text == "\n".join(["twelve-chars twelve-chars twelve-chars"] * 2)


@pytest.mark.parametrize("seed", range(5))
def test_cues_keep_to_their_limits_and_lose_nothing(seed: int) -> None:
    rng = random.Random(seed)
    found, now = [], 0.0
    for _ in range(200):
        length = rng.choice([1, 2, 5, 9, 30, 42, 43, 84, 85, 200, 300])
        seconds = rng.choice([0.02, 0.3, 1.0, 6.9, 8.0, 30.0]) if length > 42 else rng.random()
        name = "".join(rng.choice("abcä語-") for _ in range(length))
        found.append(Word(text=name, start=now, end=now + seconds, confidence=1.0))
        now += seconds + rng.choice([0.0, 0.0, 0.1, 0.79, 0.81, 3.0])
    made = cues(found)
    assert "".join(cue.text for cue in made).replace(" ", "").replace("\n", "") == "".join(
        word.text for word in found
    )
    for cue in made:
        assert 0 < cue.end - cue.start <= 7 + 1e-9
        lines = cue.text.split("\n")
        assert len(lines) <= 2
        assert all(0 < len(line) <= 42 for line in lines)
    assert all(a.end <= b.start + 1e-9 for a, b in itertools.pairwise(made))


def test_a_short_word_that_lasts_long_is_not_cut_apart() -> None:
    found = cues([Word(text="hello", start=1.0, end=30.0, confidence=1.0)])
    assert found == [Cue(start=1.0, end=8.0, text="hello")]


def test_a_language_without_spaces_is_cut_evenly() -> None:
    found = cues([Word(text="語" * 100, start=10.0, end=30.0, confidence=1.0)])
    assert [len(cue.text.replace("\n", "")) for cue in found] == [33, 34, 33]
    assert [cue.start for cue in found] == pytest.approx([10, 10 + 20 / 3, 10 + 40 / 3])
    assert found[-1].end == 30.0
    found = cues([Word(text="語" * 60, start=0.0, end=14.0, confidence=1.0)])
    assert [(cue.start, cue.end) for cue in found] == [(0.0, 7.0), (7.0, 14.0)]


# --------------------------------------------------------------------------------------- formats

SAID = Transcript(
    file="a/ä.wav",
    text="R&D <i> --> end",
    words=[
        Word(text="R&D", start=0.02, end=0.5, confidence=0.98),
        Word(text="<i>", start=0.9996, end=1.0, confidence=0.5),
        Word(text="-->", start=3599.9996, end=3600.5, confidence=0.5),
        Word(text="end", start=360_000.0, end=360_001.25, confidence=0.5),
    ],
)


def test_every_format_has_a_writer() -> None:
    assert set(FORMATS) == set(get_args(config.TranscriptFormat))


def test_text_and_json() -> None:
    assert FORMATS["txt"](SAID) == "R&D <i> --> end\n"
    line = FORMATS["json"](SAID)
    assert line.startswith(
        '{"file": "a/ä.wav", "text": "R&D <i> --> end", "words": [{"text": "R&D"'
    )
    assert line.index("\n") == len(line) - 1
    first = {"text": "R&D", "start": 0.02, "end": 0.5, "confidence": 0.98}
    assert json.loads(line)["words"][0] == first
    plain = FORMATS["json"](Transcript(file="x", text=""))
    assert plain == '{"file": "x", "text": ""}\n'
    silent = FORMATS["json"](Transcript(file="x", text="", words=[]))
    assert silent == '{"file": "x", "text": "", "words": []}\n'


def test_srt() -> None:
    assert FORMATS["srt"](SAID) == (
        "1\n00:00:00,020 --> 00:00:01,000\nR&D <i>\n\n"
        "2\n01:00:00,000 --> 01:00:00,500\n->\n\n"
        "3\n100:00:00,000 --> 100:00:01,250\nend\n\n"
    )


def test_vtt() -> None:
    assert FORMATS["vtt"](SAID) == (
        "WEBVTT\n\n"
        "00:00:00.020 --> 00:00:01.000\nR&amp;D &lt;i&gt;\n\n"
        "01:00:00.000 --> 01:00:00.500\n--&gt;\n\n"
        "100:00:00.000 --> 100:00:01.250\nend\n\n"
    )


@pytest.mark.parametrize(("name", "wanted"), [("srt", ""), ("vtt", "WEBVTT\n\n"), ("txt", "\n")])
def test_nothing_said(name: config.TranscriptFormat, wanted: str) -> None:
    assert FORMATS[name](Transcript(file="x", text="", words=[])) == wanted
