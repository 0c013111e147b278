"""Forward passes of a teacher of base's size and of the student that it gets: what `distilkit bench` measures.

Weights are random, which changes no time. Clips of 1, 5, 15 and 60 s, one and eight at once; both take turns.

python tests/benchmarks/forward.py [--rounds 3] [--precision fp32] [--seconds 1 5 15 60] [--record]
"""

import argparse
from dataclasses import asdict

import torch
from record import record
from transformers import HubertConfig, HubertModel

from distilkit import bench, config, students
from distilkit.encoder import Encoder, exact


def main() -> None:
    """Time both, print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seconds", type=float, nargs="*", default=[1.0, 5.0, 15.0, 60.0])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    torch.manual_seed(0)
    teacher = Encoder(model=exact(HubertModel(HubertConfig())), normalise=False)
    student, _ = students.build(teacher, config.Recipe().student, masks=False)
    models = {"teacher": teacher, "student": student}
    rows = []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for row in bench.bench(
        models, seconds=asked.seconds, batches=asked.batches, precision=asked.precision, device=device, rounds=asked.rounds
    ):  # fmt: skip
        rows.append(asdict(row))
        print(
            f"{row.model:8} {row.batch} x {row.seconds:g} s: {row.forward:.3f} s, "
            f"{row.real_time:.0f} s of audio a second, ratio {row.ratio:.2f} "
            f"({row.spread[0]:.2f} to {row.spread[1]:.2f}), {row.memory} MiB",
            flush=True,
        )
    if asked.record:
        sizes = [asdict(bench.size(name, encoder)) for name, encoder in models.items()]
        told = {"precision": asked.precision, "rounds": asked.rounds}
        record("forward", {**told, "models": sizes, "times": rows})


if __name__ == "__main__":
    main()
