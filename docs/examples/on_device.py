"""Export a model, and run it without PyTorch.

The export is verified on speech before it is kept. What runs it is `run.py` in the exported folder, which
needs onnxruntime, soundfile and numpy, and not distilkit; see [on a device](../guides/on-device.md).
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distilkit import demo
from distilkit.export import export


def main(arguments: Sequence[str] | None = None) -> None:
    """Export, then run the script beside the model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path, nargs="?", default=next(demo.examples()))
    parser.add_argument("--model", default="tiny", help="a run, a recogniser, a folder")
    parser.add_argument("--precision", choices=["fp32", "fp16", "int8"], default="int8")
    parser.add_argument("--data", nargs="*", default=[], help="recordings to verify on")
    parser.add_argument("--out", type=Path, default=Path("example-model"))
    asked = parser.parse_args(arguments)

    done = export(asked.model, asked.out, precision=asked.precision, audio=asked.data)
    for check in done.checks:
        print(f"{check.runtime}: least cosine of the last layer {check.layers[-1].cosine:.4f}")
    print(f"{asked.out / 'model.onnx'}: {(asked.out / 'model.onnx').stat().st_size / 1e6:.1f} MB")

    script = [sys.executable, str(asked.out.resolve() / "run.py"), str(asked.file.resolve())]
    subprocess.run(script, check=True, cwd=asked.out)
    vectors_TD = np.load(asked.out / f"{asked.file.stem}.npy")
    print(f"without PyTorch: {vectors_TD.shape}")


if __name__ == "__main__":
    main()
