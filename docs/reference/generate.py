"""Write the pages that follow from the code, and the parts of pages between two markers.

python docs/reference/generate.py           write them
python docs/reference/generate.py --check   fail, and say which, where writing would change one
"""

import ast
import inspect
import json
import re
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from distilkit import audio, config, runs
from distilkit.cli import app
from distilkit.data import layouts

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "distilkit"
EXAMPLES = ROOT / "docs" / "examples"
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
    reference = ROOT / "docs" / "reference"
    files = ROOT / "docs" / "concepts" / "runs.md"
    reliability = ROOT / "docs" / "benchmarks" / "reliability.md"
    return {
        reference / "cli.md": cli_page(),
        reference / "recipe.md": recipe_page(),
        reference / "data.md": data_page(),
        reference / "house.md": house_page(),
        EXAMPLES / "README.md": examples_page(),
        files: with_block(files.read_text(encoding="utf-8"), "files", run_files()),
        reliability: with_blocks(
            reliability.read_text(encoding="utf-8"),
            {"campaigns": campaigns(_recorded("reliability")), "large": large(_recorded("large"))},
        ),
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
        "status: 0 done, 1 an error to mend or a file that failed, 2 wrong usage, 130 interrupted "
        "([more](environment.md)). An error that calls itself unexpected is ours; it ends with 1 too. "
        "`--quiet` and `--verbose` may stand behind a command's name as well. In capitals stands what an "
        "option takes, of a number its unit.",
        "",
    ]
    for name, command in commands():
        lines += [f"## `{name}`", "", re.sub(r"\[bold\](.*?)\[/\]", r"`\1`", command.help), ""]
        arguments = [_argument(x) for x in command.params if x.param_type_name == "argument"]
        if arguments:
            lines += ["| Argument | Takes | Meaning |", "|---|---|---|", *arguments, ""]
        if options := [_option(x) for x in command.params if wanted(x)]:
            lines += ["| Option | Takes | Default | Meaning |", "|---|---|---|---|", *options, ""]
    return "\n".join(lines)


def wanted(item: Any) -> bool:
    """Whether a parameter is an option of ours."""
    ours = item.name not in ("install_completion", "show_completion", "help")
    return item.param_type_name == "option" and ours


def _argument(item: Any) -> str:
    count = "one" if item.nargs == 1 else "one or more" if item.required else "none or more"
    choices = [f"of {_listed(names)}" for names in (_choices(item),) if names]
    return f"| `{item.name}` | {' '.join([count, *choices])} | {_meaning(item)} |"


def _option(item: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*item.opts, *item.secondary_opts))
    return f"| {names} | {takes(item)} | {default(item)} | {_meaning(item)} |"


def takes(item: Any) -> str:
    """What an option takes: nothing, one of some words, or something with a unit and limits."""
    if item.is_flag:
        return "nothing"
    if choices := _choices(item):
        return "one of " + ", ".join(f"`{choice}`" for choice in choices)
    limits = [
        f"{word} {bound:,g}"
        for word, bound in (("from", _bound(item, "min")), ("to", _bound(item, "max")))
        if bound is not None
    ]
    return ", ".join([f"`{item.metavar}`", *([" ".join(limits)] if limits else [])])


def default(item: Any) -> str:
    """What holds where an option is not given; empty where the code does not say."""
    if item.required:
        return "required"
    if isinstance(item.show_default, str):
        return _cell(item.show_default)
    if item.is_flag:
        return "on" if item.default else "off"
    return f"`{item.default}`" if item.default not in (None, "") else ""


def _bound(item: Any, name: str) -> float | None:
    return getattr(item, name, None)


def _choices(item: Any) -> tuple[str, ...]:
    return tuple(getattr(item.type_descriptor, "choices", None) or ())


def _meaning(item: Any) -> str:
    return _cell(item.help or "")


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


def house_page() -> str:
    """Every module in a line."""
    return "\n".join(
        [
            "# The code",
            "",
            NOTE,
            "",
            "One run reads top to bottom through three files: `cli/distill.py`, `distill/__init__.py`, "
            "`loop.py`. Modules stand in rows and import downwards only ([decision 0001]"
            "(../decisions/0001-house.md)); where to add something stands in "
            "[extending](../guides/extending.md).",
            "",
            tree(),
            "",
        ]
    )


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


# ------------------------------------------------------------------------------- data and runs


def data_page() -> str:
    """Audio formats, layouts of transcribed data and the columns that are known, from the readers."""
    seconds = audio.FRAME_SAMPLES / audio.SAMPLE_RATE
    ours = sorted(audio.SNDFILE_SUFFIXES), sorted(audio.FFMPEG_SUFFIXES)
    kinds = (
        ("the file", layouts.FILES),
        ("the text", layouts.TEXTS),
        ("who speaks", layouts.SPEAKERS),
        ("the language", layouts.LANGUAGES),
        ("a part of the file, in seconds", layouts.PART),
    )
    return "\n".join(
        [
            "# Audio and data",
            "",
            NOTE,
            "",
            "What is read, from the readers themselves. How to use it stands in "
            "[your audio](../guides/your-audio.md) and [transcribed data](../guides/transcribed-data.md).",
            "",
            "## Audio",
            "",
            f"Everything becomes mono at {audio.SAMPLE_RATE} Hz. A frame takes {1000 * seconds:g} ms and "
            f"comes every {1000 / audio.FRAME_RATE:g} ms, {audio.FRAME_RATE} a second. Rates below "
            f"{audio.LEAST_RATE} Hz are taken for damage.",
            "",
            "| Read by | Suffixes, in any case of letters |",
            "|---|---|",
            f"| libsndfile | {_listed(ours[0])} |",
            f"| FFmpeg, and whatever libsndfile cannot finish | {_listed(ours[1])} |",
            "",
            "## Layouts of recordings with text",
            "",
            "The first that fits is taken.",
            "",
            "| Layout | What is read |",
            "|---|---|",
            *(f"| `{name}` | {_first(layout.read)} |" for name, layout in layouts.LAYOUTS.items()),
            "",
            "## Columns of tables",
            "",
            "Known in any case of letters. Where a table has several of a kind, the first counts.",
            "",
            "| Holds | Columns |",
            "|---|---|",
            *(f"| {holds} | {_listed(names)} |" for holds, names in kinds),
            "",
        ]
    )


def _listed(names: Any) -> str:
    return " ".join(f"`{name}`" for name in names)


def _first(function: Any) -> str:
    """The first line of a reader's docstring, behind the name that it begins with."""
    line = (inspect.getdoc(function) or "").split("\n")[0]
    return _cell(line.partition(": ")[2])


def run_files() -> str:
    """What a run folder holds."""
    rows = [f"| `{name}` | {_cell(holds)} |" for name, holds in runs.FILES.items()]
    return "\n".join(["| File | Holds |", "|---|---|", *rows])


# ------------------------------------------------------------------------------------- examples


def examples_page() -> str:
    """The scripts of docs/examples, each with what it says of itself and how it is called."""
    lines = [
        "# Examples",
        "",
        NOTE,
        "",
        "Short scripts to copy and change. Each runs as it stands on what is built in, and the tests run all "
        "of them. With the environment that `make demo` makes:",
        "",
        "```console",
        "$ . .venv/bin/activate",
        "$ python docs/examples/distil.py",
        "```",
    ]
    for path in sorted(EXAMPLES.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        said = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")
        code = text.partition('"""\n')[2].strip("\n")
        lines += ["", f"## {said[0].rstrip('.')}", "", f"[`{path.name}`]({path.name})", ""]
        lines += [line for part in said[1:] for line in (*part.split("\n"), "")]
        lines += ["```python", code, "```"]
    return "\n".join([*lines, ""])


# ------------------------------------------------------------------------------------ benchmarks


def campaigns(rows: list[dict[str, Any]]) -> str:
    """Every campaign of faults: how often it was tried, and what went wrong, then and in the newest one."""
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if kind := row.get("kind") or row.get("parser"):  # others are no campaigns
            kinds.setdefault((row["what"], kind), []).append(row)
    lines = [
        "| Fault | Kind | Tries | Went wrong | Mended | Remaining | Newest at | Its command |",
        "|---|---|---|---|---|---|---|---|",
    ]
    faults = list(dict.fromkeys(what for what, _ in kinds))  # those of a fault stand together
    for (what, kind), every in sorted(kinds.items(), key=lambda item: faults.index(item[0][0])):
        tried, wrong = sum(map(_tries, every)), sum(map(_wrong, every))
        newest, left = every[-1], _wrong(every[-1])
        numbers = f"{tried:,} | {wrong} | {wrong - left} | {left}"
        lines.append(
            f"| {what} | `{kind}` | {numbers} | {_commit(newest)} | `{_cell(newest['command'])}` |"
        )
    return "\n".join(lines)


def _tries(row: dict[str, Any]) -> int:
    """How often a fault was made: kills, inputs of a fuzzer, or tries."""
    return int(row.get("kills", row.get("inputs", row.get("tries", 0))))


def _wrong(row: dict[str, Any]) -> int:
    """How many of them did not end as they should."""
    return int(row.get("failures", row.get("failed", len(row.get("findings", ())))))


def large(rows: list[dict[str, Any]]) -> str:
    """What long and large data took, the newest of each."""
    lines = [
        "| What | Audio | Read, s | First step, s | In all, s | Peak, GiB | Quarters, GiB | Recorded at |",
        "|---|---|---|---|---|---|---|---|",
    ]
    newest = {(row["what"], _size(row)): row for row in rows}
    for (what, size), row in newest.items():
        parts = ", ".join(f"{gib:.2f}" for gib in row["quarters_gib"])
        times = " | ".join(
            f"{row[name]:.0f}" if row.get(name) else "–"
            for name in ("read_seconds", "first_step_seconds", "seconds")
        )
        lines.append(
            f"| {what} | {size} | {times} | {row['peak_gib']:.2f} | {parts} | {_commit(row)} |"
        )
    return "\n".join(lines)


def _size(row: dict[str, Any]) -> str:
    names = {"lines": "lines", "files": "files", "hours": "hours", "file_gib": "GiB"}
    return ", ".join(f"{row[key]:,} {unit}" for key, unit in names.items() if key in row)


def _commit(row: dict[str, Any]) -> str:
    return f"{row['machine']['commit']}, {row['machine']['date']}"


def _recorded(name: str) -> list[dict[str, Any]]:
    path = ROOT / "docs" / "benchmarks" / "results" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def with_blocks(page: str, blocks: dict[str, str]) -> str:
    """A page with several blocks written anew."""
    for name, block in blocks.items():
        page = with_block(page, name, block)
    return page


def with_block(page: str, name: str, block: str) -> str:
    """A page with what stands between its two markers of that name written anew."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.partition(opening)
    _, closed, after = rest.partition(closing)
    if not found or not closed:
        sys.exit(f"error: a page lacks the lines `{opening}` and `{closing}`")
    return f"{before}{opening}\n{block}\n{closing}{after}"


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
