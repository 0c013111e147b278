"""The command line: bad input has one clear error and leaves nothing; the options are frozen."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer
from conftest import Run, voice

from distilkit import cli, demo
from distilkit.demo import speech as built_in_speech
from distilkit.unfinished import here

OPTIONS = {
    "distill": {"--teacher", "--student", "--out", "--recipe", "--set", "--steps", "--hours", "--resume", "--plan", "--seed", "--memory", "--vram", "--json"},
    "embed": {"--model", "--layer", "--pool", "--out", "--format", "--rate", "--json"},
    "layers": {"--model", "--against", "--out", "--minutes", "--json"},
    "units": {"--out", "--model", "--layer", "--clusters", "--codebook", "--normalise", "--minutes", "--seed", "--json"},
    "finetune-ctc": {"--tokenizer", "--model", "--out", "--recipe", "--lora", "--rank", "--merge", "--set", "--steps", "--hours", "--text-column", "--resume", "--plan", "--seed", "--memory", "--vram", "--json"},
    "transcribe": {"--model", "--lm", "--beam", "--lm-weight", "--word-bonus", "--timestamps", "--format", "--out", "--rate", "--delay"},
    "evaluate": {"--model", "--against", "--lm", "--beam", "--lm-weight", "--word-bonus", "--text-column", "--out", "--json"},
    "tokenizer": {"--out", "--kind", "--vocab-size", "--form", "--case", "--punctuation", "--digits", "--language", "--text-column", "--json"},
    "lm": {"--out", "--order", "--tokenizer", "--text-column", "--json"},
    "probe": {"--model", "--against", "--label", "--lexicon", "--text-column", "--folds", "--floors", "--features", "--workers", "--out", "--seed", "--json"},
    "bench": {"--seconds", "--batch", "--precision", "--rounds", "--json"},
    "export": {"--out", "--fp16", "--int8", "--mobile", "--data", "--json"},
    "convert": {"--out", "--format", "--json"},
    "report": {"--out", "--audio", "--json"},
    "push": {"--private", "--message", "--dry-run", "--json"},
    "inspect": {"--text-column", "--json"},
    "demo": {"--out", "--steps", "--resume", "--json"},
    "doctor": {"--json"},
    "recipes": set(),
    "recipes show": set(),
    "recipes copy": set(),
}  # fmt: skip
QUICK = [
    "--recipe", "smoke", "--steps", "2", "--set", "train.precision=fp32", "--set", "batches.seconds=4",
]  # fmt: skip


def commands(group: object = None, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, command in (group or typer.main.get_command(cli.app)).commands.items():  # type: ignore[attr-defined]
        yield prefix + name, command
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")


def test_options_are_frozen() -> None:
    """A new option is a visible decision: most settings belong in the recipe, behind --set."""
    found = {
        name: {o for p in command.params for o in p.opts if o.startswith("-")} - {"--help", "-h"}  # type: ignore[attr-defined]
        for name, command in commands()
    }
    assert found == OPTIONS


def test_the_default_teacher_stands_in_both_places() -> None:
    """The command line spells it out: importing the constant would cost `--help` its speed."""
    from distilkit.hub import DEFAULT_TEACHER

    command = dict(commands())["distill"]
    assert next(p.default for p in command.params if p.name == "teacher") == DEFAULT_TEACHER  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------- bad input


@contextmanager
def powerless() -> Iterator[None]:
    """Root may read everything; somebody else may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def wav(path: Path, sound: np.ndarray, rate: int = 16_000, subtype: str = "PCM_16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate, subtype)
    return path


def text_named_wav(folder: Path) -> None:
    (folder / "x.wav").write_text("I am a text\n" * 50)


def zero_bytes(folder: Path) -> None:
    (folder / "x.wav").touch()


def truncated_flac(folder: Path) -> None:
    path = wav(folder / "x.flac", voice(3.0, 1))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nan_samples(folder: Path) -> None:
    sound = voice(1.0, 1)
    sound[500] = np.nan
    wav(folder / "x.wav", sound, subtype="FLOAT")


def silence(folder: Path) -> None:
    wav(folder / "x.wav", np.zeros(32_000, np.float32))


def too_short(folder: Path) -> None:
    wav(folder / "x.wav", voice(0.01, 1))


UNUSABLE = {
    text_named_wav: "is in no format of sound that is read",
    zero_bytes: "is empty (0 bytes)",
    truncated_flac: "is damaged: ",
    nan_samples: "holds values that are not finite numbers",
    silence: "silent: 2.0 s below -70 dBFS",
    too_short: "0.010 s is shorter than 0.1 s",
}


@pytest.mark.parametrize("make", UNUSABLE, ids=lambda make: make.__name__)
def test_only_unusable_audio_is_an_error(
    run: Run, tmp_path: Path, teacher_folder: Path, make: Callable[[Path], None]
) -> None:
    folder = tmp_path / "audio"
    folder.mkdir()
    make(folder)
    code, out, err = run("distill", folder, "--teacher", teacher_folder, *QUICK)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: 1 of 1 audio files in `{folder}` cannot be used:\n  {folder}/x.")
    assert UNUSABLE[make] in err
    assert err.count("error:") == err.count("hint:") == 1
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("make", UNUSABLE, ids=lambda make: make.__name__)
def test_among_usable_audio_it_is_a_listed_skip(
    run: Run, tmp_path: Path, teacher_folder: Path, speech: Path, make: Callable[[Path], None]
) -> None:
    folder = tmp_path / "audio"
    folder.mkdir()
    make(folder)
    code, out, err = run("distill", folder, speech, "--teacher", teacher_folder, *QUICK)
    assert (code, out) == (0, "runs/audio/student\n"), err
    assert "left out: 1 unusable (all in runs/audio/skipped.tsv)" in err
    rows = Path("runs/audio/skipped.tsv").read_text().splitlines()
    assert len(rows) == 2
    assert rows[1].startswith(f"unusable\t0.00\t{folder}/x.")
    assert UNUSABLE[make].removeprefix("is ") in rows[1].replace("is empty", "empty")


def test_a_file_that_may_not_be_read(
    run: Run, tmp_path: Path, speech: Path, teacher_folder: Path
) -> None:
    folder = tmp_path / "audio"
    closed = wav(folder / "x.wav", voice(1.0, 1))
    closed.chmod(0)
    for parent in [tmp_path, *list(tmp_path.parents)[:3]]:
        parent.chmod(0o755)
    with powerless():
        code, out, _ = run("inspect", folder)
    assert code == 1
    assert f"left out {closed}: cannot open: Permission denied" in out


def test_twenty_four_channels_are_mixed(run: Run, tmp_path: Path) -> None:
    path = wav(tmp_path / "many.wav", np.repeat(voice(2.0, 1)[:, None], 24, 1), 44_100)
    code, out, _ = run("inspect", path, "--json")
    assert code == 0
    assert json.loads(out)["recordings"] == 1


ERRORS: dict[str, tuple[list[str], str, str]] = {
    "missing folder": (
        ["distill", "audoi", "--teacher", "TEACHER"],
        "no such file or folder: `audoi`",
        "did you mean `audio`?",
    ),
    "empty folder": (
        ["distill", "empty", "--teacher", "TEACHER"],
        "no audio in `empty`: no files at all",
        "give a folder with recordings",
    ),
    "folder without audio": (
        ["distill", "notes", "--teacher", "TEACHER"],
        "no audio in `notes`: 1 file, none with a known audio suffix",
        "give a folder with recordings",
    ),
    "no audio given": (["distill"], "no audio given", "distilkit distill ./my_audio"),
    "output holds a run": (
        ["distill", "audio", "--teacher", "TEACHER", "--out", "taken"],
        "`taken` already holds a run",
        "--resume --out taken to go on with it, or another --out",
    ),
    "output holds something": (
        ["distill", "audio", "--teacher", "TEACHER", "--out", "notes"],
        "`notes` is not empty and not a run",
        "another --out",
    ),
    "unknown recipe": (
        ["distill", "audio", "--recipe", "smke"],
        "no recipe `smke`: neither a built-in name nor a file",
        "did you mean `smoke`?",
    ),
    "unknown key": (
        ["distill", "audio", "--set", "train.learning_rat=1"],
        "unknown key `train.learning_rat`",
        "did you mean `train.learning_rate`?",
    ),
    "wrong value": (
        ["distill", "audio", "--set", "train.learning_rate=fast"],
        "`train.learning_rate` cannot be `fast`: must be a valid number",
        "distilkit recipes show paper",
    ),
    "teacher path": (
        ["distill", "audio", "--teacher", "./techer"],
        "no such model: `./techer` is neither a path that exists nor a hub id (`owner/name`)",
        "did you mean `teacher`?",
    ),
    "teacher is audio": (
        ["distill", "audio", "--teacher", "audio"],
        "`audio` is not a checkpoint of a known format (huggingface, ",
        "give a Hugging Face folder, a checkpoint of one of these formats, or a hub id",
    ),
    "nothing to resume": (
        ["distill", "--resume"],
        "no unfinished run under `runs`",
        "distilkit distill AUDIO",
    ),
    "resume with changes": (
        ["distill", "--resume", "--out", "taken", "--steps", "5"],
        "a resumed run keeps its settings: `train.steps=5` cannot change them",
        "leave it out, or start a new run with another --out",
    ),
    "no teacher for layers": (
        ["distill", "audio", "--teacher", "none"],
        "`objective.name` layerwise on layers needs a teacher, and `--teacher none` is none",
        "--set objective.name=units --set objective.features=mfcc",
    ),
    "student path": (
        ["distill", "audio", "--teacher", "TEACHER", "--student", "./studnt"],
        "no such model: `./studnt` is neither a path that exists nor a hub id (`owner/name`)",
        "",
    ),
    "resume with a student": (
        ["distill", "--resume", "--out", "taken", "--student", "teacher"],
        "a resumed run keeps its settings: `--student teacher` cannot change them",
        "leave it out, or start a new run with another --out",
    ),
    "no such codebook": (
        [
            "distill",
            "audio",
            "--teacher",
            "TEACHER",
            "--set",
            "objective.name=units",
            "--set",
            "objective.codebook=book",
        ],
        "no codebook `book`",
        "distilkit units AUDIO --out DIR writes DIR/codebook.safetensors",
    ),
    "no such noise": (
        [
            "distill",
            "audio",
            "--teacher",
            "TEACHER",
            "--set",
            "noise.probability=1",
            "--set",
            "noise.folder=notes",
        ],
        "no noise recordings in `notes`",
        'a folder of audio, or --set noise.folder=""',
    ),
    "start layers": (
        ["distill", "audio", "--teacher", "TEACHER", "--set", "student.start_layers=[4]"],
        "`student.start_layers` [4] does not name one of the teacher's 12 layers for each of the student's 2",
        '--set "student.start_layers=[1,2]"',
    ),
    "units of a layer of nothing": (
        ["units", "audio", "--layer", "4", "--out", "new"],
        "`--layer 4` of no model",
        "--model tiny --layer 4",
    ),
    "units of a layer that is not there": (
        ["units", "audio", "--model", "TEACHER", "--layer", "13", "--out", "new"],
        "no layer `13`: the model has 12",
        "--layer 12",
    ),
    "units over a folder": (
        ["units", "audio", "--out", "notes"],
        "`notes` exists",
        "another --out",
    ),
    "units of nothing": (
        ["units", "notes", "--out", "new"],
        "no usable audio in `notes`",
        "",
    ),
    "units with what is no codebook": (
        ["units", "audio", "--codebook", "notes/diary.txt", "--out", "new"],
        "`notes/diary.txt` is not a codebook: ",
        "distilkit units AUDIO --out DIR writes DIR/codebook.safetensors",
    ),
    "more units than frames": (
        ["units", "audio", "--clusters", "9999", "--out", "new"],
        "9999 clusters cannot be found in ",
        "more audio, or at most 117 clusters",
    ),
    "embed nothing": (
        ["embed", "notes", "--model", "TEACHER"],
        "nothing to embed in `notes`",
        "distilkit inspect FOLDER",
    ),
    "embed without permission to write": (
        ["embed", "audio", "--model", "TEACHER", "--layer", "77"],
        "`--layer 77`: this model has layers 0 to 12",
        "--layer last, --layer all, --layer 1",
    ),
    "recipe copy over a file": (
        ["recipes", "copy", "paper", "notes/diary.txt"],
        "`notes/diary.txt` exists",
        "another file name",
    ),
    "inspect nothing": (
        ["inspect", "./nowhere"],
        "no such model: `./nowhere` is neither a path that exists nor a hub id (`owner/name`)",
        "give a folder with a model, a run, or a hub id such as facebook/hubert-base-ls960",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_problem_and_one_hint(
    run: Run, speech: Path, teacher_folder: Path, name: str
) -> None:
    Path("audio").symlink_to(speech)
    Path("teacher").symlink_to(teacher_folder)
    Path("empty").mkdir()
    Path("notes").mkdir()
    Path("notes/diary.txt").write_text("mine")
    Path("taken").mkdir()
    Path("taken/run.json").write_text("{}")
    before = sorted(path for path in Path().rglob("*"))
    arguments, problem, hint = ERRORS[name]
    code, out, err = run(*[str(teacher_folder) if a == "TEACHER" else a for a in arguments])
    assert (code, out) == (1, "")
    said = err[err.index("error: ") :]
    assert said.startswith(f"error: {problem}")
    assert said.endswith(f"\nhint: {hint}\n" if hint else "\n")
    assert err.count("error:") == 1
    assert "Traceback" not in err
    assert sorted(path for path in Path().rglob("*")) == before


@pytest.mark.enable_socket
def test_a_hub_id_while_offline_answers_soon(speech: Path, tmp_path: Path) -> None:
    """With the hub merely out of reach, not switched off: the slow case."""
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    code = (
        "import time; from distilkit.teachers import load; from distilkit.errors import DistilkitError\n"
        "began = time.monotonic()\n"
        "try: load('owner/name')\n"
        "except DistilkitError as error: print(time.monotonic() - began, error.problem, error.hint, sep='|')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    seconds, problem, hint = done.stdout.split("|")
    assert float(seconds) < 10
    assert problem == "`owner/name` is not in the local cache, and the hub cannot be reached"
    assert (
        hint.strip()
        == "go online once, or name what is here: a folder, a checkpoint, or `tiny`, which is built in"
    )
    assert "Retry" not in done.stderr


def test_a_hub_id_with_the_hub_switched_off(run: Run, speech: Path) -> None:
    began = time.monotonic()
    code, _, err = run("distill", speech, "--teacher", "facebook/hubert-base-ls960")
    assert code == 1
    assert "`facebook/hubert-base-ls960` is not in the local cache" in err
    assert time.monotonic() - began < 10
    assert list(Path.cwd().iterdir()) == []


def test_usage_errors_end_with_2(run: Run) -> None:
    for arguments in (
        ["distil"],
        ["distill", "--nonsense"],
        ["embed"],
        ["distill", "a", "--steps", "0"],
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err
    assert "distill" in run("distil")[2]


# ------------------------------------------------------------------------------------- good input


def test_distill_then_embed_without_naming_the_model(
    run: Run, speech: Path, teacher_folder: Path
) -> None:
    code, out, err = run("distill", speech, "--teacher", teacher_folder, *QUICK, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["steps"] == 2
    assert Path(result["student"]).is_dir()
    code, out, err = run("embed", speech / "b" / "clip01.wav")
    assert code == 0
    assert out == f"clip01.npy\t(42, 32)\t0.85 s\t{result['student']}\n"
    assert "no --model given" in err
    code, out, _ = run("embed", speech, "--pool", "mean", "--json")
    assert code == 0
    assert len(json.loads(out)["files"]) == 12
    code, out, _ = run("inspect", Path(result["student"]).parent, "--json")
    facts = json.loads(out)
    assert facts["state"] == "finished"
    assert facts["steps"] == "2 of 2"
    code, out, _ = run("inspect", result["student"], "--json")
    assert json.loads(out)["transformer layers"] == 2
    code, _, err = run("distill", "--resume")
    assert code == 1
    assert "no unfinished run under `runs`" in err


def test_plan_writes_nothing(run: Run, speech: Path, teacher_folder: Path) -> None:
    code, out, err = run("distill", speech, "--teacher", teacher_folder, *QUICK, "--plan", "--json")
    assert code == 0
    assert "skipped.tsv" not in err
    plan = json.loads(out)
    assert plan["steps"] == 2
    assert plan["seconds_per_step"] > 0
    assert 0 < plan["disk_gib"] < 0.1
    assert plan["usable_hours"] == pytest.approx(
        sum(0.6 + 0.25 * i for i in range(12)) / 3600, abs=1e-3
    )
    assert list(Path.cwd().iterdir()) == []


def test_embed_reports_failures_with_status_1(run: Run, speech: Path, teacher_folder: Path) -> None:
    Path("x.wav").write_text("no audio")
    code, out, err = run("embed", "x.wav", speech / "b" / "clip01.wav", "--model", teacher_folder)
    assert code == 1
    assert out.startswith("embeddings\t1 file\t")
    assert "left out x.wav: cannot be decoded" in err
    assert np.load("embeddings/clip01.npy").shape == (42, 32)


def test_inspect_audio(run: Run, speech: Path) -> None:
    code, out, _ = run("inspect", speech, "--json")
    facts = json.loads(out)
    assert (code, facts["recordings"], facts["formats"]) == (0, 12, {".wav": 8, ".flac": 4})
    code, out, _ = run("inspect", speech)
    assert code == 0
    assert "12" in out


def test_the_plan_says_one_layer_and_a_student_larger_than_its_teacher(
    run: Run, speech: Path, teacher_folder: Path
) -> None:
    command = ["distill", speech, "--teacher", teacher_folder, *QUICK, "--plan"]
    code, _, err = run(*command)
    assert code == 0, err
    assert "more than the teacher" not in err
    code, _, err = run(
        *command, "--set", "student.architecture=deep-thin", "--set", "objective.layers=[2]"
    )
    assert code == 0, err
    assert "parameters, more than the teacher\n" in err
    assert "`layerwise`, layer 2 (L1 1" in err


def test_units_of_mfcc_and_the_same_with_their_codebook(run: Run, speech: Path) -> None:
    code, out, err = run("units", speech, "--clusters", "9", "--out", "new", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert list(facts) == [
        "output", "of", "clusters", "used", "perplexity", "frames_per_run", "windows", "seconds", "skipped",
    ]  # fmt: skip
    assert (facts["output"], facts["of"], facts["clusters"]) == ("new", "MFCC", 9)
    assert (facts["windows"], facts["skipped"]) == (12, 0)
    assert facts["used"] <= 9
    code, out, err = run("units", speech, "--codebook", "new", "--out", "again")
    assert (code, out) == (0, "again\n")
    assert "units of" in err
    assert "MFCC" in err
    for name in ("units.jsonl", "units.km", "codebook.safetensors"):
        assert Path("new", name).read_bytes() == Path("again", name).read_bytes()
    for number, other in enumerate((["--seed", "1"], ["--minutes", "0.05"])):
        code, _, _ = run("units", speech, "--clusters", "9", "--out", f"other{number}", *other)
        found = Path(f"other{number}", "codebook.safetensors").read_bytes()
        assert (code, found == Path("new", "codebook.safetensors").read_bytes()) == (0, False)


def test_units_of_a_model_for_a_run(run: Run, speech: Path, teacher_folder: Path) -> None:
    code, out, _ = run(
        "units", speech, "--model", teacher_folder, "--layer", "4", "--clusters", "9", "--out", "new", "--json"
    )  # fmt: skip
    assert (code, json.loads(out)["of"]) == (0, f"layer 4 of {teacher_folder}")
    settings = ["name=units", "layers=[4]", "clusters=9", "codebook=new"]
    changes = [word for setting in settings for word in ("--set", f"objective.{setting}")]
    code, out, err = run("distill", speech, "--teacher", teacher_folder, *QUICK, *changes)
    assert code == 0, err
    assert "`units`, 9 clusters of layer 4" in err
    assert ", right " in err


def test_going_on_with_a_student(run: Run, speech: Path, teacher_folder: Path) -> None:
    typed = ["distill", speech, "--teacher", teacher_folder, *QUICK]
    code, _, _ = run(*typed, "--set", "student.layers=3", "--out", "first")
    code, out, err = run(*typed, "--student", "first", "--out", "second")
    assert (code, out) == (0, "second/student\n"), err
    assert "100% of its weights are the student's" in err
    student = json.loads(Path("second/run.json").read_text())["student"]
    assert (student["from"]["name"], student["layers"]) == ("first", 3)


def test_units_report_failures_with_status_1(run: Run, speech: Path) -> None:
    Path("x.wav").write_text("no audio")
    code, out, err = run("units", "x.wav", speech / "b", "--clusters", "5", "--out", "new")
    assert (code, out) == (1, "new\n")
    assert "left out x.wav: " in err
    assert "x.wav" in Path("new/skipped.tsv").read_text()
    assert len(Path("new/units.km").read_text().splitlines()) == 6


def test_a_run_without_a_teacher(run: Run, speech: Path) -> None:
    sizes = ["width=32", "heads=4", "feed_forward=64", "conv_widths=[8,8,8,8,8,8,8]"]
    changes = ["objective.name=units", "objective.features=mfcc", "objective.clusters=8"]
    changes += ["noise.probability=0.5", *(f"student.{size}" for size in sizes)]
    typed = [word for change in changes for word in ("--set", change)]
    code, out, err = run("distill", speech, "--teacher", "none", *QUICK, *typed)
    assert (code, out) == (0, f"runs/{speech.name}/student\n"), err
    assert "nothing is distilled: units of MFCC" in err
    assert "50% of clips, 0 to 20 dB of noise" in err
    assert "random weights" in err
    assert "finding the units ..." in err
    code, out, err = run("distill", speech, "--teacher", "none", *QUICK, *typed, "--plan", "--json")
    assert json.loads(out)["steps"] == 2
    code, out, _ = run("inspect", f"runs/{speech.name}", "--json")
    facts = json.loads(out)
    assert (code, facts["teacher"], facts["state"]) == (0, "none", "finished")


def test_the_time_left_is_that_of_the_steps(
    run: Run, speech: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distilkit import distill

    slow = distill.found_codebook

    def slower(*given: object) -> object:
        time.sleep(3.0)  # what is found before the first step
        return slow(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(distill, "found_codebook", slower)
    changes = ["objective.name=units", "objective.clusters=8", "objective.layers=[2]"]
    typed = [word for change in changes for word in ("--set", change)]
    code, _, err = run("distill", speech, "--teacher", teacher_folder, *QUICK, *typed)
    first = next(line for line in err.splitlines() if line.startswith("step 1 of 2"))
    assert code == 0
    assert float(first.rpartition("left ")[2].removesuffix(" s")) < 3.0


def test_nothing_held_out_because_none_was_asked_for(
    run: Run, speech: Path, teacher_folder: Path
) -> None:
    typed = ["--teacher", teacher_folder, *QUICK, "--set", "data.valid_fraction=0"]
    code, _, err = run("distill", speech, *typed)
    assert code == 0
    assert "none are asked for" in " ".join(err.split())
    assert "finding the units" not in err


def test_recipes(run: Run) -> None:
    code, out, _ = run("recipes")
    assert code == 0
    assert all(name in out for name in ("paper", "personal", "smoke"))
    assert run("recipes", "copy", "smoke", "mine.toml")[:2] == (0, "mine.toml\n")
    code, out, _ = run("recipes", "show", "./mine.toml")
    assert out == Path("mine.toml").read_text()


def test_doctor(run: Run) -> None:
    code, out, _ = run("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(out)}
    assert code == 0
    assert {
        "python",
        "versions",
        "imports",
        "device",
        "audio",
        "exported models",
        "disk",
        "hub",
    } == set(checks)
    assert "HF_HUB_OFFLINE" in checks["hub"]["found"]


def test_doctor_names_runtimes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "onnxruntime" in run("doctor")[1]
    monkeypatch.setattr("distilkit.exported.find_spec", lambda _: None)
    assert "no runtime; pip install 'distilkit[export]' brings one" in run("doctor")[1]


def test_doctor_names_a_version_that_does_not_fit(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.metadata

    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "2.15.0" if name == "torch" else real(name)
    )
    code, out, _ = run("doctor", "--json")
    check = next(check for check in json.loads(out) if check["name"] == "torch")
    assert code == 1
    assert not check["well"]
    assert check["found"] == "2.15.0; needs <2.15,>=2.11"
    assert check["mend"] == "pip install 'torch<2.15,>=2.11'"


@pytest.mark.slow
def test_demo(run: Run) -> None:
    code, out, err = run("demo", "--steps", "2")
    assert code == 0, err
    assert "teacher                 tiny" in err
    student, embedding = out.splitlines()[-2:]
    assert Path(student, "model.safetensors").is_file()
    assert np.load(embedding.split("\t")[0]).shape[0] == 210
    for said in ("smaller", "times as fast", "words told apart", "log-mel without a model"):
        assert said in out
    assert "distilkit distill ./my_audio --teacher facebook/hubert-base-ls960" in err
    code, out, _ = run("demo", "--steps", "1", "--json")
    made = json.loads(out)
    assert (code, made["student"]) == (0, "demo-2/run/student")
    assert made["student_parameters"] < made["teacher_parameters"]
    assert 0 <= made["student_words"] <= 1
    code, _, err = run("demo", "--out", "demo")
    assert code == 1
    assert "`demo` is not an empty folder" in err


def test_a_demo_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stopped after the student is there, it goes on to what the student kept."""

    def stopped(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    for folder in sorted(path for path in built_in_speech().iterdir() if path.is_dir())[:3]:
        shutil.copytree(folder, tmp_path / "few" / folder.name)
    monkeypatch.setattr("distilkit.demo.speech", lambda: tmp_path / "few")
    monkeypatch.setattr("distilkit.cli.demo.RECIPE", "smoke")
    monkeypatch.setattr("distilkit.report.complete", lambda run, track: (run.folder, {}))
    gone = subprocess.Popen(["true"])  # killed as it had hardly begun
    gone.wait()
    (Path("demo of mine") / f".run.partial-{gone.pid}-{here()}").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr("distilkit.demo.compare", stopped)
        code, _, err = run("demo", "--steps", "2", "--out", "demo of mine")
    said = "go on with: distilkit demo --resume --out 'demo of mine'"
    assert (code, err.splitlines()[-1]) == (130, said)
    code, _, err = run("demo", "--resume", "--out", "demo of mine", "--steps", "3")
    assert code == 1
    assert "`--steps 3` cannot change them" in err
    Path("demo of mine").rename("demo-3")
    kept = demo.Kept(
        student_parameters=1,
        teacher_parameters=4,
        speed_up=2,
        student_words=0.5,
        teacher_words=1,
        log_mel_words=0.25,
    )
    monkeypatch.setattr("distilkit.demo.compare", lambda *_: kept)
    code, out, err = run("demo", "--resume")  # the newest here
    assert code == 0, err
    assert "75.0% smaller" in out
    assert Path(out.splitlines()[-2]) == Path("demo-3/run/student")


def test_the_built_in_speech_is_whole(run: Run) -> None:
    code, out, _ = run("inspect", built_in_speech(), "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["recordings"] == 543
    assert facts["left out"] == {}  # its table is read, not left out
    assert sum(p.stat().st_size for p in built_in_speech().rglob("*") if p.is_file()) < 6_000_000


def test_help_names_every_command_and_needs_no_terminal() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "distilkit", "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "NO_COLOR": "1", "TERM": "dumb"},
    )  # fmt: skip
    assert all(name.split()[0] in done.stdout for name in OPTIONS)
    assert "\x1b" not in done.stdout
