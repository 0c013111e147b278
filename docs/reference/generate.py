"""Write the pages that follow from the code: cli.md, recipe.md, and the file tree in README.md.

python docs/reference/generate.py           write them
python docs/reference/generate.py --check   fail, and say which, where writing would change one
"""

import ast
import json
import re
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from distilkit import config
from distilkit.cli import app

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "distilkit"
OPEN, CLOSE = "<!-- tree -->", "<!-- /tree -->"
NOTE = "<!-- Written by docs/reference/generate.py; `make fix` writes it anew. -->"
WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}
SIGNS = {
    "ge": "from {}",
    "gt": "above {}",
    "le": "to {}",
    "lt": "to below {}",
    "min_length": "at least {}",
    "max_length": "at most {}",
}


def pages() -> dict[Path, str]:
    """Every generated page, as it ought to be."""
    readme = ROOT / "README.md"
    return {
        ROOT / "docs" / "reference" / "cli.md": cli_page(),
        ROOT / "docs" / "reference" / "recipe.md": recipe_page(),
        readme: with_tree(readme.read_text(encoding="utf-8")),
    }


def stale() -> list[str]:
    """The generated pages that differ from what the code says, relative to the root."""
    return [
        path.relative_to(ROOT).as_posix()
        for path, text in pages().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


# --------------------------------------------------------------------------------- command line


def commands() -> list[tuple[str, Any]]:
    """Every command with its full name, groups before what is in them."""
    root = typer.main.get_command(app)
    return [("distilkit", root), *_below("distilkit", root)]


def _below(name: str, group: Any) -> list[tuple[str, Any]]:
    found = []
    for word, command in group.commands.items():
        found.append((f"{name} {word}", command))
        if hasattr(command, "commands"):
            found += _below(f"{name} {word}", command)
    return found


def cli_page() -> str:
    """Commands, arguments and options, from the parser itself."""
    lines = [
        "# Commands",
        "",
        NOTE,
        "",
        "Results go to the standard output, progress and messages to the standard error. Exit "
        "status: 0 done, 1 an error to mend or a file that failed, 2 wrong usage, 130 interrupted. An "
        "error that calls itself unexpected is ours; it ends with 1 too. `--quiet` and `--verbose` may stand "
        "behind a command's name as well.",
        "",
    ]
    for name, command in commands():
        lines += [f"## `{name}`", "", re.sub(r"\[bold\](.*?)\[/\]", r"`\1`", command.help), ""]
        for title, kind in (("Argument", "argument"), ("Option", "option")):
            rows = [_row(item) for item in command.params if item.param_type_name == kind]
            rows = [row for row in rows if row]
            if rows:
                lines += [f"| {title} | Default | Meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _row(item: Any) -> str:
    if item.name in ("install_completion", "show_completion", "help"):
        return ""
    names = ", ".join(f"`{name}`" for name in item.opts)
    default = "" if item.default in (None, False) else f"`{item.default}`"
    if item.required:
        default = "required"
    choices = getattr(item.bare_type, "__args__", None) or getattr(
        item.type_descriptor, "choices", ()
    )
    meaning = _cell(item.help or "")
    if choices and not all(f"`{choice}`" in meaning for choice in choices):
        meaning += " One of " + ", ".join(f"`{choice}`" for choice in choices) + "."
    if getattr(item, "min", None) is not None:
        meaning += f" At least {item.min:g}."
    return f"| {names} | {default} | {meaning} |"


# --------------------------------------------------------------------------------------- recipes


def recipe_page() -> str:
    """Sections and keys of a recipe, from the models that check it."""
    lines = [
        "# Recipes",
        "",
        NOTE,
        "",
        "A recipe is a TOML file with a section for each part of a run. What it leaves out has the "
        "default below; a key that is not below is an error. `--set section.key=value` changes one "
        "setting for one run.",
        "",
        "| Built-in recipe | What it is |",
        "|---|---|",
    ]
    for name in config.recipe_names():
        first = config.recipe_path(name).read_text(encoding="utf-8").splitlines()[0]
        lines.append(f"| `{name}` | {_cell(first.removeprefix('# What:').strip())} |")
    for command, recipe in config.RECIPES.items():
        lines += ["", f"## Recipes of `distilkit {command}`"]
        for section, model in config.sections(recipe).items():
            lines += _section(section, model)
    return "\n".join([*lines, ""])


def _section(name: str, model: Any) -> list[str]:
    lines = ["", f"### `[{name}]`", "", str(model.__doc__), ""]
    lines += ["| Key | Type | Default | Meaning |", "|---|---|---|---|"]
    for key, field in model.model_fields.items():
        kind = _cell(_type(field.annotation) + _limits(field.metadata))
        default = _cell(json.dumps(field.default))
        lines.append(f"| `{key}` | {kind} | `{default}` | {_cell(str(field.description))} |")
    return lines


def _type(annotation: Any) -> str:
    if annotation in WORDS:
        return WORDS[annotation]
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_type(part) for part in parts)
    if get_origin(annotation) is Annotated:
        return _type(parts[0]) + _limits(parts[1].metadata)
    assert get_origin(annotation) is list, annotation
    return f"list of {_type(parts[0])}s"


def _limits(metadata: list[Any]) -> str:
    found = [
        sign.format(f"{getattr(item, name):g}")
        for name, sign in SIGNS.items()
        for item in metadata
        if hasattr(item, name)
    ]
    return ", " + " ".join(found) if found else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# ------------------------------------------------------------------------------------- file tree


def with_tree(readme: str) -> str:
    """README's text with the file tree between its two markers written anew."""
    before, found, rest = readme.partition(OPEN)
    _, closed, after = rest.partition(CLOSE)
    if not found or not closed:
        sys.exit(f"error: README.md lacks the lines `{OPEN}` and `{CLOSE}`")
    return f"{before}{OPEN}\n{tree()}\n{CLOSE}{after}"


def tree() -> str:
    """The modules of the package, each with the first line of its docstring."""
    rows: dict[tuple[str, ...], str] = {}
    for path in sorted(PACKAGE.rglob("*.py"), key=_place):
        parts = path.relative_to(ROOT).parts
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        rows.setdefault(parts[:-1], "")
        rows[parts[:-1] if path.name == "__init__.py" else parts] = text.split("\n")[0]
    names = [
        "  " * (len(parts) - 1) + parts[-1] + ("" if parts[-1].endswith(".py") else "/")
        for parts in rows
    ]
    wide = max(map(len, names)) + 2
    lines = [
        f"{name:{wide}}{text}".rstrip() for name, text in zip(names, rows.values(), strict=True)
    ]
    return "\n".join(["```text", *lines, "```"])


def _place(path: Path) -> tuple[Any, ...]:
    """Modules first, then folders; in each, `__init__.py` first."""
    parts = path.relative_to(PACKAGE).parts
    return (len(parts) > 1, parts[:-1], parts[-1] != "__init__.py", parts[-1])


def main() -> None:
    """Write the pages, or with `--check` say which ones are stale."""
    if sys.argv[1:] == ["--check"]:
        if late := stale():
            sys.exit(
                f"error: {', '.join(late)} no longer says what the code says\n\n"
                "hint: python docs/reference/generate.py, then look at the difference"
            )
        return
    if sys.argv[1:]:
        sys.exit(f"error: unknown argument `{' '.join(sys.argv[1:])}`\n\nhint: --check, or nothing")
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
