"""`distilkit probe`."""

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from distilkit.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from distilkit.probes import Outcome
    from distilkit.probes.examples import Problem
    from distilkit.probes.features import System

Task = Literal["pr", "ks", "ic", "sid", "er", "asr", "qbe", "sf", "asv", "sd", "all"]

Lexicon = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A word and its phones on each line, for `pr`.",
        show_default="the column phones, else the CMU dictionary or eSpeak",
    ),
]
Features = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Keep computed frames in this folder, for the next time.",
        show_default="none: not kept",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="PROCESSES",
        min=0,
        help="Processes that train heads; 0: this one.",
        show_default="one a core",
    ),
]


def probe(
    task: Annotated[
        Task, typer.Argument(help="One of the ten tasks, or `all` that the data allows.")
    ],
    data: Annotated[
        list[str],
        typer.Argument(help="Recordings with a table of labels, or a folder for each label."),
    ],
    model: Annotated[
        str | None,
        options.model_named("Checkpoint, run or hub id.", "the newest run's student"),
    ] = None,
    against: Annotated[
        str | None,
        options.model_named("What it is held against: its teacher."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Column of labels; repeatable for intents and slots.",
            show_default="known by its name",
        ),
    ] = None,
    lexicon: Lexicon = None,
    text_column: options.TextColumn = "",
    folds: Annotated[
        int, typer.Option(metavar="PARTS", min=3, help="Parts that the data is split into.")
    ] = 5,
    floors: Annotated[
        bool, typer.Option(help="Log-mel and random weights beside the models.")
    ] = True,
    features: Features = None,
    workers: Workers = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page to this file, HTML.", show_default="none"),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="SEED", min=0, help="Seed of splits, heads and order.")
    ] = 0,
    json: options.Json = False,
) -> None:
    """Measure what a model knows by ten tasks on your own labelled audio, beside its teacher.

    `distilkit probe all ./my_speech --model runs/my_audio --against tiny`
    """
    from distilkit.cli import console
    from distilkit.errors import DistilkitError
    from distilkit.files import make_parent
    from distilkit.hub import default_model, locate
    from distilkit.leftovers import vacate

    _one_task(data)
    options.present(data)
    name = model or default_model()
    console.say(f"model: {name}" + ("" if model else " (no --model given)"))
    names = [name, *([against] if against else [])]
    for each in names:
        locate(each)  # before the imports that take seconds
    if against == name:
        raise DistilkitError(f"`{name}` against itself", "--against TEACHER")
    if label and task == "all":
        raise DistilkitError("`--label` with `all`, which finds the columns", "distilkit probe ks")
    if out is not None:
        vacate(out)
        make_parent(out)  # before everything is listened to

    from distilkit import probes
    from distilkit.probes import page
    from distilkit.probes.examples import Asked

    read = probes.read(data, text_column=text_column, track=console.track)
    console.left_out(read.skipped, "")
    with _kept(features) as folder:
        asked = Asked(
            columns=tuple(label or ()), lexicon=lexicon, folder=folder, folds=folds, seed=seed
        )
        problems, left = probes.prepare([task], read.cuts, asked)
        _say(problems, left)
        systems, device = _systems(names, floors)
        heard = probes.hear(systems, problems, folder, device, console.track)
        outcomes = list(
            probes.solve(
                problems, heard, against=against, seed=seed, workers=workers, track=console.track
            )
        )
    outcomes.sort(key=lambda outcome: list(probes.TASKS).index(outcome.task))
    if out is not None:
        page.write(out, outcomes, left, names, data)
        console.say(f"written: {out}")
    told = page.document(outcomes, left, names, data)
    if json:
        console.document(told)
    else:
        _show(outcomes, [system.name for system in systems], against)
    if (kept := page.keep(name, told)) is not None:
        console.say(f"kept in {kept}; in the run's report with: distilkit report {kept.parent}")


def _one_task(data: "Sequence[str]") -> None:
    """Refuse a second task, which would be read as a folder."""
    from distilkit.errors import DistilkitError

    for each in data:
        if each in get_args(Task) and not Path(each).exists():
            raise DistilkitError(
                f"`{each}` is a task: one at a time, or all", "distilkit probe all"
            )


@contextmanager
def _kept(folder: Path | None) -> "Iterator[Path]":
    """Where frames are kept: in the folder that was asked for, else until the command ends."""
    from distilkit.cli import console
    from distilkit.data.scan import cache_folder
    from distilkit.leftovers import temporary

    if folder is not None:
        kept_there = f"the frames in `{folder}` are kept, and not computed again"
        console.interruption(kept_there, console.typed_again())
        yield folder
        return
    with temporary(cache_folder().parent) as kept:
        yield kept


def _say(problems: "Mapping[str, Problem]", left: "Mapping[str, str]") -> None:
    """Say which tasks cannot be done, and what of the data is not used in the others."""
    from distilkit import probes
    from distilkit.cli import console

    for name, reason in left.items():
        console.say(f"{name} ({probes.TASKS[name].title}) is left out: {reason}")
    for name, problem in problems.items():
        console.left_out(problem.skipped, name)


def _systems(names: "Sequence[str]", floors: bool) -> "tuple[list[System], str]":
    """The models, and beside them what any of them must beat."""
    from distilkit import models
    from distilkit.cli import console
    from distilkit.encoder import Encoder
    from distilkit.exported import Exported
    from distilkit.probes import features

    device, found, encoders = "cpu", [], []
    for name in names:
        opened = models.encoder(name)
        for note in opened.notes:
            console.say(f"{name}: {note}")
        if isinstance(opened.listener, Exported):
            found.append(features.exported(name, opened.listener))
        elif isinstance(opened.listener, Encoder):
            device = opened.device
            found.append(features.model(name, opened.listener, device, "fp32"))
            encoders.append(opened.listener)
    if floors:
        found.append(features.log_mel())
        if encoders:
            found.append(features.random(encoders[0], device, "fp32"))
        else:
            console.say("random weights are left out: an exported model has none to draw again")
    return found, device


def _show(outcomes: "Sequence[Outcome]", systems: "Sequence[str]", against: str | None) -> None:
    """Print a line for each task and metric; the intervals are those of 95%."""
    from distilkit import probes
    from distilkit.cli import console
    from distilkit.probes.page import shown

    rows = []
    for outcome in outcomes:
        for place, metric in enumerate(outcome.metrics):
            cells = [shown(metric, outcome.values[system][metric.name]) for system in systems]
            share = shown(None, outcome.kept) if outcome.kept and not place else ""
            name = outcome.task if not place else ""
            rows.append((name, metric.name, *cells, *([share] if against else [])))
    columns = ("task", "metric", *systems, *(["kept"] if against else []))
    titled = [(probes.TASKS[name].title if name else "", *others) for name, *others in rows]
    made = console.table("", columns, titled)
    if not console.fits(made):  # tasks as they are typed, intervals below their values
        below = [[cell.replace(" (", "\n(") for cell in row] for row in rows]
        made = console.table("", columns, below)
    console.show(made, to_result=True)
    mean = probes.retained(outcomes)
    if mean is not None and len(outcomes) > 1:
        console.result(f"kept on average over {len(outcomes)} tasks: {mean:.1%}")
