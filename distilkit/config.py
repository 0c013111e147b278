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
Architecture = Literal["paper"]
ObjectiveName = Literal["layerwise"]
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
    """What is trained."""

    architecture: Annotated[
        Architecture, Field(description="Which student; `paper` is the published DistilHuBERT.")
    ] = "paper"
    layers: Annotated[
        int, Field(ge=1, le=48, description="Transformer layers, copied from the teacher's first.")
    ] = 2
    dropout: Annotated[
        float,
        Field(ge=0.0, lt=1.0, description="Dropout of hidden states, attention, activations."),
    ] = 0.1


class Objective(Section):
    """What the student predicts."""

    name: Annotated[ObjectiveName, Field(description="Which objective.")] = "layerwise"
    layers: Annotated[
        list[int],
        Field(
            min_length=1, description="Teacher layers to predict, one head each; 0 is the input."
        ),
    ] = [4, 8, 12]
    l1_weight: Annotated[float, Field(ge=0.0, description="Weight of the mean L1 distance.")] = 1.0
    cosine_weight: Annotated[
        float, Field(ge=0.0, description="Weight of the log-sigmoid cosine term.")
    ] = 1.0

    @model_validator(mode="after")
    def _layers_once(self) -> "Objective":
        if len(set(self.layers)) != len(self.layers) or min(self.layers) < 0:
            raise ValueError("layers must be different whole numbers from 0 up")
        if self.l1_weight == self.cosine_weight == 0:
            raise ValueError("l1_weight and cosine_weight are both 0: nothing to learn")
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
        for item in error.errors():
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
