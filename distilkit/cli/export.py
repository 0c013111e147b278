"""`distilkit export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distilkit.cli import completion, options

if TYPE_CHECKING:
    from distilkit.export import Export


def export(
    model: Annotated[
        str,
        typer.Argument(
            help="An encoder or a recogniser: folder, checkpoint, run or hub id.",
            autocompletion=completion.models,
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write; must be new.")],
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Store weights in fp16: half the size.")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Store weights in int8: a quarter of the size.")
    ] = False,
    mobile: Annotated[
        bool,
        typer.Option(
            "--mobile", help="Also write a program for phones (ExecuTorch), weights in fp32."
        ),
    ] = False,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Recordings to verify on, with text or without. Repeatable.",
            show_default="built-in speech",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Write a model for devices without PyTorch, as ONNX, verified on speech before it is kept.

    `distilkit export runs/my_audio --out my_model --int8` makes a folder that needs only onnxruntime.
    """
    from distilkit.cli import console
    from distilkit.errors import DistilkitError
    from distilkit.hub import locate

    if fp16 and int8:
        raise DistilkitError("`--fp16` and `--int8` at once", "--int8")
    locate(model)  # before the imports that take seconds
    console.say(f"exporting {model} ...")

    from distilkit import export as exporting

    done = exporting.export(
        model,
        out,
        precision="int8" if int8 else "fp16" if fp16 else "fp32",
        mobile=mobile,
        audio=data or [],
        track=console.track,
    )
    if json:
        console.document({"output": str(out)} | done.facts)
        return
    _show(done)


def _show(done: "Export") -> None:
    """Print how near the export is to the model, and how fast."""
    from distilkit.cli import console
    from distilkit.export import TIMED_SECONDS, TOLERANCES, beyond
    from distilkit.wording import counted, size

    first = done.checks[0]
    rows = []
    for check in done.checks:
        for near in check.layers:
            last = near is check.layers[-1]
            faster = check.model_milliseconds / check.milliseconds
            rows.append(
                (
                    check.runtime if near is check.layers[0] else "",
                    str(near.layer),
                    f"{near.cosine:.6f}",
                    f"{near.error:.1e}",
                    f"{check.milliseconds:,.1f} ms" if last else "",
                    f"{faster:.2f}" if last else "",
                )
            )
    title = (
        f"beside fp32, {counted(first.clips, 'clip')} of {first.shortest:g} to {first.longest:g} s; "
        f"time for one of {TIMED_SECONDS:g} s"
    )
    columns = ("runtime", "layer", "least cosine", "largest error", "time", "times PyTorch")
    console.show(console.table(title, columns, rows), to_result=True)
    for check in done.checks:
        if check.wer is not None:
            console.result(
                f"words wrong with {check.runtime}: {check.wer[1]:.2%}, the model {check.wer[0]:.2%}, "
                f"of {counted(check.words or 0, 'word')}"
            )
        elif check.apart is not None:
            console.result(
                f"words that {check.runtime} writes otherwise than the model: {check.apart:.2%} "
                f"of {counted(check.words or 0, 'word')}"
            )
    for check in done.checks:
        if found := beyond(check, done.facts["precision"]):
            console.say(f"{check.runtime} will not be used: {'; '.join(found)}")
    least = TOLERANCES[done.facts["precision"]].cosine
    console.result(
        f"{done.folder}\t{done.facts['kind']}\t{done.facts['precision']}, "
        f"{size(done.facts['bytes'])}\tverified: cosine at least {least}"
    )
    if phone := done.facts.get("mobile"):
        console.result(
            f"{done.folder / phone['file']}\tfor phones\tfp32, {size(phone['bytes'])}\t"
            f"verified: largest error at most {TOLERANCES['fp32'].error:g}"
        )
