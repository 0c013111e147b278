"""What a student kept of its teacher in ten tasks, on real speech, beside log-mel and random weights.

Needs DISTILKIT_SHARED. Each task has the recordings that have its labels; frames are computed once for all.

python tests/benchmarks/probes.py STUDENT TEACHER [--only ks sid] [--features FOLDER] [--record]
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

from record import record

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


def main() -> None:
    """Run the tasks one after the other, and print what was kept."""
    parser = argparse.ArgumentParser()
    parser.add_argument("student")
    parser.add_argument("teacher")
    parser.add_argument("--only", nargs="*", choices=TASKS, default=[])
    parser.add_argument("--features", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    found: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.features or Path(temporary)
        for task in asked.only or TASKS:
            data, labels = TASKS[task]
            began = time.perf_counter()
            command = [
                *(sys.executable, "-m", "distilkit", "probe", task, str(SPEECH / data)),
                *("--model", asked.student, "--against", asked.teacher),
                *("--features", str(folder), "--seed", str(asked.seed), "--json"),
                *(word for label in labels for word in ("--label", label)),
            ]
            done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
            (one,) = json.loads(done.stdout)["tasks"]
            for name in ("skipped", "facts", "chosen"):
                del one[name]
            found[task] = {"data": data, "labels": labels, **one}
            found[task]["minutes"] = round((time.perf_counter() - began) / 60, 2)
            (first, *_) = one["metrics"]
            values = {name: row[first["name"]]["value"] for name, row in one["values"].items()}
            kept = one["kept"]["value"] if one["kept"] else None
            print(task, first["name"], values, "kept", kept, found[task]["minutes"], flush=True)
    shares = [task["kept"]["value"] for task in found.values() if task["kept"]]  # type: ignore[index]
    kept = round(mean(shares), 4)
    print(f"kept on average over {len(shares)} tasks: {kept:.1%}")
    if asked.record:
        said = {"student": asked.student, "teacher": asked.teacher, "seed": asked.seed}
        record("probes", {**said, "kept": kept, "tasks": found})


if __name__ == "__main__":
    main()
