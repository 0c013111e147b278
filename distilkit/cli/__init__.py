"""The command line: one file per command; the only code that imports typer and rich, and prints."""

import json as document
import os
import signal
import sys
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn

import typer

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
    push,
    recipes,
    report,
    tokenizer,
    transcribe,
    units,
    usage,
    version,
)
from distilkit.errors import DistilkitError, harmless

MANNERS = (
    "--quiet",
    "--verbose",
)  # options of the program that count behind the command's name too
SPIN = "30000"  # turns for which threads of PyTorch wait, a tenth of what libgomp lets them

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    suggest_commands=False,  # usage.py says it as all errors are said
    rich_markup_mode="rich",
    help="Distil any HuBERT into a small speech model of your own, from a folder of recordings.\n\n"
    "[bold]distilkit distill ./my_audio[/] makes a student, [bold]distilkit embed file.wav[/] uses it.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived where nothing has to be saved."""


def _version(context: typer.Context, wanted: bool) -> None:
    if not wanted:
        return
    found = version.versions()
    if context.params.get("json"):
        print(document.dumps(found, indent=2))
    else:
        print("\n".join(f"{name} {number}" for name, number in found.items()))
    raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False,
        "--version",
        callback=_version,
        help="Print the versions of distilkit and of what it stands on, and stop.",
    ),
    json: bool = typer.Option(False, "--json", is_eager=True, help="With --version: as JSON."),
    quiet: bool = typer.Option(
        False, "--quiet", help="Only results and errors. Counts behind the command's name too."
    ),
    verbose: bool = typer.Option(
        False, "--verbose", help="Also what libraries log, and where unexpected errors come from."
    ),
) -> None:
    from distilkit.cli import console

    if json:
        fail(
            DistilkitError("`--json` before the command", "distilkit COMMAND --json"), usage.STATUS
        )
    if quiet and verbose:
        fail(DistilkitError("`--quiet` and `--verbose` at once", "--verbose"), usage.STATUS)
    console.manner(quiet=quiet, verbose=verbose)


app.command("distill")(distill.distill)
app.command("embed")(embed.embed)
app.command("layers")(layers.layers)
app.command("units")(units.units)
app.command("finetune-ctc")(finetune_ctc.finetune_ctc)
app.command("tokenizer")(tokenizer.tokenizer)
app.command("transcribe")(transcribe.transcribe)
app.command("evaluate")(evaluate.evaluate)
app.command("lm")(lm.lm)
app.command("report")(report.report)
app.command("probe")(probe.probe)
app.command("bench")(bench.bench)
app.command("export")(export.export)
app.command("convert")(convert.convert)
app.command("push")(push.push)
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
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is imported; see benchmarks, busy
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
    sys.argv[1:] = manners_first(sys.argv[1:])
    try:
        status = app(prog_name="distilkit", standalone_mode=False)
    except DistilkitError as error:
        fail(error)
    except typer.TyperException as error:
        if error.message or hasattr(error, "param"):  # else the help was shown
            fail(usage.explained(error), usage.STATUS)
        sys.exit(usage.STATUS)
    except Interrupted:
        from distilkit.cli import console

        console.warn(console.interrupted())
        sys.exit(130)
    except ImportError as error:
        fail(DistilkitError(f"a package does not load: {error}", "distilkit doctor"))
    except Exception as error:
        if (told := _of_the_machine(error)) is not None:
            fail(told)
        _unexpected(error)
    sys.exit(status)


def manners_first(words: list[str]) -> list[str]:
    """The words of a command line with `--quiet` and `--verbose` before the command, wherever they stood."""
    end = words.index("--") if "--" in words else len(words)
    found = [word for word in MANNERS if word in words[:end]]
    return [*found, *(word for word in words[:end] if word not in MANNERS), *words[end:]]


def fail(error: DistilkitError, status: int = 1) -> NoReturn:
    """Print a problem and its hint, and end with a status."""
    from distilkit.cli import console

    console.problem(error)
    sys.exit(status)


def _of_the_machine(error: Exception) -> DistilkitError | None:
    """What a full disk, a place that cannot be written, or too little memory is called."""
    from distilkit.files import UNWRITABLE

    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        where = f"`{error.filename}`: " if error.filename else ""
        return DistilkitError(f"{where}{error.strerror}", UNWRITABLE[error.errno])
    if isinstance(error, MemoryError | RuntimeError):
        from distilkit.batches import out_of_memory

        if out_of_memory(error):
            return DistilkitError(
                "out of memory",
                "--memory 2GB takes less where a command has it; else shorter recordings, or fewer at once",
            )
    return None


def _unexpected(error: Exception) -> NoReturn:
    """Say that something is wrong in the program, and where if that was asked for."""
    from distilkit.cli import console

    if "--verbose" in sys.argv:
        import traceback

        told = "".join(traceback.format_exception(error))
        print(harmless(told), end="", file=sys.stderr)
        fail(DistilkitError(f"unexpected {type(error).__name__}, which is not your mistake"))
    said = (str(error).strip() or "without a word").splitlines()[0]
    fail(
        DistilkitError(
            f"unexpected {type(error).__name__}, which is not your mistake: {said}",
            f"{console.typed_again('--verbose')} shows where",
        )
    )
