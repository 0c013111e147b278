"""The card of a distilled student, or of a HuBERT that was pre-trained."""

from collections.abc import Mapping, Sequence
from typing import Any

from distilkit import config
from distilkit.audio import clock
from distilkit.cards.origin import head, hub_id, made_with, public, terms, took
from distilkit.cards.said import noise_text, objective_text
from distilkit.encoder import Encoder
from distilkit.students import parameters
from distilkit.wording import counted, size

Rows = Sequence[Mapping[str, Any]]


def student_card(
    *,
    facts: Mapping[str, Any],
    recipe: config.Recipe,
    student: Encoder,
    rows: Rows,
    speed: Rows,
) -> str:
    """The model card of a student, in Markdown with the hub's metadata block.

    Args:
        facts: what `run.json` says.
        recipe: the resolved recipe.
        student: the trained student.
        rows: the lines of `metrics.jsonl`.
        speed: those of `speed.jsonl`.
    """
    teacher, begun = facts["teacher"], facts["student"]["from"]
    millions = f"{parameters(student.model) / 1e6:.2f} M"
    called = public(teacher["name"], teacher["source"]) if teacher else ""
    base = hub_id(teacher["name"], teacher["source"]) if teacher else None
    measured = _measured(rows)
    return "\n".join(
        [
            *head(
                library="transformers",
                pipeline="feature-extraction",
                tags=["hubert", "speech", "audio", "distillation"],
                base=base,
            ),
            f"# A {millions} student of {called}" if teacher else f"# A {millions} HuBERT",
            "",
            f"A speech encoder {'distilled' if teacher else 'pre-trained'} with distilkit. It turns "
            f"mono 16 kHz audio into 50 vectors of {student.width} numbers a second. "
            "It has no tokenizer and does not transcribe.",
            "",
            "```python",
            "from transformers import AutoFeatureExtractor, AutoModel",
            "",
            'extractor = AutoFeatureExtractor.from_pretrained("student")',
            'model = AutoModel.from_pretrained("student").eval()',
            'inputs = extractor(samples, sampling_rate=16_000, return_tensors="pt")',
            "frames = model(**inputs).last_hidden_state  # (1, T, D)",
            "```",
            "",
            "## What it is",
            "",
            *_sizes(student, teacher),
            "",
            "## How it was made",
            "",
            *([f"- Teacher: `{called}` (format {teacher['format']})."] if teacher else []),
            *(f"- Teacher: {note}." for note in (teacher["notes"] if teacher else [])),
            *([f"- Goes on from `{_begun(begun)}`."] if begun else []),
            f"- Start: {facts['student']['begins']}.",
            f"- Objective: {objective_text(recipe.objective)}.",
            *([f"- Noise: {noise_text(recipe.noise)}."] if recipe.noise.probability else []),
            f"- Audio: {clock(facts['train_seconds'])} to train, {clock(facts['valid_seconds'])} held "
            f"out, from {counted(facts['recordings'], 'recording')}.",
            f"- Steps: {facts['plan']['steps']:,} in {facts['plan']['precision']} on "
            f"{facts['plan']['device']}, seed {recipe.train.seed}.",
            *took(rows, speed),
            made_with(facts),
            "",
            *(["## What was measured", "", *measured, ""] if measured else []),
            *terms(
                "The teacher's licence and the rights in the recordings decide"
                if teacher
                else "The rights in the recordings decide"
            ),
        ]
    )


def _begun(told: Mapping[str, Any]) -> str:
    """The student that was gone on with; runs of older versions do not say where it lay."""
    return public(told["name"], told.get("source", told["name"]))


def _measured(rows: Rows) -> list[str]:
    """The first and the last loss on what was held out, else of training."""
    checked = [row for row in rows if "valid" in row]
    if checked:
        first, last = checked[0], checked[-1]
        return [
            "Loss per frame on held-out recordings, lower is better (`right`: share of frames, higher "
            "is better):",
            "",
            f"| | step {first['step']:,} | step {last['step']:,} |",
            "|---|---:|---:|",
            *(
                f"| {_part(name)} | {value:.4f} | {last['valid'][name]:.4f} |"
                for name, value in first["valid"].items()
                if name in last["valid"]
            ),
            "",
            "The loss says how well the student predicts its teacher, not how well it does a task.",
        ]
    whole = [row for row in rows if row["loss"] is not None]
    if not whole:
        return []
    first, last = whole[0], whole[-1]
    return [
        f"Training loss per frame: {first['loss']:.4f} at step {first['step']:,}, {last['loss']:.4f} at "
        f"step {last['step']:,}. Nothing was held out, so how it does on new recordings was not measured."
    ]


def _part(name: str) -> str:
    """`l1_4` as `l1, layer 4`."""
    term, _, layer = name.partition("_")
    return f"{term}, layer {layer}" if layer.isdigit() else name.replace("_", ", ")


def _sizes(student: Encoder, teacher: Mapping[str, Any] | None) -> list[str]:
    own = parameters(student.model)
    stored = sum(weight.numel() for weight in student.model.state_dict().values())
    rows = {
        "parameters": f"{own / 1e6:.2f} M",
        "weights in fp32": size(4 * stored),
        "transformer layers": str(student.depth),
        "waveform normalised": "yes" if student.normalise else "no",
    }
    if teacher is None:
        return ["| | |", "|---|---:|", *(f"| {name} | {cell} |" for name, cell in rows.items())]
    theirs = {
        "parameters": f"{teacher['parameters'] / 1e6:.2f} M",
        "weights in fp32": size(4 * teacher["parameters"]),
        "transformer layers": str(teacher["layers"]),
        "waveform normalised": "the same",
    }
    return [
        "| | student | teacher |",
        "|---|---:|---:|",
        *(f"| {name} | {cell} | {theirs[name]} |" for name, cell in rows.items()),
        f"| share of the teacher's parameters | {own / teacher['parameters']:.1%} | 100% |",
    ]
