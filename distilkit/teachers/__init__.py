"""Teachers, detected, not declared: one reader per checkpoint format.

A reader is a pair of functions in `READERS`: one says whether a path is its format, the other reads
it. Loading is strict, and nothing in a checkpoint can run code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distilkit.encoder import Encoder
from distilkit.errors import DistilkitError, did_you_mean
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
            return Encoder(model=checkpoint.model, normalise=checkpoint.normalise), checkpoint
    inside = sorted(item.name for item in path.iterdir())[:8] if path.is_dir() else []
    raise DistilkitError(
        f"`{name}` is not a checkpoint of a known format ({', '.join(READERS)})"
        + (f"; it holds {', '.join(inside)}" if inside else ""),
        "give a Hugging Face folder with config.json and model.safetensors, or a hub id",
    )


def locate(name: str) -> Path:
    """The path behind a name: a folder or file, a run's student, or a hub id's local copy.

    Raises:
        DistilkitError: nothing there.
    """
    path = Path(name).expanduser()
    if (path / "run.json").is_file():
        if not (path / "student").is_dir():
            raise DistilkitError(
                f"run `{name}` has no student yet", f"distilkit distill --resume --out {name}"
            )
        return path / "student"
    if path.exists():
        return path
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or path.parent.is_dir():
        near = did_you_mean(
            path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        )
        raise DistilkitError(
            f"no such model: `{name}` is neither a path that exists nor a hub id (`owner/name`)",
            near,
        )
    return huggingface.download(name)
