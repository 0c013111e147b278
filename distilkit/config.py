"""Recipes: validated settings in, TOML in, resolved TOML out; no torch.

A recipe is one TOML file with a section per part of a run. Every field is declared, checked and
documented here and nowhere else; unknown keys are errors that name the nearest known one.
"""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from distilkit.errors import DistilkitError, did_you_mean

Auto = Literal["auto"]
Architecture = Literal["paper", "paper-ln", "deep-thin", "thin-conv", "hubert"]
Start = Literal["teacher", "random"]
ObjectiveName = Literal["layerwise", "units"]
Preset = Literal["all-round", "content", "speaker"]
Features = Literal["layers", "mfcc"]
Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["cpu", "cuda", "mps"]
EmbeddingFormat = Literal["npy", "npz", "safetensors", "parquet"]
Pool = Literal["none", "mean"]


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(Section):
    """How recordings become training windows."""

    window_seconds: Annotated[
        float,
        Field(ge=1.0, le=60.0, description="Seconds; the longest window a recording is cut into."),
    ] = 15.625
    min_seconds: Annotated[
        float, Field(ge=0.025, le=10.0, description="Seconds; shorter recordings are left out.")
    ] = 0.1
    valid_fraction: Annotated[
        float,
        Field(
            ge=0.0,
            le=0.5,
            description="Share of the audio, in whole recordings, held out to validate.",
        ),
    ] = 0.05
    valid_minutes: Annotated[
        float, Field(gt=0.0, description="Minutes; the most audio that is held out.")
    ] = 30.0

    @model_validator(mode="after")
    def _windows_hold_the_shortest(self) -> "Data":
        if self.min_seconds * 2 > self.window_seconds:
            raise ValueError("min_seconds must be at most half of window_seconds")
        return self


class Student(Section):
    """What is trained. Numbers that are `auto` follow from the architecture and the teacher."""

    architecture: Annotated[
        Architecture, Field(description="Which student; `paper` is the published DistilHuBERT.")
    ] = "paper"
    layers: Annotated[
        Annotated[int, Field(ge=1, le=48)] | Auto,
        Field(description="Transformer layers; `auto` is the architecture's number."),
    ] = "auto"
    width: Annotated[
        Annotated[int, Field(ge=16, le=2048)] | Auto,
        Field(
            description="Size of a frame's vector; `auto` is the architecture's, else the teacher's."
        ),
    ] = "auto"
    heads: Annotated[
        Annotated[int, Field(ge=1, le=64)] | Auto,
        Field(description="Attention heads; `auto` keeps the width of the teacher's heads."),
    ] = "auto"
    feed_forward: Annotated[
        Annotated[int, Field(ge=16, le=8192)] | Auto,
        Field(description="Width inside a layer's feed-forward part; `auto` keeps the ratio."),
    ] = "auto"
    conv_widths: Annotated[
        list[Annotated[int, Field(ge=8, le=1024)]] | Auto,
        Field(description="Channels of the seven convolutions of the front end."),
    ] = "auto"
    position_frames: Annotated[
        Annotated[int, Field(ge=2, le=512)] | Auto,
        Field(description="Frames that the positional convolution spans."),
    ] = "auto"
    start: Annotated[
        Start,
        Field(description="`teacher` copies every weight that fits, `random` copies none."),
    ] = "teacher"
    start_layers: Annotated[
        list[Annotated[int, Field(ge=1, le=48)]] | Auto,
        Field(
            description="Teacher layers that the student's layers start from, in order; `auto` is "
            "the first ones."
        ),
    ] = "auto"
    dropout: Annotated[
        float,
        Field(ge=0.0, lt=1.0, description="Dropout of hidden states, attention, activations."),
    ] = 0.1


class Objective(Section):
    """What the student predicts."""

    name: Annotated[
        ObjectiveName,
        Field(description="`layerwise` predicts hidden states, `units` their clusters."),
    ] = "layerwise"
    layers: Annotated[
        Annotated[list[Annotated[int, Field(ge=0, le=48)]], Field(min_length=1)] | Preset,
        Field(
            description="Teacher layers to predict, one head each; 0 is the input. A preset is "
            "scaled to the teacher's depth: `all-round` is 4, 8, 12 of 12, `content` 8, `speaker` 4."
        ),
    ] = "all-round"
    student_layers: Annotated[
        Annotated[list[Annotated[int, Field(ge=0, le=48)]], Field(min_length=1)] | Auto,
        Field(
            description="Student layers that predict them, one for each (layer to layer, deep "
            "supervision); `auto` predicts all from the last."
        ),
    ] = "auto"
    l1_weight: Annotated[float, Field(ge=0.0, description="Weight of the mean L1 distance.")] = 1.0
    l2_weight: Annotated[
        float, Field(ge=0.0, description="Weight of the mean squared distance.")
    ] = 0.0
    cosine_weight: Annotated[float, Field(ge=0.0, description="Weight of the cosine term.")] = 1.0
    cosine: Annotated[
        Literal["log-sigmoid", "raw"],
        Field(description="The cosine term: -log sigmoid(cos) as in the paper, or 1 - cos."),
    ] = "log-sigmoid"
    features: Annotated[
        Features,
        Field(description="`units`: clusters of the teacher's layers, or of MFCC (no teacher)."),
    ] = "layers"
    clusters: Annotated[
        int, Field(ge=2, le=20_000, description="`units`: clusters, for each predicted layer.")
    ] = 100
    cluster_minutes: Annotated[
        float,
        Field(gt=0.0, description="`units`: minutes of audio that the clusters are found on."),
    ] = 60.0
    codebook: Annotated[
        str,
        Field(description="`units`: a codebook of `distilkit units`; empty finds one beforehand."),
    ] = ""
    normalise: Annotated[
        bool,
        Field(
            description="Bring each window's features to zero mean and unit variance before they "
            "are predicted or clustered, so that they tell less of who speaks."
        ),
    ] = False
    part_seconds: Annotated[
        Annotated[list[Annotated[float, Field(ge=0.1)]], Field(min_length=2, max_length=2)]
        | Literal["whole"],
        Field(
            description="Most seconds that the student hears at once, drawn between two numbers: it hears "
            "each window in parts, the teacher `whole`."
        ),
    ] = "whole"
    mask_probability: Annotated[
        float,
        Field(
            ge=0.0,
            le=1.0,
            description="Frames that the student must guess: spans times length, as a share of the "
            "clip; spans overlap, so 0.8 hides about half. 0 hides none.",
        ),
    ] = 0.0
    mask_frames: Annotated[
        int, Field(ge=1, le=100, description="Frames in a masked span (20 ms each).")
    ] = 10
    visible_weight: Annotated[
        float,
        Field(ge=0.0, le=1.0, description="Weight of frames that are not masked, beside 1."),
    ] = 1.0

    @model_validator(mode="after")
    def _makes_sense(self) -> "Objective":
        if isinstance(self.layers, list) and len(set(self.layers)) != len(self.layers):
            raise ValueError("layers must be different whole numbers from 0 up")
        if self.name == "layerwise" and not (
            self.l1_weight or self.l2_weight or self.cosine_weight
        ):
            raise ValueError("l1_weight, l2_weight and cosine_weight are all 0: nothing to learn")
        if self.name == "layerwise" and self.features == "mfcc":
            raise ValueError("features `mfcc` belong to the objective `units`")
        if self.name == "layerwise" and self.codebook:
            raise ValueError("a codebook belongs to the objective `units`")
        if self.normalise and self.features == "mfcc":
            raise ValueError("normalise is for layers; MFCC always are")
        if self.part_seconds != "whole" and self.part_seconds[0] > self.part_seconds[1]:
            raise ValueError("part_seconds is a range, from the lower number to the higher")
        if not self.visible_weight and not self.mask_probability:
            raise ValueError("visible_weight and mask_probability are both 0: nothing to learn")
        return self


class Noise(Section):
    """How the student's audio is disturbed while the teacher hears it as it is."""

    probability: Annotated[
        float, Field(ge=0.0, le=1.0, description="Share of clips that are disturbed; 0 is off.")
    ] = 0.0
    snr: Annotated[
        list[float],
        Field(min_length=2, max_length=2, description="dB; range of the signal-to-noise ratio."),
    ] = [0.0, 20.0]
    folder: Annotated[
        str,
        Field(description="A folder of noise recordings; empty makes coloured noise and babble."),
    ] = ""
    reverberation: Annotated[
        float, Field(ge=0.0, le=1.0, description="Share of disturbed clips put into a room.")
    ] = 0.3
    band: Annotated[
        float, Field(ge=0.0, le=1.0, description="Share of disturbed clips that lose a band.")
    ] = 0.3
    equaliser: Annotated[
        float,
        Field(
            ge=0.0, le=1.0, description="Share of disturbed clips that another microphone colours."
        ),
    ] = 0.3
    gain: Annotated[
        list[float],
        Field(min_length=2, max_length=2, description="dB; range of the change of level."),
    ] = [-15.0, 5.0]
    voice: Annotated[
        float,
        Field(
            ge=0.0, le=1.0, description="Share of disturbed clips with pitch and formants moved."
        ),
    ] = 0.0

    @model_validator(mode="after")
    def _ranges(self) -> "Noise":
        if self.snr[0] > self.snr[1] or self.gain[0] > self.gain[1]:
            raise ValueError("snr and gain are ranges, from the lower number to the higher")
        return self


class Batches(Section):
    """How much audio one optimizer step sees."""

    seconds: Annotated[
        float, Field(gt=0.0, description="Seconds of audio per optimizer step (effective batch).")
    ] = 375.0
    micro_seconds: Annotated[
        Annotated[float, Field(gt=0.0)] | Auto,
        Field(description="Seconds of audio, padding counted, that are in memory at once."),
    ] = "auto"
    workers: Annotated[
        Annotated[int, Field(ge=0)] | Auto,
        Field(description="Processes that load audio; 0 loads in the main process."),
    ] = "auto"


class Train(Section):
    """The optimizer and its schedule, precision, and how often to validate and save."""

    steps: Annotated[
        Annotated[int, Field(ge=1)] | Auto,
        Field(description="Optimizer steps; `auto` follows from `passes` and the audio."),
    ] = "auto"
    passes: Annotated[
        float, Field(gt=0.0, description="Passes over the audio when `steps` is `auto`.")
    ] = 20.0
    min_steps: Annotated[
        int, Field(ge=1, description="Optimizer steps; the least when `steps` is `auto`.")
    ] = 1
    max_steps: Annotated[
        int, Field(ge=1, description="Optimizer steps; the most when `steps` is `auto`.")
    ] = 200_000
    learning_rate: Annotated[float, Field(gt=0.0, description="Peak learning rate of AdamW.")] = (
        2e-4
    )
    warmup_fraction: Annotated[
        float,
        Field(
            ge=0.0, le=1.0, description="Share of the steps with linear warm-up; then linear decay."
        ),
    ] = 0.07
    betas: Annotated[
        list[float], Field(min_length=2, max_length=2, description="AdamW's two decay rates.")
    ] = [0.9, 0.98]
    epsilon: Annotated[float, Field(gt=0.0, description="AdamW's epsilon.")] = 1e-6
    weight_decay: Annotated[float, Field(ge=0.0, description="AdamW's weight decay.")] = 1e-6
    clip_norm: Annotated[
        float, Field(gt=0.0, description="Gradient norm above which gradients are scaled down.")
    ] = 5.0
    conv_gradient_scale: Annotated[
        float,
        Field(ge=0.0, le=1.0, description="Factor on the gradient that enters the conv front end."),
    ] = 0.1
    precision: Annotated[
        Precision | Auto,
        Field(description="Arithmetic; `auto` takes bf16 where the device has it."),
    ] = "auto"
    gradient_checkpointing: Annotated[
        bool | Auto, Field(description="Recompute activations in the backward pass to save memory.")
    ] = "auto"
    device: Annotated[Device | Auto, Field(description="Where to train.")] = "auto"
    validate_every: Annotated[
        int,
        Field(ge=1, description="Optimizer steps between validations; the last step always is."),
    ] = 500
    checkpoint_every: Annotated[
        int,
        Field(ge=1, description="Optimizer steps between checkpoints; the last step always is."),
    ] = 500
    seed: Annotated[int, Field(ge=0, description="Seed of everything random.")] = 0


class Recipe(Section):
    """Everything that decides what a distillation run computes."""

    data: Data = Data()
    student: Student = Student()
    objective: Objective = Objective()
    noise: Noise = Noise()
    batches: Batches = Batches()
    train: Train = Train()


def recipes_folder() -> Path:
    """Where the built-in recipes lie: inside an installed package, beside it in a checkout."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the built-in recipes."""
    return sorted(path.stem for path in recipes_folder().glob("*.toml"))


def recipe_path(name: str) -> Path:
    """The file of a built-in recipe, or the file that `name` points to.

    Raises:
        DistilkitError: there is neither.
    """
    if name in recipe_names():
        return recipes_folder() / f"{name}.toml"
    if Path(name).is_file():
        return Path(name)
    raise DistilkitError(
        f"no recipe `{name}`: neither a built-in name nor a file",
        did_you_mean(name, recipe_names()) or f"built-in recipes: {', '.join(recipe_names())}",
    )


def load_recipe(name: str, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path and apply `section.key=value` changes, values as in TOML.

    Raises:
        DistilkitError: no such recipe, not TOML, or unknown keys and wrong values: all at once.
    """
    path = recipe_path(name)
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DistilkitError(
            f"recipe `{path}` is not valid TOML: {error}", "distilkit recipes show paper"
        ) from error
    for change in changes:
        _apply(settings, change)
    return parse_recipe(settings, str(path))


def parse_recipe(settings: dict[str, Any], where: str) -> Recipe:
    """Check a recipe given as nested dictionaries.

    Raises:
        DistilkitError: every unknown key and wrong value, in one message.
    """
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        wrong: dict[str, list[str]] = {}  # what was wrong, and all that is said of it
        hints = []
        said_inside = {item["loc"][:2] for item in error.errors() if _inside_a_list(item["loc"])}
        for item in error.errors():
            if item["loc"][:2] in said_inside and not _inside_a_list(item["loc"]):
                continue  # that the list is not `auto` either helps nobody
            problem, said, hint = _explain(item["loc"], item["type"], item["msg"], item["input"])
            wrong.setdefault(problem, []).extend([said] if said else [])
            if hint and hint not in hints:
                hints.append(hint)
        problems = [
            ": ".join([what, " or ".join(said)][: 1 + bool(said)]) for what, said in wrong.items()
        ]
        head = "" if len(problems) == 1 else f"{len(problems)} problems in `{where}`:\n  "
        raise DistilkitError(
            head + "\n  ".join(problems), "; ".join(hints) or "distilkit recipes show paper"
        ) from error


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as TOML that `load_recipe` reads back to an equal one."""
    lines = []
    for section, settings in recipe.model_dump().items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(v)}" for key, v in settings.items()), ""]
    return "\n".join(lines)


def _apply(settings: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    parts = key.strip().split(".")
    if not equals or len(parts) != 2 or not all(parts):
        raise DistilkitError(
            f"`--set {change}` is not of the form `section.key=value`", "--set train.steps=1000"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    section = settings.setdefault(parts[0], {})
    if isinstance(section, dict):
        section[parts[1]] = value


def _inside_a_list(location: tuple[int | str, ...]) -> bool:
    return any(isinstance(part, int) for part in location)


def _explain(
    location: tuple[int | str, ...], kind: str, message: str, value: Any
) -> tuple[str, str | None, str | None]:
    """What is wrong, what is said of it, and a hint."""
    names = [str(part) for part in location]
    key = ".".join(names[:2])
    if kind == "extra_forbidden":
        sections = {name: list(type(section).model_fields) for name, section in Recipe()}
        if len(names) == 1:
            return f"unknown section `{key}`", None, did_you_mean(key, sections)
        section, field = names[:2]
        elsewhere = [f"{name}.{field}" for name in sections if field in sections[name]]
        near = did_you_mean(field, sections[section])
        hint = near and near.replace("`", f"`{section}.", 1)
        if elsewhere:
            hint = f"did you mean `{elsewhere[0]}`?"
        return f"unknown key `{key}`", None, hint or f"keys: {', '.join(sorted(sections[section]))}"
    said = message[0].lower() + message[1:]
    if kind == "value_error":
        return f"`{key}`", said.removeprefix("value error, "), None
    return f"`{key}` cannot be `{value}`", said.replace("input should be ", "must be "), None
