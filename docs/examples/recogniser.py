"""Make a recogniser, and write recordings down.

The same as `distilkit tokenizer`, `finetune-ctc` and `transcribe`. As it stands it shows that it runs, on
twenty words by twelve synthesised voices: after so few steps a recogniser writes nothing yet. Some thousand
steps on minutes of speech like yours write words; see [a recogniser](../guides/recognition.md).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from distilkit import config, ctc, demo, recognisers, tokenizers
from distilkit.config import CtcRecipe, load_recipe
from distilkit.data import Skipped
from distilkit.data.transcripts import texts
from distilkit.transcribe import transcribe


def main(arguments: Sequence[str] | None = None) -> None:
    """Tokenizer, fine-tuning, transcripts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="*", default=[demo.WORDS], help="recordings with text")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs/example-ctc"))
    parser.add_argument("--write-down", type=Path, default=demo.WORDS / "voice-01")
    asked = parser.parse_args(arguments)

    lines, _ = texts(asked.data)
    tokenizer = tokenizers.train(lines, config.Tokenizer(), config.Text())
    tokens = asked.out.with_name(f"{asked.out.name}-tokens")
    tokenizers.save(tokenizer, tokens)

    recipe = load_recipe("ctc-tiny", [f"train.steps={asked.steps}"], CtcRecipe)
    job = ctc.prepare(asked.data, tokenizer=tokens, model=asked.model, out=asked.out, recipe=recipe)
    for step in ctc.train(job):
        if step.valid or step.number % 10 == 0:
            print(f"step {step.number}: loss {step.loss:.2f} {step.valid or ''}")

    recogniser = recognisers.load(str(asked.out))
    for item in transcribe([asked.write_down], recogniser, timed=True):
        if isinstance(item, Skipped):
            print(f"{item.path}: left out, {item.reason}")
        else:
            print(
                f"{item.file}: {item.text}", [(w.text, round(w.start, 2)) for w in item.words or ()]
            )


if __name__ == "__main__":
    main()
