"""`distilkit bench`."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from distilkit.cli import completion, options

if TYPE_CHECKING:
    from distilkit.bench import Row, Size

Precision = Literal["fp32", "bf16", "fp16"]  # as in distilkit.config, whose import would cost time


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models, the first being what the others are compared with; by default the newest "
            "run's teacher and student.",
            show_default=False,
            autocompletion=completion.models,
        ),
    ] = None,
    seconds: Annotated[
        list[float] | None,
        typer.Option(
            metavar="SECONDS",
            min=0.03,
            help="Length of a clip. Repeatable.",
            show_default="1, 5, 15, 60",
        ),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            metavar="CLIPS", min=1, help="Size of a batch. Repeatable.", show_default="1, 8"
        ),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Arithmetic.")] = "fp32",
    rounds: Annotated[
        int, typer.Option(metavar="TIMES", min=1, help="How often each is timed.")
    ] = 5,
    json: options.Json = False,
) -> None:
    """Compare models' size, speed and memory on this machine, in turn.

    `distilkit bench tiny runs/my_audio` shows how much faster a student is than its teacher.
    """
    from dataclasses import asdict

    from distilkit.cli import console
    from distilkit.errors import DistilkitError
    from distilkit.hub import locate

    names = models or _newest()
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise DistilkitError(f"`{twice[0]}` is there twice", "distilkit bench TEACHER STUDENT")
    for name in names:
        locate(name)  # before the imports that take seconds

    from distilkit import bench as measuring
    from distilkit import models as opening
    from distilkit import plan
    from distilkit.config import Train
    from distilkit.wording import counted

    where, why = plan.device(Train())
    if precision == "fp16" and where == "cpu":
        raise DistilkitError("`--precision fp16` on a CPU, which has none", "--precision fp32")
    loaded = {name: opening.encoder(name).listener for name in names}
    lengths, counts = seconds or [1.0, 5.0, 15.0, 60.0], batch or [1, 8]
    sizes = [measuring.size(name, encoder) for name, encoder in loaded.items()]
    console.say(f"{where} ({why}), {precision}, {counted(rounds, 'round')}")
    rows = list(
        console.track(
            measuring.bench(
                loaded,
                seconds=lengths,
                batches=counts,
                precision=precision,
                device=where,
                rounds=rounds,
            ),
            description="timing",
            total=len(names) * len(lengths) * len(counts),
        )
    )
    if json:
        console.document(
            {
                "device": where,
                "precision": precision,
                "rounds": rounds,
                "models": [asdict(size) for size in sizes],
                "times": [asdict(row) for row in rows],
            }
        )
        return
    _show(sizes, rows)


def _show(sizes: "list[Size]", rows: "list[Row]") -> None:
    """Print both tables."""
    from distilkit.cli import console

    first = sizes[0]
    console.show(
        console.table(
            "size",
            ("model", "parameters", "share", "weights", "multiply-adds a second", "share"),
            [
                (
                    size.model,
                    f"{size.parameters / 1e6:.2f} M",
                    f"{size.parameters / first.parameters:.1%}",
                    f"{size.megabytes:,.1f} MB",
                    f"{size.macs / 1e9:.3f} G" if size.macs else "",
                    f"{size.macs / first.macs:.1%}" if size.macs and first.macs else "",
                )
                for size in sizes
            ],
        ),
        to_result=True,
    )
    console.show(
        console.table(
            "speed",
            ("model", "clips", "forward", "audio a second", "memory", "times as fast"),
            [
                (
                    row.model,
                    f"{row.batch} x {row.seconds:g} s",
                    f"{row.forward * 1000:,.1f} ms",
                    f"{row.real_time:,.0f} s",
                    "" if row.memory is None else f"{row.memory:,.0f} MiB",
                    f"{row.ratio:.2f} ({row.spread[0]:.2f} to {row.spread[1]:.2f})"
                    if row.model != first.model
                    else "1",
                )
                for row in rows
            ],
        ),
        to_result=True,
    )


def _newest() -> list[str]:
    """The teacher and the student of the newest run."""
    from pathlib import Path

    from distilkit.errors import DistilkitError
    from distilkit.hub import BUILT_IN
    from distilkit.runs import newest_run

    run = newest_run(Path("runs"), finished=True, kind="distill")
    told = run.read()["teacher"] if run else None
    if run is None or told is None:
        raise DistilkitError("no models given", "distilkit bench tiny runs/my_audio")
    there = told["name"] not in BUILT_IN and Path(told["source"]).exists()
    return [str(told["source"] if there else told["name"]), str(run.folder)]
