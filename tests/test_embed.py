"""Embeddings: exact in any batch, resumable, long files at flat memory, every format readable."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import LARGE, make_model, voice
from safetensors.numpy import load_file
from transformers import Wav2Vec2FeatureExtractor

from distilkit import embed as embedding
from distilkit import encoder as encoding
from distilkit import listeners
from distilkit.audio import frames, load
from distilkit.embed import embed
from distilkit.encoder import Encoder, exact
from distilkit.errors import DistilkitError
from distilkit.unfinished import beside


def encoder(**changes: object) -> Encoder:
    return Encoder(model=exact(make_model(**changes)), normalise=bool(changes))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty files of 0.03 to 8 s."""
    folder = tmp_path_factory.mktemp("mixed")
    for index in range(50):
        seconds = 0.03 + 8 * (index / 49) ** 3
        soundfile.write(folder / f"{index:02d}.wav", voice(seconds, index), 16_000, "PCM_16")
    return folder


@pytest.mark.parametrize("changes", [{}, LARGE])
def test_fifty_files_equal_each_alone_in_stock_transformers(
    mixed: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    stock = make_model(**changes)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=bool(changes))
    done, skipped, out = embed([mixed], encoder(**changes), out=tmp_path / "out")
    assert (len(done), skipped) == (50, [])
    worst = 0.0
    for item in done:
        inputs = extractor(load(mixed / item.id), sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            wanted = stock(inputs.input_values).last_hidden_state[0].numpy()
        got = np.load(out / item.output)
        assert got.shape == wanted.shape == item.shape
        worst = max(worst, float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted)))
    assert worst < 1e-4


def test_one_file_goes_beside_you(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done, _, out = embed([speech / "b" / "clip01.wav"], encoder())
    assert out == Path("clip01.npy")
    assert np.load("clip01.npy").shape == done[0].shape == (frames(13_600), 32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip01.npy"]


@pytest.mark.parametrize(
    ("layer", "pool", "shape"),
    [
        ("last", "none", (42, 32)),
        ("3", "none", (42, 32)),
        ("all", "none", (13, 42, 32)),
        ("last", "mean", (32,)),
        ("all", "mean", (13, 32)),
    ],
)
def test_layers_and_pooling(
    speech: Path, tmp_path: Path, layer: str, pool: str, shape: tuple[int, ...]
) -> None:
    clip, model = speech / "b" / "clip01.wav", encoder()
    out = tmp_path / "x.npy"
    embed([clip], model, layer=layer, pool=pool, out=out)  # type: ignore[arg-type]
    got = np.load(out)
    assert got.shape == shape
    (every,) = model.states([load(clip)], range(13))
    wanted = {"last": every[12], "3": every[3], "all": every}[layer]
    wanted = wanted.mean(-2) if pool == "mean" else wanted
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_a_layer_the_model_lacks(speech: Path) -> None:
    for layer in ("13", "-1", "first", "1.5"):
        with pytest.raises(
            DistilkitError, match=f"`--layer {layer}`: this model has layers 0 to 12"
        ):
            embed([speech], encoder(), layer=layer)


@pytest.mark.parametrize("format", ["npz", "safetensors", "parquet"])
def test_one_file_for_all(speech: Path, tmp_path: Path, format: str) -> None:
    out = tmp_path / f"x.{format}"
    done, _, target = embed([speech], encoder(), out=out, format=format)  # type: ignore[arg-type]
    assert target == out
    separate, _, folder = embed([speech], encoder(), out=tmp_path / "separate")
    wanted = {item.id: np.load(folder / item.output) for item in separate}
    assert len(wanted) == len(done) == 12
    if format == "parquet":
        from pyarrow import parquet

        table = parquet.read_table(out)
        vectors = np.stack(table["embedding"].to_numpy(zero_copy_only=False))
        ids, rows = table["id"].to_pylist(), table["row"].to_numpy()
        got = {name: vectors[[i == name for i in ids]] for name in wanted}
        assert rows[: len(wanted[ids[0]])].tolist() == list(range(len(wanted[ids[0]])))
    else:
        got = dict(np.load(out)) if format == "npz" else load_file(out)
    assert set(got) == set(wanted)
    assert all(np.array_equal(got[name], wanted[name]) for name in wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["separate", out.name]


def test_a_pipe_is_not_replaced_and_nothing_is_listened_to(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def states(*_: object) -> None:
        raise AssertionError("it is listened to")

    monkeypatch.setattr(Encoder, "states", states)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DistilkitError, match="pipe` is not a place for a file"):
        embed([speech], encoder(), out=tmp_path / "pipe", format="npz", name="m")
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_long_files_go_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame once; where the model hears no further than the context, exactly the whole."""
    sound = voice(11.3, 3)
    soundfile.write(tmp_path / "long.wav", sound, 16_000, "FLOAT")
    model = encoder(**LARGE)
    model = Encoder(model=model.model, normalise=False)
    model.model.encoder.layers = model.model.encoder.layers[
        :0
    ]  # no attention: 0.3 s is all it hears
    model.model.config.num_hidden_layers = 0
    (whole,) = model.states([sound], [0])
    monkeypatch.setattr(embedding, "WHOLE_SECONDS", 4.0)
    monkeypatch.setattr(listeners, "WINDOW_SECONDS", 3.0)
    monkeypatch.setattr(listeners, "CONTEXT_SECONDS", 0.5)
    for layer in ("last", "all"):
        embed([tmp_path / "long.wav"], model, layer=layer, out=tmp_path / "x.npy")
        got = np.load(tmp_path / "x.npy")
        got = got[0] if layer == "all" else got
        assert got.shape == whole[0].shape
        np.testing.assert_allclose(got, whole[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("extra", range(0, 1_700, 211))
def test_windows_give_every_frame_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: int
) -> None:
    monkeypatch.setattr(embedding, "WHOLE_SECONDS", 4.0)
    monkeypatch.setattr(listeners, "WINDOW_SECONDS", 3.0)
    monkeypatch.setattr(listeners, "CONTEXT_SECONDS", 0.5)
    count = 64_001 + 15_840 + extra
    soundfile.write(tmp_path / "long.wav", voice(count / 16_000 + 1e-6, 3)[:count], 16_000, "FLOAT")
    for pool in ("none", "mean"):
        done, _, _ = embed([tmp_path / "long.wav"], encoder(), pool=pool, out=tmp_path / "x.npy")
        assert done[0].shape == ((frames(count), 32) if pool == "none" else (32,))
        assert done[0].seconds == pytest.approx(count / 16_000, abs=1e-3)


def test_what_is_done_is_kept(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "audio"
    shutil.copytree(speech, folder)
    out, calls = tmp_path / "out", []
    real = Encoder.states

    def counting(self: Encoder, clips: list[np.ndarray], layers: list[int]) -> list[np.ndarray]:
        calls.append(len(clips))
        return real(self, clips, layers)

    monkeypatch.setattr(Encoder, "states", counting)
    embed([folder], encoder(), out=out, name="m")
    assert sum(calls) == 12
    embed([folder], encoder(), out=out, name="m")
    assert sum(calls) == 12
    (out / "a" / "clip00.npy").unlink()
    soundfile.write(folder / "b" / "clip01.wav", voice(1.0, 77), 16_000, "PCM_16")
    with (out / "embeddings.jsonl").open("a") as file:
        file.write('{"id": "half')
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    done, _, _ = embed([folder], encoder(), out=out, name="m")
    assert sum(calls) < 24  # two, and their batch mates
    others = {path for path in out.rglob("*.npy") if path.stat().st_mtime_ns != written.get(path)}
    assert others == {out / "a" / "clip00.npy", out / "b" / "clip01.npy"}
    assert {item.id for item in done} == {
        p.relative_to(folder).as_posix() for p in folder.rglob("*.*")
    }
    assert np.load(out / "b" / "clip01.npy").shape == (49, 32)
    again = [json.loads(line)["id"] for line in (out / "embeddings.jsonl").read_text().splitlines()]
    assert set(again) == {item.id for item in done}
    with pytest.raises(DistilkitError, match="holds other embeddings: pool none there, mean here"):
        embed([folder], encoder(), out=out, name="m", pool="mean")
    with pytest.raises(DistilkitError, match="model m there, other here"):
        embed([folder], encoder(), out=out, name="other")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    index = out / "embeddings.jsonl"
    lines = index.read_text().splitlines()
    row = json.loads(lines[1])
    for line in (
        json.dumps(row | {"output": "../secret"}),
        json.dumps(row | {"output": str(secret)}),
        json.dumps(row | {"samples": 3}),
        json.dumps(row | {"id": 3}),
        json.dumps(row | {"shape": "49"}),
        "[]", "torn {",
    ):  # fmt: skip
        index.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
        with pytest.raises(DistilkitError, match=r"embeddings.jsonl` is damaged: line 2: "):
            embed([folder], encoder(), out=out, name="m")
    (out / "embeddings.json").write_text("[]")
    with pytest.raises(DistilkitError, match="not empty and holds no embeddings"):
        embed([folder], encoder(), out=out, name="m")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("x")
    with pytest.raises(DistilkitError, match="not empty and holds no embeddings"):
        embed([folder], encoder(), out=tmp_path / "mine")


def test_what_is_no_longer_the_array_that_was_written_is_done_again(
    speech: Path, tmp_path: Path
) -> None:
    out, name = tmp_path / "out", Path("b", "clip01.npy")
    embed([speech], encoder(), out=out, name="m")
    whole = (out / name).read_bytes()
    array = np.load(out / name)
    np.save(tmp_path / "flat.npy", array.ravel())
    np.save(tmp_path / "whole.npy", array.astype(np.int32))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    others = [path.read_bytes() for path in tmp_path.glob("*.npy")]
    for content in (*others, whole[:-4], whole + b"more", whole[:60], b"", b"PK" + whole):
        (out / name).write_bytes(content)
        embed([speech], encoder(), out=out, name="m")
        assert (out / name).read_bytes() == whole


def test_a_list_of_other_bytes_or_of_links_without_an_end(speech: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed([speech], encoder(), out=out, name="m")
    index = out / "embeddings.jsonl"
    whole = index.read_bytes()
    index.write_bytes(b"\xc0" + whole)
    with pytest.raises(DistilkitError, match=r"embeddings.jsonl` is damaged: line 1: "):
        embed([speech], encoder(), out=out, name="m")
    index.write_bytes(whole)
    (out / "b" / "clip01.npy").unlink()
    (out / "b" / "clip01.npy").symlink_to("clip01.npy")
    with pytest.raises(DistilkitError, match=r"embeddings.jsonl` is damaged: line \d+: "):
        embed([speech], encoder(), out=out, name="m")


def test_folders_of_results_that_are_links_are_not_written_to(speech: Path, tmp_path: Path) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    embed([speech], encoder(), out=out, name="m")
    (out / "embeddings.jsonl").write_text("")
    mine.mkdir()
    shutil.rmtree(out / "b")
    (out / "b").symlink_to(mine)
    with pytest.raises(DistilkitError, match="is a link to") as caught:
        embed([speech], encoder(), out=out, name="m")
    assert list(mine.iterdir()) == []
    subprocess.run(str(caught.value.hint), shell=True, check=True)
    assert not (out / "b").is_symlink()
    embed([speech], encoder(), out=out, name="m")
    assert len(list((out / "b").iterdir())) == 6


@pytest.mark.parametrize("format", ["npy", "npz", "safetensors"])
@pytest.mark.parametrize("after", [1, 4, 9])
def test_interrupted_it_comes_to_the_same_bits(
    after: int, format: Any, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "POOL_SECONDS", 10.0)
    _, _, whole = embed([speech], encoder(), out=tmp_path / "whole" / "x", format=format, name="m")
    real, written = embedding._write, []

    def write(*arguments: Any) -> Any:
        written.append(arguments)
        if len(written) > after:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(embedding, "_write", write)
        embed([speech], encoder(), out=tmp_path / "again" / "x", format=format, name="m")
    _, _, again = embed([speech], encoder(), out=tmp_path / "again" / "x", format=format, name="m")
    files = [path.relative_to(whole.parent) for path in whole.parent.rglob("*") if path.is_file()]
    assert len(files) == (1 if format != "npy" else 14)
    assert sorted(files) == sorted(
        path.relative_to(again.parent) for path in again.parent.rglob("*") if path.is_file()
    )
    for file in files:
        assert (whole.parent / file).read_bytes() == (again.parent / file).read_bytes(), file


def test_what_a_killed_process_left_counts_for_nothing(speech: Path, tmp_path: Path) -> None:
    """Its number may come again: in a container often."""
    one, out = speech / "b" / "clip11.wav", tmp_path / "x.npy"
    embed([one], encoder(), out=out, layer="all")
    whole = out.read_bytes()
    for end in (".0", ""):
        (tmp_path / f"{beside(out).name}{end}").write_bytes(whole)
    embed([one], encoder(), out=out, layer="all")
    assert out.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [out]
    packed = tmp_path / "y.npz"
    parts = tmp_path / ".y.npz.parts"
    parts.mkdir()
    beside(parts / "embeddings.json").write_text("{")
    embed([speech], encoder(), out=packed, format="npz")
    assert sorted(tmp_path.iterdir()) == [out, packed]


def test_stems_that_collide_keep_their_full_name(tmp_path: Path) -> None:
    for name in ("x.wav", "x.flac", "y.wav"):
        soundfile.write(tmp_path / name, voice(0.5, len(name)), 16_000, "PCM_16")
    _, _, out = embed([tmp_path], encoder(), out=tmp_path / "out")
    assert sorted(p.name for p in out.glob("*.npy")) == ["x.flac.npy", "x.wav.npy", "y.npy"]


def test_bad_files_are_listed_and_the_others_done(tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    audio.mkdir()
    soundfile.write(audio / "good.wav", voice(0.5, 1), 16_000, "PCM_16")
    soundfile.write(audio / "short.wav", voice(0.02, 1), 16_000, "PCM_16")
    (audio / "text.wav").write_text("not audio at all")
    (audio / "notes.txt").write_text("notes")
    done, skipped, _ = embed([audio], encoder(), out=tmp_path / "out")
    assert [item.id for item in done] == ["good.wav"]
    assert {Path(item.path).name: item.kind for item in skipped} == {
        "short.wav": "unusable",
        "text.wav": "unusable",
        "notes.txt": "not audio",
    }
    (audio / "good.wav").unlink()
    with pytest.raises(
        DistilkitError, match=r"nothing to embed in (.|\n)*short.wav: 0.020 s is shorter"
    ):
        embed([audio], encoder(), out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_freed_memory_is_kept(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(encoding, "keep_freed_memory", lambda: kept.append(True))
    embed([speech / "b" / "clip01.wav"], encoder(), out=tmp_path / "x.npy")
    assert kept


# ------------------------------------------------------------------------------------------- live


@pytest.mark.parametrize("seconds", [0.03, 29.0, 71.0])
def test_live_frames_are_those_of_the_file(seconds: float, tmp_path: Path) -> None:
    sound, model = np.resize(voice(12.0, 1), int(seconds * 16_000)), encoder(**LARGE)
    soundfile.write(tmp_path / "a.wav", sound, 16_000, "FLOAT")
    blocks = [sound[at : at + 1_111] for at in range(0, len(sound), 1_111)]
    for layer in ("last", "all"):
        embed([tmp_path / "a.wav"], model, layer=layer, out=tmp_path / "x.npy")
        found = np.concatenate(list(embedding.live(iter(blocks), model, layer)), axis=1)
        wanted = np.load(tmp_path / "x.npy")
        np.testing.assert_array_equal(found if layer == "all" else found[0], wanted)
    with pytest.raises(DistilkitError, match="shorter than one frame"):
        list(embedding.live([sound[:100]], model))


def test_embed_standard_input(large_folder: Path, tmp_path: Path) -> None:
    sound = (voice(3.0, 1) * 32_000).astype("<i2")
    soundfile.write(tmp_path / "a.wav", sound, 16_000, "PCM_16")

    def told(*argv: object) -> subprocess.CompletedProcess[bytes]:
        command = [
            sys.executable,
            "-m",
            "distilkit",
            "embed",
            *map(str, argv),
            "--model",
            large_folder,
        ]
        return subprocess.run(command, input=sound.tobytes(), capture_output=True, cwd=tmp_path)

    told("a.wav")
    wanted = np.load(tmp_path / "a.npy")
    done = told("-")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "live.npy"), wanted)
    flowing = told("-", "--out", "-")
    np.testing.assert_array_equal(np.frombuffer(flowing.stdout, "<f4").reshape(-1, 32), wanted)
    told("-", "--pool", "mean", "--out", "mean.npy")
    np.testing.assert_allclose(np.load(tmp_path / "mean.npy"), wanted.mean(0), atol=1e-6)
    for argv, said in (
        (("-", "--out", "-", "--layer", "all"), b"`--out -` is for the frames of one layer"),
        (("-", "a.wav"), b"`-` beside other inputs"),
        (("-", "--format", "npz"), b"`--format npz` of standard input"),
    ):
        refused = told(*argv)
        assert refused.returncode == 1
        assert said in refused.stderr
