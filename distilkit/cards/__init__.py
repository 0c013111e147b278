"""Model cards: what a folder holds, where it comes from, and what was measured.

Markdown with the metadata block that the hub reads. Cards name folders, never the paths that lead to them.
"""

from distilkit.cards.origin import (
    CARD,
    OURS,
    head,
    hub_id,
    licence_of,
    private_paths,
    public,
    terms,
)
from distilkit.cards.others import converted_card, tokenizer_card, units_card
from distilkit.cards.recogniser import recogniser_card
from distilkit.cards.said import (
    json_text,
    noise_text,
    objective_text,
    text_text,
    training_text,
)
from distilkit.cards.student import student_card

__all__ = [
    "CARD",
    "OURS",
    "converted_card",
    "head",
    "hub_id",
    "json_text",
    "licence_of",
    "noise_text",
    "objective_text",
    "private_paths",
    "public",
    "recogniser_card",
    "student_card",
    "terms",
    "text_text",
    "tokenizer_card",
    "training_text",
    "units_card",
]
