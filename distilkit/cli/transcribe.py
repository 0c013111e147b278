"""`distilkit transcribe`."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from distilkit.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from distilkit.audio import Samples
    from distilkit.captions import Transcript
    from distilkit.data import Found, Skipped
    from distilkit.decode import Search
    from distilkit.listeners import Hears
    from distilkit.models import Opened

# The same set as in distilkit.config, whose import would cost `--help` its speed.
TranscriptFormat = Literal["txt", "json", "srt", "vtt"]


Delay = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=4.0,
        help="From a word in `-` to its text, computing left out.",
        show_default="60, as for a file",
    ),
]


def transcribe(
    inputs: Annotated[
        list[str],
        typer.Argument(help="Audio files, folders, lhotse manifests; `-`: standard input."),
    ],
    model: options.Recogniser = None,
    lm: options.LanguageModel = None,
    beam: options.Beam = None,
    lm_weight: options.LmWeight = None,
    word_bonus: options.WordBonus = None,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", help="When each word is said (format json).")
    ] = False,
    format: Annotated[
        TranscriptFormat,
        typer.Option(help="Text, an object a line, or subtitles: `txt`, `json`, `srt`, `vtt`."),
    ] = "txt",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="File or folder to write in place of printing.",
            show_default="none: printed",
        ),
    ] = None,
    rate: options.Rate = 16_000,
    delay: Delay = None,
) -> None:
    """Write down what is said in recordings.

    `distilkit transcribe file.wav --model runs/my_speech-ctc` prints the text.
    """
    from distilkit.cli import console
    from distilkit.errors import DistilkitError
    from distilkit.hub import default_recogniser, locate

    if timestamps and format == "txt":
        raise DistilkitError("`--timestamps` has no place in `--format txt`", "--format json")
    streams = options.streamed(inputs)
    if delay is not None and not streams:
        raise DistilkitError(f"`--delay {delay:g}` of files, which are there whole", "leave it out")
    options.present(inputs)
    name = model or default_recogniser()
    console.say(f"model: {name}" + ("" if model else " (no --model given)"))
    locate(name)  # before the imports that take seconds

    from distilkit import transcribe as writing
    from distilkit.captions import FORMATS
    from distilkit.data import Found, find
    from distilkit.wording import counted

    if streams:
        search = searching(lm, beam, lm_weight, word_bonus)
        opened = _open(name, lm, search)
        _live(opened, search, timestamps, format, out, rate, delay)
        return
    found = list(find(inputs))
    several = sum(item.audio for item in found) > 1 or Path(inputs[0]).is_dir()
    if several and out is None and format in writing.TIMED:
        raise DistilkitError(f"`--format {format}` of several files needs a folder", "--out FOLDER")
    place = writing.targets(out, format, several) if out else None
    search = searching(lm, beam, lm_weight, word_bonus)
    opened = _open(name, lm, search)
    timed = timestamps or format in writing.TIMED
    depend = writing.settings(opened.source, lm, search, format, timed)
    skipped, done = list["Skipped"](), 0
    with closing(writing.Begun(out, depend, found)) as begun:
        results = writing.transcribe(
            inputs,
            opened.listener,
            search=search,
            timed=timed,
            device=opened.device,
            done=lambda item: place is not None and begun.has(item, place(item.id)),
        )
        written = f"written to `{out}`" if out else "printed"
        console.interruption(
            lambda: f"{done:,} of {counted(len(found), 'file')} transcribed and {written}"
        )
        for item in _usable(results, len(found), skipped):
            done += 1
            if isinstance(item, Found):
                continue
            if place is not None:
                begun.write(item, place(item.file), format)
            else:
                text = FORMATS[format](item).removesuffix("\n")
                console.result(f"{item.file}\t{text}" if several and format == "txt" else text)
        failed = sum(item.kind == "unusable" for item in skipped)
        if len(skipped) > failed:
            console.say(f"left out {counted(len(skipped) - failed, 'file')} not audio")
        if not failed:
            begun.end()  # else the same command goes on once they are mended
    if not done:
        raise DistilkitError("nothing to transcribe", f"distilkit inspect {inputs[0]}")
    if out is not None:
        console.result(str(out))
    if failed:
        raise typer.Exit(1)


def _usable(
    results: "Iterable[Transcript | Skipped | Found]", total: int, skipped: "list[Skipped]"
) -> "Iterator[Transcript | Found]":
    """What is not skipped, with progress; of what is, the files that cannot be used are told."""
    from distilkit.cli import console
    from distilkit.data import Skipped

    for item in console.track(results, description="transcribing", total=total):
        if not isinstance(item, Skipped):
            yield item
            continue
        skipped.append(item)
        if item.kind == "unusable":
            console.warn(f"left out {item.path}: {item.reason}")


def _open(name: str, lm: Path | None, search: "Search | None") -> "Opened[Hears]":
    """The recogniser, once what there is to say about it has been said."""
    from distilkit import models
    from distilkit.cli import console

    opened = models.recogniser(name)
    for note in opened.notes:
        console.say(f"model: {note}")
    check_form(lm, search, name, opened.listener)
    return opened


def _live(
    opened: "Opened[Hears]",
    search: "Search | None",
    timed: bool,
    format: TranscriptFormat,
    out: Path | None,
    rate: int,
    delay: float | None,
) -> None:
    """Write down standard input as it goes on; an interrupt ends it, and what was heard is written."""
    import json
    import sys
    from dataclasses import asdict

    from distilkit import transcribe as writing
    from distilkit.audio import live
    from distilkit.cli import Interrupted, console
    from distilkit.errors import DistilkitError

    if out is not None:
        raise DistilkitError(f"`--out {out}` of standard input", f"> {out}")
    if format in writing.TIMED:
        raise DistilkitError(f"`--format {format}` of standard input", "--format json --timestamps")
    ended = False

    def blocks() -> "Iterator[Samples]":
        nonlocal ended
        try:
            yield from live(sys.stdin.buffer, rate)
        except Interrupted:
            ended = True

    passages = writing.live(
        blocks(),
        opened.listener,
        search=search,
        timed=timed,
        delay=delay or writing.DELAY,
        device=opened.device,
    )
    for passage in passages:
        if format == "txt":
            print(console.visible(passage.text), end="", flush=True)
        elif passage.text.strip():
            row = {"start": passage.start, "end": passage.end, "text": passage.text.strip()}
            words = [asdict(word) for word in passage.words or []]
            print(
                json.dumps(row | ({"words": words} if timed else {}), ensure_ascii=False),
                flush=True,
            )
    if format == "txt":
        print(flush=True)
    if ended:
        console.interruption("all that was heard is printed")
        raise Interrupted


def searching(
    lm: Path | None, beam: int | None, weight: float | None, bonus: float | None
) -> "Search | None":
    """The search that the options ask for; None for greedy decoding."""
    from distilkit import ngram
    from distilkit.decode import Search
    from distilkit.errors import DistilkitError

    if lm is None:
        for name, value in (("--lm-weight", weight), ("--word-bonus", bonus)):
            if value is not None:
                raise DistilkitError(
                    f"`{name} {value:g}` without a language model", f"--lm lm.arpa {name} {value:g}"
                )
        return Search(width=beam) if beam and beam > 1 else None
    asked = {"width": beam, "weight": weight, "bonus": bonus}
    given = {name: value for name, value in asked.items() if value is not None}
    return Search(model=ngram.read(lm), **given)  # type: ignore[arg-type]


def check_form(lm: Path | None, search: "Search | None", name: str, recogniser: "Hears") -> None:
    """Warn where a language model is in another form of text than the recogniser writes."""
    from distilkit.cli import console
    from distilkit.hub import locate

    if lm is None or search is None or search.model is None:
        return
    words = list(search.model.words())
    foreign = [word for word in words if recogniser.tokenizer.unknown(word)]
    if len(foreign) > len(words) / 2:
        some = ", ".join(f"`{word}`" for word in foreign[:4])
        console.warn(
            f"warning: `{name}` cannot write {len(foreign)} of the {len(words)} words in `{lm}`: {some}"
        )
        console.warn(f"hint: distilkit lm TEXT --tokenizer {locate(name)} --out lm2.arpa")
