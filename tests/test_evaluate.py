"""Errors of a recogniser: known errors give known rates, for any model with CTC."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import soundfile
from conftest import voice

from distilkit import evaluate, tokenizers
from distilkit.decode import Search
from distilkit.errors import DistilkitError
from distilkit.tokenizers import Tokenizer


class Listener:
    """A recogniser that hears by the length of a clip: every tenth of a second is a known text."""

    TEXTS: ClassVar = {10: "a bee", 11: "a bee sees", 12: "tree", 13: ""}

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def to(self, _: str) -> "Listener":
        return self

    def logprobs(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = []
        for clip in clips:
            rows = np.full((80, len(self.tokenizer)), -9.0, np.float32)
            said = self.tokenizer.encode(self.TEXTS[len(clip) // 1600])
            path = [part for token in said for part in (token, 0)]
            path += [0] * (80 - len(path))
            rows[np.arange(80), path] = 0.0
            found.append(rows)
        return found


@pytest.fixture
def heard(letters: Path) -> Listener:
    return Listener(tokenizers.load(letters))


def corpus(folder: Path, rows: list[tuple[float, str, str]]) -> Path:
    folder.mkdir()
    lines = ["file_name,transcription,speaker"]
    for place, (seconds, text, speaker) in enumerate(rows):
        soundfile.write(folder / f"{place}.wav", voice(seconds, place), 16_000, "PCM_16")
        lines.append(f'{place}.wav,"{text}",{speaker}')
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


ROWS = [
    (1.0, "A bee!", "ann"),
    (1.1, "a bee keeps", "ann"),
    (1.2, "tree", "bob"),
    (1.3, "no tree", "bob"),
    (1.0, "?!", "bob"),
    (1.2, "Éa tree", ""),
]


def test_known_errors_give_known_rates(heard: Listener, tmp_path: Path) -> None:
    found = evaluate.evaluate([corpus(tmp_path / "said", ROWS)], heard)
    assert [(item.said, item.heard) for item in found.utterances] == [
        ("a bee", "a bee"),
        ("a bee keeps", "a bee sees"),
        ("tree", "tree"),
        ("no tree", ""),
        ("éa tree", "tree"),
    ]
    assert found.errors.words.spoken == 10
    assert found.errors.words.errors == 4
    assert (found.errors.words.substitutions, found.errors.words.deletions) == (1, 3)
    assert {who: e.words.rate for who, e in found.speakers().items()} == {
        "bob": pytest.approx(2 / 3),
        "ann": pytest.approx(1 / 5),
    }
    assert list(found.speakers()) == ["bob", "ann"]  # worst first
    assert [item.said for item in found.worst(2)] == ["no tree", "a bee keeps"]
    assert found.wer[0] < 0.4 < found.wer[1]
    assert found.unknown == {"é": 1}
    assert [(Path(item.path).name, item.kind) for item in found.skipped] == [
        ("4.wav", "empty text")
    ]
    assert found.confusions()[("keeps", "sees")] == 1
    assert found.seconds == pytest.approx(1.0 + 1.1 + 1.2 + 1.3 + 1.2, abs=0.01)
    evaluate.write(found, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows[1] == {
        "id": found.utterances[1].id, "speaker": "ann", "seconds": 1.1, "said": "a bee keeps",
        "heard": "a bee sees", "word_errors": 1, "words": 3,
    }  # fmt: skip


def test_two_recognisers_are_compared_on_the_same_utterances(
    heard: Listener, tmp_path: Path
) -> None:
    folder = corpus(tmp_path / "said", ROWS)
    one = evaluate.evaluate([folder], heard)
    by, (low, high) = evaluate.difference(one, one)
    assert (by, low, high) == (0.0, 0.0, 0.0)
    worse = evaluate.Evaluation(
        **{
            **vars(one),
            "utterances": [
                evaluate.Judged(**{**vars(item), "errors": one.utterances[3].errors})
                for item in one.utterances
            ],
        }
    )
    by, (low, high) = evaluate.difference(one, worse)
    assert by == pytest.approx(1.0 - 0.4)
    assert 0 < low <= by <= high


def test_an_interval_that_is_equal_in_every_draw_says_so(heard: Listener, tmp_path: Path) -> None:
    found = evaluate.evaluate([corpus(tmp_path / "said", [(1.0, "a bee", "x")] * 3)], heard)
    assert found.wer == (0.0, 0.0)
    assert found.worst(5) == []


def test_texts_of_which_nothing_is_left(heard: Listener, tmp_path: Path) -> None:
    with pytest.raises(DistilkitError, match="no text is left"):
        evaluate.evaluate([corpus(tmp_path / "said", [(1.0, "!", "x")] * 2)], heard)


def test_beam_search_is_used_where_it_is_asked_for(
    heard: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def decoded(rows: np.ndarray, tokenizer: object, search: Search | None) -> list[int]:
        asked.append(search)
        return []

    monkeypatch.setattr(evaluate, "decoded", decoded)
    found = evaluate.evaluate(
        [corpus(tmp_path / "said", [(1.0, "a bee", "x")])], heard, search=Search(width=7)
    )
    assert asked == [Search(width=7)]
    assert found.errors.words.rate == 1.0
