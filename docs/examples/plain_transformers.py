"""A student in plain transformers.

A student is a Hugging Face folder: `AutoModel` loads it, and whatever takes a HuBERT takes it. Give clips
one at a time, or of one length: stock transformers lets padding change a clip's vectors
([why](../concepts/exactness.md)).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import soundfile
import soxr
import torch
from transformers import AutoFeatureExtractor, AutoModel, HubertForSequenceClassification

BUILT_IN = Path(__file__).parents[2] / "distilkit" / "assets"


def main(arguments: Sequence[str] | None = None) -> None:
    """Frames, layers, and a model to fine-tune."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path, nargs="?", default=BUILT_IN / "words/voice-01/001.ogg")
    parser.add_argument("--model", default=BUILT_IN / "tiny", help="runs/my_audio/student")
    asked = parser.parse_args(arguments)

    wave, rate = soundfile.read(asked.file, dtype="float32", always_2d=True)
    samples = soxr.resample(wave.mean(1), rate, 16_000)  # mono, 16 kHz

    extractor = AutoFeatureExtractor.from_pretrained(asked.model)  # knows whether to normalise
    model = AutoModel.from_pretrained(asked.model, dtype=torch.float32).eval()
    inputs = extractor(samples, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        output = model(**inputs, output_hidden_states=True)
    print(f"last layer: {tuple(output.last_hidden_state.shape)}")  # (1, T, D), 50 frames a second
    print(f"layers: {len(output.hidden_states)}, the first being what goes into layer 1")
    print(f"one vector: {tuple(output.last_hidden_state.mean(1).shape)}")

    classifier = HubertForSequenceClassification.from_pretrained(
        asked.model, num_labels=20, dtype=torch.float32
    )
    loss = classifier(**inputs, labels=torch.tensor([0])).loss
    loss.backward()  # and on with your own training loop
    print(f"a classifier to train: loss {loss.item():.2f}")


if __name__ == "__main__":
    main()
