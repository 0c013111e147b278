"""Copy the real recordings that the built-in teacher was pre-trained on, at three speeds.

Takes a folder of `audiofolder` sets (each with a metadata.csv) and leaves out what must stay unheard:
the sets that probes test on, the set whose licence forbids it, and the people that are tested.

python distilkit/assets/real.py SPEECH OUT
"""

import csv
import sys
from pathlib import Path

import numpy as np
import soundfile
import soxr

from distilkit.audio import SAMPLE_RATE, AudioError, load

SETS = (
    "commands",
    "keywords",
    "ljspeech",
    "read_short",
    "prompts",
    "spoken_words",
    "letters",
    "odd_formats",
)
FOREIGN = ("digits", "emotion")  # words in a note that say a recording comes from those sets
UNHEARD = 3  # of the people in `commands`, each third one is left for tests
SPEEDS = (0.9, 1.0, 1.12)


def unheard(speakers: set[str]) -> set[str]:
    """The people in `commands` that are kept for tests: each third, by name."""
    return set(sorted(speakers)[::UNHEARD])


def chosen(speech: Path) -> list[Path]:
    """The recordings to train on."""
    paths = []
    for name in SETS:
        with (speech / name / "metadata.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        kept = unheard({row["speaker"] for row in rows}) if name == "commands" else set()
        for row in rows:
            if row.get("speaker") in kept or any(word in row.get("note", "") for word in FOREIGN):
                continue
            paths.append(speech / name / row["file_name"])
    return paths


def main(speech: Path, out: Path) -> None:
    """Write `OUT/SPEED/SET/NAME.flac`, 16 kHz; a speed below 1 is slower and lower."""
    seconds = 0.0
    for path in chosen(speech):
        try:
            clip = load(path)
        except AudioError as error:
            print(f"left out {path.name}: {error}", file=sys.stderr)
            continue
        seconds += len(clip) / SAMPLE_RATE
        for speed in SPEEDS:
            other = clip if speed == 1 else soxr.resample(clip, SAMPLE_RATE * speed, SAMPLE_RATE)
            target = out / f"{speed:g}" / path.relative_to(speech).with_suffix(".flac")
            target.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(target, np.clip(other, -1, 1), SAMPLE_RATE)
    print(f"{seconds / 60:.1f} minutes, at {len(SPEEDS)} speeds", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
