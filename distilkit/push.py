"""What distilkit made, to the Hugging Face hub: what would go there, and sending it in one commit.

Only files that belong to a student, a recogniser, an adapter, an export or a tokenizer go; never recordings,
transcripts, reports or checkpoints.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    constants,
    get_session,
    get_token,
    metadata_load,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import SafetensorError, safe_open

from distilkit import __version__, cards, exported, layer_mix, recognisers, teachers, tokenizers
from distilkit.cards import CARD, OURS, private_paths
from distilkit.errors import DistilkitError, did_you_mean, enclosed
from distilkit.files import digest
from distilkit.hub import EXPORTED, TIMEOUT, WEIGHTS, is_exported
from distilkit.recognisers import ADAPTER, BASE
from distilkit.runs import RESULTS, Run

LOGIN = "hf auth login"
SLOW = 300.0  # seconds that the hub may take to answer once it was reached
VOCABULARIES = ("vocab.json", "tokenizer.json")  # what is in them is text, not settings
PREPROCESSOR = "preprocessor_config.json"
TOKENS = (
    *tokenizers.FILES,
    tokenizers.TEXT_FILE,
    tokenizers.MODEL_FILE,
    PREPROCESSOR,
    "processor_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
MODEL = ("config.json", "generation_config.json", *WEIGHTS[:1], PREPROCESSOR)
CODE = Path(layer_mix.__file__)  # the one module that a recogniser's folder may hold


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of folder: what belongs to it, and what reads it whole."""

    files: tuple[str, ...]
    read: Callable[[Path], object]


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """What would be uploaded of a folder."""

    folder: Path
    kind: str  # key of KINDS
    files: dict[str, Path | bytes]  # by their names on the hub; bytes where a path was taken out
    cleaned: dict[str, list[str]]  # the paths that were taken out, by file
    left: list[str]  # what else lies in the folder, and stays there
    licence: str  # what the card says of it
    name: str  # what the repository may be called

    def size(self, name: str) -> int:
        """Bytes of a file."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size


# ---------------------------------------------------------------------------------------- packing


def pack(path: Path) -> Parcel:
    """Look whether a folder may go to the hub, and say what of it would.

    Args:
        path: a folder that distilkit made, or a finished run, whose result is meant.

    Raises:
        DistilkitError: nothing there, a run that is not finished, not ours, damaged, no card, a link that
            leads out, or a file that names paths of this computer.
    """
    folder = enclosed(_result(path))
    kind = _kind(folder)
    card = _card(folder)
    KINDS[kind].read(folder)
    names = [name for name in (CARD, *KINDS[kind].files) if (folder / name).is_file()]
    there = {item.name for item in folder.iterdir()}
    files: dict[str, Path | bytes] = {}
    cleaned: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        _whole(folder / name)
        files[name] = folder / name
        if name in (BASE, EXPORTED):
            content, cleaned[name] = _without_paths(folder / name)
            files[name] = content
    _refuse_paths(folder, files)
    inside = folder.parent if folder.name in RESULTS else folder
    return Parcel(
        folder=folder,
        kind=kind,
        files=files,
        cleaned={name: found for name, found in cleaned.items() if found},
        left=sorted(there - set(files)),
        licence=_licence(card),
        name=inside.resolve().name,
    )


def _result(path: Path) -> Path:
    """The folder that is meant: a finished run's result, or the path itself."""
    run = Run(path)
    if run.exists:
        if run.result is None:
            raise DistilkitError(
                f"run `{path}` is not finished", f"distilkit {run.kind} --resume --out {path}"
            )
        return run.result
    if path.is_dir():
        return path
    beside = path.parent
    near = did_you_mean(path.name, [x.name for x in beside.iterdir()] if beside.is_dir() else [])
    if near and beside != Path():
        near = near.replace("`", f"`{beside}/", 1)
    what = "is a file, not a folder" if path.exists() else "does not exist"
    raise DistilkitError(f"`{path}` {what}", near or "distilkit push runs/my_audio")


def _kind(folder: Path) -> str:
    def there(*names: str) -> bool:
        return any((folder / name).is_file() for name in names)

    if is_exported(folder):
        return "export"
    if there(ADAPTER):
        return "adapter"
    if there("config.json"):
        return "recogniser" if there(*tokenizers.FILES) else "encoder"
    if there(*tokenizers.FILES):
        return "tokenizer"
    inside = ", ".join(f"`{item.name}`" for item in sorted(folder.iterdir())[:6]) or "nothing"
    raise DistilkitError(
        f"`{folder}` is no {', '.join(list(KINDS)[:-1])} or {list(KINDS)[-1]}; it holds {inside}",
        "distilkit push runs/my_audio",
    )


def _card(folder: Path) -> str:
    """The model card, once it is sure that the folder is ours."""
    file = folder / CARD
    if not file.is_file():
        raise DistilkitError(
            f"`{folder}` has no model card ({CARD})",
            f"make it again, for example: distilkit convert {folder} --out {folder}-2",
        )
    try:
        tags = dict(metadata_load(file) or {}).get("tags") or []
        text = file.read_text(encoding="utf-8")
    except Exception as error:  # of YAML, of its form, of the encoding
        said = str(error).strip().partition("\n")[0]
        raise DistilkitError(
            f"the metadata of `{file}` is damaged: {said}", "mend the lines between its two `---`"
        ) from error
    if OURS not in tags:
        raise DistilkitError(
            f"`{folder}` was not made by distilkit: its card has no tag `{OURS}`",
            f"hf upload REPO {folder}, if it is yours to share",
        )
    return text


def _whole(file: Path) -> None:
    """Refuse a file that is damaged where that can be seen in it alone."""
    try:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".safetensors":
            with safe_open(file, "pt") as weights:
                for name in weights.keys():  # noqa: SIM118, as it is no mapping
                    if not bool(torch.isfinite(weights.get_tensor(name)).all()):
                        raise ValueError(f"`{name}` holds values that are not finite numbers")
        elif file.name == CODE.name and file.read_bytes() != CODE.read_bytes():
            raise ValueError("it is not the module that distilkit writes")
    except (OSError, ValueError, SafetensorError) as error:
        raise DistilkitError(f"`{file}` is damaged: {error}", "make the folder again") from error


def _without_paths(file: Path) -> tuple[bytes, list[str]]:
    """A file that says where a model lay, with the model's own name in place of each path."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(inner) for key, inner in value.items()}
        if isinstance(value, str) and private_paths(value):
            found.append(value)
            return cards.public(value, value)
        return value

    found: list[str] = []
    told = clean(json.loads(file.read_text(encoding="utf-8")))
    return (cards.json_text(told).encode() if found else file.read_bytes()), found


def _refuse_paths(folder: Path, files: dict[str, Path | bytes]) -> None:
    """Refuse what would tell others where things lie here."""
    for name, content in files.items():
        if not name.endswith((".json", ".md")) or name in VOCABULARIES:
            continue
        text = content.decode() if isinstance(content, bytes) else content.read_text("utf-8")
        if found := private_paths(text):
            raise DistilkitError(
                f"`{folder / name}` names paths of this computer: "
                + ", ".join(f"`{path}`" for path in found[:4]),
                f"edit {folder / name}: others need names only",
            )


def _licence(card: str) -> str:
    """What the card says in its section on the licence."""
    _, _, section = card.partition("\n## Licence\n")
    return " ".join(section.partition("\n#")[0].split()) or "the card says nothing of it"


def _adapter(folder: Path) -> None:
    recognisers.base_of(folder)
    tokenizers.load(folder)
    if not (folder / "adapter_model.safetensors").is_file():
        raise DistilkitError(f"`{folder}` has no adapter_model.safetensors", "make it again")


def _export(folder: Path) -> None:
    facts = exported.read(folder)
    parts = [(exported.MODEL, facts["sha256"])]
    if phone := facts.get("mobile"):
        parts.append((phone["file"], phone["sha256"]))
    for name, wanted in parts:
        if not (folder / name).is_file() or digest(folder / name) != wanted:
            raise DistilkitError(
                f"`{folder / name}` is not the file that was exported: gone, damaged, or another one",
                "export the model again",
            )


KINDS = {
    "encoder": Kind(
        files=(*MODEL, "heads.safetensors"), read=lambda folder: teachers.load(str(folder))
    ),
    "recogniser": Kind(
        files=(*MODEL, *TOKENS, CODE.name), read=lambda folder: recognisers.load(str(folder))
    ),
    "adapter": Kind(
        files=(ADAPTER, "adapter_model.safetensors", BASE, "config.json", *TOKENS), read=_adapter
    ),
    "export": Kind(files=(EXPORTED, exported.MODEL, "model.pte", "run.py"), read=_export),
    "tokenizer": Kind(files=TOKENS, read=tokenizers.load),
}


# ---------------------------------------------------------------------------------------- sending


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What became of a parcel."""

    repo: str  # owner and name
    url: str
    commit: str
    private: bool


def check_name(repo: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        DistilkitError: says what is wrong with it.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        said = str(error).partition(": '")[0].rstrip(".")
        raise DistilkitError(
            f"`{repo}` cannot be the name of a repository: {said[:1].lower()}{said[1:]}",
            "a name such as my-student, or OWNER/my-student",
        ) from error


def send(parcel: Parcel, repo: str = "", *, private: bool = True, message: str = "") -> Sent:
    """Upload a parcel in one commit, into a repository that is made if need be.

    Args:
        parcel: of `pack`.
        repo: `OWNER/NAME`, or `NAME` for one of your own; the folder's name when empty.
        private: whether only you may read it; one that is there keeps what it is.
        message: of the commit.

    Raises:
        DistilkitError: not logged in, no right to write there, another visibility, the hub out of reach, or
            what the hub has against it.
    """
    name = repo or parcel.name
    check_name(name)
    if constants.HF_HUB_OFFLINE:
        raise DistilkitError(
            "the hub is switched off by HF_HUB_OFFLINE", "unset HF_HUB_OFFLINE, and again"
        )
    if get_token() is None:
        raise DistilkitError("not logged in to the hub", LOGIN)
    api = HfApi(library_name=OURS, library_version=__version__)
    with _explained(name, user=""):
        get_session().timeout = (TIMEOUT, TIMEOUT, TIMEOUT, TIMEOUT)
        told = api.whoami()
        user, access = str(told["name"]), told.get("auth", {}).get("accessToken", {})
        get_session().timeout = (TIMEOUT, SLOW, SLOW, TIMEOUT)
    if access.get("role") == "read":
        raise DistilkitError(
            "the token that you are logged in with may read only",
            f"{LOGIN}, with a token that may write",
        )
    place = name if "/" in name else f"{user}/{name}"
    check_name(place)
    with _explained(place, user):
        there = _visibility(api, place)
        if there is not None and there != private:
            now, wanted = ("private", "public") if there else ("public", "private")
            raise DistilkitError(
                f"`{place}` is there and {now}",
                f"--{now}, or a name that is new for a {wanted} one",
            )
        api.create_repo(place, private=private, exist_ok=True)
        done = api.create_commit(
            place,
            [
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
                for name, content in parcel.files.items()
            ],
            commit_message=message or f"{parcel.kind.capitalize()} of distilkit {__version__}",
        )
    url = f"{api.endpoint}/{place}"
    return Sent(repo=place, url=url, commit=str(done.oid), private=private)


def _visibility(api: HfApi, repo: str) -> bool | None:
    """Whether a repository is private; None where there is none, or none that we may see."""
    try:
        return bool(api.repo_info(repo).private)
    except RepositoryNotFoundError:
        return None


@contextmanager
def _explained(repo: str, user: str) -> Iterator[None]:
    """Every error of the hub in our own form; `user` is empty until the hub has said who we are."""
    try:
        yield
    except DistilkitError:
        raise
    except OfflineModeIsEnabled as error:
        raise DistilkitError("the hub is switched off by HF_HUB_OFFLINE", LOGIN) from error
    except HfHubHTTPError as error:
        raise _refused(error, repo, user) from error
    except Exception as error:
        if isinstance(error, OSError | RuntimeError | ValueError) or _of_http(error):
            raise _failed(error, repo, user) from error
        raise


def _of_http(error: BaseException) -> bool:
    return type(error).__module__.startswith(("httpx", "httpcore", "requests"))


def _refused(error: HfHubHTTPError, repo: str, user: str) -> DistilkitError:
    """What the hub has against it."""
    status = error.response.status_code
    if status == 401:
        return DistilkitError("the hub does not know the token that you are logged in with", LOGIN)
    if user and status in (403, 404):
        own = repo.partition("/")[0] == user
        hint = f"{LOGIN}, with a token that may write" if own else f"{user}/{repo.split('/')[-1]}"
        return DistilkitError(f"you may not write to `{repo}`", hint)
    if status >= 500 or status == 429:
        return DistilkitError(
            f"the hub does not answer as it should (status {status})", "the same again, later"
        )
    said = (error.server_message or str(error)).strip().partition("\n")[0]
    return DistilkitError(f"the hub refuses `{repo}`: {said}", "distilkit push --help")


def _failed(error: BaseException, repo: str, user: str) -> DistilkitError:
    """What went wrong on the way: what the HTTP library raises is often wrapped."""
    if user and isinstance(error, ValueError):  # the hub's words on the card
        return DistilkitError(
            f"the hub refuses `{repo}`: {' '.join(str(error).split())}", "mend it"
        )
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError):
            return _refused(cause, repo, user)
        if _of_http(cause):
            return DistilkitError(
                "the hub cannot be reached", "go online, and the same again: nothing is sent twice"
            )
        cause = cause.__cause__
    if not user:  # a portal that answers for the hub
        return DistilkitError("the hub cannot be reached: something else answers", "go online")
    return DistilkitError(f"`{repo}` cannot be uploaded: {error}", "distilkit doctor")
