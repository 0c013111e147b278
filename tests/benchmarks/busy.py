"""Training on a computer that is in use: seconds a step beside processes that compute, by how long threads spin.

Threads of PyTorch that wait for one another keep their core busy for a while before they give it away. Where another
program wants that core, each of them waits for what is not running. How many turns they wait for is libgomp's
`GOMP_SPINCOUNT`. Each number is the median step of a process of its own; settings take turns, several rounds.

python tests/benchmarks/busy.py [--rounds 3] [--spin default 30000]
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from record import record

MODELS = {"tiny": (8, 2.0), "student": (2, 4.0)}  # clips in a step, and their seconds
STEPS = 5
OTHERS = (0, 1, 2)  # processes that compute beside it


def step_times(name: str) -> list[float]:
    """Seconds of steps, forward and backward, of the built-in teacher or a student of paper size."""
    import torch
    from transformers import HubertConfig, HubertModel

    from distilkit import teachers

    torch.manual_seed(0)
    clips, seconds = MODELS[name]
    student = HubertModel(HubertConfig(num_hidden_layers=2))
    model = teachers.load("tiny")[0].model if name == "tiny" else student
    model.train()
    sound_BS = torch.randn(clips, int(16_000 * seconds))
    took = []
    for _ in range(STEPS + 1):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            model(sound_BS).last_hidden_state.float().square().mean().backward()
        took.append(time.perf_counter() - began)
    return took[1:]


def measure(name: str, spin: str, others: int) -> float:
    """Seconds of the median step beside so many others."""
    environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    if spin != "default":
        environment["GOMP_SPINCOUNT"] = spin
    loop = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(loop) for _ in range(others)]
    try:
        words = [sys.executable, __file__, "--steps-of", name]
        done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    return statistics.median(map(float, done.stdout.split()))


def main() -> None:
    """Measure all, in turns."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spin", nargs="+", default=["default", "30000"])
    parser.add_argument("--steps-of", choices=MODELS)
    asked = parser.parse_args()
    if asked.steps_of:
        print(*step_times(asked.steps_of))
        return
    found: dict[tuple[str, int, str], list[float]] = {}
    for _ in range(asked.rounds):
        for name in MODELS:
            for others in OTHERS:
                for spin in asked.spin:
                    took = measure(name, spin, others)
                    found.setdefault((name, others, spin), []).append(round(took, 3))
                    print(name, others, spin, round(took, 3), file=sys.stderr, flush=True)
    rows: list[dict[str, Any]] = [
        {"model": name, "others": others, "spin": spin, "seconds": took}
        for (name, others, spin), took in found.items()
    ]
    record("busy", {"unit": "s a step", "steps": STEPS, "rows": rows})


if __name__ == "__main__":
    main()
