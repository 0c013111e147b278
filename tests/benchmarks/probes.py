"""What a student kept of its teacher in ten tasks, on real speech, beside log-mel and random weights.

Needs DISTILKIT_SHARED. Each task has the recordings that have its labels; frames are computed once for all.
With --hour one command does all tasks on one hour, and what counts is how long it takes.

python tests/benchmarks/probes.py STUDENT TEACHER [--only ks sid] [--features FOLDER] [--record]
python tests/benchmarks/probes.py STUDENT TEACHER --hour [--record]
python tests/benchmarks/probes.py --show
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

from record import RESULTS, record

SPEECH = Path(os.environ.get("DISTILKIT_SHARED", "shared")) / "speech"
# Intents: three slots that hang on one word each, all right at once.
TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "pr": ("commands", ()),
    "ks": ("keywords", ()),
    "ic": ("commands", ("size", "roast", "number_of_shots")),
    "sid": ("commands", ()),
    "er": ("emotion", ()),
    "asr": ("commands", ()),
    "qbe": ("keywords", ()),
    "sf": ("commands", ()),
    "asv": ("commands", ()),
    "sd": ("commands", ()),
}
HOUR = ("commands", "digits", "emotion", "keywords", "ljspeech")  # 60.7 minutes


def probe(task: str, folders: list[str], options: list[str]) -> tuple[dict[str, Any], float]:
    """What `distilkit probe` says, and how many minutes it took."""
    began = time.perf_counter()
    data = [str(SPEECH / folder) for folder in folders]
    command = [sys.executable, "-m", "distilkit", "probe", task, *data, *options, "--json"]
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout), round((time.perf_counter() - began) / 60, 2)


def short(task: dict[str, Any]) -> dict[str, Any]:
    """What of a task is worth keeping."""
    return {
        name: value for name, value in task.items() if name not in ("skipped", "facts", "chosen")
    }


def score(task: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """A task's first metric, and its value by system."""
    first = task["metrics"][0]["name"]
    return first, {name: row[first]["value"] for name, row in task["values"].items()}


def kept(tasks: dict[str, Any]) -> float:
    """The share of the teacher's score that the student has, mean over tasks."""
    return mean(task["kept"]["value"] for task in tasks.values() if task["kept"])


def show() -> None:
    """Print what was recorded as tables: each task's first metric, and what was kept; 95% intervals."""
    for line in (RESULTS / "probes.jsonl").read_text().splitlines():
        row = json.loads(line)
        print(f"\nseed {row['seed']}, kept on average {kept(row['tasks']):.1%}\n")
        systems = list(next(iter(row["tasks"].values()))["values"])
        print("| task | metric |", " | ".join(systems), "| kept | minutes |")
        print("|---|---|" + "---|" * (len(systems) + 2))
        for name, task in row["tasks"].items():
            first = task["metrics"][0]["name"]
            cells = [shown(task["values"][system][first]) for system in systems]
            share = shown(task["kept"]) if task["kept"] else ""
            print(f"| `{name}` | {first} |", *(f"{cell} |" for cell in cells), end="")
            print(f" {share} | {task['minutes']:.1f} |")


def shown(value: dict[str, float]) -> str:
    """A value and its interval, in percent."""
    return f"{100 * value['value']:.1f} ({100 * value['low']:.1f} to {100 * value['high']:.1f})"


def main() -> None:
    """Run the tasks one after the other, and print what was kept."""
    parser = argparse.ArgumentParser()
    parser.add_argument("student", nargs="?")
    parser.add_argument("teacher", nargs="?")
    parser.add_argument("--only", nargs="*", choices=TASKS, default=[])
    parser.add_argument("--hour", action="store_true")
    parser.add_argument("--features", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--show", action="store_true")
    asked = parser.parse_args()
    if asked.show:
        show()
        return
    if asked.student is None or asked.teacher is None:
        parser.error("a student and its teacher")
    said = {"student": asked.student, "teacher": asked.teacher, "seed": asked.seed}
    models = ["--model", asked.student, "--against", asked.teacher, "--seed", str(asked.seed)]
    if asked.hour:
        found, minutes = probe("all", list(HOUR), models)
        tasks = {task["task"]: short(task) for task in found["tasks"]}
        print(*tasks, f"{minutes} minutes")
        if asked.record:
            record("probes_hour", {**said, "data": HOUR, "minutes": minutes, "tasks": tasks})
        return
    tasks = {}
    with tempfile.TemporaryDirectory() as temporary:
        kept_in = ["--features", str(asked.features or temporary)]
        for name in asked.only or TASKS:
            data, labels = TASKS[name]
            options = [*models, *kept_in, *(word for each in labels for word in ("--label", each))]
            found, minutes = probe(name, [data], options)
            (one,) = found["tasks"]
            tasks[name] = {"data": data, "labels": labels, "minutes": minutes, **short(one)}
            print(
                name, *score(one), "kept", one["kept"] and one["kept"]["value"], minutes, flush=True
            )
    print(f"kept on average over {len(tasks)} tasks: {kept(tasks):.1%}")
    if asked.record:
        record("probes", {**said, "kept": round(kept(tasks), 4), "tasks": tasks})


if __name__ == "__main__":
    main()
