"""A run folder: atomic files, checkpoints, metrics, resume state, locking.

    recipe.toml        the resolved recipe
    run.json           teacher, command, versions, plan
    audio.jsonl.gz     the windows that are used, and which of them validate
    skipped.tsv        every file that is not used, with its reason
    metrics.jsonl      one line per optimizer step; holds no clock, so equal runs give equal files
    speed.jsonl        the clock: seconds and memory per step
    checkpoints/       the newest state to resume from
    heads.safetensors  the prediction heads, at the end
    best.safetensors   a recogniser's weights where it did best on what is held out, so far
    student/           the student as a Hugging Face folder, at the end
    model/, adapter/   a recogniser, or what LoRA adds to the model it began with, at the end

Every file is written beside its place and moved there whole; nothing is pickled.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from distilkit.errors import DistilkitError

if TYPE_CHECKING:
    from torch import Tensor

RESULTS = ("student", "model", "adapter")
CHECKPOINT_STATE = "state.json"
CHECKPOINT_TENSORS = "tensors.safetensors"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it takes the place of `path`, whole.

    Works for a file and for a folder. On an error `path` is as it was and nothing is left over.
    """
    beside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    discard(beside)
    try:
        yield beside
        _sync([*beside.rglob("*"), beside] if beside.is_dir() else [beside])
        if path.is_dir() and not path.is_symlink():
            old = path.with_name(f".{path.name}.old-{os.getpid()}")
            path.rename(old)
            beside.rename(path)
            discard(old)
        else:
            os.replace(beside, path)
        _sync([path.parent])
    except OSError as error:
        raise DistilkitError(
            f"cannot write `{path}`: {error.strerror or error}", "distilkit doctor"
        ) from error
    finally:
        discard(beside)


def discard(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
        return
    with suppress(FileNotFoundError, NotADirectoryError):  # nothing lies below a file
        path.unlink()


def make_parent(path: Path) -> None:
    """Make the folder that a file or folder is to lie in.

    Raises:
        DistilkitError: it cannot be made.
    """
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DistilkitError(
            f"cannot make `{path.parent}`: {error.strerror}", "--out in a folder you can write"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _sync(paths: Iterable[Path]) -> None:
    """Ask the system to put these files, and the entries of these folders, on the disk."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Run:
    """One run folder, held by one process at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: IO[str] | None = None

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
        with replacing(self.folder) as beside:
            (beside / "checkpoints").mkdir(parents=True)
            for name, content in files.items():
                data = content.encode() if isinstance(content, str) else content
                (beside / name).parent.mkdir(exist_ok=True)
                (beside / name).write_bytes(data)

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
            DistilkitError: another process holds it.
        """
        self._lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise DistilkitError(
                f"another process is working in `{self.folder}`", "wait for it, or another --out"
            ) from error
        try:
            yield
        finally:
            self._lock.close()

    def read(self) -> dict[str, Any]:
        """What `run.json` says.

        Raises:
            DistilkitError: there is no run, or its file is damaged.
        """
        path = self.folder / "run.json"
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DistilkitError(
                f"`{self.folder}` holds no run", "distilkit distill AUDIO --out DIR"
            ) from error
        except ValueError as error:
            raise DistilkitError(
                f"`{path}` is damaged: {error}", "start again with a new --out"
            ) from error
        return content

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one line to a JSON-lines file of the run."""
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The lines of a JSON-lines file of the run; a half-written last line is left out."""
        path = self.folder / name
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def rewind(self, step: int) -> None:
        """Forget what was logged after optimizer step `step`, and all that was left half-written.

        Of several processes one does it.
        """
        for leftover in (self.folder / "checkpoints").glob(".*"):
            discard(leftover)
        for name in ("metrics.jsonl", "speed.jsonl"):
            kept = [row for row in self.rows(name) if row["step"] <= step]
            write_text(self.folder / name, "".join(json.dumps(row) + "\n" for row in kept))

    def save_checkpoint(
        self, step: int, tensors: Mapping[str, "Tensor"], state: Mapping[str, Any]
    ) -> None:
        """Save all that optimizer step `step` left behind; older checkpoints go after it is safe."""
        from safetensors.torch import save_file

        path = self.folder / "checkpoints" / f"step-{step:08d}"
        with replacing(path) as beside:
            beside.mkdir()
            whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(whole, beside / CHECKPOINT_TENSORS)
            (beside / CHECKPOINT_STATE).write_text(json.dumps({**state, "step": step}))
        for older in self._checkpoints():
            if older != path:
                discard(older)

    def load_checkpoint(self) -> tuple[dict[str, "Tensor"], dict[str, Any]] | None:
        """The newest checkpoint's tensors and state, or None where there is none.

        Raises:
            DistilkitError: its files are damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        checkpoints = self._checkpoints()
        if not checkpoints:
            return None
        newest = checkpoints[-1]
        try:
            state = json.loads((newest / CHECKPOINT_STATE).read_text())
            return load_file(newest / CHECKPOINT_TENSORS), state
        except (OSError, ValueError, SafetensorError) as error:
            raise DistilkitError(
                f"checkpoint `{newest}` is damaged: {error}",
                f"rm -r {newest} to start this run again from its beginning",
            ) from error

    @property
    def done(self) -> int:
        """The optimizer step of the newest checkpoint; 0 where there is none."""
        checkpoints = self._checkpoints()
        return int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("step-*"))


def newest_run(root: Path, *, finished: bool, kind: str) -> Run | None:
    """Of the finished, or the unfinished, runs under `root` the one that was begun last, if any.

    Args:
        root: the folder that holds runs.
        finished: which of both.
        kind: `distill` or `finetune-ctc`.
    """
    found = [Run(path.parent) for path in root.glob("*/run.json")]
    found = [run for run in found if run.finished == finished and _kind(run) == kind]
    return max(found, key=lambda run: (run.folder / "run.json").stat().st_mtime, default=None)


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
