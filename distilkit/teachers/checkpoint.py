"""What every checkpoint reader is given, and what it returns."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from distilkit.encoder import Model, fingerprint
from distilkit.hub import split
from distilkit.teachers import files


@dataclass(frozen=True, kw_only=True)
class Source:
    """A place that may hold a checkpoint; a file is loaded once, however many readers look at it."""

    path: Path  # a folder, a file, or the name of a bundle (`torchaudio:NAME`)
    part: str | None = None  # what `FILE:PART` asks for: a sub-network

    def __str__(self) -> str:
        """The name under which it can be found again."""
        return f"{self.path}:{self.part}" if self.part else str(self.path)

    @cached_property
    def content(self) -> dict[str, Any]:
        """What the file holds; empty for a folder or a bundle's name.

        Raises:
            DistilkitError: damaged, not a checkpoint, or with more in it than harmless types.
        """
        return files.load(self.path) if self.path.is_file() else {}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model as read, padding-proof and in evaluation mode, and what was detected."""

    model: Model
    normalise: bool  # whether it wants zero-mean, unit-variance waveforms
    format: str  # key of READERS
    source: str  # where it was read from
    notes: tuple[str, ...] = ()  # what was left out or assumed, for the user to read
    heads: dict[str, Tensor] | None = None  # of a student: named as `objectives.Heads.named` does
    head_layers: tuple[int, ...] = ()  # the teacher's layers that they predict

    @property
    def family(self) -> str:
        """`hubert`, `wav2vec2`, `wavlm` or `data2vec-audio`: keys of `encoder.FAMILIES`."""
        return str(self.model.config.model_type)

    def facts(self, name: str) -> dict[str, Any]:
        """What to note of a model that will be needed again, from whatever folder: see `teachers.again`.

        Args:
            name: what the user called it.
        """
        there = Path(split(self.source)[0]).exists()
        return {
            "name": name,
            "source": str(Path(self.source).absolute()) if there else self.source,
            "format": self.format,
            "fingerprint": fingerprint(self.model),
            "notes": list(self.notes),
        }
