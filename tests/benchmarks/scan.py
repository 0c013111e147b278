"""How many small files a second are read, checked, hashed and cut: 10,000 clips of 0.5 s, one core.

Each is decoded whole. The files are in the system's cache; the better half of five rounds counts
for little, so all five are recorded.

python tests/benchmarks/scan.py
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from record import record

from distilkit.config import Data
from distilkit.data import Clip, find, scan

FILES, SECONDS, ROUNDS = 10_000, 0.5, 5

os.sched_setaffinity(0, {0})
rng = np.random.default_rng(0)
for suffix in ("wav", "flac"):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index in range(FILES):
            path = folder / f"{index % 100:02d}" / f"{index:05d}.{suffix}"
            path.parent.mkdir(exist_ok=True)
            sound = 0.1 * np.sin(np.arange(int(16_000 * SECONDS)) * rng.uniform(0.02, 0.3))
            soundfile.write(path, sound + 0.01 * rng.standard_normal(len(sound)), 16_000, "PCM_16")
        rates = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            found = list(scan(find([folder]), Data(), folder / "cache"))
            rates.append(FILES / (time.perf_counter() - began))
            assert sum(isinstance(item, Clip) for item in found) == FILES
        values = {"unit": "files/s", "files": FILES, "median": round(statistics.median(rates))}
        record("scan", {"suffix": suffix, **values, "all": [round(rate) for rate in rates]})
