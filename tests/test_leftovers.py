"""What killed processes leave is removed by the next; what living ones work on is not."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import safetensors.torch
import torch
from conftest import Run

from distilkit import codebooks, ctc, leftovers, unfinished
from distilkit.codebooks import Codebook
from distilkit.data.scan import cache_folder
from distilkit.errors import DistilkitError
from distilkit.files import replacing
from distilkit.unfinished import here

LISTEN = (  # commands that keep decoded audio in the cache
    "distill", "finetune-ctc", "units", "probe", "transcribe", "evaluate", "layers", "embed",
)  # fmt: skip
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
    own = unfinished.beside(tmp_path / "a.npy")
    own.write_text("of a process that had the same number")
    (tmp_path / f".student.partial-{dead}-{here()}" / "deep").mkdir(parents=True)
    (tmp_path / f".a.npy.partial-{dead}-{here()}.3").write_text("part")
    (tmp_path / "student").mkdir()
    (tmp_path / f".student.old-{dead}-{here()}").mkdir()
    living = f".student.partial-{os.getppid()}-{here()}"
    kept = {living, ".student.partial-x", "a.partial-1", "student"}
    kept |= {
        f"...old-{dead}-{here()}",
        f"....old-{dead}-{here()}",
    }  # of this folder, and the one above
    kept |= {f".student.partial-{2**64}-{here()}"}  # no process has such a number
    for name in kept - {"student"}:
        (tmp_path / name).write_text("not ours to remove")
    leftovers.tidy(tmp_path / "student")
    found = {path.name for path in tmp_path.iterdir()}
    assert found == kept | {f".a.npy.partial-{dead}-{here()}.3", own.name}
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
    half = Path(written).with_name(f".{Path(written).name}.partial-{dead}-{here()}")
    half.parent.mkdir(exist_ok=True)
    half.write_text("half")
    places = {"said": transcribed, "teacher": teacher_folder, "tuned": tuned}
    code, _, err = run(*command.format(**places).split())
    assert code == 0, err
    assert Path(written).is_file()
    assert not half.exists()


def keep_codebook(path: Path) -> None:
    found = Codebook(
        features="layers", layers=(4,), model="m", normalise=False, centres=(torch.zeros(2, 3),)
    )
    with replacing(path) as beside:
        codebooks.save(found, beside)


def keep_best(path: Path) -> None:
    ctc._keep(Weighed(), path)  # type: ignore[arg-type]


class Weighed:
    def weights(self) -> dict[str, torch.Tensor]:
        return {"a": torch.zeros(2, 3)}


@pytest.mark.parametrize("keep", [keep_codebook, keep_best])
def test_what_safetensors_had_half_written_goes(
    tmp_path: Path, keep: Callable[[Path], None]
) -> None:
    place = tmp_path / "kept.safetensors"

    def killed(tensors: object, path: Path, **more: object) -> None:
        Path(path).with_name(".tmpAbC123").write_text("its own name, until it is whole")
        os._exit(9)

    child = os.fork()
    if not child:
        safetensors.torch.serialize_file = killed
        try:
            keep(place)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert list(tmp_path.rglob(".tmpAbC123"))
    leftovers.tidy(place)
    assert list(tmp_path.iterdir()) == []
    keep(place)
    assert list(tmp_path.iterdir()) == [place]
    with safetensors.safe_open(place, "pt") as file:
        assert len(file.keys()) == 1


def test_what_was_to_be_replaced_comes_back(tmp_path: Path, dead: int) -> None:
    """Killed between its two moves, a folder is neither the old nor the new one: the old one was whole."""
    (tmp_path / f".student.old-{dead}-{here()}").mkdir()
    (tmp_path / f".student.old-{dead}-{here()}" / "old").write_text("old")
    (tmp_path / f".student.partial-{dead}-{here()}").mkdir()
    leftovers.tidy(tmp_path / "student")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert (tmp_path / "student" / "old").is_file()


WRITE = """
import socket, sys
from pathlib import Path
socket.gethostname = lambda: "the other one"
from distilkit.errors import DistilkitError
from distilkit.files import replacing
with replacing(Path(sys.argv[1])) as beside:
    beside.mkdir()
    (beside / "half").write_text("half")
    print(beside, flush=True)
    sys.stdin.read()
"""


def test_what_a_process_on_another_machine_writes_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To us its number is that of nobody, or our own: in containers these are small."""
    other = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(tmp_path / "student")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None
    written = Path(other.stdout.readline().strip())
    for number in (2**22 + 1, other.pid):  # more than Linux gives; and the other's, as our own
        monkeypatch.setattr(leftovers.os, "getpid", lambda number=number: number)
        monkeypatch.setattr(leftovers.psutil, "pid_exists", lambda _: False)
        leftovers.tidy(tmp_path / "student")
        leftovers.tidy_below(tmp_path)
        with replacing(tmp_path / "student") as beside:
            assert beside != written
            beside.mkdir()
        assert (written / "half").is_file()
    other.communicate("")
    assert other.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert (tmp_path / "student" / "half").is_file()


@pytest.mark.parametrize(
    "mark", ["-0123abcd", ""]
)  # of another machine; of none, as names once were
@pytest.mark.parametrize("back", [0, 10 * leftovers.DAY])  # of what the files say; a move is now
def test_another_machines_leftovers_go_once_nothing_changes(
    tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch, mark: str, back: float
) -> None:
    left = tmp_path / f".student.old-{dead}{mark}"
    (left / "deep").mkdir(parents=True)
    (left / "deep" / "file").write_text("old")
    (tmp_path / f".student.partial-{dead}{mark}").mkdir()
    (tmp_path / f".a.npy.partial-{dead}{mark}.3").write_text("part")
    then = time.time() - back
    for path in (left / "deep" / "file", left / "deep", left):
        os.utime(path, (then, then))
    before = sorted(tmp_path.rglob("*"))
    leftovers.tidy_below(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setattr(leftovers, "DAY", 0.5)
    time.sleep(0.6)
    (left / "deep" / "file").write_text("still written")
    leftovers.tidy_below(tmp_path)
    assert (left / "deep" / "file").is_file(), "it was written just now"
    time.sleep(0.6)
    leftovers.tidy(tmp_path / "student")
    leftovers.tidy_below(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert (tmp_path / "student" / "deep" / "file").is_file()


def test_where_the_disks_clock_cannot_be_asked_nothing_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: object) -> None:
        raise PermissionError(13, "no")

    (tmp_path / ".a.partial-1-0123abcd").write_text("part")
    monkeypatch.setattr(leftovers, "DAY", 0.1)
    time.sleep(0.2)
    with monkeypatch.context() as patch:
        patch.setattr(leftovers.tempfile, "TemporaryFile", refused)
        leftovers.tidy_below(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    leftovers.tidy_below(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("began", "goes"), [(0.5, False), (1.5, True)], ids=["maybe its own", "somebody's else"]
)
def test_a_number_that_was_given_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, began: float, goes: bool
) -> None:
    """Of a process that began long after the last byte: the first one of a container always lives."""
    left = tmp_path / f".a.partial-{os.getppid()}-{here()}"
    left.write_text("part")
    later = time.time() + began * leftovers.DAY
    monkeypatch.setattr(leftovers.psutil.Process, "create_time", lambda _: later)
    leftovers.tidy_below(tmp_path)
    assert left.exists() != goes


def test_a_process_that_may_not_be_looked_at_counts_as_living(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(process: psutil.Process) -> float:
        raise psutil.NoSuchProcess(process.pid)

    left = tmp_path / f".a.partial-{os.getppid()}-{here()}"
    left.write_text("part")
    monkeypatch.setattr(leftovers.psutil.Process, "create_time", hidden)
    leftovers.tidy_below(tmp_path)
    assert left.exists()


def test_what_others_remove_meanwhile_is_no_error(
    tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faster(path: Path) -> None:
        path.unlink()
        raise FileNotFoundError(2, "gone")

    for name in ("a", "b"):
        (tmp_path / f".{name}.partial-{dead}-{here()}").write_text("part")
    monkeypatch.setattr(leftovers, "discard", faster)
    leftovers.tidy_below(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_mark_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays while the machine runs, and is another by name, start and container."""
    here.cache_clear()
    marks, real, readlink = {here()}, Path.read_text, os.readlink
    assert unfinished.NAME.fullmatch(unfinished.beside(Path("a.b")).name)
    here.cache_clear()
    assert marks == {here()}
    for change in (
        lambda patch: patch.setattr(unfinished.socket, "gethostname", lambda: "another"),
        lambda patch: patch.setattr(
            Path, "read_text", lambda path, **more: real(path, **more).upper() + "2"
        ),
        lambda patch: patch.setattr(unfinished.os, "readlink", lambda path: f"2{readlink(path)}"),
    ):
        with monkeypatch.context() as patch:
            change(patch)
            here.cache_clear()
            marks.add(here())
    here.cache_clear()
    assert len(marks) == (4 if Path("/proc/self/ns/pid").exists() else 2)


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


def test_a_folder_is_removed_where_its_name_cannot_be_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, to: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "units.parts").mkdir()
    monkeypatch.setattr(Path, "rename", full)
    leftovers.remove(tmp_path / "units.parts")
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


HOLDS = """
import sys
from pathlib import Path
from distilkit import leftovers
with leftovers.held(Path(sys.argv[1]), Path("out")):
    print("held", flush=True)
    sys.stdin.read()
"""


def holding(folder: Path) -> subprocess.Popen[str]:
    """A process that writes into a folder, until it is told to end."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    return other


def test_a_folder_is_written_by_one_process(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    other = holding(folder)
    with pytest.raises(DistilkitError, match="`vectors` is in use: another process") as caught:
        with leftovers.held(folder, Path("vectors")):
            pass
    assert "another --out" in str(caught.value.hint)
    other.communicate("")
    with leftovers.held(folder, Path("vectors")):  # the lock went with it
        pass
    assert list(folder.iterdir()) == []
    killed = holding(folder)
    killed.kill()
    killed.communicate()
    with leftovers.held(folder, Path("vectors")):
        leftovers.remove(folder)
    assert not folder.exists()


def test_a_folder_that_its_owner_has_just_removed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening it and locking it: what is locked then is nowhere."""
    folder, real, times = tmp_path / "out", leftovers.fcntl.flock, 0

    def flock(handle: int, how: int) -> None:
        nonlocal times
        times += 1
        if times == 1:
            leftovers.remove(folder)
            folder.mkdir()
        real(handle, how)

    monkeypatch.setattr(leftovers.fcntl, "flock", flock)
    with leftovers.held(folder, folder):
        assert times == 2
        monkeypatch.undo()
        with pytest.raises(BlockingIOError):
            leftovers._locked(folder)


def test_a_folder_that_cannot_be_made_to_be_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the folder that one works in was removed, there is nothing to wait for."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(DistilkitError, match="cannot make `out`: No such file or directory"):
        with leftovers.held(Path("out"), Path("out")):
            pass


def test_a_disk_that_gives_folders_other_numbers_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers.os.path, "samestat", lambda *_: False)
    with leftovers.held(tmp_path / "out", tmp_path / "out"):
        assert (tmp_path / "out").is_dir()
    assert len(os.listdir("/proc/self/fd")) < leftovers.OWNERS


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(leftovers.fcntl, "flock", flock)
    with leftovers.held(tmp_path / "out", tmp_path / "out"):
        assert (tmp_path / "out").is_dir()


def test_results_that_another_process_writes(
    run: Run, speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    model, home = ("--model", str(teacher_folder)), tmp_path / "home"
    for folder, command in {
        "vectors": ("embed", str(speech), *model, "--out", "vectors"),
        ".vectors.npz.parts": ("embed", str(speech), *model, "--format", "npz", "--out", "vectors.npz"),
        ".units.parts": ("units", str(speech), *model, "--clusters", "4", "--out", "units"),
    }.items():  # fmt: skip
        other = holding(home / folder)
        code, _, err = run(*command)
        other.communicate("")
        assert code == 1, command
        assert f"error: `{command[-1]}` is in use: another process writes it" in err
        assert list(home.iterdir()) == [home / folder]
        assert list((home / folder).iterdir()) == []
        (home / folder).rmdir()


@pytest.mark.parametrize(
    ("command", "there"),
    [
        ("embed {said} --model {teacher} --out vectors", "vectors/mine.txt"),
        ("distill {said} --teacher {teacher} --out run", "run/run.json"),
        ("finetune-ctc {said} --model {teacher} --tokenizer {tuned} --out run", "run/run.json"),
        ("tokenizer {said} --out tokens", "tokens/vocab.json"),
        ("convert {teacher} --out model", "model/config.json"),
        ("convert {teacher} --format s3prl --out model.ckpt", "model.ckpt"),
        ("export {teacher} --out exported", "exported/model.onnx"),
        ("units {said} --model {teacher} --out units", "units/codebook.safetensors"),
        ("probe sid {said} --model {teacher} --out page.html", "page.html"),
        ("transcribe {said}/clip00.flac --model {tuned} --out said.txt", "said.txt"),
        ("evaluate {said} --model {tuned} --out heard.jsonl", "heard.jsonl"),
        ("layers {said} --model {teacher} --out pictures", "pictures/layers.png"),
        ("lm {said} --out lm.arpa", "lm.arpa"),
        ("report {run} --out page.html", "page.html"),
        ("recipes copy smoke mine.toml", "mine.toml"),
    ],
)
def test_what_a_killed_process_left_goes_also_where_the_result_is_there(
    run: Run, transcribed: Path, teacher_folder: Path, tuned: Path, distilled: Path, dead: int,
    monkeypatch: pytest.MonkeyPatch, command: str, there: str,
) -> None:  # fmt: skip
    """Another process made it meanwhile: the one that was killed is started again, and has nothing to do."""
    for module, name in {"export": "onnx", "layers": "matplotlib"}.items():
        if command.startswith(module):
            pytest.importorskip(name)
    home = Path().absolute()
    place, top = home / there, home / Path(there).parts[0]
    place.parent.mkdir(exist_ok=True)
    place.write_text("whole")
    for path in {top, place} if command.startswith("layers") else {top}:
        path.with_name(f".{path.name}.partial-{dead}-{here()}").mkdir()
    monkeypatch.setenv("DISTILKIT_CACHE", str(home.parent / "cache"))
    cached = [place / ".distilkit-killed" for place in (cache_folder(), cache_folder().parent)]
    for folder in cached:
        folder.mkdir(parents=True)
    said = {"said": transcribed, "teacher": teacher_folder, "tuned": tuned, "run": distilled}
    code, _, err = run(*command.format(**said).split())
    assert code == 1
    assert re.search(r"(?m)^error: `[^`]+` (already|exists|is there|is not empty)", err), err
    assert sorted(home.iterdir()) == [top]
    if top != place:
        assert list(top.iterdir()) == [place]
    assert place.read_text() == "whole"
    listens = command.split()[0] in LISTEN
    assert [folder.exists() for folder in cached] == [not listens] * 2


@pytest.mark.parametrize(
    ("command", "trained"), [("distill", "distilled"), ("finetune-ctc", "tuned")]
)
def test_what_was_left_in_the_cache_goes_also_where_a_run_is_finished(
    run: Run, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, trained: str,
) -> None:  # fmt: skip
    name = request.getfixturevalue(trained)
    monkeypatch.setenv("DISTILKIT_CACHE", str(tmp_path / "cache"))
    killed = cache_folder() / ".distilkit-killed"
    killed.mkdir(parents=True)
    code, _, err = run(command, "--resume", "--out", name)
    assert code == 1
    assert "is finished" in err
    assert not killed.exists()
