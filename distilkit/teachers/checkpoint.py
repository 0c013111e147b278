"""What every checkpoint reader returns."""

from dataclasses import dataclass

from transformers import HubertModel


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model as read, padding-proof and in evaluation mode, and what was detected."""

    model: HubertModel
    normalise: bool  # whether it wants zero-mean, unit-variance waveforms
    format: str  # key of READERS
    source: str  # where it was read from
    notes: tuple[str, ...] = ()  # what was left out or assumed, for the user to read
