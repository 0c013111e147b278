"""`distilkit distill`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distilkit.cli import completion, options

if TYPE_CHECKING:
    from distilkit.distill.job import Job

# The same as in distilkit.hub and distilkit.distill, whose import would cost `--help` its speed.
DEFAULT_TEACHER = "facebook/hubert-base-ls960"
DEFAULT_RECIPE = "personal"


def distill(
    audio: Annotated[
        list[str] | None,
        typer.Argument(help="Folders, files, archives, lhotse manifests.", show_default=False),
    ] = None,
    teacher: Annotated[
        str,
        options.model_named(
            "A checkpoint (folder, file, run), a hub id, `tiny` (built in), or `none`.", True
        ),
    ] = DEFAULT_TEACHER,
    student: Annotated[
        str | None,
        options.model_named("Go on with this student in place of a new one.", "a new one"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Run folder; must be new, or empty.",
            show_default="runs/NAME",
            autocompletion=completion.runs,
        ),
    ] = None,
    recipe: options.Recipe = DEFAULT_RECIPE,
    set: options.Changes = None,
    steps: options.Steps = None,
    hours: options.Hours = None,
    resume: options.Resume = False,
    plan: options.Plan = False,
    seed: options.Seed = None,
    memory: options.Memory = None,
    json: options.Json = False,
) -> None:
    """Distil a student of a HuBERT teacher from your own recordings.

    `distilkit distill ./my_audio` writes the student to `runs/my_audio/student`.
    """
    from distilkit.cli import console, course
    from distilkit.config import load_recipe
    from distilkit.errors import DistilkitError
    from distilkit.hub import locate
    from distilkit.runs import resumable

    if not audio and not resume:
        raise DistilkitError("no audio given", "distilkit distill ./my_audio")
    changes = list(set or [])
    changes += [f"train.steps={steps}"] if steps is not None else []
    changes += [f"train.hours={hours}"] if hours is not None else []
    changes += [f"train.seed={seed}"] if seed is not None else []
    changes += [f"train.memory_gib={course.memory_gib(memory)}"] if memory else []
    there = resume and resumable(out, "distill")
    if there:
        given = [f"--student {student}"] if student else []
        given += [f"--teacher {teacher}"] if teacher != DEFAULT_TEACHER else []
        course.keeps([*changes, *given], DEFAULT_RECIPE, recipe)
    settings = load_recipe(recipe, changes)
    if audio and not there:
        options.present(audio)
        for name in (teacher, student):
            if name and name != "none":
                locate(name)  # before the imports that take seconds

    from distilkit.distill import disk_bytes, measure, prepare
    from distilkit.training import gone_on

    job = prepare(
        audio or [],
        teacher=teacher,
        student=student,
        out=out,
        recipe=settings,
        resume=resume,
        track=console.track,
    )
    with gone_on(job.run, job.resumed):
        announce(job, planned=plan)
        disk = disk_bytes(job)
    job = course.foreseen(job, measure, disk, planned=plan, json=json)
    if not plan:
        _train(job, json)


def _train(job: "Job", json: bool) -> None:
    from distilkit.audio import clock
    from distilkit.cli import console

    seconds = follow(job)
    made = job.run.folder / "student"
    if json:
        rows = [row["valid"] for row in job.run.rows("metrics.jsonl") if "valid" in row]
        console.document(
            {"student": str(made), "steps": job.plan.steps, "valid": rows[-1] if rows else None}
        )
        return
    console.say(f"done in {clock(seconds)}")
    console.result(f"{made}")


def follow(job: "Job", again: str = "") -> float:
    """Train to the end, showing how it goes, and return the seconds.

    Args:
        job: from `prepare`.
        again: what goes on with it where it is stopped; this command's --resume when empty.
    """
    from distilkit.cli import console, course
    from distilkit.distill import disk_bytes, finds_units, train
    from distilkit.training import gone_on

    with gone_on(job.run, job.resumed):
        disk = disk_bytes(job)
    if finds_units(job):
        console.say("finding the units ...")
    return course.follow(
        lambda stop: train(job, stop, console.track),
        job,
        disk,
        again or course.resuming("distill", job.run.folder),
    )


def announce(job: "Job", *, planned: bool = False) -> None:
    """Show what is going to happen.

    Args:
        job: from `prepare`.
        planned: nothing is going to be written.
    """
    from distilkit.audio import clock
    from distilkit.cards import noise_text, objective_text
    from distilkit.cli import console, course
    from distilkit.wording import counted

    facts, teacher, student = job.facts, job.facts["teacher"], job.facts["student"]
    form = f"{counted(student['layers'], 'layer')}, {student['parameters'] / 1e6:.2f} M parameters"
    begins = student["begins"].partition(": ")[0] if ": " in student["begins"] else "as asked for"
    named = student["from"]["name"] if student["from"] else job.recipe.student.architecture
    of = ("none", "nothing is distilled: units of MFCC")
    if teacher:
        size = f"{teacher['parameters'] / 1e6:.2f} M parameters"
        form += ", more than the teacher" * (student["parameters"] > teacher["parameters"])
        of = (
            teacher["name"],
            f"{teacher['format']}, {counted(teacher['layers'], 'layer')}, {size}",
        )
    held = f"{counted(len(job.valid), 'window')}, whole recordings"
    if not job.valid:
        why = "there is only one" if job.recipe.data.valid_fraction else "none are asked for"
        held = f"nothing to tell how the student does on other recordings: {why}"
    windows = (
        f"in {counted(len(job.train), 'window')} of {counted(facts['recordings'], 'recording')}"
    )
    rows = [
        ("teacher", *of),
        ("student", named, form),
        ("start", student["begins"].partition(": ")[2] or student["begins"], begins),
        ("predicts", job.recipe.objective.name, objective_text(job.recipe.objective)),
        ("audio", clock(facts["train_seconds"]), windows),
        ("held out", clock(facts["valid_seconds"]), held),
        *([("noise", "on", noise_text(noise))] if (noise := job.recipe.noise).probability else []),
        *((choice.name, choice.value, choice.reason) for choice in job.plan.choices),
        ("run folder", str(job.run.folder), "resumed" if job.resumed else "new"),
    ]
    console.show(console.table("distilkit distill", ("what", "value", "why"), rows))
    for note in teacher["notes"] if teacher else []:
        console.say(f"teacher: {note}")
    if job.collection is not None:
        console.left_out(job.collection.skipped, course.listed(job.run.folder, planned))
