"""Teachers, detected, not declared: one reader per checkpoint format.

A reader is a pair of functions in `READERS`: one says whether a path is its format, the other reads
it. Loading is strict, and nothing in a checkpoint can run code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import HubertConfig

from distilkit.audio import FRAME_SAMPLES, HOP_SAMPLES
from distilkit.encoder import Encoder
from distilkit.errors import DistilkitError
from distilkit.hub import DEFAULT_TEACHER, locate
from distilkit.teachers import huggingface
from distilkit.teachers.checkpoint import Checkpoint

__all__ = ["READERS", "Checkpoint", "Reader", "load", "locate"]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One checkpoint format."""

    detects: Callable[[Path], bool]
    read: Callable[[Path], Checkpoint]


READERS: dict[str, Reader] = {
    "huggingface": Reader(detects=huggingface.detects, read=huggingface.read),
}


def load(name: str) -> tuple[Encoder, Checkpoint]:
    """A model by folder, run or hub id, ready to encode, with what was detected.

    Raises:
        DistilkitError: nothing there, unknown format, unknown family, missing or unexpected weights.
    """
    path = locate(name)
    for reader in READERS.values():
        if reader.detects(path):
            checkpoint = reader.read(path)
            _check_frames(name, checkpoint.model.config)
            return Encoder(model=checkpoint.model, normalise=checkpoint.normalise), checkpoint
    inside = sorted(item.name for item in path.iterdir())[:8] if path.is_dir() else []
    raise DistilkitError(
        f"`{name}` is not a checkpoint of a known format ({', '.join(READERS)})"
        + (f"; it holds {', '.join(inside)}" if inside else ""),
        "give a Hugging Face folder with config.json and model.safetensors, or a hub id",
    )


def _check_frames(name: str, shape: HubertConfig) -> None:
    """Refuse a conv front end that makes other frames: masks and windows count HuBERT's."""
    hop, length = 1, 1
    for kernel, stride in zip(shape.conv_kernel, shape.conv_stride, strict=True):
        length, hop = length + (kernel - 1) * hop, hop * stride
    if (length, hop) != (FRAME_SAMPLES, HOP_SAMPLES):
        raise DistilkitError(
            f"`{name}` makes a frame of {length} samples every {hop}; only models with frames of "
            f"{FRAME_SAMPLES} every {HOP_SAMPLES} can be read",
            f"--teacher {DEFAULT_TEACHER}, or another HuBERT",
        )
