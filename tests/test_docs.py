"""What the docs say can be typed, linked and found in the code."""

import ast
import importlib
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import typer

from distilkit import config
from distilkit.cli import app
from distilkit.cli import embed as embed_command

ROOT = Path(__file__).resolve().parents[1]
WRITTEN_BY_CODE = ROOT / "docs" / "reference" / "cli.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:\S*/)?distilkit .+")


def _generator() -> ModuleType:
    where = ROOT / "docs" / "reference" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate", where)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATE = _generator()
NAMES = {name for name, _ in GENERATE.commands()}


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def _fences(page: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(_text(page)) if language in languages]


def _typed(page: Path) -> Iterator[str]:
    """Command lines of distilkit: in fences, with or without `$`, and in backticks.

    A command's bare name in backticks speaks of the command and is left out.
    """
    for body in _fences(page, "console", "sh", "bash", ""):
        yield from filter(
            COMMAND.fullmatch, (x.strip().removeprefix("$ ") for x in body.split("\n"))
        )
    yield from (x for x in _spans(page) if COMMAND.fullmatch(x) and x not in NAMES)


def _spans(page: Path) -> list[str]:
    return re.findall(r"`([^`]+)`", " ".join(FENCE.sub("", _text(page)).split()))


def _words(line: str) -> list[str]:
    words = shlex.split(line, comments=True)[1:]
    ends = [place for place, word in enumerate(words) if word in ("|", ">", "&&", "2>", ";")]
    return words[: ends[0]] if ends else words


def _parse(words: list[str]) -> list[str]:
    """Parse a command line as typer would, without running it; returns the command's names."""
    command, parent, names = typer.main.get_command(app), None, ["distilkit"]
    while True:
        try:
            context = command.make_context(names[-1], words, parent=parent)
        except typer.Exit:  # --help, --version
            return names
        if not hasattr(command, "commands"):
            return names
        rest = [*context._protected_args, *context.args]
        if not rest:
            assert command.invoke_without_command, f"{' '.join(names)} does nothing alone"
            return names
        name, command, words = command.resolve_command(context, rest)
        names, parent = [*names, name], context


LINES = [(page, line) for page in PAGES for line in _typed(page)]


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{_name(p)}: {x}" for p, x in LINES])
def test_a_command_in_the_docs_can_be_typed(page: Path, line: str) -> None:
    words = _words(line)
    _parse(words)
    changes = [after for word, after in zip(words, words[1:], strict=False) if word == "--set"]
    kind = config.CtcRecipe if words[:1] == ["finetune-ctc"] else config.Recipe
    own = [change for change in changes if change != "section.key=value"]
    config.load_recipe("ctc" if kind is config.CtcRecipe else "personal", own, kind)


def test_the_docs_hold_commands() -> None:
    assert len({_name(page) for page, _ in LINES}) >= 8
    assert len(LINES) >= 40
    assert len(PYTHON) >= 4
    assert TOML


@pytest.mark.parametrize("line", ["distilkit distil x", "distilkit distill x --stepz 3"])
def test_a_slip_in_a_command_is_seen(line: str) -> None:
    with pytest.raises(Exception, match="No such"):
        _parse(_words(line))


@pytest.mark.parametrize(("name", "command"), GENERATE.commands())
def test_every_command_has_help_and_appears_in_the_docs(name: str, command: Any) -> None:
    assert command.help
    elsewhere = [page for page in PAGES if page != WRITTEN_BY_CODE]
    said = [line for page, line in LINES if page in elsewhere]
    said += [span for page in elsewhere for span in _spans(page)]
    assert any(f"{words} ".startswith(f"{name} ") for words in said), "only in the reference"
    if not hasattr(command, "commands"):
        examples = [f"{span} " for span in re.findall(r"`([^`]+)`", command.help)]
        assert any(example.startswith(f"{name} ") for example in examples), "no example"


def test_generated_pages_say_what_the_code_says() -> None:
    assert GENERATE.stale() == [], "make fix writes them anew"


def test_a_stale_page_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "reference" / "cli.md"
    monkeypatch.setattr(GENERATE, "cli_page", lambda: _text(page) + "more\n")
    monkeypatch.setattr(GENERATE.sys, "argv", ["generate.py", "--check"])
    with pytest.raises(SystemExit, match=r"docs/reference/cli\.md.* no longer says"):
        GENERATE.main()


def test_tests_that_pages_name_are_there() -> None:
    """A page that says which test holds something must not speak of one that is gone."""
    named = {
        (_name(page), file, test)
        for page in PAGES
        for file, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", _text(page))
    }
    assert len({file for _, file, _ in named}) > 10
    for page, file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), (
            f"{page}: {file}::{test}"
        )


# -------------------------------------------------------------------------------------- links


def _slugs(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", _text(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", _text(page))):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), target
        assert to.is_relative_to(ROOT), target
        assert not heading or heading in _slugs(to), target


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        seen.add(page)
        links = re.findall(r"\]\(([^)\s#]+\.md)", _text(page))
        ahead += [to for link in links if (to := (page.parent / link).resolve()) not in seen]
    assert set(PAGES) - seen == set()


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_no_absolute_paths(page: Path) -> None:
    found = re.findall(r"(?<![\w.~-])/(?:home|root|work|tmp|Users)\b\S*", _text(page))
    assert found == []


# --------------------------------------------------------------------------------- names and code


def _first_cells(page: str) -> set[str]:
    return set(re.findall(r"^\| `([^`]+)`", _text(ROOT / "docs" / page), re.MULTILINE))


def _choices() -> dict[str, tuple[set[str], set[str], str]]:
    """Name of a set of choices: the Literal, what the code offers, the page with a row for each."""
    from distilkit.captions import FORMATS
    from distilkit.cli import transcribe as transcribe_command
    from distilkit.embed import PACKERS
    from distilkit.objectives import OBJECTIVES
    from distilkit.students import ARCHITECTURES
    from distilkit.tokenizers import KINDS

    def names(literal: object) -> set[str]:
        return set(get_args(literal))

    return {
        "tokenizers": (names(config.TokenizerKind), set(KINDS), "guides/tokenizers.md"),
        "transcripts": (names(config.TranscriptFormat), set(FORMATS), "guides/recognition.md"),
        "transcripts of transcribe": (
            names(transcribe_command.TranscriptFormat),
            names(config.TranscriptFormat),
            "guides/recognition.md",
        ),
        "architectures": (
            names(config.Architecture),
            set(ARCHITECTURES),
            "concepts/students.md",
        ),
        "objectives": (names(config.ObjectiveName), set(OBJECTIVES), "concepts/objectives.md"),
        "formats": (names(config.EmbeddingFormat), {"npy", *PACKERS}, "guides/embeddings.md"),
        "formats of embed": (
            names(embed_command.EmbeddingFormat),
            names(config.EmbeddingFormat),
            "guides/embeddings.md",
        ),
        "pools of embed": (
            names(embed_command.Pool),
            names(config.Pool),
            "guides/embeddings.md",
        ),
    }


@pytest.mark.parametrize(
    "what",
    [
        "tokenizers",
        "transcripts",
        "transcripts of transcribe",
        "architectures",
        "objectives",
        "formats",
        "formats of embed",
        "pools of embed",
    ],
)
def test_names_are_the_same_in_settings_code_and_docs(what: str) -> None:
    literal, offered, page = _choices()[what]
    assert literal == offered
    assert literal <= _first_cells(page)


def test_every_checkpoint_format_has_its_row() -> None:
    from distilkit.teachers import READERS

    assert set(READERS) == _first_cells("reference/teachers.md")


def test_every_layout_has_its_row() -> None:
    from distilkit.data.transcripts import LAYOUTS

    assert set(LAYOUTS) <= _first_cells("guides/transcribed-data.md")


def test_every_task_has_its_row() -> None:
    from distilkit.cli import probe
    from distilkit.probes import ALL, TASKS

    assert set(TASKS) == _first_cells("guides/probes.md")
    # spelled out: importing them would cost `--help` its speed
    assert list(get_args(probe.Task)) == [*TASKS, ALL]
    text = _text(ROOT / "docs" / "concepts" / "probes.md")
    assert all(f"`{name}`" in text for name in TASKS)


@pytest.mark.parametrize("name", config.recipe_names())
def test_every_recipe_is_in_the_guide(name: str) -> None:
    page = {"distill": "first-distillation.md", "finetune-ctc": "recognition.md"}
    text = _text(ROOT / "docs" / "guides" / page[config.recipe_kind(name)])
    assert f"`{name}`" in text or f"--recipe {name}`" in text


# ---------------------------------------------------------------------------------------- examples

PYTHON = [(page, body) for page in PAGES for body in _fences(page, "python")]


@pytest.mark.parametrize(("page", "body"), PYTHON, ids=[f"{_name(p)}" for p, _ in PYTHON])
def test_python_in_the_docs_imports_what_is_there(page: Path, body: str) -> None:
    for node in ast.walk(ast.parse(body)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("distilkit"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                found = hasattr(module, alias.name) or importlib.util.find_spec(inside)
                assert found, f"{node.module} has no {alias.name}"


TOML = [(page, body) for page in PAGES for body in _fences(page, "toml")]


@pytest.mark.parametrize(("page", "body"), TOML, ids=[_name(page) for page, _ in TOML])
def test_toml_in_the_docs_is_a_recipe(page: Path, body: str) -> None:
    config.parse_recipe(tomllib.loads(body), _name(page))


def test_settings_named_in_prose_exist() -> None:
    kinds = [config.sections(kind) for kind in config.RECIPES.values()]
    sections = {name for kind in kinds for name in kind}
    known = {f"{name}.{key}" for kind in kinds for name in kind for key in kind[name].model_fields}
    pattern = re.compile(
        rf"`(?:--set )?((?:{'|'.join(sections)})\.(?!py`|onnx`|pte`)[a-z_0-9]+)[`=]"
    )
    named = {(_name(page), key) for page in PAGES for key in pattern.findall(_text(page))}
    assert len(named) >= 10
    assert {(page, key) for page, key in named if key not in known} == set()
