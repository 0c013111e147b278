"""Layers compared: CKA by the formula, whatever the batch; the layers to predict; what users see."""

# ruff: noqa: F811  (`run` is a fixture)

import errno
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import LARGE, Run, make_model, voice
from torch import Tensor

from distilkit import config
from distilkit import layers as comparing
from distilkit.assembly import resolve
from distilkit.audio import load
from distilkit.cli.layers import matrix, span
from distilkit.data import Skipped, find
from distilkit.encoder import Encoder, encode, exact
from distilkit.errors import DistilkitError
from distilkit.layers import Products, Similarity, choice, recommend, sample, scaled, similarity
from distilkit.students import save


def by_formula(x_TD: np.ndarray, y_TE: np.ndarray) -> float:
    """Linear CKA as Kornblith et al. write it, with all frames in memory."""
    x, y = x_TD - x_TD.mean(0), y_TE - y_TE.mean(0)
    products = (y.T @ x, x.T @ x, y.T @ y)
    cross, own_x, own_y = (float(np.linalg.norm(product)) for product in products)
    return cross**2 / (own_x * own_y)


def correlated(layers: int, frames: int, width: int, seed: int) -> Tensor:
    """Layers that share a part, with means far from zero. (L, T, D) fp64"""
    rng = torch.Generator().manual_seed(seed)
    common = torch.randn(1, frames, width, generator=rng, dtype=torch.float64)
    own = torch.randn(layers, frames, width, generator=rng, dtype=torch.float64)
    return common + own * torch.linspace(0.2, 2, layers)[:, None, None] + 50 * own[:, :1]


def streamed(x: Tensor, y: Tensor | None = None, sizes: tuple[int, ...] = ()) -> np.ndarray:
    products, at = Products(), 0
    for size in [*sizes, x.shape[1] - sum(sizes)]:
        part = slice(at, at + size)
        products.add(x[:, part], None if y is None else y[:, part])
        at += size
    assert products.frames == x.shape[1]
    return products.cka()


# ------------------------------------------------------------------------------------------- CKA


def test_cka_equals_the_formula() -> None:
    x = correlated(4, 1_300, 6, 0)
    y = torch.cat([x[:3, :, :5] ** 2, correlated(2, 1_300, 5, 1)])
    wanted = [[by_formula(a.numpy(), b.numpy()) for b in x] for a in x]
    np.testing.assert_allclose(streamed(x), wanted, atol=1e-8)
    wanted = [[by_formula(a.numpy(), b.numpy()) for b in y] for a in x]
    assert np.ptp(wanted) > 0.1
    np.testing.assert_allclose(streamed(x, y), wanted, atol=1e-8)


def test_parts_add_up_to_the_whole() -> None:
    x, y = correlated(3, 1_300, 6, 0), correlated(2, 1_300, 4, 1) + correlated(1, 1_300, 4, 0)
    for sizes in [(1,), (700, 1, 30), (512,), (100,) * 12]:
        np.testing.assert_allclose(streamed(x, None, sizes), streamed(x), atol=1e-10)
        np.testing.assert_allclose(streamed(x, y, sizes), streamed(x, y), atol=1e-10)


def test_cka_ignores_rotation_scale_and_shift() -> None:
    x = correlated(3, 900, 6, 0)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    other = 7.5 * x @ turn + torch.arange(6)
    np.testing.assert_allclose(streamed(x, other), streamed(x), atol=1e-10)
    skewed = x * torch.tensor([1, 1, 1, 1, 1, 30.0])  # of one axis only: that does change it
    assert np.abs(streamed(x, skewed) - streamed(x)).max() > 0.05


def test_cka_is_1_on_the_diagonal_and_symmetric() -> None:
    got = streamed(correlated(5, 800, 6, 0))
    np.testing.assert_allclose(got.diagonal(), 1.0, atol=1e-12)
    assert np.array_equal(got, got.T)
    assert got.min() > 0
    assert got.max() < 1 + 1e-12


def test_unrelated_features_are_near_0_with_many_frames() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 20_000, 8, generator=rng)
    assert streamed(x)[0, 1] < 1e-3
    assert streamed(x[:, :8])[0, 1] > 0.3  # and not with few


def test_a_layer_that_never_changes_is_like_no_other() -> None:
    x = correlated(2, 100, 4, 0)
    x[1] = 3.0
    assert streamed(x).tolist() == [[pytest.approx(1.0), 0.0], [0.0, 0.0]]


# ----------------------------------------------------------------------------------- of recordings


def encoder(seed: int = 0, **changes: object) -> Encoder:
    return Encoder(model=exact(make_model(seed, **changes)), normalise=bool(changes))


def alone(folder: Path, model: Encoder) -> Tensor:
    """All layers of every file by itself, (L, T, D)."""
    found = []
    for path in sorted(folder.rglob("*.*")):
        clip = torch.from_numpy(load(path))
        with torch.inference_mode():
            states = encode(model, clip[None], [len(clip)], range(model.depth + 1))
        found.append(torch.stack([state[0] for state in states]))
    return torch.cat(found, 1)


@pytest.mark.parametrize("changes", [{}, LARGE], ids=["base", "large"])
def test_padding_and_batches_change_nothing(speech: Path, changes: dict[str, object]) -> None:
    model = encoder(**changes)
    x_LTD = alone(speech, model)
    wanted = streamed(x_LTD)
    for batch_seconds in (0.1, 6.0, 60.0):
        got = similarity([speech], model, batch_seconds=batch_seconds)
        assert (got.frames, got.used, got.files) == (x_LTD.shape[1], 12, 12)
        assert got.seconds == pytest.approx(sum(0.6 + 0.25 * i for i in range(12)), abs=1e-3)
        assert got.rows == got.columns == list(range(model.depth + 1))
        np.testing.assert_allclose(got.cka_LK, wanted, atol=1e-5)


def test_two_models_of_different_form(speech: Path) -> None:
    small, big = encoder(1, **{**LARGE, "hidden_size": 16}), encoder()
    x_LTD, y_KTE = alone(speech, small), alone(speech, big)
    got = similarity([speech], small, big)
    assert (got.rows, got.columns, got.width) == (list(range(5)), list(range(13)), 32)
    np.testing.assert_allclose(got.cka_LK, streamed(x_LTD, y_KTE), atol=1e-5)
    np.testing.assert_allclose(
        got.cka_LK[3, 7], by_formula(x_LTD[3].numpy(), y_KTE[7].numpy()), atol=1e-5
    )
    assert got.bests[2] == (int(got.cka_LK[2].argmax()), got.cka_LK[2].max())


def test_a_student_of_the_first_layers_is_the_teacher_so_far(speech: Path) -> None:
    teacher, student = encoder(), encoder(1, num_hidden_layers=2)
    student = Encoder(model=student.model, normalise=False)
    missing = student.model.load_state_dict(teacher.model.state_dict(), strict=False)
    assert not missing.missing_keys
    got = similarity([speech], student, teacher)
    np.testing.assert_allclose(got.cka_LK[range(3), range(3)], 1.0, atol=1e-6)
    assert [layer for layer, _ in got.bests] == [0, 1, 2]
    assert got.cka_LK[0, 12] < 0.95


def test_little_memory_compares_fewer_layers_and_says_so(speech: Path) -> None:
    model = encoder()
    everything = similarity([speech], model)
    assert everything.notes == []
    for against in (None, model):
        got = similarity([speech], model, against, free_bytes=1_000_000)
        assert got.rows == got.columns
        assert {0, 4, 8, 12} <= set(got.rows) < set(range(13))
        assert "is compared: all of them take" in got.notes[0]
        np.testing.assert_allclose(
            got.cka_LK, everything.cka_LK[np.ix_(got.rows, got.rows)], atol=1e-6
        )


# -------------------------------------------------------------------------------------- the sample


def drawn(folder: Path, seconds: float) -> list[tuple[str, float]]:
    items = list(sample(list(find([folder])), int(seconds * 16_000)))
    return [(i[0], len(i[1]) / 16_000) for i in items if not isinstance(i, Skipped)]


def test_a_limit_takes_files_spread_over_the_folder(tmp_path: Path) -> None:
    for index in range(40):
        soundfile.write(tmp_path / f"{index:02d}.wav", voice(1.0, index), 16_000, "PCM_16")
    got = drawn(tmp_path, 9.5)
    assert [seconds for _, seconds in got] == [1.0] * 9 + [0.5]
    places = sorted(int(name[:2]) for name, _ in got)
    gaps = np.diff(places)
    assert (gaps.min(), gaps.max()) == (3, 5)
    assert drawn(tmp_path, 9.5) == got
    assert len(drawn(tmp_path, 1_000)) == 40


def test_long_recordings_are_heard_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "CLIP_SECONDS", 2.0)
    for name, seconds in (("a", 7.01), ("b", 1.0), ("c", 5.0)):
        soundfile.write(
            tmp_path / f"{name}.wav", voice(seconds, 1)[: int(seconds * 16_000)], 16_000
        )
    got = drawn(tmp_path, 100)
    assert sorted(got[:3]) == [("a.wav", 2.0), ("b.wav", 1.0), ("c.wav", 2.0)]
    assert sorted(got[3:5]) == [("a.wav", 2.0), ("c.wav", 2.0)]
    assert sum(seconds for name, seconds in got if name == "a.wav") == 6 + 1.01
    assert sum(seconds for name, seconds in got if name == "c.wav") == 5
    assert sum(seconds for _, seconds in drawn(tmp_path, 8)) == 8
    monkeypatch.setattr(comparing, "OPEN_FILES", 1)
    assert {name for name, _ in drawn(tmp_path, 100)[3:]} == {got[0][0]}


# ------------------------------------------------------------------------------- the recommendation


def blocks(*sizes: int, fall: float = 0.02) -> np.ndarray:
    """Likeness that falls slowly within a block and is 0.1 between blocks."""
    block = np.repeat(range(len(sizes)), sizes)
    place = np.arange(len(block))
    within = 1 - fall * np.abs(place[:, None] - place)
    return np.where(block[:, None] == block, within, 0.1)


def test_known_blocks_give_their_centres() -> None:
    got = recommend(blocks(3, 5, 5), range(13), 3)
    assert got.layers == [1, 5, 10]
    assert got.covers == [[0, 1, 2], [3, 4, 5, 6, 7], [8, 9, 10, 11, 12]]
    assert got.coverage == pytest.approx(1 - 0.02 * (2 + 6 + 6) / 13)
    assert choice(blocks(3, 5, 5), range(13), [4, 8, 12]).coverage < got.coverage - 0.1
    assert recommend(blocks(7, 6), range(13), 2).layers == [3, 9]
    assert recommend(blocks(13), range(13), 1).layers == [6]


def test_the_input_is_covered_but_never_predicted() -> None:
    assert recommend(blocks(1, 12), range(13), 2).layers[0] != 0
    got = recommend(blocks(3), [0, 1, 2], 4)
    assert got.layers == [1, 2]
    assert got.covers == [[0, 1], [2]]


def test_the_recommendation_is_the_best_there_is() -> None:
    from itertools import combinations

    for seed in range(5):
        rng = np.random.default_rng(seed)
        likeness = rng.random((9, 9))
        likeness = np.maximum(likeness, likeness.T)
        np.fill_diagonal(likeness, 1.0)
        for heads in (1, 2, 3, 4):
            sums = {c: likeness[:, c].max(1).mean() for c in combinations(range(1, 9), heads)}
            got = recommend(likeness, range(9), heads)
            assert got.coverage == pytest.approx(max(sums.values()))
            assert tuple(got.layers) == max(sums, key=lambda c: sums[c])


def test_numbers_are_those_of_layers_where_some_are_left_out() -> None:
    got = recommend(blocks(3, 3), [0, 4, 8, 12, 16, 20], 2)
    assert got.layers == [4, 16]
    assert got.covers == [[0, 4, 8], [12, 16, 20]]


def test_the_default_scales_with_the_depth() -> None:
    assert [scaled(n) for n in (12, 24, 6, 2, 1)] == [
        [4, 8, 12],
        [8, 16, 24],
        [2, 4, 6],
        [1, 2],
        [1],
    ]


def test_the_default_is_the_one_that_distillation_takes() -> None:
    for depth in (1, 2, 6, 7, 12, 24, 48):
        assert scaled(depth) == resolve(config.Recipe(), depth).objective.layers


# ---------------------------------------------------------------------------------- what users see


@pytest.fixture
def student_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "small" / "student"
    folder.parent.mkdir()
    save(encoder(3, num_hidden_layers=2), folder, "# tiny\n")
    return folder


def test_the_table(run: Run, speech: Path, teacher_folder: Path) -> None:
    code, out, err = run("layers", speech, "--model", teacher_folder)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == f"Linear CKA between the layers of {teacher_folder}"
    assert lines[1] == "24 s of audio, 12 of 12 files, 1,176 frames"
    assert lines[3].split() == ["layer", *map(str, range(13))]
    result = similarity([speech], encoder())
    for layer, line in enumerate(lines[4:17]):
        wanted = [f"{value:.2f}" for value in result.cka_LK[layer]]
        assert line.split() == [str(layer), *wanted]
    best = recommend(result.cka_LK, result.rows, 3)
    listed = ",".join(map(str, best.layers))
    default = choice(result.cka_LK, result.rows, [4, 8, 12]).coverage
    assert f'For 3 heads: --set "objective.layers=[{listed}]"\n' in out
    assert (
        f"It covers {best.coverage:.3f} of all layers; the default, 4, 8, 12, covers {default:.3f}"
        in out
    )
    assert "which layers are redundant, not which are useful" in out
    assert max(map(len, lines[1:])) <= 100


def test_the_table_of_two_models(
    run: Run,
    speech: Path,
    teacher_folder: Path,
    student_folder: Path,
) -> None:
    code, out, _ = run("layers", speech, "--model", student_folder, "--against", teacher_folder)
    assert code == 0
    assert f"Linear CKA between the layers of {student_folder} (rows)\n" in out
    assert f"and those of {teacher_folder} (columns)\n" in out
    rows = [line.split() for line in out.splitlines()[4:]]
    assert rows[0][-2:] == ["most", "like"]
    for row in rows[1:4]:
        best, how_much = int(row[-2]), row[-1].strip("()")
        assert row[1:14][best] == how_much == max(row[1:14])
    assert "--set" not in out


@pytest.mark.parametrize(("width", "shown"), [(80, 13), (71, 13), (70, 7), (40, 5)])
def test_a_wide_table_is_thinned_with_a_note(width: int, shown: int) -> None:
    from rich.console import Console

    result = Similarity(
        cka_LK=blocks(13), rows=list(range(13)), columns=list(range(13)), width=8, frames=99,
        seconds=2.0, used=1, files=1, skipped=[], notes=[],
    )  # fmt: skip
    made, note = matrix(result, width, bests=False)
    assert len(made.columns) - 1 == made.row_count == shown
    assert bool(note) == (shown < 13)
    assert "--json has all of them" in note or not note
    headers = [str(column.header) for column in made.columns[1:]]
    assert (headers[0], headers[-1]) == ("0", "12")
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(made)
    assert "…" not in console.export_text()


def test_layers_as_text() -> None:
    for layers, text in (([3], "3"), ([0, 1, 2], "0-2"), ([0, 4, 5, 9], "0,4-5,9"), ([], "")):
        assert span(layers) == text


def test_json_is_alone_on_stdout(run: Run, speech: Path, teacher_folder: Path) -> None:
    code, out, err = run("layers", speech, "--model", teacher_folder, "--json", "--minutes", "0.1")
    assert code == 0
    result = json.loads(out)
    assert np.array(result["cka"]).shape == (13, 13)
    assert np.array(result["cka"]).diagonal() == pytest.approx(1.0)
    assert result["rows"] == result["columns"] == list(range(13))
    assert result["seconds"] == 6.0
    assert 0 < result["files_used"] < result["files_found"] == 12
    assert set(result["recommended"]) == {"1", "2", "3", "4"}
    assert len(result["recommended"]["3"]["layers"]) == 3
    assert result["default"]["layers"] == [4, 8, 12]
    assert (result["against"], result["most_like"]) == (None, None)
    assert "frames are few for vectors of 32" in result["notes"][0]
    assert "unrelated noise would show 0.10" in err


def test_pictures(run: Run, speech: Path, teacher_folder: Path, student_folder: Path) -> None:
    from PIL import Image

    for name, more in (("one", ()), ("two", ("--against", student_folder))):
        code, out, err = run("layers", speech, "--model", teacher_folder, "--out", name, *more)
        assert code == 0, err
        assert out.endswith(f"\n{name}/layers.png\n{name}/layers.svg\n")
        assert sorted(path.name for path in Path(name).iterdir()) == ["layers.png", "layers.svg"]
        with Image.open(f"{name}/layers.png") as image:
            assert min(image.size) >= 400
            white = (np.asarray(image.convert("RGB")) == 255).all(-1).mean()
            assert white < (0.95 if more else 0.5)
        words = re.findall(r"<text[^>]*>([^<]+)</text>", Path(f"{name}/layers.svg").read_text())
        shown = sum(bool(re.fullmatch(r"[01]\.\d\d", word)) for word in words)
        assert shown == 13 * (3 if more else 13)
        wanted = {f"against {teacher_folder}"[-20:], "linear CKA", "layer", "12", "outlined: the"}
        assert all(any(part in word for word in words) for part in wanted)
    code, out, err = run("layers", speech, "--model", teacher_folder, "--out", "one")
    assert (code, out) == (1, "")
    assert (
        err == "error: `one/layers.png` already exists\n\nhint: another --out, or remove it first\n"
    )


@pytest.mark.parametrize("there", [False, True])
def test_pictures_come_together(
    run: Run,
    speech: Path,
    teacher_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: bool,
) -> None:
    from matplotlib.figure import Figure

    drawn, real = list[str](), Figure.savefig

    def full(figure: Figure, place: Path, **more: Any) -> None:
        drawn.append(more["format"])
        if len(drawn) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(figure, place, **more)

    asked = ("layers", speech, "--model", teacher_folder, "--out", "own/one")
    if there:
        Path("own/one").mkdir(parents=True)
    monkeypatch.setattr(Figure, "savefig", full)
    code, _, err = run(*asked)
    assert (code, drawn) == (1, ["png", "svg"])
    assert re.search(r"error: cannot write `own/one(/layers.svg)?`: No space left on device", err)
    assert not [path for path in Path("own").rglob("*") if path != Path("own/one")]
    assert run(*asked)[0] == 0
    assert sorted(path.name for path in Path("own/one").iterdir()) == ["layers.png", "layers.svg"]


def test_pictures_without_matplotlib(
    run: Run,
    speech: Path,
    teacher_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    code, out, err = run("layers", speech, "--model", teacher_folder, "--out", "x")
    assert (code, out) == (1, "")
    assert err == (
        "error: `--out x` draws a picture and needs matplotlib\n\n"
        "hint: pip install 'distilkit[report]'\n"
    )
    assert run("layers", speech, "--model", teacher_folder)[0] == 0


def test_unreadable_files_are_listed_with_status_1(
    run: Run,
    speech: Path,
    teacher_folder: Path,
) -> None:
    Path("x.wav").write_text("no audio")
    soundfile.write("short.wav", voice(0.02, 1), 16_000)
    Path("notes.txt").write_text("notes")
    code, out, err = run("layers", ".", speech, "--model", teacher_folder)
    assert code == 1
    assert "12 of 14 files" in out
    assert "left out x.wav: cannot be decoded" in err
    assert "left out short.wav: 0.020 s is shorter than one frame" in err
    assert "left out 1 file that is not audio" in err
    code, out, _ = run("layers", ".", speech, "--model", teacher_folder, "--json")
    assert code == 1
    assert len(json.loads(out)["skipped"]) == 3


def folder_without_audio() -> None:
    Path("notes").mkdir()
    Path("notes/diary.txt").write_text("mine")


ERRORS: dict[str, tuple[list[str], str, str]] = {
    "no audio": (["notes", "--model", "MODEL"], "nothing to compare in `notes`\n  notes/diary.txt: not an audio file (.txt)", "distilkit inspect FOLDER"),
    "no such folder": (["nots", "--model", "MODEL"], "no such file or folder: `nots`", "did you mean `notes`?"),
    "no such model": (
        ["notes", "--model", "./nots"],
        "no such model: `./nots` is neither a path that exists nor a hub id (`owner/name`)",
        "did you mean `notes`?",
    ),
    "no such other model": (
        ["notes", "--model", "MODEL", "--against", "./x"],
        "no such model: `./x` is neither a path that exists nor a hub id (`owner/name`)",
        "give a folder with a model, a run, or a hub id such as facebook/hubert-base-ls960",
    ),
    "out is a file": (
        ["notes", "--model", "MODEL", "--out", "notes/diary.txt"],
        "`notes/diary.txt` cannot be a folder: a file is there",
        "another --out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_leave_nothing(run: Run, teacher_folder: Path, name: str) -> None:
    folder_without_audio()
    arguments, problem, hint = ERRORS[name]
    code, out, err = run("layers", *[teacher_folder if a == "MODEL" else a for a in arguments])
    assert (code, out) == (1, "")
    assert err == f"error: {problem}\n\nhint: {hint}\n"
    assert [str(path) for path in Path().rglob("*")] == ["notes", "notes/diary.txt"]


def test_usage(run: Run, speech: Path, teacher_folder: Path) -> None:
    for arguments in (
        (speech,),
        ("--model", teacher_folder),
        (speech, "--model", teacher_folder, "--minutes", "0"),
    ):
        assert run("layers", *arguments)[:2] == (2, "")


def test_values_that_are_not_finite(speech: Path) -> None:
    model = encoder()
    with torch.no_grad():
        model.model.encoder.layers[5].final_layer_norm.weight.fill_(float("nan"))
    with pytest.raises(DistilkitError, match="values that are not finite numbers"):
        similarity([speech], model)
