"""The command line from recordings with text to a recogniser, and from there to text and error rates."""

import json
import shutil
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
import soundfile
from conftest import Run, voice

from distilkit import decode, ngram

QUICK = [
    "--recipe", "ctc-tiny", "--steps", "4", "--set", "train.precision=fp32", "--set", "train.device=cpu",
    "--set", "data.valid_fraction=0.25", "--set", "train.validate_every=2",
]  # fmt: skip


@pytest.fixture
def tuned(
    run: Run, transcribed: Path, teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A fine-tuned run, made once by the commands themselves."""
    place = tmp_path_factory.getbasetemp() / "tuned"
    if not place.exists():
        code, out, err = run("tokenizer", transcribed, "--out", "tokens")
        assert (code, out) == (0, "tokens\n"), err
        code, out, err = run(
            "finetune-ctc", transcribed, "--tokenizer", "tokens", "--model", teacher_folder, *QUICK,
            "--out", "runs/said",
        )  # fmt: skip
        assert (code, out) == (0, "runs/said/model\n"), err
        assert "model         " in err
        assert "held out" in err
        assert "4 of 4: loss" in err
        assert "kept step" in err
        assert "warning: the model says nothing" in err or "words wrong" in err
        shutil.copytree("runs/said", place)
    Path("runs").mkdir(exist_ok=True)
    if not Path("runs/said").exists():
        shutil.copytree(place, "runs/said")
    return Path("runs/said")


def test_transcribe_prints_or_writes_every_format(run: Run, tuned: Path, transcribed: Path) -> None:
    clip = transcribed / "clip00.flac"
    code, out, err = run("transcribe", clip)
    assert code == 0
    assert out.count("\n") == 1
    assert "model: runs/said/model (no --model given)" in err
    code, out, _ = run("transcribe", clip, "--format", "json", "--timestamps")
    document = json.loads(out)
    assert document["file"] == "clip00.flac"
    assert isinstance(document["words"], list)
    code, out, _ = run("transcribe", clip, "--format", "vtt")
    assert out.startswith("WEBVTT")
    code, out, _ = run("transcribe", transcribed)
    assert [line.partition("\t")[0] for line in out.splitlines()] == [
        f"clip{n:02d}.flac" for n in range(16)
    ]
    code, out, _ = run("transcribe", transcribed, "--format", "srt", "--out", "texts")
    assert (code, out) == (0, "texts\n")
    assert sorted(path.name for path in Path("texts").iterdir()) == [
        f"clip{n:02d}.srt" for n in range(16)
    ]


def test_transcribe_with_a_language_model(
    run: Run, tuned: Path, transcribed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run("lm", transcribed, "--out", "a.arpa", "--tokenizer", tuned / "tokenizer")
    assert (code, out) == (0, "a.arpa\n"), err
    asked = []

    def beam(rows: object, tokenizer: object, model: object, **options: object) -> list[int]:
        asked.append((model, options))
        return []

    monkeypatch.setattr(decode, "beam", beam)
    clip = transcribed / "clip01.flac"
    code, _, _ = run("transcribe", clip, "--lm", "a.arpa", "--lm-weight", "5", "--word-bonus", "9")
    assert code == 0
    ((model, options),) = asked
    assert isinstance(model, ngram.NGram)
    assert model.knows("keeper")
    assert (options["width"], options["weight"], options["bonus"]) == (32, 5.0, 9.0)
    code, _, _ = run("transcribe", clip, "--beam", "4")
    assert code == 0
    assert asked[1][0] is None
    assert asked[1][1]["width"] == 4
    run("transcribe", clip)
    assert len(asked) == 2  # greedy


def test_a_language_model_in_another_form_of_text(run: Run, tuned: Path, transcribed: Path) -> None:
    Path("loud.txt").write_text("HELLO THERE\nkeeper\n")
    run("lm", "loud.txt", "--out", "loud.arpa")
    run("lm", transcribed, "--out", "said.arpa", "--tokenizer", tuned / "tokenizer")
    clip = transcribed / "clip01.flac"
    _, _, err = run("transcribe", clip, "--lm", "loud.arpa")
    assert "warning: `runs/said/model` cannot write 2 of the 3 words in `loud.arpa`: `HELLO`" in err
    assert "hint: distilkit lm TEXT --tokenizer runs/said/model --out" in err
    for command in ("transcribe", "evaluate"):
        _, _, err = run(
            command, clip if command == "transcribe" else transcribed, "--lm", "said.arpa"
        )
        assert "warning: `runs" not in err


def test_transcripts_go_where_they_are_told(run: Run, tuned: Path, tmp_path: Path) -> None:
    places = [tmp_path / "mixed" / name for name in ("t.flac", "t.wav", "t.wav.flac")]
    places[0].parent.mkdir()
    for seed, place in enumerate(places):
        soundfile.write(place, voice(0.5, seed), 16_000)
    code, _, _ = run("transcribe", tmp_path / "mixed", "--out", "texts")
    assert code == 0
    written = sorted(path.name for path in Path("texts").iterdir())
    assert written == ["t.txt", "t.wav.flac.txt", "t.wav.txt"]
    rows = [
        {"id": place.name, "sources": [{"type": "file", "channels": [0], "source": str(place)}]}
        for place in places
    ]
    Path("all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = run("transcribe", "all.jsonl")
    assert [line.partition("\t")[0] for line in out.splitlines()] == [p.name for p in places]
    code, _, _ = run("transcribe", "all.jsonl", "--out", "again")
    assert len(list(Path("again").iterdir())) == 3
    for more in (["--out", "one.txt"], ["--format", "srt"]):
        code, _, err = run("transcribe", "all.jsonl", *more)
        assert code == 1
        assert "several" in err


def test_a_transcript_that_is_gone_is_written_again(
    run: Run, tuned: Path, speech: Path, tmp_path: Path
) -> None:
    shutil.copytree(speech, tmp_path / "speech")
    (tmp_path / "speech" / "z.wav").write_bytes(b"no sound")  # for whose sake the list stays
    for _ in range(2):
        code, _, err = run("transcribe", tmp_path / "speech", "--model", tuned, "--out", "texts")
        assert code == 1
        assert "left out " in err
        assert Path("texts", "a", "clip02.txt").is_file()
        Path("texts", "a", "clip02.txt").unlink()
    Path("texts", "a", "clip02.txt").mkdir()
    run("transcribe", tmp_path / "speech", "--model", tuned, "--out", "texts")
    assert Path("texts", "a", "clip02.txt").is_file()


def test_a_damaged_file_is_transcribed_once_it_is_mended(
    run: Run, tuned: Path, tmp_path: Path
) -> None:
    place = tmp_path / "sounds"
    place.mkdir()
    for seed in range(3):
        soundfile.write(place / f"{seed}.wav", voice(0.5, seed), 16_000)
    whole = (place / "1.wav").read_bytes()
    (place / "1.wav").write_bytes(b"RIFF")
    code, _, err = run("transcribe", place, "--out", "texts")
    assert code == 1
    assert "sounds/1.wav: cannot be decoded" in err
    (place / "1.wav").write_bytes(whole)
    code, _, err = run("transcribe", place, "--out", "texts")
    assert code == 0, err
    assert sorted(path.name for path in Path("texts").iterdir()) == ["0.txt", "1.txt", "2.txt"]


def test_evaluate_says_by_its_status_that_a_file_was_damaged(
    run: Run, tuned: Path, transcribed: Path, tmp_path: Path
) -> None:
    shutil.copytree(transcribed, tmp_path / "test")
    (tmp_path / "test" / "clip03.flac").write_bytes(b"fLaC")
    code, out, _ = run("evaluate", tmp_path / "test", "--model", tuned, "--json")
    assert code == 1
    assert json.loads(out)["utterances"] == 15


def test_what_a_stream_cannot_write_is_escaped(
    run: Run, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd").mkdir()
    for seed, name in enumerate(("日本.wav", "plain.wav")):
        soundfile.write(tmp_path / "odd" / name, voice(0.5, seed), 16_000)
    sink = BytesIO()
    monkeypatch.setattr("sys.stdout", TextIOWrapper(sink, encoding="ascii", write_through=True))
    code, _, err = run("transcribe", tmp_path / "odd")
    assert code == 0, err
    lines = sink.getvalue().decode("ascii").splitlines()
    assert [line.partition("\t")[0] for line in lines] == ["plain.wav", "\\u65e5\\u672c.wav"]


def test_evaluate_counts_and_compares(
    run: Run, tuned: Path, transcribed: Path, teacher_folder: Path
) -> None:
    code, out, err = run("evaluate", transcribed, "--model", tuned, "--out", "each.jsonl")
    assert code == 0, err
    assert "16 utterances" in out
    assert "by speaker" in out
    assert "worst utterances" in out
    assert "REF: " in out
    assert len(Path("each.jsonl").read_text().splitlines()) == 16
    code, out, _ = run("evaluate", transcribed, "--against", tuned / "model", "--json")
    document = json.loads(out)
    assert document["wer_interval"][0] <= document["wer"] <= document["wer_interval"][1]
    assert document["against"]["wer_difference"] == 0.0
    assert document["utterances"] == 16
    code, _, err = run("evaluate", transcribed, "--out", "each.jsonl")
    assert code == 1
    assert "error: `each.jsonl` already exists" in err
    code, _, err = run(
        "evaluate", transcribed, "--against", tuned / "model", "--out", "new/below/each.jsonl"
    )
    assert code == 0, err
    rows = [json.loads(line) for line in Path("new/below/each.jsonl").read_text().splitlines()]
    assert all(row["against"] == row["heard"] for row in rows)
    assert all(row["against_word_errors"] == row["word_errors"] for row in rows)


def test_adapters_through_the_command_line(
    run: Run, tuned: Path, transcribed: Path, teacher_folder: Path
) -> None:
    code, out, err = run(
        "finetune-ctc", transcribed, "--tokenizer", tuned / "tokenizer", "--model", teacher_folder, *QUICK,
        "--lora", "--rank", "2", "--out", "runs/small", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert "adapters of rank 2" in err
    document = json.loads(out)
    assert document["model"] == "runs/small/adapter"
    assert document["best"]["step"] in (2, 4)
    code, text, err = run("transcribe", transcribed / "clip00.flac", "--model", "runs/small")
    assert code == 0, err
    code, out, err = run("inspect", "runs/small/adapter", "--json")
    assert json.loads(out)["is"] == "adapters of a recogniser"
    assert json.loads(out)["belong to"] == str(teacher_folder)
    code, out, err = run("finetune-ctc", "--resume", "--merge", "--out", "runs/small")
    assert code == 0, err
    again = run("transcribe", transcribed / "clip00.flac", "--model", "runs/small/model")
    assert again[:2] == (0, text)
    code, out, err = run("finetune-ctc", "--resume", "--merge", "--out", "runs/small")
    assert code == 1
    assert "is finished" in err


def test_a_plan_writes_nothing(
    run: Run, tuned: Path, transcribed: Path, teacher_folder: Path
) -> None:
    before = sorted(Path().rglob("*"))
    code, out, _ = run(
        "finetune-ctc", transcribed, "--tokenizer", tuned / "tokenizer", "--model", teacher_folder, *QUICK, "--plan", "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(out)["steps"] == 4
    assert sorted(Path().rglob("*")) == before


def test_inspect_transcribed_recordings_and_the_run(
    run: Run, tuned: Path, transcribed: Path
) -> None:
    code, out, _ = run("inspect", transcribed, "--json")
    document = json.loads(out)
    assert document["is"] == "recordings with text (audiofolder)"
    assert (document["utterances"], document["speakers"]) == (16, 4)
    assert document["rare characters"] == {"!": 4, ",": 4, "T": 4, "w": 4}
    code, out, _ = run("inspect", tuned)
    assert "a fine-tuning run" in out
    assert "held-out words wrong" in out
    code, out, _ = run("inspect", tuned / "model", "--json")
    document = json.loads(out)
    assert document["is"] == "a recogniser: HuBERT and a CTC head"
    assert document["tokens"] > 10
    assert not any("head" in note for note in document["notes"])
    code, out, _ = run("inspect", tuned / "tokenizer", "--json")
    assert json.loads(out)["is"] == "a tokenizer"


def test_inspect_says_what_fine_tuning_would_take(run: Run, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", voice(31.0, 1), 16_000)
    (tmp_path / "metadata.csv").write_text("file_name,words said,other\nlong.wav,hello,x\n")
    code, out, err = run("inspect", tmp_path)
    assert code == 1
    assert "hint: --text-column 'words said'" in err
    code, out, err = run("inspect", tmp_path, "--text-column", "words said")
    assert code == 0, err
    assert "left out" in out
    assert "31.00 s is longer than 30 s" in out


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("notes.txt", "hello", "`notes.txt` is text, and names no recordings"),
        ("rows.jsonl", '{"said": "x"}', "names no recordings: its columns are `said`"),
        ("rows.jsonl", '{"said": "x"', "`rows.jsonl` is not JSON lines: line 1"),
    ],
)
def test_inspect_text_without_recordings(run: Run, name: str, text: str, said: str) -> None:
    Path(name).write_text(text)
    code, _, err = run("inspect", name)
    assert code == 1
    assert said in err


def test_inspect_gives_a_second_of_speech_its_length(run: Run, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "said.wav", voice(2.5, 0), 16_000)
    line = {"audio_filepath": "said.wav", "text": "good day", "offset": 0.5, "duration": 1.26}
    (tmp_path / "said.jsonl").write_text(json.dumps(line))
    code, out, _ = run("inspect", tmp_path)
    assert code == 0
    assert "1.3 s" in out


def test_inspect_lists_what_is_wrong_however_much_it_is(run: Run, tmp_path: Path) -> None:
    lines = ["file_name,transcription", *(f"{name}.wav,said" for name in "abcdefgh")]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    code, out, _ = run("inspect", tmp_path)
    assert code == 1
    assert out.count("there is no such file") == 8
    code, out, _ = run("inspect", tmp_path, "--json")
    document = json.loads(out)
    assert (document["utterances"], document["missing files"]) == (0, 8)


def test_the_newest_student_is_what_is_tuned_and_embedded(
    run: Run, tuned: Path, transcribed: Path
) -> None:
    """A run of fine-tuning is no student: without --model it is not taken for one."""
    code, _, err = run("embed", transcribed / "clip00.flac")
    assert code == 1
    assert "ntu-spml/distilhubert (no --model given)" in err
    code, out, err = run("embed", transcribed / "clip00.flac", "--model", tuned)
    assert code == 0, err


ERRORS = {
    "nothing given": (
        ["finetune-ctc"],
        "no recordings given",
        "distilkit finetune-ctc ./my_speech --tokenizer ./my_tokens",
    ),
    "no tokenizer": (
        ["finetune-ctc", "SAID"],
        "no tokenizer given",
        "distilkit tokenizer SAID --out DIR, then --tokenizer DIR",
    ),
    "rank without lora": (
        ["finetune-ctc", "SAID", "--tokenizer", "t", "--rank", "4"],
        "`--rank 4` without adapters",
        "--lora --rank 4",
    ),
    "merge without lora": (
        ["finetune-ctc", "SAID", "--tokenizer", "t", "--merge"],
        "`--merge` without adapters",
        "--lora --merge",
    ),
    "weight without a language model": (
        ["transcribe", "SAID", "--model", "TEACHER", "--lm-weight", "3"],
        "`--lm-weight 3` without a language model",
        "--lm lm.arpa --lm-weight 3",
    ),
    "a recipe to distil": (
        ["finetune-ctc", "SAID", "--tokenizer", "t", "--recipe", "paper"],
        "recipe `ROOT/recipes/paper.toml` is for `distilkit distill`, not for `distilkit finetune-ctc`",
        "distilkit recipes",
    ),
    "a recipe to fine-tune": (
        ["distill", "SAID", "--recipe", "ctc", "--teacher", "tiny"],
        "recipe `ROOT/recipes/ctc.toml` is for `distilkit finetune-ctc`, not for `distilkit distill`",
        "distilkit recipes",
    ),
    "no such model": (
        ["transcribe", "SAID", "--model", "./none"],
        "no such model: `./none` is neither a path that exists nor a hub id (`owner/name`)",
        "",
    ),
    "an encoder": (
        ["transcribe", "SAID", "--model", "TEACHER"],
        "`TEACHER` is no recogniser: it is a `HubertModel`, without a CTC head",
        "distilkit finetune-ctc DATA --tokenizer DIR --model TEACHER",
    ),
    "no recogniser": (
        ["transcribe", "SAID"],
        "no recogniser under `runs`",
        "--model DIR, or distilkit finetune-ctc DATA --tokenizer DIR",
    ),
    "times in plain text": (
        ["transcribe", "SAID", "--timestamps"],
        "`--timestamps` has no place in `--format txt`",
        "--format json",
    ),
    "subtitles of a folder": (
        ["transcribe", "SAID", "--format", "srt", "--model", "TEACHER"],
        "`--format srt` of several files needs a folder",
        "--out FOLDER",
    ),
    "no language model": (
        ["transcribe", "SAID", "--model", "TEACHER", "--lm", "none.arpa"],
        "no language model `none.arpa`",
        "",
    ),
    "sound without text": (
        ["evaluate", "SOUND", "--model", "MADE"],
        "no text in `SOUND`: 12 audio files",
        "",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_problem_and_one_hint(
    name: str,
    run: Run,
    transcribed: Path,
    speech: Path,
    teacher_folder: Path,
    letters: Path,
    tmp_path: Path,
) -> None:
    root = Path(__file__).resolve().parents[1]
    arguments, problem, hint = ERRORS[name]
    named = {
        "SAID": str(transcribed), "TEACHER": str(teacher_folder), "SOUND": str(speech), "ROOT": str(root),
    }  # fmt: skip
    if "MADE" in arguments:
        from test_recognisers import made

        from distilkit import recognisers

        recognisers.save(made(teacher_folder, letters), tmp_path / "made", "#\n")
        named["MADE"] = str(tmp_path / "made")

    def filled(text: str) -> str:
        for word, value in named.items():
            text = text.replace(word, value)
        return text

    before = sorted(Path().rglob("*"))
    code, out, err = run(*[filled(argument) for argument in arguments])
    assert (code, out) == (1, ""), err
    said = err[err.index("error: ") :]
    assert said.startswith(f"error: {filled(problem)}"), said
    assert filled(hint) in said
    assert err.count("error:") == 1
    assert "Traceback" not in err
    assert sorted(Path().rglob("*")) == before


def test_what_cannot_be_transcribed_ends_with_status_1(
    run: Run, tuned: Path, tmp_path: Path
) -> None:
    (tmp_path / "mixed").mkdir()
    soundfile.write(tmp_path / "mixed" / "good.wav", voice(1.0, 1), 16_000)
    (tmp_path / "mixed" / "bad.wav").write_bytes(b"RIFF")
    code, out, err = run("transcribe", tmp_path / "mixed")
    assert code == 1
    assert out.startswith("good.wav\t")
    assert "bad.wav: cannot be decoded" in err


def test_resuming_keeps_everything(run: Run, tuned: Path) -> None:
    shutil.rmtree(tuned / "model")
    code, _, err = run("finetune-ctc", "--resume", "--out", tuned, "--seed", "3")
    assert code == 1
    assert "`train.seed=3` cannot change them" in err
    code, _, err = run("finetune-ctc", "--resume", "--out", tuned, "--recipe", "ctc-tiny")
    assert code == 1
    assert "`--recipe ctc-tiny` cannot change them" in err
    Path("others").mkdir()
    code, _, err = run("finetune-ctc", "others", "--resume", "--out", tuned)
    assert code == 1
    assert f"`{tuned}` began with" in err
    code, _, err = run("finetune-ctc", "--resume", "--merge", "--out", tuned)
    assert code == 1
    assert "`--merge` without adapters" in err
    code, out, _ = run("finetune-ctc", "--resume", "--out", tuned, "--plan")
    assert code == 0
    assert " 0 steps of " in out  # all of them are done
    code, out, err = run("finetune-ctc", "--resume")
    assert (code, out) == (0, "runs/said/model\n"), err
