"""`distilkit report`."""

from pathlib import Path
from typing import Annotated

import typer

from distilkit.cli import completion, options


def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Run folder of `distill` or `finetune-ctc`, finished or not.",
            autocompletion=completion.runs,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the page to this file, HTML.",
            show_default="RUN/report.html",
        ),
    ] = None,
    audio: Annotated[
        bool, typer.Option("--audio/--no-audio", help="Recordings to listen to on the page.")
    ] = True,
    json: options.Json = False,
) -> None:
    """Write a run's report: one HTML page that needs no network.

    `distilkit report runs/my_audio`
    """
    from distilkit import leftovers
    from distilkit.cli import console
    from distilkit.files import MALFORMED, make_parent
    from distilkit.runs import Run

    found = Run(run)
    found.read()
    if out is not None:
        leftovers.vacate(out)
        make_parent(out)

    from distilkit import report as writing

    if missing := writing.missing(found):
        console.say(f"measuring {', '.join(missing)} ...")
    if not found.finished:
        console.say("not finished: nothing is measured yet, the logs are shown")
    try:
        path, problems = writing.complete(found, out, sound=audio, track=console.track)
    except MALFORMED as error:
        raise writing.damaged(found, error) from error
    for name, problem in problems.items():
        console.warn(f"the report lacks {name}: {problem}")
    if json:
        console.document({"report": str(path), "lacks": problems})
        return
    console.result(f"{path}")
