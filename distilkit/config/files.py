"""Recipes as files: TOML in, resolved TOML out, and every wrong key or value said at once."""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from distilkit.config.base import Section
from distilkit.config.distillation import Recipe
from distilkit.config.recognition import CtcRecipe
from distilkit.errors import DistilkitError, did_you_mean

RECIPES: dict[str, type[Recipe] | type[CtcRecipe]] = {"distill": Recipe, "finetune-ctc": CtcRecipe}
AnyRecipe = TypeVar("AnyRecipe", Recipe, CtcRecipe)


def recipes_folder() -> Path:
    """Where the built-in recipes lie: inside an installed package, beside it in a checkout."""
    inside = Path(__file__).parents[1] / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


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


def load_recipe(
    name: str,
    changes: Sequence[str] = (),
    kind: type[AnyRecipe] = Recipe,  # type: ignore[assignment]
) -> AnyRecipe:
    """Read a recipe by name or path and apply `section.key=value` changes, values as in TOML.

    Args:
        name: a built-in recipe, or a file.
        changes: `section.key=value` each; of one key the last counts, so that a hint may be typed behind.
        kind: `Recipe` to distil, `CtcRecipe` to fine-tune.

    Raises:
        DistilkitError: no such recipe, one for another command, not TOML, or unknown keys and wrong
            values: all at once.
    """
    path = recipe_path(name)
    settings = _read(path, kind)
    for change in changes:
        _apply(settings, change, kind)
    return parse_recipe(settings, str(path), kind)


def recipe_kind(name: str) -> str:
    """The command that a recipe is for: a key of `RECIPES`."""
    return str(_read(recipe_path(name), Recipe).get("command", "distill"))


def _read(path: Path, kind: type[Section]) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DistilkitError(f"recipe `{path}` is not valid TOML: {error}", _show(kind)) from error


def parse_recipe(
    settings: dict[str, Any],
    where: str,
    kind: type[AnyRecipe] = Recipe,  # type: ignore[assignment]
) -> AnyRecipe:
    """Check a recipe given as nested dictionaries.

    Raises:
        DistilkitError: it is for another command; every unknown key and wrong value, in one message.
    """
    wanted = kind.model_fields["command"].default
    given = settings.get("command") or _command_of(settings, kind)
    if given != wanted and given in list(RECIPES):  # it may be a list, too
        raise DistilkitError(
            f"recipe `{where}` is for `distilkit {given}`, not for `distilkit {wanted}`",
            "distilkit recipes",
        )
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        wrong: dict[str, list[str]] = {}  # what was wrong, and all that is said of it
        hints = []
        said_inside = {item["loc"][:2] for item in error.errors() if _inside_a_list(item["loc"])}
        for item in error.errors():
            if item["loc"][:2] in said_inside and not _inside_a_list(item["loc"]):
                continue  # that the list is not `auto` either helps nobody
            problem, said, hint = _explain(
                item["loc"], item["type"], item["msg"], item["input"], kind
            )
            wrong.setdefault(problem, []).extend([said] if said else [])
            if hint and hint not in hints:
                hints.append(hint)
        problems = [
            ": ".join([what, " or ".join(said).replace(" or must be ", " or ")][: 1 + bool(said)])
            for what, said in wrong.items()
        ]
        head = "" if len(problems) == 1 else f"{len(problems)} problems in `{where}`:\n  "
        raise DistilkitError(
            head + "\n  ".join(problems), "; ".join(hints) or _show(kind)
        ) from error


def _command_of(settings: dict[str, Any], kind: type[Section]) -> str:
    """The command whose recipes have these sections; of several, the one that is asked for."""
    fitting = [name for name, model in RECIPES.items() if set(settings) <= set(sections(model))]
    wanted = str(kind.model_fields["command"].default)
    return fitting[0] if fitting and wanted not in fitting else wanted


def _show(kind: type[Section]) -> str:
    """The command that shows a recipe of that kind whole."""
    return f"distilkit recipes show {'paper' if kind is Recipe else 'ctc'}"


def dump_recipe(recipe: Section) -> str:
    """The recipe as TOML that `load_recipe` reads back to an equal one."""
    lines = []
    for name, value in recipe.model_dump().items():
        if not isinstance(value, dict):
            lines += [f"{name} = {json.dumps(value)}", ""]
            continue
        lines += [f"[{name}]", *(f"{key} = {json.dumps(v)}" for key, v in value.items()), ""]
    return "\n".join(lines)


def sections(kind: type[Section]) -> dict[str, type[Section]]:
    """The sections of a recipe and their models."""
    return {name: type(part) for name, part in kind() if isinstance(part, Section)}


def _apply(settings: dict[str, Any], change: str, kind: type[Section]) -> None:
    key, equals, text = change.partition("=")
    parts = key.strip().split(".")
    if not equals or len(parts) != 2 or not all(parts):
        raise DistilkitError(
            f"`--set {change}` is not of the form `section.key=value`", "--set train.steps=1000"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    section = settings.setdefault(parts[0], {})
    if isinstance(section, dict):
        section[parts[1]] = value


def _inside_a_list(location: tuple[int | str, ...]) -> bool:
    return any(isinstance(part, int) for part in location)


def _explain(
    location: tuple[int | str, ...], problem: str, message: str, value: Any, kind: type[Section]
) -> tuple[str, str | None, str | None]:
    """What is wrong, what is said of it, and a hint."""
    names = [str(part) for part in location]
    key = ".".join(names[:2])
    if problem == "extra_forbidden":
        known = {name: list(model.model_fields) for name, model in sections(kind).items()}
        if len(names) == 1:
            return f"unknown section `{key}`", None, did_you_mean(key, known)
        section, field = names[:2]
        elsewhere = [f"{name}.{field}" for name in known if field in known[name]]
        near = did_you_mean(field, known[section])
        hint = near and near.replace("`", f"`{section}.", 1)
        if elsewhere:
            hint = f"did you mean `{elsewhere[0]}`?"
        return f"unknown key `{key}`", None, hint or f"keys: {', '.join(sorted(known[section]))}"
    said = message[0].lower() + message[1:]
    if problem == "value_error":
        return f"`{key}`", said.removeprefix("value error, "), None
    near = None
    if problem == "literal_error":
        said = said.replace("'", "`")
        near = did_you_mean(str(value), said.split("`")[1::2])
    return f"`{key}` cannot be `{value}`", said.replace("input should be ", "must be "), near
