"""The way through on built-in speech: a teacher, a student, an embedding, all offline."""

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import HubertConfig, HubertModel

from distilkit.encoder import Encoder
from distilkit.errors import DistilkitError
from distilkit.runs import replacing
from distilkit.students import save

CARD = "# A HuBERT with random weights\n\nIt knows nothing; it stands in where the way is tried.\n"
SPEECH = Path(__file__).parent / "assets" / "speech"


def speech() -> Path:
    """The folder of the built-in synthesised speech."""
    return SPEECH


def examples() -> Iterator[Path]:
    """The built-in recordings, in order."""
    return iter(sorted(SPEECH.glob("*/*.ogg")))


def write_random_teacher(folder: Path, seed: int = 0) -> Path:
    """Write a small HuBERT with random weights as a Hugging Face folder, and return the folder.

    It has HuBERT base's form (12 layers, group norm) at a third of its width. It knows nothing: it
    stands in for a teacher where the way is to be tried, not the result.

    Raises:
        DistilkitError: the folder exists.
    """
    if folder.exists():
        raise DistilkitError(f"`{folder}` exists", "another --out")
    shape = HubertConfig(
        hidden_size=256,
        num_hidden_layers=12,
        num_attention_heads=4,
        intermediate_size=1024,
        conv_dim=[128] * 7,
        num_conv_pos_embeddings=128,
        num_conv_pos_embedding_groups=16,
        layerdrop=0.0,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]), replacing(folder) as beside:
        torch.manual_seed(seed)
        save(Encoder(model=HubertModel(shape), normalise=False), beside, CARD)
    return folder
