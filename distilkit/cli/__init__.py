"""The command line: one file per command; the only code that imports typer and rich, and prints."""

import logging
import signal
import sys
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn

import typer

from distilkit import __version__
from distilkit.cli import (
    bench,
    convert,
    demo,
    distill,
    doctor,
    embed,
    evaluate,
    export,
    finetune_ctc,
    inspect,
    layers,
    lm,
    probe,
    recipes,
    tokenizer,
    transcribe,
    units,
)
from distilkit.errors import DistilkitError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Distil any HuBERT into a small speech model of your own, from a folder of recordings.\n\n"
    "[bold]distilkit distill ./my_audio[/] makes a student, [bold]distilkit embed file.wav[/] uses it.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived where nothing has to be saved."""


def _version(wanted: bool) -> None:
    if wanted:
        print(f"distilkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and stop."
    ),
) -> None:
    pass


app.command("distill")(distill.distill)
app.command("embed")(embed.embed)
app.command("layers")(layers.layers)
app.command("units")(units.units)
app.command("finetune-ctc")(finetune_ctc.finetune_ctc)
app.command("tokenizer")(tokenizer.tokenizer)
app.command("transcribe")(transcribe.transcribe)
app.command("evaluate")(evaluate.evaluate)
app.command("lm")(lm.lm)
app.command("probe")(probe.probe)
app.command("bench")(bench.bench)
app.command("export")(export.export)
app.command("convert")(convert.convert)
app.command("inspect")(inspect.inspect)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.add_typer(recipes.app, name="recipes")


def main() -> None:
    """Run a command; every way it can end has an exit status."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise Interrupted

    for stream in (sys.stdout, sys.stderr):  # what they cannot write is written as `\u65e5`
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # transformers imports torchao where it is installed, which makes torch tell of its own insides.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        app()
    except DistilkitError as error:
        fail(error)
    except Interrupted:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except ImportError as error:
        fail(DistilkitError(f"a package does not load: {error}", "distilkit doctor"))


def fail(error: DistilkitError) -> NoReturn:
    """Print a problem and its hint, and end with status 1."""
    from distilkit.cli.console import errors

    errors.print(f"[bold red]error:[/] {_plain(error.problem)}", highlight=False, soft_wrap=True)
    if error.hint:
        errors.print(f"\n[bold cyan]hint:[/] {_plain(error.hint)}", highlight=False, soft_wrap=True)
    sys.exit(1)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
