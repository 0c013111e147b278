"""Write hours of synthesised speech in many voices, to pre-train a small HuBERT without labels.

An engine that is not installed is left out, with a line on the standard error. A voice may be
a derived one: an engine's voice resampled by its `warp`, which moves pitch and formants together as
a shorter or longer vocal tract would, with the pace corrected.

Clips are 16 kHz mono FLAC of 2 to 10 seconds, without noise or reverberation. Texts and settings
depend only on the seed, the voice and the number of the clip, so a longer run over the same folder
keeps the clips that are there and adds to them. The neural engines draw their own noise, so their
clips are equal only in runs that nothing interrupted.

python distilkit/assets/corpus.py OUT [--hours 8] [--seed 0] [--only ENGINE]
"""

from __future__ import annotations

import argparse
import collections
import csv
import multiprocessing
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr

if TYPE_CHECKING:  # to mypy they are parts of the package, to Python scripts in one folder
    from distilkit.assets.corpus_texts import sentence
    from distilkit.assets.corpus_voices import ENGINES, Line, Samples, Spoken, Voice, available
else:
    from corpus_texts import sentence
    from corpus_voices import ENGINES, Line, Samples, Spoken, Voice, available

RATE = 16_000
SHORTEST, LONGEST = 2.0, 10.0  # seconds
BATCH, SLOW_BATCH = 16, 4  # clips that an engine speaks at once; the neural ones take long for each
SLOW = ("hibari", "kokoro")
GIVE_UP = 4  # batches in a row without a usable clip
LEVEL = (-30.0, -17.0)  # dBFS of the whole clip, before the peak is limited
PEAK = 0.95
AUDIBLE = 10 ** (-45 / 20)

Task = tuple[Voice, float, Path, int]  # voice, seconds, folder, seed
Row = tuple[str, str, str, str, str]  # file, engine, voice, language, text


def planned(voice: Voice, number: int, seed: int) -> tuple[str, Line, np.random.Generator]:
    """A clip's file, what it says and how, and the generator for what is drawn later."""
    rng = np.random.default_rng([seed, zlib.crc32(voice.folder.encode()), number])
    text = sentence(rng, voice.language)
    rate = float(np.clip(rng.normal(1.0, 0.13), 0.8, 1.3))
    pitch = int(np.clip(voice.pitch + rng.normal(0, 5), 5, 95))
    return f"{voice.folder}/{number:05d}.flac", Line(text, rate / voice.warp, pitch), rng


def finish(spoken: Spoken, voice: Voice, rng: np.random.Generator) -> Samples | None:
    """The clip at RATE with silence around it and a level of its own; None if it is unusable."""
    if spoken is None or len(spoken[0]) < 100:
        return None
    samples, rate = spoken
    if np.mean(np.abs(samples) > 0.999) > 1e-3:  # the engine clipped it
        return None
    samples = soxr.resample(samples, rate * voice.warp, RATE, quality="HQ")
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.max(np.abs(samples)))
    if len(loud) < RATE // 20:
        return None
    samples = samples[loud[0] : loud[-1] + 1]
    level = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
    ends = rng.uniform(0.05, 0.35, size=2)
    lack = max(0.0, SHORTEST + 0.01 - len(samples) / RATE - float(ends.sum()))
    part = rng.uniform(0.2, 0.8)
    ends += lack * np.array([part, 1 - part])
    seconds = len(samples) / RATE + float(ends.sum())
    if level < AUDIBLE or not SHORTEST <= seconds <= LONGEST:
        return None
    gain = 10 ** (rng.uniform(*LEVEL) / 20) / level
    gain = min(gain, PEAK / float(np.max(np.abs(samples))))
    before, after = (int(RATE * end) for end in ends)
    return np.pad(gain * samples, (before, after)).astype(np.float32)


def speak(task: Task) -> tuple[Voice, list[Row], float]:
    """Write clips of one voice until they last long enough; return their rows and seconds."""
    voice, seconds, folder, seed = task
    (folder / voice.folder).mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    size = SLOW_BATCH if voice.engine in SLOW else BATCH
    total, done, empty = 0.0, 0, 0
    while total < seconds and empty < GIVE_UP:
        batch = [planned(voice, done + number, seed) for number in range(1, size + 1)]
        done += size
        new = [clip for clip in batch if not (folder / clip[0]).exists()]
        spoken = ENGINES[voice.engine](voice, [line for _, line, _ in new])
        for (name, _, rng), heard in zip(new, spoken, strict=True):
            samples = finish(heard, voice, rng)
            if samples is not None:
                part = folder / f"{name}.part"
                soundfile.write(part, samples, RATE, format="FLAC", subtype="PCM_16")
                part.rename(folder / name)
        usable = [clip for clip in batch if (folder / clip[0]).exists()]
        for name, line, _ in usable:
            total += soundfile.info(folder / name).duration
            rows.append((name, voice.engine, voice.name, voice.language, line.text))
        empty = 0 if usable else empty + 1
    if total < seconds:
        print(f"{voice.folder}: {total:.0f} of {seconds:.0f} s", file=sys.stderr)
    return voice, rows, total


def synthesise(
    folder: Path, hours: float, seed: int, only: str | None = None
) -> dict[tuple[str, str], float]:
    """Write the corpus into `folder`; return the seconds of each engine and language."""
    voices = [voice for voice in available() if only in (None, voice.engine)]
    if not voices:
        sys.exit(f"no voices of `{only}`: install what it needs")
    unit = 3600 * hours / sum(voice.share for voice in voices)
    tasks = [(voice, unit * voice.share, folder, seed) for voice in voices]
    totals: dict[tuple[str, str], float] = collections.defaultdict(float)
    rows = []
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for voice, written, seconds in pool.imap_unordered(speak, tasks):
            rows += written
            totals[voice.engine, voice.language] += seconds
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file_name", "engine", "voice", "language", "text"))
        writer.writerows(sorted(rows))
    return totals


def main() -> None:
    """Read the command line and write the corpus."""
    parser = argparse.ArgumentParser(description="Write a corpus of synthesised speech.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--hours", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(ENGINES), help="one engine")
    options = parser.parse_args()
    totals = synthesise(options.out, options.hours, options.seed, options.only)
    for (engine, language), seconds in sorted(totals.items()):
        print(f"{engine:10}{language:4}{seconds / 3600:7.2f} h")
    print(f"{sum(totals.values()) / 3600:.2f} hours in {options.out}")


if __name__ == "__main__":
    main()
