"""Model cards: what the hub reads of them, what people read, and what nobody is to read."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import SAYINGS, Run, fine, quick
from huggingface_hub import ModelCard, metadata_load
from safetensors import safe_open

from distilkit import cards, convert, ctc, units
from distilkit.distill import distill
from distilkit.export import verify
from distilkit.export.card import card as exported_card
from distilkit.hub import BUILT_IN
from distilkit.runs import Run as Folder

TASKS = {"feature-extraction", "automatic-speech-recognition", None}  # of the hub's
LIBRARIES = {"transformers", "peft", "onnx", None}
KNOWN = {"base_model", "language", "library_name", "license", "pipeline_tag", "tags"}


@pytest.fixture(scope="module")
def private(
    tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path, letters: Path
) -> dict[str, Path]:
    """A teacher and a tokenizer in places that are nobody's business."""
    place = tmp_path_factory.mktemp("home") / "ada" / "secret_project"
    shutil.copytree(teacher_folder, place / "my_teacher")
    shutil.copytree(letters, place / "my_tokens")
    return {"teacher": place / "my_teacher", "tokens": place / "my_tokens", "place": place}


@pytest.fixture(scope="module")
def made(
    private: dict[str, Path],
    speech: Path,
    transcribed: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> dict[str, Path]:
    """A folder of everything that is made."""
    place = tmp_path_factory.mktemp("made")
    teacher = str(private["teacher"])
    found = {}
    found["student"] = distill(
        [speech], teacher=teacher, out=place / "run", recipe=quick("train.steps=3")
    )
    again = quick("train.steps=3", "data.valid_fraction=0")
    found["again"] = distill(
        [speech], teacher=teacher, student=str(place / "run"), out=place / "again", recipe=again
    )
    options = {"tokenizer": private["tokens"], "model": str(place / "run")}
    found["model"] = ctc.finetune(
        [transcribed], **options, out=place / "hears", recipe=fine("train.steps=3")
    )
    adapted = ctc.finetune(
        [transcribed],
        **options,
        out=place / "adapted",
        recipe=fine("train.steps=3", "lora.rank=2"),
        merge=True,
    )
    found |= {"merged": adapted, "adapter": place / "adapted" / "adapter"}
    found["units"] = units.units([speech], place / "units", clusters=9).folder
    found["converted"] = convert.convert(teacher, place / "converted").output
    return found


def check(folder: Path, private: Path) -> dict[str, object]:
    """The card of a folder: whole, known to the hub, and silent on where things lie. Its metadata."""
    file = folder / cards.CARD
    text, told = file.read_text(encoding="utf-8"), metadata_load(file)
    card = ModelCard.load(file)
    assert card.data.to_dict() == told
    assert set(told) <= KNOWN
    assert "distilkit" in told["tags"]
    assert len(set(told["tags"])) == len(told["tags"])
    assert told.get("pipeline_tag") in TASKS
    assert told.get("library_name") in LIBRARIES
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    assert len(headings) == len(set(headings))
    assert not re.search(r"^#[^\n]*\n\s*(^#|\Z)", card.text, re.MULTILINE), "an empty section"
    assert "## Licence" in text
    assert "None" not in text
    assert "nan" not in text.split()
    assert cards.private_paths(text) == []
    for word in (str(private), "secret_project", "ada", str(folder.absolute()), str(Path.home())):
        assert word not in re.split(r"[\s`/]+", text)
        assert len(word) < 4 or word not in text
    return told  # type: ignore[no-any-return]


FOLDERS = {
    "student": ("feature-extraction", "A 0.03 M student of my_teacher"),
    "again": ("feature-extraction", "A 0.03 M student of my_teacher"),
    "model": ("automatic-speech-recognition", "A 0.03 M recogniser on run"),
    "merged": ("automatic-speech-recognition", "A 0.03 M recogniser on run"),
    "adapter": ("automatic-speech-recognition", "A 0.03 M recogniser on run"),
    "units": (None, "9 hidden units of MFCC"),
    "converted": ("feature-extraction", "my_teacher"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_every_folder_has_a_card(
    made: dict[str, Path], private: dict[str, Path], name: str
) -> None:
    told = check(made[name], private["place"])
    text = (made[name] / cards.CARD).read_text()
    task, title = FOLDERS[name]
    assert told.get("pipeline_tag") == task
    assert f"\n# {title}\n" in text
    assert "base_model" not in told  # nothing of it is on the hub
    assert "license" not in told  # nobody knows


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "units"])
def test_no_other_file_says_where_things_lie(
    made: dict[str, Path], private: dict[str, Path], name: str
) -> None:
    """But for base.json, by which an adapter finds its model again."""
    for file in made[name].rglob("*"):
        if file.name != "base.json":
            held = file.read_bytes()
            assert str(private["place"]).encode() not in held, file
            if file.suffix in (".json", ".md", ".py"):
                assert cards.private_paths(held.decode()) == [], file


def test_a_tokenizer_has_a_card(run: Run, transcribed: Path, private: dict[str, Path]) -> None:
    assert run("tokenizer", transcribed, "--out", "tokens")[0] == 0
    check(Path("tokens"), private["place"])
    text = Path("tokens", cards.CARD).read_text()
    assert (
        f"# A tokenizer of {len(json.loads(Path('tokens/vocab.json').read_text()))} characters\n"
        in text
    )
    words = 4 * sum(len(saying.split()) for saying in SAYINGS)
    letters = len(set("".join(SAYINGS).lower()) - set(" ,!"))
    assert f"- Of {words} words in 16 lines, {letters} different characters." in text


@pytest.mark.parametrize("kind", ["encoder", "recogniser"])
def test_an_export_has_a_card(private: dict[str, Path], tmp_path: Path, kind: str) -> None:
    near = verify.Near(layer=0, cosine=0.999, error=1e-5)
    found = verify.Checked(
        runtime="onnxruntime", clips=3, seconds=9.0, shortest=1.0, longest=5.0, layers=[near], words=None,
        labelled=False, wer=None, apart=None, milliseconds=5.0, model_milliseconds=9.0,
    )  # fmt: skip
    facts = {
        "kind": kind, "family": "wav2vec 2.0", "precision": "int8", "bytes": 5e6, "parameters": 4e6,
        "made_by": "distilkit", "source": {"name": str(private["teacher"])}, "sample_rate": 16_000,
        "layers": 2, "frame_rate": 50, "width": 8, "processor": "a processor",
    }  # fmt: skip
    (tmp_path / cards.CARD).write_text(exported_card(facts, [found], private["teacher"]))
    told = check(tmp_path, private["place"])
    task = {"encoder": "feature-extraction", "recogniser": "automatic-speech-recognition"}[kind]
    assert (told["library_name"], told["pipeline_tag"]) == ("onnx", task)
    assert "wav2vec-2.0" in told["tags"]
    assert "# my_teacher, exported\n" in (tmp_path / cards.CARD).read_text()


def test_sizes_and_times_are_those_of_the_run(made: dict[str, Path]) -> None:
    text = (made["student"] / cards.CARD).read_text()
    with safe_open(made["student"] / "model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    assert f"| weights in fp32 | {stored / 1000:.0f} kB |" in text
    for name, run in (("student", "run"), ("adapter", "adapted")):
        folder = Folder(made["student"].parents[1] / run)
        rows, speed = folder.rows("metrics.jsonl"), folder.rows("speed.jsonl")
        seconds = sum(row["seconds"] for row in speed)
        rate = sum(row["audio_seconds"] for row in rows) / seconds
        said = re.search(
            r"- Took ([\d.]+) s .*: ([\d.,]+) s of audio", (made[name] / cards.CARD).read_text()
        )
        assert said is not None
        assert float(said[1]) == pytest.approx(seconds, abs=0.06)
        assert float(said[2].replace(",", "")) == pytest.approx(rate, abs=0.06)
    whole, part = ((made[name] / cards.CARD).read_text() for name in ("merged", "adapter"))
    with safe_open(made["adapter"] / "adapter_model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    assert f"the weights here take {stored / 1000:.0f} kB in fp32" in part
    assert "library_name: peft" in part
    assert "library_name: transformers" in whole


def test_a_run_without_a_clock_or_a_number_has_no_such_section() -> None:
    from distilkit.cards.origin import took
    from distilkit.cards.student import _measured

    assert took([{"audio_seconds": 3.0}], []) == []
    assert _measured([{"step": 1, "loss": None}]) == []


def test_validations_of_other_things_are_not_compared() -> None:
    """As where a run went on from the log of another."""
    from distilkit.cards.student import _measured

    rows = [{"step": 1, "valid": {"loss": 2.0, "wer": 0.5}}, {"step": 2, "valid": {"loss": 1.0}}]
    assert "| loss | 2.0000 | 1.0000 |" in _measured(rows)


# ------------------------------------------------------------------------------------------- names

CACHE = "/home/ada/.cache/huggingface/hub/models--facebook--hubert-base-ls960/snapshots/0123"


@pytest.mark.parametrize(
    ("name", "source", "called"),
    [
        ("facebook/hubert-base-ls960", CACHE, "facebook/hubert-base-ls960"),
        ("tiny", str(BUILT_IN["tiny"]), "tiny"),
        ("torchaudio:HUBERT_BASE", "torchaudio:HUBERT_BASE", "torchaudio:HUBERT_BASE"),
        ("runs/mine", "/home/ada/runs/mine/student", "mine"),
        ("/home/ada/secret/hubert.pt", "/home/ada/secret/hubert.pt", "hubert.pt"),
        (".", "/home/ada/models/best", "best"),
        ("owner/name", "/home/ada/owner/name", "name"),  # a folder that looks like a hub id
    ],
)
def test_names_for_others(name: str, source: str, called: str) -> None:
    assert cards.public(name, source) == called
    assert cards.hub_id(name, source) == (name if source == CACHE else None)


def test_what_came_from_the_hub_is_said_to_the_hub(tmp_path: Path, made: dict[str, Path]) -> None:
    name, place = "ada/hubert", tmp_path / "models--ada--hubert" / "snapshots" / "1"
    shutil.copytree(made["converted"], place)
    (place / cards.CARD).write_text("---\nlicense: apache-2.0\n---\n# It\n")
    facts = convert.describe(*convert.teachers.load(str(place)))
    (tmp_path / cards.CARD).write_text(cards.converted_card(name, facts))
    told = metadata_load(tmp_path / cards.CARD)
    assert (told["base_model"], told["license"]) == (name, "apache-2.0")
    assert "# ada/hubert\n" in (tmp_path / cards.CARD).read_text()


def test_languages_and_licences_are_said_where_they_are_known(tmp_path: Path) -> None:
    def told(**more: object) -> dict[str, object]:
        (tmp_path / cards.CARD).write_text("\n".join(cards.head(tags=["x"], **more)))  # type: ignore[arg-type]
        return metadata_load(tmp_path / cards.CARD)  # type: ignore[return-value]

    assert told() == {"tags": ["x", "distilkit"]}
    assert told(languages=["pt_BR", "sv-SE", "en", "EN", "Klingon", ""])["language"] == [
        "en",
        "pt",
        "sv",
    ]
    assert told(licence="mit", base="a/b: c")["base_model"] == "a/b: c"
    assert cards.licence_of(tmp_path) == "mit"
    (tmp_path / cards.CARD).write_text("---\n: [broken\n---\n")
    assert cards.licence_of(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("of `/home/ada/x.wav`, kept", ["/home/ada/x.wav"]),
        ('"source": "/mnt/disk/models"', ["/mnt/disk/models"]),
        ("in ~/models/best and file:///home/ada", ["~/models/best", "file:///home/ada"]),
        (r"C:\Users\ada\x", [r"C:\Users\ada\x"]),
        ("runs/mine, 1/2, and/or, https://a.b/c/d/e, `/`, s/s, `text.json`, [x](docs/a/b.md)", []),
    ],
)
def test_private_paths_are_seen(text: str, found: list[str]) -> None:
    assert cards.private_paths(text) == found
