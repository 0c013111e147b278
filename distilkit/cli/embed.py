"""`distilkit embed`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

# The same sets as in distilkit.config, whose import would cost `--help` its speed.
Pool = Literal["none", "mean"]
EmbeddingFormat = Literal["npy", "npz", "safetensors", "parquet"]


def embed(
    inputs: Annotated[list[str], typer.Argument(help="Audio files, folders, lhotse manifests.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="`tiny`, folder, checkpoint or hub id; by default the newest run or ntu-spml/distilhubert.",
            show_default=False,
        ),
    ] = None,
    layer: Annotated[str, typer.Option(help="`last`, a number from 0, or `all`.")] = "last",
    pool: Annotated[
        Pool, typer.Option(help="`none`: 50 vectors a second; `mean`: one a file.")
    ] = "none",
    out: Annotated[
        Path | None,
        typer.Option(
            help="File or folder; NAME.npy here for one file, `embeddings` for more.",
            show_default=False,
        ),
    ] = None,
    format: Annotated[
        EmbeddingFormat, typer.Option(help="`npy`: an array a file; the others: one file with ids.")
    ] = "npy",
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Turn recordings into vectors that do not depend on batch mates.

    `distilkit embed file.wav` writes `file.npy`.
    """
    from dataclasses import asdict

    from distilkit.cli import console
    from distilkit.hub import default_model, locate

    name = model or default_model()
    console.say(f"model: {name}" + ("" if model else " (no --model given)"))
    locate(name)  # before the imports that take seconds

    from distilkit import embed as embedding
    from distilkit import plan, teachers
    from distilkit.config import Train

    encoder, checkpoint = teachers.load(name)
    for note in checkpoint.notes:
        console.say(f"model: {note}")
    embedded, skipped, target = embedding.embed(
        inputs,
        encoder,
        layer=layer,
        pool=pool,
        out=out,
        format=format,
        name=str(Path(checkpoint.source).resolve()),
        device=plan.device(Train())[0],
        track=console.track,
    )
    failed = [item for item in skipped if item.kind == "unusable"]
    for item in failed:
        console.say(f"left out {item.path}: {item.reason}")
    if len(skipped) > len(failed):
        console.say(f"left out {len(skipped) - len(failed)} files that are not audio")
    if json:
        console.document(
            {
                "model": name,
                "output": str(target),
                "files": [asdict(item) for item in embedded],
                "skipped": [asdict(item) for item in skipped],
            }
        )
    elif len(embedded) == 1 and target.suffix == ".npy":
        only = embedded[0]
        console.result(f"{target}\t{only.shape}\t{only.seconds:.2f} s\t{name}")
    else:
        seconds = sum(item.seconds for item in embedded)
        console.result(f"{target}\t{len(embedded)} files\t{plan.clock(seconds)}\t{name}")
    if failed:
        raise typer.Exit(1)
