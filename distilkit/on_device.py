"""Run an exported speech model with nothing but onnxruntime, soundfile and numpy.

python run.py file.wav               the text of a recogniser; frames into file.npy of an encoder
python run.py file.wav --words       the same with the second at which each word begins (roughly)
python run.py file.wav --layer 1     frames of that layer, 50 a second

Lies beside model.onnx and export.json. Letters in names: S samples, T frames, D width, K tokens.
"""

import argparse
import hashlib
import json
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it would count its use for its maker
import onnxruntime  # noqa: E402

Array = npt.NDArray[np.float32]
HERE = Path(__file__).resolve().parent
WINDOW, CONTEXT = 480_000, 80_000  # samples: 30 s, of which 5 s at either end serve the neighbour


def pieces(model: onnxruntime.InferenceSession, wave_S: Array, output: str, hop: int) -> Array:
    """What the model gives for a recording of any length, (T, D): whole up to 30 s, else in windows."""
    found, lead = [], 0
    while True:
        last = len(wave_S) <= WINDOW
        given = model.run([output], {"wave": wave_S[None, :WINDOW]})[0][0]
        found.append(given[lead : None if last else (WINDOW - CONTEXT) // hop])
        if last:
            return np.concatenate(found)
        wave_S, lead = wave_S[WINDOW - 2 * CONTEXT :], CONTEXT // hop


def words(logprobs_TK: Array, tokens: list[str], blank: int) -> list[tuple[int, str]]:
    """The most likely tokens as words: repeats are one token, blanks none; and each one's first frame."""
    path = logprobs_TK.argmax(1)
    found: list[tuple[int, str]] = []
    fresh = True
    for frame, token in enumerate(path):
        if token == blank or (frame and token == path[frame - 1]):
            continue
        name = tokens[token]
        fresh = fresh or name == "|" or name.startswith("\u2581")
        letters = "" if name == "|" else name.replace("\u2581", "")
        if letters and fresh:
            found.append((int(frame), letters))
            fresh = False
        elif letters:
            found[-1] = (found[-1][0], found[-1][1] + letters)
    return found


def main() -> None:
    """Read the folder's facts, check its model, run it."""
    parser = argparse.ArgumentParser(description="Run the exported speech model in this folder.")
    parser.add_argument("file")
    parser.add_argument("--layer", type=int)
    parser.add_argument("--words", action="store_true")
    parser.add_argument("--out")
    asked = parser.parse_args()
    facts = json.loads((HERE / "export.json").read_text(encoding="utf-8"))
    path = HERE / facts["file"]
    if hashlib.sha256(path.read_bytes()).hexdigest() != facts["sha256"]:
        sys.exit(f"error: {path.name} is not the file that was exported: export it again")
    hint = f"hint: ffmpeg -i {shlex.quote(asked.file)} -ac 1 -ar {facts['sample_rate']} 16k.wav"
    try:
        sound_SC, rate = soundfile.read(asked.file, dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:
        if not Path(asked.file).is_file():
            sys.exit(f"error: there is no file `{asked.file}`")
        sys.exit(f"error: `{asked.file}` cannot be read as audio: {error}\n{hint}")
    if rate != facts["sample_rate"]:
        sys.exit(
            f"error: {asked.file} has {rate} samples a second, the model hears {facts['sample_rate']}\n{hint}"
        )
    if len(sound_SC) < facts["frame_samples"]:
        sys.exit(f"error: {asked.file} is shorter than one frame (0.025 s)")
    wave_S = sound_SC.mean(1, dtype=np.float32)
    model = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    if facts["kind"] == "recogniser" and asked.layer is None:
        logprobs_TK = pieces(model, wave_S, "logprobs", facts["hop_samples"])
        said = words(logprobs_TK, facts["tokens"], facts["blank"])
        if asked.words:
            for frame, word in said:
                print(f"{frame * facts['hop_samples'] / rate:.2f}\t{word}")
        else:
            print(" ".join(word for _, word in said))
        return
    layer = facts["layers"] if asked.layer is None else asked.layer
    if not 0 <= layer <= facts["layers"]:
        sys.exit(f"error: there is no layer {layer}: this model has 0 to {facts['layers']}")
    frames_TD = pieces(model, wave_S, f"layer_{layer}", facts["hop_samples"])
    out = asked.out or Path(asked.file).stem + ".npy"
    try:
        np.save(out, frames_TD)
    except OSError as error:
        sys.exit(f"error: `{out}` cannot be written: {error.strerror}")
    print(f"{out}\t{frames_TD.shape}")


if __name__ == "__main__":
    main()
