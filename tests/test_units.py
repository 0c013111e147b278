"""Units of recordings: what the files hold, and that a codebook gives the same units again."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from conftest import voice

from distilkit import codebooks, data, stored, teachers
from distilkit import units as unit_finding
from distilkit.audio import frames
from distilkit.codebooks import mfcc
from distilkit.encoder import Encoder, encode
from distilkit.errors import DistilkitError
from distilkit.unfinished import beside
from distilkit.units import WINDOWS, Units, units

FILES = ["README.md", "codebook.safetensors", "skipped.tsv", "units.jsonl", "units.km"]


def model_of(folder: Path) -> Encoder:
    return teachers.load(str(folder))[0]


def rows(made: Units) -> list[dict[str, object]]:
    lines = (made.folder / "units.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_files(speech: Path, tmp_path: Path) -> None:
    made = units([speech], tmp_path / "out", clusters=12)
    assert sorted(content(made.folder)) == FILES
    lines = rows(made)
    assert len(lines) == made.windows == 12
    assert [list(line) for line in lines] == [["recording", "start", "seconds", "units"]] * 12
    for line in lines:
        assert line["start"] == 0
        assert len(line["units"]) == frames(round(line["seconds"] * 16_000))
        assert set(line["units"]) <= set(range(12))
    km = (made.folder / "units.km").read_text().splitlines()
    assert [[int(unit) for unit in row.split()] for row in km] == [line["units"] for line in lines]
    assert made.seconds == pytest.approx(sum(0.6 + 0.25 * i for i in range(12)), abs=1e-3)
    assert made.seconds == pytest.approx(sum(line["seconds"] for line in lines), abs=1e-3)
    assert (made.folder / "skipped.tsv").read_text().count("\n") == 1
    assert made.skipped == []


class Killed(Exception):
    pass


def killed_after(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """End the next call after so many windows."""
    real, count = stored.pack, [0]

    def pack(*arguments: Any) -> Any:
        count[0] += 1
        if count[0] > most:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(stored, "pack", pack)


@pytest.mark.parametrize("after", [0, 1, 7])
def test_stopped_and_started_again(
    after: int, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit_finding, "MICRO_SECONDS", 5.0)
    whole = content(units([speech], tmp_path / "whole", clusters=12).folder)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, after)
        units([speech], tmp_path / "again", clusters=12)
    assert not (tmp_path / "again").exists()
    found: list[int] = []
    monkeypatch.setattr(codebooks, "find", lambda *_: found.append(1))
    beside(tmp_path / ".again.parts" / "asked.json").write_text("{")
    assert content(units([speech], tmp_path / "again", clusters=12).folder) == whole
    assert found == []
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "again"}


@pytest.mark.parametrize("half", [False, True])
def test_killed_once_all_was_done_nothing_is_left_by_the_next(
    half: bool, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path) -> None:
        if half:
            folder.rename(beside(folder))
        raise Killed

    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("distilkit.leftovers.remove", killed)
        units([speech], out, clusters=12)
    assert len(list(tmp_path.iterdir())) == 2
    whole = content(out)
    with pytest.raises(DistilkitError, match="exists"):
        units([speech], out, clusters=12)
    assert list(tmp_path.iterdir()) == [out]
    assert content(out) == whole


def test_what_is_begun_stays_where_something_else_took_its_place(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, 3)
        units([speech], tmp_path / "out", clusters=12)
    (tmp_path / "out").mkdir()
    with pytest.raises(DistilkitError, match="exists"):
        units([speech], tmp_path / "out", clusters=12)
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.parts"}


def test_what_another_call_had_found_gives_way(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, 3)
        units([speech], tmp_path / "out", clusters=12)
    made = units([speech], tmp_path / "out", clusters=9)
    assert len(made.codebook.centres[0]) == 9
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    again = units([speech], tmp_path / "more", codebook=made.folder)
    assert content(again.folder)["units.km"] == content(made.folder)["units.km"]
    with pytest.raises(DistilkitError, match="clusters cannot be found"):
        units([speech], tmp_path / "many", clusters=100_000)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "more"}


def test_a_link_in_place_of_what_was_found_is_not_followed(speech: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "diary.txt").write_text("mine")
    (tmp_path / ".out.parts").symlink_to(mine)
    units([speech], tmp_path / "out", clusters=12)
    assert (mine / "diary.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_what_another_process_has_found_meanwhile_is_not_replaced(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, real = units([speech], tmp_path / "theirs", clusters=9).folder, data.survey

    def survey(*arguments: Any, **more: Any) -> Any:
        if not (tmp_path / "out").exists():
            theirs.rename(tmp_path / "out")
        return real(*arguments, **more)

    before = content(theirs)
    monkeypatch.setattr(data, "survey", survey)
    with pytest.raises(DistilkitError, match="out` exists"):
        units([speech], tmp_path / "out", clusters=12)
    assert content(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_each_window_has_the_units_of_its_samples(speech: Path, tmp_path: Path) -> None:
    made = units([speech], tmp_path / "out", clusters=12)
    clips, _ = data.survey([speech], WINDOWS)
    windows = [cut for clip in clips for cut in data.cuts(clip)]
    for cut, line in zip(windows, rows(made), strict=True):
        wave_BS = torch.from_numpy(cut.load_audio())
        (wanted,) = made.codebook.units([mfcc(wave_BS, [wave_BS.shape[1]])])
        assert line["recording"] == cut.recording.id
        assert line["units"] == wanted[0].tolist()


def test_what_is_said_of_them(speech: Path, tmp_path: Path) -> None:
    made = units([speech], tmp_path / "out", clusters=12)
    written = [line["units"] for line in rows(made)]
    counts = Counter(unit for row in written for unit in row)
    total = sum(counts.values())
    entropy = -sum(n / total * math.log(n / total) for n in counts.values())
    assert made.used == len(counts)
    assert made.perplexity == pytest.approx(math.exp(entropy))
    runs = sum(1 for row in written for i, u in enumerate(row) if i == 0 or u != row[i - 1])
    assert made.run_frames == pytest.approx(total / runs)
    assert 1 < made.perplexity <= made.used <= 12


def test_twice_the_same_and_another_seed_is_not(speech: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        units([speech], tmp_path / name, clusters=12, seed=seed)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a") != content(tmp_path / "c")


@pytest.mark.parametrize(("asked", "layer"), [(None, 6), (0, 0), (4, 4), (12, 12)])
def test_units_of_a_layer(
    speech: Path, teacher_folder: Path, tmp_path: Path, asked: int | None, layer: int
) -> None:
    """The middle layer unless asked; the model above it is not run."""
    model = model_of(teacher_folder)
    made = units([speech], tmp_path / "out", model=model, layer=asked, clusters=8)
    assert (made.codebook.features, made.codebook.layers) == ("layers", (layer,))
    assert made.codebook.centres[0].shape == (8, 32)
    clip = torch.from_numpy(soundfile.read(speech / "a" / "clip02.wav", dtype="float32")[0])
    with torch.no_grad():
        state = encode(model_of(teacher_folder), clip[None], [len(clip)], [layer])
    (line,) = [line for line in rows(made) if "clip02" in str(line["recording"])]
    wanted = made.codebook.units(state)[0][0].tolist()
    agree = sum(a == b for a, b in zip(line["units"], wanted, strict=True)) / len(wanted)
    assert agree > 0.95  # rounding may tip a frame between two centres


def test_units_of_a_normalised_layer(speech: Path, teacher_folder: Path, tmp_path: Path) -> None:
    """Each clip by its own frames, whatever it is batched with."""
    model = model_of(teacher_folder)
    made = units([speech], tmp_path / "out", model=model, layer=4, clusters=8, normalise=True)
    assert codebooks.load(tmp_path / "out").normalise
    clip = torch.from_numpy(soundfile.read(speech / "a" / "clip02.wav", dtype="float32")[0])
    (line,) = [line for line in rows(made) if "clip02" in str(line["recording"])]
    with torch.no_grad():
        (state_BTD,) = encode(model_of(teacher_folder), clip[None], [len(clip)], [4])
    level_BTD = (state_BTD - state_BTD.mean(1)) / state_BTD.std(1, correction=0)
    wanted = made.codebook.units([level_BTD])[0][0].tolist()
    assert sum(a == b for a, b in zip(line["units"], wanted, strict=True)) / len(wanted) > 0.95
    again = {"model": model, "layer": 4, "codebook": tmp_path / "out"}
    units([speech], tmp_path / "again", normalise=True, **again)
    assert content(tmp_path / "out") == content(tmp_path / "again")
    with pytest.raises(DistilkitError, match=r"is of normalised layers \[4\], not of layers \[4\]"):
        units([speech], tmp_path / "no", **again)
    with pytest.raises(DistilkitError, match="`--normalise` of no model"):
        units([speech], tmp_path / "no", normalise=True)


@pytest.mark.parametrize("layer", [None, 5])
def test_a_codebook_gives_the_same_units_again(
    speech: Path, teacher_folder: Path, tmp_path: Path, layer: int | None
) -> None:
    def made(out: str, **options: object) -> Units:
        model = model_of(teacher_folder) if layer else None
        return units([speech], tmp_path / out, model=model, layer=layer, **options)

    made("a", clusters=9)
    again = made("b", codebook=tmp_path / "a", seed=7)
    assert len(again.codebook.centres[0]) == 9
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_codebook_of_something_else(
    speech: Path, teacher_folder: Path, large_folder: Path, tmp_path: Path
) -> None:
    units([speech], tmp_path / "mfcc", clusters=9)
    units([speech], tmp_path / "four", model=model_of(teacher_folder), layer=4, clusters=9)

    def refused(book: str, model: Path | None, layer: int | None) -> str:
        with pytest.raises(DistilkitError) as caught:
            units(
                [speech], tmp_path / "no", model=model and model_of(model), layer=layer,
                codebook=tmp_path / book,
            )  # fmt: skip
        assert caught.value.hint == "distilkit units AUDIO --out DIR makes one that fits"
        assert not (tmp_path / "no").exists()
        return caught.value.problem

    four = f"the codebook `{tmp_path / 'four'}` is of layers [4]"
    assert refused("four", teacher_folder, 5) == f"{four}, not of layers [5]"
    assert refused("four", None, None) == f"{four}, not of MFCC"
    assert refused("four", large_folder, 4) == f"{four} of another model"
    assert refused("mfcc", teacher_folder, 4).endswith("is of MFCC, not of layers [4]")


def test_layers_the_model_lacks(speech: Path, large_folder: Path, tmp_path: Path) -> None:
    for layer in (5, -1):
        with pytest.raises(DistilkitError, match=f"no layer `{layer}`: the model has 4") as caught:
            units([speech], tmp_path / "out", model=model_of(large_folder), layer=layer)
        assert caught.value.hint == "--layer 4"


def test_nothing_is_left_of_what_fails(speech: Path, tmp_path: Path) -> None:
    with pytest.raises(DistilkitError, match="9000 clusters cannot be found in .* frames"):
        units([speech], tmp_path / "out", clusters=9_000)
    with pytest.raises(DistilkitError, match="190 clusters cannot be found in .* frames"):
        units([speech / "a"], tmp_path / "out", clusters=190, minutes=0.001)
    with pytest.raises(DistilkitError, match="no such file or folder"):
        units([tmp_path / "nowhere"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(DistilkitError, match="`.*out` exists") as caught:
        units([speech], tmp_path / "out")
    assert caught.value.hint == "another --out"


def test_long_recordings_are_cut(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long ä.wav", voice(34.0, 1), 16_000)
    made = units([tmp_path / "long ä.wav"], tmp_path / "out", clusters=4)
    lines = rows(made)
    assert made.windows == len(lines) > 2
    assert {line["recording"] for line in lines} == {lines[0]["recording"]}
    starts = [float(str(line["start"])) for line in lines]
    ends = [start + float(str(line["seconds"])) for start, line in zip(starts, lines, strict=True)]
    assert starts[0] == 0
    assert ends[:-1] == pytest.approx(starts[1:], abs=1e-3)
    assert ends[-1] == pytest.approx(34.0, abs=1e-3)
    assert "long ä" in (made.folder / "units.jsonl").read_text(encoding="utf-8")


def test_what_is_begun_is_not_written_to_where_a_link_leads_out(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    real = unit_finding.stored.fill

    def killed(*_: Any) -> Any:
        raise Killed

    monkeypatch.setattr(unit_finding.stored, "fill", killed)
    with pytest.raises(Killed):
        units([speech], out, clusters=12)
    monkeypatch.setattr(unit_finding.stored, "fill", real)
    (tmp_path / ".out.parts" / "units").rename(mine)
    before = sorted(mine.iterdir())
    (tmp_path / ".out.parts" / "units").symlink_to(mine)
    with pytest.raises(DistilkitError, match="is a link to"):
        units([speech], out, clusters=12)
    assert sorted(mine.iterdir()) == before


def test_how_far_it_is(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars end where their work ends: clusters are found on batches, units of windows."""
    monkeypatch.setattr(unit_finding, "MICRO_SECONDS", 8.0)
    shown: dict[str, tuple[int, int]] = {}

    def track(items: Iterable[Any], *, description: str, total: int) -> Iterator[Any]:
        taken = list(items)
        shown[description] = len(taken), total
        yield from taken

    units([speech], tmp_path / "out", clusters=12, track=track)
    assert shown["finding clusters, batches"][0] < 12
    assert shown["units"][0] == 12
    assert all(done == total for done, total in shown.values()), shown
