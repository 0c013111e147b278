"""The generated pages: nothing is missing, and every word of them is the code's."""

import ast
import importlib.util
import inspect
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
from conftest import quick

from distilkit import config, runs
from distilkit.cli import usage
from distilkit.distill import distill

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
ENVIRONMENT = REFERENCE / "environment.md"
# What a number of an option may count, or be.
UNITS = {
    "BEGINNINGS", "CLIPS", "FACTOR", "HOURS", "HZ", "LAYER", "MINUTES", "NATS", "PARTS", "PROCESSES", "RANK", "SECONDS", "SEED",
    "STEPS", "TIMES", "TOKENS", "UNITS", "WORDS",
}  # fmt: skip
OTHERS = {
    "CODE",
    "FILE",
    "FOLDER",
    "KEY=VALUE",
    "LAYER",
    "MODEL",
    "NAME",
    "PATH",
    "RECIPE",
    "SIZE",
    "TEXT",
}


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", REFERENCE / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATE = _generator()
OPTIONS = [
    (name, item)
    for name, command in GENERATE.commands()
    for item in command.params
    if GENERATE.wanted(item)
]


def _first_cells(text: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)


def _section(page: Path, heading: str) -> str:
    return page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


# ------------------------------------------------------------------------------------ commands


@pytest.mark.parametrize(
    ("name", "item"), OPTIONS, ids=[f"{name} {x.opts[0]}" for name, x in OPTIONS]
)
def test_an_option_says_what_it_takes_and_its_default(name: str, item: Any) -> None:
    page = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## `{name}`\n")[2].partition("\n## ")[0]
    row = next(x for x in section.splitlines() if re.match(rf"\| `{item.opts[0]}`", x))
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
    assert len(cells) == 4
    assert all(cells), row
    assert item.help.endswith(".")
    if item.is_flag:
        assert cells[1:3] in (["nothing", "off"], ["nothing", "on"])
    elif not item.type_descriptor.choices:
        number = bool({int, float} & set(_leaves(item.type_descriptor.annotation)))
        assert item.metavar in (UNITS if number else OTHERS), "a unit as metavar"
        assert item.required or item.default is not None or isinstance(item.show_default, str), (
            "a default"
        )


def test_there_are_options() -> None:
    assert len(OPTIONS) > 100


def test_defaults_that_are_spelled_out_are_the_codes() -> None:
    from distilkit.audio import clock
    from distilkit.decode import Search
    from distilkit.transcribe import DELAY

    said = {f"{name} {item.opts[0]}": item.show_default for name, item in OPTIONS}
    assert said["distilkit transcribe --beam"] == f"1; with --lm {Search.width}"
    assert said["distilkit transcribe --lm-weight"] == f"{Search.weight:g}"
    assert said["distilkit transcribe --word-bonus"] == f"{Search.bonus:g}"
    assert said["distilkit transcribe --delay"] == f"{DELAY:g}, as for a file"
    assert clock(DELAY)


# -------------------------------------------------------------------------------- benchmarks


def test_what_remains_is_what_the_newest_campaign_of_a_kind_found() -> None:
    def row(commit: str, **more: object) -> dict[str, Any]:
        return {"command": "python x.py", "machine": {"commit": commit, "date": "today"}, **more}

    told = GENERATE.campaigns(
        [
            row("aa", what="kills", kind="units", tries=30, kills=50, failures=3),
            row("bb", what="hostile input", kind="text", tries=300, failed=2),
            row("cc", what="fuzzing", parser="tar", inputs=1234, findings=["a"]),
            row("dd", what="kills", kind="units", tries=20, kills=51, failures=0),
            row("ee", what="defects", defects=["a", "b"]),
        ]
    )
    assert told.splitlines()[2:] == [
        "| kills | `units` | 101 | 3 | 3 | 0 | dd, today | `python x.py` |",
        "| hostile input | `text` | 300 | 2 | 0 | 2 | bb, today | `python x.py` |",
        "| fuzzing | `tar` | 1,234 | 1 | 0 | 1 | cc, today | `python x.py` |",
    ]


# -------------------------------------------------------------------------------- every word


@pytest.mark.parametrize(
    "page", GENERATE.pages(), ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_a_word_taken_out_of_a_generated_page_is_seen(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any word of what is generated: every seventh is tried."""
    whole, read = page.read_text(encoding="utf-8"), Path.read_text
    part, made = whole, GENERATE.pages()
    if "<!-- files -->" in whole:
        part = whole.partition("<!-- files -->")[2].partition("<!-- /files -->")[0]
    words = list(re.finditer(r"[\w-]+", part))
    assert len(words) > 100
    start = whole.index(part)
    monkeypatch.setattr(GENERATE, "pages", lambda: made)
    for word in words[::7]:
        less = whole[: start + word.start()] + whole[start + word.end() :]
        with monkeypatch.context() as patch:
            patch.setattr(
                Path,
                "read_text",
                lambda self, *a, less=less, **k: less if self == page else read(self, *a, **k),
            )
            assert page.relative_to(ROOT).as_posix() in GENERATE.stale()


def test_a_block_is_written_between_its_markers() -> None:
    page = "a\n<!-- x -->\nold\n<!-- /x -->\nb"
    assert GENERATE.with_block(page, "x", "new") == "a\n<!-- x -->\nnew\n<!-- /x -->\nb"
    with pytest.raises(SystemExit, match="<!-- y -->"):
        GENERATE.with_block(page, "y", "new")


# ------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("kind", config.RECIPES.values(), ids=config.RECIPES)
def test_numbers_of_a_recipe_have_a_unit(kind: Any) -> None:
    """In the key's name, or in the words that describe it; or they count, or are shares and factors."""
    units = r"second|minute|GiB|dB|frame|step|pass|Hz|share|factor|weight|rate|probab"
    counts = r"layers|heads|clusters|channels|width|size|process|seed|rank|epsilon|norm|dropout|speeds|validations|scale"
    for section, model in config.sections(kind).items():
        for key, field in model.model_fields.items():
            if not {int, float} & set(_leaves(field.annotation)):
                continue
            said = f"{key} {field.description}"
            assert re.search(rf"{units}|{counts}", said, re.IGNORECASE), f"{section}.{key}: {said}"


def _leaves(annotation: Any) -> list[Any]:
    parts = get_args(annotation)
    return [leaf for part in parts for leaf in _leaves(part)] if parts else [annotation]


# ---------------------------------------------------------------------------------- environment


def test_environment_variables_are_those_that_the_code_reads() -> None:
    package = ROOT / "distilkit"
    text = "\n".join(
        path.read_text(encoding="utf-8")
        for path in package.rglob("*.py")
        if "assets" not in path.parts
    )
    found = set(re.findall(r'environ(?:\.get|\.setdefault)?[\[(] *"([A-Z_]+)"', text))
    for more in re.findall(r"environ \|= (\{.*?\})", text):
        found |= set(ast.literal_eval(more))
    from distilkit.exported import CHOICE

    assert "environ.get(CHOICE)" in text
    assert not re.search(r"(?<!os\.)\benviron\b|getenv", text), "read in another way"
    rows = set(_first_cells(_section(ENVIRONMENT, "Variables that distilkit reads")))
    set_by_it = set(_first_cells(_section(ENVIRONMENT, "Variables that it sets")))
    assert found | {CHOICE} == rows | set_by_it
    assert len(rows) >= 6
    assert not rows & set_by_it


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, ["--version"]), (1, ["inspect", "nowhere"]), (2, ["inspect", "--nowhere"])],
)
def test_an_exit_status_is_as_the_page_says(status: int, words: list[str]) -> None:
    assert [str(x) for x in (0, 1, usage.STATUS, 130)] == _first_cells(
        _section(ENVIRONMENT, "Exit status")
    )
    done = subprocess.run([sys.executable, "-m", "distilkit", *words], capture_output=True)
    assert done.returncode == status


def test_an_interrupted_command_ends_with_130(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "distilkit", "embed", "-", "--model", "tiny"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    assert process.stderr is not None
    assert process.stderr.readline() == b"model: tiny\n"  # so it has begun
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


# ------------------------------------------------------------------------------- the run folder


def test_a_run_holds_what_the_page_says(speech: Path, teacher_folder: Path, tmp_path: Path) -> None:
    """A distillation that finds units and stores targets; the files of fine-tuning are seen in test_ctc."""
    recipe = quick("objective.name=units", "objective.clusters=8", "targets.store=fp16")
    distill([speech], teacher=str(teacher_folder), out=tmp_path / "run", recipe=recipe)
    left = {
        f"{path.name}/" if path.is_dir() else path.name for path in (tmp_path / "run").iterdir()
    }
    assert left <= set(runs.FILES)
    own = {name for name, holds in runs.FILES.items() if "fine-tuning" not in holds}
    assert own - left == {
        "targets/",
        "probes.json",
    }  # gone in the end; written when it is asked for
    assert json.loads((tmp_path / "run" / "run.json").read_text())["kind"] == "distill"
    assert inspect.getdoc(runs)
