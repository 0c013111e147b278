"""`distilkit embed`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from distilkit.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distilkit.audio import Samples
    from distilkit.listeners import Encodes

# The same sets as in distilkit.config, whose import would cost `--help` its speed.
Pool = Literal["none", "mean"]
EmbeddingFormat = Literal["npy", "npz", "safetensors", "parquet"]


def embed(
    inputs: Annotated[
        list[str],
        typer.Argument(help="Audio files, folders, lhotse manifests; `-`: standard input."),
    ],
    model: Annotated[
        str | None,
        options.model_named(
            "`tiny`, folder, checkpoint, run or hub id.",
            "the newest run's, else ntu-spml/distilhubert",
        ),
    ] = None,
    layer: Annotated[
        str, typer.Option(metavar="LAYER", help="`last`, a number from 0, or `all`.")
    ] = "last",
    pool: Annotated[
        Pool, typer.Option(help="`none`: 50 vectors a second; `mean`: one a file.")
    ] = "none",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="File or folder to write. Of `-` a file, or `-`.",
            show_default="NAME.npy for one file, embeddings for more, live.npy of -",
        ),
    ] = None,
    format: Annotated[
        EmbeddingFormat, typer.Option(help="`npy`: an array a file; the others: one file with ids.")
    ] = "npy",
    rate: options.Rate = 16_000,
    json: options.Json = False,
) -> None:
    """Turn recordings into vectors that do not depend on batch mates.

    `distilkit embed file.wav` writes `file.npy`.
    """
    from dataclasses import asdict

    from distilkit.cli import console
    from distilkit.errors import DistilkitError
    from distilkit.hub import default_model, locate

    options.present(inputs)
    name = model or default_model()
    console.say(f"model: {name}" + ("" if model else " (no --model given)"))
    locate(name)  # before the imports that take seconds
    streams = options.streamed(inputs)
    if streams and format != "npy":
        raise DistilkitError(f"`--format {format}` of standard input", "--format npy")

    from distilkit import embed as embedding
    from distilkit import models
    from distilkit.audio import clock
    from distilkit.wording import counted

    opened = models.encoder(name)
    for note in opened.notes:
        console.say(f"model: {note}")
    if streams:
        _live(opened.listener.to(opened.device), layer, pool, out, rate, name, json)
        return
    if len(inputs) > 1 or Path(inputs[0]).is_dir() or format != "npy":
        console.interruption("what is embedded is kept, and not done again", console.typed_again())
    embedded, skipped, target = embedding.embed(
        inputs,
        opened.listener,
        layer=layer,
        pool=pool,
        out=out,
        format=format,
        name=str(Path(opened.source).resolve()),
        device=opened.device,
        track=console.track,
    )
    failed = [item for item in skipped if item.kind == "unusable"]
    for item in failed:
        console.warn(f"left out {item.path}: {item.reason}")
    if len(skipped) > len(failed):
        console.say(f"left out {counted(len(skipped) - len(failed), *console.NOT_AUDIO)}")
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
        console.result(f"{target}\t{counted(len(embedded), 'file')}\t{clock(seconds)}\t{name}")
    if failed:
        raise typer.Exit(1)


def _live(
    listener: "Encodes", layer: str, pool: Pool, out: Path | None, rate: int, name: str, json: bool
) -> None:
    """Embed standard input: into a file when it has ended, or frame by frame to standard output."""
    import sys

    from distilkit.audio import live
    from distilkit.cli import Interrupted, console
    from distilkit.embed import live as embed_live
    from distilkit.embed import save_live
    from distilkit.errors import DistilkitError

    ended = False

    def blocks() -> "Iterator[Samples]":
        nonlocal ended
        try:
            yield from live(sys.stdin.buffer, rate)
        except Interrupted:  # what was heard until then is embedded
            ended = True

    pieces = embed_live(blocks(), listener, layer)
    if str(out) == "-":
        if layer == "all" or pool != "none" or json:
            raise DistilkitError("`--out -` is for the frames of one layer", "--out live.npy")
        for piece_LTD in pieces:
            sys.stdout.buffer.write(piece_LTD[0].astype("<f4").tobytes())
            sys.stdout.buffer.flush()
        if ended:
            console.interruption("all that was heard is embedded")
            raise Interrupted
        return
    target = out or Path("live.npy")
    shape = save_live(pieces, target, layer, pool)
    if json:
        console.document({"model": name, "output": str(target), "shape": list(shape)})
    else:
        console.result(f"{target}\t{shape}\t{name}")
    if ended:
        console.interruption(f"`{target}` holds all that was heard")
        raise Interrupted
