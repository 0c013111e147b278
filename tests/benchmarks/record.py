"""What every benchmark shares: the machine, the versions, the commit, and where results go."""

import importlib.metadata
import json
import os
import platform
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "benchmarks" / "results"
PACKAGES = ("torch", "torchaudio", "transformers", "accelerate", "lhotse", "soundfile", "numpy")


def machine() -> dict[str, Any]:
    """Processor, cores, accelerator, versions, commit."""
    import torch

    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    dirty = subprocess.run(
        [*git, "status", "--porcelain", "--", "distilkit", "recipes"],
        capture_output=True,
        text=True,
    )
    return {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip() + ("+changes" if dirty.stdout.strip() else ""),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def record(name: str, values: dict[str, Any]) -> None:
    """Print what was measured and append it, with the machine, to this benchmark's results."""
    row = {"benchmark": name, **values, "machine": machine()}
    print(json.dumps(row, indent=1))
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
