"""What oneDNN's cache of prepared shapes costs in memory and saves in time, on a CPU.

One layer of base's width is trained on 40 clips of random lengths, in a process of its own for each
capacity, two rounds in turn.

python tests/benchmarks/shapes.py
"""

import json
import os
import statistics
import subprocess
import sys

from record import record

CODE = """
import json, random, sys, time
import psutil, torch
from transformers import HubertConfig, HubertModel
torch.manual_seed(0); random.seed(0)
model = HubertModel(HubertConfig(num_hidden_layers=1, apply_spec_augment=False)).train()
def train(clips):
    began = time.process_time()
    for _ in range(clips):
        wave = torch.randn(1, random.randint(16_000, 48_000))
        model(wave).last_hidden_state.pow(2).mean().backward()
        model.zero_grad()
    return time.process_time() - began
train(4)
before = psutil.Process().memory_info().rss
seconds = train(40)
print(json.dumps([(psutil.Process().memory_info().rss - before) / 2**20, seconds]))
"""
CAPACITIES = (1024, 128)

found: dict[int, list[tuple[float, float]]] = {capacity: [] for capacity in CAPACITIES}
for _ in range(2):
    for capacity in CAPACITIES:
        environment = {**os.environ, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(capacity)}
        done = subprocess.run(
            [sys.executable, "-c", CODE],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        found[capacity].append(tuple(json.loads(done.stdout)))
base = [seconds for _, seconds in found[1024]]
record(
    "shapes",
    {
        str(capacity): {
            "grown_mib": round(statistics.median(grown for grown, _ in rows)),
            "time_against_1024": round(
                statistics.median(s / b for (_, s), b in zip(rows, base, strict=True)), 2
            ),
        }
        for capacity, rows in found.items()
    },
)
