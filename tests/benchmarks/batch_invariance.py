"""How far batch mates and padding move an embedding: 50 files of mixed lengths, against each file
alone in stock transformers; and how far they move it in a stock padded batch.

Models of base's (group norm) and large's (layer norm) full size with random weights. The files are
real speech where DISTILKIT_SHARED names some, else the built-in speech.

python tests/benchmarks/batch_invariance.py
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from record import record
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from distilkit import demo
from distilkit.audio import frames, load
from distilkit.data import find
from distilkit.embed import embed
from distilkit.encoder import Encoder, exact

LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True,
}  # fmt: skip
FILES = 50

root = (
    Path(os.environ["DISTILKIT_SHARED"]) / "speech"
    if "DISTILKIT_SHARED" in os.environ
    else demo.SPEECH
)
paths = sorted(
    item.path for item in find([root]) if item.audio and item.path.suffix in (".flac", ".ogg")
)
rng = np.random.default_rng(0)
clips = {}
for index in rng.permutation(len(paths)):
    try:
        sound = load(paths[index])
    except Exception:  # the damaged ones are another test's business
        continue
    if len(clips) < FILES and 400 <= len(sound) <= 6 * 16_000:
        clips[paths[index]] = sound
lengths = [len(clip) / 16_000 for clip in clips.values()]


def distance(got: np.ndarray, wanted: np.ndarray) -> float:
    """Norm of the difference over the norm of what is wanted."""
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


for name, changes in (("base", {}), ("large", LARGE)):
    torch.manual_seed(0)
    model = HubertModel(HubertConfig(**changes)).eval()
    extractor = Wav2Vec2FeatureExtractor(do_normalize=bool(changes), return_attention_mask=True)
    alone = []
    with torch.inference_mode():
        for clip in clips.values():
            inputs = extractor(clip, sampling_rate=16_000, return_tensors="pt")
            alone.append(model(inputs.input_values).last_hidden_state[0].numpy())
        stock = []
        for start in range(0, FILES, 5):
            group = list(clips.values())[start : start + 5]
            inputs = extractor(group, sampling_rate=16_000, return_tensors="pt", padding=True)
            output = model(**inputs).last_hidden_state
            stock += [output[i, : frames(len(clip))].numpy() for i, clip in enumerate(group)]
    encoder = Encoder(model=exact(model), normalise=bool(changes))
    with tempfile.TemporaryDirectory() as folder:
        done, _, out = embed(list(clips), encoder, out=Path(folder) / "out")
        ours = {item.source: np.load(out / item.output) for item in done}
    record(
        "batch_invariance",
        {
            "model": name,
            "files": len(clips),
            "seconds": [round(min(lengths), 2), round(max(lengths), 2)],
            "largest_relative_difference": max(
                distance(ours[str(path)], wanted) for path, wanted in zip(clips, alone, strict=True)
            ),
            "stock_padded_batches_of_5": max(map(distance, stock, alone)),
        },
    )
