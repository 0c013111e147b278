"""The scripts of docs/examples run, and so does every block of Python in the pages."""

import ast
import csv
import importlib.util
import inspect
import io
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from distilkit import demo, distill, export, teachers
from distilkit.audio import load
from distilkit.teachers import Checkpoint

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs" / "examples"
VOICES, COUNT = 6, 6  # of the built-in words
EXPORT = export.export

Example = Callable[..., str]


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six built-in words by six built-in voices, with a table that has a column for every label."""
    folder = tmp_path_factory.mktemp("examples") / "my_speech"
    folder.mkdir()
    with (demo.WORDS / "metadata.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    said = sorted({row["transcription"] for row in rows})[:COUNT]
    voices = sorted({row["speaker"] for row in rows})[:VOICES]
    lines = ["file_name,transcription,keyword,speaker"]
    for row in rows:
        if row["transcription"] in said and row["speaker"] in voices:
            to = folder / row["file_name"]
            to.parent.mkdir(exist_ok=True)
            shutil.copy(demo.WORDS / row["file_name"], to)
            word = row["transcription"]
            lines.append(f"{row['file_name']},{word},{word},{row['speaker']}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    assert len(lines) == 1 + VOICES * COUNT
    return folder


@pytest.fixture
def example(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Example:
    """Run a script of docs/examples in an empty folder; what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *arguments: object) -> str:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        capfd.readouterr()
        module.main([str(argument) for argument in arguments])
        return capfd.readouterr().out

    return call


def test_every_example_is_run_here() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    run_here = set(re.findall(r"example\(\s*\"(\w+)\"", Path(__file__).read_text(encoding="utf-8")))
    assert scripts == run_here
    assert len(scripts) == 6


def test_distil(example: Example, words: Path, tmp_path: Path) -> None:
    file = next(words.glob("*/*.ogg"))
    printed = example("distil", words, "--steps", 5, "--step-seconds", 4, "--embed", file)
    assert re.search(r"^step 5: loss \d\.\d{3}, \d", printed, re.MULTILINE)
    assert (tmp_path / "runs/example/student/model.safetensors").is_file()
    vectors_TD = np.load(tmp_path / "runs/example/vectors.npy")
    assert vectors_TD.shape == ((len(load(file)) - 400) // 320 + 1, 160)


def test_search(example: Example, words: Path) -> None:
    names = {path.relative_to(words).as_posix() for path in words.glob("*/*.ogg")}
    query = sorted(names)[7]
    printed = example("search", words, "--query", query, "--groups", 3)
    near = re.findall(r"^  (\S+)  (\d\.\d\d)$", printed, re.MULTILINE)
    assert len(near) == 5
    assert {name for name, _ in near} <= names - {query}
    assert near == sorted(near, key=lambda pair: -float(pair[1]))
    sizes = re.findall(r"^group \d, (\d+) recordings", printed, re.MULTILINE)
    assert sum(map(int, sizes)) == len(names) == VOICES * COUNT
    assert "36 recordings, 1 left out" in printed


def test_recogniser(example: Example, words: Path, tmp_path: Path) -> None:
    printed = example("recogniser", words, "--steps", 2, "--write-down", words / "voice-01")
    assert re.search(r"^step 2: loss", printed, re.MULTILINE)
    assert len(re.findall(r"^\d+\.ogg: ", printed, re.MULTILINE)) == COUNT
    assert (tmp_path / "runs/example-ctc/model/config.json").is_file()


def test_keywords(example: Example, words: Path, teacher_folder: Path) -> None:
    arguments = ("--label", "keyword", "--against", teacher_folder, "--workers", 0)
    printed = example("keywords", words, *arguments)
    shares = dict(re.findall(r"^(\S+): (\d+\.\d)% right", printed, re.MULTILINE))
    assert set(shares) == {"log-mel", "tiny", str(teacher_folder)}
    assert float(shares["tiny"]) > float(shares["log-mel"])
    kept = re.findall(rf"^kept of {teacher_folder}: (\d+\.\d)%$", printed, re.MULTILINE)
    assert float(kept[0]) > 100  # of a random one


def test_plain_transformers(example: Example) -> None:
    printed = example("plain_transformers")
    samples = len(load(demo.WORDS / "voice-01" / "001.ogg"))
    frames = (samples - 400) // 320 + 1
    assert f"last layer: (1, {frames}, 160)\nlayers: 13" in printed
    tree = ast.parse((EXAMPLES / "plain_transformers.py").read_text(encoding="utf-8"))
    named = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None), *(alias.name for alias in node.names)]
    }
    assert "transformers" in named
    assert not any(str(name).startswith("distilkit") for name in named)


@pytest.mark.slow
def test_on_device(example: Example, words: Path, teacher_folder: Path, tmp_path: Path) -> None:
    file = next(words.glob("*/*.ogg"))
    printed = example("on_device", file, "--model", teacher_folder, "--data", words / "voice-01")
    assert re.search(
        r"^onnxruntime: least cosine of the last layer (0\.99\d\d|1\.0000)$", printed, re.MULTILINE
    )
    frames = (len(load(file)) - 400) // 320 + 1
    assert f"without PyTorch: ({frames}, 32)" in printed
    assert (tmp_path / "example-model" / "model.onnx").is_file()


# ------------------------------------------------------------------------------ blocks in the pages


def blocks(page: str) -> list[str]:
    """The blocks of Python in a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


# What takes long or needs a network, and what stands in for it.
INSTEAD = {
    '"train.steps=1000"': '"train.steps=3", "batches.seconds=4"',
    '"train.steps=3000"': '"train.steps=2", "batches.seconds=4", "train.device=cpu"',
    'against="teacher")': 'against="teacher", workers=0)',
    "minutes=5": "minutes=0.2",
    '"*.flac"': '"*.ogg"',
}


@pytest.fixture
def place(
    words: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with what the pages name, the default teacher small, the default recipe short."""
    monkeypatch.chdir(tmp_path)
    for name in ("my_audio", "my_speech", "interviews"):
        shutil.copytree(words, tmp_path / name)
    wave = load(next(words.glob("*/*.ogg")))
    soundfile.write(tmp_path / "file.wav", wave, 16_000, "PCM_16")
    recipe = "[train]\nsteps = 3\n\n[batches]\nseconds = 4.0\n"
    (tmp_path / "short.toml").write_text(recipe)
    monkeypatch.setattr(distill, "DEFAULT_RECIPE", str(tmp_path / "short.toml"))
    there = teachers.load

    def small(name: str, *rest: Any, **more: Any) -> tuple[Any, Checkpoint]:
        name = str(teacher_folder) if name == "facebook/hubert-base-ls960" else name
        return there(name, *rest, **more)

    monkeypatch.setattr(teachers, "load", small)
    heard = (wave * 32767).astype("<i2").tobytes() * 20
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(heard)))
    return tmp_path


def exported(name: str, out: Path, **options: Any) -> Any:
    """In place of an export, which takes long and which test_on_device does: the model as it is."""
    inspect.signature(EXPORT).bind(name, out, **options)
    shutil.copytree(Path(name) / "model", out)
    return SimpleNamespace(
        checks=[SimpleNamespace(runtime="", layers=[SimpleNamespace(cosine=1.0)])]
    )


@pytest.mark.slow
def test_python_in_the_pages_runs(
    place: Path, words: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Block by block, in the order of the page from Python, which makes what the others use."""
    from distilkit import config, tokenizers

    texts = [line.split(",")[1] for line in (words / "metadata.csv").read_text().splitlines()[1:]]
    made = tokenizers.train(texts, config.Tokenizer(), config.Text())
    tokenizers.save(made, place / "my_tokens")
    monkeypatch.setattr(export, "export", exported)
    pages = {
        "docs/reference/python.md": 8,
        "README.md": 1,
        "docs/guides/recognition.md": 1,
        "docs/guides/many-machines.md": 1,
    }
    used = set()
    for page, count in pages.items():
        found = blocks(page)
        assert len(found) == count, page
        space: dict[str, Any] = {"__name__": "__main__", "samples": load(place / "file.wav")}
        for block in found:
            code = block.replace("runs/my_audio/student", "runs/mine/student")
            for old, new in INSTEAD.items():
                used |= {old} if old in code else set()
                code = code.replace(old, new)
            import time

            b = time.process_time()
            exec(compile(code, page, "exec"), space)
            print(
                "BLOCK",
                page,
                code.splitlines()[3][:40],
                time.process_time() - b,
                file=sys.__stdout__,
                flush=True,
            )  # noqa: S102
        if page == "README.md":
            assert space["frames"].shape[2] == 32
    assert used == set(INSTEAD)
    assert (place / "runs/shorter/student").is_dir()
    assert (place / "vectors/embeddings.jsonl").is_file()
    assert len(list((place / "shards").glob("*.tar"))) == 1
    assert "teacher" not in capfd.readouterr().err
