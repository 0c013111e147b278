"""Run folders: whole or not at all, one process at a time."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distilkit.errors import DistilkitError
from distilkit.runs import Run, newest_run


def test_the_place_must_be_free(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create({"run.json": "{}"})
    with pytest.raises(DistilkitError, match="already holds a run") as caught:
        Run(tmp_path / "run").create({"run.json": "{}"})
    assert "--resume" in str(caught.value.hint)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "diary.txt").write_text("mine")
    with pytest.raises(DistilkitError, match="not empty and not a run"):
        Run(tmp_path / "other").create({"run.json": "{}"})
    (tmp_path / "empty").mkdir()
    Run(tmp_path / "empty").create({"run.json": "{}"})
    with pytest.raises(DistilkitError, match="is a file"):
        Run(tmp_path / "other" / "diary.txt").create({"run.json": "{}"})


def test_two_processes_in_one_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create({"run.json": "{}"})
    code = (
        "import socket, sys; from pathlib import Path; from distilkit.runs import Run\n"
        "socket.gethostname = lambda: 'alpha'\n"
        "with Run(Path(sys.argv[1])).locked(): print('in', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run.folder)], stdin=-1, stdout=-1, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "in\n"
    with pytest.raises(
        DistilkitError, match=f"in use: process {other.pid} on alpha, since"
    ) as caught:
        with run.locked():
            pass
    assert caught.value.hint == "wait for it, or another --out"
    other.kill()
    other.communicate()
    with run.locked():  # of a process that is gone
        pass


def test_a_lock_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run")
    run.create({"run.json": "{}"})
    (run.folder / ".lock").mkdir()  # root may write anywhere, but not to a folder
    with pytest.raises(DistilkitError, match=r"cannot write `.*/.lock`"), run.locked():
        pass


@pytest.mark.parametrize(
    ("number", "hint"),
    [(28, "make room on that disk"), (13, "a folder that you can write"), (30, "can be written")],
)
def test_a_line_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    run = Run(tmp_path / "run")
    run.create({"run.json": "{}"})

    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DistilkitError, match=os.strerror(number)) as caught:
        run.append("metrics.jsonl", {"step": 1})
    assert hint in str(caught.value.hint)


def test_rewinding_forgets_later_and_half_written_lines(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create({"run.json": "{}"})
    for step in range(1, 6):
        run.append("metrics.jsonl", {"step": step, "loss": 0.1 * step})
        run.append("speed.jsonl", {"step": step, "seconds": 0.1})
    whole = (run.folder / "metrics.jsonl").read_text()
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    run.rewind(4)
    assert (run.folder / "metrics.jsonl").read_text() == "".join(whole.splitlines(True)[:4])
    assert [row["step"] for row in run.rows("speed.jsonl")] == [1, 2, 3, 4]


def test_checkpoints(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create({"run.json": "{}"})
    assert run.load_checkpoint() is None
    for step in (5, 10, 15):
        run.save_checkpoint(step, {"a": torch.full((3,), float(step))}, {"scale": 2.0})
    leftover = run.folder / "checkpoints" / ".step-00000020.partial-1"
    leftover.mkdir()
    saved = run.load_checkpoint()
    assert saved is not None
    assert saved[0]["a"].tolist() == [15.0] * 3
    assert saved[1] == {"scale": 2.0, "step": 15}
    assert leftover.is_dir()  # several processes load; the one that writes tidies
    run.rewind(15)
    assert names(run) == ["step-00000010", "step-00000015"]
    assert run.problems == []


def names(run: Run) -> list[str]:
    return sorted(path.name for path in (run.folder / "checkpoints").iterdir())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "tensors cut": lambda path: cut(path / "tensors.safetensors"),
    "a bit of a tensor": lambda path: flip(path / "tensors.safetensors"),
    "tensors gone": lambda path: (path / "tensors.safetensors").unlink(),
    "state cut": lambda path: cut(path / "state.json"),
    "state gone": lambda path: (path / "state.json").unlink(),
    "state of another step": lambda path: (path / "state.json").write_text('{"step": 1}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, damage: str) -> None:
    run = Run(tmp_path / "run")
    run.create({"run.json": "{}"})
    for step in (5, 10):
        run.save_checkpoint(step, {"a": torch.full((3,), float(step))}, {})
    DAMAGES[damage](run.folder / "checkpoints" / "step-00000010")
    run = Run(run.folder)
    assert run.done == 5
    assert len(run.problems) == 1
    assert "step-00000010` is damaged" in run.problems[0]
    saved = run.load_checkpoint()
    assert saved is not None
    assert saved[0]["a"].tolist() == [5.0] * 3
    run.rewind(5)
    assert names(run) == ["step-00000005"]
    run.save_checkpoint(10, {"a": torch.zeros(3)}, {})
    assert run.done == 10
    DAMAGES[damage](run.folder / "checkpoints" / "step-00000010")
    DAMAGES[damage](run.folder / "checkpoints" / "step-00000005")
    run = Run(run.folder)
    assert run.done == 0
    with pytest.raises(DistilkitError, match="every checkpoint in .* is damaged") as caught:
        run.load_checkpoint()
    assert str(caught.value.hint).startswith("rm -r ")


def test_a_damaged_run_file(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create({"run.json": '{"kind": '})
    with pytest.raises(DistilkitError, match=r"run.json` is damaged"):
        run.read()


def test_the_newest_run(tmp_path: Path) -> None:
    assert newest_run(tmp_path, finished=False, kind="distill") is None
    for age, name in enumerate(("new", "old")):
        Run(tmp_path / name).create({"run.json": json.dumps({})})
        os.utime(tmp_path / name / "run.json", (1e9 - age, 1e9 - age))
    begun_last = newest_run(tmp_path, finished=False, kind="distill")
    assert begun_last is not None
    assert begun_last.folder.name == "new"
    (tmp_path / "old" / "student").mkdir()
    found, finished = (
        newest_run(tmp_path, finished=False, kind="distill"),
        newest_run(tmp_path, finished=True, kind="distill"),
    )
    assert found is not None
    assert found.folder.name == "new"
    (tmp_path / "new" / "student").mkdir()
    assert newest_run(tmp_path, finished=False, kind="distill") is None
    assert finished is not None
    assert finished.folder.name == "old"


def test_the_newest_run_is_the_last_begun_where_the_clock_was_set_back(tmp_path: Path) -> None:
    Run(tmp_path / "before").create({"run.json": json.dumps({})})
    os.utime(tmp_path / "before" / "run.json", (4e9, 4e9))
    Run(tmp_path / "after").create({"run.json": json.dumps({})})
    newest = newest_run(tmp_path, finished=False, kind="distill")
    assert newest is not None
    assert newest.folder.name == "after"
    Run(tmp_path / "elsewhere" / "now").create({"run.json": json.dumps({})})
    assert (tmp_path / "elsewhere" / "now" / "run.json").stat().st_mtime <= time.time() + 1


def test_a_run_that_a_killed_process_had_begun_to_make_is_none(tmp_path: Path) -> None:
    Run(tmp_path / "run").create({"run.json": json.dumps({})})
    half = tmp_path / ".other.partial-1"
    shutil.copytree(tmp_path / "run", half)
    os.utime(half / "run.json", (4e9, 4e9))
    newest = newest_run(tmp_path, finished=False, kind="distill")
    assert newest is not None
    assert newest.folder.name == "run"


def test_a_damaged_line_of_a_log_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert run.rows("metrics.jsonl") == [{"step": 1}, {"step": 2}]
    for line in ('{"step": 2', "[1]", '{"step": "a"}', "[" * 100_000, "\udcff"):
        text = f'{{"step": 1}}\n{line}\n'
        (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8", errors="surrogateescape")
        with pytest.raises(DistilkitError, match=r"metrics.jsonl` is damaged: line 2: ") as caught:
            run.rows("metrics.jsonl")
        assert caught.value.hint == f"remove that line: sed -i 2d {tmp_path / 'metrics.jsonl'}"


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "", "\x00"])
def test_a_description_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(DistilkitError, match=r"run.json` is damaged: ") as caught:
        Run(tmp_path).read()
    assert caught.value.hint == "start again with a new --out"


@pytest.mark.parametrize("name", ["recipe.toml", "skipped.tsv", "report.json", "probes.json"])
def test_pipes_and_devices_in_a_run_are_not_read(tmp_path: Path, name: str) -> None:
    """Some have no end, and some wait for ever."""
    run = Run(tmp_path / "run")
    run.create({"run.json": "{}"})
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        make(run.folder / name)
        with pytest.raises(DistilkitError, match=f"{name}` is neither a file nor a folder"):
            run.read()
        (run.folder / name).unlink()
    assert run.read() == {}


def test_a_checkpoint_of_links_that_lead_out_is_none(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create({"run.json": "{}"})
    for step in (1, 2):
        run.save_checkpoint(step, {"a": torch.ones(2)}, {})
    newest = run.folder / "checkpoints" / "step-00000002"
    for name in ("tensors.safetensors", "state.json"):
        (newest / name).rename(tmp_path / name)
        (newest / name).symlink_to(tmp_path / name)
        assert Run(run.folder).done == 1


@pytest.mark.parametrize("link", ["checkpoints", ".lock", "metrics.jsonl", "targets"])
def test_a_run_whose_files_are_links_that_lead_out_is_not_written_to(
    tmp_path: Path, link: str
) -> None:
    """Whoever made it could have files of this computer emptied, added to or removed."""
    run, mine = Run(tmp_path / "run"), tmp_path / "mine"
    run.create({"run.json": "{}"})
    mine.mkdir()
    (mine / ".hidden").write_text("kept")
    place = run.folder / link
    if place.is_dir():
        place.rmdir()
    place.symlink_to(mine if link in ("checkpoints", "targets") else mine / ".hidden")
    with pytest.raises(DistilkitError, match="is a link to"), run.locked():
        run.rewind(0)
    assert (mine / ".hidden").read_text() == "kept"


def test_a_run_that_another_process_made_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    date = run._date

    def meanwhile(path: Path) -> None:
        date(path)
        run.folder.mkdir()
        (run.folder / "run.json").write_text('{"other": 1}')

    monkeypatch.setattr(run, "_date", meanwhile)
    with pytest.raises(DistilkitError, match="cannot write") as caught:
        run.create({"run.json": "{}"})
    assert caught.value.hint == "another --out: another process made it meanwhile"
    assert run.read() == {"other": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
