"""What settings and runs are in a line of words, for cards and for the terminal."""

import json
from collections.abc import Sequence
from typing import Any

from distilkit import config


def json_text(value: Any) -> str:
    """JSON as the files of a run hold it."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


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
    layers = (
        f"layers {settings.layers}"
        if isinstance(settings.layers, str)
        else _listed(settings.layers)
    )
    if settings.name == "units":
        source = "MFCC" if settings.features == "mfcc" else layers
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
        text = f"`layerwise`, {layers} ({', '.join(terms)})"
    text += ", normalised" * settings.normalise
    if settings.student_layers != "auto":
        text += f", from the student's {_listed(settings.student_layers)}"
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
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
