"""Files are written whole or not at all, and others can read them as far as the umask lets them."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from distilkit.errors import DistilkitError
from distilkit.files import make_parent, replacing, write_text


def test_a_file_is_replaced_whole_or_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [item.name for item in tmp_path.iterdir()] == ["file.txt"]


def test_a_folder_is_replaced_whole_or_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for text in ("one", "two"):
        with replacing(path) as beside:
            beside.mkdir()
            (beside / text).write_text(text)
    with pytest.raises(RuntimeError), replacing(path) as beside:
        beside.mkdir()
        raise RuntimeError
    assert [item.name for item in path.iterdir()] == ["two"]
    assert [item.name for item in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_result_in_its_place_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A folder that cannot be synced, on a full disk or where a file system does not do that."""
    real = os.fsync

    def fsync(handle: int) -> None:
        if os.path.samestat(os.fstat(handle), os.stat(tmp_path)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(tmp_path / "made") as beside:
        beside.mkdir() if kind == "folder" else beside.touch()
    assert [item.name for item in tmp_path.iterdir()] == ["made"]


def test_what_was_there_comes_back_where_the_new_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made/old").touch()
    real = Path.rename

    def rename(path: Path, to: Path) -> Path:
        if ".partial-" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, to)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(DistilkitError, match="No space left"), replacing(tmp_path / "made") as new:
        new.mkdir()
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "made",
        "made/old",
    ]


def test_only_what_was_written_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what lies beside it: the parent may be somebody's home."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "other").write_text("big")
    opened, real = [], os.open

    def watching(path: object, *rest: int) -> int:
        opened.append(Path(str(path)).name)
        return real(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", watching)
    with replacing(tmp_path / "folder") as beside:
        beside.mkdir()
        (beside / "inside").touch()
    assert set(opened) - {beside.name} == {"inside", tmp_path.name}


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DistilkitError, match=r"cannot write `.*file.txt`: No space left") as caught:
        with replacing(tmp_path / "file.txt"):
            raise OSError(28, "No space left on device")
    assert caught.value.hint == "make room on that disk, or choose a folder on another"
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_called_that_where_safetensors_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(DistilkitError) as caught, replacing(tmp_path / "codebook") as beside:
            save_file({"centres": torch.zeros(100_000)}, beside)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.problem == f"cannot write `{tmp_path}/codebook`: File too large"
    assert list(tmp_path.iterdir()) == []
    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(DistilkitError) as caught, replacing(tmp_path / "codebook"):
        raise SafetensorError(said)
    assert caught.value.problem == f"cannot write `{tmp_path}/codebook`: No space left on device"
    assert str(caught.value.hint).startswith("make room on that disk")
    with pytest.raises(SafetensorError, match="of another kind"), replacing(tmp_path / "codebook"):
        raise SafetensorError("of another kind")


def test_nothing_can_be_written_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DistilkitError, match="cannot write"):
        write_text(tmp_path / "file" / "below", "y")


WRITES = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from distilkit.files import make_parent, replacing, write_text

place = Path(sys.argv[1])
with replacing(place / "one.safetensors") as beside:
    save_file({"centres": torch.zeros(3)}, beside)
with replacing(place / "folder") as beside:
    beside.mkdir(mode=0o700)
    save_file({"weights": torch.zeros(3)}, beside / "model.safetensors")
    (beside / "run.sh").write_text("true")
    (beside / "run.sh").chmod(0o700)
"""


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_others_may_read_what_the_umask_lets_them_read(tmp_path: Path, mask: int) -> None:
    """Safetensors makes its files readable by their owner alone, whatever the umask says."""
    subprocess.run([sys.executable, "-c", WRITES, tmp_path], check=True, umask=mask)
    found = {
        str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")
    }
    assert found == {
        "one.safetensors": 0o666 & ~mask,
        "folder": 0o777 & ~mask,
        "folder/model.safetensors": 0o666 & ~mask,
        "folder/run.sh": 0o700 | 0o666 & ~mask,
    }


def test_a_file_system_without_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chmod(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "chmod", chmod)
    with replacing(tmp_path / "one.safetensors") as beside:
        save_file({"centres": torch.zeros(3)}, beside)
    assert (tmp_path / "one.safetensors").stat().st_size > 0


@pytest.mark.parametrize("place", ["pipe", "/dev/null", "/dev/stdout", "/dev/new", "link"])
def test_pipes_and_devices_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Root could put a file in the place of `/dev/null`, for every process of the machine."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    path = tmp_path / place

    def moved(*_: object) -> None:
        raise AssertionError(f"something takes the place of {path}")

    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, moved)
    for work in (make_parent, lambda path: write_text(path, "text")):
        with pytest.raises(DistilkitError, match="pipes and devices are not replaced") as caught:
            work(path)
        assert f"`{path}`" in caught.value.problem
    assert not Path("/dev/new").exists()


def test_a_link_to_a_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "file").read_text() == "kept"
    assert (tmp_path / "link").read_text() == "new"


def test_what_a_link_leads_to_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "private").touch(mode=0o600)
    with replacing(tmp_path / "folder") as beside:
        beside.mkdir()
        (beside / "link").symlink_to(tmp_path / "private")
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
