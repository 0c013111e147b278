"""`distilkit evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distilkit.cli import options

if TYPE_CHECKING:
    from distilkit.evaluate import Evaluation

WORST = 5  # utterances that are shown
CONFUSED = 8  # words


def evaluate(
    data: Annotated[list[str], typer.Argument(help="Recordings with text, in any layout.")],
    model: options.Recogniser = None,
    against: Annotated[
        str | None,
        options.model_named("Another recogniser, on the same recordings."),
    ] = None,
    lm: options.LanguageModel = None,
    beam: options.Beam = None,
    lm_weight: options.LmWeight = None,
    word_bonus: options.WordBonus = None,
    text_column: options.TextColumn = "",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write every utterance to this file, JSON lines.",
            show_default="none",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Count a recogniser's errors: words and characters, by speaker, and the worst utterances.

    `distilkit evaluate ./my_test --model runs/my_speech-ctc`
    """
    from distilkit.cli import console
    from distilkit.cli.transcribe import check_form, searching
    from distilkit.files import make_parent
    from distilkit.hub import default_recogniser, locate
    from distilkit.leftovers import vacate

    options.present(data)
    name = model or default_recogniser()
    console.say(f"model: {name}" + ("" if model else " (no --model given)"))
    for each in (name, against):
        if each:
            locate(each)  # before the imports that take seconds
    if out is not None:
        vacate(out)
        make_parent(out)  # before everything is listened to

    from distilkit import evaluate as judging
    from distilkit import models
    from distilkit.wording import counted

    search = searching(lm, beam, lm_weight, word_bonus)
    found: list[judging.Evaluation] = []
    for each in [name, *([against] if against else [])]:
        opened = models.recogniser(each)
        for note in opened.notes:
            console.say(f"{each}: {note}")
        check_form(lm, search, each, opened.listener)
        judged = judging.evaluate(
            data,
            opened.listener,
            search=search,
            text_column=text_column,
            device=opened.device,
            track=console.track,
        )
        if judged.unknown:
            listed = ", ".join(
                f"`{char}` {counted(count, 'time')}" for char, count in judged.unknown.items()
            )
            console.say(f"{each} cannot write {listed}: they count as errors")
        found.append(judged)
    first = found[0]
    console.left_out(first.skipped, "")
    if out is not None:
        judging.write(first, out, found[1] if against else None)
    other = (against, found[1]) if against else None
    if json:
        console.document(_document(name, first) | _compared(first, other))
    else:
        _show(name, first)
        if other:
            _show_other(first, *other)
    if any(item.kind == "unusable" for item in first.skipped):
        raise typer.Exit(1)


def _compared(first: "Evaluation", other: "tuple[str, Evaluation] | None") -> dict[str, Any]:
    from distilkit.evaluate import difference

    if other is None:
        return {}
    by, (low, high) = difference(first, other[1])
    return {
        "against": _document(*other)
        | {
            "wer_difference": round(by, 5),
            "wer_difference_interval": [round(low, 5), round(high, 5)],
        }
    }


def _show_other(first: "Evaluation", name: str, other: "Evaluation") -> None:
    from distilkit.cli import console
    from distilkit.evaluate import difference

    by, (low, high) = difference(first, other)
    sure = "" if low <= 0 <= high else ": more than chance"
    low_wer, high_wer = other.wer
    row = (name, f"{other.errors.words.rate:.1%}", f"{low_wer:.1%} to {high_wer:.1%}")
    console.show(console.table("", ("", "words wrong", "95% interval"), [row]), to_result=True)
    console.result(
        f"{name} has {abs(by):.1%} points {'more' if by > 0 else 'fewer'} words wrong "
        f"({low:+.1%} to {high:+.1%}){sure}"
    )


def _show(name: str, found: "Evaluation") -> None:
    from distilkit.audio import clock
    from distilkit.cli import console
    from distilkit.rates import aligned
    from distilkit.wording import counted

    rows = []
    for label, count, (low, high) in (
        ("words", found.errors.words, found.wer),
        ("characters", found.errors.characters, found.cer),
    ):
        rows.append(
            (
                label,
                f"{count.rate:.1%}",
                f"{low:.1%} to {high:.1%}",
                f"{count.substitutions:,}",
                f"{count.deletions:,}",
                f"{count.insertions:,}",
                f"{count.spoken:,}",
            )
        )
    columns = ("", "wrong", "95% interval", "other", "missing", "surplus", "said")
    title = f"{name}: {counted(len(found.utterances), 'utterance')}, {clock(found.seconds)}"
    console.show(console.table(title, columns, rows), to_result=True)
    speakers = found.speakers()
    if len(speakers) > 1:
        rates = [
            (who, f"{e.words.rate:.1%}", f"{e.characters.rate:.1%}", f"{e.words.spoken:,}")
            for who, e in speakers.items()
        ]
        console.show(
            console.table(
                "\nby speaker", ("speaker", "words wrong", "characters wrong", "words said"), rates
            ),
            to_result=True,
        )
    confused = list(found.confusions().items())[:CONFUSED]
    if confused:
        pairs = [(a or "(nothing)", b or "(nothing)", f"{n:,}") for (a, b), n in confused]
        title = "\nmost frequent errors"
        console.show(console.table(title, ("said", "heard", "times"), pairs), to_result=True)
    worst = found.worst(WORST)
    if worst:
        console.result("\nworst utterances")
        for item in worst:
            console.result(
                f"{item.id}: {item.errors.words.errors} of {item.errors.words.spoken} words wrong"
            )
            console.result(aligned(item.said, item.heard))


def _document(name: str | None, found: "Evaluation") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "model": name,
        "utterances": len(found.utterances),
        "seconds": round(found.seconds, 3),
        "wer": round(found.errors.words.rate, 5),
        "wer_interval": [round(value, 5) for value in found.wer],
        "cer": round(found.errors.characters.rate, 5),
        "cer_interval": [round(value, 5) for value in found.cer],
        "words": asdict(found.errors.words),
        "characters": asdict(found.errors.characters),
        "speakers": {who: round(e.words.rate, 5) for who, e in found.speakers().items()},
        "unknown_characters": found.unknown,
        "skipped": [asdict(item) for item in found.skipped],
    }
