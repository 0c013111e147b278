"""A run folder: checkpoints, metrics, resume state, locking; nothing in it is pickled."""

import fcntl
import hashlib
import json
import os
import shlex
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilkit.errors import DistilkitError, enclosed
from distilkit.files import (
    append_line,
    digest,
    discard,
    parse_json,
    read_object,
    replacing,
    unwritable,
    write_text,
)

if TYPE_CHECKING:
    from torch import Tensor

FILES = {  # what a run folder holds; a name with a slash is a folder
    "recipe.toml": "the recipe with every default filled in",
    "run.json": "the teacher, or the model that is fine-tuned, a digest of its weights, the audio, the plan "
    "with its reasons, versions",
    "audio.jsonl.gz": "the windows, as a lhotse cut manifest; `custom.split` says which are held out",
    "skipped.tsv": "every file or part that is not used: kind, seconds, path, reason",
    "metrics.jsonl": "a line for each optimizer step: loss, its parts, gradient norm, learning rate, "
    "validation; no clock, so equal runs give equal files",
    "speed.jsonl": "a line for each optimizer step: seconds, how many of them went into waiting for audio, "
    "and peak memory",
    "checkpoints/": "the newest state to resume from, and the one before it, each with a digest",
    "targets/": "what the teacher said of every window; gone once the student is there",
    "codebook.safetensors": "the hidden units that are predicted, where the run found them itself",
    "heads.safetensors": "the prediction heads, at the end",
    "student/": "the student as a Hugging Face folder with a model card, at the end",
    "tokenizer/": "of fine-tuning: the run's own copy of its tokenizer",
    "best.safetensors": "of fine-tuning: the trained weights where they did best on what is held out, so far",
    "model/": "of fine-tuning: the recogniser as a Hugging Face folder with a model card, at the end",
    "adapter/": "of fine-tuning with `--lora`: what was trained, and which model it belongs to, at the end",
    "report.html": "the report: what was trained, how it went, what came out",
    "report.json": "what was measured for the report once the run was done",
    "probes.json": "what `distilkit probe` found of the result, if it was asked",
    ".lock": "the process that works in the run, while one does",
}
RESULTS = ("student", "model", "adapter")
CHECKPOINT_STATE = "state.json"
CHECKPOINT_TENSORS = "tensors.safetensors"
TICK = 2_000_000_000  # ns: the coarsest time of any file system
CHECKPOINTS = 2  # that are kept: should the newest be damaged, there is one before it


class Run:
    """One run folder, held by one process at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._problems: list[str] = []
        self._whole: dict[tuple[Path, int], bool] = {}

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run; it is made whole or not at all."""
        return (self.folder / "run.json").is_file()

    @property
    def finished(self) -> bool:
        """Whether the student or the recogniser was written."""
        return self.result is not None

    @property
    def result(self) -> Path | None:
        """The folder of the student or the recogniser, once it is there."""
        found = (self.folder / name for name in RESULTS)
        return next((folder for folder in found if folder.is_dir()), None)

    @property
    def kind(self) -> str:
        """The command that began it: `distill` or `finetune-ctc`.

        Raises:
            DistilkitError: as `read`.
        """
        return str(self.read().get("kind", "distill"))

    def create(self, files: Mapping[str, str | bytes]) -> None:
        """Make the run folder with its first files, whole.

        Raises:
            DistilkitError: the place is taken or cannot be written.
        """
        self.check_free()
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            if self.folder.is_dir():
                self.folder.rmdir()  # empty, or check_free had refused it
        except OSError as error:
            raise DistilkitError(
                f"cannot make `{self.folder}`: {error.strerror}",
                "--out with a folder you can write",
            ) from error
        with replacing(self.folder, new=True) as beside:
            (beside / "checkpoints").mkdir(parents=True)
            for name, content in files.items():
                data = content.encode() if isinstance(content, str) else content
                (beside / name).parent.mkdir(exist_ok=True)
                (beside / name).write_bytes(data)
            self._date(beside / "run.json")

    def _date(self, path: Path) -> None:
        """Make a file later than those of the runs beside it, also where the clock was set back."""
        latest = max(map(_begun, _below(self.folder.parent)), default=0)
        if path.is_file() and path.stat().st_mtime_ns <= latest:
            os.utime(path, ns=(latest + TICK, latest + TICK))

    def check_free(self) -> None:
        """Refuse a place that holds a run or anything else.

        Raises:
            DistilkitError: names what is there and how to go on.
        """
        if self.exists:
            raise DistilkitError(
                f"`{self.folder}` already holds a run",
                f"--resume --out {self.folder} to go on with it, or another --out",
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise DistilkitError(f"`{self.folder}` is a file", "another --out")
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise DistilkitError(f"`{self.folder}` is not empty and not a run", "another --out")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run; the lock goes with the process, however it ends.

        Raises:
            DistilkitError: another process holds it, and which; or a link in it leads out.
        """
        path = self.folder / ".lock"
        # Where files are written, and removed.
        for place in (self.folder, self.folder / "checkpoints"):
            if place.is_dir():
                enclosed(place)
        try:
            lock = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise unwritable(path, error) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock.truncate(0)  # whoever held it before is gone
                since = time.strftime("%Y-%m-%d %H:%M")
                lock.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}\n")
                lock.flush()
            except BlockingIOError as error:
                owner = path.read_text(encoding="utf-8", errors="replace").strip()
                raise DistilkitError(
                    f"`{self.folder}` is in use: {owner or 'another process'} works in it",
                    "wait for it, or another --out",
                ) from error
            except OSError as error:
                raise unwritable(path, error) from error
            yield

    def read(self) -> dict[str, Any]:
        """What `run.json` says.

        Raises:
            DistilkitError: there is no run, or its file is damaged.
        """
        path = self.folder / "run.json"
        if not path.is_file():
            raise DistilkitError(
                f"`{self.folder}` holds no run", "distilkit distill AUDIO --out DIR"
            )
        for each in self.folder.iterdir():  # devices have no end, and pipes wait for ever
            if each.exists() and not (each.is_file() or each.is_dir()):
                raise DistilkitError(
                    f"`{each}` is neither a file nor a folder", f"rm {shlex.quote(str(each))}"
                )
        return read_object(path, "start again with a new --out")

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one line to a JSON-lines file of the run.

        Raises:
            DistilkitError: it cannot be written; half a line may be there, which no reader sees.
        """
        append_line(self.folder / name, json.dumps(row))

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The lines of a JSON-lines file of the run; a half-written last line is left out.

        Raises:
            DistilkitError: another line is damaged.
        """
        path = self.folder / name
        if not path.is_file():
            return []
        lines = path.read_bytes().split(b"\n")[:-1]
        found = []
        for number, line in enumerate(lines, start=1):
            try:
                row = parse_json(line.decode("utf-8"))
                if not isinstance(row, dict) or not isinstance(row.get("step", 0), int):
                    raise ValueError("not what is logged of a step")
            except ValueError as error:
                raise DistilkitError(
                    f"`{path}` is damaged: line {number}: {error}",
                    f"remove that line: sed -i {number}d {path}",
                ) from error
            found.append(row)
        return found

    def rewind(self, step: int) -> None:
        """Forget what was logged after optimizer step `step`, and all that was left half-written.

        Of several processes one does it.
        """
        later = [path for path in self._checkpoints() if _step(path) > step]  # they are damaged
        for path in [*(self.folder / "checkpoints").glob(".*"), *later]:
            discard(path)
        for name in ("metrics.jsonl", "speed.jsonl"):
            kept = [row for row in self.rows(name) if row["step"] <= step]
            write_text(self.folder / name, "".join(json.dumps(row) + "\n" for row in kept))

    def save_checkpoint(
        self, step: int, tensors: Mapping[str, "Tensor"], state: Mapping[str, Any]
    ) -> None:
        """Save all that optimizer step `step` left behind; the one before it stays, those before go."""
        from safetensors.torch import save_file

        path = self.folder / "checkpoints" / f"step-{step:08d}"
        with replacing(path) as beside:
            beside.mkdir()
            whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(whole, beside / CHECKPOINT_TENSORS)
            told = {**state, "step": step}
            told["sha256"] = _sum(told, beside / CHECKPOINT_TENSORS)
            (beside / CHECKPOINT_STATE).write_text(json.dumps(told))
        for older in self._checkpoints()[:-CHECKPOINTS]:
            discard(older)

    def load_checkpoint(self) -> tuple[dict[str, "Tensor"], dict[str, Any]] | None:
        """The tensors and the state of the newest checkpoint that is whole, or None where there is none.

        Raises:
            DistilkitError: there are checkpoints, and all of them are damaged.
        """
        from safetensors.torch import load_file

        newest = self._newest()
        if newest is not None:
            return load_file(newest / CHECKPOINT_TENSORS), _state(newest)
        if self._checkpoints():
            place = self.folder / "checkpoints"
            raise DistilkitError(
                f"every checkpoint in `{place}` is damaged",
                f"rm -r {place}/step-* to start this run again from its beginning",
            )
        return None

    @property
    def done(self) -> int:
        """The optimizer step of the newest checkpoint that is whole; 0 where there is none."""
        newest = self._newest()
        return _step(newest) if newest else 0

    @property
    def problems(self) -> list[str]:
        """What is damaged and can be done without."""
        self._newest()
        return self._problems

    def _newest(self) -> Path | None:
        """The newest checkpoint that is whole; `problems` has those that are not."""
        for path in reversed(self._checkpoints()):
            tensors = path / CHECKPOINT_TENSORS
            key = path, tensors.stat().st_mtime_ns if tensors.is_file() else 0
            if key not in self._whole:
                self._whole[key] = _is_whole(path)
                if not self._whole[key]:
                    self._problems.append(
                        f"checkpoint `{path}` is damaged and left out; the one before it has to do"
                    )
            if self._whole[key]:
                return path
        return None

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob(f"step-{'[0-9]' * 8}"))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _sum(state: Mapping[str, Any], tensors: Path) -> str:
    """The digest of all that a checkpoint holds."""
    text = json.dumps(state, sort_keys=True) + digest(tensors)
    return hashlib.sha256(text.encode()).hexdigest()


def _state(checkpoint: Path) -> dict[str, Any]:
    state = read_object(checkpoint / CHECKPOINT_STATE)
    return {name: value for name, value in state.items() if name != "sha256"}


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint's files are what was written."""
    try:
        said = read_object(enclosed(checkpoint) / CHECKPOINT_STATE)
        promised = said.pop("sha256")
        return bool(
            said["step"] == _step(checkpoint)
            and promised == _sum(said, checkpoint / CHECKPOINT_TENSORS)
        )
    except (OSError, KeyError, DistilkitError):
        return False


def newest_run(root: Path, *, finished: bool, kind: str) -> Run | None:
    """Of the finished, or the unfinished, runs under `root` the one that was begun last, if any.

    Args:
        root: the folder that holds runs.
        finished: which of both.
        kind: `distill` or `finetune-ctc`.
    """
    found = [run for run in _below(root) if run.finished == finished and _kind(run) == kind]
    return max(found, key=_begun, default=None)


def _below(root: Path) -> list[Run]:
    """The runs in a folder; those that a killed process had begun to make are none."""
    return [Run(path.parent) for path in root.glob("[!.]*/run.json")]


def _begun(run: Run) -> int:
    return (run.folder / "run.json").stat().st_mtime_ns


def resumable(out: Path | None, kind: str) -> bool:
    """Whether there is a run to go on with: in `out`, or an unfinished one under `./runs`."""
    if out is not None:
        return Run(out).exists
    return newest_run(Path("runs"), finished=False, kind=kind) is not None


def _kind(run: Run) -> str:
    try:
        return run.kind
    except DistilkitError:  # whoever wants that run is told
        return "distill"


def free_folder(wanted: Path) -> Path:
    """`wanted`, or where that is taken `wanted-2`, `wanted-3` ..."""
    number, folder = 1, wanted
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
