"""`distilkit convert`: what is written holds what was read, and stock transformers and s3prl take it."""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import make_model
from formats import (
    FAMILIES,
    clip,
    fairseq_file,
    fairseq_weights,
    family,
    read,
    reference,
    saved,
    settings,
)
from safetensors.torch import load_file, save_file
from test_teachers_s3prl import distiller_file, distiller_weights, head_weights, student
from transformers import AutoFeatureExtractor, AutoModel, HubertModel

from distilkit import cli, convert, students
from distilkit.encoder import Encoder, encode, exact, fingerprint
from distilkit.errors import DistilkitError
from distilkit.teachers import files

SOURCES: dict[str, Callable[[Path], object]] = {
    "fairseq": lambda p: fairseq_file(fairseq_weights(reference()), settings(), {"normalize": True}),
    "fairseq, large": lambda p: fairseq_file(
        fairseq_weights(reference(stable=True)), settings(stable=True), {"normalize": True}
    ),
    "wav2vec 2.0": lambda p: fairseq_file(
        fairseq_weights(reference()), settings() | {"_name": "wav2vec2"}, {"normalize": False}
    ),
    "torchaudio": lambda p: reference().state_dict(),
    "WavLM": lambda p: reference(wavlm=True).state_dict(),
    "s3prl": lambda p: distiller_file(distiller_weights(student()) | head_weights(3)),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_a_checkpoint_becomes_a_hugging_face_folder(tmp_path: Path, name: str) -> None:
    """To the bit, and in stock transformers with its own feature extractor."""
    path = saved(SOURCES[name](tmp_path), tmp_path / "a.pt")
    before, checkpoint = read(path)
    done = convert.convert(path, tmp_path / "new" / "folder")
    assert (done.output, done.format, done.notes) == (
        tmp_path / "new" / "folder",
        "huggingface",
        (),
    )
    after, again = read(done.output)
    assert fingerprint(after.model) == fingerprint(before.model)
    assert (again.family, after.normalise) == (checkpoint.family, before.normalise)
    assert again.notes == ()
    stock, found = AutoModel.from_pretrained(done.output, output_loading_info=True)
    assert not any(found.values())
    assert (
        type(stock).__name__
        == json.loads((done.output / "config.json").read_text())["architectures"][0]
    )
    extractor = AutoFeatureExtractor.from_pretrained(done.output)
    inputs = extractor(clip()[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        wanted = stock.eval()(inputs).last_hidden_state
        (got,) = encode(before, clip(), [clip().shape[1]], [before.depth])
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    card = (done.output / "README.md").read_text()
    assert f"from a {checkpoint.format} checkpoint, `a.pt`" in card
    assert all(note in card for note in checkpoint.notes)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_written_again(tmp_path: Path, name: str) -> None:
    family(name).save_pretrained(tmp_path / "one")
    done = convert.convert(str(tmp_path / "one"), tmp_path / "two")
    assert fingerprint(read(tmp_path / "two")[0].model) == fingerprint(family(name))
    assert not any(AutoModel.from_pretrained(done.output, output_loading_info=True)[1].values())


def test_heads_go_along(tmp_path: Path) -> None:
    path = saved(SOURCES["s3prl"](tmp_path), tmp_path / "a.ckpt")
    convert.convert(path, tmp_path / "student")
    checkpoint = read(tmp_path / "student")[1]
    assert checkpoint.head_layers == (4, 8, 12)
    assert checkpoint.heads is not None
    for name, tensor in head_weights(3).items():
        assert torch.equal(checkpoint.heads[name], tensor)


# ------------------------------------------------------------------------------------------ s3prl


def run_folder(
    folder: Path, heads: dict[str, torch.Tensor] | None, **changes: object
) -> HubertModel:
    """What a finished run leaves of its student."""
    model = student(**changes)
    students.save(Encoder(model=exact(model), normalise=False), folder / "student", "# card\n")
    facts = {"teacher": {"name": "facebook/hubert-base-ls960", "layers": 12}, "plan": {"steps": 70}}
    (folder / "run.json").write_text(json.dumps(facts))
    if heads:
        layers = ",".join(map(str, (4, 8, 12)[: heads["output_layer.2.weight"].shape[0]]))
        save_file(heads, folder / "heads.safetensors", metadata={"layers": layers})
    return model


LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}


@pytest.mark.parametrize("changes", [{}, LARGE])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_run_becomes_a_checkpoint_of_s3prl(
    tmp_path: Path, count: int, changes: dict[str, object]
) -> None:
    """Its names and shapes are those of DistillerModel, written out by hand in the tests of the reader."""
    heads = head_weights(count)
    model = run_folder(tmp_path / "run", heads, **changes)
    done = convert.convert(str(tmp_path / "run"), tmp_path / "states-70.ckpt", "s3prl")
    held = torch.load(done.output, weights_only=True)  # nothing but plain containers and tensors
    wanted = distiller_weights(model)
    if count == 1:
        wanted |= {name: value for name, value in heads.items() if ".0." in name}
        wanted["output_layer.2.layer.weight"] = heads["output_layer.2.weight"][0].T
        wanted["output_layer.2.layer.bias"] = heads["output_layer.2.bias"][0, 0, 0]
    else:
        wanted |= heads
    assert set(held["Distiller"]) == set(wanted)
    assert all(torch.equal(held["Distiller"][name], tensor) for name, tensor in wanted.items())
    assert held["Step"] == 70
    assert not held["Optimizer"]
    config = held["Config"]
    assert config["teacher"] == {"model": "hubert_base", "n_layers": 12}
    told = config["distiller"]
    assert (told["n_tasks"], told["pred_layer_id"]) == (count, [4, 8, 12][:count])
    assert (told["final_dim"], told["encoder_layers"], told["encoder_embed_dim"]) == (48, 2, 32)
    assert told["layer_norm_first"] == bool(changes)
    assert told["extractor_mode"] == ("layer_norm" if changes else "default")
    after, checkpoint = read(done.output)
    kept = {
        name: value
        for name, value in after.model.state_dict().items()
        if name != "masked_spec_embed"
    }
    assert all(torch.equal(kept[name], model.state_dict()[name]) for name in kept)
    assert checkpoint.head_layers == (4, 8, 12)[:count]
    assert checkpoint.heads is not None
    assert all(torch.equal(checkpoint.heads[name], tensor) for name, tensor in heads.items())


def test_a_full_disk_is_called_that_where_s3prls_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which torch, given a name to write to, calls `unexpected pos`."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    run_folder(tmp_path / "run", head_weights(3))
    try:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(DistilkitError, match=r"cannot write `.*a.ckpt`: File too large"):
            convert.convert(str(tmp_path / "run"), tmp_path / "a.ckpt", "s3prl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_settings_are_those_of_s3prls_own_files(tmp_path: Path) -> None:
    """No key that DistillerConfig would overlook, none forgotten; its convolutions are an expression."""
    run_folder(tmp_path / "run", head_weights(3))
    convert.convert(str(tmp_path / "run"), tmp_path / "a.ckpt", "s3prl")
    own = distiller_file({})
    held = files.load(tmp_path / "a.ckpt")
    assert set(own["Config"]) == set(held["Config"])  # type: ignore[call-overload]
    told, theirs = held["Config"]["distiller"], own["Config"]["distiller"]  # type: ignore[index]
    assert set(told) == set(theirs) | {"init_teacher_conv_layers", "init_teacher_encoder_layers"}
    assert {key: told[key] for key in theirs if key != "extractor_conv_feature_layers"} == {
        key: value for key, value in theirs.items() if key != "extractor_conv_feature_layers"
    }
    convs = "[(16, 10, 5), (16, 3, 2), (16, 3, 2), (16, 3, 2), (16, 3, 2), (16, 2, 2), (16, 2, 2)]"
    assert told["extractor_conv_feature_layers"] == convs


def test_a_student_without_heads(tmp_path: Path) -> None:
    run_folder(tmp_path / "run", None)
    done = convert.convert(str(tmp_path / "run"), tmp_path / "a.ckpt", "s3prl")
    assert done.notes == (
        "no prediction heads: s3prl can use the student, but not train it further",
    )
    told = files.load(done.output)["Config"]["distiller"]
    assert (told["task_emb_type"], told["out_layer_type"]) == ("self-hidden", "self-hidden")
    assert (told["n_tasks"], told["pred_layer_id"]) == (3, [0, 1, 2])
    assert read(done.output)[1].heads is None


UNFIT: dict[str, tuple[dict[str, object], bool, str]] = {
    "a norm": ({"feat_proj_layer_norm": True}, False, "has a norm before its projection"),
    "biases": ({"conv_bias": True}, False, "has biases in its front end"),
    "a batch norm": ({"conv_pos_batch_norm": True}, False, "has a batch norm before its positional convolution"),
    "the front end's width": ({"conv_dim": [32] * 7}, False, "projects to the width of its front end"),
    "normalisation": ({}, True, "wants normalised waveforms"),
    "an activation": ({"hidden_act": "silu"}, False, "uses `silu`"),
    "an epsilon": ({"layer_norm_eps": 1e-6}, False, "has norms with epsilon 1e-06"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_what_s3prl_cannot_hold(tmp_path: Path, name: str) -> None:
    changes, normalise, problem = UNFIT[name]
    model = make_model(**{"num_hidden_layers": 1, "feat_proj_layer_norm": False, **changes})
    students.save(
        Encoder(model=exact(model), normalise=normalise), tmp_path / "student", "# card\n"
    )
    with pytest.raises(DistilkitError) as caught:
        convert.convert(str(tmp_path / "student"), tmp_path / "a.ckpt", "s3prl")
    assert (
        caught.value.problem
        == f"`{tmp_path / 'student'}` {problem}, which s3prl's distiller cannot hold"
    )
    assert os.listdir(tmp_path) == ["student"]


def test_another_family_is_not_for_s3prl(tmp_path: Path) -> None:
    family("WavLM").save_pretrained(tmp_path / "wavlm")
    with pytest.raises(DistilkitError, match="is a WavLM, which s3prl's distiller cannot hold"):
        convert.convert(str(tmp_path / "wavlm"), tmp_path / "a.ckpt", "s3prl")


# --------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("format", ["huggingface", "s3prl"])
@pytest.mark.parametrize("there", ["file", "folder", "empty folder", "broken link"])
def test_what_is_there_is_not_replaced(tmp_path: Path, there: str, format: str) -> None:
    run_folder(tmp_path / "run", head_weights(3))
    out = tmp_path / "out"
    if there == "broken link":
        out.symlink_to(tmp_path / "nowhere")
    elif there == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        if there == "folder":
            (out / "mine").touch()
    with pytest.raises(DistilkitError) as caught:
        convert.convert(str(tmp_path / "run"), out, format)
    assert caught.value.problem == f"`{out}` already exists"
    assert caught.value.hint == "another --out, or remove it first"
    assert sorted(os.listdir(tmp_path)) == ["out", "run"]


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_folder(tmp_path / "run", head_weights(3))

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "save_file", fail)
    with pytest.raises(DistilkitError, match="No space left on device"):
        convert.convert(str(tmp_path / "run"), tmp_path / "out")
    assert os.listdir(tmp_path) == ["run"]


# ---------------------------------------------------------------------------------- command line


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["distilkit", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(SOURCES["s3prl"](tmp_path), tmp_path / "a.ckpt")
    assert call(monkeypatch, "convert", path, "--out", tmp_path / "one") == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'one'}\thuggingface\ta HuBERT encoder from s3prl, 0.03 M\n"
    assert f"{path}: has heads for layers 4, 8, 12 of its teacher" in err
    assert (
        call(
            monkeypatch,
            "convert",
            tmp_path / "one",
            "--out",
            tmp_path / "b.ckpt",
            "--format",
            "s3prl",
            "--json",
        )
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["output"] == str(tmp_path / "b.ckpt")
    assert told["format"] == "s3prl"
    assert told["read"]["prediction heads"] == "for layers 4, 8, 12"
    both = [load_file(tmp_path / "one" / "heads.safetensors"), head_weights(3)]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[1])
    assert call(monkeypatch, "convert", path, "--out", tmp_path / "one") == 1
    assert "already exists" in capsys.readouterr().err
    assert call(monkeypatch, "convert", tmp_path / "gone.pt", "--out", tmp_path / "two") == 1
    assert "no such model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("fairseq, large", ("a HuBERT encoder", "fairseq", "hubert", 3, 128, True, True)),
        ("wav2vec 2.0", ("a wav2vec 2.0 encoder", "fairseq", "wav2vec2", 3, 128, False, False)),
        ("WavLM", ("a WavLM encoder", "torchaudio", "wavlm", 3, 128, False, False)),
        ("s3prl", ("a HuBERT encoder", "s3prl", "hubert", 2, 32, False, False)),
    ],
)
def test_inspect_says_what_was_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str, wanted: tuple[object, ...],
) -> None:  # fmt: skip
    path = saved(SOURCES[name](tmp_path), tmp_path / "a.pt")
    assert call(monkeypatch, "inspect", path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    keys = (
        "is",
        "format",
        "family",
        "transformer layers",
        "width",
        "waveform normalised",
        "stable layer norm",
    )
    assert tuple(told[key] for key in keys) == wanted
    assert told["source"] == path
    assert told["notes"] == list(read(path)[1].notes)
    assert told["parameters"].endswith(" M")
    assert call(monkeypatch, "inspect", path) == 0
    assert str(wanted[0]) in capsys.readouterr().out


def test_formats_of_the_command_are_those_of_the_code() -> None:
    from typing import get_args

    from distilkit.cli.convert import CheckpointFormat

    assert set(get_args(CheckpointFormat)) == set(convert.FORMATS)
