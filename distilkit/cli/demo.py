"""`distilkit demo`."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for all that is made; a new `demo` by default.", show_default=False
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 30,
) -> None:
    """Go the whole way on built-in speech, offline, in about a minute.

    `distilkit demo` makes a teacher, distils a student from it, and embeds a recording.
    """
    from distilkit import demo as built_in
    from distilkit import teachers
    from distilkit.cli import console
    from distilkit.cli import distill as command
    from distilkit.config import load_recipe
    from distilkit.distill import prepare
    from distilkit.embed import embed
    from distilkit.errors import DistilkitError
    from distilkit.runs import free_folder

    out = out or free_folder(Path("demo"))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DistilkitError(
            f"`{out}` is not an empty folder", "distilkit demo --out another-folder"
        )
    console.say(
        "This teacher is small and has random weights: it shows the way, its student knows nothing."
    )
    teacher = built_in.write_random_teacher(out / "teacher")
    job = prepare(
        [built_in.speech()],
        teacher=str(teacher),
        out=out / "run",
        recipe=load_recipe("smoke", [f"train.steps={steps}"]),
        track=console.track,
    )
    command._announce(job)
    command._train(job, json=False)
    encoder, _ = teachers.load(str(out / "run"))
    recording = next(built_in.examples())
    embedded, _, target = embed([recording], encoder, out=out / f"{recording.stem}.npy")
    console.result(f"{target}\t{embedded[0].shape}\t{embedded[0].seconds:.2f} s")
    console.say(f"next: distilkit distill YOUR_AUDIO; distilkit embed FILE --model {out / 'run'}")
