"""`distilkit embed` over a folder of mixed lengths against a plain loop over stock transformers, in turn.

The plain loop is what one writes first: a file at a time, decoded whole, one forward pass, saved as npy. Both write the
same vectors; how far they differ is told. Whole processes are timed, models loaded and all.

python tests/benchmarks/embed_speed.py AUDIO MODEL [--exported DIR] [--rounds 3] [--record]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from record import record

PLAIN = """
import sys
from pathlib import Path
import numpy as np, soundfile, torch
from transformers import AutoFeatureExtractor, AutoModel
audio, model, out = sys.argv[1:]
extractor = AutoFeatureExtractor.from_pretrained(model)
network = AutoModel.from_pretrained(model).eval()
for path in sorted(Path(audio).rglob("*")):
    if path.suffix in (".wav", ".flac", ".ogg"):
        samples, rate = soundfile.read(path, dtype="float32")
        inputs = extractor(samples, sampling_rate=rate, return_tensors="pt")
        with torch.inference_mode():
            vectors = network(**inputs).last_hidden_state[0]
        place = Path(out) / path.relative_to(audio)
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(f"{place}.npy", vectors.numpy())
"""


def timed(command: list[str]) -> float:
    """Seconds that a command takes."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    """Time both in turn, and compare what they wrote."""
    parser = argparse.ArgumentParser()
    parser.add_argument("audio", type=Path)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--exported", help="what `embed` runs, made of MODEL; else MODEL itself")
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    plain: list[float] = []
    ours: list[float] = []
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.rounds):
            one, two = Path(folder) / f"plain-{number}", Path(folder) / f"ours-{number}"
            plain.append(
                timed([sys.executable, "-c", PLAIN, str(asked.audio), asked.model, str(one)])
            )
            command = [sys.executable, "-m", "distilkit", "embed", str(asked.audio)]
            ours.append(
                timed([*command, "--model", asked.exported or asked.model, "--out", str(two)])
            )
            print(f"round {number}: plain {plain[-1]:.1f} s, embed {ours[-1]:.1f} s", flush=True)
        lines = (two / "embeddings.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        for row in rows:
            wanted = np.load(one / f"{Path(row['source']).relative_to(asked.audio)}.npy")
            found = np.load(two / row["output"])
            worst = max(worst, float(np.abs(found - wanted).max() / np.abs(wanted).max()))
    ratios = [a / b for a, b in zip(plain, ours, strict=True)]
    measured = {
        "files": len(rows),
        "audio_seconds": round(sum(row["seconds"] for row in rows), 1),
        "model": Path(asked.model).name,
        "exported": Path(asked.exported).name if asked.exported else None,
        "plain_seconds": round(median(plain), 2),
        "embed_seconds": round(median(ours), 2),
        "times_plain": [round(f(ratios), 3) for f in (median, min, max)],
        "largest_relative_difference": worst,
    }
    print(json.dumps(measured, indent=1))
    if asked.record:
        record("embed_speed", measured)


if __name__ == "__main__":
    main()
