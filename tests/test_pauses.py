"""Pauses: sound is found where it was put, and words are brought to its edges and no further."""

import numpy as np
import pytest
from conftest import voice

from distilkit.decode import Word
from distilkit.pauses import Stretch, bounded, levels, stretches, turns


def word(text: str, start: float, end: float) -> Word:
    return Word(text=text, start=start, end=end, confidence=0.5)


def test_levels_by_hand() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    assert levels(tone).shape == (49,)
    assert levels(tone) == pytest.approx(np.full(49, -3.01), abs=0.02)
    assert levels(0.1 * tone) == pytest.approx(levels(tone) - 20, abs=1e-3)
    assert levels(np.zeros(800, np.float32)) == pytest.approx([-120, -120])
    assert len(levels(tone[:399])) == 0


def joined(noise: float) -> np.ndarray:
    """Buzzing from 0.5 to 1.5 s, from 1.6 to 2.0 s (a closure between) and from 3.0 to 3.7 s."""
    rng = np.random.default_rng(0)
    sound = noise * rng.standard_normal(5 * 16_000)
    for first, last in ((0.5, 1.5), (1.6, 2.0), (3.0, 3.7)):
        span = slice(int(first * 16_000), int(last * 16_000))
        time = np.arange(span.stop - span.start) / 16_000
        sound[span] += 0.3 * np.sin(2 * np.pi * 200 * time)
    return sound.astype(np.float32)


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.01])
def test_sound_is_found_between_pauses(noise: float) -> None:
    found = stretches(levels(joined(noise)))
    assert [(s.start, s.end) for s in found] == [
        (pytest.approx(0.5, abs=0.03), pytest.approx(2.0, abs=0.03)),
        (pytest.approx(3.0, abs=0.03), pytest.approx(3.7, abs=0.03)),
    ]


def test_a_click_is_no_speech_and_steady_sound_has_no_pauses() -> None:
    sound = joined(0.001)
    sound[int(4.5 * 16_000) : int(4.5 * 16_000) + 100] = 0.5
    assert len(stretches(levels(sound))) == 2
    steady = 0.1 * np.random.default_rng(0).standard_normal(32_000)
    assert stretches(levels(steady.astype(np.float32))) == []
    assert stretches(np.zeros(0, np.float32)) == []
    assert stretches(levels(voice(2.0, 1)))  # a voice with breaks has some


SOUNDS = [Stretch(start=1.0, end=2.0), Stretch(start=4.0, end=5.0)]


def test_a_word_is_of_the_next_sound_from_the_middle_of_a_pause_or_half_a_second_before_it() -> (
    None
):
    assert turns([]) == turns(SOUNDS[:1]) == []
    assert turns([*SOUNDS, Stretch(start=5.4, end=6.0)]) == [3.5, pytest.approx(5.2)]


def test_words_at_pauses_begin_and_end_with_the_sound() -> None:
    spoken = [
        word("early", 0.7, 1.2),  # its first token came in the silence
        word("inside", 1.3, 1.5),
        word("late", 1.7, 2.4),  # its last one too
        word("alone", 4.1, 4.9),
    ]
    found = bounded(spoken, SOUNDS)
    assert [(w.text, w.start, w.end) for w in found] == [
        ("early", 1.0, 1.2),
        ("inside", 1.3, 1.5),
        ("late", 1.7, 2.0),
        ("alone", 4.0, 5.0),
    ]
    assert all(w.confidence == 0.5 for w in found)


def test_words_are_not_stretched_far_and_not_taken_along() -> None:
    far = word("x", 1.47, 1.53)  # something else was said before and behind it
    assert bounded([far], SOUNDS) == [far]
    assert bounded([word("x", 1.25, 1.75)], SOUNDS) == [word("x", 1.0, 2.0)]
    assert bounded([word("far", 2.8, 3.0)], SOUNDS) == [word("far", 2.8, 3.0)]
    assert bounded([word("near", 2.1, 2.2)], SOUNDS) == [word("near", 1.98, 2.0)]
    assert bounded([word("a", 0.8, 0.9), word("b", 1.1, 1.2)], SOUNDS)[0] == word("a", 1.0, 1.02)
    assert bounded([word("x", 1.0, 1.5)], []) == [word("x", 1.0, 1.5)]
    assert bounded([], SOUNDS) == []


def test_words_stay_in_order() -> None:
    spoken = [word("a", 3.9, 4.2), word("b", 1.9, 3.2), word("c", 4.4, 4.8)]
    starts = [w.start for w in bounded(spoken, SOUNDS)]
    assert starts == sorted(starts)
