"""Model cards: what a student is, where it comes from, and what was measured."""

import json
from typing import Any

from distilkit import config
from distilkit.encoder import Encoder
from distilkit.plan import clock
from distilkit.students import parameters


def json_text(value: Any) -> str:
    """JSON as the files of a run hold it."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def card(
    *, facts: dict[str, Any], recipe: config.Recipe, student: Encoder, rows: list[dict[str, Any]]
) -> str:
    """The model card of a distilled student, in Markdown with the hub's metadata block.

    Args:
        facts: what `run.json` says.
        recipe: the resolved recipe.
        student: the trained student.
        rows: the lines of `metrics.jsonl`.
    """
    teacher = facts["teacher"]
    size, teacher_size = parameters(student.model), teacher["parameters"]
    layers = ", ".join(str(layer) for layer in recipe.objective.layers)
    checked = [row for row in rows if "valid" in row]
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: feature-extraction",
        "tags:",
        *(f"- {tag}" for tag in ("hubert", "speech", "audio", "distillation", "distilkit")),
        "---",
        "",
        f"# A {size / 1e6:.2f} M student of {teacher['name']}",
        "",
        "A speech encoder distilled with distilkit. It turns mono 16 kHz audio into 50 vectors of "
        f"{student.width} numbers a second. It has no tokenizer and does not transcribe.",
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
        "| | student | teacher |",
        "|---|---|---|",
        f"| parameters | {size / 1e6:.2f} M | {teacher_size / 1e6:.2f} M |",
        f"| share of the teacher | {size / teacher_size:.0%} | 100% |",
        f"| transformer layers | {student.depth} | {teacher['layers']} |",
        f"| waveform normalised | {'yes' if student.normalise else 'no'} | the same |",
        "",
        "## How it was made",
        "",
        f"- Teacher: `{teacher['name']}` (format {teacher['format']}).",
        *(f"- Teacher: {note}." for note in teacher["notes"]),
        f"- Objective: `{recipe.objective.name}`, layers {layers} "
        f"(L1 {recipe.objective.l1_weight:g}, log-sigmoid cosine {recipe.objective.cosine_weight:g}).",
        f"- Audio: {clock(facts['train_seconds'])} to train, {clock(facts['valid_seconds'])} held "
        f"out, from {facts['recordings']} recordings.",
        f"- Steps: {facts['plan']['steps']} in {facts['plan']['precision']} on "
        f"{facts['plan']['device']}, seed {recipe.train.seed}.",
        f"- Made with distilkit {facts['distilkit']}, "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        + ".",
        "",
        "## What was measured",
        "",
    ]
    if checked:
        first, last = checked[0], checked[-1]
        lines += [
            "Loss per frame on held-out recordings, lower is better:",
            "",
            f"| | step {first['step']} | step {last['step']} |",
            "|---|---|---|",
            *(
                f"| {name.replace('_', ', layer ')} | {value:.4f} | {last['valid'][name]:.4f} |"
                for name, value in first["valid"].items()
            ),
            "",
            "The loss says how well the student predicts its teacher, not how well it does a task.",
        ]
    elif rows:
        lines.append(
            f"Training loss per frame: {rows[0]['loss']:.4f} at step {rows[0]['step']}, "
            f"{rows[-1]['loss']:.4f} at step {rows[-1]['step']}. Nothing was held out, so how it "
            "does on new recordings was not measured."
        )
    lines += [
        "",
        "## Licence",
        "",
        "The teacher's licence and the rights in the recordings decide what may be done with this "
        "model; distilkit adds no terms of its own.",
        "",
    ]
    return "\n".join(lines)
