"""Transcribed data: every layout gives the same utterances, and all that is left out is listed."""

import builtins
import gzip
import io
import json
import os
import re
import shutil
import tarfile
import tracemalloc
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import soundfile
from conftest import voice
from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment
from pyarrow import parquet

from distilkit.audio import SAMPLE_RATE
from distilkit.config import Transcribed
from distilkit.data import Collection, dump_windows, layouts, load_windows, sources, tables
from distilkit.data import transcripts as data
from distilkit.data.layouts import LAYOUTS
from distilkit.data.scan import Skipped
from distilkit.data.splits import hold_out
from distilkit.data.transcripts import Transcripts, facts, read, texts
from distilkit.errors import DistilkitError

Rows = list[dict[str, Any]]
SETTINGS = Transcribed()
SECONDS = {"ada-1-0001": 0.8, "ada-1-0002": 1.3, "bo-1-0001": 1.05}
CLIPS = {
    "ada-1-0001": ("Hello, world", "ada"),
    "ada-1-0002": ("Grüße aus Köln – 日本", "ada"),
    "bo-1-0001": ('she said "two, or three"', "bo"),
}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The three clips as they come out of a 16-bit file."""
    folder, found = tmp_path_factory.mktemp("clips"), {}
    for seed, (name, seconds) in enumerate(SECONDS.items()):
        soundfile.write(folder / "x.wav", voice(seconds, seed), SAMPLE_RATE, "PCM_16")
        found[name] = soundfile.read(folder / "x.wav", dtype="float32")[0]
    return found


Sounds = dict[str, np.ndarray]


def put(path: Path, sound: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, SAMPLE_RATE, "PCM_16")
    return path


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def write_json(path: Path, rows: Iterable[object]) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


def csv_of(rows: Rows, sign: str = ",", end: str = "\n") -> str:
    def cell(value: object) -> str:
        return '"' + str(value).replace('"', '""') + '"'

    lines = [sign.join(rows[0]), *(sign.join(map(cell, row.values())) for row in rows)]
    return end.join(lines) + end


def table_rows(suffix: str = ".flac") -> Rows:
    return [
        {"file_name": name + suffix, "transcription": text, "speaker": speaker}
        for name, (text, speaker) in CLIPS.items()
    ]


# ------------------------------------------------------------------- the same clips in each layout


def audiofolder(root: Path, sounds: Sounds) -> Path:
    for name, sound in sounds.items():
        put(root / f"{name}.flac", sound)
    write(root / "metadata.csv", "\ufeff" + csv_of(table_rows(), end="\r\n"))
    return root


def audiofolder_semicolons(root: Path, sounds: Sounds) -> Path:
    audiofolder(root, sounds)
    write(root / "metadata.csv", csv_of(table_rows(), sign=";"))
    return root


def audiofolder_splits(root: Path, sounds: Sounds) -> Path:
    for row in table_rows(".wav"):
        part = root / ("train" if row["speaker"] == "ada" else "test")
        put(part / "deep" / row["file_name"], sounds[row["file_name"].removesuffix(".wav")])
        row["file_name"] = f"deep/{row['file_name']}"
        with (part / "metadata.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    return root


def audiofolder_parquet(root: Path, sounds: Sounds) -> Path:
    audiofolder(root, sounds)
    (root / "metadata.csv").unlink()
    parquet.write_table(pyarrow.Table.from_pylist(table_rows()), root / "metadata.parquet")
    return root


def embedded_parquet(root: Path, sounds: Sounds) -> Path:
    root.mkdir()
    rows = []
    for row in table_rows(".wav"):
        file = io.BytesIO()
        sound = sounds[row["file_name"].removesuffix(".wav")]
        soundfile.write(file, sound, SAMPLE_RATE, "PCM_16", format="WAV")
        audio = {"bytes": file.getvalue(), "path": "audio.wav"}
        rows.append({"audio": audio, "text": row["transcription"], "speaker_id": row["speaker"]})
    parquet.write_table(pyarrow.Table.from_pylist(rows), root / "train-00000-of-00001.parquet")
    return root


def table_alone(root: Path, sounds: Sounds) -> Path:
    return audiofolder(root, sounds) / "metadata.csv"


def librispeech(root: Path, sounds: Sounds) -> Path:
    for name, sound in sounds.items():
        speaker, chapter, _ = name.split("-")
        folder = root / "dev" / speaker / chapter
        put(folder / f"{name}.flac", sound)
        with (folder / f"{speaker}-{chapter}.trans.txt").open("a", encoding="utf-8") as file:
            file.write(f"{name} {CLIPS[name][0]}\n")
    return root


def ljspeech(root: Path, sounds: Sounds) -> Path:
    for name, sound in sounds.items():
        put(root / "wavs" / f"{name}.wav", sound)
    rows = "".join(f"{name}|unused|{text}\n" for name, (text, _) in CLIPS.items())
    write(root / "metadata.csv", rows)
    return root


def common_voice(root: Path, sounds: Sounds) -> Path:
    lines = ["client_id\tpath\tsentence\tlocale"]
    for name, (text, speaker) in CLIPS.items():
        put(root / "clips" / f"{name}.wav", sounds[name])
        lines.append(f"{speaker}\t{name}.wav\t{text}\tde")
    write(root / "validated.tsv", "\n".join(lines) + "\n")
    write(root / "invalidated.tsv", f"{lines[0]}\n{lines[1]} never\n")
    return root


def common_voice_table(root: Path, sounds: Sounds) -> Path:
    return common_voice(root, sounds) / "validated.tsv"


def kaldi(root: Path, sounds: Sounds) -> Path:
    for name, sound in sounds.items():
        put(root / "audio" / f"{name}.wav", sound)
    write(root / "wav.scp", "".join(f"{name} audio/{name}.wav\n" for name in CLIPS))
    write(root / "text", "".join(f"{name} {text}\n" for name, (text, _) in CLIPS.items()))
    write(root / "utt2spk", "".join(f"{name}\t{who}\n" for name, (_, who) in CLIPS.items()))
    return root


def whole(sounds: Sounds) -> tuple[np.ndarray, dict[str, tuple[float, float]]]:
    """One recording with all clips after half a second of quiet, and where each is in seconds."""
    parts, places, at = [np.zeros(8000, np.float32)], {}, 0.5
    for name, sound in sounds.items():
        places[name] = (at, len(sound) / SAMPLE_RATE)
        parts.append(sound)
        at += len(sound) / SAMPLE_RATE
    return np.concatenate([*parts, np.zeros(8000, np.float32)]), places


def kaldi_segments(root: Path, sounds: Sounds) -> Path:
    kaldi(root, sounds)
    shutil.rmtree(root / "audio")
    sound, places = whole(sounds)
    wav = put(root / "audio" / "long.wav", sound)
    write(root / "wav.scp", f"long {wav.absolute()}\n")
    rows = (f"{name} long {at:.4f} {at + length:.4f}\n" for name, (at, length) in places.items())
    write(root / "segments", "".join(rows))
    return root


def nemo(root: Path, sounds: Sounds) -> Path:
    rows = []
    for name, (text, speaker) in CLIPS.items():
        put(root / "audio" / f"{name}.wav", sounds[name])
        length = round(SECONDS[name], 2)
        row = {"audio_filepath": f"audio/{name}.wav", "duration": length, "text": text}
        rows.append({**row, "speaker": speaker})
    write_json(root / "train_manifest.json", rows)
    return root


def nemo_offsets(root: Path, sounds: Sounds) -> Path:
    sound, places = whole(sounds)
    wav = put(root / "elsewhere" / "long.wav", sound)
    rows = [
        {
            "audio_filepath": str(wav.absolute()),
            "offset": places[name][0],
            "duration": places[name][1],
            "text": text,
            "speaker": speaker,
        }
        for name, (text, speaker) in CLIPS.items()
    ]
    return write_json(root / "manifest.jsonl", rows)


def recording(name: str, path: Path) -> Recording:
    samples = soundfile.info(path).frames
    return Recording(
        id=name,
        sources=[AudioSource(type="file", channels=[0], source=str(path))],
        sampling_rate=SAMPLE_RATE,
        num_samples=samples,
        duration=samples / SAMPLE_RATE,
    )


def lhotse_cuts(root: Path, sounds: Sounds) -> CutSet:
    """One cut with all, which begins at 0.25 s; and its supervisions."""
    sound, places = whole(sounds)
    long = recording("long", put(root / "audio" / "long.wav", sound))
    supervisions = [
        SupervisionSegment(
            id=name,
            recording_id="long",
            start=places[name][0] - 0.25,
            duration=places[name][1],
            text=text,
            speaker=speaker,
        )
        for name, (text, speaker) in CLIPS.items()
    ]
    return CutSet.from_cuts(
        [
            MonoCut(
                id="cut",
                start=0.25,
                duration=long.duration - 0.25,
                channel=0,
                recording=long,
                supervisions=supervisions,
            )
        ]
    )


def table_offsets(root: Path, sounds: Sounds) -> Path:
    """Parts of one recording in a table, whose columns begin with capitals."""
    sound, places = whole(sounds)
    put(root / "all.wav", sound)
    rows = ["File_Name,Offset,Duration,Text,Speaker"]
    rows += [
        ",".join(["all.wav", *map(str, places[x]), '"' + text.replace('"', '""') + '"', who])
        for x, (text, who) in CLIPS.items()
    ]
    write(root / "metadata.csv", "\n".join(rows) + "\n")
    return root


def lhotse_file(root: Path, sounds: Sounds) -> Path:
    lhotse_cuts(root, sounds).to_file(root / "cuts.jsonl.gz")
    return root / "cuts.jsonl.gz"


def lhotse_pairs(root: Path, sounds: Sounds) -> Path:
    recordings, supervisions = [], []
    for name, (text, speaker) in CLIPS.items():
        path = put(root / "audio" / f"{name}.wav", sounds[name])
        row = recording(name, path).to_dict()
        row["sources"][0]["source"] = f"audio/{name}.wav"
        recordings.append(row)
        words = SupervisionSegment(
            id=f"{name}-words",
            recording_id=name,
            start=0.0,
            duration=SECONDS[name],
            text=text,
            speaker=speaker,
        )
        supervisions.append(words.to_dict())
    write_json(root / "x_recordings_dev.jsonl.gz", recordings)
    write_json(root / "x_supervisions_dev.jsonl.gz", supervisions)
    return root


def lhotse_half(root: Path, sounds: Sounds) -> Path:
    return lhotse_pairs(root, sounds) / "x_supervisions_dev.jsonl.gz"


def shar(root: Path, sounds: Sounds, format: str = "flac") -> Path:
    cuts = lhotse_cuts(root.parent / "raw", sounds).trim_to_supervisions(keep_overlapping=False)
    root.mkdir()
    cuts.to_shar(root, fields={"recording": format}, shard_size=2)
    return root


def sidecars(root: Path, sounds: Sounds) -> Path:
    for name, (text, _) in CLIPS.items():
        put(root / "ünï code" / f"{name}.flac", sounds[name])
        suffix = ".lab" if name.startswith("b") else ".txt"
        write(root / "ünï code" / f"{name}{suffix}", text.replace(" ", "\n", 1) + "\n")
    return root


def capitals(
    make: Callable[[Path, Sounds], Path], names: dict[str, str]
) -> Callable[[Path, Sounds], Path]:
    """A corpus whose tables or text files have other names."""

    def made(root: Path, sounds: Sounds) -> Path:
        make(root, sounds)
        for old, new in names.items():
            for path in [*root.rglob(f"*{old}")]:
                path.rename(path.with_name(path.name.replace(old, new)))
        return root

    return made


def ljspeech_once(root: Path, sounds: Sounds) -> Path:
    """Without texts that are spelled out, which is a column that is empty."""
    ljspeech(root, sounds)
    write(root / "metadata.csv", "".join(f"{x}|{text}|\n" for x, (text, _) in CLIPS.items()))
    return root


CORPORA: dict[str, tuple[Callable[[Path, Sounds], Path], str]] = {
    "audiofolder": (audiofolder, "audiofolder"),
    "audiofolder with semicolons": (audiofolder_semicolons, "audiofolder"),
    "audiofolder in splits": (audiofolder_splits, "audiofolder"),
    "audiofolder, parquet": (audiofolder_parquet, "audiofolder"),
    "audio in parquet": (embedded_parquet, "audiofolder"),
    "table alone": (table_alone, "audiofolder"),
    "audiofolder with offsets": (table_offsets, "audiofolder"),
    "LibriSpeech": (librispeech, "LibriSpeech"),
    "LJSpeech": (ljspeech, "LJSpeech"),
    "LJSpeech, its second text empty": (ljspeech_once, "LJSpeech"),
    "LJSpeech in capitals": (capitals(ljspeech, {"metadata.csv": "METADATA.CSV"}), "LJSpeech"),
    "Common Voice in capitals": (
        capitals(common_voice, {"validated.tsv": "VALIDATED.TSV"}),
        "Common Voice",
    ),
    "text files in capitals": (capitals(sidecars, {".txt": ".Txt", ".lab": ".LAB"}), "text files"),
    "Common Voice": (common_voice, "Common Voice"),
    "Common Voice table": (common_voice_table, "Common Voice"),
    "Kaldi": (kaldi, "Kaldi"),
    "Kaldi with segments": (kaldi_segments, "Kaldi"),
    "NeMo": (nemo, "NeMo"),
    "NeMo with offsets": (nemo_offsets, "NeMo"),
    "lhotse cuts": (lhotse_file, "lhotse"),
    "lhotse pairs": (lhotse_pairs, "lhotse"),
    "lhotse, one of a pair": (lhotse_half, "lhotse"),
    "lhotse Shar": (shar, "lhotse Shar"),
    "text files": (sidecars, "text files"),
}
NO_SPEAKERS = {"LJSpeech", "text files"}


def test_every_layout_has_a_corpus() -> None:
    assert {layout for _, layout in CORPORA.values()} == set(LAYOUTS)


@pytest.mark.parametrize("name", CORPORA)
def test_every_layout_gives_the_same(name: str, tmp_path: Path, sounds: Sounds) -> None:
    make, layout = CORPORA[name]
    place = make(tmp_path / "data", sounds)
    found = read([place], SETTINGS, cache=tmp_path / "cache")
    assert found.layouts == (layout,)
    assert found.skipped == []
    assert len({cut.id for cut in found.cuts}) == len(found.cuts) == 3
    by_text = {cut.supervisions[0].text: cut for cut in found.cuts}
    for clip, (text, speaker) in CLIPS.items():
        cut = by_text.get(text) or by_text[text.replace(" ", "\n", 1)]
        (words,) = cut.supervisions
        assert words.speaker == (None if layout in NO_SPEAKERS else speaker)
        assert words.language == ("de" if layout == "Common Voice" else None)
        assert (words.start, words.duration) == (0.0, cut.duration)
        assert words.recording_id == cut.recording.id
        np.testing.assert_array_equal(cut.load_audio()[0], sounds[clip])
        assert Path(cut.custom["source"]).is_file()
        assert Path(cut.custom["source"]).is_absolute()
    said = [" ".join(text.split()) for text in texts([place])[0]]
    assert sorted(said) == sorted(text for text, _ in CLIPS.values())


def test_other_rates_and_formats_are_decoded_once(tmp_path: Path, sounds: Sounds) -> None:
    for kind in ("wav", "mp3"):
        place = shar(tmp_path / kind / "shar", sounds, kind)
        found = read([place], SETTINGS, cache=tmp_path / "cache")
        assert found.skipped == []
        assert [cut.duration for cut in found.cuts] == pytest.approx([*SECONDS.values()], abs=0.15)
        copies = {path: path.stat().st_ino for path in (tmp_path / "cache").rglob("*")}
        read([place], SETTINGS, cache=tmp_path / "cache")
        assert copies == {path: path.stat().st_ino for path in (tmp_path / "cache").rglob("*")}
    root = tmp_path / "data"
    soundfile.write(put(root / "a.wav", sounds["bo-1-0001"]), voice(1.0, 3, 44_100), 44_100)
    write(root / "a.txt", "one")
    (cut,) = read([root], SETTINGS, cache=tmp_path / "own").cuts
    assert cut.duration == 1.0
    assert cut.recording.sources[0].source.startswith(str(tmp_path / "own"))
    assert cut.custom["source"] == str(root / "a.wav")
    copies = {path: path.stat().st_mtime_ns for path in (tmp_path / "own").rglob("*.flac")}
    read([root], SETTINGS, cache=tmp_path / "own")
    assert copies == {path: path.stat().st_mtime_ns for path in (tmp_path / "own").rglob("*.flac")}
    assert len(copies) == 1


def test_cuts_survive_a_manifest(tmp_path: Path, sounds: Sounds) -> None:
    found = read([kaldi_segments(tmp_path / "data", sounds)], SETTINGS, cache=tmp_path)
    train, valid = hold_out(found.cuts, SETTINGS, 0)
    whole = Collection(train=train, valid=valid, skipped=[], recordings=1, formats={})
    path = tmp_path / "audio.jsonl.gz"
    path.write_bytes(dump_windows(whole))
    for before, after in zip((train, valid), load_windows(path), strict=True):
        assert [cut.supervisions for cut in after] == [cut.supervisions for cut in before]
        for old, new in zip(before, after, strict=True):
            assert new.custom["source"] == old.custom["source"]
            np.testing.assert_array_equal(new.load_audio(), old.load_audio())


ODD = (
    b"",
    b"\n\n",
    b"a\nb",
    b"\xef\xbb\xbfa\r\nb\r\n\xef\xbb\xbfc\n",
    b"a\rb\r\r\nc\r",
    "ä\u2028ö\x0b\x1cü\n\nß".encode(),
)


@pytest.mark.parametrize("content", ODD)
@pytest.mark.parametrize("ending", ["txt", "txt.gz"])
def test_lines_are_those_of_the_text(content: bytes, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"lines.{ending}"
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    lines = enumerate(tables.text_of(path).split("\n"), start=1)
    assert list(tables.lines_of(path)) == [(n, line) for n, line in lines if line.strip()]


def test_a_large_manifest_is_read_as_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1, "text": "x"}\n' * 200_000 + "no row\n")
    table = tmp_path / "rows.csv"
    table.write_text("file_name,text\n" + "a.wav,one two three\n" * 200_000 + '"\n')
    tracemalloc.start()
    for rows, said in (
        (tables.json_lines(path), "line 200001"),
        (tables.table(table)[1], "line 200002"),
    ):
        with pytest.raises(DistilkitError, match=said):
            for _, row in rows:
                assert row["text"]  # type: ignore[index]
    assert tracemalloc.get_traced_memory()[1] < 2**21  # the files have 4 MiB each
    tracemalloc.stop()


def test_utterances_of_one_file_share_what_they_have_in_common(
    tmp_path: Path, sounds: Sounds
) -> None:
    found = read([kaldi_segments(tmp_path / "data", sounds)], SETTINGS, cache=tmp_path)
    cuts = list(found.cuts)
    alike = [one.recording.id == other.recording.id for one, other in pairwise(cuts)]
    assert True in alike
    assert [one.recording is other.recording for one, other in pairwise(cuts)] == alike
    assert [one.custom is other.custom for one, other in pairwise(cuts)] == alike


def test_several_inputs(tmp_path: Path, sounds: Sounds) -> None:
    a, b = ljspeech(tmp_path / "a", sounds), audiofolder(tmp_path / "b", sounds)
    write(b / "metadata.csv", csv_of([{**r, "transcription": "new"} for r in table_rows()]))
    seen: list[Any] = []

    def track(items: Iterable[Any], *, description: str, total: int) -> Iterable[Any]:
        seen.append(total)
        return items

    found = read([a, b], SETTINGS, cache=tmp_path, track=track)
    assert found.layouts == ("LJSpeech", "audiofolder")
    assert len({cut.id for cut in found.cuts}) == 6
    assert {cut.id.partition("/")[0] for cut in found.cuts} == {"a", "b"}
    assert seen == [6]
    again = read([a, a], SETTINGS, cache=tmp_path)
    assert len(again.cuts) == 3
    assert again.reasons() == {"duplicate": 3}


def test_the_first_layout_wins(tmp_path: Path, sounds: Sounds) -> None:
    place = audiofolder(tmp_path / "data", sounds)
    write(place / "ada-1-0001.txt", "other words")
    assert read([place], SETTINGS, cache=tmp_path).layouts == ("audiofolder",)
    kaldi(place, sounds)
    found = read([place], SETTINGS, cache=tmp_path)
    assert found.layouts == ("Kaldi",)
    assert list(LAYOUTS).index("Kaldi") < list(LAYOUTS).index("audiofolder")


# ------------------------------------------------------------------------------- what is left out


@pytest.fixture
def folder(tmp_path: Path, sounds: Sounds) -> Path:
    """Six recordings a to f as an audiofolder with a text for each; tests change something."""
    root = tmp_path / "data"
    for seed, name in enumerate("abcdef"):
        put(root / f"{name}.wav", voice(0.6, 40 + seed))
    write(root / "metadata.csv", "file_name,text\n" + "".join(f"{n}.wav,{n} x\n" for n in "abcdef"))
    return root


def add(folder: Path, row: str) -> None:
    with (folder / "metadata.csv").open("a") as file:
        file.write(row + "\n")


def left_out(found: Transcripts) -> list[tuple[str, str, str]]:
    return [(Path(item.path).name, item.kind, item.reason) for item in found.skipped]


def test_nothing_is_left_out_of_the_plain_folder(folder: Path) -> None:
    found = read([folder], SETTINGS)
    assert left_out(found) == []
    assert [cut.id for cut in found.cuts] == [f"{name}.wav" for name in "abcdef"]


def test_text_without_audio_and_audio_without_text(folder: Path) -> None:
    put(folder / "deep" / "more.wav", voice(0.6, 9))
    add(folder, "gone.wav,words")
    found = read([folder], SETTINGS)
    assert len(found.cuts) == 6
    assert left_out(found) == [
        ("more.wav", "no text", "no transcript names it"),
        ("gone.wav", "no audio", "there is no such file"),
    ]


def test_two_texts_for_one_file(folder: Path) -> None:
    add(folder, "a.wav,other words")
    add(folder, "b.wav,b  x")
    found = read([folder], SETTINGS)
    assert [cut.id for cut in found.cuts] == [f"{name}.wav" for name in "bcdef"]
    assert left_out(found) == [
        ("a.wav", "two texts", "2 texts for it: a x / other words"),
        ("a.wav", "two texts", "2 texts for it: a x / other words"),
        ("b.wav", "duplicate", "the same audio with the same text was there before"),
    ]


def test_two_texts_for_one_file_in_kaldi_and_beside_it(tmp_path: Path, sounds: Sounds) -> None:
    place = kaldi(tmp_path / "kaldi", sounds)
    with (place / "text").open("a") as file:
        file.write("bo-1-0001 other\n")
    found = read([place], SETTINGS)
    assert len(found.cuts) == 2
    assert found.reasons() == {"two texts": 2}
    place = sidecars(tmp_path / "beside", sounds)
    write(place / "ünï code" / "bo-1-0001.txt", "other")
    found = read([place], SETTINGS)
    assert len(found.cuts) == 2
    assert found.reasons() == {"two texts": 2}


def test_the_same_sound_under_two_names(folder: Path) -> None:
    for name in ("same", "other"):
        shutil.copy(folder / "a.wav", folder / f"{name}.wav")
    add(folder, "same.wav,a x")
    add(folder, "other.wav,other words")
    found = read([folder], SETTINGS)
    assert left_out(found) == [("same.wav", "duplicate", "same sound and text as a.wav")]
    by_id = {cut.id: cut for cut in found.cuts}
    assert by_id["other.wav"].supervisions[0].text == "other words"
    assert by_id["other.wav"].custom["source"] == str(folder / "other.wav")
    # One recording, so that a split cannot part them.
    assert by_id["other.wav"].recording.id == by_id["a.wav"].recording.id == "a.wav"


def test_empty_texts(folder: Path) -> None:
    add(folder, 'g.wav,"  "')
    put(folder / "g.wav", voice(0.6, 9))
    found = read([folder], SETTINGS)
    assert left_out(found) == [("g.wav", "empty text", "its transcript is empty")]
    write(folder / "metadata.csv", "file_name,text\na.wav,\nb.wav,\n")
    problem, hint = refused(folder)
    assert problem == f"no words in `{folder}`: 2 transcripts, and all of them are empty"
    assert hint.startswith("--text-column")


def test_too_short_too_long_and_silent(folder: Path) -> None:
    put(folder / "blip.wav", voice(0.02, 1))
    put(folder / "short.wav", voice(0.09, 2))
    put(folder / "long.wav", voice(1.2, 3))
    put(folder / "quiet.wav", np.zeros(16_000, np.float32))
    write(folder / "noise.wav", "RIFF????WAVEfmt nothing")
    for name in ("blip", "short", "long", "quiet", "noise"):
        add(folder, f"{name}.wav,words")
    found = read([folder], Transcribed(max_seconds=1.0))
    assert [cut.id for cut in found.cuts] == [f"{name}.wav" for name in "abcdef"]
    listed = {name: (kind, reason) for name, kind, reason in left_out(found)}
    assert listed["short.wav"] == ("too short", "0.090 s is shorter than 0.1 s")
    assert listed["long.wav"] == ("too long", "1.20 s is longer than 1 s")
    assert listed["blip.wav"] == ("unusable", "0.020 s is shorter than 0.025 s")
    assert listed["quiet.wav"] == ("unusable", "silent: 1.0 s below -70 dBFS")
    assert listed["noise.wav"][0] == "unusable"
    assert set(listed) == {"short.wav", "long.wav", "blip.wav", "quiet.wav", "noise.wav"}
    (long,) = (item for item in found.skipped if item.kind == "too long")
    assert long.seconds == pytest.approx(1.2)


def test_parts_of_a_recording(tmp_path: Path, sounds: Sounds) -> None:
    sound = np.concatenate([voice(2.0, 5), np.zeros(70 * SAMPLE_RATE, np.float32), voice(2.0, 6)])
    put(tmp_path / "data" / "a.wav", sound)
    parts = [
        (0.0, 1.0, "first"),
        (1.0, 0.05, "short"),
        (30.0, 5.0, "silent"),
        (73.0, 1.08, "to the end"),
        (73.0, 2.0, "beyond"),
        (90.0, 1.0, "far beyond"),
        (72.5, 1.495, "nearly to the end"),
        (72.5, 1.48, "not to the end"),
        (1.0, 0.5, "half"),
    ]
    rows = [
        {"audio_filepath": "a.wav", "text": text, "offset": start, "duration": seconds}
        for start, seconds, text in parts
    ]
    write_json(tmp_path / "data" / "m.json", rows)
    found = read([tmp_path / "data"], SETTINGS)
    assert [
        (cut.supervisions[0].text, cut.start, cut.duration, cut.recording.id) for cut in found.cuts
    ] == [
        ("first", 0.0, 1.0, "a.wav"),
        ("to the end", 73.0, 1.0, "a.wav"),
        ("nearly to the end", 72.5, 1.5, "a.wav"),
        ("not to the end", 72.5, 1.48, "a.wav"),
        ("half", 1.0, 0.5, "a.wav"),
    ]
    np.testing.assert_array_equal(
        found.cuts[-1].load_audio()[0],
        soundfile.read(tmp_path / "data" / "a.wav", dtype="float32")[0][16_000:24_000],
    )
    assert [(item.kind, item.reason) for item in found.skipped] == [
        ("too short", "`a.wav@1`: 0.050 s is shorter than 0.1 s"),
        ("unusable", "`a.wav@30`: silent"),
        ("unusable", "`a.wav@73`: ends at 75.00 s of a recording of 74.00 s"),
        ("unusable", "`a.wav@90`: ends at 91.00 s of a recording of 74.00 s"),
    ]


def test_paths_that_climb_out(folder: Path, tmp_path: Path) -> None:
    outside = put(tmp_path / "outside.wav", voice(0.6, 9))
    (folder / "link.wav").symlink_to(outside)
    for name in ("../outside.wav", str(outside), "x/../../outside.wav", "link.wav"):
        add(folder, f"{name},words")
    found = read([folder], SETTINGS)
    assert [cut.id for cut in found.cuts][6:] == ["link.wav"]
    assert found.reasons() == {"outside": 3}
    assert found.skipped[0].reason == f"leads out of `{folder}` (metadata.csv, line 8)"


@pytest.mark.parametrize("make", [librispeech, ljspeech, common_voice], ids=lambda x: x.__name__)
def test_names_that_climb_out(
    make: Callable[[Path, Sounds], Path], tmp_path: Path, sounds: Sounds
) -> None:
    put(tmp_path / "data" / "outside.wav", voice(0.6, 9))
    put(tmp_path / "data" / "dev" / "outside.flac", voice(0.6, 9))
    place = make(tmp_path / "data", sounds)
    if make is librispeech:
        table, row = place / "dev/ada/1/ada-1.trans.txt", "../../outside words\n"
    elif make is ljspeech:
        table, row = place / "metadata.csv", "../outside|words|words\n"
    else:
        table, row = place / "validated.tsv", "x\t../outside.wav\twords\ten\n"
    with table.open("a") as file:
        file.write(row)
    found = read([place], SETTINGS)
    assert len(found.cuts) == 3
    assert found.reasons()["outside"] == 1


def test_rows_that_do_not_fit(folder: Path) -> None:
    put(folder / "g.wav", voice(0.6, 9))
    add(folder, "g.wav,hello, world")
    add(folder, "g.wav")
    add(folder, ",words")
    found = read([folder], SETTINGS)
    assert len(found.cuts) == 6
    broken = [item.reason for item in found.skipped if item.kind == "broken row"]
    assert broken[0].startswith("line 8: 3 values for 2 columns")
    assert broken[1].startswith("line 9: 1 values for 2 columns")
    assert broken[2] == "a row that names no file (metadata.csv, line 10)"


def test_values_that_are_not_text(folder: Path) -> None:
    good = [{"file_name": f"{n}.wav", "text": 7 if n == "a" else n} for n in "abcd"]
    bad: Rows = [
        {"file_name": "e.wav", "text": ["a", "list"]},
        {"file_name": "f.wav", "text": "\ud800"},
        {"file_name": "\0.wav", "text": "x"},
    ]
    (folder / "metadata.csv").unlink()
    write_json(folder / "metadata.jsonl", [*good, *bad, {"file_name": "e.wav", "text": None}])
    found = read([folder], SETTINGS)
    assert [cut.supervisions[0].text for cut in found.cuts] == ["7", "b", "c", "d"]
    assert found.reasons() == {"broken row": 2, "outside": 1, "empty text": 1, "no text": 1}
    assert dump_windows(
        Collection(train=found.cuts, valid=[], skipped=[], recordings=4, formats={})
    )


def test_kaldi_slips(tmp_path: Path, sounds: Sounds) -> None:
    place = kaldi_segments(tmp_path / "data", sounds)
    with (place / "segments").open("a") as file:
        file.write("no-text long 0.5 1.0\nno-recording lost 0.0 1.0\nbad long zero one\n")
    with (place / "text").open("a") as file:
        file.write("no-recording words\nno-segment words\nbad words\n")
    found = read([place], SETTINGS)
    assert len(found.cuts) == 3
    assert left_out(found) == [
        ("text", "no audio", "`no-recording`: `lost` is not in segments or wav.scp"),
        ("text", "no audio", "`no-segment`: `no-segment` is not in segments or wav.scp"),
        (
            "segments",
            "broken row",
            "`bad long zero one` is not a name, a recording and two times",
        ),
        ("segments", "no text", "`no-text` is not in text"),
    ]


def test_lhotse_slips(tmp_path: Path, sounds: Sounds) -> None:
    place = lhotse_file(tmp_path / "data", sounds)
    (row,) = (json.loads(line) for line in gzip.decompress(place.read_bytes()).splitlines())
    row["recording"]["transforms"] = [{"name": "Resample", "kwargs": {}}]  # we resample anyway
    words = row["supervisions"][0]
    spoken = {**row, "supervisions": [words]}
    stereo = json.loads(json.dumps(spoken))
    stereo["recording"]["sources"][0]["channels"] = [0, 1]
    fast = json.loads(json.dumps(spoken))
    fast["recording"]["transforms"] = [{"name": "Speed", "kwargs": {"factor": 1.1}}]
    early = {**row, "supervisions": [{**words, "start": -9.0}, {**words, "duration": None}]}
    mixed = {"id": "m", "tracks": [], "type": "MixedCut"}

    def listed(*slips: object) -> list[tuple[str, str]]:
        write_json(place, [row, *slips])
        found = read([place.parent], SETTINGS)
        assert [cut.id for cut in found.cuts] == list(CLIPS)
        return [(item.kind, item.reason) for item in found.skipped]

    assert listed(stereo, fast, {**row, "supervisions": []}) == [
        ("broken row", "line 2: `ada-1-0001` is on one of 2 channels of a file"),
        ("broken row", "line 3: `cut` has its sound changed by `Speed`"),
        ("no text", "line 4: `cut` has no supervision"),
    ]
    spread = json.loads(json.dumps(spoken))
    spread["recording"]["sources"] *= 2
    assert listed(spread, {"id": "?", "recording": {"sources": 3}}) == [
        ("broken row", "line 2: `long` is in 2 files, not in one"),
        ("broken row", "line 3: not a row of such a table"),
    ]
    assert listed(early, mixed) == [
        ("broken row", "line 2: `-8.75` where seconds are expected"),
        ("broken row", "line 2: `duration` is missing"),
        ("broken row", "line 3: `recording` is missing"),
    ]


def test_lhotse_pairs_that_do_not_fit(tmp_path: Path, sounds: Sounds) -> None:
    place = lhotse_pairs(tmp_path / "data", sounds)
    table = place / "x_supervisions_dev.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(table.read_bytes()).splitlines()]
    rows[0]["recording_id"] = "lost"
    write_json(table, rows)
    found = read([place], SETTINGS)
    assert len(found.cuts) == 2
    assert left_out(found)[:2] == [
        ("x_supervisions_dev.jsonl.gz", "no audio", "line 1: there is no recording `lost`"),
        ("x_recordings_dev.jsonl.gz", "no text", "`ada-1-0001` has no supervision"),
    ]


def test_a_shard_that_holds_less(tmp_path: Path, sounds: Sounds) -> None:
    place = shar(tmp_path / "data", sounds)
    tar = place / "recording.000000.tar"
    with tarfile.open(tar) as file:
        kept = [(info, file.extractfile(info)) for info in file.getmembers()[:2]]
        with tarfile.open(tmp_path / "new.tar", "w") as new:
            for info, content in kept:
                new.addfile(info, content)
    shutil.move(tmp_path / "new.tar", tar)
    found = read([place], SETTINGS)
    assert len(found.cuts) == 2
    ((name, kind, reason),) = left_out(found)
    assert (name, kind) == ("recording.000000.tar", "no audio")
    assert reason.endswith("of cuts.000000.jsonl.gz is not in it")
    tar.unlink()
    assert refused(place)[0].startswith("2 of 3 transcripts")


def test_a_text_file_without_audio_and_one_that_is_not_text(tmp_path: Path, sounds: Sounds) -> None:
    place = sidecars(tmp_path / "data", sounds)
    write(place / "readme.txt", "about")
    put(place / "x.wav", voice(0.6, 9))
    write(place / "x.txt", "naïve", "latin-1")
    found = read([place], SETTINGS)
    assert len(found.cuts) == 3
    assert left_out(found) == [
        (
            "x.txt",
            "broken row",
            "is not UTF-8: byte 2 (line 1) is 0xef (`iconv -f WINDOWS-1252 -t UTF-8` converts it)",
        ),
        ("readme.txt", "no audio", "no audio file of this name beside it"),
        ("x.wav", "no text", "no transcript names it"),
    ]


# ----------------------------------------------------------------------------------------- errors


def refused(*places: Path, **changes: Any) -> tuple[str, str]:
    with pytest.raises(DistilkitError) as caught:
        read(places, Transcribed(**changes))
    assert caught.value.hint
    return caught.value.problem, caught.value.hint


def test_commands_are_refused_and_never_run(tmp_path: Path, sounds: Sounds) -> None:
    place, ran = kaldi(tmp_path / "data", sounds), tmp_path / "ran"
    for command in (f"touch {ran} |", f"| touch {ran}"):
        write(place / "wav.scp", f"ada-1-0001 {command} \n")
        problem, _ = refused(place)
        assert problem == (
            f"`{place / 'wav.scp'}` has a command for `ada-1-0001`; commands are never run"
        )
    cuts = lhotse_file(tmp_path / "cuts", sounds)
    row = json.loads(gzip.decompress(cuts.read_bytes()))
    row["recording"]["sources"][0] |= {"type": "command", "source": f"touch {ran}"}
    write_json(cuts, [row])
    problem, _ = refused(cuts)
    assert problem == f"`{cuts}` has a source of type `command`; only files are read"
    place = shar(tmp_path / "shar", sounds)
    for path in place.glob("cuts.*"):
        rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        for row in rows:
            row["recording"]["sources"][0] |= {"type": "command", "source": f"touch {ran}"}
        write_json(path, rows)
        tar = path.with_name(path.name.replace("cuts", "recording").replace("jsonl.gz", "tar"))
        with tarfile.open(tar, "w") as file:
            for row in rows:
                for suffix in ("nodata", "nometa"):
                    file.addfile(tarfile.TarInfo(f"{row['id']}.{suffix}"))
    problem, _ = refused(place)
    assert problem.startswith("3 of 3 transcripts")
    assert not ran.exists()


def test_two_entries_for_a_name(tmp_path: Path, sounds: Sounds) -> None:
    place = kaldi(tmp_path / "data", sounds)
    with (place / "wav.scp").open("a") as file:
        file.write("bo-1-0001 audio/ada-1-0001.wav\n")
    problem, _ = refused(place)
    assert problem == (
        f"`{place / 'wav.scp'}` has two entries for `bo-1-0001`, the second on line 4"
    )


@pytest.mark.parametrize(
    ("encoding", "byte", "guess"),
    [("latin-1", "byte 23 (line 2) is 0xfc", "WINDOWS-1252"), ("utf-16", "byte 0 ", "UTF-16")],
    ids=["latin-1", "utf-16"],
)
def test_other_encodings(folder: Path, encoding: str, byte: str, guess: str) -> None:
    table = write(folder / "metadata.csv", "file_name,text\na.wav,Grüße\n", encoding)
    problem, hint = refused(folder)
    assert problem.startswith(f"`{table}` is not UTF-8: {byte}")
    assert hint == f"iconv -f {guess} -t UTF-8 {table} > {folder / 'metadata-utf8.csv'}"


def test_a_wrong_header(folder: Path) -> None:
    table = write(folder / "metadata.csv", "file_name,said,speaker\na.wav,x,y\n")
    problem, hint = refused(folder)
    assert problem == (
        f"`{table}` has no column of text: its columns are `file_name`, `said` and `speaker`; "
        "expected `transcription`, `transcript`, `text`, `sentence`, `normalized_text` or "
        "`normalised_text`"
    )
    assert hint == "--text-column said"
    (cut,) = read([folder], Transcribed(text_column="said")).cuts
    assert cut.supervisions[0].text == "x"
    problem, hint = refused(folder, text_column="sayd")
    assert problem.startswith(f"`{table}` has no column `sayd`: its columns are `file_name`, ")
    assert hint == "did you mean `said`?"
    write(table, "name,text\na.wav,x\n")
    problem, hint = refused(folder)
    assert problem.startswith(
        f"`{table}` has no column of files: its columns are `name` and `text`; expected `file_name`"
    )
    assert "--text-column" in hint


def test_tables_that_are_broken(folder: Path) -> None:
    table = folder / "metadata.csv"
    write(table, 'file_name,text\na.wav,"open\nb.wav,x\n')
    problem, _ = refused(folder)
    assert problem.startswith(f"`{table}` is not a table: line 3: ")
    write(table, "file_name,text\n")
    assert refused(folder)[0] == f"no words in `{folder}`: no transcripts"
    write(table, "")
    assert refused(folder)[0] == f"no words in `{folder}`: no transcripts"
    table.unlink()
    table = write(folder / "metadata.jsonl", '{"file_name": "a.wav", "text": "x"}\n\n{"file\n')
    with pytest.raises(DistilkitError, match=r"is not JSON lines: line 3: Unterminated string"):
        read([folder], SETTINGS)
    write(table, '{"file_name": "a.wav", "text": "x"}\n[1]\n')
    with pytest.raises(DistilkitError, match=r"is not JSON lines: line 2 is not an object"):
        read([folder], SETTINGS)
    manifest = write(folder / "m.jsonl", '{"audio_filepath"\n')
    with pytest.raises(DistilkitError, match=r"m.jsonl` is not JSON lines: line 1: "):
        read([manifest], SETTINGS)
    write(manifest, '{"audio_filepath": "a.wav", "text": "x"}\n' + "[" * 100_000)
    with pytest.raises(DistilkitError, match=r"m.jsonl` is not JSON lines: line 2: "):
        read([manifest], SETTINGS)


def test_a_line_separator_inside_a_text(folder: Path) -> None:
    table = folder / "metadata.csv"
    table.unlink()
    text = '{"file_name": "a.wav", "text": "one\u2028two\x85three"}\n'
    write(folder / "metadata.jsonl", text)
    (cut,) = read([folder], SETTINGS).cuts
    assert cut.supervisions[0].text == "one\u2028two\x85three"


def test_quoted_commas_newlines_and_quotes(folder: Path) -> None:
    write(folder / "metadata.csv", 'text,File_Name\r\n"a ""b"",\r\nc",a.wav\r\n"d",b.wav\r\n')
    found = read([folder], SETTINGS)
    assert [cut.supervisions[0].text for cut in found.cuts] == ['a "b",\nc', "d"]


def test_other_suffixes(tmp_path: Path, sounds: Sounds) -> None:
    place = ljspeech(tmp_path / "lj", sounds)
    (place / "wavs" / "bo-1-0001.wav").unlink()
    put(place / "wavs" / "bo-1-0001.flac", sounds["bo-1-0001"])
    put(place / "wavs" / "ada-1-0002.flac", sounds["bo-1-0001"])  # the layout's own suffix wins
    text = (place / "metadata.csv").read_text(encoding="utf-8")
    write(place / "metadata.csv", text.replace("ada-1-0001|", "ada-1-0001.wav|") + "lost|x|y\n")
    found = read([place], SETTINGS)
    assert sorted(Path(item.custom["source"]).name for item in found.cuts) == [
        "ada-1-0001.wav",
        "ada-1-0002.wav",
        "bo-1-0001.flac",
    ]
    assert left_out(found) == [
        ("ada-1-0002.flac", "no text", "no transcript names it"),
        ("lost.wav", "no audio", "there is no such file"),
    ]


def test_other_suffixes_in_capitals_and_in_the_other_unicode_form(tmp_path: Path) -> None:
    write(tmp_path / "metadata.csv", unicodedata.normalize("NFC", "jürgen|one|one\nzoë|two|two\n"))
    for name in ("Zoë.wav", "jürgen.FLAC", "zoë.WAV"):
        put(tmp_path / "wavs" / unicodedata.normalize("NFD", name), voice(0.6, 9))
    found = read([tmp_path], SETTINGS)
    names = [Path(item.custom["source"]).name for item in found.cuts]
    assert [unicodedata.normalize("NFC", name) for name in names] == ["jürgen.FLAC", "zoë.WAV"]


@pytest.mark.parametrize("make", [librispeech, ljspeech], ids=lambda x: x.__name__)
def test_names_of_files_that_are_not_there_cost_little(
    make: Callable[[Path, Sounds], Path],
    tmp_path: Path,
    sounds: Sounds,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not a look for each suffix that audio may have, for each of a million rows."""
    place = make(tmp_path / "data", sounds)
    table = place / ("metadata.csv" if make is ljspeech else "dev/ada/1/ada-1.trans.txt")
    row = "lost-{}|x|y\n" if make is ljspeech else "lost-{} x\n"
    with table.open("a") as file:
        file.writelines(row.format(number) for number in range(1000))
    looks: list[object] = []
    isfile = os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: looks.append(path) or isfile(path))
    said, _ = texts([place])
    assert len(said) == 1003
    assert len(looks) < 4 * len(said)


def test_a_text_may_be_a_link(tmp_path: Path) -> None:
    put(tmp_path / "data" / "a.wav", voice(0.6, 9))
    write(tmp_path / "elsewhere.txt", "one two\n")
    (tmp_path / "data" / "a.txt").symlink_to("../elsewhere.txt")
    (cut,) = read([tmp_path / "data"], SETTINGS).cuts
    assert cut.supervisions[0].text == "one two"


def test_what_is_hidden_is_no_table(folder: Path) -> None:
    write(folder / ".cache" / "metadata.csv", "x,y\n")
    write(folder / "._metadata.csv", "x,y\n")
    assert len(read([folder], SETTINGS).cuts) == 6


def test_a_table_alone_says_nothing_of_other_audio(folder: Path) -> None:
    put(folder / "more.wav", voice(0.6, 9))
    assert read([folder / "metadata.csv"], SETTINGS).skipped == []
    assert read([folder], SETTINGS).reasons() == {"no text": 1}


def test_names_that_count_from_where_we_are(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    table = tmp_path / "manifests" / "m.jsonl"
    write_json(table, [{"audio_filepath": "a.wav", "text": "x"}])
    (item,) = read([table], SETTINGS).cuts
    assert item.custom["source"] == str(folder / "a.wav")


def test_quotes_in_common_voice_stand_for_themselves(tmp_path: Path, sounds: Sounds) -> None:
    place = common_voice(tmp_path / "data", sounds)
    write(
        place / "validated.tsv",
        'client_id\tpath\tsentence\nada\tada-1-0001.wav\t"Open, he said\nbo\tbo-1-0001.wav\tx "y"\n',
    )
    found = read([place], SETTINGS)
    assert [cut.supervisions[0].text for cut in found.cuts] == ['"Open, he said', 'x "y"']


def test_parquet_needs_pyarrow(
    tmp_path: Path, sounds: Sounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = audiofolder_parquet(tmp_path / "data", sounds)
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without)
        problem, hint = refused(place)
    assert problem == f"`{place / 'metadata.parquet'}` needs pyarrow"
    assert hint == "pip install 'distilkit[parquet]'"
    write(place / "metadata.parquet", "PAR1 nothing")
    with pytest.raises(DistilkitError, match=r"metadata.parquet` cannot be read as Parquet: "):
        read([place], SETTINGS)


def test_a_broken_shard(tmp_path: Path, sounds: Sounds) -> None:
    place = shar(tmp_path / "data", sounds)
    write(place / "recording.000000.tar", "no tar at all")
    with pytest.raises(
        DistilkitError, match=r"recording.000000.tar` cannot be read as lhotse Shar: "
    ):
        read([place], SETTINGS)


def test_most_of_it_unusable(folder: Path) -> None:
    rows = [f"{n}.wav,{n}" for n in "abc"] + [f"lost{i}.wav,x" for i in range(6)]
    write(folder / "metadata.csv", "\n".join(["file_name,text", *rows[:6]]) + "\n")
    assert len(read([folder], SETTINGS).cuts) == 3  # half is not more than half
    write(folder / "metadata.csv", "\n".join(["file_name,text", *rows]) + "\n")
    problem, hint = refused(folder)
    lines = problem.split("\n")
    assert lines[0] == f"6 of 9 transcripts in `{folder}` cannot be used:"
    assert lines[1] == f"  {folder / 'lost0.wav'}: there is no such file"
    assert lines[6:] == ["  and 1 more"]
    assert hint == "give the folder that the names in the transcripts count from"
    write(folder / "metadata.csv", "file_name,text\n" + "".join(f"{n}.wav,{n}\n" for n in "abc"))
    assert refused(folder, min_seconds=2.0)[1] == "--set data.min_seconds=0.025"
    for name in "abc":
        put(folder / f"{name}.wav", voice(1.2, 7))
    assert refused(folder, max_seconds=1.0)[1].startswith("--set data.max_seconds=60")


def test_no_text_at_all(speech: Path, tmp_path: Path) -> None:
    problem, hint = refused(speech)
    assert problem.startswith(f"no text in `{speech}`: 12 audio files, and none of the layouts ")
    assert all(name in problem for name in LAYOUTS)
    assert "metadata.csv" in hint
    with pytest.raises(DistilkitError, match=r"no such file or folder: `.*speach`"):
        read([tmp_path / "speach"], SETTINGS)


def test_the_cache_cannot_be_written(tmp_path: Path, sounds: Sounds) -> None:
    place = shar(tmp_path / "data", sounds)
    write(tmp_path / "file", "")
    with pytest.raises(DistilkitError, match=r"cannot keep audio in `.*file`: Not a directory"):
        read([place], SETTINGS, cache=tmp_path / "file")


# ------------------------------------------------------------------------------------------ split


def cut(name: str, seconds: float, speaker: str = "", recording: str = "") -> MonoCut:
    sound = Recording(
        id=recording or name,
        sources=[],
        sampling_rate=SAMPLE_RATE,
        num_samples=int(9999 * SAMPLE_RATE),
        duration=9999.0,
    )
    words = SupervisionSegment(
        id=name, recording_id=sound.id, start=0, duration=seconds, text="x", speaker=speaker or None
    )
    return MonoCut(
        id=name, start=0, duration=seconds, channel=0, supervisions=[words], recording=sound
    )


def speakers(cuts: list[MonoCut]) -> set[str]:
    return {str(item.supervisions[0].speaker) for item in cuts}


def seconds(cuts: list[MonoCut]) -> float:
    return sum(item.duration for item in cuts)


@pytest.mark.parametrize("seed", range(4))
def test_whole_speakers_are_held_out(seed: int) -> None:
    cuts = [cut(f"{who}{i}", 1 + i % 3, f"s{who}") for i in range(10) for who in range(20)]
    train, valid = hold_out(cuts, SETTINGS, seed)
    assert speakers(train) & speakers(valid) == set()
    assert 0.05 * seconds(cuts) <= seconds(valid) <= 0.15 * seconds(cuts)
    assert [item.id for item in cuts if item in train] == [item.id for item in train]
    assert {item.id for item in [*train, *valid]} == {item.id for item in cuts}
    assert len(train) + len(valid) == len(cuts)
    assert hold_out(cuts, SETTINGS, seed) == (train, valid)


def test_another_seed_holds_out_others() -> None:
    cuts = [cut(f"{who}", 1.0, f"s{who}") for who in range(40)]
    assert len({frozenset(speakers(hold_out(cuts, SETTINGS, seed)[1])) for seed in range(6)}) == 6


def test_two_speakers() -> None:
    cuts = [cut(f"{i}", 1.0, "much" if i else "little") for i in range(9)]
    train, valid = hold_out(cuts, SETTINGS, 0)
    assert (speakers(train), speakers(valid)) == ({"much"}, {"little"})
    even = [cut(f"{i}", 1.0, "ab"[i % 2]) for i in range(8)]
    train, valid = hold_out(even, SETTINGS, 0)
    assert (len(train), len(valid)) == (4, 4)  # each lasts longer than the share
    lone = [cut(f"{i}", 1.0, "one") for i in range(20)]
    train, valid = hold_out(lone, SETTINGS, 0)
    assert (len(train), len(valid)) == (18, 2)  # recordings, as there is one speaker


def test_speakers_who_share_a_recording_go_together() -> None:
    cuts = [cut(f"{i}", 1.0, f"s{i}", f"talk{i // 2}") for i in range(20)]
    for seed in range(5):
        train, valid = hold_out(cuts, SETTINGS, seed)
        assert len(valid) == 2
        assert {item.recording.id for item in train} & {
            item.recording.id for item in valid
        } == set()
    # All are one group by way of `host`: whole recordings it is.
    cuts = [cut(f"{i}", 1.0, f"s{i}" if i % 2 else "host", f"talk{i // 2}") for i in range(20)]
    train, valid = hold_out(cuts, SETTINGS, 0)
    assert len(valid) == 2
    assert {item.recording.id for item in train} & {item.recording.id for item in valid} == set()


def spoken_at(*places: tuple[float, float]) -> list[MonoCut]:
    """Utterances of one recording: start and seconds of each."""
    cuts = [cut(f"{i}", length, recording="one") for i, (_, length) in enumerate(places)]
    return [replace(one, start=start) for one, (start, _) in zip(cuts, places, strict=True)]


def test_the_end_of_an_only_recording_is_held_out() -> None:
    cuts = spoken_at(*((2.0 * i, 1.5) for i in range(20)))[::-1]
    train, valid = hold_out(cuts, SETTINGS, 0)
    assert [item.id for item in valid] == ["19", "18"]  # a tenth, and all that it takes
    assert [*valid, *train] == cuts
    cuts = spoken_at((0, 1), (1, 1), (2, 1), (2.5, 1), (3, 1))
    train, valid = hold_out(cuts, SETTINGS, 0)
    assert [item.id for item in train] == ["0", "1"]  # the others reach into one another
    assert hold_out(spoken_at((0, 9), (1, 1), (2, 1)), SETTINGS, 0)[1] == []
    assert hold_out(spoken_at((0, 9)), SETTINGS, 0)[1] == []


def test_speakers_who_are_not_known() -> None:
    cuts = [cut(f"{i}", 1.0, recording=f"r{i // 4}") for i in range(40)]
    train, valid = hold_out(cuts, SETTINGS, 0)
    assert {item.recording.id for item in train} & {item.recording.id for item in valid} == set()
    assert len(valid) == 4


def test_the_limits_of_a_split() -> None:
    cuts = [cut(f"{i}", 60.0, f"s{i % 2}") for i in range(100)]
    train, valid = hold_out(cuts, Transcribed(valid_minutes=3.0), 0)
    assert seconds(valid) == 180.0  # a speaker lasts 50 minutes: whole recordings
    uneven = [cut(f"{i}", 50.0) for i in range(100)]
    assert seconds(hold_out(uneven, Transcribed(valid_minutes=3.0), 0)[1]) == 150.0
    assert len(hold_out(cuts, Transcribed(valid_fraction=0.0), 0)[1]) == 0
    assert hold_out(cuts[:1], SETTINGS, 0) == (cuts[:1], [])
    assert hold_out([], SETTINGS, 0) == ([], [])
    lone = [cut(f"{i}", 1.0, recording="long") for i in range(9)]
    assert hold_out(lone, SETTINGS, 0) == (lone, [])
    train, valid = hold_out([cut("a", 5.0), cut("b", 9.0)], Transcribed(valid_fraction=0.5), 3)
    assert (len(train), len(valid)) == (1, 1)


# ------------------------------------------------------------------------------- texts and facts


def test_texts_need_no_audio(tmp_path: Path, sounds: Sounds, folder: Path) -> None:
    for path in folder.glob("*.wav"):
        path.unlink()
    add(folder, "a.wav,a x")
    add(folder, "b.wav,")
    found, skipped = texts([folder])
    assert found == [f"{name} x" for name in "abcdef"]
    assert [item.kind for item in skipped] == ["empty text", "duplicate"]
    place = shar(tmp_path / "shar", sounds)
    for path in place.glob("*.tar"):
        write(path, "not opened")
    assert sorted(texts([place])[0]) == sorted(text for text, _ in CLIPS.values())


def test_plain_sentences(tmp_path: Path, folder: Path) -> None:
    plain = write(tmp_path / "corpus.txt", "\ufeffone two\r\n\r\n  three \n")
    packed = tmp_path / "more.gz"
    packed.write_bytes(gzip.compress(b"four\nfive"))
    assert texts([plain, packed]) == (["one two", "three", "four", "five"], [])
    write(folder / "metadata.csv", "file_name,said\na.wav,hello\n")
    assert texts([plain, folder], "said")[0] == ["one two", "three", "hello"]
    with pytest.raises(DistilkitError, match="--text-column|no column of text"):
        texts([folder])
    write(plain, "\n \n")
    with pytest.raises(DistilkitError, match=r"no text in `.*corpus.txt`"):
        texts([plain])
    with pytest.raises(DistilkitError, match="none of the layouts"):
        texts([folder / "a.wav"])
    write(plain, "na\xefve", "latin-1")
    with pytest.raises(DistilkitError, match=r"corpus.txt` is not UTF-8: byte 2 \(line 1\)"):
        texts([plain])


def test_tables_that_name_no_audio_are_texts(tmp_path: Path) -> None:
    rows = write_json(
        tmp_path / "corpus.jsonl", [{"text": "one two"}, {"text": ""}, {"text": "three"}]
    )
    found, skipped = texts([rows])
    assert found == ["one two", "three"]
    assert [item.reason for item in skipped] == ["line 2: its text is empty"]
    packed = tmp_path / "more.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"text": "four"}\n{"text": ["five"]}\n{"said": "six"}\n'))
    found, skipped = texts([packed])
    assert found == ["four"]
    assert [item.reason for item in skipped] == [
        "line 2: a list where text is expected",
        "line 3: its text is empty",
    ]
    torn = write(tmp_path / "torn.csv", "text\nseven\neight, nine\n")
    found, skipped = texts([torn])
    assert found == ["seven"]
    assert skipped[0].reason.startswith("line 3: 2 values for 1 columns")
    table = write(tmp_path / "corpus.CSV", 'id,said\n1,"one, two"\n2,three\n')
    assert texts([table], "said") == (["one, two", "three"], [])
    with pytest.raises(DistilkitError, match="no column of text: its columns are `id` and `said`"):
        texts([table])
    write(rows, '{"text": "one two"\n')
    with pytest.raises(DistilkitError, match=r"is not JSON lines: line 1"):
        texts([rows])


def test_why_there_is_no_text(tmp_path: Path) -> None:
    table = write(tmp_path / "metadata.csv", "file_name,text\na.wav,one, two\n")
    with pytest.raises(DistilkitError, match="no text in .*:\n  .*metadata.csv: line 2: 3 values"):
        texts([table])


@pytest.mark.parametrize(("table", "text"), [("Metadata.CSV", "x"), ("METADATA.JSONL", "x")])
def test_capitals_in_the_names_of_tables(
    tmp_path: Path, sounds: Sounds, table: str, text: str
) -> None:
    put(tmp_path / "a.wav", sounds["bo-1-0001"])
    rows = {
        "csv": f"file_name,text\na.wav,{text}\n",
        "jsonl": '{"file_name": "a.wav", "text": "x"}\n',
    }
    write(tmp_path / table, rows[table.rpartition(".")[2].lower()])
    assert read([tmp_path], SETTINGS).layouts == ("audiofolder",)
    assert texts([tmp_path / table])[0] == [text]


def test_capitals_in_the_names_of_sidecars(tmp_path: Path, sounds: Sounds) -> None:
    put(tmp_path / "a.WAV", sounds["bo-1-0001"])
    write(tmp_path / "a.TXT", "hello")
    write(tmp_path / "b.TXT", "nobody")
    found = read([tmp_path], SETTINGS)
    assert [cut.supervisions[0].text for cut in found.cuts] == ["hello"]
    assert left_out(found) == [("b.TXT", "no audio", "no audio file of this name beside it")]


@pytest.mark.parametrize(("there", "written"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_name_in_the_other_unicode_form(
    tmp_path: Path, sounds: Sounds, there: Any, written: Any
) -> None:
    put(tmp_path / unicodedata.normalize(there, "café.wav"), sounds["bo-1-0001"])
    name = unicodedata.normalize(written, "café.wav")
    write(tmp_path / "metadata.csv", f"file_name,text\n{name},hello\n")
    found = read([tmp_path], SETTINGS)
    assert (len(found.cuts), found.skipped) == (1, [])


def test_a_very_long_text(tmp_path: Path, sounds: Sounds) -> None:
    write(tmp_path / "metadata.csv", "file_name,text\na.wav," + "la " * 60_000 + "\n")
    assert len(texts([tmp_path])[0][0]) > 131_072


def test_facts() -> None:
    first, second = cut("a", 1800.0, "ada"), cut("b", 1800.0)
    first.supervisions[0].text, first.supervisions[0].language = "aaaa b\nc", "en"
    second.supervisions[0].text = "aB"
    left = [Skipped(path="x", reason="y", kind=kind) for kind in ("no audio", "empty text")]
    found = facts([first, second], [*left, left[0]])
    assert found.utterances == 2
    assert found.hours == 1.0
    assert found.speakers == 1
    assert found.languages == {"en": 1}
    assert found.words == 4
    assert found.alphabet == {"a": 5, "b": 1, "c": 1, "B": 1}
    assert found.rare == "Bbc"
    assert (found.missing_files, found.empty_texts) == (2, 1)
    assert found.left_out == {"no audio": 2, "empty text": 1}
    assert facts([first, second], [], str.lower).alphabet == {"a": 5, "b": 2, "c": 1}


# ------------------------------------------------------------------------------------- real speech


@pytest.mark.parametrize(
    ("name", "count", "known"), [("read_short", 10, 2), ("ljspeech", 35, 1), ("prompts", 180, 2)]
)
def test_real_speech(shared: Path, tmp_path: Path, name: str, count: int, known: int) -> None:
    found = read([shared / "speech" / name], SETTINGS, cache=tmp_path)
    assert found.layouts == ("audiofolder",)
    assert found.skipped == []
    said = facts(found.cuts, found.skipped)
    assert (said.utterances, said.speakers) == (count, known)
    train, valid = hold_out(found.cuts, SETTINGS, 0)
    assert valid
    assert known == 1 or not speakers(train) & speakers(valid)


def test_odd_formats(shared: Path, tmp_path: Path) -> None:
    found = read([shared / "speech" / "odd_formats"], SETTINGS, cache=tmp_path)
    assert len(found.cuts) == 13
    assert found.reasons() == {"empty text": 16}
    assert {Path(item.custom["source"]).suffix for item in found.cuts} > {".g722", ".flac", ".wav"}
    for item in found.cuts:
        assert item.load_audio().shape == (1, round(item.duration * SAMPLE_RATE))


# ------------------------------------------------------------------------------------- the guide


def test_the_guide_names_layouts_columns_and_kinds() -> None:
    page = Path(__file__).parents[1] / "docs" / "guides" / "transcribed-data.md"
    rows = [line.split(" | ") for line in page.read_text(encoding="utf-8").split("\n")]
    cells = [re.findall(r"`([^`]+)`", row[0]) for row in rows if row[0].startswith("| `")]
    own = (data.EMPTY, data.TWICE, data.LONG, data.SHORT)
    shared = (sources.NO_AUDIO, sources.NO_TEXT, sources.OUTSIDE, sources.BROKEN)
    kinds = [*own, *shared, "duplicate", "unusable"]
    assert [name for (name,) in cells[: len(LAYOUTS)]] == list(LAYOUTS)
    assert sorted(name for (name,) in cells[len(LAYOUTS) :]) == sorted(kinds)
    named = {row[0]: re.findall(r"`([^`]+)`", row[1]) for row in rows if len(row) == 2}
    assert named["| the file"] == list(layouts.FILES)
    assert named["| the text"] == list(layouts.TEXTS)
    assert named["| who speaks"] == list(layouts.SPEAKERS)
    assert named["| the language"] == list(layouts.LANGUAGES)
