"""`distilkit probe`: labels of tables and folders, frames computed once, the command and its page."""

import csv
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import Run, make_model, voice

from distilkit import config, probes, stored
from distilkit.audio import SAMPLE_RATE, frames
from distilkit.data import transcripts
from distilkit.data.scan import cache_folder
from distilkit.encoder import Encoder, encode, exact
from distilkit.errors import DistilkitError
from distilkit.probes import features
from distilkit.probes.examples import Asked
from distilkit.probes.heads import Effort

ROWS = [
    (f"{word}-{person}-{take}", word, f"p{person}", f"say {word}" if take else word)
    for person in range(6)
    for word in ("up", "down")
    for take in range(2)
]


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips of two words by six speakers, with a table of labels."""
    folder = tmp_path_factory.mktemp("labelled")
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "keyword", "speaker", "transcription", "weather"])
        for seed, (name, word, person, said) in enumerate(ROWS):
            sound = voice(0.5 + 0.02 * (seed % 4), seed)
            if word == "down":
                sound *= np.linspace(1, 0.05, len(sound), dtype=np.float32)
            soundfile.write(folder / f"{name}.wav", sound, SAMPLE_RATE, "PCM_16")
            table.writerow([f"{name}.wav", word, person, said, "calm"])
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few steps for every head."""
    few = Effort(rates=(1e-2,), trial=2, steps=4, batch=8, every=2, patience=2)
    for name, task in probes.TASKS.items():
        monkeypatch.setitem(
            probes.TASKS, name, replace(task, effort=few, splits=min(2, task.splits or 2))
        )
    return


def edited(folder: Path, place: Path, change: object) -> Path:
    """A copy of a folder whose table's rows were changed."""
    shutil.copytree(folder, place)
    with (place / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = change(rows) or rows  # type: ignore[operator]
    with (place / "metadata.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return place


# ---------------------------------------------------------------------------------------- labels


def columns(folder: Path) -> dict[str, dict[str, str]]:
    return {cut.id: cut.custom["columns"] for cut in probes.read([folder]).cuts}


def test_columns_of_a_table(labelled: Path) -> None:
    found = columns(labelled)
    assert len(found) == 24
    assert found["up-0-1.wav"] == {
        "keyword": "up",
        "speaker": "p0",
        "transcription": "say up",
        "weather": "calm",
    }
    cut = next(cut for cut in probes.read([labelled]).cuts if cut.id == "up-0-1.wav")
    assert cut.supervisions[0].speaker == "p0"
    assert cut.supervisions[0].text == "say up"
    assert len(cut.custom["digest"]) == 40


def test_a_table_without_text(labelled: Path, tmp_path: Path) -> None:
    def textless(rows: list[dict[str, str]]) -> None:
        for row in rows:
            del row["transcription"]

    folder = edited(labelled, tmp_path / "textless", textless)
    assert columns(folder)["up-0-1.wav"] == {"keyword": "up", "speaker": "p0", "weather": "calm"}
    with pytest.raises(DistilkitError, match="no column of text"):
        transcripts.read([folder], config.Transcribed())


def test_names_of_folders_are_labels(labelled: Path, tmp_path: Path) -> None:
    for word in ("up", "down"):
        (tmp_path / "data" / word).mkdir(parents=True)
        for person in range(3):
            shutil.copy(labelled / f"{word}-{person}-0.wav", tmp_path / "data" / word)
    shutil.copy(labelled / "up-4-0.wav", tmp_path / "data")
    found = columns(tmp_path / "data")
    assert found["down/down-1-0.wav"] == {"label": "down"}
    assert found["up-4-0.wav"] == {}
    problems, _ = probes.prepare(["ks"], probes.read([tmp_path / "data"]).cuts, Asked())
    assert problems["ks"].facts["classes"] == {"label": {"down": 3, "up": 3}}
    assert [item.reason for item in problems["ks"].skipped] == ["it has no label"]


def test_values_that_are_no_labels(labelled: Path, tmp_path: Path) -> None:
    shutil.copy(labelled / "up-0-0.wav", tmp_path)
    row = {"file_name": "up-0-0.wav", "keyword": "up", "box": [1, 2], "count": 3, "none": None}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    assert columns(tmp_path)["up-0-0.wav"] == {"keyword": "up", "box": "", "count": "3", "none": ""}


def test_no_audio_at_all(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DistilkitError, match="no audio that can be used"):
        probes.read([tmp_path])


# ---------------------------------------------------------------------------------------- frames


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(model=exact(make_model()), normalise=False)


def heard(system: features.System, folder: Path, cuts: list) -> features.Features:
    _, work, store = features.compute(system, cuts, folder, "cpu")
    list(work())
    return features.Features(system.name, store)


def test_frames_are_those_of_each_clip_alone(
    encoder: Encoder, labelled: Path, tmp_path: Path
) -> None:
    cuts = probes.read([labelled]).cuts[:9]
    found = heard(features.model("m", encoder, "cpu", "fp32"), tmp_path, cuts)
    assert (found.states, found.width) == (13, 32)
    states, lengths = found.rows(cuts)
    assert lengths.tolist() == [frames(cut.num_samples) for cut in cuts]
    at = 0
    for cut, length in zip(cuts, lengths.tolist(), strict=True):
        wave = torch.from_numpy(cut.load_audio())
        with torch.no_grad():
            wanted = torch.stack(encode(encoder, wave, [wave.shape[1]], range(13)))[:, 0]
        torch.testing.assert_close(found.frames(cut), wanted, atol=5e-3, rtol=2e-3)  # fp16
        torch.testing.assert_close(
            torch.stack([s[at : at + length] for s in states]), found.frames(cut)
        )
        torch.testing.assert_close(found.means([cut])[0], wanted.mean(1), atol=5e-3, rtol=2e-3)
        at += length


def test_frames_are_computed_once(encoder: Encoder, labelled: Path, tmp_path: Path) -> None:
    cuts = probes.read([labelled]).cuts
    system = features.model("m", encoder, "cpu", "fp32")
    assert features.compute(system, cuts, tmp_path, "cpu")[0] == 24
    first = heard(system, tmp_path, cuts[:8]).frames(cuts[0])
    missing, work, store = features.compute(system, cuts, tmp_path, "cpu")
    assert missing == 16
    assert len(list(work())) >= 16
    torch.testing.assert_close(features.Features("m", store).frames(cuts[0]), first)
    assert features.compute(system, cuts, tmp_path, "cpu")[0] == 0
    other = features.model("m", Encoder(model=exact(make_model(1)), normalise=False), "cpu", "fp32")
    assert features.compute(other, cuts, tmp_path, "cpu")[0] == 24


def test_floors(encoder: Encoder, labelled: Path, tmp_path: Path) -> None:
    cuts = probes.read([labelled]).cuts[:3]
    mel = heard(features.log_mel(), tmp_path, cuts)
    assert (mel.states, mel.width) == (1, 240)
    for cut in cuts:
        assert mel.frames(cut).shape == (1, frames(cut.num_samples), 240)
    random = features.random(encoder, "cpu", "fp32")
    assert random.kept.widths == (32,) * 13
    assert random.kept.model != features.model("m", encoder, "cpu", "fp32").kept.model
    assert random.kept == features.random(encoder, "cpu", "fp32").kept  # the same each time
    drawn = heard(random, tmp_path, cuts)
    assert not torch.allclose(drawn.frames(cuts[0]), mel.frames(cuts[0])[:, :, :32])


def test_log_mel_keeps_the_models_time() -> None:
    """A hiss from 0.5 s on is first in the frame of 25 ms that begins at 0.48 s."""
    sound_S = torch.zeros(SAMPLE_RATE)
    sound_S[SAMPLE_RATE // 2 :] = torch.randn(SAMPLE_RATE // 2, generator=torch.manual_seed(0))
    (rows_BTD,) = features.log_mel().targets(sound_S[None], [SAMPLE_RATE])
    assert rows_BTD.shape[1] == frames(SAMPLE_RATE)
    loud_T = rows_BTD[0, :, :80].mean(1) > rows_BTD[0, :20, :80].mean() + 1
    assert int(loud_T.int().argmax()) == 24
    assert loud_T[25:].all()


def test_no_room(
    encoder: Encoder, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = probes.read([labelled]).cuts
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(DistilkitError, match="frames of log-mel take") as caught:
        features.compute(features.log_mel(), cuts, tmp_path, "cpu")
    assert caught.value.hint == "--features FOLDER, on a disk with room"


def test_damaged_frames(labelled: Path, tmp_path: Path) -> None:
    cuts = probes.read([labelled]).cuts[:4]
    heard(features.log_mel(), tmp_path, cuts)
    (data,) = tmp_path.glob("*/part-0.bin")
    data.write_bytes(b"\x00" * data.stat().st_size)
    store = stored.Store(data.parent, features.log_mel().kept)
    with pytest.raises(DistilkitError, match="are damaged"):
        features.Features("log-mel", store).frames(cuts[0])


# --------------------------------------------------------------------------------------- command


class Page(HTMLParser):
    """What a page holds: text, and what it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.fetched, self.tags = "", [], []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_one_task(run: Run, quick: None, labelled: Path, teacher_folder: Path) -> None:
    cache = Path(os.environ["DISTILKIT_CACHE"])
    (cache / ".distilkit-killed" / "frames").mkdir(parents=True)
    code, out, err = run("probe", "ks", labelled, "--model", teacher_folder, "--workers", 0)
    assert code == 0, err
    assert "keyword spotting" in out
    assert "accuracy" in out
    assert "log-mel" in out
    assert "random weights" in out
    assert "kept" not in out
    assert not list(cache.glob(".*"))  # frames are gone, those of a killed probe too


def test_every_column_has_a_line(
    run: Run, quick: None, labelled: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    def more(rows: list[dict[str, str]]) -> None:
        for place, row in enumerate(rows):
            row |= {"size": ("small", "large")[place % 2], "loud": ("yes", "no")[place // 2 % 2]}

    there = edited(labelled, tmp_path / "more", more)
    code, out, err = run(
        "probe", "ic", there, "--label", "keyword", "--label", "size", "--label", "loud",
        "--model", teacher_folder, "--workers", 0,
    )  # fmt: skip
    assert code == 0, err
    for name in ("accuracy", "keyword", "size", "loud"):
        assert re.search(rf"\b{name} ", out), out


def test_what_is_to_be_installed_for_a_task_is_said(
    monkeypatch: pytest.MonkeyPatch, labelled: Path
) -> None:
    def lacking(*_: object) -> None:
        raise DistilkitError("it needs a library", "pip install 'distilkit[probes]'")

    monkeypatch.setitem(probes.TASKS, "sd", replace(probes.TASKS["sd"], prepare=lacking))
    left = probes.prepare(["all"], probes.read([labelled]).cuts, Asked())[1]
    assert left["sd"] == "it needs a library; pip install 'distilkit[probes]'"
    assert left["er"].startswith("no column for emotions")
    assert "--label" not in left["er"]


def test_two_models_a_page_and_json(
    run: Run, quick: None, labelled: Path, teacher_folder: Path, large_folder: Path
) -> None:
    code, out, err = run(
        "probe", "all", labelled, "--model", teacher_folder, "--against", large_folder, "--json",
        "--out", "pages/kept.html", "--features", "kept", "--workers", 0,
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    names = [task["task"] for task in found["tasks"]]
    assert names == [name for name in probes.TASKS if name != "er"]
    assert "er" in found["left_out"]
    assert "no column for emotions" in found["left_out"]["er"]
    systems = [str(teacher_folder), str(large_folder), "log-mel", "random weights"]
    for task in found["tasks"]:
        assert list(task["values"]) == systems
        for values in task["values"].values():
            assert list(values) == [metric["name"] for metric in task["metrics"]]
            for value in values.values():
                assert value["low"] <= value["high"]
        assert set(task["seconds"]) == set(systems)
    (keyword,) = (task for task in found["tasks"] if task["task"] == "ks")
    mine, other = (keyword["values"][name]["accuracy"]["value"] for name in systems[:2])
    assert keyword["kept"]["value"] == pytest.approx(mine / other, abs=1e-4)
    assert keyword["facts"]["examples"] == 24
    above = 0
    for task in found["tasks"]:
        (name, better) = task["metrics"][0]["name"], task["metrics"][0]["higher_is_better"]
        values = [task["values"][each][name]["value"] for each in systems[:3]]
        mine, other, floor = values if better else [1 - value for value in values]
        if other > floor:
            assert task["kept_above_floor"] == pytest.approx(
                (mine - floor) / (other - floor), abs=0.01
            )
            above += 1
        else:
            assert task["kept_above_floor"] is None
    assert above
    page = Page()
    page.feed(Path("pages/kept.html").read_text(encoding="utf-8"))
    assert not page.fetched
    for word in (
        "keyword spotting",
        "Left out",
        "emotion recognition",
        "log-mel",
        "Kept on average",
    ):
        assert word in page.text
    assert page.tags.count("details") == len(names)
    assert len(list(Path("kept").glob("*/store.json"))) == 4
    killed = cache_folder().parent / ".distilkit-killed"
    killed.mkdir(parents=True)
    code, out, err = run(
        "probe", "ks", labelled, "--model", teacher_folder, "--out", "pages/kept.html"
    )
    assert code == 1
    assert "`pages/kept.html` already exists" in err
    assert not killed.exists()


def test_the_page_counts_what_has_no_label(
    run: Run, quick: None, labelled: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(labelled, tmp_path / "some")
    table = (data / "metadata.csv").read_text(encoding="utf-8")
    lines = [
        ",,".join(line.split(",down,")) if i % 4 == 0 else line
        for i, line in enumerate(table.splitlines())
    ]
    (data / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    count = sum(",," in line for line in lines)
    code, _, err = run(
        "probe", "ks", data, "--model", teacher_folder, "--workers", 0, "--out", "some.html"
    )  # fmt: skip
    assert code == 0, err
    page = Page()
    page.feed(Path("some.html").read_text(encoding="utf-8"))
    assert count > 1
    assert f"recordings without a label: {count}" in page.text


def test_processes_give_the_same(quick: None, labelled: Path, tmp_path: Path) -> None:
    """Sent to others, jobs come back with the very numbers; efforts there are the real ones, so few clips."""
    cuts = probes.read([labelled]).cuts
    problems, _ = probes.prepare(["qbe"], cuts, Asked())
    given = probes.hear([features.log_mel()], problems, tmp_path, "cpu")
    outcomes = [
        list(probes.solve(problems, given, against=None, workers=workers)) for workers in (0, 2)
    ]
    values = [outcome.values["log-mel"]["MTWV"] for (outcome,) in outcomes]
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("arguments", "problem", "hint"),
    [
        (["kws"], "`TASK` cannot be `kws`", "did you mean `ks`"),
        (["ks", "sid"], "`sid` is a task: one at a time, or all", "distilkit probe all"),
        (
            ["ks", "--label", "keywort"],
            "`keywort` is no column of this data",
            "did you mean `keyword`?",
        ),
        (["er"], "no column for emotions: expected `emotion`", "--label keyword"),
        (
            ["er", "--label", "weather"],
            "one class only, `calm`, in column `weather`",
            "--label COLUMN",
        ),
        (["all", "--label", "keyword"], "`--label` with `all`", "distilkit probe ks"),
        (["asr", "--label", "keyword"], "asr takes no column of labels", "--text-column NAME"),
        (
            ["ks", "--label", "a", "--label", "b"],
            "ks takes one column of labels, not `a`, `b`",
            "--label a",
        ),
        (
            ["ks", "--lexicon", "none.txt"],
            "`--lexicon` is for pr, not for ks",
            "distilkit probe pr",
        ),
        (["pr", "--lexicon", "none.txt"], "`none.txt` cannot be read", ""),
    ],
)
def test_bad_input(
    run: Run, labelled: Path, teacher_folder: Path, arguments: list[str], problem: str, hint: str
) -> None:
    code, out, err = run("probe", arguments[0], labelled, *arguments[1:], "--model", teacher_folder)
    assert (code, out) == (2 if arguments == ["kws"] else 1, "")  # 2: it cannot be typed
    assert problem in err
    assert hint in err
    assert "Traceback" not in err


def test_a_model_against_itself(run: Run, labelled: Path, teacher_folder: Path) -> None:
    code, _, err = run(
        "probe", "ks", labelled, "--model", teacher_folder, "--against", teacher_folder
    )
    assert code == 1
    assert "against itself" in err


def test_bad_labels_are_listed(
    run: Run, quick: None, labelled: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    def spoil(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        rows[0]["keyword"] = "sideways"  # the only one
        rows[1]["keyword"] = ""
        return [*rows, rows[2] | {"keyword": "down" if rows[2]["keyword"] == "up" else "up"}]

    folder = edited(labelled, tmp_path / "spoiled", spoil)
    code, out, err = run(
        "probe", "ks", folder, "--model", teacher_folder, "--workers", 0, "--no-floors"
    )
    assert code == 0, err
    assert "left out: 1 no label, 2 two labels, 1 one example (ks)" in err
    assert "the only example of `sideways`" in err
    assert re.search(r"the same sound has 2 labels: (up / down|down / up)\n", err)


def test_all_folds_of_cheap_tasks_are_run(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Effort(rates=(1e-2,), trial=2, steps=2, batch=8, every=2, patience=2)
    monkeypatch.setitem(probes.TASKS, "ks", replace(probes.TASKS["ks"], effort=few))
    problems, _ = probes.prepare(["ks"], probes.read([labelled]).cuts, Asked(folds=6))
    given = probes.hear([features.log_mel()], problems, tmp_path, "cpu")
    (outcome,) = probes.solve(problems, given, against=None, workers=0)
    assert len(outcome.chosen["log-mel"]) == 6


def test_one_speaker_only(run: Run, labelled: Path, teacher_folder: Path, tmp_path: Path) -> None:
    def alone(rows: list[dict[str, str]]) -> None:
        for row in rows:
            row["speaker"] = "ada"

    folder = edited(labelled, tmp_path / "alone", alone)
    for task, problem in (
        ("sid", "one class only, `ada`"),
        ("asv", "one speaker only"),
        ("sd", "one speaker only"),
    ):
        code, _, err = run("probe", task, folder, "--model", teacher_folder)
        assert code == 1
        assert problem in err


def test_help_has_every_task(run: Run) -> None:
    code, out, _ = run("probe", "--help")
    assert code == 0
    for task in probes.TASKS:
        assert task in out


def test_clips_that_a_lexicon_does_not_cover_are_named(
    run: Run, labelled: Path, teacher_folder: Path
) -> None:
    Path("words.txt").write_text("turn T ER N\n")
    code, _, err = run("probe", "pr", labelled, "--lexicon", "words.txt", "--model", teacher_folder)
    assert code == 1
    assert (
        "no clip can be used for phoneme recognition\n  up-0-0.wav: the lexicon has no `up`" in err
    )
