"""`distilkit lm`."""

from pathlib import Path
from typing import Annotated

import typer

from distilkit.cli import options

SHOWN = 20  # words that are named where the tokenizer cannot write them; --json names all


def lm(
    text: Annotated[
        list[str], typer.Argument(help="Text files, a sentence a line, or transcribed data.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="ARPA file to write; `.gz` compresses it.", show_default=False
        ),
    ],
    order: Annotated[
        int, typer.Option(metavar="WORDS", min=1, max=6, help="Length of the longest n-gram.")
    ] = 3,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Tokenizer or recogniser whose form of text is used.",
            show_default="none: text as it is",
        ),
    ] = None,
    text_column: options.TextColumn = "",
    json: options.Json = False,
) -> None:
    """Count the words of a text into a language model that helps a recogniser spell.

    `distilkit lm ./my_speech notes.txt --tokenizer ./my_tokens --out lm.arpa`
    """
    from distilkit.cli import console
    from distilkit.leftovers import vacate

    vacate(out)

    from distilkit import ngram, tokenizers
    from distilkit.data.transcripts import texts
    from distilkit.wording import counted

    written = tokenizers.load(tokenizer) if tokenizer else None
    lines, skipped = texts(text, text_column)
    if written:
        lines = [written.normalise(line) for line in lines]
    sentences = [words for line in lines if (words := line.split())]
    vocabulary = sorted({word for words in sentences for word in words})
    foreign = [word for word in vocabulary if written and written.unknown(word)]

    kept, held = ngram.held_out(sentences)
    perplexity, unknown = None, None
    if kept and held:
        trial = ngram.train(kept, order)
        perplexity = trial.perplexity(held)
        strange = sum(not trial.knows(word) for words in held for word in words)
        unknown = strange / sum(map(len, held))
    model = ngram.train(sentences, order)
    ngram.write(model, out)

    console.left_out(skipped, "")
    if foreign:
        more = f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else ""
        named = ", ".join(f"`{word}`" for word in foreign[:SHOWN])
        console.say(f"the tokenizer in {tokenizer} cannot write {named}{more}")
    if json:
        console.document(
            {
                "output": str(out),
                "sentences": len(sentences),
                "words": sum(map(len, sentences)),
                "vocabulary": len(vocabulary),
                "ngrams": model.sizes(),
                "perplexity": None if perplexity is None else round(perplexity, 2),
                "unknown": None if unknown is None else round(unknown, 4),
                "not_writable": foreign,
                "skipped": [{"path": item.path, "reason": item.reason} for item in skipped],
            }
        )
        return
    rows = [
        (
            "text",
            counted(sum(map(len, sentences)), "word"),
            counted(len(sentences), "sentence"),
        ),
        ("vocabulary", counted(len(vocabulary), "word"), "others count as `<unk>`"),
        *((f"{size}-grams", f"{count:,}", "") for size, count in enumerate(model.sizes(), start=1)),
        (
            "perplexity",
            "not measured" if perplexity is None else f"{perplexity:,.1f}",
            "of a tenth of the sentences, by a model of the others; "
            + ("too few" if unknown is None else f"{unknown:.1%} of its words are unknown"),
        ),
    ]
    console.show(console.table("distilkit lm", ("what", "value", "which"), rows))
    console.result(str(out))
