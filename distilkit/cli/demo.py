"""`distilkit demo`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distilkit.cli import options

if TYPE_CHECKING:
    from distilkit.demo import Kept

RECIPE = "demo"


def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder for all that is made.", show_default="a new demo"
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(metavar="STEPS", min=1, help="Optimizer steps.", show_default="the recipe's"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the demo in --out, else the newest here.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Go the whole way offline, on the built-in teacher and speech, in a few minutes.

    `distilkit demo` distils a student, shows what it kept, and embeds a recording.
    """
    from distilkit import demo as built_in
    from distilkit import teachers
    from distilkit.cli import console, course
    from distilkit.cli import distill as command
    from distilkit.config import load_recipe
    from distilkit.distill import prepare
    from distilkit.embed import embed
    from distilkit.runs import Run

    out = _place(out, resume)
    run, again = Run(out / "run"), course.resuming("demo", out)
    if run.exists:
        course.keeps([f"--steps {steps}"] if steps else [], RECIPE, RECIPE)
    if not run.finished:
        job = prepare(
            [built_in.speech()],
            teacher="tiny",
            out=run.folder,
            recipe=load_recipe(RECIPE, [f"train.steps={steps}"] if steps else []),
            resume=resume,
            track=console.track,
        )
        command.announce(job)
        command.follow(job, again)
    console.interruption(f"`{run.result}` is whole", again)
    student, _ = teachers.load(str(out / "run"))
    teacher, _ = teachers.load("tiny")
    console.say("asking both what they hear ...")
    kept = built_in.compare(student, teacher)
    recording = next(built_in.examples())
    embedded, _, target = embed([recording], student, out=out / f"{recording.stem}.npy")
    if json:
        console.document(
            {"student": str(out / "run" / "student"), "embedding": str(target), **asdict(kept)}
        )
        return
    _show(kept)
    console.result(f"{out / 'run' / 'student'}")
    console.result(f"{target}\t{embedded[0].shape}\t{embedded[0].seconds:.2f} s")
    console.say("Next, with your own recordings and a real teacher:")
    console.say("  distilkit distill ./my_audio --teacher facebook/hubert-base-ls960")
    console.say(f"  distilkit embed file.wav --model {out / 'run'}")


def _place(out: Path | None, resume: bool) -> Path:
    """The folder of the demo: a new one, or with `resume` the one to go on with."""
    from distilkit import leftovers
    from distilkit.errors import DistilkitError
    from distilkit.runs import Run, free_folder

    begun = sorted(Path().glob("demo*/run/run.json"), key=lambda path: path.stat().st_mtime)
    if resume and out is None and begun:
        return begun[-1].parents[1]
    out = out or free_folder(Path("demo"))
    leftovers.tidy(out / "run")  # of a demo that was killed when it had hardly begun
    there = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if there and not (resume and Run(out / "run").exists):
        raise DistilkitError(
            f"`{out}` is not an empty folder", "distilkit demo --out another-folder"
        )
    return out


def _show(kept: "Kept") -> None:
    from distilkit.cli import console

    size = kept.student_parameters / kept.teacher_parameters
    words = kept.student_words / kept.teacher_words
    rows = [
        (
            "size",
            f"{kept.student_parameters / 1e6:.2f} M",
            f"{kept.teacher_parameters / 1e6:.2f} M",
            f"{1 - size:.1%} smaller",
        ),
        ("forward pass", "", "", f"{kept.speed_up:.1f} times as fast, on this machine"),
        (
            "words told apart",
            f"{kept.student_words:.1%}",
            f"{kept.teacher_words:.1%}",
            f"{words:.1%} kept; log-mel without a model {kept.log_mel_words:.1%}",
        ),
    ]
    title = "what the student kept"
    console.show(console.table(title, ("", "student", "teacher", "so"), rows), to_result=True)
    console.say("Words: 20 of them, said by synthesised voices that the probe had not met.")
