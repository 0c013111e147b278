"""Where a model lies: a folder, a run, or the local copy of a hub id; no torch, so it answers soon."""

import os
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from distilkit.errors import DistilkitError, did_you_mean, enclosed
from distilkit.runs import Run, newest_run

BUILT_IN = {"tiny": Path(__file__).parent / "assets" / "tiny"}  # models inside the package
DEFAULT_TEACHER = "facebook/hubert-base-ls960"
DEFAULT_MODEL = "ntu-spml/distilhubert"
ADAPTER = "adapter_model.safetensors"  # weights that need another model's
FILES = [
    "*.json",
    ADAPTER,
    "model*.safetensors",
    "heads.safetensors",
    "pytorch_model*.bin",
    "README.md",
    "tokenizer.model",
]
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
EXPORTED = "export.json"  # in folders that `distilkit export` makes
PARTLY = "is only partly in the local cache"
TIMEOUT = 4  # seconds to wait for the hub's first answer
TORCHAUDIO = "torchaudio:"  # what names of torchaudio's bundles begin with


def locate(name: str) -> Path:
    """The path behind a name: a folder or file, a run's student, or a hub id's local copy.

    Of `FILE:PART` it is the file. A bundle's name, `torchaudio:NAME`, is returned as it is: where its
    weights lie only torchaudio knows. `tiny` is the model inside the package; `./tiny` is a folder.

    Raises:
        DistilkitError: nothing there.
    """
    if name.startswith(TORCHAUDIO):
        return Path(name)
    if name in BUILT_IN:
        return BUILT_IN[name]
    try:
        path = Path(os.path.expanduser(split(name)[0]))  # expanduser of Path raises for no user
        found = _local(name, path) or download(name)
        return enclosed(found) if found.is_dir() else found
    except OSError as error:
        raise DistilkitError(
            f"cannot open `{name}`: {error.strerror}", "give a folder that you may read"
        ) from error


def is_exported(path: Path) -> bool:
    """Whether a folder holds an exported model."""
    return (path / EXPORTED).is_file()


def split(name: str) -> tuple[str, str | None]:
    """`FILE:PART` as the file and its part; every other name as it is, without a part."""
    file, colon, part = name.rpartition(":")
    whole = os.path.expanduser(name)
    if colon and not os.path.lexists(whole) and os.path.isfile(os.path.expanduser(file)):
        return file, part
    return name, None


def _local(name: str, path: Path) -> Path | None:
    """The path, or None where only the hub can have the name."""
    if (path / "run.json").is_file():
        run = Run(path)
        if run.result is None:
            thing = "student" if run.kind == "distill" else "model"
            raise DistilkitError(
                f"run `{name}` has no {thing} yet", f"distilkit {run.kind} --resume --out {name}"
            )
        return run.result
    if path.exists():
        return path
    beside = path.parent
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or beside.is_dir():
        there = [item.name for item in beside.iterdir()] if beside.is_dir() else []
        near = did_you_mean(path.name, [*there, *(BUILT_IN if "/" not in name else ())])
        if near and beside != Path():
            near = near.replace("`", f"`{beside}/", 1)
        raise DistilkitError(
            f"no such model: `{name}` is neither a path that exists nor a hub id (`owner/name`)",
            near or f"give a folder with a model, a run, or a hub id such as {DEFAULT_TEACHER}",
        )
    return None


def download(name: str) -> Path:
    """The local folder of a hub id: from the cache, else downloaded.

    Raises:
        DistilkitError: offline and not in the cache, no such repository, no access.
    """
    try:
        there = Path(snapshot_download(name, allow_patterns=FILES, local_files_only=True))
        if _whole(there):
            return there
        state = PARTLY
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        state = "is not in the local cache"
    except HFValidationError as error:
        raise DistilkitError(
            f"`{name}` is not a hub id: {error}", f"give a hub id such as {DEFAULT_TEACHER}"
        ) from error
    try:
        there = Path(snapshot_download(name, allow_patterns=FILES, etag_timeout=TIMEOUT))
        if state == PARTLY and not _whole(there):  # what the hub library returns when out of reach
            raise LocalEntryNotFoundError("only partly there")
        return there
    except GatedRepoError as error:
        raise DistilkitError(f"`{name}` asks for permission on the hub", "hf auth login") from error
    except RepositoryNotFoundError as error:
        raise DistilkitError(
            f"the hub has no model `{name}`, or it is private", "check the name, or hf auth login"
        ) from error
    except Exception as error:  # those of the HTTP library and of captive portals, a full disk
        if isinstance(error, OSError) and error.strerror:
            raise DistilkitError(
                f"`{name}` cannot be downloaded: {error.strerror}", "distilkit doctor"
            ) from error
        answer = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        if isinstance(answer, HfHubHTTPError):
            status = answer.response.status_code
            raise DistilkitError(
                f"`{name}` {state}, and the hub answers with HTTP status {status}",
                "hf auth login" if status in (401, 403) else "the same again, later",
            ) from error
        raise DistilkitError(
            f"`{name}` {state}, and the hub cannot be reached",
            "go online once, or name what is here: a folder, a checkpoint, or `tiny`, which is built in",
        ) from error


def default_model() -> str:
    """The student of the newest finished run under `./runs`, else DistilHuBERT on the hub."""
    newest = newest_run(Path("runs"), finished=True, kind="distill")
    return str(newest.folder / "student") if newest else DEFAULT_MODEL


def _whole(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(
        (folder / name).exists() for name in (*WEIGHTS, ADAPTER)
    )


def default_recogniser() -> str:
    """The recogniser of the newest finished run of fine-tuning under `./runs`.

    Raises:
        DistilkitError: there is none.
    """
    newest = newest_run(Path("runs"), finished=True, kind="finetune-ctc")
    if newest is None:
        raise DistilkitError(
            "no recogniser under `runs`",
            "--model DIR, or distilkit finetune-ctc DATA --tokenizer DIR",
        )
    return str(newest.result)
