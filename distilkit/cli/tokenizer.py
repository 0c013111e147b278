"""`distilkit tokenizer`."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from distilkit.cli import options

if TYPE_CHECKING:
    from distilkit.config import Text
    from distilkit.tokenizers import Tokenizer

# The same sets as in distilkit.config, whose import would cost `--help` its speed.
TokenizerKind = Literal["char", "unigram", "bpe"]
UnicodeForm = Literal["NFC", "NFKC", "NFD", "NFKD"]
Case = Literal["keep", "lower", "upper"]
Punctuation = Literal["keep", "remove"]
Digits = Literal["keep", "spell"]

RARE = 5  # a character that is seen fewer times is shown: it may be a slip
EXAMPLES = 4  # lines that are shown before and after normalisation,
SEARCHED = 5_000  # of so many that it changed
WIDTH = 68  # characters of a line that are shown, so that 80 columns hold it
ALPHABET = 46  # characters of the alphabet that are shown
MEASURED = 1_000  # lines that are encoded to measure the tokens
SIGNS = 16  # characters that are shown with their counts; --json has all of them


def tokenizer(
    data: Annotated[
        list[str], typer.Argument(help="Transcribed data in any layout, or text files.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder to write.", show_default=False)
    ],
    kind: Annotated[
        TokenizerKind,
        typer.Option(help="Characters, or subwords by SentencePiece: `unigram`, `bpe`."),
    ] = "char",
    vocab_size: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            min=4,
            max=50_000,
            help="How many tokens in all.",
            show_default="as the text suggests",
        ),
    ] = None,
    form: Annotated[UnicodeForm, typer.Option(help="Unicode form.")] = "NFKC",
    case: Annotated[Case, typer.Option(help="Letters as they are, or all the same.")] = "lower",
    punctuation: Annotated[
        Punctuation,
        typer.Option(help="Punctuation and symbols; an apostrophe inside a word always stays."),
    ] = "remove",
    digits: Annotated[
        Digits, typer.Option(help="Digits as they are, or spelled as words of --language.")
    ] = "keep",
    language: Annotated[
        str,
        typer.Option(
            metavar="CODE", help="`en`, `de`, `pt_BR` ...; decides on digits, and on Turkish i."
        ),
    ] = "en",
    text_column: options.TextColumn = "",
    json: options.Json = False,
) -> None:
    """Make a tokenizer for `finetune-ctc` from transcripts.

    `distilkit tokenizer ./my_speech --out my_tokens`
    """
    from distilkit.cli import console
    from distilkit.config import Text, Tokenizer
    from distilkit.leftovers import vacate

    vacate(out)
    text = Text(form=form, case=case, punctuation=punctuation, digits=digits, language=language)
    settings = Tokenizer(kind=kind, size="auto" if vocab_size is None else vocab_size)

    from distilkit import cards, tokenizers
    from distilkit.data.transcripts import texts
    from distilkit.files import make_parent, replacing
    from distilkit.normalisation import normalise

    raw, skipped = texts(data, text_column)
    lines = [normalise(line, text) for line in raw]
    made = tokenizers.train(lines, settings, text)
    make_parent(out)
    facts = _facts(raw, lines, text)
    with replacing(out, new=True) as beside:
        tokenizers.save(made, beside)
        card = cards.tokenizer_card(made, kind, facts)
        (beside / cards.CARD).write_text(card, encoding="utf-8")

    console.left_out(skipped, "")
    if json:
        console.document(
            {
                "output": str(out),
                "kind": kind,
                "tokens": len(made),
                "text": text.model_dump(),
                "fingerprint": tokenizers.fingerprint(made),
                **facts,
                "skipped": [{"path": item.path, "reason": item.reason} for item in skipped],
            }
        )
        return
    _show(facts, made, [line for line in lines if line], kind)
    console.result(str(out))


def _facts(raw: Sequence[str], lines: Sequence[str], text: "Text") -> dict[str, Any]:
    """What the transcripts hold, and what normalisation made of them."""
    alphabet = Counter(char for line in lines for char in line if char != " ")
    gone = _gone(raw, text, set(alphabet))
    pairs = [
        (before, after)
        for before, after in zip((" ".join(line.split()) for line in raw), lines, strict=True)
        if before != after
    ]
    return {
        "lines": len(lines),
        "empty": sum(not line for line in lines),
        "words": sum(len(line.split()) for line in lines),
        "alphabet": dict(sorted(alphabet.items())),
        "gone": dict(gone.most_common()),
        "changed": len(pairs),
        "examples": [
            {"before": before, "after": after} for before, after in _examples(pairs, set(gone))
        ],
    }


def _show(facts: dict[str, Any], made: "Tokenizer", lines: Sequence[str], kind: str) -> None:
    """Two tables: the text and its tokens, and some lines before and after normalisation."""
    from distilkit.cards import text_text
    from distilkit.cli import console
    from distilkit.wording import counted

    alphabet, gone = Counter(facts["alphabet"]), Counter(facts["gone"])
    rare = Counter({char: count for char, count in alphabet.items() if count < RARE})
    sort = "the characters, the space, the blank and the unknown one"
    if kind != "char":
        some = lines[:MEASURED]
        share = sum(map(len, some)) / sum(len(made.encode(line)) for line in some)
        sort = f"{kind}: one stands for {share:.1f} characters on average"
    held = f"in {counted(facts['lines'], 'line')}"
    held += f", {facts['empty']:,} of them without a word" if facts["empty"] else ""
    rows = [
        ("text", counted(facts["words"], "word"), held),
        ("normalised", counted(facts["changed"], "line"), text_text(made.text)),
        ("taken away", counted(len(gone), "character"), _counts(gone)),
        (
            "alphabet",
            counted(len(alphabet), "character"),
            _cut("".join(map(_alone, alphabet)), ALPHABET),
        ),
        (
            "rare",
            counted(len(rare), "character"),
            _counts(rare) or f"each is there {RARE} times or more",
        ),
        ("tokens", f"{len(made):,}", sort),
    ]
    console.show(console.table("distilkit tokenizer", ("what", "value", "which"), rows))
    if facts["examples"]:
        shown = [
            (name, _cut(line, WIDTH)) for pair in facts["examples"] for name, line in pair.items()
        ]
        console.show(console.table("what normalisation changed", ("", "line"), shown))


def _gone(raw: Sequence[str], text: "Text", alphabet: set[str]) -> Counter[str]:
    """Characters that normalisation takes away even inside a word, and how often they were there."""
    from distilkit.normalisation import normalise

    seen = Counter(char for line in raw for char in line if not char.isspace())
    return Counter(
        {
            char: count
            for char, count in seen.items()
            if char not in alphabet and len(normalise(f"a{char}a", text).replace(" ", "")) == 2
        }
    )


def _examples(pairs: Sequence[tuple[str, str]], gone: set[str]) -> list[tuple[str, str]]:
    """A few changed lines that show as much as they can of what went, short ones first."""
    left = sorted(set(pairs[:SEARCHED]), key=lambda pair: (len(pair[0]) > WIDTH, pair))
    chosen: list[tuple[str, str]] = []
    while left and len(chosen) < EXAMPLES:
        best = max(left, key=lambda pair: len(gone & set(pair[0][:WIDTH])))
        chosen.append(best)
        left.remove(best)
        gone = gone - set(best[0])
        if not gone:
            break
    return chosen


def _counts(counted: Counter[str]) -> str:
    """Characters with their counts, the most frequent first."""
    shown = ", ".join(f"{_shown(char)} {count:,}" for char, count in counted.most_common(SIGNS))
    more = len(counted) - SIGNS
    return f"{shown} and {more} more" if more > 0 else shown


def _shown(char: str) -> str:
    """A character, with its number where it may be taken for another or cannot be seen."""
    if char.isascii() and char.isprintable():
        return f"`{char}`"
    number = f"U+{ord(char):04X}"
    return f"`{_alone(char)}` {number}" if char.isprintable() else number


def _alone(char: str) -> str:
    """A character, a combining mark on a dotted circle."""
    return f"\u25cc{char}" if unicodedata.category(char)[0] == "M" else char


def _cut(text: str, width: int) -> str:
    text = re.sub(r"[\x00-\x1f\x7f-\x9f]", "\ufffd", text)  # nothing that a terminal obeys
    return text if len(text) <= width else text[: width - 1] + "…"
