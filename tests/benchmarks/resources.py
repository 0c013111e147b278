"""What distilling takes of a GPU: throughput under a limit of memory, share of the peak arithmetic, waiting for audio.

For each teacher (random weights) `distilkit distill` runs with the paper's 375 s a step: without a limit, then with each limit
of memory, live and with stored targets; a process each. Told are audio seconds a second, the most memory, the share of
the measured rate of matrix products that multiply-adds of teacher and student make up (backward counted as two
forwards), and the share of the time that was waited for audio. On a CPU it runs too, to see that it runs (`--size small`).

python tests/benchmarks/resources.py AUDIO [--size base --limit 3] [--size large --limit 5] [--steps 12] [--record]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from record import record

LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True,
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "conv_dim": [128] * 7},
    "base": {},
    "large": LARGE,
    "xlarge": {**LARGE, "hidden_size": 1280, "num_hidden_layers": 48, "intermediate_size": 5120},
}  # fmt: skip
WARM = 3  # steps that do not count


def teacher(size: str, folder: Path) -> Path:
    """A teacher of that size with random weights, saved."""
    import torch
    from transformers import HubertConfig, HubertModel

    from distilkit.encoder import Encoder, exact
    from distilkit.students import save

    torch.manual_seed(0)
    model = exact(HubertModel(HubertConfig(**SIZES[size])))
    save(Encoder(model=model, normalise=size in ("large", "xlarge")), folder / size, "random\n")
    return folder / size


def products() -> float:
    """Multiply-adds a second of large matrix products, in bf16 on a GPU, in fp32 on a CPU."""
    import torch

    cuda = torch.cuda.is_available()
    width = 8192 if cuda else 1536
    kind = torch.bfloat16 if cuda else torch.float32
    a = torch.randn(width, width, device="cuda" if cuda else "cpu", dtype=kind)
    best = 0.0
    for _ in range(8):
        began = time.perf_counter()
        for _ in range(10 if cuda else 1):
            a @ a
        if cuda:
            torch.cuda.synchronize()
        best = max(best, (10 if cuda else 1) * width**3 / (time.perf_counter() - began))
    return best


def multiply_adds(size: str, student: Path) -> tuple[int, int]:
    """Multiply-adds for a second of audio: the teacher's forward, and a training step of the student."""
    from transformers import HubertConfig, HubertModel

    from distilkit import bench, teachers
    from distilkit.encoder import Encoder, exact

    made = Encoder(model=exact(HubertModel(HubertConfig(**SIZES[size]))), normalise=False)
    small, _ = teachers.load(str(student))
    each = [bench.multiply_adds(encoder, 15.0) / 15 for encoder in (made, small)]
    return int(each[0]), int(3 * each[1])


def run(asked: argparse.Namespace, model: Path, out: Path, store: str, limit: float) -> list[Any]:
    """Distil for a few steps; the rows of its clock."""
    changes = [
        f"train.steps={asked.steps}", "train.validate_every=100000", "train.checkpoint_every=100000",
        f"targets.store={store}", "data.valid_fraction=0", *([f"train.memory_gib={limit}"] if limit else []),
        *asked.set,
    ]  # fmt: skip
    command = [sys.executable, "-m", "distilkit", "distill", str(asked.audio), "--recipe", "paper"]
    command += ["--teacher", str(model), "--out", str(out)]
    command += [word for change in changes for word in ("--set", change)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in (out / "speed.jsonl").read_text().splitlines()]


def main() -> None:
    """Run all, print a line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("audio", type=Path)
    parser.add_argument("--size", action="append", choices=SIZES, default=[])
    parser.add_argument("--limit", action="append", type=float, default=[])
    parser.add_argument("--store", nargs="+", default=["none", "fp16"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    rate = products()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in asked.size or ["base"]:
            model = teacher(size, Path(folder))
            for store in asked.store:
                free = 0.0
                for limit in [0.0, *asked.limit]:
                    out = Path(folder) / f"{size}-{store}-{limit:g}"
                    rows = run(asked, model, out, store, limit)[WARM:]
                    steps = (out / "metrics.jsonl").read_text().splitlines()[WARM:]
                    audio = [json.loads(line)["audio_seconds"] for line in steps]
                    speed = median(a / row["seconds"] for a, row in zip(audio, rows, strict=True))
                    free = free or speed
                    of_teacher, of_student = multiply_adds(size, out / "student")
                    needed = of_student + (of_teacher if store == "none" else 0)
                    plan = json.loads((out / "run.json").read_text())["plan"]
                    found.append(
                        {
                            "size": size,
                            "store": store,
                            "limit_gib": limit or None,
                            "audio_seconds_a_second": round(speed, 2),
                            "of_unlimited": round(speed / free, 3),
                            "of_matrix_products": round(speed * needed / rate, 3),
                            "waited": round(
                                sum(row["waited"] for row in rows) / sum(row["seconds"] for row in rows), 4
                            ),
                            "peak_gib": max(row["peak_gib"] for row in rows),
                            "micro_seconds": plan["micro_seconds"],
                            "gradient_checkpointing": plan["gradient_checkpointing"],
                            "products": plan["products"],
                            "compiled": plan["compiled"],
                            "why": {choice["name"]: choice["reason"] for choice in plan["choices"]},
                            "precision": plan["precision"],
                        }
                    )  # fmt: skip
                    print(json.dumps(found[-1]), flush=True)
    if asked.record:
        measured = {
            "set": asked.set,
            "steps": asked.steps,
            "products_a_second": rate,
            "runs": found,
        }
        record("resources", measured | {"threads": os.environ.get("OMP_NUM_THREADS")})


if __name__ == "__main__":
    main()
