"""An hour on standard input, faster than real time: memory over time, and the text beside that of the file.

python tests/benchmarks/live.py MODEL AUDIO... [--minutes 60] [--record]
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import soundfile
from export import sound
from record import record

from distilkit.audio import SAMPLE_RATE


def main() -> None:
    """Feed, watch, compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("audio", nargs="+")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    samples = (sound(asked.audio, 60 * asked.minutes) * 32_767).astype("<i2")
    command = [sys.executable, "-m", "distilkit", "transcribe"]
    began, held = time.perf_counter(), []
    process = subprocess.Popen(
        [*command, "-", "--model", asked.model], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )

    def feed() -> None:
        assert process.stdin is not None
        watched = psutil.Process(process.pid)
        for at in range(0, len(samples), 60 * SAMPLE_RATE):
            process.stdin.write(samples[at : at + 60 * SAMPLE_RATE].tobytes())
            held.append(watched.memory_info().rss / 2**20)
        process.stdin.close()

    feeding = threading.Thread(target=feed)
    feeding.start()
    assert process.stdout is not None
    live = process.stdout.read().decode()
    feeding.join()
    assert process.wait() == 0
    spent = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hour.wav"
        soundfile.write(path, samples, SAMPLE_RATE, "PCM_16")
        asks = [*command, path, "--model", asked.model]
        whole = subprocess.run(asks, stdout=subprocess.PIPE, check=True).stdout.decode()
    half = len(held) // 2
    measured = {
        "model": Path(asked.model).name,
        "minutes": asked.minutes,
        "times_real_time": round(60 * asked.minutes / spent, 1),
        "mib_first_half_most": round(max(held[:half]), 1),
        "mib_second_half_most": round(max(held[half:]), 1),
        "words": len(live.split()),
        "same_text": live == whole,
    }
    print(measured)
    if asked.record:
        record("live", measured)


if __name__ == "__main__":
    main()
