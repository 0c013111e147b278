"""Model cards: what a student or a recogniser is, where it comes from, and what was measured."""

import json
from collections.abc import Sequence
from typing import Any

from distilkit import config
from distilkit.audio import clock
from distilkit.encoder import Encoder
from distilkit.students import parameters
from distilkit.tokenizers import Tokenizer


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
    size = parameters(student.model)
    checked = [row for row in rows if "valid" in row]
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: feature-extraction",
        "tags:",
        *(f"- {tag}" for tag in ("hubert", "speech", "audio", "distillation", "distilkit")),
        "---",
        "",
        f"# A {size / 1e6:.2f} M student of {teacher['name']}"
        if teacher
        else f"# A {size / 1e6:.2f} M HuBERT",
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
        *([f"- Teacher: `{teacher['name']}` (format {teacher['format']})."] if teacher else []),
        *(f"- Teacher: {note}." for note in (teacher["notes"] if teacher else [])),
        *(
            [f"- Goes on from `{facts['student']['from']['name']}`."]
            if facts["student"]["from"]
            else []
        ),
        f"- Start: {facts['student']['begins']}.",
        f"- Objective: {objective_text(recipe.objective)}.",
        *([f"- Noise: {noise_text(recipe.noise)}."] if recipe.noise.probability else []),
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
            "Loss per frame on held-out recordings, lower is better (`right`: share of frames, higher "
            "is better):",
            "",
            f"| | step {first['step']} | step {last['step']} |",
            "|---|---|---|",
            *(
                f"| {_part(name)} | {value:.4f} | {last['valid'][name]:.4f} |"
                for name, value in first["valid"].items()
            ),
            "",
            "The loss says how well the student predicts its teacher, not how well it does a task.",
        ]
    elif whole := [row for row in rows if row["loss"] is not None]:
        first, last = whole[0], whole[-1]
        lines.append(
            f"Training loss per frame: {first['loss']:.4f} at step {first['step']}, "
            f"{last['loss']:.4f} at step {last['step']}. Nothing was held out, so how it "
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


def recogniser_card(
    *,
    facts: dict[str, Any],
    recipe: config.CtcRecipe,
    tokenizer: Tokenizer,
    rows: list[dict[str, Any]],
    best: dict[str, Any] | None,
) -> str:
    """The model card of a recogniser, in Markdown with the hub's metadata block.

    Args:
        facts: what `run.json` says.
        recipe: the resolved recipe.
        tokenizer: the recogniser's.
        rows: the lines of `metrics.jsonl`.
        best: the line of the validation whose weights these are; None where nothing was held out.
    """
    base, size, adapted = facts["base"], facts["parameters"], bool(recipe.lora.rank)
    mixed = ", trust_remote_code=True" * (recipe.model.layers == "weighted")
    shares = [
        f"- Text: {text_text(tokenizer.text)}; {len(tokenizer)} tokens.",
        f"- Trained: {training_text(recipe)}, {facts['trained'] / 1e6:.2f} M of {size / 1e6:.2f} M "
        "parameters.",
        f"- Audio: {clock(facts['train_seconds'])} to train ({_people(facts['train_speakers'])}), "
        f"{clock(facts['valid_seconds'])} held out ({_people(facts['valid_speakers'])}).",
        f"- Steps: {rows[-1]['step'] if rows else 0} of {facts['plan']['steps']} in "
        f"{facts['plan']['precision']} on {facts['plan']['device']}, seed {recipe.train.seed}.",
        f"- Made with distilkit {facts['distilkit']}, "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        + ".",
    ]
    use = [
        "```python",
        "from transformers import pipeline",
        "",
        f'recognise = pipeline("automatic-speech-recognition", model="model"{mixed})',
        'recognise({"raw": samples, "sampling_rate": 16_000}, chunk_length_s=30)["text"]',
        "```",
    ]
    measured = ["Nothing was held out, so how it does on other recordings was not measured."]
    if best is not None:
        valid = best["valid"]
        measured = [
            f"On what was held out, decoded greedily, at step {best['step']} (the best, which these "
            "weights are from; so this is a little better than on recordings that had no say in the "
            "choice):",
            "",
            "| word error rate | character error rate |",
            "|---|---|",
            f"| {valid['wer']:.1%} | {valid['cer']:.1%} |",
        ]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: automatic-speech-recognition",
            "tags:",
            *(f"- {tag}" for tag in ("hubert", "speech", "ctc", "distilkit")),
            "---",
            "",
            f"# A {size / 1e6:.2f} M recogniser on {base['name']}",
            "",
            "It writes down what is said in mono 16 kHz audio. Fine-tuned with CTC by distilkit.",
            "",
            *(use if not adapted or facts["merge"] else [_ADAPTER]),
            "",
            "## How it was made",
            "",
            f"- Encoder: `{base['name']}` (format {base['format']}), head: {facts['head']}.",
            *(f"- Encoder: {note}." for note in base["notes"]),
            *shares,
            "",
            "## What was measured",
            "",
            *measured,
            "",
            "## Licence",
            "",
            "The encoder's licence and the rights in the recordings and texts decide what may be done "
            "with this model; distilkit adds no terms of its own.",
            "",
        ]
    )


_ADAPTER = (
    "This is a low-rank adapter (peft) and a head, to be put on the model that base.json names: "
    "`distilkit transcribe FILE --model` with this folder does so."
)


def _people(count: int) -> str:
    return f"{count} speakers" if count else "speakers not known"


def text_text(settings: config.Text) -> str:
    """One line on how text is written."""
    parts = [settings.form, f"{settings.case} case" if settings.case != "keep" else "case kept"]
    parts.append(
        f"punctuation {settings.punctuation.removesuffix('e')}ed".replace("keeped", "kept")
    )
    parts.append("digits spelled" if settings.digits == "spell" else "digits kept")
    return ", ".join(parts)


def training_text(recipe: config.CtcRecipe) -> str:
    """One line on which weights are trained."""
    lora, train = recipe.lora, recipe.train
    if lora.rank:
        whole = {
            "norms and biases": lora.norms,
            "the positional convolution": lora.positions,
            "the conv front end": lora.front_end,
        }
        also = "".join(f", {name}" for name, trained in whole.items() if trained)
        return f"adapters of rank {lora.rank} (LoRA){also} and the head"
    front = " but the conv front end" if recipe.frozen_front_end else ""
    head = f", the head alone for {train.head_fraction:.0%} of the steps" * bool(
        train.head_fraction
    )
    return f"all weights{front}{head}"


def objective_text(settings: config.Objective) -> str:
    """One line on what the student predicts."""
    layers = settings.layers if isinstance(settings.layers, str) else _listed(settings.layers)
    if settings.name == "units":
        source = "MFCC" if settings.features == "mfcc" else f"layers {layers}"
        text = f"`units`, {settings.clusters} clusters of {source}"
    else:
        terms = [
            f"{name} {weight:g}"
            for name, weight in (
                ("L1", settings.l1_weight),
                ("L2", settings.l2_weight),
                (f"{settings.cosine} cosine", settings.cosine_weight),
            )
            if weight
        ]
        text = f"`layerwise`, layers {layers} ({', '.join(terms)})"
    text += ", normalised" * settings.normalise
    if settings.student_layers != "auto":
        text += f", from the student's layers {_listed(settings.student_layers)}"
    if settings.part_seconds != "whole":
        low, high = settings.part_seconds
        text += f", heard in parts of at most {low:g} to {high:g} s"
    if settings.mask_probability:
        text += (
            f", masked ({settings.mask_probability:g} in spans of {settings.mask_frames} frames)"
        )
    return text


def noise_text(settings: config.Noise) -> str:
    """One line on how the student's audio is disturbed."""
    low, high = settings.snr
    text = f"{settings.probability:.0%} of clips, {low:g} to {high:g} dB of noise"
    more = {
        "reverberation": settings.reverberation,
        "band limits": settings.band,
        "other microphones": settings.equaliser,
        "moved voices": settings.voice,
    }
    return ", ".join([text, *(f"{name} in {share:.0%}" for name, share in more.items() if share)])


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def _part(name: str) -> str:
    """`l1_4` as `l1, layer 4`."""
    term, _, layer = name.partition("_")
    return f"{term}, layer {layer}" if layer.isdigit() else name.replace("_", ", ")


def _sizes(student: Encoder, teacher: dict[str, Any] | None) -> list[str]:
    size = parameters(student.model)
    normalised = "yes" if student.normalise else "no"
    if teacher is None:
        return [
            "| | |",
            "|---|---|",
            f"| parameters | {size / 1e6:.2f} M |",
            f"| transformer layers | {student.depth} |",
            f"| waveform normalised | {normalised} |",
        ]
    return [
        "| | student | teacher |",
        "|---|---|---|",
        f"| parameters | {size / 1e6:.2f} M | {teacher['parameters'] / 1e6:.2f} M |",
        f"| share of the teacher | {size / teacher['parameters']:.0%} | 100% |",
        f"| transformer layers | {student.depth} | {teacher['layers']} |",
        f"| waveform normalised | {normalised} | the same |",
    ]
