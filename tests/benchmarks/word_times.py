"""How far the times of words are from the sound: orders joined with known gaps, first and last words of each.

Needs DISTILKIT_SHARED. The recordings' silence was cut to 0.2 to 0.25 s before and behind the speech, so where a
clip was put says between which two moments, 50 ms apart, its first word begins and its last one ends, without
looking at the sound; a time between them is right, another is off by its distance. The text is given, so that only the times are judged; noise at a chosen level lies over everything.

python tests/benchmarks/word_times.py MODEL TEST_FOLDER [--noise -60] [--record]
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from record import record

from distilkit import recognisers
from distilkit.audio import SAMPLE_RATE, load
from distilkit.decode import words
from distilkit.listeners import hear_stream
from distilkit.pauses import bounded, levels, stretches

SILENCE = (
    0.2,
    0.25,
)  # seconds that were left before and behind each clip's speech, at least and at most
TOLERANCE = 0.06
JOINED = 6  # clips in a recording


def distance(seconds: float, known: tuple[float, float]) -> float:
    """How far a time lies before (negative) or behind the moments between which it should be."""
    return min(0.0, seconds - known[0]) + max(0.0, seconds - known[1])


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
    off: dict[str, list[float]] = {"alignment": [], "with pauses": []}
    for first in range(0, len(rows) - JOINED + 1, JOINED):
        parts, said, at = [], [], 0
        for row in rows[first : first + JOINED]:
            clip = load(asked.folder / row["file_name"])
            gap = np.zeros(int(rng.uniform(0.3, 1.5) * SAMPLE_RATE), np.float32)
            start, end = at / SAMPLE_RATE, (at + len(clip)) / SAMPLE_RATE
            said.append(
                (
                    tokenizer.normalise(row["transcription"]),
                    (start + SILENCE[0], start + SILENCE[1]),
                    (end - SILENCE[1], end - SILENCE[0]),
                )
            )
            parts += [clip, gap]
            at += len(clip) + len(gap)
        sound = np.concatenate(parts)
        if asked.noise is not None:
            sound += 10 ** (asked.noise / 20) * rng.standard_normal(len(sound)).astype(np.float32)
        pieces = list(hear_stream(recogniser, [sound]))
        rows_TK = np.concatenate([piece for piece, _ in pieces])
        aligned = words(rows_TK, tokenizer.encode(" ".join(text for text, *_ in said)), tokenizer)
        both = {"alignment": aligned, "with pauses": bounded(aligned, stretches(levels(sound)))}
        for label, found in both.items():
            place = 0
            for text, start, end in said:
                count = len(text.split())
                off[label] += [distance(found[place].start, start)]
                off[label] += [distance(found[place + count - 1].end, end)]
                place += count
    measured = {}
    for label, values in off.items():
        size = np.abs(values)
        measured[label] = {
            "times": len(values),
            "within_60_ms": round(float((size <= TOLERANCE).mean()), 4),
            "median_ms": round(1000 * float(np.median(size)), 1),
            "p95_ms": round(1000 * float(np.quantile(size, 0.95)), 1),
            "median_start_ms": round(1000 * float(np.median(values[::2])), 1),
            "median_end_ms": round(1000 * float(np.median(values[1::2])), 1),
        }
        print(label, measured[label])
    if asked.record:
        record("word_times", {"model": asked.model, "noise": asked.noise, "off": measured})


if __name__ == "__main__":
    main()
