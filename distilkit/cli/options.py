"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

from distilkit.cli import completion


def model_named(help: str) -> Any:
    """An option that names a model, which the shell helps to complete."""
    return typer.Option(help=help, show_default=False, autocompletion=completion.models)


Recogniser = Annotated[
    str | None,
    model_named("A recogniser: folder, run or hub id; by default that of the newest run."),
]
LanguageModel = Annotated[
    Path | None,
    typer.Option(
        help="A language model (ARPA) of `distilkit lm`: beam search with it.", show_default=False
    ),
]
Beam = Annotated[
    int | None,
    typer.Option(min=1, help="Width of the beam: 1, or 32 with --lm.", show_default=False),
]
LmWeight = Annotated[
    float | None,
    typer.Option(
        "--lm-weight", min=0.0, help="Weight of the language model: 0.75.", show_default=False
    ),
]
WordBonus = Annotated[
    float | None,
    typer.Option(
        "--word-bonus",
        help="Added for each word, which the language model costs: 2.",
        show_default=False,
    ),
]
TextColumn = Annotated[
    str,
    typer.Option(
        "--text-column", help="Column of a table that holds the text.", show_default=False
    ),
]
Recipe = Annotated[
    str,
    typer.Option(
        help="A built-in recipe (`distilkit recipes`) or a TOML file.",
        autocompletion=completion.recipes,
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(help="Change one setting: `section.key=value`. Repeatable.", show_default=False),
]
Steps = Annotated[
    int | None,
    typer.Option(min=1, help="Optimizer steps; short for train.steps.", show_default=False),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with the run in --out, else the newest in `runs`."),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        "--vram",
        help="The most memory to take, of the GPU or, without one, of the machine: `6GB`.",
        show_default=False,
    ),
]
Plan = Annotated[
    bool,
    typer.Option("--plan", help="Print what would happen, measured on a few steps, and stop."),
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Seed of everything random.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Rate = Annotated[
    int,
    typer.Option(
        min=1000,
        help="Hz, of `-`: 16-bit mono samples; what begins with a WAV header says it itself.",
    ),
]


def streamed(inputs: list[str]) -> bool:
    """Whether standard input is asked for, and brings something.

    Raises:
        DistilkitError: it is asked for beside files, or is a terminal.
    """
    import sys

    from distilkit.audio import PIPE
    from distilkit.errors import DistilkitError

    if "-" not in inputs:
        return False
    if len(inputs) > 1:
        raise DistilkitError("`-` beside other inputs", "standard input alone: -")
    if sys.stdin is None or sys.stdin.isatty():
        raise DistilkitError("`-` reads standard input, and nothing is piped into it", PIPE)
    return True
