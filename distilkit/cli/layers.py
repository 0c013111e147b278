"""`distilkit layers`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distilkit.cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from distilkit.layers import Choice, Similarity

HEADS = (1, 2, 3, 4)
USUAL = 3  # heads of the default objective
LOG_WIDTH = 120  # where there is no terminal
CAUTION = (
    "Similarity says which layers are redundant, not which are useful:\n"
    "what a layer knows of speakers or of words it does not say."
)


def layers(
    audio: Annotated[list[str], typer.Argument(help="Audio files, folders, lhotse manifests.")],
    model: Annotated[
        str,
        options.model_named("Folder, run or hub id; its layers are the rows.", False),
    ],
    against: Annotated[
        str | None,
        options.model_named("Another model; its layers are the columns."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder for a picture, PNG and SVG.", show_default="no picture"
        ),
    ] = None,
    minutes: Annotated[
        float,
        typer.Option(
            metavar="MINUTES", min=0.01, help="How much audio to use, spread over the files."
        ),
    ] = 10.0,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say how alike a model's layers are, and which of them to predict.

    `distilkit layers ./my_audio --model facebook/hubert-base-ls960`
    """
    from dataclasses import asdict

    from distilkit.cli import console
    from distilkit.hub import locate

    options.present(audio)
    for name in filter(None, (model, against)):
        locate(name)  # before the imports that take seconds

    from distilkit import layers as comparing
    from distilkit import plan, teachers
    from distilkit.audio import clock
    from distilkit.config import Train
    from distilkit.wording import counted

    if out is not None:
        comparing.check_pictures(out)
    encoders = []
    for name in filter(None, (model, against)):
        encoder, checkpoint = teachers.load(name)
        encoders.append(encoder)
        for note in checkpoint.notes:
            console.say(f"{name}: {note}")
    result = comparing.similarity(
        audio, *encoders, minutes=minutes, device=plan.device(Train())[0], track=console.track
    )
    choices, default = {}, None
    if against is None:
        choices = {k: comparing.recommend(result.cka_LK, result.rows, k) for k in HEADS}
        usual = comparing.scaled(result.rows[-1])
        default = comparing.choice(result.cka_LK, result.rows, usual)
    failed = [item for item in result.skipped if item.kind == "unusable"]
    for item in failed:
        console.warn(f"left out {item.path}: {item.reason}")
    if len(result.skipped) > len(failed):
        console.say(f"left out {counted(len(result.skipped) - len(failed), *console.NOT_AUDIO)}")
    for note in [*result.notes, *_doubts(result)]:
        console.say(f"note: {note}")
    picked = choices[USUAL].layers if choices else ()
    pictures = [] if out is None else comparing.draw(result, out, model, against, picked)
    if json:
        console.document(
            {
                "model": model,
                "against": against,
                "rows": result.rows,
                "columns": result.columns,
                "cka": result.cka_LK.tolist(),
                "most_like": [layer for layer, _ in result.bests] if against else None,
                "recommended": {str(k): asdict(value) for k, value in choices.items()} or None,
                "default": asdict(default) if default else None,
                "frames": result.frames,
                "seconds": round(result.seconds, 3),
                "files_used": result.used,
                "files_found": result.files,
                "pictures": [str(path) for path in pictures],
                "notes": [*result.notes, *_doubts(result)],
                "skipped": [asdict(item) for item in result.skipped],
            }
        )
    else:
        measured = (
            f"{clock(result.seconds)} of audio, {result.used:,} of {counted(result.files, 'file')}"
        )
        _show(result, model, against, measured)
        if default:
            _recommend(choices, default)
        if pictures:
            console.result("\n" + "\n".join(map(str, pictures)))
    if failed:
        raise typer.Exit(1)


def _doubts(result: "Similarity") -> list[str]:
    """Too few frames make everything look alike: by this much, if frames were white noise."""
    if result.frames >= 10 * result.width:
        return []
    floor = result.width / (result.width + result.frames)
    return [
        f"{result.frames:,} frames are few for vectors of {result.width}: CKA comes out too high "
        f"(unrelated noise would show {floor:.2f}); give more audio, or more --minutes"
    ]


def _show(result: "Similarity", model: str, against: str | None, measured: str) -> None:
    from rich.console import Console

    from distilkit.cli import console

    terminal = Console()
    width = terminal.width if terminal.is_terminal else LOG_WIDTH
    console.result(f"Linear CKA between the layers of {model}" + (" (rows)" if against else ""))
    if against:
        console.result(f"and those of {against} (columns)")
    console.result(f"{measured}, {result.frames:,} frames\n")
    made, note = matrix(result, width, bests=against is not None)
    console.show(made, to_result=True)
    if note:
        console.result(f"\n{note}")


def matrix(result: "Similarity", width: int, *, bests: bool) -> "tuple[Table, str]":
    """The layers as a table that fits into `width` columns, and what was left out of it.

    With `bests` every row is there and says which layer it is most like.
    """
    from rich.table import Table
    from rich.text import Text

    room = (width - (26 if bests else 6)) // 5
    shown = _thinned(len(result.columns), room)
    rows = range(len(result.rows)) if bests else shown
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column("layer", style="cyan", justify="right", no_wrap=True)
    for j in shown:
        made.add_column(str(result.columns[j]), justify="right", no_wrap=True)
    if bests:
        made.add_column("  most like", no_wrap=True)
    for i in rows:
        values = [float(result.cka_LK[i, j]) for j in shown]
        cells = [Text(f"{value:.2f}", style=_weight(value)) for value in values]
        layer, value = result.bests[i]
        last = [Text(f"  {layer} ({value:.2f})")] if bests else []
        made.add_row(str(result.rows[i]), *cells, *last)
    if len(shown) == len(result.columns):
        return made, ""
    step = shown[1] - shown[0]
    what = "columns" if bests else "layers"
    return made, f"Too wide: one in {step} {what} is shown; --json has all of them."


def _thinned(count: int, room: int) -> list[int]:
    """The first, the last, and between them every so many of `count` that fit into `room`."""
    step = max(1, -(-(count - 1) // max(1, room - 1)))
    return sorted({*range(0, count, step), count - 1})


def _weight(value: float) -> str:
    return "bold" if round(value, 2) >= 0.9 else "" if value >= 0.5 else "dim"


def _recommend(choices: "dict[int, Choice]", default: "Choice") -> None:
    from distilkit.cli import console
    from distilkit.wording import listed

    rows = [(str(k), *_cells(value)) for k, value in choices.items()]
    made = console.table("", ("heads", "layers", "coverage", "each stands for"), rows)
    made.title = None
    made.add_row("default", *_cells(default))
    best = choices[USUAL]
    console.result(
        "\nLayers to predict (coverage: mean over all layers of CKA with the chosen layer most like it)\n"
    )
    console.show(made, to_result=True)
    console.result(
        f"\nFor {len(best.layers)} heads: {listed('objective.layers', best.layers)}\n"
        f"It covers {best.coverage:.3f} of all layers; the default, "
        f"{', '.join(map(str, default.layers))}, covers {default.coverage:.3f}.\n{CAUTION}"
    )


def _cells(value: "Choice") -> tuple[str, str, str]:
    covers = " | ".join(span(part) for part in value.covers)
    return ", ".join(map(str, value.layers)), f"{value.coverage:.3f}", covers


def span(layers: list[int]) -> str:
    """Layers as text: `3-7`, `3`, or `0,4-5`."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ",".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else f"{p[0]}" for p in parts)
