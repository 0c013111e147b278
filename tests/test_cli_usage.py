"""What the command line says: of wrong usage, of itself, little or much, and to a shell that completes."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run
from rich.console import Console

from distilkit import cli
from distilkit.cli import console, version
from distilkit.data import Skipped
from distilkit.errors import DistilkitError

# ------------------------------------------------------------------------------------ wrong usage

MISTYPED = {
    "distil ./x": ("no command `distil`", "did you mean `distill`?"),
    "xyzzy": ("no command `xyzzy`", "distilkit --help"),
    "recipes shw": ("no command `shw`", "did you mean `show`?"),
    "distill x --stepz 3": ("no option `--stepz`", "did you mean `--steps`?"),
    "embed x --quite": ("no option `--quite`", "did you mean `--quiet`?"),
    "--versoin": ("no option `--versoin`", "did you mean `--version`?"),
    "distill x --teach": ("no option `--teach`", "did you mean `--teacher`?"),
    "embed x --format npyy": (
        "`--format` cannot be `npyy`: must be `npy`, `npz`, `safetensors` or `parquet`",
        "did you mean `npy`?",
    ),
    "embed x --pool zzz": ("`--pool` cannot be `zzz`: must be `none` or `mean`", "distilkit embed --help"),
    "probe kss x": (
        "`TASK` cannot be `kss`: must be `pr`, `ks`, `ic`, `sid`, `er`, `asr`, `qbe`, `sf`, `asv`, `sd` or `all`",
        "did you mean `ks`?",
    ),
    "distill x --steps ten": ("`--steps` cannot be `ten`: must be a valid integer", "distilkit distill --help"),
    "distill x --steps 0": (
        "`--steps` cannot be `0`: must be greater than or equal to 1",
        "distilkit distill --help",
    ),
    "embed": (
        "`INPUTS` is missing: audio files, folders, lhotse manifests; `-`: standard input",
        "distilkit embed file.wav",
    ),
    "units x": (
        "`--out` is missing: folder to write",
        "distilkit units ./my_audio --model tiny --layer 6 --clusters 100 --out units",
    ),
    "distill --recipe": ("`--recipe` needs a value", "distilkit distill --help"),
    "distill --plan=3": ("`--plan` takes no value", "distilkit distill --help"),
    "inspect a b": ("`b` is more than the command takes", "distilkit inspect --help"),
    "--json": ("missing command", "distilkit --help"),
    "--json doctor": ("`--json` before the command", "distilkit COMMAND --json"),
    "doctor --quiet --verbose": ("`--quiet` and `--verbose` at once", "--verbose"),
}  # fmt: skip


@pytest.mark.parametrize("typed", MISTYPED)
def test_wrong_usage_is_one_error_and_one_hint_and_ends_with_2(run: Run, typed: str) -> None:
    problem, hint = MISTYPED[typed]
    assert run(*typed.split()) == (2, "", f"error: {problem}\n\nhint: {hint}\n")


SLIPS = {
    "inspect tny": "did you mean `tiny`?",
    "recipes show papr": "did you mean `paper`?",
    "distill x --set trian.steps=3": "did you mean `train`?",
    "distill x --set train.stepz=3": "did you mean `train.steps`?",
    "distill x --set objective.name=unit": "did you mean `units`?",
    "embed x --model runs/mine": "did you mean `runs/mime`?",
}


@pytest.mark.parametrize("typed", SLIPS)
def test_names_that_are_nearly_right_are_suggested(run: Run, typed: str) -> None:
    Path("runs/mime").mkdir(parents=True)
    Path("x").mkdir()
    code, _, err = run(*typed.split())
    assert (code, err.rpartition("hint: ")[2]) == (1, f"{SLIPS[typed]}\n")


def test_no_command_shows_the_help(run: Run) -> None:
    code, out, err = run()
    assert (code, err) == (2, "")
    assert "finetune-ctc" in out


# ---------------------------------------------------------------------------------------- version


def test_version_names_what_matters(run: Run) -> None:
    code, out, _ = run("--version", "--json")
    found = json.loads(out)
    assert code == 0
    assert list(found)[:2] == ["distilkit", "python"]
    assert {"torch", "torchaudio", "transformers", "onnxruntime"} <= set(found)
    assert run("--json", "--version")[1] == out
    code, out, _ = run("--version")
    assert out.splitlines() == [f"{name} {number}" for name, number in found.items()]


def test_version_imports_nothing_and_leaves_out_what_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = (
        "import sys; from distilkit.cli.version import versions; versions()\n"
        "print([name for name in ('torch', 'numpy', 'onnxruntime', 'distilkit.config') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    monkeypatch.setattr(version, "PACKAGES", ("torch", "no-such-package"))
    assert list(version.versions()) == ["distilkit", "python", "torch"]


# ---------------------------------------------------------------------------------- little or much


@pytest.mark.parametrize("where", ["before", "behind"])
def test_quiet_leaves_results_and_errors(
    run: Run, speech: Path, teacher_folder: Path, where: str
) -> None:
    def quietly(command: str, *more: object) -> tuple[int, str, str]:
        if where == "before":
            return run("--quiet", command, *more)
        return run(command, *more, "--quiet")

    clip = speech / "b" / "clip01.wav"
    loud = run("embed", clip, "--model", teacher_folder, "--out", "a.npy")
    code, out, err = quietly("embed", clip, "--model", teacher_folder, "--out", "a.npy")
    assert (code, out, err) == (0, loud[1], "")
    assert "model: " in loud[2]
    Path("x.wav").write_text("no audio")
    code, _, err = quietly("embed", "x.wav", clip, "--model", teacher_folder)
    assert code == 1
    assert err.startswith("left out x.wav: cannot be decoded")
    assert err.count("\n") == 1
    assert quietly("inspect", "./nowhere")[2].startswith("error: no such model: `./nowhere`")
    code, out, err = quietly(
        "distill", speech, "--teacher", teacher_folder, "--recipe", "smoke", "--steps", "2",
        "--set", "batches.seconds=4", "--set", "train.precision=fp32",
    )  # fmt: skip
    assert (code, out, err) == (0, f"runs/{speech.name}/student\n", "")


def test_a_word_behind_two_dashes_is_no_option() -> None:
    assert cli.manners_first(["embed", "a", "--quiet", "--", "--verbose"]) == [
        "--quiet", "embed", "a", "--", "--verbose",
    ]  # fmt: skip


def test_what_nobody_expected_is_one_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("division [by] zero\nand more")

    monkeypatch.setattr("distilkit.config.recipe_names", broken)
    code, out, err = run("recipes")
    assert (code, out) == (1, "")
    assert err == (
        "error: unexpected ZeroDivisionError, which is not your mistake: division [by] zero\n\n"
        "hint: distilkit --verbose recipes shows where\n"
    )
    code, out, err = run("recipes", "--verbose")
    assert (code, out) == (1, "")
    assert "in broken\n" in err
    assert err.endswith("\nerror: unexpected ZeroDivisionError, which is not your mistake\n")


@pytest.mark.parametrize(
    ("error", "said", "hint"),
    [
        (
            OSError(28, "No space left on device", "a/b"),
            "`a/b`: No space left on device",
            "make room",
        ),
        (
            OSError(28, "No space left on device"),
            "No space left on device",
            "make room on that disk",
        ),
        (PermissionError(13, "Permission denied", "c"), "`c`: Permission denied", "you can write"),
        (MemoryError(), "out of memory", "--memory 2GB takes less"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "out of memory",
            "--memory 2GB",
        ),
    ],
)
def test_a_full_disk_or_memory_is_called_that(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str, hint: str
) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr("distilkit.config.recipe_names", broken)
    code, out, err = run("recipes")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {said}\n\nhint: ")
    assert hint in err
    assert "unexpected" not in err


def test_verbose_shows_what_libraries_log() -> None:
    code = (
        "import logging, sys; from distilkit import cli\n"
        "from distilkit.cli import recipes\n"
        "import distilkit.config.files as files\n"
        "real = files.recipe_names\n"
        "import distilkit.config as config\n"
        "config.recipe_names = lambda: (logging.getLogger('library').info('read'), real())[1]\n"
        "sys.argv = ['distilkit', 'recipes', *sys.argv[1:]]; cli.main()"
    )

    def said(*more: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", code, *more], capture_output=True, text=True, check=True
        ).stderr

    assert said() == ""
    assert said("--verbose") == "library: read\n"


@pytest.mark.parametrize("colour", [True, False])
def test_colours_on_a_terminal_unless_they_are_not_wanted(colour: bool) -> None:
    """An error on a terminal; NO_COLOR takes the colours away."""
    reader, writer = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color"} | ({} if colour else {"NO_COLOR": "1"})
    command = [sys.executable, "-m", "distilkit", "recipes", "show", "nothing"]
    done = subprocess.run(command, stderr=writer, env=environment, check=False)
    os.close(writer)
    said = os.read(reader, 10_000).decode()
    os.close(reader)
    assert done.returncode == 1
    assert "no recipe `nothing`" in said
    assert ("\x1b[1;31m" in said) == colour


# ------------------------------------------------------------------------------------- completion

OFFERED = {
    "distilkit dist": ["distill"],
    "distilkit recipes sh": ["show"],
    "distilkit distill --res": ["--resume"],
    "distilkit distill --recipe sm": ["smoke"],
    "distilkit recipes show pers": ["personal"],
    "distilkit embed x --format n": ["npy", "npz"],
    "distilkit embed x --model ": ["tiny", "runs/mine", "runs/other"],
    "distilkit embed x --model runs/m": ["runs/mine"],
    "distilkit distill --resume --out runs/o": ["runs/other"],
    "distilkit probe k": ["ks"],
    "distilkit embed x --model ./": [],  # the shell offers files
}


@pytest.mark.parametrize("typed", OFFERED)
def test_bash_completes(tmp_path: Path, typed: str) -> None:
    for name in ("mine", "other"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text("{}")
    tool = tmp_path / "distilkit"
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m distilkit "$@"\n')
    tool.chmod(0o755)  # what the completion calls
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    words = typed.split(" ")
    code = (
        "source <(_DISTILKIT_COMPLETE=source_bash distilkit)\n"
        f"COMP_WORDS=({' '.join(repr(word) for word in words)}) COMP_CWORD={len(words) - 1}\n"
        "_distilkit_completion distilkit\n"
        "printf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    done = subprocess.run(
        ["bash", "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )  # fmt: skip
    assert done.stderr == ""
    assert [word for word in done.stdout.split("\n") if word] == OFFERED[typed]


# ------------------------------------------------------------------------------------ on a terminal


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 40 columns."""
    screen = io.StringIO()
    made = Console(file=screen, width=40, force_terminal=True, color_system=None)
    monkeypatch.setattr(console, "errors", made)
    return screen


def test_prose_is_broken_between_words(narrow: io.StringIO) -> None:
    keys = ", ".join(["gradient_checkpointing", "learning_rate", "precision", "seed", "steps"])
    console.problem(DistilkitError("unknown key `train.save_minutes`", f"keys: {keys}"))
    console.say("the codec of this file promises more than it holds, so it is left out")
    lines = [line.rstrip() for line in narrow.getvalue().splitlines()]
    assert all(len(line) <= 40 for line in lines)
    assert " ".join(lines).split() == [
        *["error:", "unknown", "key", "`train.save_minutes`", "hint:", "keys:"],
        *keys.split(),
        *[
            "the",
            "codec",
            "of",
            "this",
            "file",
            "promises",
            "more",
            "than",
            "it",
            "holds,",
            "so",
            "it",
            "is",
            "left",
            "out",
        ],
    ]


def test_what_is_to_be_typed_stays_one_line(narrow: io.StringIO) -> None:
    command = "distilkit finetune-ctc --resume --out 'runs/a folder with a long name'"
    console.problem(DistilkitError("stopped", command))
    console.say(f"go on with: {command}")
    assert narrow.getvalue() == f"error: stopped\n\nhint: {command}\ngo on with: {command}\n"


def test_a_log_has_a_line_for_each_thing(run: Run) -> None:
    long = "x " * 100
    _, _, err = run("distill", "--teacher", long)
    assert "\n" not in err.partition("\n\nhint: ")[0]


# --------------------------------------------------------------------------------- what is left out


def test_what_is_left_out_is_counted_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = ["not audio", *["silent part"] * 2, "duplicate", "unusable", "unusable"]
    skipped = [Skipped(path="a", reason="why", kind=kind) for kind in kinds]
    console.left_out(skipped[:1], "")
    console.left_out([skipped[0], *skipped], "all in x", shown=0)
    assert capsys.readouterr().err.splitlines() == [
        "left out: 1 file that is not audio",
        "left out: 2 files that are not audio, 2 silent parts, 1 duplicate, 2 unusable (all in x)",
    ]


INPUT_FIRST = (
    "distill ./adio",
    "embed ./adio",
    "units ./adio --model owner/name --layer 1 --clusters 2 --out x",
    "layers ./adio --model owner/name",
    "probe all ./adio --model owner/name",
    "transcribe ./adio --model owner/name",
    "evaluate ./adio --model owner/name",
    "finetune-ctc ./adio --tokenizer x --model owner/name",
)


@pytest.mark.parametrize("typed", INPUT_FIRST)
def test_a_mistyped_folder_is_said_before_a_model_is_fetched(run: Run, typed: str) -> None:
    Path("audio").mkdir()
    code, out, err = run(*typed.split())
    assert (code, out) == (1, "")
    assert err.endswith("error: no such file or folder: `adio`\n\nhint: did you mean `audio`?\n")


@pytest.mark.parametrize(
    ("given", "spin"),
    [({}, cli.SPIN), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_that_wait_give_their_core_away_soon(
    run: Run, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], spin: str | None
) -> None:
    """On a busy machine all others would wait for them; whoever has set this is obeyed."""
    seen: list[str | None] = []
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli, "app", lambda **_: seen.append(os.environ.get("GOMP_SPINCOUNT")))
    assert run("doctor")[0] == 0
    assert seen == [spin]


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_of_probes_breaks_no_cell(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from distilkit.cli import probe
    from distilkit.probes import Outcome, Value
    from distilkit.probes.metrics import Metric, accuracy

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    systems = ["runs/my_audio", "tiny", "log-mel", "random weights"]
    value = Value(value=0.4552, low=0.26, high=0.641)
    outcome = Outcome(
        task="sid", facts={}, metrics=(Metric(name="accuracy", measure=accuracy, higher=True),),
        values={system: {"accuracy": value} for system in systems},
        kept=Value(value=1.176, low=0.81, high=1.71), above_floor=None, chosen={}, seconds={}, skipped=[],
    )  # fmt: skip
    monkeypatch.setattr("sys.stdout", screen := Terminal())
    monkeypatch.setenv("COLUMNS", str(width))
    probe._show([outcome], systems, "tiny")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert max(map(len, shown.splitlines())) <= width
    if width == 80:
        assert re.search(r"^sid +accuracy( +45\.5%){4} +117\.6% *$", shown, re.M)
        assert shown.count("(26 to 64)") == 4
    else:
        assert "speaker identification  accuracy  45.5% (26 to 64)" in shown
