"""`distilkit units`."""

from pathlib import Path
from typing import Annotated

import typer

from distilkit.cli import options

Layer = Annotated[
    int | None,
    typer.Option(metavar="LAYER", min=0, help="Layer of the model.", show_default="the middle one"),
]
Codebook = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH", help="Use this codebook in place of finding one.", show_default="none"
    ),
]


def units(
    audio: Annotated[list[str], typer.Argument(help="Folders, files, archives, lhotse manifests.")],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder to write.", show_default=False)
    ],
    model: Annotated[
        str | None,
        options.model_named("Checkpoint, run, hub id or `tiny`.", "none: units of MFCC"),
    ] = None,
    layer: Layer = None,
    clusters: Annotated[
        int, typer.Option(metavar="UNITS", min=2, help="How many units to find.")
    ] = 100,
    codebook: Codebook = None,
    normalise: Annotated[
        bool,
        typer.Option(
            "--normalise", help="Level each clip's features first: units tell less of who speaks."
        ),
    ] = False,
    minutes: Annotated[
        float,
        typer.Option(metavar="MINUTES", min=0.01, help="How much audio the clusters are found on."),
    ] = 60.0,
    seed: Annotated[
        int, typer.Option(metavar="SEED", min=0, help="Seed of audio and clusters.")
    ] = 0,
    json: options.Json = False,
) -> None:
    """Cluster frames into hidden units, as HuBERT does, and write the units of each recording.

    `distilkit units ./my_audio --model tiny --layer 6 --clusters 100 --out units`
    """
    from distilkit.cli import console
    from distilkit.errors import DistilkitError
    from distilkit.hub import locate

    if model is None and layer is not None:
        raise DistilkitError(f"`--layer {layer}` of no model", f"--model tiny --layer {layer}")
    options.present(audio)
    if model:
        locate(model)  # before the imports that take seconds

    from distilkit import plan, teachers
    from distilkit import units as hidden
    from distilkit.audio import clock
    from distilkit.config import Train
    from distilkit.wording import counted

    encoder, called = None, ("", "")
    if model:
        encoder, checkpoint = teachers.load(model)
        called = (model, checkpoint.source)
        for note in checkpoint.notes:
            console.say(f"model: {note}")
    left = "what was found is kept beside it, and not done again"
    console.interruption(left, console.typed_again())
    made = hidden.units(
        audio,
        out,
        model=encoder,
        called=called,
        layer=layer,
        clusters=clusters,
        codebook=codebook,
        normalise=normalise,
        minutes=minutes,
        seed=seed,
        device=plan.device(Train())[0],
        track=console.track,
    )
    failed = [item for item in made.skipped if item.kind == "unusable"]
    for item in failed:
        console.warn(f"left out {item.path}: {item.reason}")
    count = len(made.codebook.centres[0])
    source = f"layer {made.codebook.layers[0]} of {model}" if model else "MFCC"
    if json:
        console.document(
            {
                "output": str(made.folder),
                "of": source,
                "clusters": count,
                "used": made.used,
                "perplexity": round(made.perplexity, 2),
                "frames_per_run": round(made.run_frames, 3),
                "windows": made.windows,
                "seconds": round(made.seconds, 3),
                "skipped": len(made.skipped),
            }
        )
    else:
        occur = f"{made.used:,} occur, worth {made.perplexity:,.0f} equally likely ones"
        rows = [
            ("units of", source, f"{clock(made.seconds)} in {counted(made.windows, 'window')}"),
            ("units", f"{count:,}", occur),
            ("a unit lasts", f"{made.run_frames * 20:.0f} ms", "on average"),
        ]
        console.show(console.table("distilkit units", ("what", "value", "which"), rows))
        console.result(str(made.folder))
    if failed:
        raise typer.Exit(1)
