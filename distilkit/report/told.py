"""All that a report knows of a run when it is written."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from distilkit import config
from distilkit.errors import DistilkitError
from distilkit.report.history import History
from distilkit.report.sources import Sources


@dataclass(frozen=True, kw_only=True)
class Told:
    """A run, read."""

    folder: Path
    facts: Mapping[str, Any]  # run.json
    recipe: config.Recipe | config.CtcRecipe | None  # None where it cannot be read
    history: History
    sources: Sources
    measured: Mapping[str, Any] = field(default_factory=dict)  # report.json
    probes: Mapping[str, Any] = field(default_factory=dict)  # probes.json
    finished: bool = False
    state: str = ""  # what the run is doing, as far as the writer knows: a key of `page.STATES`
    sound: bool = True  # whether recordings may be played

    @property
    def kind(self) -> str:
        """The command that began the run."""
        return str(self.facts.get("kind", "distill"))

    @property
    def steps(self) -> int:
        """Optimizer steps that were planned."""
        return int(self.facts["plan"]["steps"])


def recipe(folder: Path, kind: str) -> config.Recipe | config.CtcRecipe | None:
    """The recipe of a run; None where its file is missing, damaged or of another version."""
    path = folder / "recipe.toml"
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
        if kind == "finetune-ctc":
            return config.parse_recipe(settings, str(path), config.CtcRecipe)
        return config.parse_recipe(settings, str(path))
    except (OSError, ValueError, RecursionError, DistilkitError):
        return None


def named(name: object, longest: int = 0) -> str:
    """A name of the user's as HTML, whatever is in it and whichever way it is read.

    Args:
        name: of a file, a model, a speaker.
        longest: letters beyond which only its end is shown, and the whole when pointed at; 0 for all.
    """
    text = str(name)
    if longest and len(text) > longest:
        return f'<bdi title="{escape(text)}">…{escape(text[-longest:])}</bdi>'
    return f"<bdi>{escape(text)}</bdi>"


def counted(count: int, thing: str) -> str:
    """`1 file`, `2,000 files`."""
    return f"{count:,} {thing}{'s' * (count != 1)}"


def millions(parameters: float) -> str:
    """Parameters in millions."""
    return f"{parameters / 1e6:.2f} M"


def listed(rows: "list[tuple[str, str]]") -> str:
    """Names and values, both HTML."""
    return f"<dl>{''.join(f'<div><dt>{name}<dd>{value}</div>' for name, value in rows)}</dl>"


def table(head: "list[str]", rows: "list[list[str]]", label: str, numbers: bool = False) -> str:
    """A table of HTML cells that scrolls sideways where it must; the first of each row is its heading.

    Args:
        head: of the columns.
        rows: cells.
        label: what it shows, for those who do not see it.
        numbers: whether all but the first column are numbers.
    """
    top = "".join(f"<th scope=col>{cell}" if cell else "<td>" for cell in head)
    body = "".join(
        f"<tr><th scope=row>{row[0]}{''.join(f'<td>{cell}' for cell in row[1:])}" for row in rows
    )
    return (
        f'<div class=wide role=region tabindex=0 aria-label="{escape(label)}, a table">'
        f"<table{' class=numbers' if numbers else ''}><thead><tr>{top}</thead><tbody>{body}</tbody>"
        "</table></div>"
    )
