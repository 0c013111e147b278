"""A model by name, of PyTorch or exported, ready to be asked; torch is imported only where it is needed."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from distilkit import exported
from distilkit.exported import Exported
from distilkit.hub import is_exported, locate
from distilkit.listeners import Encodes, Hears

Listener = TypeVar("Listener", Encodes, Hears, Exported, covariant=True)


@dataclass(frozen=True, kw_only=True)
class Opened(Generic[Listener]):
    """A model, and what the user should read about it."""

    listener: Listener
    source: str  # where it was read from
    device: str  # that it should be asked on
    notes: tuple[str, ...] = ()


def encoder(name: str) -> Opened[Encodes]:
    """An encoder: a folder, file, run, hub id or bundle, or an exported folder.

    Raises:
        DistilkitError: as `teachers.load` and `exported.load` say.
    """
    path = locate(name)
    if is_exported(path):
        return _exported(name)
    from distilkit import teachers

    found, checkpoint = teachers.load(name)
    return Opened(
        listener=found, source=checkpoint.source, device=_device(), notes=checkpoint.notes
    )


def recogniser(name: str) -> Opened[Hears]:
    """A recogniser: a folder, run or hub id, or an exported folder.

    Raises:
        DistilkitError: as `recognisers.load` and `exported.load` say.
    """
    if is_exported(locate(name)):
        return _exported(name, recogniser=True)
    from distilkit import recognisers

    found = recognisers.load(name)
    return Opened(listener=found, source=str(locate(name)), device=_device(), notes=found.notes)


def _exported(name: str, *, recogniser: bool = False) -> Opened[Exported]:
    found = exported.load(name, locate(name), recogniser=recogniser)
    note = f"exported, {found.facts['precision']}, run by {found.runtime}"
    return Opened(
        listener=found, source=str(locate(name)), device="cpu", notes=(*found.notes, note)
    )


def _device() -> str:
    from distilkit import config, plan

    return plan.device(config.Train())[0]
