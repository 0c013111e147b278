"""Where a model comes from, as others may read it: the hub's metadata, names without paths, its run."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, metadata_load

from distilkit.audio import clock
from distilkit.hub import TORCHAUDIO
from distilkit.runs import RESULTS

CARD = "README.md"
OURS = "distilkit"  # the tag of all that is made here
PATH = re.compile(
    r"""(?:^|(?<=[\s`"'(\[=:,]))"""
    r"(?:(?:file://)?(?:/[\w.+@-]*\w){2,}|~(?:/[\w.+@-]*\w)+|[A-Za-z]:(?:\\+[\w.+@-]+)+)",
    re.MULTILINE,
)


def head(
    *,
    tags: Sequence[str],
    library: str | None = None,
    pipeline: str | None = None,
    base: str | None = None,
    languages: Iterable[str] = (),
    licence: str | None = None,
) -> list[str]:
    """The metadata block of a card: only what is known.

    Args:
        tags: what it is found by.
        library: what loads it.
        pipeline: the hub's name of its task.
        base: the hub id of the model it was made of.
        languages: as data names them: `en`, `pt_BR`, `sv-SE`; what is no code is left out.
        licence: its identifier on the hub.
    """
    short = {re.split("[-_]", language)[0].lower() for language in languages}
    codes = sorted(code for code in short if re.fullmatch("[a-z]{2,3}", code))
    told = ModelCardData(
        library_name=library,
        pipeline_tag=pipeline,
        tags=[*tags, OURS],
        base_model=base,
        language=codes or None,
        license=licence,
    )
    return ["---", *told.to_yaml().splitlines(), "---", ""]


def hub_id(name: str, source: str | Path) -> str | None:
    """A model's hub id, where it came from the hub.

    Args:
        name: what the user called it.
        source: where it was found: of a hub id in the hub's cache.
    """
    return name if f"models--{name.replace('/', '--')}" in Path(source).parts else None


def public(name: str, source: str | Path) -> str:
    """A model's name for others: a hub id and a bundle as they are, of a path the folder's own name.

    Args:
        name: what the user called it.
        source: where it was found.
    """
    if name.startswith(TORCHAUDIO) or hub_id(name, source):
        return name
    path = Path(source)
    return (path.parent if path.name in RESULTS else path).name or name


def private_paths(text: str) -> list[str]:
    """What in a text looks like a path on somebody's disk."""
    return list(dict.fromkeys(PATH.findall(text)))


def licence_of(folder: Path) -> str | None:
    """The licence that a model's own card names, by its identifier on the hub."""
    try:
        told = (metadata_load(folder / CARD) or {}).get("license")
    except Exception:  # YAML's are of its own kind
        return None
    return told if isinstance(told, str) else None


def terms(decides: str, what: str = "model") -> list[str]:
    """The section on what may be done with it.

    Args:
        decides: what decides on that, and the verb.
        what: the folder holds.
    """
    return [
        "## Licence",
        "",
        f"{decides} what may be done with this {what}; distilkit adds no terms of its own.",
        "",
    ]


def took(rows: Sequence[Mapping[str, Any]], speed: Sequence[Mapping[str, Any]]) -> list[str]:
    """How long the steps of a run took, the one line of a card that holds a clock.

    Args:
        rows: the lines of `metrics.jsonl`.
        speed: those of `speed.jsonl`.
    """
    seconds = sum(row["seconds"] for row in speed)
    if not seconds or len(speed) != len(rows):
        return []
    heard = sum(row["audio_seconds"] for row in rows)
    most = max(row["peak_gib"] for row in speed)
    return [
        f"- Took {clock(seconds)} for its steps: {heard / seconds:,.1f} s of audio a second, at most "
        f"{most:.1f} GiB of memory."
    ]


def made_with(facts: Mapping[str, Any]) -> str:
    """The versions that a run was made with."""
    listed = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"- Made with distilkit {facts['distilkit']}, {listed}."
