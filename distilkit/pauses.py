"""Where sound begins and ends between pauses, and the times of words brought there.

CTC decides which tokens are said, not when: its first token often comes in the silence before a
word, its last one in the silence behind. Where a word meets a pause, the sound itself says when.

Letters in names: S samples, T frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from distilkit.audio import FRAME_RATE, FRAME_SAMPLES, HOP_SAMPLES, Samples, frames
from distilkit.decode import Word

Levels = npt.NDArray[np.float32]  # (T,), dB of full scale

RANGE = 28.0  # dB below the loudest frames down to which sound counts as speech
ABOVE_FLOOR = 10.0  # dB above the quietest frames from which it does
LEAST_RANGE = 20.0  # dB between loud and quiet below which no pause can be told from speech
CLOSURE = 0.2  # seconds; shorter gaps are inside of speech, as before a `t`
CLICK = 0.06  # seconds; shorter sounds are not speech
REACH = 0.4  # seconds; how far a word is stretched to where sound begins or ends
FRAME = 1 / FRAME_RATE  # seconds; no word is shorter
NEAR = 0.5  # seconds; how far from any sound a word may lie that belongs to it


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Sound between two pauses, in seconds."""

    start: float
    end: float


def levels(samples_S: Samples) -> Levels:
    """How loud each of the model's frames is, (T,), as root mean square in dB of full scale."""
    count = frames(len(samples_S))
    if not count:
        return np.zeros(0, np.float32)
    power_S = np.concatenate([[0.0], np.cumsum(np.square(samples_S, dtype=np.float64))])
    starts = np.arange(count) * HOP_SAMPLES
    mean = (power_S[starts + FRAME_SAMPLES] - power_S[starts]) / FRAME_SAMPLES
    decibels: Levels = (10 * np.log10(np.maximum(mean, 1e-12))).astype(np.float32)
    return decibels


def stretches(levels_T: Levels) -> list[Stretch]:
    """Where there is sound between pauses; empty where speech cannot be told from the rest.

    Args:
        levels_T: of up to a minute or so: what is loud and quiet follows from these frames alone.
    """
    if not len(levels_T):
        return []
    loud, quiet = np.quantile(levels_T, [0.98, 0.05])
    if loud - quiet < LEAST_RANGE:
        return []
    sounds_T = levels_T > max(loud - RANGE, quiet + ABOVE_FLOOR)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], sounds_T, [False]]).astype(np.int8)))
    found: list[list[int]] = []
    for first, last in edges.reshape(-1, 2).tolist():
        if found and (first - found[-1][1]) / FRAME_RATE < CLOSURE:
            found[-1][1] = last
        else:
            found.append([first, last])
    return [
        Stretch(start=first / FRAME_RATE, end=last / FRAME_RATE)
        for first, last in found
        if (last - first) / FRAME_RATE >= CLICK
    ]


def turns(sounds: Sequence[Stretch]) -> list[float]:
    """For each pause between two sounds from when on a word belongs to the second, in seconds."""
    return [
        max((before.end + behind.start) / 2, behind.start - NEAR)
        for before, behind in pairwise(sounds)
    ]


def bounded(words: Sequence[Word], sounds: Sequence[Stretch]) -> list[Word]:
    """Words whose times at pauses are those of the sound; all others stay as they are.

    The first word of a stretch begins with it and the last one ends with it, unless that would
    stretch them by more than `REACH`. No word reaches into a pause.

    Args:
        words: in order, of `decode.words`.
        sounds: in order, of `stretches`, on the same clock.
    """
    if not sounds:
        return list(words)
    homes = [_home(word, sounds) for word in words]
    for place in range(1, len(homes)):  # words stay in order
        homes[place] = max(homes[place], homes[place - 1]) if homes[place] >= 0 else homes[place]
    found = []
    for place, (word, home) in enumerate(zip(words, homes, strict=True)):
        if home < 0:
            found.append(word)
            continue
        sound = sounds[home]
        start, end = min(max(word.start, sound.start), sound.end), word.end
        end = max(min(end, sound.end), start)
        first = place == 0 or homes[place - 1] != home
        last = place == len(words) - 1 or homes[place + 1] != home
        if first and start - sound.start <= REACH:
            start = sound.start
        if last and sound.end - end <= REACH:
            end = sound.end
        if end - start < FRAME:  # said at an edge, as far as CTC knows
            end = min(start + FRAME, sound.end)
            start = end - FRAME
        found.append(replace(word, start=round(start, 3), end=round(end, 3)))
    return found


def _home(word: Word, sounds: Sequence[Stretch]) -> int:
    """Which stretch a word is said in, -1 for none."""
    shared = [min(word.end, sound.end) - max(word.start, sound.start) for sound in sounds]
    best = int(np.argmax(shared))  # the least negative one is the nearest
    return best if shared[best] > -NEAR else -1
