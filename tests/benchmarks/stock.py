"""Does stock transformers, without distilkit, write the same text as `distilkit transcribe`?

Takes recognisers and a folder of recordings: its first 50 files, and all of them joined to 10 minutes. The stock
pipeline runs in a process of its own in which distilkit cannot be imported.

python tests/benchmarks/stock.py FOLDER MODEL ... [--record]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from record import record

from distilkit import recognisers
from distilkit.audio import SAMPLE_RATE, load
from distilkit.data import find
from distilkit.hub import locate
from distilkit.transcribe import Transcript, transcribe

FILES, MINUTES = 50, 10
STOCK = """
import json, sys
sys.modules["distilkit"] = None
import numpy, torch, transformers
transformers.logging.set_verbosity_error()
recognise = transformers.pipeline("automatic-speech-recognition", model=sys.argv[1])
texts = []
for name in sys.argv[2:]:
    texts.append(recognise({"raw": numpy.load(name), "sampling_rate": 16000}, chunk_length_s=30)["text"])
print(json.dumps(texts))
"""


def same(ours: str, theirs: str) -> bool:
    """Whether the words are the same; stock decoding writes two spaces where a model does."""
    return ours.split() == theirs.split()


def main() -> None:
    """Compare each model's texts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    sounds = [load(item.path) for item in find([asked.folder]) if item.audio]
    clips = sounds[:FILES]
    whole = np.concatenate(sounds * (1 + MINUTES * 60 * SAMPLE_RATE // sum(map(len, sounds))))
    clips.append(whole[: MINUTES * 60 * SAMPLE_RATE])
    results = {}
    with tempfile.TemporaryDirectory() as name:
        waves, arrays = [], []
        for place, clip in enumerate(clips):
            waves.append(Path(name) / f"{place:03d}.wav")
            arrays.append(Path(name) / f"{place:03d}.npy")
            soundfile.write(waves[-1], clip, SAMPLE_RATE, "FLOAT")
            np.save(arrays[-1], clip)
        for model in asked.models:
            found = transcribe(waves, recognisers.load(model))
            ours = [item.text for item in found if isinstance(item, Transcript)]
            command = [sys.executable, "-c", STOCK, str(locate(model)), *map(str, arrays)]
            done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
            theirs = json.loads(done.stdout.splitlines()[-1])
            results[model] = {
                "tokens": len(recognisers.load(model).tokenizer),
                "files": len(ours) - 1,
                "files_equal": sum(map(same, ours[:-1], theirs[:-1])),
                "files_equal_to_the_letter": sum(map(str.__eq__, ours[:-1], theirs[:-1])),
                "minutes": MINUTES,
                "long_equal": same(ours[-1], theirs[-1]),
                "long_words": len(ours[-1].split()),
            }
            print(model, json.dumps(results[model]), flush=True)
    if asked.record:
        record("stock", {"results": results})


if __name__ == "__main__":
    main()
