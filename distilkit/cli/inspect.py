"""`distilkit inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distilkit.cli import completion, course, options

if TYPE_CHECKING:
    from distilkit.runs import Run


def inspect(
    path: Annotated[
        str,
        typer.Argument(
            help="A checkpoint, a run, a tokenizer, audio, with text or without, a hub id.",
            autocompletion=completion.models,
        ),
    ],
    text_column: options.TextColumn = "",
    json: options.Json = False,
) -> None:
    """Say what a checkpoint, a run or a folder of audio is, without changing anything.

    `distilkit inspect ./my_audio`
    """
    from distilkit.errors import DistilkitError
    from distilkit.files import MALFORMED
    from distilkit.runs import Run

    try:
        _show(path, text_column, json)
    except MALFORMED as error:
        if not Run(Path(path)).exists:
            raise
        said = f"`{error.args[0]}` is missing" if isinstance(error, KeyError) else str(error)
        again = "start a new run with another --out"
        raise DistilkitError(f"what `{path}` holds is damaged: {said}", again) from error


def _show(path: str, text_column: str, json: bool) -> None:
    from distilkit.cli import console
    from distilkit.data.sources import WRONG

    facts = (
        _run(path)
        or _transcribed(path, text_column)
        or _audio(path)
        or _exported(path)
        or _recogniser(path)
        or _model(path)
    )
    left_out = facts.get("files left out", [])
    if json:
        console.document(facts)
    else:
        rows = [_row(key, value) for key, value in facts.items() if key != "files left out"]
        console.show(console.table("", ("what", "value"), rows), to_result=True)
        for item in left_out:
            console.result(f"left out {item['path']}: {item['reason']}")
    if any(item["kind"] in WRONG for item in left_out):
        raise typer.Exit(1)


NAMES = {  # of numbers that people read as times and sizes
    "hours": "audio",
    "train seconds": "to train",
    "held-out seconds": "held out",
    "seconds a recording": "a recording",
    "megabytes": "size",
    "milliseconds for 10 s": "for 10 s",
}


def _row(key: str, value: Any) -> tuple[str, str]:
    """A fact as people read it: times and sizes with their units."""
    from distilkit.audio import clock
    from distilkit.wording import size

    if key == "milliseconds for 10 s":
        value = {name: f"{number:,.1f} ms" for name, number in value.items()}
    elif key == "megabytes":
        value = size(value * 1e6)
    elif key == "hours":
        value = clock(value * 3600)
    elif "seconds" in key.split():
        value = {k: clock(v) for k, v in value.items()} if isinstance(value, dict) else clock(value)
    return NAMES.get(key, key), _text(value)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(number)}" for name, number in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _run(name: str) -> dict[str, Any] | None:
    from distilkit.runs import Run

    run = Run(Path(name))
    if not run.exists:
        return None
    facts, rows = run.read(), run.rows("metrics.jsonl")
    valid = [row for row in rows if "valid" in row]
    whole = [row for row in rows if row["loss"] is not None]
    loss = {f"step {row['step']:,}": round(row["loss"], 4) for row in whole[:1] + whole[-1:]}
    if facts["kind"] == "finetune-ctc":
        return {
            "is": "a fine-tuning run",
            **_state(run),
            "steps": _steps(rows, facts),
            "model": facts["base"]["name"],
            "tokens": facts["tokenizer"]["tokens"],
            "data": facts["data"],
            "train seconds": facts["train_seconds"],
            "held-out seconds": facts["valid_seconds"],
            "left out": facts["skipped"],
            "loss": loss,
            "held-out words wrong": {
                f"step {row['step']:,}": f"{row['valid']['wer']:.1%}"
                for row in valid[:1] + valid[-1:]
            },
            "versions": facts["versions"],
        }
    return {
        "is": "a distillation run",
        **_state(run),
        "steps": _steps(rows, facts),
        "teacher": facts["teacher"]["name"] if facts["teacher"] else "none",
        "audio": facts["audio"],
        "train seconds": facts["train_seconds"],
        "held-out seconds": facts["valid_seconds"],
        "left out": facts["skipped"],
        "loss": loss,
        "held-out loss": {
            f"step {row['step']:,}": round(row["valid"]["loss"], 4)
            for row in valid[:1] + valid[-1:]
        },
        "versions": facts["versions"],
    }


def _state(run: "Run") -> dict[str, Any]:
    """Whether it is done, and where its result or what goes on with it is."""
    if run.result is None:
        return {"state": "not finished", "go on with": course.resuming(run.kind, run.folder)}
    return {"state": "finished", "result": str(run.result)}


def _steps(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    return f"{rows[-1]['step'] if rows else 0:,} of {facts['plan']['steps']:,}"


def _exported(name: str) -> dict[str, Any] | None:
    from distilkit import exported
    from distilkit.files import digest
    from distilkit.hub import is_exported

    path = Path(name)
    if not is_exported(path):
        return None
    facts = exported.read(path)
    whole = (path / exported.MODEL).is_file() and digest(path / exported.MODEL)
    return {
        "is": f"an exported {facts['kind']}",
        "made of": facts["source"]["name"],
        "made by": facts["made_by"],
        "weights": facts["precision"],
        "megabytes": round(facts["bytes"] / 1e6, 1),
        "parameters": f"{facts['parameters'] / 1e6:.2f} M",
        "layers": facts["layers"],
        "width": facts["width"],
        "file": "as it was exported"
        if whole == facts["sha256"]
        else "damaged, or another one in its place",
        "milliseconds for 10 s": facts.get("milliseconds", {}),
        "on": facts.get("processor", ""),
    }


def _audio(name: str) -> dict[str, Any] | None:
    from collections import Counter
    from dataclasses import asdict

    from distilkit import data
    from distilkit.audio import SAMPLE_RATE, SUFFIXES
    from distilkit.cli import console
    from distilkit.config import Data
    from distilkit.data import archives

    path = Path(name)
    if path.is_dir() and not any(item.audio for item in data.find([path], unpack=True)):
        return None
    known = {*SUFFIXES, archives.SUFFIX}
    if not path.exists() or (path.is_file() and path.suffix.lower() not in known):
        return None
    clips, skipped = data.survey([path], Data(), track=console.track)
    lengths = [clip.samples / SAMPLE_RATE for clip in clips]
    return {
        "is": "audio",
        "recordings": len(clips),
        "hours": round(sum(lengths) / 3600, 6),
        "windows": sum(len(clip.windows) for clip in clips),
        "seconds a recording": {
            "least": round(min(lengths, default=0), 2),
            "most": round(max(lengths, default=0), 2),
        },
        "formats": dict(Counter(clip.source.suffix.lower() for clip in clips).most_common()),
        "left out": dict(Counter(item.kind for item in skipped)),
        "files left out": [asdict(item) for item in skipped],
    }


def _transcribed(name: str, text_column: str) -> dict[str, Any] | None:
    """What recordings with text hold; None where there is no text."""
    from dataclasses import asdict

    from distilkit.cli import console
    from distilkit.config import Transcribed
    from distilkit.data import tables, transcripts
    from distilkit.data.layouts import detect
    from distilkit.data.sources import NO_TEXT, source
    from distilkit.errors import DistilkitError

    path = Path(name)
    if not path.exists() or (path.is_file() and not path.suffix):
        return None
    if detect(source(path)) is None:
        if path.is_file() and path.suffix.lower() in (*tables.TABLES, ".txt"):
            columns = tables.table(path)[0] if path.suffix.lower() in tables.TABLES else []
            there = f": its columns are {tables.quoted(columns)}" if columns else ""
            raise DistilkitError(
                f"`{path}` is text, and names no recordings{there}",
                f"distilkit inspect {path.parent}, for the folder",
            )
        return None
    settings = Transcribed(text_column=text_column)  # what finetune-ctc would take
    read = transcripts.survey([path], settings, track=console.track)
    if not read.cuts and {item.kind for item in read.skipped} == {NO_TEXT}:
        return None  # shards or manifests of audio alone
    found = transcripts.facts(read.cuts, read.skipped)
    return {
        "is": f"recordings with text ({read.layouts[0]})",
        "counted": "what `finetune-ctc` can learn; `distill` hears recordings without text too",
        "recordings": len({cut.recording.id for cut in read.cuts}),
        "utterances": found.utterances,
        "hours": round(found.hours, 6),
        "speakers": found.speakers or "not known",
        "languages": dict(found.languages),
        "words": found.words,
        "alphabet": "".join(sorted(found.alphabet)),
        "rare characters": {char: found.alphabet[char] for char in found.rare},
        "missing files": found.missing_files,
        "empty texts": found.empty_texts,
        "left out": dict(found.left_out),
        "files left out": [asdict(item) for item in read.skipped],
    }


def _recogniser(name: str) -> dict[str, Any] | None:
    """A recogniser, adapters or a tokenizer in a folder; None where it is none of them."""
    from distilkit import recognisers, teachers, tokenizers
    from distilkit.cards import text_text
    from distilkit.convert import describe
    from distilkit.encoder import FAMILIES
    from distilkit.teachers.huggingface import configuration

    path = Path(name)
    if not any((path / file).is_file() for file in tokenizers.FILES):
        return None
    made = tokenizers.load(path)
    tokens = {"tokens": len(made), "text is": text_text(made.text)}
    if (path / recognisers.ADAPTER).is_file():
        told = recognisers.base_of(path)
        return {"is": "adapters of a recogniser", "belong to": told["name"], **tokens}
    if not (path / "config.json").is_file():
        return {"is": "a tokenizer", **tokens}
    if not str((configuration(path).architectures or [""])[0]).endswith("ForCTC"):
        return None
    encoder, checkpoint = teachers.load(name)
    facts = describe(encoder, checkpoint)
    kept = [note for note in facts.pop("notes") if "left out the head" not in note]
    family = FAMILIES[checkpoint.family]
    return facts | {"is": f"a recogniser: {family} and a CTC head", **tokens, "notes": kept}


def _model(name: str) -> dict[str, Any]:
    from distilkit import teachers
    from distilkit.convert import describe

    return describe(*teachers.load(name))
