"""Long and large: 24 hours in 50,000 files, files of 24 hours in several formats, manifests of 1,000,000 lines.

Everything is generated. Real commands run on it in processes of their own; told are the seconds until the audio was
read, until the first optimizer step, and in all, and the memory of all their processes, second by second: the most of
it, and its most in each quarter of the time, which says whether it grows. What is beyond `MOST` is a failure.

python tests/faults/large.py [--part files long manifest] [--hours 24] [--files 50000] [--lines 1000000]
    [--scratch FOLDER] [--record]
"""

import argparse
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

RATE = 16_000
STEPS = 5  # that are taken of a training
DISTIL = ("--teacher", "tiny", "--set", "targets.store=none")
MINUTES = 10  # of different sound; files begin anywhere in it
MOST = {  # GiB, seconds until the audio was read or all is done, and until the first step, of two cores
    "inspect": (0.5, 300, None),
    "plan": (2.0, 600, None),
    "distill": (2.5, 300, 450),
    "embed": (1.5, None, None),
    "transcribe": (1.5, None, None),
    "tokenizer": (2.0, 300, None),
    "finetune-ctc": (3.5, 450, 600),
    "resume": (3.5, 300, 450),
}
GROWS = 1.25  # from the second quarter to the last, of what works through audio
WORDS = ("see", "the", "bee", "keep", "a", "tree", "no", "book", "keeper", "knows", "tall")


def sound(seed: int = 0) -> np.ndarray:
    """Ten minutes of something like speech: syllables of gliding buzz and noise, with pauses. int16."""
    rng, count = np.random.default_rng(seed), MINUTES * 60 * RATE
    time_S = np.arange(count) / RATE
    pitch_S = 120 + 40 * np.sin(2 * np.pi * 0.31 * time_S) + 15 * np.sin(2 * np.pi * 2.3 * time_S)
    phase_S = 2 * np.pi * np.cumsum(pitch_S) / RATE
    loud_S = np.clip(
        np.sin(2 * np.pi * 1.7 * time_S) + 0.5 * np.sin(2 * np.pi * 0.13 * time_S), 0, 1
    )
    buzz_S = sum(np.sin(k * phase_S) / k for k in (1, 2, 3, 5))
    wave_S = 0.2 * loud_S * buzz_S + 0.01 * rng.standard_normal(count)
    return (np.clip(wave_S, -1, 1) * 32767).astype(np.int16)


def many(folder: Path, files: int, hours: float) -> Path:
    """A folder of WAV files of equal length, each with its own part of the sound."""
    whole, size = np.tile(sound(), 2), int(hours * 3600 * RATE / files)
    places = np.random.default_rng(1).permutation(len(whole) // 2)[:files]
    for index, first in enumerate(places):
        path = folder / f"{index // 1000:03d}" / f"{index:06d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, whole[first : first + size], RATE, "PCM_16")
    return folder


FORMATS = {  # suffix: libsndfile's format, subtype and rate; the last two are decoded into the cache
    "rf64": ("RF64", "PCM_16", RATE),
    "flac": ("FLAC", "PCM_16", RATE),
    "w64": ("W64", "PCM_16", RATE),
    "wav": ("WAV", "PCM_U8", RATE),
    "ogg": ("OGG", "VORBIS", RATE),
    "mp3": ("MP3", "MPEG_LAYER_III", RATE),
}


def long(path: Path, hours: float) -> Path:
    """One file of that many hours."""
    form, subtype, rate = FORMATS[path.suffix[1:]]
    whole, left = sound(), int(hours * 3600 * rate)
    with soundfile.SoundFile(path, "w", rate, 1, subtype, format=form) as file:
        while left:
            part = whole[: min(left, len(whole))]
            file.write(part)
            left -= len(part)
            whole = np.roll(whole, 12_345)  # no two stretches are alike
    return path


def rows(audio: Sequence[Path], lines: int) -> Iterator[tuple[Path, float, float, str]]:
    """File, start, seconds and text of as many utterances as there are to be lines, many in a file."""
    rng, each = np.random.default_rng(2), -(-lines // len(audio))
    for line in range(lines):
        place, which = divmod(line, each)
        start = round(0.02 * which, 2)
        words = " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=3))
        yield audio[place], start, 1.0, words


def lhotse(path: Path, audio: Sequence[Path], samples: int, lines: int) -> Path:
    with gzip.open(path, "wt", compresslevel=1) as file:
        for number, (sound, start, seconds, text) in enumerate(rows(audio, lines)):
            id = f"{sound.stem}-{number}"
            recording = {
                "id": sound.stem,
                "sources": [{"type": "file", "channels": [0], "source": str(sound)}],
                "sampling_rate": RATE,
                "num_samples": samples,
                "duration": samples / RATE,
                "channel_ids": [0],
            }
            words = {"id": id, "recording_id": sound.stem, "start": 0.0, "duration": seconds,
                     "channel": 0, "text": text}  # fmt: skip
            cut = {"id": id, "start": start, "duration": seconds, "channel": 0,
                   "supervisions": [words], "recording": recording, "type": "MonoCut"}  # fmt: skip
            file.write(json.dumps(cut) + "\n")
    return path


def nemo(path: Path, audio: Sequence[Path], samples: int, lines: int) -> Path:
    with path.open("w") as file:
        for sound, start, seconds, text in rows(audio, lines):
            row = {"audio_filepath": str(sound), "offset": start, "duration": seconds, "text": text}
            file.write(json.dumps(row) + "\n")
    return path


def table(path: Path, audio: Sequence[Path], samples: int, lines: int) -> Path:
    with path.open("w") as file:
        file.write("file_name,offset,duration,transcription,speaker\n")
        for sound, start, seconds, text in rows(audio, lines):
            name = sound.relative_to(path.parent)
            file.write(f"{name},{start},{seconds},{text},who{int(sound.stem) % 40}\n")
    return path


MANIFESTS = {"cuts.jsonl.gz": lhotse, "nemo.jsonl": nemo, "metadata.csv": table}


# -------------------------------------------------------------------------------------- measuring


class Watched:
    """A command in a process of its own, and the memory that it takes."""

    def __init__(self, words: Sequence[str], cache: Path) -> None:
        self.began, self.lines = time.monotonic(), list[tuple[float, str]]()
        self.memory: list[tuple[float, int]] = []
        self.command = ["distilkit", *words]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "distilkit", *words],
            env={**os.environ, "DISTILKIT_CACHE": str(cache)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.threads = [threading.Thread(target=each) for each in (self._read, self._look)]
        for thread in self.threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append((self.now, line.rstrip()))

    def _look(self) -> None:
        root = psutil.Process(self.process.pid)
        while self.process.poll() is None:
            try:
                tree = [root, *root.children(recursive=True)]
                self.memory.append((self.now, sum(each.memory_info().rss for each in tree)))
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.2)

    @property
    def now(self) -> float:
        return time.monotonic() - self.began

    def reached(self, words: str, seconds: float = 7200) -> float | None:
        """The second at which a line of its log held these words; waits for it."""
        while self.now < seconds:
            for at, line in list(self.lines):
                if words in line:
                    return round(at, 1)
            if self.process.poll() is not None and not self.threads[0].is_alive():
                return None
            time.sleep(0.05)
        return None

    def end(self, after: float | None = None) -> dict[str, Any]:
        """Wait for its end, or interrupt it after that many seconds more; what was measured."""
        if after is not None:
            time.sleep(after)
            self.process.send_signal(signal.SIGINT)
        code = self.process.wait()
        for thread in self.threads:
            thread.join()
        if code not in (0, 130):
            raise SystemExit(f"{self.command} ended with {code}: {self.lines[-12:]}")
        last = self.memory[-1][0]
        quarters = [
            max(rss for at, rss in self.memory if (q - 1) * last / 4 <= at <= q * last / 4)
            for q in (1, 2, 3, 4)
        ]
        gib = [round(rss / 2**30, 3) for rss in quarters]
        return {"seconds": round(self.now, 1), "peak_gib": max(gib), "quarters_gib": gib}


def steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def beyond(what: str, values: dict[str, Any]) -> list[str]:
    """What is more than it may be, of one thing that was measured."""
    command = what.partition(" ")[0]
    memory, seconds, first = MOST[command]
    found = []
    if values["peak_gib"] > memory:
        found.append(f"{what}: {values['peak_gib']} GiB, {memory} at most")
    took = values.get("read_seconds", values["seconds"])
    if seconds and (took is None or took > seconds):
        found.append(f"{what}: read in {took} s, {seconds} at most")
    if first and not 0 < values["first_step_seconds"] <= first:
        found.append(f"{what}: first step after {values['first_step_seconds']} s, {first} at most")
    _, second, _, last = values["quarters_gib"]
    if command in ("embed", "transcribe") and last > GROWS * second:
        found.append(f"{what}: grows from {second} to {last} GiB")
    return found


class Large:
    """What is generated, where, and what was measured."""

    def __init__(self, asked: argparse.Namespace, scratch: Path) -> None:
        self.asked, self.scratch, self.cache = asked, scratch, scratch / "cache"
        self.problems: list[str] = []

    def keep(self, what: str, **values: Any) -> None:
        print(json.dumps({"what": what, **values}), flush=True)
        self.problems += (found := beyond(what, values))
        for problem in found:
            print(f"too much: {problem}", flush=True)
        if self.asked.record:
            from record import record

            record("large", {"what": what, **values})

    def run(self, what: str, *words: object, **values: Any) -> None:
        self.keep(what, **Watched([str(word) for word in words], self.cache).end(), **values)

    def stretch(self, what: str, *words: object, **values: Any) -> None:
        """What takes long, for a while: memory over the stretch."""
        watched = Watched([str(word) for word in words], self.cache)
        watched.reached("no such words", self.asked.stretch)
        told = watched.end(after=0)
        self.keep(what, **told, stretch_seconds=self.asked.stretch, **values)

    def train(self, what: str, out: Path, *words: object, **values: Any) -> None:
        """Until a few steps are done: seconds to the start table, to the first step, and memory."""
        before = steps(out)
        watched = Watched([*(str(word) for word in words), "--out", str(out)], self.cache)
        read, first = watched.reached("run folder"), None
        while steps(out) < before + STEPS and watched.process.poll() is None:
            first = first or (watched.now if steps(out) > before else None)
            time.sleep(0.1)
        told = watched.end(after=0)
        self.keep(
            what, read_seconds=read, first_step_seconds=round(first or 0, 1), **told, **values
        )


def part_files(large: Large) -> None:
    """24 hours in many files: inspected, planned, trained on, resumed, embedded."""
    asked = large.asked
    folder = large.scratch / "many"
    began = time.monotonic()
    many(folder, asked.files, asked.hours)
    print(f"{asked.files} files made in {time.monotonic() - began:.0f} s", flush=True)
    about = {"files": asked.files, "hours": asked.hours}
    large.run("inspect many files", "inspect", folder, **about)
    large.run("plan for many files", "distill", folder, "--teacher", "tiny", "--plan", **about)
    out = large.scratch / "run"
    large.train("distill many files", out, "distill", folder, *DISTIL, **about)
    large.train("resume many files", out, "distill", "--resume", **about)
    words = ("embed", folder, "--model", "tiny", "--pool", "mean", "--out", large.scratch / "means")
    large.stretch("embed many files", *words, **about)


def part_long(large: Large) -> None:
    """Files of 24 hours: read in every format, trained on, embedded, transcribed."""
    asked = large.asked
    about = {"hours": asked.hours}
    for suffix in asked.formats:
        path = long(large.scratch / f"long.{suffix}", asked.hours)
        size = {"file_gib": round(path.stat().st_size / 2**30, 2)}
        large.run(f"inspect {suffix}", "inspect", path, **about, **size)
        if suffix != asked.formats[0]:
            path.unlink()
        shutil.rmtree(large.cache, ignore_errors=True)
    path, out = large.scratch / f"long.{asked.formats[0]}", large.scratch / "long-run"
    large.train("distill one file", out, "distill", path, *DISTIL, **about)
    large.train("resume one file", out, "distill", "--resume", **about)
    vectors = large.scratch / "long.npy"
    large.stretch("embed one file", "embed", path, "--model", "tiny", "--out", vectors, **about)
    if asked.recogniser:
        text = large.scratch / "long.txt"
        words = ("transcribe", path, "--model", asked.recogniser, "--out", text)
        large.stretch("transcribe one file", *words, **about)


def part_manifest(large: Large) -> None:
    """A manifest of a million utterances: as lhotse, NeMo and a table, for a tokenizer and for training."""
    asked = large.asked
    files = min(asked.files, asked.lines)
    folder = many(large.scratch / "audio", files, files * 1.728 / 3600)
    audio = sorted(folder.rglob("*.wav"))
    about = {"lines": asked.lines, "files": files}
    tokens = large.scratch / "tokens"
    for name in asked.manifests:
        path, make = folder / name, MANIFESTS[name]
        make(path, audio, int(1.728 * RATE), asked.lines)
        size = {"file_mib": round(path.stat().st_size / 2**20)}
        shutil.rmtree(tokens, ignore_errors=True)
        large.run(f"tokenizer of {name}", "tokenizer", path, "--out", tokens, **about, **size)
        out = large.scratch / f"run-{path.name}"
        words = ("finetune-ctc", path, "--tokenizer", tokens, "--model", "tiny")
        large.train(f"finetune-ctc on {name}", out, *words, **about)
        large.train(f"resume on {name}", out, "finetune-ctc", "--resume", **about)
        path.unlink()


PARTS = {"files": part_files, "long": part_long, "manifest": part_manifest}


def main() -> None:
    """Run the parts, one after the other; exit status 1 where anything takes too much."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--manifests", nargs="+", choices=MANIFESTS, default=list(MANIFESTS))
    parser.add_argument("--recogniser", help="what transcribes; left out where there is none")
    parser.add_argument(
        "--stretch", type=float, default=600.0, help="seconds of what is not run to its end"
    )
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    problems = []
    for part in asked.part:
        with tempfile.TemporaryDirectory(dir=asked.scratch) as name:
            large = Large(asked, Path(name))
            PARTS[part](large)
            problems += large.problems
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
