"""`distilkit transcribe`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from distilkit.cli import options

if TYPE_CHECKING:
    from distilkit.decode import Search

# The same set as in distilkit.config, whose import would cost `--help` its speed.
TranscriptFormat = Literal["txt", "json", "srt", "vtt"]


def transcribe(
    inputs: Annotated[list[str], typer.Argument(help="Audio files, folders, lhotse manifests.")],
    model: options.Recogniser = None,
    lm: options.LanguageModel = None,
    beam: options.Beam = 1,
    lm_weight: options.LmWeight = 0.75,
    word_bonus: options.WordBonus = 2.0,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", help="When each word is said (format json).")
    ] = False,
    format: Annotated[
        TranscriptFormat,
        typer.Option(help="Text, an object a line, or subtitles: `txt`, `json`, `srt`, `vtt`."),
    ] = "txt",
    out: Annotated[
        Path | None,
        typer.Option(help="File or folder to write in place of printing.", show_default=False),
    ] = None,
) -> None:
    """Write down what is said in recordings.

    `distilkit transcribe file.wav --model runs/my_speech-ctc` prints the text.
    """
    from distilkit.cli import console
    from distilkit.errors import DistilkitError
    from distilkit.hub import default_recogniser, locate

    if timestamps and format == "txt":
        raise DistilkitError("`--timestamps` has no place in `--format txt`", "--format json")
    name = model or default_recogniser()
    console.say(f"model: {name}" + ("" if model else " (no --model given)"))
    locate(name)  # before the imports that take seconds

    from distilkit import plan, recognisers
    from distilkit import transcribe as writing
    from distilkit.config import Train
    from distilkit.data import Skipped, find
    from distilkit.decode import FORMATS

    total = sum(1 for _ in find(inputs))
    several = len(inputs) > 1 or Path(inputs[0]).is_dir()
    if several and out is None and format in writing.TIMED:
        raise DistilkitError(f"`--format {format}` of several files needs a folder", "--out FOLDER")
    place = writing.targets(inputs, out, format) if out else None
    search = searching(lm, beam, lm_weight, word_bonus)
    recogniser = recognisers.load(name)
    for note in recogniser.notes:
        console.say(f"model: {note}")
    results = writing.transcribe(
        inputs,
        recogniser,
        search=search,
        timed=timestamps or format in writing.TIMED,
        device=plan.device(Train())[0],
    )
    failed = others = done = 0
    for item in console.track(results, description="transcribing", total=total):
        if isinstance(item, Skipped):
            failed, others = failed + (item.kind == "unusable"), others + (item.kind != "unusable")
            if item.kind == "unusable":
                console.say(f"left out {item.path}: {item.reason}")
            continue
        done += 1
        if place is not None:
            writing.write(item, place(item), format)
        else:
            text = FORMATS[format](item).removesuffix("\n")
            console.result(f"{item.file}\t{text}" if several and format == "txt" else text)
    if others:
        console.say(f"left out {others} files that are not audio")
    if not done:
        raise DistilkitError("nothing to transcribe", f"distilkit inspect {inputs[0]}")
    if out is not None:
        console.result(str(out))
    if failed:
        raise typer.Exit(1)


def searching(lm: Path | None, beam: int, weight: float, bonus: float) -> "Search | None":
    """The search that the options ask for; None for greedy decoding."""
    from distilkit import ngram
    from distilkit.decode import Search

    if lm is None:
        return Search(width=beam) if beam > 1 else None
    return Search(
        model=ngram.read(lm), width=beam if beam > 1 else Search.width, weight=weight, bonus=bonus
    )
