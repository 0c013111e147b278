"""How far the times of words are from the sound: orders joined with known gaps, first and last words of each.

Needs DISTILKIT_SHARED. The recordings' silence was cut to 0.2 to 0.25 s before and behind the speech, so where a
clip was put says between which two moments, 50 ms apart, its first word begins and its last one ends, without
looking at the sound; a time between them is right, another is off by its distance. Recordings that began or ended sooner have
sound where silence should be: such an edge says nothing, is left out and counted. The text is given, so that only the times are
judged; noise at a chosen level lies over everything.

python tests/benchmarks/word_times.py MODEL TEST_FOLDER [--noise -60] [--record]
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from record import record

from distilkit import recognisers
from distilkit.audio import FRAME_RATE, SAMPLE_RATE, Samples, load
from distilkit.decode import words
from distilkit.listeners import hear_stream
from distilkit.pauses import bounded, levels, stretches, turns

SILENCE = (
    0.2,
    0.25,
)  # seconds that were left before and behind each clip's speech, at least and at most
QUIET = 0.16  # seconds at an edge that must be silent where it was cut so
BELOW = 25.0  # dB below the clip's loudest frames that silence must be
TOLERANCE = 0.06
JOINED = 6  # clips in a recording


Span = tuple[float, float]  # seconds


def distance(seconds: float, known: Span) -> float:
    """How far a time lies before (negative) or behind the moments between which it should be."""
    return min(0.0, seconds - known[0]) + max(0.0, seconds - known[1])


def silent(clip: Samples) -> tuple[bool, bool]:
    """Whether a clip has its silence before and behind the speech."""
    loudness = levels(clip)
    most = np.quantile(loudness, 0.98) - BELOW
    edge = int(QUIET * FRAME_RATE)
    return bool(loudness[:edge].max() < most), bool(loudness[-edge:].max() < most)


def main() -> None:
    """Measure with and without looking at the pauses."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--noise", type=float, help="dB of full scale")
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    recogniser = recognisers.load(asked.model)
    tokenizer = recogniser.tokenizer
    with (asked.folder / "metadata.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rng = np.random.default_rng(0)
    off: dict[str, dict[str, list[float]]] = {
        label: {"start": [], "end": []} for label in ("alignment", "with pauses")
    }
    left_out = 0
    for first in range(0, len(rows) - JOINED + 1, JOINED):
        parts, at = [], 0
        said: list[tuple[str, Span, Span, tuple[bool, bool]]] = []
        for row in rows[first : first + JOINED]:
            clip = load(asked.folder / row["file_name"])
            gap = np.zeros(int(rng.uniform(0.3, 1.5) * SAMPLE_RATE), np.float32)
            first_s, last_s = at / SAMPLE_RATE, (at + len(clip)) / SAMPLE_RATE
            said.append(
                (
                    tokenizer.normalise(row["transcription"]),
                    (first_s + SILENCE[0], first_s + SILENCE[1]),
                    (last_s - SILENCE[1], last_s - SILENCE[0]),
                    silent(clip),
                )
            )
            parts += [clip, gap]
            at += len(clip) + len(gap)
        sound = np.concatenate(parts)
        if asked.noise is not None:
            sound += 10 ** (asked.noise / 20) * rng.standard_normal(len(sound)).astype(np.float32)
        pieces = list(hear_stream(recogniser, [sound]))
        rows_TK = np.concatenate([piece for piece, _ in pieces])
        ids, sounds = (
            tokenizer.encode(" ".join(text for text, *_ in said)),
            stretches(levels(sound)),
        )
        brought = bounded(words(rows_TK, ids, tokenizer, pauses=turns(sounds)), sounds)
        both = {"alignment": words(rows_TK, ids, tokenizer), "with pauses": brought}
        for label, found in both.items():
            place = 0
            for text, start, end, (before, behind) in said:
                count = len(text.split())
                if before:
                    off[label]["start"].append(distance(found[place].start, start))
                if behind:
                    off[label]["end"].append(distance(found[place + count - 1].end, end))
                place += count
        left_out += sum((not before) + (not behind) for *_, (before, behind) in said)
    measured = {}
    for label, values in off.items():
        size = np.abs(values["start"] + values["end"])
        measured[label] = {
            "times": len(size),
            "left_out": left_out,
            "within_60_ms": round(float((size <= TOLERANCE).mean()), 4),
            "median_ms": round(1000 * float(np.median(size)), 1),
            "p95_ms": round(1000 * float(np.quantile(size, 0.95)), 1),
            "median_start_ms": round(1000 * float(np.median(values["start"])), 1),
            "median_end_ms": round(1000 * float(np.median(values["end"])), 1),
        }
        print(label, measured[label])
    if asked.record:
        record("word_times", {"model": asked.model, "noise": asked.noise, "off": measured})


if __name__ == "__main__":
    main()
