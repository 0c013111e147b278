"""What `distilkit distill --plan` says of time and memory, against what then happens.

Plans and runs take turns, each in a process of its own: seconds of a step in the mean; seconds of the whole run, from
when its folder is there until its last step is over, with all that comes in between, said as units, targets and steps;
memory, the process's peak.

python tests/benchmarks/plan_accuracy.py AUDIO [--teacher tiny] [--recipe demo] [--steps 40] [--rounds 3] [--set K=V] [--record]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

from record import record


def distil(*arguments: object) -> str:
    """Run a distillation; its result."""
    command = [sys.executable, "-m", "distilkit", "distill", *map(str, arguments)]
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    return done.stdout


def took(run: Path) -> dict[str, float]:
    """Seconds of a step and of all, and GiB at the most, as they were."""
    began, ended = ((run / name).stat().st_mtime for name in ("skipped.tsv", "speed.jsonl"))
    rows = [json.loads(line) for line in (run / "speed.jsonl").read_text().splitlines()]
    return {
        "seconds_per_step": mean(row["seconds"] for row in rows[1:]),
        "seconds": ended - began,
        "peak_memory_gib": max(row["peak_gib"] for row in rows),
    }


def main() -> None:
    """Plan and run in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("audio")
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    changes = [f"train.steps={asked.steps}", "train.validate_every=1000000", *asked.set]
    options = ["--teacher", asked.teacher, "--recipe", asked.recipe]
    options += [word for change in changes for word in ("--set", change)]
    found: list[dict[str, Any]] = []
    for number in range(asked.rounds):
        said = json.loads(distil(asked.audio, *options, "--plan", "--json"))
        said["seconds"] = said["unit_seconds"] + said["target_seconds"]
        said["seconds"] += said["steps"] * said["seconds_per_step"]
        with tempfile.TemporaryDirectory() as folder:
            distil(asked.audio, *options, "--out", f"{folder}/run")
            was = took(Path(folder) / "run")
        found.append({key: {"said": said[key], "was": was[key]} for key in was})
        print(number, json.dumps(found[-1]), flush=True)
    measured = {
        "teacher": Path(asked.teacher).name,
        "recipe": asked.recipe,
        "set": asked.set,
        "steps": asked.steps,
        "rounds": found,
        "was_to_said": {
            key: [
                round(f(row[key]["was"] / row[key]["said"] for row in found), 3)
                for f in (median, min, max)
            ]
            for key in found[0]
        },
    }
    print(json.dumps(measured, indent=1))
    if asked.record:
        record("plan_accuracy", measured)


if __name__ == "__main__":
    main()
