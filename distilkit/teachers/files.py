"""Checkpoint files, opened so that nothing in them can run: safetensors, or a restricted unpickler.

The unpickler is torch's (`weights_only`): it builds tensors, containers and numbers, and refuses every
other name. To those it knows the few below are added. Names of other libraries get a stand-in that
keeps what it is given and does nothing, so fairseq, omegaconf and s3prl need not be installed.
"""

import collections
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from distilkit.errors import DistilkitError

AGAIN = "download it again; in a git clone: git lfs pull"
DEEPEST = 50  # containers within one another, in settings
MOST_VALUES = 100_000  # in settings, shared ones counted wherever they are


class Inert:
    """Stands in for a class of another library: keeps its state, does nothing."""

    def __init__(self, *arguments: object, **options: object) -> None:
        self.state: object = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state


def _inert(name: str) -> type[Inert]:
    module, _, own = name.rpartition(".")
    return type(own, (Inert,), {"__module__": module})


INERT = (
    "fairseq.data.dictionary.Dictionary",
    "argparse.Namespace",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    *(
        f"omegaconf.nodes.{kind}Node"
        for kind in ("Any", "String", "Integer", "Float", "Boolean", "Enum")
    ),
    "typing.Any",
    *(
        f"{module}.{kind}"
        for module in ("optimizers", "s3prl.optimizers")
        for kind in (
            "ConstantLR",
            "WarmupLinearSchedule",
            "WarmupConstantSchedule",
            "WarmupCosineSchedule",
            "WarmupCosineWithHardRestartsSchedule",
            "WarmupCosineWithWarmupRestartsSchedule",
        )
    ),
)
HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    *((_inert(name), name) for name in INERT),
    *((kind, f"builtins.{kind.__name__}") for kind in (dict, list, int, float, str, bool)),
    (collections.defaultdict, "collections.defaultdict"),
]


def load(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds, tensors on the CPU; large ones stay on the disk until used.

    Raises:
        DistilkitError: damaged, not a checkpoint, or with more in it than harmless types.
    """
    try:
        _look(path)
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        check_zip(path)
        with _only(HARMLESS):
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None
            )
    except UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise DistilkitError(f"`{path}` is damaged, or not a checkpoint", AGAIN) from error
        raise unsafe(path, wanted[1]) from error
    except DistilkitError:
        raise
    except Exception as error:  # of zip, safetensors, pickle and the file system alike
        reason = str(error).strip().split("\n")[0].split(". ")[0].rstrip(".")
        raise DistilkitError(
            f"`{path}` cannot be loaded: {reason or type(error).__name__}", AGAIN
        ) from error
    if not isinstance(content, Mapping):
        raise DistilkitError(
            f"`{path}` holds a `{type(content).__name__}`, not the weights of a model",
            "give a checkpoint as it was published",
        )
    return {str(name): value for name, value in content.items()}


@contextmanager
def _only(names: Sequence[Callable[..., Any] | tuple[Callable[..., Any], str]]) -> Iterator[None]:
    """Let torch's unpickler know these names beside its own; those that libraries added are put off."""
    others = get_safe_globals()
    clear_safe_globals()
    add_safe_globals(list(names))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that it goes on to refuse
            yield
    finally:
        clear_safe_globals()
        add_safe_globals(others)


def unsafe(path: Path, name: str | None) -> DistilkitError:
    """The refusal of a pickle that wants more than weights."""
    return DistilkitError(
        f"`{path}` holds a pickle with more than weights"
        + (f" (it calls `{name}`)" if name else "")
        + "; it may run code when loaded, so it was not",
        "give a checkpoint with model.safetensors",
    )


def plain(value: Any) -> Any:
    """Settings as plain containers, whatever kept them: dicts, a Namespace, omegaconf's nodes.

    Raises:
        DistilkitError: they hold themselves, or are nested beyond reason.
    """
    seen = count()

    def inner(value: Any, depth: int) -> Any:
        if depth > DEEPEST or next(seen) > MOST_VALUES:
            raise DistilkitError("the settings in a checkpoint are nested without end", AGAIN)
        if isinstance(value, Inert):
            state = value.state
            if isinstance(state, Mapping):
                state = state.get("_content", state.get("_val", state))
            return inner(state, depth + 1)
        if isinstance(value, Mapping):
            return {str(key): inner(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [inner(item, depth + 1) for item in value]
        return value

    return inner(value, 0)


def check_zip(path: Path) -> None:
    """Refuse a checkpoint whose parts are compressed, or are not what was written.

    torch takes weights from where they lie in a zip as they are, packed or damaged. A file that is no zip
    is let through.

    Raises:
        DistilkitError: there is such a part.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            packed = [part.filename for part in parts if part.compress_type != zipfile.ZIP_STORED]
            if packed or sum(part.file_size for part in parts) > path.stat().st_size:
                raise DistilkitError(
                    f"`{path}` holds compressed parts (`{(packed or ['all'])[0]}`), which weights never are",
                    "give a checkpoint as it was published",
                )
            for part in parts:
                if part.CRC:  # torch can be told to write none
                    with archive.open(part) as file:
                        while file.read(1 << 20):
                            pass
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DistilkitError(f"`{path}` is damaged: {error}", AGAIN) from error


def _look(path: Path) -> None:
    """Refuse what is not a checkpoint at all, by its first bytes."""
    with path.open("rb") as file:
        start = file.read(512)
    text = start.lstrip().lower()
    if not start:
        raise DistilkitError(f"`{path}` is empty", AGAIN)
    if not start.strip(bytes(1)):
        raise DistilkitError(f"`{path}` begins with nothing but zeros", AGAIN)
    if start.startswith(b"version https://git-lfs"):
        raise DistilkitError(
            f"`{path}` is a pointer of git lfs, not the file itself", "git lfs pull"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DistilkitError(
            f"`{path}` is a web page, not a checkpoint", "download the file that the page offers"
        )
    if start[257:262] == b"ustar":
        raise DistilkitError(
            f"`{path}` is a tar file; the oldest checkpoints of torch, which are, cannot be read safely",
            "save it again with a recent torch, or give another checkpoint",
        )
