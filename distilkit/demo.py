"""The way through, on what is built in: a teacher, speech, a student, and what the student kept."""

import csv
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from distilkit.audio import SAMPLE_RATE, load
from distilkit.encoder import Encoder, encode
from distilkit.probes import linear as probes
from distilkit.students import parameters

ASSETS = Path(__file__).parent / "assets"
SPEECH = ASSETS / "speech"
WORDS = ASSETS / "words"
CLIP_SECONDS = 10.0  # what a forward pass is timed on
ROUNDS = 9  # pairs of timed passes; the median ratio counts
VOICES_OUT = 3  # voices that each probe is tested on, and not fitted on


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Student beside teacher: size, speed, and words told apart by voices left out."""

    student_parameters: int
    teacher_parameters: int
    speed_up: float  # how many times faster the student's forward pass is, on this machine
    student_words: float  # share of words told right
    teacher_words: float
    log_mel_words: float  # what needs no model


def speech() -> Path:
    """The folder of the built-in synthesised speech."""
    return SPEECH


def examples() -> Iterator[Path]:
    """The built-in recordings, in order."""
    return iter(sorted(SPEECH.glob("*/*.ogg")))


def compare(student: Encoder, teacher: Encoder) -> Kept:
    """Size, speed and a linear probe of both.

    The probe: 20 words said by 12 synthesised voices, a linear classifier on the mean of the last
    layer, fitted on nine voices and tested on the other three, in turn.
    """
    with (WORDS / "metadata.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    clips = [load(WORDS / row["file_name"]) for row in rows]
    words = [row["transcription"] for row in rows]
    voices = sorted({row["speaker"] for row in rows})
    folds = [str(voices.index(row["speaker"]) % (len(voices) // VOICES_OUT)) for row in rows]

    def told(features: probes.Features) -> float:
        return float(np.mean(list(probes.linear_probe(features, words, folds).values())))

    return Kept(
        student_parameters=parameters(student.model),
        teacher_parameters=parameters(teacher.model),
        speed_up=speed_up(student, teacher),
        student_words=told(probes.pooled(student, clips, [student.depth])[:, 0]),
        teacher_words=told(probes.pooled(teacher, clips, [teacher.depth])[:, 0]),
        log_mel_words=told(probes.log_mel(clips)),
    )


def speed_up(student: Encoder, teacher: Encoder) -> float:
    """How many times faster the student's forward pass is: median of paired passes over 10 s."""
    samples = int(CLIP_SECONDS * SAMPLE_RATE)
    wave = 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(0))

    def seconds(encoder: Encoder) -> float:
        began = time.perf_counter()
        encode(encoder, wave, [samples], [encoder.depth])
        return time.perf_counter() - began

    with torch.inference_mode():
        for encoder in (student, teacher):
            encoder.model.eval()
            seconds(encoder)  # warm
        pairs = [(seconds(teacher), seconds(student)) for _ in range(ROUNDS)]
    return statistics.median(slow / fast for slow, fast in pairs)
