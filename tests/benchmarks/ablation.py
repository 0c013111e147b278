"""The paper's ablation at our scale: which heads, which distance, which start; a frozen front end; and noise.

Distils a student for each variant and seed from one teacher on one folder, with the recipe's other settings
(`demo`: layer norm, windows heard in parts), and probes its last layer:
digits by people left out, three slots of spoken orders by people that neither teacher nor probe met,
and digits in added noise. Needs DISTILKIT_SHARED (`speech/digits` and `speech/commands`).

python tests/benchmarks/ablation.py AUDIO --teacher tiny --steps 400 [--seeds 3] [--only NAME ...] [--record]
"""

import argparse
import csv
import os
import tempfile
from pathlib import Path

import numpy as np
from digits import noisy, recordings
from record import record

from distilkit import config, teachers
from distilkit.assets.real import unheard
from distilkit.audio import load
from distilkit.distill import distill
from distilkit.encoder import Encoder
from distilkit.probes import linear as probes

COMMANDS = Path(os.environ.get("DISTILKIT_SHARED", "shared")) / "speech" / "commands"
SLOTS = ("coffee_drink", "roast", "number_of_shots")
NOISE = (10.0, 0.0)  # dB
PLAIN = [  # in all that do not say otherwise
    *("data.valid_fraction=0", "noise.probability=0"),
    *("objective.name=layerwise", "objective.normalise=false"),
]
VARIANTS: dict[str, list[str]] = {
    "paper (4, 8, 12; L1 + cosine; from the teacher)": [],
    "layer 4 alone": ["objective.layers=[4]"],
    "layer 8 alone": ["objective.layers=[8]"],
    "layer 12 alone": ["objective.layers=[12]"],
    "L1 without cosine": ["objective.cosine_weight=0"],
    "L2 + cosine": ["objective.l1_weight=0", "objective.l2_weight=1"],
    "L2 without cosine": ["objective.l1_weight=0", "objective.l2_weight=1", "objective.cosine_weight=0"],
    "frozen conv front end": ["train.freeze_front_end=true"],
    "random start": ["student.start=random"],
    "units of 4, 8, 12": ["objective.name=units", "objective.normalise=true"],
    "noise-robust": ["noise.probability=0.7", "noise.snr=[0,20]"],
}  # fmt: skip


class Questions:
    """The recordings that every student is asked about, read once."""

    def __init__(self) -> None:
        self.clips, self.digits, self.speakers = recordings()
        self.noisy = {snr: noisy(self.clips, snr) for snr in NOISE}
        with (COMMANDS / "metadata.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.orders = [load(COMMANDS / row["file_name"]) for row in rows]
        kept = unheard({row["speaker"] for row in rows})
        self.people = ["unheard" if row["speaker"] in kept else "heard" for row in rows]
        self.slots = {name: [row[name] for row in rows] for name in SLOTS}

    def ask(self, encoder: Encoder, layer: int) -> dict[str, float]:
        """Accuracies of one layer."""
        said = {"digits": self._digits(probes.pooled(encoder, self.clips, [layer])[:, 0])}
        for snr, clips in self.noisy.items():
            said[f"digits at {snr:g} dB"] = self._digits(
                probes.pooled(encoder, clips, [layer])[:, 0]
            )
        orders = probes.pooled(encoder, self.orders, [layer])[:, 0]
        told = [
            probes.linear_probe(orders, labels, self.people)["unheard"]
            for labels in self.slots.values()
        ]
        said["commands"] = float(np.mean(told))
        return said

    def _digits(self, features: probes.Features) -> float:
        told = probes.linear_probe(features, self.digits, self.speakers)
        return float(np.mean(list(told.values())))


def main() -> None:
    """Train, ask, print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("audio", nargs="+")
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    questions = Questions()
    teacher, _ = teachers.load(asked.teacher)
    layers = [4, 8, 12]
    results = {f"teacher, layer {n}": [questions.ask(teacher, n)] for n in layers}
    for name, said in results.items():
        show(name, said)
    for name, changes in VARIANTS.items():
        if asked.only and name not in asked.only:
            continue
        results[name] = []
        for seed in range(asked.seeds):
            settings = [f"train.steps={asked.steps}", f"train.seed={seed}", *PLAIN]
            recipe = config.load_recipe(asked.recipe, [*settings, *asked.set, *changes])
            with tempfile.TemporaryDirectory() as folder:
                student = distill(
                    asked.audio, teacher=asked.teacher, out=Path(folder) / "run", recipe=recipe
                )
                encoder, _ = teachers.load(str(student))
                results[name].append(questions.ask(encoder, encoder.depth))
        show(name, results[name])
    if asked.record:
        told = {"steps": asked.steps, "recipe": asked.recipe, "set": asked.set}
        record("ablation", {**told, "results": results})


def show(name: str, said: list[dict[str, float]]) -> None:
    """One row: means over the seeds and their standard deviation."""
    cells = []
    for probe in said[0]:
        values = [answer[probe] for answer in said]
        cells.append(f"{probe} {np.mean(values):.1%} ± {np.std(values):.1%}")
    print(f"{name:48} " + "  ".join(cells), flush=True)


if __name__ == "__main__":
    main()
