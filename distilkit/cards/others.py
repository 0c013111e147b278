"""Cards of what is made beside models: tokenizers, hidden units, converted checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distilkit import __version__, config
from distilkit.audio import clock
from distilkit.cards.origin import head, hub_id, licence_of, public, terms
from distilkit.cards.said import text_text
from distilkit.codebooks import Codebook
from distilkit.tokenizers import Tokenizer
from distilkit.wording import counted


def tokenizer_card(
    tokenizer: Tokenizer, kind: config.TokenizerKind, facts: Mapping[str, Any]
) -> str:
    """The card of a tokenizer.

    Args:
        tokenizer: what was made.
        kind: of it.
        facts: `lines`, `words` and `alphabet` of the text that it was made of.
    """
    what = {"char": "characters", "unigram": "subwords (unigram)", "bpe": "subwords (BPE)"}
    alphabet = facts["alphabet"]
    return "\n".join(
        [
            *head(library="transformers", tags=["tokenizer", "speech", "ctc"]),
            f"# A tokenizer of {len(tokenizer):,} {what[kind]}",
            "",
            "For speech recognition with CTC, whose blank is its padding token. Made by distilkit "
            f"{__version__}.",
            "",
            "```python",
            "from transformers import AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained("tokens")',
            "```",
            "",
            "## How it was made",
            "",
            f"- Text: {text_text(tokenizer.text)}; `text.json` holds these settings.",
            f"- Of {counted(facts['words'], 'word')} in {counted(facts['lines'], 'line')}, "
            f"{counted(len(alphabet), 'different character')}.",
            "",
            *terms("The rights in the text decide", "tokenizer"),
        ]
    )


def units_card(codebook: Codebook, model: tuple[str, str] | None, facts: Mapping[str, Any]) -> str:
    """The card of a folder of hidden units.

    Args:
        codebook: the clusters.
        model: the name of the model whose layer they are of, and where it lies; None for MFCC.
        facts: `windows`, `seconds`, `used`, `perplexity` and `run_frames` of what was written.
    """
    count = len(codebook.centres[0])
    of = f"layer {codebook.layers[0]} of {public(*model)}" if model else "MFCC"
    return "\n".join(
        [
            *head(
                tags=["hidden-units", "k-means", "speech"],
                base=hub_id(*model) if model else None,
            ),
            f"# {count:,} hidden units of {of}",
            "",
            "Frames of speech clustered by k-means, 50 a second, and which unit each frame is. Made by "
            f"distilkit {__version__}.",
            "",
            "| File | Holds |",
            "|---|---|",
            f"| `codebook.safetensors` | the centres, {codebook.centres[0].shape[1]} numbers each |",
            "| `units.jsonl` | recording, start, seconds and units of each window |",
            "| `units.km` | the same units, as fairseq writes them |",
            "| `skipped.tsv` | what was not used, and why |",
            "",
            "## What was measured",
            "",
            f"- Audio: {clock(facts['seconds'])} in {counted(facts['windows'], 'window')}.",
            f"- {facts['used']:,} of the {count:,} units occur, worth {facts['perplexity']:,.1f} equally "
            "likely ones.",
            f"- A unit lasts {20 * facts['run_frames']:,.0f} ms on average.",
            *(["- Each clip's features were levelled first."] if codebook.normalise else []),
            "",
            *terms(
                f"The {'licence of the model and the ' if model else ''}rights in the recordings decide",
                "folder",
            ),
        ]
    )


def converted_card(name: str, facts: Mapping[str, Any]) -> str:
    """The card of a checkpoint that was written as a Hugging Face folder.

    Args:
        name: what the user called the checkpoint.
        facts: of `convert.describe`.
    """
    source = Path(facts["source"])
    licence = licence_of(source)
    shown = (
        "parameters",
        "transformer layers",
        "width",
        "attention heads",
        "conv front end",
        "norm of the front end",
        "waveform normalised",
        "prediction heads",
    )
    known = {True: "yes", False: "no"}
    return "\n".join(
        [
            *head(
                library="transformers",
                pipeline="feature-extraction",
                tags=[facts["family"], "speech", "audio"],
                base=hub_id(name, source),
                licence=licence,
            ),
            f"# {public(name, source)}",
            "",
            f"{facts['is'][:1].upper()}{facts['is'][1:]}, converted by distilkit {__version__} from a "
            f"{facts['format']} checkpoint, `{public(name, source)}`: the same weights, in fp32.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {known.get(facts[key], facts[key])} |" for key in shown),
            *(["", *(f"- {note}" for note in facts["notes"])] if facts["notes"] else []),
            "",
            *terms(f"The checkpoint's licence{f' ({licence})' if licence else ''} decides"),
        ]
    )
