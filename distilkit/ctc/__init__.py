"""Fine-tuning an encoder to write down what is said, with CTC: all its weights, or adapters (LoRA).

`prepare` looks at everything and decides everything; `train` does it, a generator over optimizer
steps; `finetune` is both in one call.
"""

import importlib.metadata
import shlex
import tomllib
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from accelerate import Accelerator
from lhotse import MonoCut
from torch import Tensor, nn

from distilkit import (
    __version__,
    cards,
    config,
    data,
    kernels,
    leftovers,
    loop,
    plan,
    recognisers,
    report,
    resuming,
    students,
    teachers,
    tokenizers,
    training,
    trials,
)
from distilkit.audio import SAMPLE_RATE
from distilkit.ctc.loss import MEASURED, loss_function, told
from distilkit.ctc.trainee import Trainee, assemble, groups
from distilkit.ctc.usable import fitting
from distilkit.data import Skipped, splits, transcripts
from distilkit.encoder import digest_of
from distilkit.errors import DistilkitError
from distilkit.files import replacing
from distilkit.hub import default_model
from distilkit.noise import recordings
from distilkit.plan import Measured, Plan
from distilkit.recognisers import BASE
from distilkit.runs import Run
from distilkit.teachers import Checkpoint
from distilkit.tokenizers import Tokenizer
from distilkit.training import Rows

DEFAULT_RECIPE = "ctc"
PACKAGES = ("torch", "torchaudio", "transformers", "accelerate", "peft", "lhotse", "jiwer")
BEST = "best.safetensors"
TOKENIZER = "tokenizer"  # the run's own copy
SILENT = 0.95  # share of held-out utterances without a word from which a model counts as collapsed


@dataclass(frozen=True, kw_only=True)
class Job:
    """A fine-tuning that is ready to run."""

    run: Run
    recipe: config.CtcRecipe
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    train: Sequence[MonoCut]
    valid: Sequence[MonoCut]
    plan: Plan
    resumed: bool
    facts: dict[str, Any]  # what run.json says
    collection: data.Collection | None  # None when resumed
    taken: Measured | None = None  # what a few real steps took, where they were measured


def prepare(
    transcribed: Sequence[str | Path],
    *,
    tokenizer: Path | None = None,
    model: str | None = None,
    out: Path | None = None,
    recipe: config.CtcRecipe | None = None,
    merge: bool = False,
    resume: bool = False,
    track: data.Tracker = data.untracked,
) -> Job:
    """Read recordings and text, load the model, decide what follows; writes nothing but decoded copies.

    Args:
        transcribed: folders or manifests of any layout in `transcripts.LAYOUTS`; may be empty when resuming.
        tokenizer: a folder that `distilkit tokenizer` made, or that of another recogniser.
        model: whatever `teachers.load` takes; the newest student under `runs` when None.
        out: the run folder; `runs/NAME-ctc` when None.
        recipe: settings; the built-in `ctc` when None, a resumed run's own when resuming.
        merge: of adapters, write the merged model too.
        resume: go on with the run in `out` (the newest run when None), if there is one.
        track: wraps an iterable to show progress.

    Raises:
        DistilkitError: whatever the user has to mend before training can start.
    """
    data.tidy_cache()
    settings = recipe or config.load_recipe(DEFAULT_RECIPE, kind=config.CtcRecipe)
    run = training.place(transcribed, out, resume, kind="finetune-ctc", suffix="-ctc")
    if resume and run.exists:
        with training.reading(run):
            return _reopen(run, transcribed, merge)
    hint = "distilkit finetune-ctc DATA --tokenizer DIR"
    if not transcribed:
        raise DistilkitError(f"`{run.folder}` holds no run to resume", hint)
    if tokenizer is None:
        raise DistilkitError("no tokenizer given", "distilkit tokenizer DATA --out DIR makes one")
    leftovers.tidy(run.folder)
    run.check_free()
    tokens = tokenizers.load(tokenizer)
    name = model or default_model()
    _, checkpoint = teachers.load(name)
    if settings.noise.probability:
        recordings(settings.noise.folder)  # refuses what cannot be used
    made = assemble(checkpoint, tokens, settings)  # refuses what does not fit
    read = transcripts.read(transcribed, settings.data, track=track)
    usable, unusable = fitting(read.cuts, tokens, settings)
    train_cuts, valid_cuts = splits.hold_out(usable, settings.data, settings.train.seed)
    train_who, valid_who = splits.who(train_cuts), splits.who(valid_cuts)
    collection = data.Collection(
        train=train_cuts,
        valid=valid_cuts,
        skipped=[*read.skipped, *unusable],
        recordings=len({recording for _, recording in (*train_who, *valid_who)}),
        formats={},
    )
    longest = max(data.samples(usable)) / SAMPLE_RATE / min(settings.augment.speeds)
    decided = plan.decide(settings, made.recogniser.encoder, None, train_cuts, longest)
    facts = {
        "kind": "finetune-ctc",
        "distilkit": __version__,
        "data": [str(item) for item in transcribed],
        "layouts": list(read.layouts),
        "recordings": collection.recordings,
        "train_seconds": round(collection.train_seconds, 3),
        "valid_seconds": round(collection.valid_seconds, 3),
        "train_speakers": len({speaker for speaker, _ in train_who} - {""}),
        "valid_speakers": len({speaker for speaker, _ in valid_who} - {""}),
        "skipped": dict(collection.reasons()),
        "text": _text_facts(usable, collection.skipped, tokens),
        "base": {
            **checkpoint.facts(name),
            "parameters": students.parameters(checkpoint.model),
            "notes": [note for note in checkpoint.notes if "left out the head" not in note],
        },
        "head": made.head,
        "trained": made.trained,
        "parameters": students.parameters(made.recogniser.model),
        "tokenizer": {
            "folder": str(tokenizer),
            "tokens": len(tokens),
            "fingerprint": tokenizers.fingerprint(tokens),
        },
        "merge": merge,
        "plan": asdict(decided),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    job = Job(
        run=run,
        recipe=settings,
        checkpoint=checkpoint,
        tokenizer=tokens,
        train=train_cuts,
        valid=valid_cuts,
        plan=decided,
        resumed=False,
        facts=facts,
        collection=collection,
    )
    return _in_time(_settled(job, longest), track)


def _in_time(job: Job, track: data.Tracker) -> Job:
    """The job with no more steps than fit into the time that may be taken."""
    measured = job

    def taken(planned: plan.Plan) -> plan.Measured:
        nonlocal measured
        measured = measure(replace(measured, plan=planned), track)
        assert measured.taken is not None
        return measured.taken

    decided = trials.in_time(job.plan, job.recipe.train, taken)
    return replace(measured, plan=decided, facts=job.facts | {"plan": asdict(decided)})


def _settled(job: Job, longest: float) -> Job:
    """The job with what fits into memory and what is quickest measured, where that can be done."""
    if job.plan.device != "cuda":
        return job
    accelerator = loop.accelerator(job.plan.device, job.plan.precision)

    def likely(planned: plan.Plan) -> training.Parts:
        return parts(replace(job, plan=planned), accelerator)

    decided = trials.settle(job.recipe, job.plan, likely, accelerator, job.train, longest)
    return replace(job, plan=decided, facts=job.facts | {"plan": asdict(decided)})


def _text_facts(
    cuts: Sequence[MonoCut], skipped: Sequence[Skipped], tokenizer: Tokenizer
) -> dict[str, Any]:
    """The words and characters that are learned: of normalised text."""
    found = transcripts.facts(cuts, skipped, tokenizer.normalise)
    return {
        "words": found.words,
        "alphabet": dict(sorted(found.alphabet.items())),
        "rare": found.rare,
        "languages": dict(found.languages),
    }


def train(job: Job, stop: Callable[[], bool] = lambda: False) -> Iterator[loop.Step]:
    """Run a job, yielding each optimizer step; the recogniser is written when training has ended.

    Args:
        job: from `prepare`.
        stop: asked after every step; when it says True, a checkpoint is saved and the generator
            ends before the last step.

    Raises:
        DistilkitError: the run is in use, its files are damaged, or a loss is not finite.
    """
    run, recipe = job.run, job.recipe
    decided, accelerator = training.agreed(job.plan)
    job = replace(job, plan=decided, facts=job.facts | {"plan": asdict(decided)})
    if accelerator.is_main_process and not job.resumed:
        assert job.collection is not None
        run.create(
            {
                "recipe.toml": config.dump_recipe(recipe),
                "audio.jsonl.gz": data.dump_windows(job.collection),
                "skipped.tsv": data.dump_skipped(job.collection.skipped),
                "run.json": cards.json_text(job.facts),
                **_tokenizer_files(job.tokenizer, job.checkpoint.normalise),
            }
        )

    def validated(module: nn.Module, rows: Rows) -> None:
        assert isinstance(module, Trainee)
        if best(rows) == rows[-1]:
            _keep(module, run.folder / BEST)

    def enough(rows: Rows) -> bool:
        checks = [row for row in rows if "valid" in row]
        if any(row["valid"].keys() != MEASURED for row in checks):
            raise ValueError("a validation of something else")
        chosen, patience = best(rows), recipe.train.patience
        since = 0 if chosen is None else len(checks) - 1 - checks.index(chosen)
        return bool(patience) and since >= patience

    with training.holding(run, accelerator):
        with training.gone_on(run, job.resumed):
            made = parts(job, accelerator)
            if job.resumed:
                _card(job)()  # at the end it would be late to find that it cannot be written
        done = yield from training.steps(
            run,
            recipe,
            job.plan,
            made,
            accelerator,
            train=job.train,
            valid=job.valid,
            resumed=job.resumed,
            stop=stop,
            told=told,
            validated=validated,
            enough=enough,
            report=report.Report(run).update,
        )
        if done is not None and accelerator.is_main_process:
            assert isinstance(done, Trainee)
            _finish(job, done)


def finetune(transcribed: Sequence[str | Path], **options: Any) -> Path:
    """Fine-tune on recordings with text and return the recogniser's folder; options as for `prepare`.

    Raises:
        DistilkitError: as `prepare` and `train`.
    """
    job = prepare(transcribed, **options)
    for _ in train(job):
        pass
    report.complete(job.run)
    assert job.run.result is not None
    return job.run.result


def parts(job: Job, accelerator: Accelerator) -> training.Parts:
    """What is trained, its optimizer, and the loss of a micro-batch."""
    recipe, device = job.recipe, accelerator.device
    trainee = assemble(job.checkpoint, job.tokenizer, recipe)
    if job.plan.gradient_checkpointing:
        trainee.model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    if device.type == "cpu" and job.plan.precision == "bf16":
        trainee.model.set_attn_implementation("eager")  # the fused one goes back slowly there
    kernels.apply(trainee.recogniser.encoder.model, job.plan.kernels)
    noises = recordings(recipe.noise.folder) if recipe.noise.probability else lambda _: None
    texts = {
        cut.id: job.tokenizer.normalise(cut.supervisions[0].text)
        for cut in (*job.train, *job.valid)
    }
    chosen = groups(trainee, recipe, job.plan.steps)
    return training.Parts(
        module=trainee,
        optimizer=loop.optimizer(trainee, recipe.train, chosen),
        loss_of=loss_function(job.tokenizer, recipe, texts, noises, device),
        given=frozenset(dict(trainee.named_parameters()).keys() - trainee.weights().keys()),
    )


def measure(job: Job, track: data.Tracker = data.untracked) -> Job:
    """The job with what a few real steps of it take; of them nothing is kept.

    Args:
        job: from `prepare`.
        track: wraps an iterable to show progress.
    """
    accelerator = loop.accelerator(job.plan.device, job.plan.precision)
    taken = trials.measure(
        job.recipe, job.plan, parts(job, accelerator), accelerator, job.train, track
    )
    trials.forget()
    return replace(job, taken=taken)


def disk_bytes(job: Job) -> int:
    """Bytes that the run will write."""
    whole, trained = int(job.facts["parameters"]), int(job.facts["trained"])
    result = trained if job.recipe.lora.rank and not job.facts["merge"] else whole
    return plan.disk(result, trained) + 4 * 2 * trained  # the best weights, twice while they change


def best(rows: Rows) -> dict[str, Any] | None:
    """The validation with the fewest words wrong, of equals the one with the lowest loss."""
    checks = [row for row in rows if "valid" in row]
    return min(checks, key=lambda row: (row["valid"]["wer"], row["valid"]["loss"]), default=None)


def diagnosis(rows: Rows, plan: plan.Plan, recipe: config.CtcRecipe) -> tuple[str, str] | None:
    """What is wrong when the last validations hold no words, and what to type; None when all is well.

    CTC first learns to say nothing at all, and leaves that plateau only after many steps.
    """
    checks = [row for row in rows if "valid" in row][-2:]
    if not checks or any(row["valid"]["empty"] < SILENT for row in checks):
        return None
    last = checks[-1]
    problem = (
        f"the model says nothing: {last['valid']['empty']:.0%} of the held-out transcripts are empty, "
        f"{last['valid']['blank']:.0%} of the frames are blank, at step {last['step']} of {plan.steps}"
    )
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    first, latest = mean(losses[:20]), mean(losses[-20:])
    if plan.steps < 1000 or latest < 0.9 * first:
        return problem, f"--steps {3 * plan.steps}: it is still on CTC's plateau of blanks"
    name, rate = recipe.peak_rate
    return problem, (
        f"--set {name}={3 * rate:g}; where that does not help, listen whether the texts "
        "belong to the recordings"
    )


def _keep(trainee: Trainee, path: Path) -> None:
    weights = {name: value.detach().cpu().contiguous() for name, value in trainee.weights().items()}
    with replacing(path) as beside:
        leftovers.save_tensors(weights, beside, {"digest": digest_of(weights)})


def _kept(path: Path, wanted: Set[str]) -> dict[str, Tensor]:
    """The best weights.

    Raises:
        DistilkitError: they are damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            told = (file.metadata() or {}).get("digest")
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if found.keys() != wanted:
            raise ValueError("other weights than are trained")
        if told is not None and told != digest_of(found):
            raise ValueError("its numbers are not those that were written")
    except (SafetensorError, ValueError, OSError) as error:
        hint = f"rm {shlex.quote(str(path))}, and --resume: the last step's weights are taken then"
        raise DistilkitError(f"`{path}` is damaged: {error}", hint) from error
    return found


def _card(job: Job) -> Callable[..., str]:
    return partial(
        cards.recogniser_card,
        facts=job.facts,
        recipe=job.recipe,
        tokenizer=job.tokenizer,
        rows=(rows := job.run.rows("metrics.jsonl")),
        speed=job.run.rows("speed.jsonl"),
        best=best(rows),
    )


def _finish(job: Job, trainee: Trainee) -> None:
    folder = job.run.folder
    if (folder / BEST).is_file():
        kept = _kept(folder / BEST, trainee.weights().keys())
        trainee.load_state_dict(kept, strict=False)  # what is frozen is as it was
    trainee.eval()
    write = _card(job)
    (adapters,) = trainee.adapters
    made, base = trainee.recogniser, job.facts["base"]
    if adapters is None:
        with replacing(folder / "model") as beside:
            recognisers.save(made, beside, write())
        return
    if not (folder / "adapter").is_dir():
        with replacing(folder / "adapter") as beside:
            for told in adapters.peft_config.values():  # peft itself would say where the model lies
                told.base_model_name_or_path = cards.public(base["name"], base["source"])
            adapters.save_pretrained(beside, save_embedding_layers=False)
            made.model.config.save_pretrained(beside)
            tokenizers.save(made.tokenizer, beside, made.normalise)
            found = {**base, "layers": job.recipe.model.layers}
            (beside / BASE).write_text(cards.json_text(found), encoding="utf-8")
            (beside / cards.CARD).write_text(write(adapter=True), encoding="utf-8")
    if job.facts["merge"]:
        merged = replace(made, model=adapters.merge_and_unload())
        with replacing(folder / "model") as beside:
            recognisers.save(merged, beside, write())


def _tokenizer_files(tokenizer: Tokenizer, normalise: bool) -> dict[str, bytes]:
    with leftovers.temporary() as folder:
        tokenizers.save(tokenizer, folder, normalise)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {f"{TOKENIZER}/{path.relative_to(folder)}": path.read_bytes() for path in files}


def _reopen(run: Run, transcribed: Sequence[str | Path], merge: bool) -> Job:
    facts = run.read()
    training.check_kind(run, "finetune-ctc")
    training.check_inputs(run, transcribed, facts["data"])
    settings = config.parse_recipe(
        tomllib.loads((run.folder / "recipe.toml").read_text(encoding="utf-8")),
        str(run.folder),
        config.CtcRecipe,
    )
    if merge and not settings.lora.rank:
        raise DistilkitError(
            f"`--merge` without adapters: `{run.folder}` trains all weights", "leave it out"
        )
    facts = facts | {"merge": facts["merge"] or merge}
    merged = (run.folder / "model").is_dir()
    if run.finished and (merged or not facts["merge"]):
        training.tidied(run)
        raise DistilkitError(
            f"`{run.folder}` is finished: its recogniser is in `{run.result}`",
            "distilkit finetune-ctc DATA --tokenizer DIR --out DIR for another run",
        )
    _, checkpoint = teachers.again(facts["base"], f"`{run.folder}` began with")
    windows, valid = data.load_windows(run.folder / "audio.jsonl.gz")
    resuming.check_windows(facts, windows, valid)
    return Job(
        run=run,
        recipe=settings,
        checkpoint=checkpoint,
        tokenizer=resuming.tokenizer(run.folder / TOKENIZER, facts["tokenizer"]),
        train=windows,
        valid=valid,
        plan=resuming.decided(facts["plan"]),
        resumed=True,
        facts=facts,
        collection=None,
    )
