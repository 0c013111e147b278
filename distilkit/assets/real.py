"""Copy the real recordings that the built-in teacher was pre-trained on, at three speeds.

Takes a folder of `audiofolder` sets (each with a metadata.csv) and leaves out what must stay unheard:
the sets that probes test on, the set whose licence forbids it, and the people that are tested. Takes
also a folder of unpacked Debian packages, one folder each, whose people speak.

python distilkit/assets/real.py OUT --speech SPEECH --debian UNPACKED
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import soundfile
import soxr

from distilkit.audio import SAMPLE_RATE, AudioError, Samples, load

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
JOINED, PAUSE = 4.0, 0.2  # seconds that packaged recordings are joined to, and between them
PACKAGES = {  # of Debian 12, and which of their files are speech
    "asterisk-core-sounds-en-g722": "*.g722",
    "asterisk-core-sounds-es-g722": "*.g722",
    "asterisk-core-sounds-fr-g722": "*.g722",
    "asterisk-core-sounds-it-g722": "*.g722",
    "asterisk-core-sounds-ru-g722": "*.g722",
    "asterisk-prompt-fr-armelle": "*.gsm",
    "fillets-ng-data-cs": "*.ogg",
    "fillets-ng-data-nl": "*.ogg",
    "klettres-data": "*.ogg",
    "ktuberling-data": "sounds/*/*.*",
    "tuxpaint-stamps-default": "*_desc*.ogg",
}


def unheard(speakers: set[str]) -> set[str]:
    """The people in `commands` that are kept for tests: each third, by name."""
    return set(sorted(speakers)[::UNHEARD])


def chosen(speech: Path) -> Iterator[Path]:
    """The recordings to train on."""
    for name in SETS:
        with (speech / name / "metadata.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        kept = unheard({row["speaker"] for row in rows}) if name == "commands" else set()
        for row in rows:
            if row.get("speaker") in kept or any(word in row.get("note", "") for word in FOREIGN):
                continue
            yield speech / name / row["file_name"]


def packaged(unpacked: Path) -> Iterator[list[Path]]:
    """The recordings of Debian packages, those of one voice together; says what is missing."""
    for name, pattern in PACKAGES.items():
        found = sorted((unpacked / name).rglob(pattern), key=voice)
        if not found:
            print(f"no {name} in {unpacked}", file=sys.stderr)
        for _, paths in groupby(found, key=voice):
            yield list(paths)


def voice(path: Path) -> tuple[str, str]:
    """Folder and language of a recording, such as `_fr` in `apple_desc_fr`: one voice, mostly."""
    return str(path.parent), path.stem.rpartition("_desc")[2] if "_desc" in path.stem else ""


def copy(job: tuple[Sequence[Path], Path, Path]) -> float:
    """Write recordings, joined until they last some seconds; says how many seconds there are."""
    paths, root, out = job
    pause = np.zeros(int(PAUSE * SAMPLE_RATE), np.float32)
    seconds, parts = 0.0, []
    for path in paths:
        try:
            clip = load(path)
        except AudioError as error:
            print(f"left out {path.name}: {error}", file=sys.stderr)
            continue
        seconds += len(clip) / SAMPLE_RATE
        parts += [clip, pause]
        name = path.relative_to(root)
        if sum(map(len, parts)) >= JOINED * SAMPLE_RATE:
            write(np.concatenate(parts[:-1]), out, name)
            parts = []
    if parts:
        write(np.concatenate(parts[:-1]), out, name)
    return seconds


def write(clip: Samples, out: Path, name: Path) -> None:
    """Write a clip at each speed."""
    for speed in SPEEDS:
        other = clip if speed == 1 else soxr.resample(clip, SAMPLE_RATE * speed, SAMPLE_RATE)
        target = out / f"{speed:g}" / name.with_suffix(".flac")
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, np.clip(other, -1, 1), SAMPLE_RATE)


def main() -> None:
    """Write `OUT/SPEED/SET/NAME.flac`, 16 kHz; a speed below 1 is slower and lower."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--speech", type=Path)
    parser.add_argument("--debian", type=Path)
    asked = parser.parse_args()
    jobs: list[tuple[Sequence[Path], Path, Path]] = []
    if asked.speech:
        jobs += [([path], asked.speech, asked.out) for path in chosen(asked.speech)]
    if asked.debian:
        jobs += [(paths, asked.debian, asked.out) for paths in packaged(asked.debian)]
    with Pool() as pool:
        seconds = sum(pool.imap_unordered(copy, jobs, chunksize=10))
    print(f"{seconds / 60:.1f} minutes, at {len(SPEEDS)} speeds", file=sys.stderr)


if __name__ == "__main__":
    main()
