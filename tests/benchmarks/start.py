"""How long `distilkit --help` takes: the median of five whole processes, after one to warm up.

python tests/benchmarks/start.py
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from record import record

COMMAND = [str(Path(sys.executable).with_name("distilkit")), "--help"]


def run() -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    subprocess.run(COMMAND, check=True, capture_output=True)
    return time.perf_counter() - began


run()
times = sorted(run() for _ in range(5))
record(
    "start",
    {
        "unit": "s",
        "median": round(statistics.median(times), 3),
        "all": [round(t, 3) for t in times],
    },
)
