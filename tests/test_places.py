"""Folders that cannot be written, recordings that vanish, rights that are lost in mid-run: one error, and on."""

import importlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import soundfile
from conftest import Run, quick, unprivileged, voice

from distilkit import data
from distilkit.config import Data
from distilkit.data import Found
from distilkit.distill import distill, prepare, train
from distilkit.errors import DistilkitError


@pytest.fixture
def home(public: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that every user can reach and write, the cache and temporary files in it."""
    (public / "tmp").mkdir()
    (public / "tmp").chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(public / "tmp"))
    monkeypatch.setenv("DISTILKIT_CACHE", str(public / "cache"))
    return public


def shared(source: Path, place: Path) -> Path:
    """A copy that everybody may read."""
    shutil.copytree(source, place)
    for path in [place, *place.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return place


WRITING = {
    "distill": "distill {speech} --teacher {teacher} --recipe smoke --out {locked}/run",
    "finetune-ctc": "finetune-ctc {said} --model {teacher} --tokenizer {letters} --recipe ctc --out {locked}/run",
    "embed": "embed {speech} --model {teacher} --out {locked}/vectors",
    "embed one file": "embed {speech}/a/clip00.flac --model {teacher} --out {locked}/a.npy",
    "embed packed": "embed {speech} --model {teacher} --format npz --out {locked}/a.npz",
    "units": "units {speech} --model {teacher} --clusters 4 --out {locked}/units",
    "export": "export {teacher} --data {speech} --out {locked}/exported",
    "probe": "probe sid {said} --model {teacher} --workers 0 --out {locked}/page.html",
    "tokenizer": "tokenizer {said} --out {locked}/tokens",
    "convert": "convert {teacher} --out {locked}/model",
    "recipe": "recipes copy paper {locked}/mine.toml",
    "lm": "lm {said} --tokenizer {letters} --out {locked}/words.arpa",
    "layers": "layers {speech} --model {teacher} --out {locked}/pictures",
    "transcribe": "transcribe {said} --model {hears} --out {locked}/texts",
    "transcribe one file": "transcribe {said}/clip00.flac --model {hears} --out {locked}/a.txt",
    "evaluate": "evaluate {said} --model {hears} --out {locked}/each.jsonl",
    "report": "report {trained} --out {locked}/page.html",
}


@pytest.mark.parametrize("name", WRITING)
def test_a_folder_that_cannot_be_written(
    name: str, run: Run, home: Path, monkeypatch: pytest.MonkeyPatch,
    speech: Path, transcribed: Path, teacher_folder: Path, letters: Path, tuned: Path,
) -> None:  # fmt: skip
    places = {
        "hears": shared(tuned / "model", home / "hears"),
        "trained": shared(tuned, home / "trained"),
        "speech": shared(speech, home / "speech"),
        "said": shared(transcribed, home / "said"),
        "teacher": shared(teacher_folder, home / "teacher"),
        "letters": shared(letters, home / "letters"),
        "locked": home / "locked",
    }
    places["locked"].mkdir(mode=0o555)
    monkeypatch.chdir(home)
    words = WRITING[name].format(**places).split()
    for module in ("multiprocessing.pool", "matplotlib.font_manager", "matplotlib.figure"):
        importlib.import_module(module)  # others may not read every Python
    with unprivileged():
        code, out, err = run(*words)
    assert (code, out) == (1, ""), err
    assert err.count("error:") == 1
    assert "unexpected" not in err
    told = err[err.index("error:") :]
    assert str(places["locked"]) in told
    assert "Permission denied" in told
    assert "you can write" in told or "--out" in told
    assert list(places["locked"].iterdir()) == []
    assert not [*home.glob(".*"), *(home / "tmp").iterdir()]


def test_a_place_that_cannot_be_written_is_noticed_before_the_work(
    run: Run,
    transcribed: Path,
    teacher_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distilkit.probes.solve", lambda *_, **__: pytest.fail("worked in vain"))
    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    words = ("probe", "sid", transcribed, "--model", teacher_folder, "--workers", 0)
    code, _, err = run(*words, "--out", tmp_path / "page.html")
    assert code == 1
    assert f"cannot write `{tmp_path}/page.html`: Read-only file system" in err


def refused(**_: object) -> None:
    raise OSError(30, os.strerror(30))


def results(run: Path) -> dict[str, bytes]:
    names = ("metrics.jsonl", "student/model.safetensors", "heads.safetensors")
    return {name: (run / name).read_bytes() for name in names}


STORES = ["none", "fp16"]


@pytest.mark.parametrize("store", STORES)
def test_recordings_that_are_away_for_a_while(
    speech: Path, teacher_folder: Path, tmp_path: Path, store: str
) -> None:
    """As on a disk that was pulled out: what is left of the run goes on once they are back."""
    audio = tmp_path / "audio"
    shutil.copytree(speech, audio)
    recipe = quick(f"targets.store={store}")
    options = {"teacher": str(teacher_folder), "recipe": recipe}
    distill([audio], out=tmp_path / "whole", **options)
    out = tmp_path / "broken"
    steps = train(prepare([audio], out=out, **options))
    assert next(steps).number == 1
    audio.rename(tmp_path / "away")
    with pytest.raises(DistilkitError, match=rf"`{audio}/.*can no longer be read") as told:
        list(steps)
    assert "--resume" in str(told.value.hint)
    with pytest.raises(DistilkitError, match=rf"`{audio}/.*is gone, and this run needs it"):
        prepare([], out=out, resume=True)
    (tmp_path / "away").rename(audio)
    list(train(prepare([], out=out, resume=True)))
    assert results(out) == results(tmp_path / "whole")


def test_a_run_folder_that_can_no_longer_be_written(
    speech: Path, teacher_folder: Path, home: Path
) -> None:
    """In mid-run, as where a disk is mounted read-only after a fault: on with it once it can."""
    audio, teacher = shared(speech, home / "audio"), shared(teacher_folder, home / "teacher")
    options = {"teacher": str(teacher), "recipe": quick("targets.store=none")}
    out = home / "broken"

    def rights(folder: int, file: int) -> None:
        for path in [out, *out.rglob("*")]:
            path.chmod(folder if path.is_dir() else file)

    with unprivileged():
        distill([audio], out=home / "whole", **options)
        steps = train(prepare([audio], out=out, **options))
        assert [next(steps).number for _ in range(3)] == [1, 2, 3]
        rights(0o555, 0o444)
        with pytest.raises(DistilkitError, match=f"cannot write `{out}.*Permission denied") as told:
            list(steps)
        assert "you can write" in str(told.value.hint)
        with pytest.raises(DistilkitError, match=f"cannot write `{out}/.lock`: Permission denied"):
            list(train(prepare([], out=out, resume=True)))
        rights(0o755, 0o644)
        list(train(prepare([], out=out, resume=True)))
        assert results(out) == results(home / "whole")
    assert not [path for path in home.rglob(".*") if path.name != ".lock"]


def late(found: list[Found]) -> list[Found]:
    """What was found, of which one file is gone when it is read."""
    (gone,) = [item.path for item in found if item.path.name == "b.wav"]
    gone.unlink()
    return found


@pytest.fixture
def three(tmp_path: Path) -> Path:
    folder = tmp_path / "three"
    folder.mkdir()
    for index, name in enumerate("abc"):
        soundfile.write(folder / f"{name}.wav", voice(1.0, index), 16_000, "PCM_16")
    return folder


def test_a_recording_that_vanishes_before_it_is_read_is_listed(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = data.find
    monkeypatch.setattr(data, "find", lambda *given, **more: late(list(real(*given, **more))))
    clips, skipped = data.survey([three], Data())
    assert [clip.id for clip in clips] == ["a.wav", "c.wav"]
    assert [(Path(item.path).name, item.reason) for item in skipped] == [
        ("b.wav", "cannot open: No such file or directory")
    ]


def test_a_recording_that_vanishes_is_listed_and_the_others_embedded(
    run: Run, three: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distilkit import embed

    real = embed.find
    monkeypatch.setattr(embed, "find", lambda *given, **more: late(list(real(*given, **more))))
    code, _, err = run("embed", three, "--model", teacher_folder, "--out", tmp_path / "out")
    assert code == 1
    assert "b.wav: cannot open: No such file or directory" in err
    assert sorted(path.name for path in (tmp_path / "out").glob("*.npy")) == ["a.npy", "c.npy"]
