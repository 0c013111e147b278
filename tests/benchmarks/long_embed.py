"""Peak memory and speed of embedding a recording of three hours, in a process of its own.

The model has the published student's shape (2 layers, 23.49 M parameters) with random weights.

python tests/benchmarks/long_embed.py [HOURS]
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from record import record
from transformers import HubertConfig, HubertModel

from distilkit.audio import frames
from distilkit.config import Student
from distilkit.encoder import Encoder
from distilkit.students import paper, save

HOURS = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    torch.manual_seed(0)
    student = HubertModel(paper(HubertConfig(), Student()))
    save(Encoder(model=student, normalise=False), folder / "student", "# random\n")
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(folder / "long.wav", "w", 16_000, 1, "PCM_16") as file:
        for _ in range(round(HOURS * 60)):
            file.write(0.1 * rng.standard_normal(16_000 * 60))
    command = [sys.executable, "-m", "distilkit", "embed", str(folder / "long.wav"), "--json"]
    command += ["--model", str(folder / "student"), "--out", str(folder / "long.npy")]
    began = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    shape = json.loads(done.stdout)["files"][0]["shape"]
    assert shape == [frames(round(HOURS * 3600) * 16_000), 768]
    written = (folder / "long.npy").stat().st_size
record(
    "long_embed",
    {
        "hours": HOURS,
        "peak_gib": round(peak, 2),
        "seconds": round(seconds),
        "times_real_time": round(HOURS * 3600 / seconds, 1),
        "output_gib": round(written / 2**30, 2),
    },
)
