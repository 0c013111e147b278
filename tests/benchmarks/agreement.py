"""Losses of a distillation with stored targets, in low precision and with a frozen front end, against the plain fp32 run.

All runs see the same windows with the same dropout; compared are losses of the same step, and means of the last
tenth. What is held out is compared too.

python tests/benchmarks/agreement.py AUDIO [--teacher tiny] [--recipe personal] [--steps 200] [--only NAME ...] [--record]
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from record import record

from distilkit import config
from distilkit.distill import distill
from distilkit.runs import Run

LIVE = "live, fp32"
VARIANTS = {
    LIVE: ["targets.store=none"],
    "stored as fp16": ["targets.store=fp16"],
    "stored as int8": ["targets.store=int8"],
    "live, bf16": ["targets.store=none", "train.precision=bf16"],
    "stored as fp16, bf16": ["targets.store=fp16", "train.precision=bf16"],
    "frozen front end, live": ["targets.store=none", "train.freeze_front_end=true"],
    "frozen front end, stored as fp16": ["targets.store=fp16", "train.freeze_front_end=true"],
}


def rows(audio: list[str], teacher: str, recipe: config.Recipe) -> list[dict[str, Any]]:
    """Metrics of every step of a run."""
    with tempfile.TemporaryDirectory() as folder:
        distill(audio, teacher=teacher, out=Path(folder) / "run", recipe=recipe)
        return Run(Path(folder) / "run").rows("metrics.jsonl")


def main() -> None:
    """Run all of them, compare each with the first."""
    parser = argparse.ArgumentParser()
    parser.add_argument("audio", nargs="+")
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--recipe", default="personal")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    plain = [f"train.steps={asked.steps}", "train.precision=fp32", *asked.set]
    found: dict[str, dict[str, float]] = {}
    wanted: list[dict[str, Any]] = []
    for name, changes in VARIANTS.items():
        if asked.only and name not in (LIVE, *asked.only):
            continue
        own = rows(asked.audio, asked.teacher, config.load_recipe(asked.recipe, [*plain, *changes]))
        wanted = wanted or own
        apart = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(own, wanted, strict=True)]
        last = asked.steps // 10
        found[name] = {
            "largest": max(apart),
            "mean": mean(apart),
            "last_tenth": mean(row["loss"] for row in own[-last:])
            / mean(row["loss"] for row in wanted[-last:])
            - 1,
            "held_out": own[-1]["valid"]["loss"] / wanted[-1]["valid"]["loss"] - 1,
            "loss": mean(row["loss"] for row in own[-last:]),
        }
        print(name, json.dumps(found[name]), flush=True)
    if asked.record:
        record(
            "agreement",
            {
                "teacher": Path(asked.teacher).name,
                "recipe": asked.recipe,
                "set": asked.set,
                "steps": asked.steps,
                "against_live_fp32": found,
            },
        )


if __name__ == "__main__":
    main()
