"""Teachers, detected, not declared: one reader per checkpoint format.

A reader is a pair of functions in `READERS`: one says whether a source is its format, the other reads
it. Loading is strict, and nothing in a checkpoint can run code.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from distilkit.audio import FRAME_SAMPLES, HOP_SAMPLES
from distilkit.encoder import Encoder, fingerprint
from distilkit.errors import DistilkitError
from distilkit.hub import DEFAULT_TEACHER, WEIGHTS, is_exported, locate, split
from distilkit.teachers import fairseq, huggingface, lighthubert, s3prl, torchaudio
from distilkit.teachers.checkpoint import Checkpoint, Source
from distilkit.teachers.files import AGAIN
from distilkit.wording import first_line

__all__ = ["READERS", "Checkpoint", "Reader", "Source", "load", "locate"]

ODD = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One checkpoint format."""

    detects: Callable[[Source], bool]
    read: Callable[[Source], Checkpoint]


READERS: dict[str, Reader] = {
    "huggingface": Reader(detects=huggingface.detects, read=huggingface.read),
    "s3prl": Reader(detects=s3prl.detects, read=s3prl.read),
    "lighthubert": Reader(detects=lighthubert.detects, read=lighthubert.read),
    "fairseq": Reader(detects=fairseq.detects, read=fairseq.read),
    "torchaudio": Reader(detects=torchaudio.detects, read=torchaudio.read),
}


def load(name: str) -> tuple[Encoder, Checkpoint]:
    """A model by file, folder, run, hub id or bundle, ready to encode, with what was detected.

    `FILE:PART` chooses a sub-network of LightHuBERT, `torchaudio:NAME` a bundle of torchaudio.

    Raises:
        DistilkitError: nothing there, unknown format, unknown family, missing or unexpected weights.
    """
    source = Source(path=locate(name), part=split(name)[1])
    for label, reader in READERS.items():
        if reader.detects(source):
            if source.part is not None and label != "lighthubert":
                raise DistilkitError(
                    f"`{source.path}` is a {label} checkpoint, which has no parts such as `{source.part}`",
                    str(source.path),
                )
            try:
                checkpoint = reader.read(source)
                _check_frames(name, checkpoint.model.config)
            except ODD as error:  # settings and weights can be anything
                raise DistilkitError(
                    f"`{source}` is not as a {label} checkpoint should be: {first_line(error)}",
                    AGAIN,
                ) from error
            return Encoder(model=checkpoint.model, normalise=checkpoint.normalise), checkpoint
    raise _unknown(name, source)


def again(told: Mapping[str, Any], wanted: str) -> tuple[Encoder, Checkpoint]:
    """The very model of which `Checkpoint.facts` were noted: where it lay, else by its name.

    Args:
        told: `name`, `source` and `fingerprint` of it.
        wanted: ends the sentence "the model `name` is not the one that ...".

    Raises:
        DistilkitError: it is gone, or another one.
    """
    there = Path(split(told["source"])[0]).exists()
    encoder, checkpoint = load(told["source"] if there else told["name"])
    if fingerprint(checkpoint.model) != told["fingerprint"]:
        raise DistilkitError(
            f"the model `{told['name']}` is not the one that {wanted}",
            "put the old one back, or begin anew with another --out",
        )
    return encoder, checkpoint


def _unknown(name: str, source: Source) -> DistilkitError:
    path = source.path
    if is_exported(path):
        return DistilkitError(
            f"`{name}` is an exported model, which can be run, but not trained or taken apart",
            "give the model that it was made of: distilkit inspect " + name,
        )
    inside = sorted(item.name for item in path.iterdir()) if path.is_dir() else [*source.content]
    hint = "give a Hugging Face folder, a checkpoint of one of these formats, or a hub id"
    if path.name in WEIGHTS and (path.parent / "config.json").is_file():
        hint = str(path.parent)
    return DistilkitError(
        f"`{name}` is not a checkpoint of a known format ({', '.join(READERS)})"
        + (f"; it holds {', '.join(map(str, inside[:8]))}" if inside else ""),
        hint,
    )


def _check_frames(name: str, shape: PreTrainedConfig) -> None:
    """Refuse a conv front end that makes other frames: masks and windows count HuBERT's."""
    hop, length = 1, 1
    for kernel, stride in zip(shape.conv_kernel, shape.conv_stride, strict=True):
        length, hop = length + (kernel - 1) * hop, hop * stride
    if (length, hop) != (FRAME_SAMPLES, HOP_SAMPLES):
        raise DistilkitError(
            f"`{name}` makes a frame of {length} samples every {hop}; only models with frames of "
            f"{FRAME_SAMPLES} every {HOP_SAMPLES} can be read",
            f"{DEFAULT_TEACHER}, or another HuBERT",
        )
