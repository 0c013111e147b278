"""What killed processes leave is removed by the next; what living ones work on is not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import Run

from distilkit import leftovers

HOLD = """
import os, signal, sys
from pathlib import Path
from distilkit import leftovers
with leftovers.temporary(Path(sys.argv[1])) as folder:
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


def holder(place: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that holds a temporary folder until it is killed or its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_killed_owners_folder_goes_and_a_living_ones_stays(tmp_path: Path) -> None:
    others = tmp_path / ".distilkit"  # of somebody else
    others.mkdir()
    living, held = holder(tmp_path)
    dead, left = holder(tmp_path)
    dead.send_signal(signal.SIGKILL)
    dead.communicate()
    assert (left / "deep" / "file").is_file()
    with leftovers.temporary(tmp_path) as folder:
        assert folder.is_dir()
        assert not left.exists()
        assert (held / "deep" / "file").is_file()
    assert not folder.exists()
    living.communicate()
    assert list(tmp_path.iterdir()) == [others]


def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(handle: int, how: int) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(leftovers.fcntl, "flock", no_locks)
    with leftovers.temporary(tmp_path) as first, leftovers.temporary(tmp_path) as second:
        assert first.is_dir()
        assert second.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_taken_for_left_over_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = leftovers.tempfile.mkdtemp, []

    def made(**more: object) -> str:
        name = real(**more)
        if not taken:
            Path(name).rmdir()  # another process was faster
        taken.append(name)
        return str(name)

    monkeypatch.setattr(leftovers.tempfile, "mkdtemp", made)
    with leftovers.temporary(tmp_path) as folder:
        assert folder == Path(taken[1])
        assert folder.is_dir()


@pytest.fixture
def dead() -> int:
    """The number of a process that is gone."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_what_was_half_written_goes(tmp_path: Path, dead: int) -> None:
    (tmp_path / f".student.partial-{dead}" / "deep").mkdir(parents=True)
    (tmp_path / f".a.npy.partial-{dead}.3").write_text("part")
    (tmp_path / f".a.npy.partial-{os.getpid()}").write_text("of a process of the same number")
    (tmp_path / "student").mkdir()
    (tmp_path / f".student.old-{dead}").mkdir()
    kept = {f".student.partial-{os.getppid()}", ".student.partial-x", "a.partial-1", "student"}
    for name in kept - {"student"}:
        (tmp_path / name).write_text("not ours to remove")
    leftovers.tidy(tmp_path / "student")
    found = {path.name for path in tmp_path.iterdir()}
    assert found == kept | {f".a.npy.partial-{dead}.3", f".a.npy.partial-{os.getpid()}"}
    leftovers.tidy_below(tmp_path.parent)
    assert {path.name for path in tmp_path.iterdir()} == kept
    leftovers.tidy(tmp_path / "nowhere" / "file")


@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("probe sid {said} --model {teacher} --workers 0 --out page.html", "page.html"),
        ("evaluate {said} --model {tuned} --out heard.jsonl", "heard.jsonl"),
        ("layers {said} --model {teacher} --out pictures", "pictures/layers.png"),
        ("transcribe {said}/clip00.flac --model {tuned} --out said.txt", "said.txt"),
        ("embed {said}/clip00.flac --model {teacher} --out vectors.npy", "vectors.npy"),
        ("lm {said} --out lm.arpa", "lm.arpa"),
        ("recipes copy smoke mine.toml", "mine.toml"),
    ],
)
def test_a_killed_commands_file_goes_with_the_next(
    run: Run, transcribed: Path, teacher_folder: Path, tuned: Path, dead: int, command: str, written: str,
) -> None:  # fmt: skip
    if command.startswith("layers"):
        pytest.importorskip("matplotlib")
    half = Path(written).with_name(f".{Path(written).name}.partial-{dead}")
    half.parent.mkdir(exist_ok=True)
    half.write_text("half")
    places = {"said": transcribed, "teacher": teacher_folder, "tuned": tuned}
    code, _, err = run(*command.format(**places).split())
    assert code == 0, err
    assert Path(written).is_file()
    assert not half.exists()


def test_what_was_to_be_replaced_comes_back(tmp_path: Path, dead: int) -> None:
    """Killed between its two moves, a folder is neither the old nor the new one: the old one was whole."""
    (tmp_path / f".student.old-{dead}").mkdir()
    (tmp_path / f".student.old-{dead}" / "old").write_text("old")
    (tmp_path / f".student.partial-{dead}").mkdir()
    leftovers.tidy(tmp_path / "student")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert (tmp_path / "student" / "old").is_file()


def test_a_folder_is_removed_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ".vectors.npz.parts"
    folder.mkdir()
    (folder / "a").write_text("a")
    with monkeypatch.context() as patch:
        patch.setattr(leftovers, "discard", lambda path: None)  # killed there
        leftovers.remove(folder)
    assert not folder.exists()
    assert len(list(tmp_path.iterdir())) == 1
    leftovers.tidy(folder)
    assert list(tmp_path.iterdir()) == []


POOL = """
import multiprocessing, os, signal, sys, threading, time
from distilkit import probes

def work():
    threading.Thread(target=probes._end_with_parent, daemon=True).start()
    time.sleep(100)

process = multiprocessing.get_context("fork").Process(target=work)
process.start()
print(process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_processes_that_train_heads_end_with_their_parent() -> None:
    done = subprocess.run([sys.executable, "-c", POOL], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    limit = time.monotonic() + 10
    while psutil.pid_exists(int(done.stdout)) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not psutil.pid_exists(int(done.stdout))
