"""The card of a recogniser, or of adapters that make one."""

from collections.abc import Mapping, Sequence
from typing import Any

from distilkit import config
from distilkit.audio import clock
from distilkit.cards.origin import head, hub_id, made_with, public, terms, took
from distilkit.cards.said import text_text, training_text
from distilkit.tokenizers import Tokenizer
from distilkit.wording import counted, size

ADAPTER = (
    "This is a low-rank adapter (peft) and a head, to be put on the model that base.json names: "
    "`distilkit transcribe FILE --model` with this folder does so."
)


def recogniser_card(
    *,
    facts: Mapping[str, Any],
    recipe: config.CtcRecipe,
    tokenizer: Tokenizer,
    rows: Sequence[Mapping[str, Any]],
    speed: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any] | None,
    adapter: bool = False,
) -> str:
    """The model card of a recogniser, in Markdown with the hub's metadata block.

    Args:
        facts: what `run.json` says.
        recipe: the resolved recipe.
        tokenizer: the recogniser's.
        rows: the lines of `metrics.jsonl`.
        speed: those of `speed.jsonl`.
        best: the line of the validation whose weights these are; None where nothing was held out.
        adapter: whether the folder holds adapters, not the whole model.
    """
    base, whole = facts["base"], facts["parameters"]
    called = public(base["name"], base["source"])
    mixed = ", trust_remote_code=True" * (recipe.model.layers == "weighted")
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
            f"On what was held out, decoded greedily, at step {best['step']:,} (the best, which these "
            "weights are from; so this is a little better than on recordings that had no say in the "
            "choice):",
            "",
            "| word error rate | character error rate |",
            "|---:|---:|",
            f"| {valid['wer']:.1%} | {valid['cer']:.1%} |",
        ]
    weighs = facts["trained"] if adapter else whole
    return "\n".join(
        [
            *head(
                library="peft" if adapter else "transformers",
                pipeline="automatic-speech-recognition",
                tags=["hubert", "speech", "ctc", *(["lora"] if recipe.lora.rank else [])],
                base=hub_id(base["name"], base["source"]),
                languages=facts["text"]["languages"],
            ),
            f"# A {whole / 1e6:.2f} M recogniser on {called}",
            "",
            "It writes down what is said in mono 16 kHz audio. Fine-tuned with CTC by distilkit.",
            "",
            *([ADAPTER] if adapter else use),
            "",
            "## How it was made",
            "",
            f"- Encoder: `{called}` (format {base['format']}), head: {facts['head']}.",
            *(f"- Encoder: {note}." for note in base["notes"]),
            f"- Text: {text_text(tokenizer.text)}; {len(tokenizer):,} tokens.",
            f"- Trained: {training_text(recipe)}, {facts['trained'] / 1e6:.2f} M of {whole / 1e6:.2f} M "
            f"parameters; the weights here take {size(4 * weighs)} in fp32.",
            f"- Audio: {clock(facts['train_seconds'])} to train ({_people(facts['train_speakers'])}), "
            f"{clock(facts['valid_seconds'])} held out ({_people(facts['valid_speakers'])}).",
            f"- Steps: {rows[-1]['step'] if rows else 0:,} of {facts['plan']['steps']:,} in "
            f"{facts['plan']['precision']} on {facts['plan']['device']}, seed {recipe.train.seed}.",
            *took(rows, speed),
            made_with(facts),
            "",
            "## What was measured",
            "",
            *measured,
            "",
            *terms("The encoder's licence and the rights in the recordings and texts decide"),
        ]
    )


def _people(count: int) -> str:
    return counted(count, "speaker") if count else "speakers not known"
