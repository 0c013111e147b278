"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

from distilkit.cli import completion


def model_named(help: str, default: str | bool = "none") -> Any:
    """An option that names a model, which the shell helps to complete.

    Args:
        help: what the model is for.
        default: what is said of an option that is not given; False for one that has to be.
    """
    return typer.Option(
        metavar="MODEL", help=help, show_default=default, autocompletion=completion.models
    )


Recogniser = Annotated[
    str | None,
    model_named("A recogniser: folder, run or hub id.", "the newest run's"),
]
LanguageModel = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A language model (ARPA) of `distilkit lm`: beam search with it.",
        show_default="none",
    ),
]
Beam = Annotated[
    int | None,
    typer.Option(
        metavar="BEGINNINGS",
        min=1,
        help="Width of the beam: how many beginnings of a text are followed at once.",
        show_default="1; with --lm 32",
    ),
]
LmWeight = Annotated[
    float | None,
    typer.Option(
        "--lm-weight",
        metavar="FACTOR",
        min=0.0,
        help="Weight of the language model.",
        show_default="0.75",
    ),
]
WordBonus = Annotated[
    float | None,
    typer.Option(
        "--word-bonus",
        metavar="NATS",
        help="Added for each word, as the language model makes words costly.",
        show_default="2",
    ),
]
TextColumn = Annotated[
    str,
    typer.Option(
        "--text-column",
        metavar="NAME",
        help="Column of a table that holds the text.",
        show_default="known by its name",
    ),
]
Recipe = Annotated[
    str,
    typer.Option(
        metavar="RECIPE",
        help="A built-in recipe (`distilkit recipes`) or a TOML file.",
        autocompletion=completion.recipes,
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Change one setting: `section.key=value`. Repeatable.",
        show_default="none",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        metavar="STEPS",
        min=1,
        help="Optimizer steps; short for train.steps.",
        show_default="the recipe's",
    ),
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
        metavar="SIZE",
        help="The most memory to take, of the GPU or, without one, of the machine: `6GB`.",
        show_default="what is free",
    ),
]
Hours = Annotated[
    float | None,
    typer.Option(
        metavar="HOURS",
        help="The most time to take: fewer steps where these would take longer.",
        show_default="no limit",
    ),
]
Plan = Annotated[
    bool,
    typer.Option("--plan", help="Print what would happen, measured on a few steps, and stop."),
]
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="SEED", min=0, help="Seed of everything random.", show_default="the recipe's"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Rate = Annotated[
    int,
    typer.Option(
        metavar="HZ",
        min=1000,
        help="Of `-`: 16-bit mono samples; what begins with a WAV header says it itself.",
    ),
]


def present(inputs: list[str]) -> None:
    """Refuse inputs that are not there, before a model is looked for or downloaded.

    What killed processes left in the cache goes here, for a command may have nothing more to do.

    Raises:
        DistilkitError: names the first one, and what lies near it.
    """
    from distilkit.errors import present

    for item in inputs:
        if item != "-":
            present(Path(item))

    from distilkit.data.scan import tidy_cache

    tidy_cache()


def streamed(inputs: list[str]) -> bool:
    """Whether standard input is asked for, and brings something.

    Raises:
        DistilkitError: it is asked for beside files, or is a terminal.
    """
    if "-" not in inputs:
        return False
    import sys

    from distilkit.audio import PIPE
    from distilkit.errors import DistilkitError

    if len(inputs) > 1:
        raise DistilkitError("`-` beside other inputs", "standard input alone: -")
    if sys.stdin is None or sys.stdin.isatty():
        raise DistilkitError("`-` reads standard input, and nothing is piped into it", PIPE)
    return True
