"""Nothing in a checkpoint can run, and what is no checkpoint says what it is."""

import io
import os
import pickle
import struct
import subprocess
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from formats import fairseq_file, fairseq_weights, pretend, reference, refused, saved, settings
from test_teachers_s3prl import distiller_file, distiller_weights, head_weights, student
from torch import Tensor
from torch.serialization import (
    get_crc32_options,
    get_safe_globals,
    safe_globals,
    set_crc32_options,
)

from distilkit.teachers import files

AGAIN = "download it again; in a git clone: git lfs pull"


class Touch:
    """Unpickled by an ordinary unpickler, it makes a file."""

    def __init__(self, command: str, call: object = os.system) -> None:
        self.command, self.call = command, call

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return self.call, (self.command,)


def tar(content: object, path: Path) -> None:
    """The oldest format of torch: a tar of pickles."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(content, protocol=2) + struct.pack("<i", 0)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


FORMS: dict[str, Callable[[object, Path], object]] = {
    "zip": torch.save,
    "legacy": legacy,
    "tar": tar,
    "plain pickle": lambda content, path: path.write_bytes(pickle.dumps(content, 2)),
}
PLACES: dict[str, Callable[[object], object]] = {
    "alone": lambda evil: evil,
    "in a dict": lambda evil: fairseq_file({}, {}, {}) | {"extra_state": {"a": [{"b": evil}]}},
    "as settings": lambda evil: fairseq_file({}, evil, {}),
    "as a weight": lambda evil: {"encoder.transformer.layers.0.x": evil},
    "in a namespace": lambda evil: {"model": {}, "args": Namespace(w2v_args=evil)},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", FORMS)
def test_code_in_a_pickle_does_not_run(tmp_path: Path, form: str, place: str) -> None:
    marker, path = tmp_path / "it ran", tmp_path / "evil.pt"
    evil = Touch(f"touch '{marker}'")
    FORMS[form](PLACES[place](evil), path)
    problem, hint = refused(path)
    assert not marker.exists()
    if form == "tar":
        assert problem.startswith(f"`{path}` is a tar file; the oldest checkpoints of torch")
    else:
        assert problem == (
            f"`{path}` holds a pickle with more than weights (it calls `posix.system`); it may run code "
            "when loaded, so it was not"
        )
        assert hint == "give a checkpoint with model.safetensors"


def test_the_files_above_would_run(tmp_path: Path) -> None:
    """Or the tests above would show nothing."""
    for form in ("zip", "legacy", "plain pickle"):
        marker, path = tmp_path / form.replace(" ", ""), tmp_path / "evil.pt"
        FORMS[form]({"a": Touch(f"touch {marker}")}, path)
        if form == "plain pickle":
            pickle.loads(path.read_bytes())
        else:
            torch.load(path, weights_only=False)
        assert marker.exists()


@pytest.mark.parametrize("call", [eval, exec, getattr, __import__, print, open, type, Path])
def test_other_names_are_refused(tmp_path: Path, call: Callable[..., object]) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"a": Touch("1", call)}, path)
    assert "holds a pickle with more than weights (it calls `" in refused(path)[0]


def test_an_old_tar_without_its_mark(tmp_path: Path) -> None:
    """Also where the tar is of a kind that has no mark, torch refuses it."""
    marker, path = tmp_path / "it ran", tmp_path / "evil.pt"
    tar(Touch(f"touch '{marker}'"), path)
    data = bytearray(path.read_bytes())
    for at in range(0, len(data) - 512, 512):
        if data[at + 257 : at + 262] == b"ustar":
            data[at + 257 : at + 265] = bytes(8)
            block = bytes(data[at : at + 148]) + b" " * 8 + bytes(data[at + 156 : at + 512])
            data[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    path.write_bytes(data)
    assert tarfile.is_tarfile(path)
    refused(path)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_pickles_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    marker, path = tmp_path / "it ran", tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps({"model": Touch(f"touch '{marker}'")}, protocol))
    refused(path)
    torch.save({"model": Touch(f"touch '{marker}'")}, path, pickle_protocol=protocol)
    refused(path)
    assert not marker.exists()


def test_stand_ins_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever class of fairseq or s3prl a file names, that class's own code is not called."""
    called: list[str] = []
    kind = pretend(monkeypatch, "fairseq.data.dictionary.Dictionary")
    kind.__setstate__ = lambda self, state: called.append("state")  # type: ignore[attr-defined]
    kind.__init__ = lambda self, *_: called.append("init")  # type: ignore[misc]
    made = object.__new__(kind)
    made.__dict__ = {"symbols": ["a"]}
    content = fairseq_file(fairseq_weights(reference()), settings(), {"normalize": False})
    path = saved(content | {"task_state": {"dictionaries": [made]}}, tmp_path / "a.pt")
    held = files.load(Path(path))
    (stand_in,) = held["task_state"]["dictionaries"]
    assert isinstance(stand_in, files.Inert)
    assert stand_in.state == {"symbols": ["a"]}
    assert called == []


def test_the_names_are_forgotten_afterwards(tmp_path: Path) -> None:
    path = saved({"encoder.transformer.layers.0.x": Namespace(a=1)}, tmp_path / "a.pt")
    assert isinstance(files.load(Path(path))["encoder.transformer.layers.0.x"], files.Inert)
    assert not any(
        kind is files.Inert or files.Inert in getattr(kind, "__mro__", ()) for kind in allowed()
    )


def allowed() -> list[object]:
    """What torch's unpickler has been told to accept."""
    return [item[0] if isinstance(item, tuple) else item for item in get_safe_globals()]


def test_names_that_other_libraries_made_known_are_not_accepted(tmp_path: Path) -> None:
    marker, path = tmp_path / "it ran", tmp_path / "evil.pt"
    torch.save({"a": Touch(f"touch '{marker}'", subprocess.getoutput)}, path)
    with safe_globals([subprocess.getoutput]):
        assert "holds a pickle with more than weights" in refused(path)[0]
        assert not marker.exists()
        assert subprocess.getoutput in allowed()


# ------------------------------------------------------------------------------- little that becomes much


def rezipped(path: Path, way: int, change: Callable[[bytes], bytes] = bytes) -> None:
    """The same parts, packed otherwise; the first weights changed."""
    with zipfile.ZipFile(path) as archive:
        parts = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", way) as archive:
        for name, held in parts:
            archive.writestr(name, change(held) if name.endswith("/data/0") else held)


def test_compressed_parts_are_refused(tmp_path: Path) -> None:
    """torch would take the packed bytes for weights."""
    path = tmp_path / "hubert.pt"
    good(path)
    rezipped(path, zipfile.ZIP_STORED)
    files.load(path)
    rezipped(path, zipfile.ZIP_DEFLATED, lambda held: held + bytes(1 << 24))
    said, hint = refused(path)
    assert said.startswith(
        f"`{path}` holds compressed parts (`hubert/data.pkl`), which weights never are"
    )
    assert hint == "give a checkpoint as it was published"


def test_a_damaged_part_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "hubert.pt"
    content = bytearray(good(path))
    with zipfile.ZipFile(path) as archive:
        part = next(part for part in archive.infolist() if part.filename.endswith("/data/0"))
        at = part.header_offset + 200
    content[at] ^= 1
    path.write_bytes(content)
    assert refused(path)[0] == f"`{path}` is damaged: Bad CRC-32 for file 'hubert/data/0'"
    with monkeypatched_checksums():
        good(path)
    files.load(path)  # without checksums there is nothing to compare


@contextmanager
def monkeypatched_checksums() -> Iterator[None]:
    before = get_crc32_options()
    set_crc32_options(False)
    yield
    set_crc32_options(before)


def test_settings_that_hold_one_another_ten_times(tmp_path: Path) -> None:
    value: object = "ha"
    for _ in range(20):
        value = (value,) * 10
    content = fairseq_file(fairseq_weights(reference(layers=1)), {"a": value}, {})
    path = saved(content, tmp_path / "a.pt")
    assert refused(path)[0] == "the settings in a checkpoint are nested without end"


def test_one_number_stretched_to_a_model_is_refused(tmp_path: Path) -> None:
    wide = settings(layers=1) | {"encoder_embed_dim": 30_000, "encoder_ffn_embed_dim": 30_000}
    weights = {
        name: torch.zeros(1).expand(30_000, 30_000) for name in fairseq_weights(reference(layers=1))
    }
    path = saved(fairseq_file(weights, wide, {}), tmp_path / "a.pt")
    assert Path(path).stat().st_size < 100_000
    assert " are of a model with " in refused(path)[0]


TYPES: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "whole": (lambda tensor: tensor.long(), "of another type `encoder.layers.0.fc1.bias` int64"),
    "complex": (lambda tensor: tensor.to(torch.complex64), "of another type `encoder.layers.0.fc1.bias` complex64"),
    "sparse": (lambda tensor: tensor.to_sparse(), "of another type `encoder.layers.0.fc1.bias` float32"),
    "nowhere": (lambda tensor: tensor.to("meta"), "of another type `encoder.layers.0.fc1.bias` float32"),
    "not finite": (lambda tensor: tensor * torch.nan, "are not finite numbers (NaN or inf): `encoder.layers.0.feed_forward"),
    "too large": (lambda tensor: tensor.double() + 1e300, "are not finite numbers (NaN or inf): `encoder.layers.0.feed_forward"),
    "no tensor": (lambda tensor: "weights", "unexpected `encoder.layers.0.fc1.bias`"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_weights_of_other_types(tmp_path: Path, kind: str) -> None:
    change, said = TYPES[kind]
    weights: dict[str, object] = dict(fairseq_weights(reference(layers=1)))
    weights["encoder.layers.0.fc1.bias"] = change(weights["encoder.layers.0.fc1.bias"])  # type: ignore[arg-type]
    assert (
        said in refused(saved(fairseq_file(weights, settings(layers=1), {}), tmp_path / "a.pt"))[0]
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("odd", [5, {"a": 1}, "x", [[]], 10**400])
def test_settings_of_other_types(tmp_path: Path, odd: object) -> None:
    """Whatever a reader stumbles over, it is said of the checkpoint."""
    for key in ("conv_pos_groups", "label_rate", "dropout", "activation_fn"):
        content = fairseq_file(
            fairseq_weights(reference(layers=1)), settings(layers=1) | {key: odd}, {}
        )
        path = saved(content, tmp_path / "a.pt")
        if key != "label_rate":
            refused(path)
    content = distiller_file(distiller_weights(student()), pred_layer_id=7)
    path = saved(content | {"Distiller": content["Distiller"] | head_weights(3)}, tmp_path / "a.pt")  # type: ignore[operator]
    said = "is not as a s3prl checkpoint should be: 'int' object is not iterable"
    assert refused(path)[0] == f"`{path}` {said}"


# ------------------------------------------------------------------------------- no checkpoint at all


def good(path: Path, **options: object) -> bytes:
    saved(
        fairseq_file(fairseq_weights(reference(layers=1)), settings(layers=1), {}), path, **options
    )
    return path.read_bytes()


WRONG: dict[str, tuple[Callable[[Path], bytes], str, str]] = {
    "empty": (lambda _: b"", "`FILE` is empty", AGAIN),
    "a web page": (
        lambda _: b"\n <!DOCTYPE html>\n<html><head><title>404</title>", "`FILE` is a web page, not a checkpoint",
        "download the file that the page offers",
    ),
    "another web page": (
        lambda _: b"<html>sign in</html>", "`FILE` is a web page, not a checkpoint", "download the file that the page offers",
    ),
    "a pointer": (
        lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1136468879\n",
        "`FILE` is a pointer of git lfs, not the file itself", "git lfs pull",
    ),
    "a truncated zip": (lambda p: good(p)[:200_000], "`FILE` cannot be loaded: PytorchStreamReader failed", AGAIN),
    "a truncated legacy file": (
        lambda p: good(p, _use_new_zipfile_serialization=False)[:-20_000], "`FILE` cannot be loaded: ", AGAIN,
    ),
    "a legacy file cut early": (
        lambda p: good(p, _use_new_zipfile_serialization=False)[:300], "`FILE` ", AGAIN,
    ),
    "text": (lambda _: b"dear reader, " * 50, "`FILE` is damaged, or not a checkpoint", AGAIN),
    "zeros": (lambda _: bytes(5_000), "`FILE` begins with nothing but zeros", AGAIN),
    "another zip": (lambda _: b"PK\x05\x06" + bytes(18), "`FILE` cannot be loaded: ", AGAIN),
    "a list": (
        lambda p: (torch.save([1, 2], p), p.read_bytes())[1], "`FILE` holds a `list`, not the weights of a model",
        "give a checkpoint as it was published",
    ),
    "a tensor": (
        lambda p: (torch.save(torch.ones(2), p), p.read_bytes())[1], "`FILE` holds a `Tensor`, not the weights of a model",
        "give a checkpoint as it was published",
    ),
    "weights of something else": (
        lambda p: (torch.save({"decoder.a": torch.ones(2)}, p), p.read_bytes())[1],
        "`FILE` is not a checkpoint of a known format (huggingface, s3prl, lighthubert, fairseq, torchaudio); it holds decoder.a",
        "give a Hugging Face folder, a checkpoint of one of these formats, or a hub id",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_checkpoint_says_so(tmp_path: Path, name: str) -> None:
    make, problem, hint = WRONG[name]
    path = tmp_path / "hubert.pt"
    path.write_bytes(make(path))
    said, hinted = refused(path)
    assert said.startswith(problem.replace("FILE", str(path)))
    assert hinted == hint


def test_damaged_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "hubert.safetensors"
    path.write_bytes(b"\xff" * 100)
    assert refused(path)[0].startswith(f"`{path}` cannot be loaded: ")


def test_a_script_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    assert refused(path)[0].startswith(f"`{path}` holds compressed parts (`a/")


def test_weights_beside_their_configuration(tmp_path: Path) -> None:
    """Given the file of a Hugging Face folder, the hint names the folder."""
    (tmp_path / "config.json").write_text("{}")
    saved({"encoder.layers.0.x": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert refused(tmp_path / "pytorch_model.bin")[1] == str(tmp_path)
