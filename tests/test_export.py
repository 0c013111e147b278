"""Exports: the same numbers without torch, verified before they are kept, and refused where they are not."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
import torch
from conftest import LARGE, make_model, voice
from test_recognisers import made
from transformers import Data2VecAudioConfig, Data2VecAudioModel, WavLMConfig, WavLMModel

from distilkit import cli, exported, models, recognisers, teachers, tokenizers
from distilkit.embed import embed
from distilkit.encoder import Encoder, exact
from distilkit.errors import DistilkitError
from distilkit.export import export, mobile, verify, weights
from distilkit.export.graph import Graph, to_onnx
from distilkit.files import digest
from distilkit.hub import locate
from distilkit.students import save
from distilkit.transcribe import transcribe

HERE = Path(__file__).parent
CLIPS = [voice(seconds, seed) for seed, seconds in enumerate((0.025, 0.03, 0.5, 3.21, 12.0))]
RUNTIMES = [name for name, runtime in exported.RUNTIMES.items() if not runtime.low]


@pytest.fixture(scope="module")
def few() -> Iterator[None]:
    """Verify on few clips: what is verified is tested once."""
    before = verify.CLIPS, verify.LONGEST, verify.ROUNDS, verify.TIMED_SECONDS
    verify.CLIPS, verify.LONGEST, verify.ROUNDS, verify.TIMED_SECONDS = 8, 20.0, 1, 1.0  # type: ignore[misc]
    yield
    verify.CLIPS, verify.LONGEST, verify.ROUNDS, verify.TIMED_SECONDS = before  # type: ignore[misc]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, letters: Path) -> Path:
    """An encoder of base's form, one of large's, and recognisers on them."""
    folder = tmp_path_factory.mktemp("sources")
    save(
        Encoder(model=exact(make_model(num_hidden_layers=2)), normalise=False),
        folder / "base",
        "#\n",
    )
    save(Encoder(model=exact(make_model(**LARGE)), normalise=True), folder / "large", "#\n")
    recognisers.save(made(folder / "large", letters), folder / "hears", "#\n")
    recognisers.save(made(folder / "base", letters, layers="weighted"), folder / "mixed", "#\n")
    return folder


@pytest.fixture(scope="module")
def exports(few: None, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them exported, and the recogniser in every precision."""
    folder = tmp_path_factory.mktemp("exports")
    for name in ("base", "large", "hears", "mixed"):
        export(str(sources / name), folder / name)
    kept = dict(verify.TOLERANCES)
    for precision in ("fp16", "int8"):  # words of a head that knows nothing change easily
        verify.TOLERANCES[precision] = replace(kept[precision], wer=1.0)
        export(str(sources / "hears"), folder / precision, precision=precision)
    verify.TOLERANCES.update(kept)
    return folder


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["base", "large", "mixed"])
def test_all_layers_are_those_of_the_model(
    name: str, runtime: str, sources: Path, exports: Path
) -> None:
    encoder = recognisers.load(str(sources / name)).encoder if name == "mixed" else None
    encoder = encoder or teachers.load(str(sources / name))[0]
    found = exported.load(name, exports / name, runtime=runtime)
    assert (found.depth, found.width) == (encoder.depth, encoder.width)
    layers = range(encoder.depth + 1)
    for clip in CLIPS:
        (wanted,), (got,) = encoder.states([clip], layers), found.states([clip], layers)
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())
    (only,) = found.states([CLIPS[3]], [1])
    np.testing.assert_array_equal(only[0], found.states([CLIPS[3]], layers)[0][1])


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["hears", "mixed"])
def test_what_a_recogniser_hears(name: str, runtime: str, sources: Path, exports: Path) -> None:
    recogniser = recognisers.load(str(sources / name))
    found = exported.load(name, exports / name, recogniser=True, runtime=runtime)
    for wanted, got in zip(recogniser.logprobs(CLIPS), found.logprobs(CLIPS), strict=True):
        assert np.abs(got - wanted).max() < 1e-3
        assert found.tokenizer.decode(got.argmax(1)) == recogniser.tokenizer.decode(
            wanted.argmax(1)
        )
    assert found.tokenizer.normalise("Sées") == recogniser.tokenizer.normalise("Sées")
    assert found.tokenizer.unknown("a9") == recogniser.tokenizer.unknown("a9")
    assert len(found.tokenizer) == len(recogniser.tokenizer)


@pytest.mark.parametrize("name", ["base", "hears", "mixed", "int8"])
def test_no_graph_says_where_code_lay(name: str, exports: Path) -> None:
    """The exporter notes of every node in which file it came from."""
    held = (exports / name / exported.MODEL).read_bytes()
    for word in (".py", "site-packages", str(Path(torch.__file__).parents[1])):
        assert word.encode() not in held


def test_clips_of_one_length_share_a_batch(exports: Path) -> None:
    found = exported.load("large", exports / "large", runtime="onnxruntime")
    clips = np.stack([voice(2.0, seed) for seed in range(3)])
    together = found.run(clips, ["layer_4"])[0]
    for row, clip in zip(together, clips, strict=True):
        alone = found.run(clip[None], ["layer_4"])[0][0]
        assert np.abs(row - alone).max() < 1e-5 * np.abs(alone).max()


def families() -> dict[str, torch.nn.Module]:
    shape: dict[str, object] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "conv_dim": [16] * 7, "num_conv_pos_embedding_groups": 4,
    }  # fmt: skip
    torch.manual_seed(0)
    return {
        "wavlm": WavLMModel(WavLMConfig(**shape, num_conv_pos_embeddings=16)),
        "data2vec": Data2VecAudioModel(Data2VecAudioConfig(**shape, conv_pos_kernel_size=5)),
        "batch norm": make_model(conv_pos_batch_norm=True, num_hidden_layers=2),
    }


@pytest.mark.parametrize("family", ["wavlm", "data2vec", "batch norm"])
def test_every_family(family: str, tmp_path: Path, few: None) -> None:
    encoder = Encoder(model=exact(families()[family].eval()), normalise=family == "data2vec")
    to_onnx(Graph(encoder, None), tmp_path / "model.onnx", family)
    run = exported.RUNTIMES["onnxruntime"].load(tmp_path / "model.onnx")
    for clip in CLIPS:
        (wanted,) = encoder.states([clip], [0, 1, 2])
        got = np.concatenate(run(clip[None], ["layer_0", "layer_1", "layer_2"]))
        np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())


def test_the_model_is_left_as_it_was() -> None:
    encoder = Encoder(model=exact(make_model()), normalise=False)
    before = encoder.digest, encoder.states([CLIPS[3]], [12])[0]
    Graph(encoder, None)
    assert encoder.digest == before[0]
    np.testing.assert_array_equal(encoder.states([CLIPS[3]], [12])[0], before[1])


def test_small_weights_are_small_and_near(sources: Path, exports: Path) -> None:
    recogniser = recognisers.load(str(sources / "hears"))
    kept = {
        name: {
            item.name: item for item in onnx.load(exports / name / "model.onnx").graph.initializer
        }
        for name in ("hears", "fp16", "int8")
    }
    for name, least, size in (("fp16", 0.999, 2), ("int8", 0.99, 1)):
        found = exported.load(name, exports / name, runtime="onnxruntime")
        stored = [item for key, item in kept[name].items() if key.endswith(".stored0")]
        assert stored
        for item in stored:
            assert len(item.raw_data) == size * np.prod(item.dims)
        large = [i for i in kept[name].values() if i.data_type == 1 and np.prod(i.dims) >= 4096]
        assert not large
        for clip in CLIPS:
            wanted, got = recogniser.encoder.states([clip], [4])[0], found.states([clip], [4])[0]
            product = (wanted * got).sum(-1)
            cosine = product / np.linalg.norm(wanted, axis=-1) / np.linalg.norm(got, axis=-1)
            assert cosine.min() >= least
            assert np.abs(wanted - got).max() > 1e-5


# ------------------------------------------------------------------------------------ without torch

BLOCKED = """
import sys
for name in ("torch", "transformers", "torchaudio", "lhotse"):
    sys.modules[name] = None
sys.argv = {argv!r}
{body}
"""


def without_torch(body: str, *argv: object) -> str:
    code = BLOCKED.format(argv=["x", *map(str, argv)], body=body)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_embed_and_transcribe_need_no_torch(exports: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", CLIPS[3], 16_000, "FLOAT")
    main = "from distilkit.cli import main; main()"
    out = tmp_path / "a.npy"
    without_torch(main, "embed", tmp_path / "a.wav", "--model", exports / "base", "--out", out)
    found = exported.load("base", exports / "base")
    np.testing.assert_allclose(np.load(out), found.states([CLIPS[3]], [2])[0][0], atol=1e-4)
    said = without_torch(main, "transcribe", tmp_path / "a.wav", "--model", exports / "hears")
    listener = exported.load("hears", exports / "hears")
    assert said.strip() == listener.tokenizer.decode(listener.logprobs([CLIPS[3]])[0].argmax(1))


@pytest.mark.parametrize("seconds", [0.03, 3.0, 71.0])
def test_the_script_needs_three_packages(seconds: float, exports: Path, tmp_path: Path) -> None:
    """Nothing of ours: what it writes is what `embed` and `transcribe` write."""
    body = (
        "sys.modules['distilkit'] = None; import runpy; runpy.run_path({!r}, run_name='__main__')"
    )
    path = tmp_path / "a.wav"
    soundfile.write(path, voice(seconds, 5), 16_000, "FLOAT")
    out = tmp_path / "frames.npy"
    without_torch(body.format(str(exports / "base" / "run.py")), path, "--out", out)
    found = exported.load("base", exports / "base", runtime="onnxruntime")
    embed([path], found, out=tmp_path / "ours.npy")
    ours = np.load(tmp_path / "ours.npy")
    assert np.load(out).shape == ours.shape
    if seconds <= 30:  # else windows are others
        np.testing.assert_allclose(np.load(out), ours, atol=1e-5)
    said = without_torch(body.format(str(exports / "hears" / "run.py")), path)
    listener = exported.load("hears", exports / "hears", runtime="onnxruntime")
    (transcript,) = transcribe([path], listener)
    assert said.split() == transcript.text.split()  # type: ignore[union-attr]


def test_onnxruntime_counts_nothing_for_its_maker(exports: Path, tmp_path: Path) -> None:
    """Versions that collect how they are used begin with a number for the machine, in the temporary folder."""
    soundfile.write(tmp_path / "a.wav", voice(0.5, 1), 16_000, "FLOAT")
    place = tmp_path / "temporary"
    place.mkdir()
    others = {name: value for name, value in os.environ.items() if name != exported.COUNTING}
    load = "from distilkit import exported as e; from pathlib import Path as P; "
    load += f"e.load('base', P({str(exports / 'base')!r}), runtime='onnxruntime')"
    for command in ([exports / "hears" / "run.py", tmp_path / "a.wav"], ["-c", load]):
        subprocess.run([sys.executable, *command], env={**others, "TMPDIR": str(place)}, check=True)
        assert list(place.iterdir()) == []


def test_openvino_tells_its_maker_nothing(tmp_path: Path) -> None:
    """Its telemetry writes a number for the machine into the home folder, then sends it with each import."""
    load = "import offline; offline.forbid(); from distilkit import exported; exported.bf16_is_fast(); import openvino"
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}",
    }
    done = subprocess.run(
        [sys.executable, "-c", load], env=environment, capture_output=True, text=True, check=True
    )
    assert "most recent call first" not in done.stderr  # nor does a child process ask the network
    assert {path.name for path in tmp_path.iterdir()} <= {".lhotse"}


def test_the_script_refuses_what_it_cannot_hear(exports: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", voice(1.0, 1), 44_100, "FLOAT")
    shutil.copytree(exports / "base", tmp_path / "base")
    script = tmp_path / "base" / "run.py"

    def run(name: str = "a.wav", *options: str) -> str:
        done = subprocess.run(
            [sys.executable, script, tmp_path / name, *options], capture_output=True, text=True
        )
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        return done.stderr

    assert "44100 samples a second" in run()
    assert "there is no file" in run("none.wav")
    (tmp_path / "my notes.txt").write_text("nothing to hear")
    said = run("my notes.txt")
    assert "my notes.txt` cannot be read as audio" in said
    assert f"ffmpeg -i '{tmp_path}/my notes.txt' -ac 1" in said
    soundfile.write(tmp_path / "b.wav", voice(1.0, 1), 16_000)
    assert "`nowhere/b.npy` cannot be written" in run("b.wav", "--out", "nowhere/b.npy")
    with (tmp_path / "base" / "model.onnx").open("ab") as file:
        file.write(b"x")
    assert "is not the file that was exported" in run()


@pytest.mark.parametrize("kind", ["char", "bpe", "unigram"])
def test_tokens_read_as_the_stock_tokenizer_reads_them(kind: str) -> None:
    from conftest import SAYINGS

    from distilkit import config

    made = tokenizers.train(SAYINGS * 3, config.Tokenizer(kind=kind), config.Text())  # type: ignore[arg-type]
    ours = exported.Tokens(made.tokens, made.blank)
    rng = np.random.default_rng(0)
    for _ in range(200):
        path = rng.integers(0, len(made), rng.integers(0, 30)).tolist()
        path = [token for token in path if token != 1]  # never said
        both = tokenizers.Tokenizer(stock=ours, text=made.text)
        assert both.decode(path) == made.decode(path)
        assert both.decode(path, frames=False) == made.decode(path, frames=False)
    assert both.characters == made.characters


# ---------------------------------------------------------------------------------------- refused


def spoilt(file: Path) -> None:
    """An int8 that loses every weight's smaller half."""
    weights._fp16(file)
    model = onnx.load(file)
    for item in model.graph.initializer:
        if item.name.endswith(".stored0"):
            values = onnx.numpy_helper.to_array(item)
            item.CopyFrom(onnx.numpy_helper.from_array(values * (abs(values) > 0.3), item.name))
    onnx.save(model, file)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_beyond_tolerance_nothing_is_kept(
    precision: str, sources: Path, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(weights.WEIGHTS, precision, spoilt)
    with pytest.raises(
        DistilkitError, match=r"is not what it was, with \w+ on 8 clips: .*cosine of 0\."
    ) as told:
        export(str(sources / "base"), tmp_path / "out", precision=precision)  # type: ignore[arg-type]
    assert told.value.hint
    assert not any(tmp_path.iterdir())


def test_words_count_too(
    sources: Path, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers within tolerance and a head that is not."""

    def headless(file: Path) -> None:
        model = onnx.load(file)
        for item in model.graph.initializer:
            values = onnx.numpy_helper.to_array(item)
            if values.ndim == 2 and len(CHARS) in values.shape:
                item.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), item.name))
        onnx.save(model, file)

    CHARS = recognisers.load(str(sources / "hears")).tokenizer.tokens
    monkeypatch.setitem(weights.WEIGHTS, "int8", headless)
    with pytest.raises(DistilkitError, match="of words otherwise than the model, 1% more or less"):
        export(str(sources / "hears"), tmp_path / "out", precision="int8")
    assert not any(tmp_path.iterdir())


def test_texts_give_both_error_rates(
    sources: Path, transcribed: Path, tmp_path: Path, few: None
) -> None:
    done = export(str(sources / "hears"), tmp_path / "out", audio=[transcribed])
    for check in done.checks:
        assert check.labelled
        assert check.wer is not None
        assert check.wer[0] == check.wer[1] > 0
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert [item["runtime"] for item in facts["checked"]] == RUNTIMES
    assert "Words wrong with onnxruntime" in (tmp_path / "out" / "README.md").read_text()


LIES: dict[str, dict[str, object]] = {
    "no number": {"layers": "two"},
    "no layers": {"layers": 10**9},
    "no source": {"source": "base"},
    "no times": {"milliseconds": [1, 2]},
    "another kind": {"kind": "decoder"},
    "another length": {"known": [1.0]},
}


def broken(folder: Path, how: str) -> None:
    model, facts = folder / "model.onnx", folder / "export.json"
    if how == "damaged":
        content = bytearray(model.read_bytes())
        content[len(content) // 2] ^= 1
        model.write_bytes(content)
    elif how == "gone":
        model.unlink()
    elif how == "later":
        facts.write_text(json.dumps(json.loads(facts.read_text()) | {"format": 99}))
    elif how == "short":
        told = json.loads(facts.read_text())
        del told["width"]
        facts.write_text(json.dumps(told))
    elif how == "torn":
        facts.write_text(facts.read_text()[:50])
    elif how == "deep":
        facts.write_text("[" * 100_000)
    elif how in LIES:
        facts.write_text(json.dumps(json.loads(facts.read_text()) | LIES[how]))
    elif how == "rubbish":
        model.write_bytes(b"rubbish")
        told = json.loads(facts.read_text()) | {"sha256": digest(model)}
        facts.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("how", "said", "hint"),
    [
        ("damaged", "is not the file that was exported", "distilkit export .*base --out"),
        ("gone", "has no model.onnx", "distilkit export .*base --out"),
        ("later", "was exported by a later distilkit", "pip install --upgrade"),
        ("short", "is damaged: it does not say width", "again"),
        ("torn", "is damaged", "again"),
        ("deep", "is damaged: brackets within brackets", "again"),
        ("no number", "is damaged: `layers`: input should be a valid integer", "again"),
        ("no layers", "is damaged: `layers`: input should be less than or equal to 1000", "again"),
        ("no source", "is damaged: `source`: input should be a valid dictionary", "again"),
        ("no times", "is damaged: `milliseconds`: input should be a valid dictionary", "again"),
        ("another length", "`known` has 1 numbers, not 32", "again"),
        ("another kind", "is damaged: `kind`: input should be 'encoder' or 'recogniser'", "again"),
        ("rubbish", "onnxruntime cannot load", "pip install"),
    ],
)
def test_a_broken_folder(how: str, said: str, hint: str, exports: Path, tmp_path: Path) -> None:
    shutil.copytree(exports / "base", tmp_path / "x")
    broken(tmp_path / "x", how)
    with pytest.raises(DistilkitError, match=said) as told:
        exported.load("x", tmp_path / "x", runtime="onnxruntime")
    assert told.value.hint is not None
    assert __import__("re").search(hint, told.value.hint)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_model_that_is_not_what_is_said_of_it(
    exports: Path, tmp_path: Path, runtime: str
) -> None:
    """The digest is right: whoever made the folder made both."""

    def changed(
        graph: Callable[[onnx.ModelProto], object] = bool, **facts: object
    ) -> exported.Exported:
        folder = tmp_path / f"x{len(list(tmp_path.iterdir()))}"
        shutil.copytree(exports / "hears", folder)
        model = onnx.load(folder / "model.onnx")
        graph(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        told = json.loads((folder / "export.json").read_text()) | facts
        told["sha256"] = digest(folder / "model.onnx")
        (folder / "export.json").write_text(json.dumps(told))
        return exported.load("x", folder, runtime=runtime)

    clip = CLIPS[2]
    assert changed().logprobs([clip])
    with pytest.raises(
        DistilkitError, match=r"gives `layer_1` as \(1, 24, 32\), and export.json says"
    ):
        changed(width=33, known=[]).states([clip], [1])
    with pytest.raises(DistilkitError, match="gives `logprobs` as"):
        changed(tokens=["<pad>", "a"], blank=0).logprobs([clip])
    with pytest.raises(DistilkitError, match="cannot run `.*model.onnx`: "):
        changed(lambda model: model.graph.output.pop(0)).states([clip], [0])
    with pytest.raises(DistilkitError, match="computes is not finite numbers"):
        changed(unsound).logprobs([clip])
    for wrong in (
        {"blank": 99},
        {"tokens": [1]},
        {"tokens": []},
        {"text": {"case": "odd"}},
        {"text": []},
    ):
        with pytest.raises(DistilkitError, match="is damaged: "):
            changed(**wrong)


def unsound(model: onnx.ModelProto) -> None:
    """A bias of the head that is no number."""
    for tensor in model.graph.initializer:
        if "lm_head" in tensor.name or "logits" in tensor.name:
            values = onnx.numpy_helper.to_array(tensor) * np.float32("nan")
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def test_what_an_export_says_is_not_read_outside_its_folder(exports: Path, tmp_path: Path) -> None:
    shutil.copytree(exports / "base", tmp_path / "x")
    (tmp_path / "x" / "export.json").rename(tmp_path / "outside")
    (tmp_path / "x" / "export.json").symlink_to("../outside")
    with pytest.raises(DistilkitError, match="is a link to"):
        exported.read(tmp_path / "x")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["inside", "../outside", "{}/outside", "link"])
def test_weights_outside_the_folder_are_not_read(
    exports: Path, tmp_path: Path, runtime: str, name: str
) -> None:
    shutil.copytree(exports / "base", tmp_path / "x")
    model = onnx.load(tmp_path / "x" / "model.onnx")
    tensor = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    (tmp_path / "outside").write_bytes(tensor.raw_data)
    (tmp_path / "x" / "inside").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name.format(tmp_path))
    (tmp_path / "x" / "model.onnx").write_bytes(model.SerializeToString())
    told = json.loads((tmp_path / "x" / "export.json").read_text())
    told["sha256"] = digest(tmp_path / "x" / "model.onnx")
    (tmp_path / "x" / "export.json").write_text(json.dumps(told))
    if name == "inside":  # or the others would show nothing
        assert models.encoder(str(tmp_path / "x")).listener.states([CLIPS[2]], [0])
        return
    if name == "link":
        (tmp_path / "x" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(DistilkitError, match="cannot load|outside its folder"):
        exported.load("x", locate(str(tmp_path / "x")), runtime=runtime)


def test_a_swapped_file(exports: Path, tmp_path: Path) -> None:
    shutil.copytree(exports / "base", tmp_path / "x")
    shutil.copyfile(exports / "large" / "model.onnx", tmp_path / "x" / "model.onnx")
    with pytest.raises(DistilkitError, match="another one in its place"):
        models.encoder(str(tmp_path / "x"))


def test_without_a_runtime(exports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DistilkitError, match="onnxruntime is missing") as told:
        exported.load("base", exports / "base", runtime="onnxruntime")
    assert told.value.hint == "pip install 'distilkit[export]'"


def test_without_onnx(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        "distilkit.export.find_spec", lambda name: None if name == "onnx" else found(name)
    )
    with pytest.raises(DistilkitError, match="`distilkit export` needs onnx"):
        export(str(sources / "base"), tmp_path / "out")


def test_what_cannot_be_exported(
    sources: Path, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator\nand a page more")

    monkeypatch.setattr("torch.onnx.export", fails)
    with pytest.raises(DistilkitError, match=r"base` cannot be exported: no such operator$"):
        export(str(sources / "base"), tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_other_refusals(exports: Path, sources: Path, tmp_path: Path) -> None:
    with pytest.raises(DistilkitError, match="already exists"):
        export(str(sources / "base"), exports / "base")
    with pytest.raises(DistilkitError, match="is an exported model already"):
        export(str(exports / "base"), tmp_path / "out")
    with pytest.raises(DistilkitError, match="which can be run, but not trained"):
        teachers.load(str(exports / "base"))
    with pytest.raises(DistilkitError, match="is no recogniser: it is an exported encoder"):
        models.recogniser(str(exports / "base"))
    with pytest.raises(DistilkitError, match="nothing to verify on"):
        (tmp_path / "empty").mkdir()
        export(str(sources / "base"), tmp_path / "out", audio=[tmp_path / "empty"])


# ---------------------------------------------------------------------------------------- choosing


def test_the_faster_runtime_is_taken(exports: Path, tmp_path: Path) -> None:
    shutil.copytree(exports / "base", tmp_path / "x")
    facts = json.loads((tmp_path / "x" / "export.json").read_text())
    assert set(facts["milliseconds"]) == set(RUNTIMES)
    for faster in RUNTIMES:
        facts["milliseconds"] = {name: 1.0 + (name != faster) for name in RUNTIMES}
        (tmp_path / "x" / "export.json").write_text(json.dumps(facts))
        assert models.encoder(str(tmp_path / "x")).listener.runtime == faster  # type: ignore[attr-defined]
    facts["processor"] = "another"  # where nothing was measured: the first that is installed
    facts["milliseconds"] = {"openvino": 2.0, "onnxruntime": 1.0}
    (tmp_path / "x" / "export.json").write_text(json.dumps(facts))
    assert exported.load("x", tmp_path / "x").runtime == "openvino"
    facts["milliseconds"] = {"onnxruntime": 1.0}  # and nothing that was not verified
    (tmp_path / "x" / "export.json").write_text(json.dumps(facts))
    assert exported.load("x", tmp_path / "x").runtime == "onnxruntime"


def test_low_arithmetic_is_used_where_it_is_near_enough(
    sources: Path, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime that is off is said and not used; the one that devices have decides what is kept."""
    monkeypatch.setattr(exported, "bf16_is_fast", lambda: True)
    near = exported.Runtime(package="openvino", load=exported.RUNTIMES["openvino"].load, low=True)
    monkeypatch.setitem(exported.RUNTIMES, "openvino-bf16", near)  # on some processors it is not
    done = export(str(sources / "base"), tmp_path / "near", precision="int8")
    assert "openvino-bf16" in done.facts["milliseconds"]
    good = exported.RUNTIMES["onnxruntime"].load

    def off(file: Path) -> exported.Run:
        run = good(file)
        return lambda wave_BS, names: [given[..., ::-1] for given in run(wave_BS, names)]

    low = exported.Runtime(package="openvino", load=off, low=True)
    monkeypatch.setitem(exported.RUNTIMES, "openvino-bf16", low)
    done = export(str(sources / "base"), tmp_path / "off", precision="int8")
    assert set(done.facts["milliseconds"]) == set(RUNTIMES)
    assert [check.runtime for check in done.checks] == list(exported.RUNTIMES)
    assert "openvino-bf16" not in (tmp_path / "off" / "README.md").read_text()
    done = export(str(sources / "base"), tmp_path / "exact")
    assert [check.runtime for check in done.checks] == RUNTIMES


def test_a_runtime_that_goes_wrong_on_this_processor_is_not_used(
    exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(exports / "hears", tmp_path / "x")
    facts = json.loads((tmp_path / "x" / "export.json").read_text())
    assert len(facts["known"]) == facts["width"]
    facts["milliseconds"] = {name: float(place) for place, name in enumerate(RUNTIMES)}
    (tmp_path / "x" / "export.json").write_text(json.dumps(facts))
    good = exported.RUNTIMES["openvino"].load

    def off(file: Path) -> exported.Run:
        run = good(file)
        return lambda wave_BS, names: [given[..., ::-1] for given in run(wave_BS, names)]

    monkeypatch.setitem(
        exported.RUNTIMES, "openvino", exported.Runtime(package="openvino", load=off)
    )
    found = models.recogniser(str(tmp_path / "x"))
    assert found.listener.runtime == "onnxruntime"  # type: ignore[attr-defined]
    assert found.notes[0] == "openvino is not used: on this processor it gives something else"
    monkeypatch.setenv("DISTILKIT_RUNTIME", "openvino")
    with pytest.raises(
        DistilkitError, match="gives something else here .*, with openvino$"
    ) as told:
        models.recogniser(str(tmp_path / "x"))
    assert told.value.hint.startswith("DISTILKIT_RUNTIME=onnxruntime, or distilkit export ")
    del facts["known"]  # as before it was kept
    (tmp_path / "x" / "export.json").write_text(json.dumps(facts))
    assert models.recogniser(str(tmp_path / "x")).notes[0].endswith("run by openvino")


def test_the_runtime_can_be_named(exports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RUNTIMES:
        monkeypatch.setenv("DISTILKIT_RUNTIME", name)
        assert exported.load("base", exports / "base").runtime == name
    monkeypatch.setenv("DISTILKIT_RUNTIME", "magic")
    with pytest.raises(DistilkitError, match="`DISTILKIT_RUNTIME=magic`: no such runtime"):
        exported.load("base", exports / "base")


# ------------------------------------------------------------------------------------ command line


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: object
) -> tuple[str, str]:
    monkeypatch.setattr(sys, "argv", ["distilkit", *map(str, argv)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code in (0, None), said.err
    return said.out, said.err


def test_every_command_takes_an_exported_folder(
    exports: Path,
    sources: Path,
    transcribed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def told(*argv: object) -> str:
        return run(monkeypatch, capsys, *argv)[0]

    facts = json.loads(told("inspect", exports / "hears", "--json"))
    assert facts["is"] == "an exported recogniser"
    assert facts["file"] == "as it was exported"
    hears = json.loads(told("evaluate", transcribed, "--model", exports / "hears", "--json"))
    model = json.loads(told("evaluate", transcribed, "--model", sources / "hears", "--json"))
    assert hears["wer"] == model["wer"]
    timed = told(
        "bench",
        exports / "base",
        sources / "base",
        "--seconds",
        "1",
        "--batch",
        "2",
        "--rounds",
        "1",
        "--json",
    )
    rows = json.loads(timed)
    assert [row["macs"] is None for row in rows["models"]] == [True, False]
    assert all(row["forward"] > 0 for row in rows["times"])
    assert rows["times"][0]["memory"] is None  # what onnxruntime keeps cannot be seen
    out, err = run(
        monkeypatch, capsys, "probe", "asr", transcribed, "--model", exports / "base",
        "--against", sources / "base", "--workers", "0", "--json",
    )  # fmt: skip
    values = json.loads(out)["tasks"][0]["values"]
    both = [values[str(folder / "base")]["CER"]["value"] for folder in (exports, sources)]
    assert both[0] == pytest.approx(both[1], abs=0.2)
    assert "run by" in err


def test_export_says_how_near_it_is(
    sources: Path,
    tmp_path: Path,
    few: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loose = replace(verify.TOLERANCES["int8"], wer=1.0)  # a head that knows nothing
    monkeypatch.setitem(verify.TOLERANCES, "int8", loose)
    out, _ = run(
        monkeypatch, capsys, "export", sources / "hears", "--out", tmp_path / "x", "--int8"
    )
    assert "least cosine" in out
    assert "of words" not in out.splitlines()[-1]
    assert f"{tmp_path / 'x'}\trecogniser\tint8" in out
    assert sorted(os.listdir(tmp_path / "x")) == [
        "README.md",
        "export.json",
        "model.onnx",
        "run.py",
    ]
    assert "int8" in (tmp_path / "x" / "README.md").read_text()


def test_two_precisions_at_once(
    sources: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["distilkit", "export", str(sources / "base"), "--out", str(tmp_path / "x"), "--int8", "--fp16"]
    )  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "`--fp16` and `--int8` at once" in capsys.readouterr().err


@pytest.fixture(scope="module")
def phone(few: None, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs for phones of the large encoder, and of the recogniser that mixes layers."""
    pytest.importorskip("executorch")
    folder = tmp_path_factory.mktemp("phone")
    export(str(sources / "large"), folder / "large", mobile=True)
    export(str(sources / "mixed"), folder / "mixed", mobile=True)
    return folder


AS_THE_CARD_SAYS = """
import sys; sys.modules["distilkit"] = None
import numpy as np, torch
from executorch.runtime import Runtime
method = Runtime.get().load_program(sys.argv[1]).load_method("forward")
for number, path in enumerate(sys.argv[2:]):
    wave = torch.from_numpy(np.load(path))[None]
    np.savez(path[:-4] + ".npz", *[np.array(given) for given in method.execute([wave])])
"""


@pytest.mark.parametrize("name", ["large", "mixed"])
def test_a_phones_program_gives_what_the_model_gives(
    name: str, sources: Path, phone: Path, tmp_path: Path
) -> None:
    clips = [*CLIPS, voice(30.0, 9)]
    for number, clip in enumerate(clips):
        np.save(tmp_path / f"{number}.npy", clip)
    paths = [tmp_path / f"{number}.npy" for number in range(len(clips))]
    program = phone / name / "model.pte"
    done = subprocess.run(
        [sys.executable, "-c", AS_THE_CARD_SAYS, program, *paths], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((phone / name / "export.json").read_text())["mobile"]
    recogniser = recognisers.load(str(sources / name)) if name == "mixed" else None
    encoder = recogniser.encoder if recogniser else teachers.load(str(sources / name))[0]
    for clip, path in zip(clips, paths, strict=True):
        wanted = [*encoder.states([clip], range(encoder.depth + 1))[0]]
        if recogniser:
            wanted += recogniser.logprobs([clip])
        found = [*np.load(path.with_suffix(".npz")).values()]
        assert len(found) == len(wanted) == len(told["outputs"])
        for layer, given in zip(wanted, found, strict=True):
            np.testing.assert_allclose(given[0], layer, atol=1e-4 * np.abs(layer).max())
    assert told["outputs"][-1] == ("logprobs" if recogniser else f"layer_{encoder.depth}")
    assert (told["shortest"], told["longest"]) == (400, 480_000)
    assert told["sha256"] == digest(program)
    assert told["bytes"] == program.stat().st_size
    assert told["checked"]["runtime"] == "executorch"
    assert told["checked"]["longest"] == 20.0  # of what is verified here
    card = (phone / name / "README.md").read_text()
    assert "On a phone" in card
    assert "| executorch | 0 |" in card
    assert (
        "executorch" not in json.loads((phone / name / "export.json").read_text())["milliseconds"]
    )


def test_a_phones_program_beyond_tolerance_is_refused(
    phone: Path, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = mobile.load

    def noisy(*given: Any) -> exported.Exported:
        made = good(*given)
        return replace(made, run=lambda wave, names: [1.01 * x for x in made.run(wave, names)])

    monkeypatch.setattr(mobile, "load", noisy)
    with pytest.raises(
        DistilkitError, match=r"in fp32 is not what it was, with executorch on .* is 1\.0e-02 off"
    ):
        export(str(sources / "base"), tmp_path / "out", mobile=True)
    assert not any(tmp_path.iterdir())


def test_without_executorch(
    sources: Path, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        "distilkit.export.find_spec", lambda name: None if name == "executorch" else found(name)
    )
    with pytest.raises(DistilkitError, match="`--mobile` needs executorch") as told:
        export(str(sources / "base"), tmp_path / "out", mobile=True)
    assert told.value.hint == "pip install 'distilkit[mobile]'"
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "executorch.exir", None)  # there, and broken
    with pytest.raises(DistilkitError, match="`--mobile` needs executorch: ") as told:
        export(str(sources / "base"), tmp_path / "out", mobile=True)
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_lowered(
    phone: Path, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no such kernel\nand a page more")

    monkeypatch.setattr("executorch.exir.to_edge_transform_and_lower", fails)
    with pytest.raises(
        DistilkitError, match=r"base` cannot be exported for phones: no such kernel$"
    ):
        export(str(sources / "base"), tmp_path / "out", mobile=True)
    assert not any(tmp_path.iterdir())


def test_export_for_phones_says_so(
    phone: Path,
    sources: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out, err = run(
        monkeypatch, capfd, "export", sources / "base", "--out", tmp_path / "x", "--int8", "--mobile"
    )  # fmt: skip
    assert f"{tmp_path / 'x' / 'model.pte'}\tfor phones\tfp32" in out
    assert "executorch" in out
    assert "cpuinfo" not in err  # what the runtime tells of the processor
    assert (tmp_path / "x" / "model.pte").is_file()
