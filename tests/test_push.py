"""`distilkit push`: what goes to the hub arrives as it is; what does not belong there stays."""

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from conftest import Run, fine, quick
from hub import TOKEN, USER, Hub, serving
from safetensors.numpy import load_file, save_file

from distilkit import cards, ctc, exported, tokenizers, wording
from distilkit.distill import distill, prepare, train
from distilkit.export.card import SCRIPT
from distilkit.files import digest

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, and somebody who is logged in to it."""
    with serving() as made:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        huggingface_hub.close_session()
        yield made
        huggingface_hub.close_session()


@pytest.fixture(scope="module")
def made(
    speech: Path,
    transcribed: Path,
    teacher_folder: Path,
    letters: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with runs and what else can be pushed."""
    place = tmp_path_factory.mktemp("made")
    distill(
        [speech], teacher=str(teacher_folder), out=place / "mine", recipe=quick("train.steps=2")
    )
    options = {"tokenizer": letters, "model": str(place / "mine")}
    ctc.finetune([transcribed], **options, out=place / "hears", recipe=fine("train.steps=2"))
    recipe = fine("train.steps=2", "lora.rank=2")
    ctc.finetune([transcribed], **options, out=place / "adapted", recipe=recipe)
    shutil.copytree(letters, place / "tokens")
    card = cards.tokenizer_card(
        tokenizers.load(letters), "char", {"words": 3, "lines": 1, "alphabet": {"a": 1}}
    )
    (place / "tokens" / cards.CARD).write_text(card)
    (place / "exported").mkdir()
    (place / "exported" / exported.MODEL).write_bytes(b"as if it were a graph" * 999)
    facts = {
        "format": 1, "made_by": "distilkit", "kind": "encoder", "precision": "int8", "bytes": 1, "parameters": 1, "layers": 1, "width": 8,
        "sha256": digest(place / "exported" / exported.MODEL), "source": {"name": str(place / "mine")},
    }  # fmt: skip
    (place / "exported" / "export.json").write_text(json.dumps(facts))
    (place / "exported" / SCRIPT).write_text("print('run')\n")
    (place / "exported" / cards.CARD).write_text(
        "\n".join(cards.head(library="onnx", tags=["onnx"]))
    )
    return place


@pytest.fixture
def here(made: Path, run: Run) -> Path:
    """A copy of it in the current folder."""
    shutil.copytree(made, "runs")
    return Path("runs")


KINDS = {
    "mine": ("encoder", "student", {"config.json", "model.safetensors", "preprocessor_config.json"}),
    "hears": (
        "recogniser", "model",
        {"config.json", "model.safetensors", "vocab.json", "text.json", "tokenizer_config.json"},
    ),
    "adapted/adapter": ("adapter", ".", {"adapter_model.safetensors", "base.json", "vocab.json"}),
    "exported": ("export", ".", {"export.json", "model.onnx", "run.py"}),
    "tokens": ("tokenizer", ".", {"vocab.json", "text.json"}),
}  # fmt: skip
CHANGED = {"base.json", "export.json"}  # a path was taken out


@pytest.mark.parametrize("name", KINDS)
def test_what_arrives_is_what_is_there(here: Path, run: Run, hub: Hub, name: str) -> None:
    kind, inside, least = KINDS[name]
    folder = here / name / inside
    (folder / "notes.txt").write_text("mine alone")
    (folder / "skipped.tsv").write_text("recordings")
    code, out, err = run("push", here / name, "gift")
    assert (code, out) == (0, f"{hub.url}/{USER}/gift\n"), err
    there = hub.repos[f"{USER}/gift"]
    assert hub.private == {f"{USER}/gift": True}
    assert set(there) == {path.name for path in folder.iterdir()} - {"notes.txt", "skipped.tsv"}
    assert least | {cards.CARD} <= set(there)
    for file, content in there.items():
        if file in CHANGED:
            assert cards.private_paths(content.decode()) == []
            assert json.loads(content).keys() == json.loads((folder / file).read_text()).keys()
        else:
            assert content == (folder / file).read_bytes(), file
    assert len(hub.commits) == 1
    assert hub.commits[0]["summary"].startswith(kind.capitalize())
    assert "notes.txt, skipped.tsv" in err
    assert TOKEN not in out + err


def test_the_same_again_and_with_a_message(here: Path, run: Run, hub: Hub) -> None:
    for message in ("first", "second"):
        code, out, _ = run("push", here / "mine", "--message", message, "--json")
        told = json.loads(out)
        assert code == 0
        assert (told["repo"], told["kind"], told["private"]) == (f"{USER}/mine", "encoder", True)
        assert told["files"]["model.safetensors"] == len(
            hub.repos[f"{USER}/mine"]["model.safetensors"]
        )
    assert [commit["summary"] for commit in hub.commits] == ["first", "second"]
    uploads = [asked for asked in hub.asked if asked.startswith("PUT /blobs/")]
    assert len(uploads) == 1  # what the hub has is not sent again


def test_public_only_where_that_was_said(here: Path, run: Run, hub: Hub) -> None:
    assert run("push", here / "mine", "open", "--public")[0] == 0
    assert hub.private == {f"{USER}/open": False}
    code, _, err = run("push", here / "mine", "open")
    assert code == 1
    assert (
        f"error: `{USER}/open` is there and public\n\nhint: --public, or a name that is new" in err
    )
    assert run("push", here / "mine", "open", "--public")[0] == 0
    assert len(hub.commits) == 2
    run("push", here / "mine", "closed")
    code, _, err = run("push", here / "mine", "closed", "--public")
    assert code == 1
    assert f"error: `{USER}/closed` is there and private" in err


def test_a_dry_run_says_all_and_asks_nobody(here: Path, run: Run) -> None:
    """Neither logged in nor online."""
    code, out, err = run("push", here / "adapted" / "adapter", "--dry-run")
    assert code == 0
    said = {line.split("  ")[0].strip(): line for line in out.splitlines()}
    assert "YOU/adapted, private" in said["to"]
    size = wording.size((here / "adapted/adapter/adapter_model.safetensors").stat().st_size)
    assert size in said["adapter_model.safetensors"]
    assert "taken: 2 out of base.json" in said["paths of this computer"]
    assert "The encoder's licence" in said["licence"]
    code, out, _ = run("push", here / "mine", "club/it", "--public", "--dry-run", "--json")
    told = json.loads(out)
    assert (code, told["repo"], told["private"], told["left"]) == (0, "club/it", False, [])
    assert sum(told["files"].values()) == sum(
        path.stat().st_size for path in (here / "mine" / "student").iterdir()
    )


# --------------------------------------------------------------------------------- what is refused


def unfinished(here: Path, **_: object) -> None:
    shutil.rmtree(here / "mine" / "student")


def no_card(here: Path) -> None:
    (here / "mine/student/README.md").unlink()


def foreign(here: Path) -> None:
    (here / "mine/student/README.md").write_text("---\ntags: [speech]\n---\n# Theirs\n")


def broken_card(here: Path) -> None:
    (here / "mine/student/README.md").write_text("---\ntags: [speech\n---\n# Mine\n")


def cut_weights(here: Path) -> None:
    path = here / "mine/student/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def not_finite(here: Path) -> None:
    path = here / "mine/student/model.safetensors"
    weights = load_file(path)
    next(iter(weights.values())).flat[0] = np.nan
    save_file(weights, path, metadata={"format": "pt"})


def cut_settings(here: Path) -> None:
    path = here / "mine/student/preprocessor_config.json"
    path.write_text(path.read_text()[:-5])


def no_weights(here: Path) -> None:
    (here / "mine/student/model.safetensors").unlink()


def private_card(here: Path) -> None:
    path = here / "mine/student/README.md"
    path.write_text(path.read_text() + "\nMade of /home/ada/diaries/2020.\n")


def private_settings(here: Path) -> None:
    path = here / "mine/student/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_name_or_path": "/home/ada/x"}))


def recordings(here: Path) -> None:
    shutil.rmtree(here / "mine")
    (here / "mine").mkdir()
    (here / "mine" / "a.wav").write_text("RIFF")


REFUSED: dict[Callable[[Path], None], tuple[str, str]] = {
    unfinished: ("run `runs/mine` is not finished", "distilkit distill --resume --out runs/mine"),
    no_card: ("`runs/mine/student` has no model card (README.md)", "make it again, for example: distilkit convert"),
    foreign: ("`runs/mine/student` was not made by distilkit: its card has no tag `distilkit`", "hf upload REPO"),
    broken_card: ("the metadata of `runs/mine/student/README.md` is damaged: ", "mend the lines between"),
    cut_weights: ("`runs/mine/student` cannot be loaded: ", ""),
    not_finite: (
        "weights in `runs/mine/student` are not finite numbers (NaN or inf): `encoder.layer_norm.bias`",
        "",
    ),
    cut_settings: ("`runs/mine/student", ""),
    no_weights: ("`runs/mine/student` holds no weights: none of model.safetensors", ""),
    private_card: (
        "`runs/mine/student/README.md` names paths of this computer: `/home/ada/diaries/2020`",
        "edit runs/mine/student/README.md: others need names only",
    ),
    private_settings: ("`runs/mine/student/config.json` names paths of this computer: `/home/ada/x`", "edit "),
    recordings: (
        "`runs/mine` is no encoder, recogniser, adapter, export or tokenizer; it holds `a.wav`",
        "distilkit push runs/my_audio",
    ),
}  # fmt: skip


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_what_is_not_ours_or_not_whole_is_refused(
    here: Path, run: Run, hub: Hub, spoil: Callable[[Path], None]
) -> None:
    spoil(here)
    problem, hint = REFUSED[spoil]
    for more in ([], ["--dry-run"]):
        code, out, err = run("push", here / "mine", *more)
        assert (code, out) == (1, "")
        assert err.startswith(f"error: {problem}")
        assert f"\nhint: {hint}" in err or not hint
    assert hub.asked == []


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("hears/model/text.json", None, "`runs/hears/model/text.json` is damaged: "),
        ("hears/model/layer_mix.py", b"import os\n", "`runs/hears/model/layer_mix.py` is damaged: it is not the module"),
        ("adapted/adapter/base.json", b"{}", "`runs/adapted/adapter` holds an adapter, but no base.json"),
        ("adapted/adapter/adapter_model.safetensors", b"", "`runs/adapted/adapter"),
        ("exported/model.onnx", b"another", "`runs/exported/model.onnx` is not the file that was exported"),
        ("tokens/vocab.json", b"{", ""),
    ],
)  # fmt: skip
def test_a_damaged_file_of_another_kind_is_refused(
    here: Path, run: Run, file: str, content: bytes | None, problem: str
) -> None:
    place = here / file
    place.write_bytes(place.read_bytes()[:-4] if content is None else content)
    code, _, err = run("push", here / file.rpartition("/")[0], "--dry-run")
    assert code == 1
    assert err.startswith(f"error: {problem}")


def test_a_link_that_leads_out_is_not_sent(here: Path, run: Run, hub: Hub) -> None:
    (here / "secret").write_text("secret")
    (here / "exported" / SCRIPT).unlink()
    (here / "exported" / SCRIPT).symlink_to((here / "secret").absolute())
    code, _, err = run("push", here / "exported")
    assert code == 1
    assert "is a link to" in err
    assert hub.asked == []


def test_nothing_there(run: Run, here: Path) -> None:
    assert run("push", "runs/minne")[2] == (
        "error: `runs/minne` does not exist\n\nhint: did you mean `runs/mine`?\n"
    )
    (here / "lm.arpa").write_text("\\data\\")
    assert run("push", "runs/lm.arpa")[2].startswith(
        "error: `runs/lm.arpa` is a file, not a folder"
    )
    code, _, err = run("push", "runs/mine", "a//b")
    assert (code, err.partition(":")[0]) == (1, "error")
    assert "`a//b` cannot be the name of a repository: repo id must" in err
    code, _, err = run("push", "runs/mine", "so nice")
    assert "hint: a name such as my-student, or OWNER/my-student" in err


def test_a_run_in_the_middle_of_its_steps(run: Run, speech: Path, teacher_folder: Path) -> None:
    job = prepare([speech], teacher=str(teacher_folder), out=Path("half"), recipe=quick())
    next(iter(train(job)))
    assert "error: run `half` is not finished" in run("push", "half")[2]


# ----------------------------------------------------------------------------- what the hub refuses


def test_not_logged_in(
    here: Path, run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    code, _, err = run("push", here / "mine", "--quiet")
    assert (code, err) == (1, "error: not logged in to the hub\n\nhint: hf auth login\n")
    assert hub.asked == []


def test_switched_off(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "error: the hub is switched off by HF_HUB_OFFLINE" in run("push", here / "mine")[2]


ANSWERS = {
    "another token": (
        lambda hub: hub.fails.update({"whoami": (401, "Invalid")}),
        "the hub does not know the token that you are logged in with",
        "hf auth login",
    ),
    "a token to read": (
        lambda hub: setattr(hub, "role", "read"),
        "the token that you are logged in with may read only",
        "hf auth login, with a token that may write",
    ),
    "somebody else's": (lambda hub: None, "you may not write to `club/it`", "ada/it"),
    "a commit that is forbidden": (
        lambda hub: (hub.repos.update({"club/it": {}}), hub.private.update({"club/it": True}), hub.fails.update({"/commit/": (403, "no")})),
        "you may not write to `club/it`",
        "ada/it",
    ),
    "a hub in trouble": (
        lambda hub: hub.fails.update({"/repos/create": (500, "oh")}),
        "the hub does not answer as it should (status 500)",
        "the same again, later",
    ),
    "no more room": (
        lambda hub: hub.fails.update({"/repos/create": (402, "your private storage is full")}),
        "the hub refuses `club/it`: your private storage is full",
        "distilkit push --help",
    ),
    "a hotel": (
        lambda hub: setattr(hub, "portal", True),
        "the hub cannot be reached: something else answers",
        "go online",
    ),
    "other bytes on the way": (
        lambda hub: (hub.repos.update({"club/it": {}}), hub.private.update({"club/it": True}), hub.fails.update({"/blobs/": (400, "other bytes")})),
        "the hub refuses `club/it`: other bytes",
        "distilkit push --help",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_what_the_hub_refuses_is_one_error(here: Path, run: Run, hub: Hub, name: str) -> None:
    spoil, problem, hint = ANSWERS[name]
    spoil(hub)
    code, out, err = run("push", here / "mine", "club/it", "--quiet")
    assert (code, out) == (1, "")
    assert err == f"error: {problem}\n\nhint: {hint}\n"
    assert hub.commits == []


def test_a_card_that_the_hub_does_not_take(here: Path, run: Run, hub: Hub) -> None:
    card = here / "mine/student/README.md"
    card.write_text(card.read_text().replace("library_name: transformers\n", ""))
    code, _, err = run("push", here / "mine", "--quiet")
    assert code == 1
    wrong = f"error: the hub refuses `{USER}/mine`: Invalid metadata in README.md. - no library\n"
    assert err == f"{wrong}\nhint: mend it\n"


def test_out_of_reach_is_said_soon(
    here: Path, run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, and without an answer: a listener that never accepts."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        for port in (9, silent.getsockname()[1]):
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
            began = time.monotonic()
            code, out, err = run("push", here / "mine", "--quiet")
            assert time.monotonic() - began < 10
            assert (code, out) == (1, "")
            assert err == (
                "error: the hub cannot be reached\n\n"
                "hint: go online, and the same again: nothing is sent twice\n"
            )
