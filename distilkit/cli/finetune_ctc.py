"""`distilkit finetune-ctc`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distilkit.cli import completion, options

if TYPE_CHECKING:
    from distilkit.ctc import Job

DEFAULT_RECIPE = "ctc"  # as in distilkit.ctc


def finetune_ctc(
    data: Annotated[
        list[str] | None,
        typer.Argument(help="Recordings with text, in any layout.", show_default=False),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of `distilkit tokenizer`, or a recogniser's.",
            show_default="none: must be given, but with --resume",
        ),
    ] = None,
    model: Annotated[
        str | None,
        options.model_named(
            "A student, run, checkpoint, hub id or `tiny`.",
            "the newest student, else ntu-spml/distilhubert",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Run folder; must be new, or empty.",
            show_default="runs/NAME-ctc",
            autocompletion=completion.runs,
        ),
    ] = None,
    recipe: options.Recipe = DEFAULT_RECIPE,
    lora: Annotated[
        bool, typer.Option("--lora", help="Train low-rank adapters in place of all weights.")
    ] = False,
    rank: Annotated[
        int | None,
        typer.Option(
            metavar="RANK", min=1, help="Rank of the adapters, with --lora.", show_default="16"
        ),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="With --lora: write the merged model too.")
    ] = False,
    set: options.Changes = None,
    steps: options.Steps = None,
    hours: options.Hours = None,
    text_column: options.TextColumn = "",
    resume: options.Resume = False,
    plan: options.Plan = False,
    seed: options.Seed = None,
    memory: options.Memory = None,
    json: options.Json = False,
) -> None:
    """Fine-tune a student, or any HuBERT, to write down what is said.

    `distilkit finetune-ctc ./my_speech --tokenizer ./my_tokens` writes `runs/my_speech-ctc/model`.
    """
    from distilkit.cli import course
    from distilkit.errors import DistilkitError

    hint = "distilkit finetune-ctc ./my_speech --tokenizer ./my_tokens"
    if not data and not resume:
        raise DistilkitError("no recordings given", hint)
    if not lora and (rank or (merge and not resume)):
        given = f"--rank {rank}" if rank else "--merge"
        raise DistilkitError(f"`{given}` without adapters", f"--lora {given}")
    changes = list(set or [])
    changes += [f"train.steps={steps}"] if steps is not None else []
    changes += [f"train.hours={hours}"] if hours is not None else []
    changes += [f"train.seed={seed}"] if seed is not None else []
    changes += [f"train.memory_gib={course.memory_gib(memory)}"] if memory else []
    changes += [f"data.text_column={text_column}"] if text_column else []
    changes += [f"lora.rank={rank or 16}"] if lora else []
    job = _prepared(data or [], tokenizer, model, out, recipe, changes, merge, resume)

    from distilkit import ctc
    from distilkit.training import gone_on

    with gone_on(job.run, job.resumed):
        _announce(job, plan)
    job = course.foreseen(job, ctc.measure, ctc.disk_bytes(job), planned=plan, json=json)
    if not plan:
        _train(job, json)


def _prepared(
    data: list[str],
    tokenizer: Path | None,
    model: str | None,
    out: Path | None,
    recipe: str,
    changes: list[str],
    merge: bool,
    resume: bool,
) -> "Job":
    """The run that is asked for, new or to be resumed."""
    from distilkit.cli import console, course
    from distilkit.config import CtcRecipe, load_recipe
    from distilkit.runs import resumable

    there = resume and resumable(out, "finetune-ctc")
    if there:
        named = {"--tokenizer": tokenizer, "--model": model}
        given = [f"{name} {value}" for name, value in named.items() if value]
        course.keeps([*changes, *given], DEFAULT_RECIPE, recipe)
    settings = load_recipe(recipe, changes, CtcRecipe)
    if data and not there:
        options.present(data)
        model = _given(data[0], tokenizer, model)

    from distilkit import ctc

    return ctc.prepare(
        data,
        tokenizer=tokenizer,
        model=model,
        out=out,
        recipe=settings,
        merge=merge,
        resume=resume,
        track=console.track,
    )


def _given(data: str, tokenizer: Path | None, model: str | None) -> str:
    """The model that is meant, once it is sure that all is given: before imports that take seconds."""
    from distilkit.cli import console
    from distilkit.errors import DistilkitError
    from distilkit.hub import default_model, locate

    if tokenizer is None:
        hint = f"distilkit tokenizer {data} --out DIR, then --tokenizer DIR"
        raise DistilkitError("no tokenizer given", hint)
    name = model or default_model()
    if model is None:
        console.say(f"model: {name} (no --model given)")
    locate(name)
    return name


def _train(job: "Job", json: bool) -> None:
    from distilkit import ctc
    from distilkit.audio import clock
    from distilkit.cli import console, course

    seconds = course.follow(
        lambda stop: ctc.train(job, stop),
        job,
        ctc.disk_bytes(job),
        course.resuming("finetune-ctc", job.run.folder),
    )
    rows = job.run.rows("metrics.jsonl")
    best, wrong = ctc.best(rows), ctc.diagnosis(rows, job.plan, job.recipe)
    if wrong is not None:
        console.warn(f"warning: {wrong[0]}")
        console.warn(f"hint: {wrong[1]}")
    result = job.run.result
    if json:
        console.document(
            {
                "model": str(result),
                "steps": rows[-1]["step"] if rows else 0,
                "best": {"step": best["step"], **best["valid"]} if best else None,
                "problem": wrong[0] if wrong else None,
            }
        )
        return
    if rows and rows[-1]["step"] < job.plan.steps:
        console.say(f"stopped early: no better for {job.recipe.train.patience} validations")
    if best is not None:
        valid = best["valid"]
        console.say(
            f"kept step {best['step']:,}: held-out words wrong {valid['wer']:.1%}, "
            f"characters {valid['cer']:.1%}"
        )
    console.say(f"done in {clock(seconds)}")
    console.result(f"{result}")


def _announce(job: "Job", planned: bool) -> None:
    from distilkit.audio import clock
    from distilkit.cards import text_text, training_text
    from distilkit.cli import console, course
    from distilkit.wording import counted

    facts = job.facts
    base, size = facts["base"], facts["parameters"]
    utterances = counted(len(job.train) + len(job.valid), "utterance")
    held = f"{counted(len(job.valid), 'utterance')} of {_speakers(facts['valid_speakers'])}"
    if not job.valid:
        held = "nothing to tell how the recogniser does on others"
    front = f"{base['format']}, {base['parameters'] / 1e6:.2f} M parameters"
    trained = f"{facts['trained'] / 1e6:.2f} M of {size / 1e6:.2f} M parameters"
    rows = [
        ("model", base["name"], front),
        ("head", counted(facts["tokenizer"]["tokens"], "token"), facts["head"]),
        ("tokenizer", facts["tokenizer"]["folder"], text_text(job.tokenizer.text)),
        ("trained", trained, training_text(job.recipe)),
        ("data", ", ".join(facts["layouts"]), f"{utterances} that can be learned"),
        (
            "text",
            counted(facts["text"]["words"], "word"),
            f"of {len(facts['text']['alphabet'])} characters; rare: "
            + (" ".join(facts["text"]["rare"]) or "none"),
        ),
        (
            "to train",
            clock(facts["train_seconds"]),
            f"{counted(len(job.train), 'utterance')} of {_speakers(facts['train_speakers'])}",
        ),
        ("held out", clock(facts["valid_seconds"]), held),
        *((choice.name, choice.value, choice.reason) for choice in job.plan.choices),
        ("run folder", str(job.run.folder), "resumed" if job.resumed else "new"),
    ]
    console.show(console.table("distilkit finetune-ctc", ("what", "value", "why"), rows))
    for note in base["notes"]:
        console.say(f"model: {note}")
    if job.collection is not None:
        console.left_out(job.collection.skipped, course.listed(job.run.folder, planned))


def _speakers(count: int) -> str:
    from distilkit.wording import counted

    return counted(count, "speaker") if count else "speakers not known"
