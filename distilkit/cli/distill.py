"""`distilkit distill`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from distilkit.distill import Job
    from distilkit.loop import Step


def distill(
    audio: Annotated[
        list[str] | None,
        typer.Argument(help="Folders, audio files, lhotse manifests.", show_default=False),
    ] = None,
    teacher: Annotated[
        str,
        typer.Option(
            help="A checkpoint (folder, file, run), a hub id, `tiny` (built in), or `none`."
        ),
    ] = "facebook/hubert-base-ls960",
    student: Annotated[
        str | None,
        typer.Option(help="Go on with this student in place of a new one.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; `runs/NAME` by default.", show_default=False)
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="A built-in recipe (`distilkit recipes`) or a TOML file.")
    ] = "personal",
    set: Annotated[
        list[str] | None,
        typer.Option(
            help="Change one setting: `section.key=value`. Repeatable.", show_default=False
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Optimizer steps; short for train.steps.", show_default=False),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --out, else the newest in `runs`."),
    ] = False,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Print what would happen, measured on a few steps, and stop."),
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of everything random.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Distil a student of a HuBERT teacher from your own recordings.

    `distilkit distill ./my_audio` writes the student to `runs/my_audio/student`.
    """
    from distilkit.cli import console
    from distilkit.config import load_recipe
    from distilkit.errors import DistilkitError
    from distilkit.hub import locate
    from distilkit.runs import newest_run

    if not audio and not resume:
        raise DistilkitError("no audio given", "distilkit distill ./my_audio")
    changes = list(set or [])
    changes += [f"train.steps={steps}"] if steps is not None else []
    changes += [f"train.seed={seed}"] if seed is not None else []
    there = resume and (
        (out / "run.json").is_file()
        if out
        else newest_run(Path("runs"), finished=False) is not None
    )
    if there and changes:
        raise DistilkitError(
            f"a resumed run keeps its recipe: `{changes[0]}` cannot change it",
            "leave it out, or start a new run with another --out",
        )
    settings = load_recipe(recipe, changes)
    if there and student:
        raise DistilkitError(
            f"a resumed run keeps its student: `--student {student}` cannot change it",
            "leave it out, or start a new run with another --out",
        )
    if audio and not there:
        for name in (teacher, student):
            if name and name != "none":
                locate(name)  # before the imports that take seconds

    from distilkit.distill import prepare

    job = prepare(
        audio or [],
        teacher=teacher,
        student=student,
        out=out,
        recipe=settings,
        resume=resume,
        track=console.track,
    )
    _announce(job)
    if plan:
        _plan(job, json)
        return
    _train(job, json)


def _announce(job: "Job") -> None:
    from distilkit.cli import console
    from distilkit.plan import clock
    from distilkit.report import noise_text, objective_text

    facts, teacher, student = job.facts, job.facts["teacher"], job.facts["student"]
    form = f"{student['layers']} layers, {student['parameters'] / 1e6:.2f} M parameters"
    begins = student["begins"].partition(": ")[0] if ": " in student["begins"] else "as asked for"
    named = student["from"]["name"] if student["from"] else job.recipe.student.architecture
    of = ("none", "nothing is distilled: units of MFCC")
    if teacher:
        size = f"{teacher['parameters'] / 1e6:.2f} M parameters"
        of = (teacher["name"], f"{teacher['format']}, {teacher['layers']} layers, {size}")
    held = f"{len(job.valid)} windows, whole recordings"
    if not job.valid:
        why = "there is only one" if job.recipe.data.valid_fraction else "none are asked for"
        held = f"nothing to tell how the student does on other recordings: {why}"
    windows = f"in {len(job.train)} windows of {facts['recordings']} recordings"
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
    if job.collection is not None and job.collection.skipped:
        counts = ", ".join(f"{count} {kind}" for kind, count in job.collection.reasons().items())
        console.say(f"left out: {counts} (all in skipped.tsv)")
        for item in [item for item in job.collection.skipped if item.kind != "not audio"][:8]:
            console.say(f"  {item.path}: {item.reason}")


def _plan(job: "Job", json: bool) -> None:
    from distilkit.cli import console
    from distilkit.distill import disk_bytes, measure
    from distilkit.plan import clock

    console.say("measuring a few steps ...")
    measured, disk = measure(job), disk_bytes(job)
    values = {
        "usable_hours": round((job.facts["train_seconds"] + job.facts["valid_seconds"]) / 3600, 3),
        "skipped": job.facts["skipped"],
        "steps": job.plan.steps,
        "seconds_per_step": round(measured.seconds_per_step, 3),
        "hours": round(measured.hours, 3),
        "peak_memory_gib": round(measured.peak_gib, 2),
        "disk_gib": round(disk / 2**30, 3),
    }
    if json:
        console.document(values)
        return
    steps = f"{job.plan.steps} steps of {measured.seconds_per_step:.2f} s, measured here"
    disk_reason = "two checkpoints while one is replaced, and the student"
    rows = [
        ("time", clock(measured.hours * 3600), steps),
        ("memory", f"{measured.peak_gib:.1f} GiB", "the most so far, measured here"),
        ("disk", f"{disk / 2**30:.2f} GiB", disk_reason),
    ]
    console.show(console.table("plan", ("what", "value", "why"), rows), to_result=True)


def _run(job: "Job") -> float:
    """Train to the end, showing how it goes, and return the seconds; stopped, say how to go on."""
    from distilkit import plan
    from distilkit.cli import console
    from distilkit.distill import disk_bytes, finds_units, train

    plan.check_disk(job.run.folder, disk_bytes(job))
    number, began = 0, time.monotonic()
    if finds_units(job):
        console.say("finding the units ...")
    with console.stopping() as stop, _Watch(job) as watch:
        for step in train(job, stop):
            number = step.number
            watch(step)
    if number < job.plan.steps and stop.asked:
        console.say(f"saved after step {number} of {job.plan.steps}")
        console.say(f"go on with: distilkit distill --resume --out {job.run.folder}")
        raise typer.Exit(130)
    return time.monotonic() - began


def _train(job: "Job", json: bool) -> None:
    from distilkit import plan
    from distilkit.cli import console

    seconds = _run(job)
    student = job.run.folder / "student"
    if json:
        rows = [row["valid"] for row in job.run.rows("metrics.jsonl") if "valid" in row]
        console.document(
            {"student": str(student), "steps": job.plan.steps, "valid": rows[-1] if rows else None}
        )
        return
    console.say(f"done in {plan.clock(seconds)}")
    console.result(f"{student}")


def _parts(parts: dict[str, float]) -> str:
    """The loss of each target, its terms added: `4/8/12: 1.2 1.1 1.0`; units right in per cent."""
    sums: dict[str, float] = {}
    right = ""
    for name, value in parts.items():
        term, _, target = name.partition("_")
        if term == "right":
            right += f" {value:.0%}"
        else:
            sums[target] = sums.get(target, 0.0) + value
    each = " ".join(f"{value:.3f}" for value in sums.values())
    return f"{'/'.join(sums)}: {each}" + (f", right{right}" if right else "")


class _Watch:
    """Shows steps as they come: a bar on a terminal, lines in a log."""

    def __init__(self, job: "Job") -> None:
        from distilkit.cli import console

        self._job = job
        self._bar = console.training_bar() if console.errors.is_terminal else None
        self._task: object = None
        self._shown = 0.0
        self._began = 0.0  # of the first step; what is found beforehand does not count
        self._done = 0

    def __enter__(self) -> "_Watch":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, step: "Step") -> None:
        from distilkit.cli import console
        from distilkit.plan import clock, peak_gib

        steps, self._done = self._job.plan.steps, self._done + 1
        loss, parts = f"loss {step.loss:.4f}", _parts(step.parts)
        numbers = (
            f"{loss} ({parts})  {step.audio_seconds / step.seconds:.1f} s/s  "
            f"{peak_gib(self._job.plan.device):.1f} GiB"
        )
        if step.valid:
            console.say(f"step {step.number}: held-out loss {step.valid['loss']:.4f}")
        if not step.updated:
            console.say(f"step {step.number}: fp16 overflow, loss scale lowered, step left out")
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(
                    "", total=steps, completed=step.number - 1, numbers=""
                )
            self._bar.update(self._task, completed=step.number, numbers=numbers)  # type: ignore[arg-type]
            return
        now = time.monotonic()
        if self._done == 1:
            self._began = now - step.seconds
        if now - self._shown >= console.LOG_SECONDS or step.number in (1, steps):
            left = (now - self._began) / self._done * (steps - step.number)
            console.say(f"step {step.number} of {steps}: {numbers}  left {clock(left)}")
            self._shown = now
