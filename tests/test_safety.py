"""No network without being asked, and no secret in what is said or written, whatever the command."""

import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, voice
from hub import TOKEN, serving
from test_recognisers import made
from transformers import AutoModelForCTC

from distilkit import errors, recognisers
from distilkit.cli import console

HERE = Path(__file__).parent
SECRETS = {
    "HF_TOKEN": "hf_environmentenvironmentenvironment",
    "a token file": "hf_filefilefilefilefilefilefilefile",
    "a proxy": "proxypassword",
}
DISTIL = ["--recipe", "smoke", "--steps", "2", "--set", "train.precision=fp32", "--set", "batches.seconds=4"]  # fmt: skip
TUNE = ["--recipe", "ctc-tiny", "--steps", "2", "--set", "train.precision=fp32", "--set", "data.valid_fraction=0.25"]  # fmt: skip
COMMANDS = [
    ["distill", "speech", "--teacher", "teacher", "--out", "runs/mine", *DISTIL, "--verbose"],
    ["embed", "speech/a", "--model", "runs/mine", "--out", "vectors.npz", "--format", "npz"],
    ["embed", "speech/a/clip00.flac"],
    ["layers", "speech", "--model", "runs/mine"],
    ["units", "speech", "--model", "runs/mine", "--layer", "1", "--clusters", "4", "--out", "units"],
    ["tokenizer", "said", "--out", "tokens"],
    ["finetune-ctc", "said", "--tokenizer", "tokens", "--model", "runs/mine", "--out", "runs/hears", *TUNE],
    ["finetune-ctc", "said", "--tokenizer", "tokens", "--model", "runs/mine", "--out", "runs/adapted", *TUNE, "--set", "lora.rank=2"],
    ["lm", "said", "--tokenizer", "tokens", "--out", "said.arpa"],
    ["transcribe", "said/clip00.flac", "--model", "runs/hears", "--lm", "said.arpa"],
    ["transcribe", "said/clip00.flac", "--model", "runs/adapted"],
    ["evaluate", "said", "--model", "runs/hears"],
    ["probe", "ks", "said", "--label", "speaker", "--model", "runs/mine", "--folds", "3", "--no-floors", "--workers", "0"],
    ["bench", "runs/mine", "--seconds", "0.5", "--batch", "1", "--rounds", "1"],
    ["export", "runs/hears", "--out", "exported"],
    ["transcribe", "said/clip00.flac", "--model", "exported"],
    ["convert", "runs/mine", "--out", "converted"],
    ["report", "runs/mine", "--out", "page.html"],
    ["report", "runs/hears"],
    *(["inspect", name] for name in ("teacher", "runs/mine", "runs/hears", "tokens", "speech", "said", "exported")),
    ["recipes"],
]  # fmt: skip


@pytest.fixture(scope="module")
def place(
    speech: Path, transcribed: Path, teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("safety")
    shutil.copytree(speech, folder / "speech")
    shutil.copytree(transcribed, folder / "said")
    shutil.copytree(teacher_folder, folder / "teacher")
    return folder


def logged_in(place: Path, **more: str) -> dict[str, str]:
    """The environment of somebody who is logged in behind a proxy; the hub is not switched off."""
    for name in ("hf", "home", "temporary"):
        (place / name).mkdir(exist_ok=True)
    (place / "hf" / "token").write_text(SECRETS["a token file"])
    proxy = f"http://ada:{SECRETS['a proxy']}@127.0.0.1:9"
    return {key: value for key, value in os.environ.items() if "HF_HUB" not in key} | {
        "HF_HOME": str(place / "hf"), "HF_TOKEN": SECRETS["HF_TOKEN"], "HTTPS_PROXY": proxy, "https_proxy": proxy,
        "PYTHONPATH": str(HERE.parent), "DISTILKIT_CACHE": str(place / "cache"), "HOME": str(place / "home"),
        "TMPDIR": str(place / "temporary"), **more,
    }  # fmt: skip


def confined(place: Path, commands: list[list[str]]) -> tuple[int, list[int], str]:
    """Run commands where no internet socket can be opened: how the process and each of them ended."""
    (place / "logs").mkdir(exist_ok=True)
    (place / "commands.json").write_text(json.dumps(commands))
    line = [sys.executable, str(HERE / "offline.py"), "commands.json", "logs"]
    done = subprocess.run(line, cwd=place, env=logged_in(place), capture_output=True, text=True)
    status = place / "logs" / "status.json"
    said = done.stdout + done.stderr
    (place / "logs" / "itself").write_text(said)
    return done.returncode, json.loads(status.read_text()) if status.is_file() else [], said


@pytest.fixture(scope="module")
def done(place: Path) -> Path:
    """A folder where every command has worked on local paths."""
    code, status, said = confined(place, COMMANDS)
    assert code == 0, said[-4000:]
    assert "most recent call first" not in said, said[:4000]  # a child process that was ended
    for command, ended, log in zip(COMMANDS, status, sorted((place / "logs").glob("[0-9]*")), strict=True):  # fmt: skip
        assert ended == 0, f"{command}: {log.read_text()[-3000:]}"
    return place


@pytest.mark.slow  # the whole way, in one process of its own
def test_no_command_asks_the_network(done: Path) -> None:
    """Neither for names nor to connect: one socket, opened by Python or by C, ends the process."""
    assert {path.name for path in (done / "home").rglob("*")} == {".lhotse", "tools"}
    assert list((done / "temporary").rglob("*")) == []
    for name in (
        "runs/mine/student/model.safetensors",
        "exported/model.onnx",
        "page.html",
        "units",
    ):
        assert (done / name).exists()


ASKING = {
    "a name looked up": "import socket; socket.getaddrinfo('example.org', 80)",
    "a connection": "import socket; socket.create_connection(('127.0.0.1', 9))",
    "a datagram": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "by C": "import ctypes; ctypes.CDLL(None).socket(2, 1, 0)",
    "by another process": "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'import ctypes; ctypes.CDLL(None).socket(10, 1, 0)']))",
}  # fmt: skip


@pytest.mark.parametrize("way", ASKING)
def test_asking_the_network_would_be_noticed(way: str) -> None:
    """Or the test above would show nothing."""
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import offline; offline.forbid()\n"
    done = subprocess.run([sys.executable, "-c", code + ASKING[way]], capture_output=True)
    assert done.returncode in (-signal.SIGSYS, 256 - signal.SIGSYS), done.stderr
    quiet = subprocess.run([sys.executable, "-c", code + "import socket; socket.socketpair()"])
    assert quiet.returncode == 0


def test_a_command_that_asks_the_hub_would_be_noticed(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "speech", tmp_path / "speech")
    code, status, said = confined(tmp_path, [["embed", "speech/a", "--model", "owner/name"]])
    assert code == -signal.SIGSYS
    assert status == []
    assert "hub.py" in said
    assert "_detect_agent" not in said  # huggingface_hub's count of who uses it: switched off


def test_code_beside_a_recogniser_is_not_run(
    teacher_folder: Path, letters: Path, tmp_path: Path
) -> None:
    """Stock transformers asks for leave to run the file that comes with a weighted one; here it never runs."""
    folder = tmp_path / "hears"
    recognisers.save(made(teacher_folder, letters, layers="weighted"), folder, "#\n")
    (wanted,) = recognisers.load(str(folder)).logprobs([voice(0.5, 1)])
    codes = [*folder.glob("*.py"), *(folder / name for name in ("tokenization.py", "evil.py"))]
    assert len(codes) == 3
    for code in codes:
        own = code.read_text() if code.exists() else ""
        code.write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n{own}")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        told = json.loads((folder / name).read_text())
        more = {
            "AutoConfig": "evil.A",
            "AutoTokenizer": ["evil.A", None],
            "AutoFeatureExtractor": "evil.A",
        }
        (folder / name).write_text(
            json.dumps({**told, "auto_map": {**told.get("auto_map", {}), **more}})
        )
    (got,) = recognisers.load(str(folder)).logprobs([voice(0.5, 1)])
    np.testing.assert_array_equal(got, wanted)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(AttributeError):
        AutoModelForCTC.from_pretrained(folder, trust_remote_code=True)
    assert (tmp_path / "ran").exists()  # it would, if it were told to


# --------------------------------------------------------------------------------------- secrets


def written(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file of a folder, with what is compressed unpacked."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "hf" not in path.relative_to(folder).parts:
            content = path.read_bytes()
            yield path, gzip.decompress(content) if path.suffix == ".gz" else content


def test_no_secret_is_written_or_said(done: Path) -> None:
    found = dict(written(done))
    names = {path.name for path in found}
    assert {"run.json", "README.md", "report.html", "page.html", "recipe.toml", "itself"} <= names
    for path, content in found.items():
        for of, secret in SECRETS.items():
            assert secret.encode() not in content, f"{of} in {path.relative_to(done)}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://ada:pass/word@hub.example/a", "at https://***@hub.example/a"),
        ("at https://token123@hub.example/a", "at https://***@hub.example/a"),
        ("hf_oauth_abcdefghijklmnopqrst is", "*** is"),
        ("https://hub.example/a@b c:d", "https://hub.example/a@b c:d"),
        ("see https://hub.example:80/owner", "see https://hub.example:80/owner"),
    ],
)
def test_secrets_are_told_from_what_is_none(text: str, shown: str) -> None:
    assert errors.without_secrets(text) == shown


WITH_PASSWORD = f"https://ada:{SECRETS['a proxy']}@hub.example/owner/name"


@pytest.mark.parametrize("manner", ["--quiet", "--verbose"])
def test_no_secret_is_said_of_what_goes_wrong(
    run: Run, manner: str, monkeypatch: pytest.MonkeyPatch, speech: Path
) -> None:
    """Of a model's name, of what a file says, of an error that nobody expected."""
    _, _, err = run("embed", speech / "a", "--model", WITH_PASSWORD, manner)
    assert "https://***@hub.example" in err
    said = err
    row = {"id": "a", "sources": [{"type": WITH_PASSWORD, "source": WITH_PASSWORD}]}
    Path("a.jsonl").write_text(json.dumps(row) + "\n")
    _, _, err = run("distill", "a.jsonl", "--teacher", "tiny", manner)
    assert "https://***@hub.example" in err
    said += err

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"{WITH_PASSWORD} {SECRETS['HF_TOKEN']} \x1b[2J")

    for name in ("HTTPS_PROXY", "HF_ENDPOINT"):
        monkeypatch.setenv(name, WITH_PASSWORD)
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if manner == "--verbose":  # it takes seconds
        _, out, err = run("doctor", manner)
        assert "hub" in out + err
        said += out + err
    monkeypatch.setattr("distilkit.hub.locate", broken)
    _, _, err = run("embed", speech / "a", "--model", "tiny", manner)
    assert "unexpected RuntimeError" in err
    assert "\x1b" not in err
    said += err
    for secret in SECRETS.values():
        assert secret not in said


EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m"  # a terminal's title, an empty screen, red


def test_no_name_moves_the_terminal(
    run: Run, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("audio").mkdir()
    shutil.copy(speech / "a" / "clip00.flac", f"audio/good{EVIL}.flac")
    Path(f"audio/bad{EVIL}.wav").write_bytes(b"no sound")
    for words in (["embed", "audio", "--model", "tiny"], ["inspect", f"none{EVIL}"]):
        _, _, err = run(*words)
        assert not set("\x1b\x07\x9b") & set(err)
        assert "\\x1b]0;title\\x07\\x1b[2J\\x9b31m" in err
    monkeypatch.setattr(sys, "stdout", Terminal())
    console.result(f"a.wav\tb{EVIL}\n")
    made = console.table("", ["a"], [[EVIL]])
    console.show(made, to_result=True)
    said = sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert said.startswith("a.wav\tb\\x1b]0;title")
    assert "\x1b[2J" not in said
    assert "\x07" not in said
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    console.result(EVIL)  # for a program to read it is what it is
    assert sys.stdout.getvalue() == f"{EVIL}\n"  # type: ignore[attr-defined]


class Terminal(io.StringIO):
    """A stream that says that it is one."""

    def isatty(self) -> bool:
        return True


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_no_secret_is_said_of_a_hub_that_refuses(tmp_path: Path, speech: Path) -> None:
    """Whatever its libraries log about requests, to an address with a password in it."""
    with serving() as hub:
        address = hub.url.replace("://", f"://ada:{SECRETS['a proxy']}@")
        environment = logged_in(tmp_path, HF_ENDPOINT=address, NO_PROXY="127.0.0.1", HF_TOKEN=TOKEN)
        words = ["embed", str(speech / "a"), "--model", "owner/name", "--verbose"]
        line = [sys.executable, "-m", "distilkit", *words]
        done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert "GET /api/models/owner/name/revision/main" in hub.asked
    assert "error: `owner/name` is not in the local cache" in done.stderr
    assert "HTTP Request: GET http://***@127.0.0.1" in done.stderr
    for secret in (*SECRETS.values(), TOKEN):
        assert secret not in done.stdout + done.stderr
