"""Digits by people the model never heard: a linear probe on three speakers, tested on the fourth.

Needs DISTILKIT_SHARED (recordings of the Free Spoken Digit Dataset in `speech/digits`). Prints, for each layer, the
accuracy by left-out speaker and the mean; beside it what log-mel and a random network of the same
form reach. With --snr, the probe's recordings get noise.

python tests/benchmarks/digits.py MODEL ... [--snr 10] [--last] [--record]
"""

import argparse
import csv
import os
import sys
from pathlib import Path

import numpy as np
import torch
from record import record
from torchaudio.functional import add_noise
from transformers import HubertModel

from distilkit import teachers
from distilkit.audio import load
from distilkit.encoder import Encoder, exact
from distilkit.noise import coloured
from distilkit.probes import linear as probes

DIGITS = Path(os.environ.get("DISTILKIT_SHARED", "shared")) / "speech" / "digits"


def recordings() -> tuple[list[np.ndarray], list[str], list[str]]:
    """Clips, digits, speakers."""
    with (DIGITS / "metadata.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    clips = [load(DIGITS / row["file_name"]) for row in rows]
    return clips, [row["digit"] for row in rows], [row["speaker"] for row in rows]


def noisy(clips: list[np.ndarray], snr: float) -> list[np.ndarray]:
    """The clips in pink noise, the same noise each time."""
    torch.manual_seed(0)
    return [
        add_noise(
            torch.from_numpy(clip), coloured(len(clip), 1.0, torch.device("cpu")), torch.tensor(snr)
        ).numpy()
        for clip in clips
    ]


def untrained(like: Encoder) -> Encoder:
    """A random network of the same form."""
    torch.manual_seed(0)
    return Encoder(model=exact(HubertModel(like.model.config)).eval(), normalise=like.normalise)


def main() -> None:
    """Probe each model and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*")
    parser.add_argument("--snr", type=float)
    parser.add_argument("--last", action="store_true")
    parser.add_argument("--floors", action="store_true")
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    clips, digits, speakers = recordings()
    clips = clips if asked.snr is None else noisy(clips, asked.snr)
    results: dict[str, dict[str, float]] = {}

    def show(name: str, features: np.ndarray) -> None:
        right = probes.linear_probe(features, digits, speakers)
        mean = float(np.mean(list(right.values())))
        results[name] = {**right, "mean": mean}
        print(
            f"{name:40} "
            + "  ".join(f"{s} {a:.1%}" for s, a in right.items())
            + f"  mean {mean:.1%}",
            flush=True,
        )

    if asked.floors:
        show("log-mel mean and deviation", probes.log_mel(clips))
    for name in asked.models:
        encoder, _ = teachers.load(name)
        layers = [encoder.depth] if asked.last else list(range(encoder.depth + 1))
        tried = [(name, encoder)] + (
            [(f"untrained as {name}", untrained(encoder))] if asked.floors else []
        )
        for label, model in tried:
            states = probes.pooled(model, clips, layers)
            for place, layer in enumerate(layers):
                show(f"{label} layer {layer}", states[:, place])
    if asked.record:
        record("digits", {"snr": asked.snr, "accuracy": results})


if __name__ == "__main__":
    sys.exit(main())
