"""The house: imports point down, the command line stays light, files and functions stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "distilkit"
ROWS = (
    {"errors", "wording"},
    {"config", "unfinished"},
    {"files"},
    {"audio", "normalisation", "pages", "rates", "runs"},
    {"convolutions", "flac", "hub", "leftovers"},
    {"front"},
    {"encoder", "kernels", "layer_mix"},
    {"codebooks", "data", "ngram", "objectives", "students", "teachers", "tokenizers"},
    {"listeners"},
    {"batches", "decode", "exported", "noise", "on_device", "targets"},
    {"assembly", "captions", "loop", "pauses", "plan", "stored"},
    {"recognisers", "resuming"},
    {"bench", "cards", "evaluate", "layers", "models", "training"},
    {"report", "trials"},
    {
        "convert",
        "ctc",
        "distill",
        "embed",
        "export",
        "probes",
        "push",
        "transcribe",
        "units",
    },
    {"demo"},
    {"cli"},
)
TEACHERS = (
    {"files", "layout"},
    {"checkpoint"},
    {"weights"},
    {"huggingface", "s3prl", "lighthubert", "fairseq", "torchaudio"},
    {"__init__"},
)
LIGHT = (
    "torch",
    "torchaudio",
    "transformers",
    "accelerate",
    "peft",
    "lhotse",
    "av",
    "numpy",
    "pydantic",
)
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "assets" not in path.parts)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Rooms of the package that a file imports, at any level."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "distilkit":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("distilkit."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("distilkit.")}
    return found - {"__version__"}


def test_every_room_has_a_row() -> None:
    rooms = {room(path) for path in MODULES} - {"__init__", "__main__"}
    assert len(MODULES) > 20
    assert rooms == set().union(*ROWS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path: Path) -> None:
    own = room(path)
    if own in ("__init__", "__main__"):
        return
    row = next(i for i, rooms in enumerate(ROWS) if own in rooms)
    below = set().union(*ROWS[:row]) | ({own} if path.parent != PACKAGE else set())
    assert imports(path) <= below, f"{own} may import only from rows below"


def test_teachers_never_import_one_another_upwards() -> None:
    for row, names in enumerate(TEACHERS):
        for name in names:
            tree = ast.parse((PACKAGE / "teachers" / f"{name}.py").read_text())
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith(
                    "distilkit.teachers."
                ):
                    assert str(node.module).split(".")[2] in set().union(*TEACHERS[:row])


def test_only_the_command_line_prints_and_imports_typer_and_rich() -> None:
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            str(alias.name if isinstance(node, ast.Import) else node.module).split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        prints = any(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
            for node in ast.walk(tree)
        )
        if room(path) not in ("cli", "on_device"):  # the latter runs without the package
            assert not names & {"typer", "rich"}, path
            assert not prints, path
        assert "click" not in names, path


def test_the_command_line_is_light() -> None:
    code = f"import sys, distilkit.cli; print([m for m in {LIGHT} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # typer itself brings pydantic; distilkit.config, whose models are slow to build, stays out.
    assert set(ast.literal_eval(done.stdout)) <= {"pydantic"}
    code = "import sys, distilkit.cli; print('distilkit.config' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_sizes() -> None:
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 520, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno <= 100, f"{path}: {node.name}"


def test_every_module_says_what_it_is() -> None:
    for path in MODULES:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
