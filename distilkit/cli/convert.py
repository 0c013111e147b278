"""`distilkit convert`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from distilkit.cli import completion

# The same set as in distilkit.convert, whose import would cost `--help` its speed.
CheckpointFormat = Literal["huggingface", "s3prl"]


def convert(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A checkpoint file, a folder, a run, a hub id, FILE:PART or torchaudio:NAME.",
            autocompletion=completion.models,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="PATH", help="Folder (or file, for `s3prl`) to write; must be new."),
    ],
    format: Annotated[
        CheckpointFormat,
        typer.Option(help="`huggingface`: a folder; `s3prl`: a file of its distiller."),
    ] = "huggingface",
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write a checkpoint of any known format as a Hugging Face folder, or a student for s3prl.

    `distilkit convert hubert_base_ls960.pt --out hubert`
    """
    from distilkit.cli import console
    from distilkit.hub import locate

    locate(checkpoint)  # before the imports that take seconds

    from distilkit import convert as converting

    done = converting.convert(checkpoint, out, format)
    if json:
        console.document(
            {"read": done.facts, "output": str(done.output), "format": done.format}
            | {"notes": list(done.notes)}
        )
        return
    for note in (*done.facts["notes"], *done.notes):
        console.say(f"{checkpoint}: {note}")
    read = f"{done.facts['is']} from {done.facts['format']}, {done.facts['parameters']}"
    console.result(f"{done.output}\t{done.format}\t{read}")
