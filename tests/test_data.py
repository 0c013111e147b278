"""Collections: every file used or listed with its reason, windows that tile, splits, copies."""

import gzip
import inspect
import io
import json
import os
import resource
import shutil
import signal
import sys
import tarfile
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import Run, unprivileged
from lhotse import AudioSource, CutSet, MonoCut, Recording, RecordingSet
from lhotse.utils import fastcopy

from distilkit import data
from distilkit.audio import SAMPLE_RATE, decode, load
from distilkit.batches import load as load_batch
from distilkit.config import Data
from distilkit.data import Clip, Collection, Skipped, archives, collect, find, scan, split
from distilkit.data.scan import _Measure, cache_folder
from distilkit.errors import DistilkitError

SETTINGS = Data()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "audio").mkdir()
    return tmp_path / "audio"


def noise(seconds: float, seed: int = 0, rate: int = SAMPLE_RATE) -> np.ndarray:
    wave = np.random.default_rng(seed).standard_normal(int(seconds * rate)) * 0.1
    return wave.astype(np.float32)


def write(path: Path, seed: int = 0, seconds: float = 1.0, rate: int = SAMPLE_RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(seconds, seed, rate), rate)
    return path


def scanned(*paths: Path) -> list[Clip | Skipped]:
    return list(scan(find(paths), SETTINGS, cache_folder()))


def reason(path: Path) -> str:
    (item,) = scanned(path)
    assert isinstance(item, Skipped)
    assert item.kind == "unusable"
    assert item.path == str(path)
    assert str(path) not in item.reason
    return item.reason


def ids(collection: Collection) -> set[str]:
    return {cut.recording.id for cut in [*collection.train, *collection.valid]}


def left_out(collection: Collection, folder: Path) -> dict[str, tuple[str, str]]:
    return {
        os.path.relpath(item.path, folder): (item.kind, item.reason) for item in collection.skipped
    }


# ------------------------------------------------------------------------------------- finding


def test_any_names_in_any_folders(folder: Path) -> None:
    names = [
        "a/x.wav",
        "b/x.wav",
        "ünïcode 日本/ç é.FLAC",
        "a b/c  d.Wav",
        "x.y.z.ogg",
        "12:30.wav",
    ]
    for seed, name in enumerate(names):
        write(folder / name, seed)
    found = collect([folder], SETTINGS)
    assert ids(found) == set(names)
    assert found.skipped == []
    assert found.formats == {".wav": 4, ".flac": 1, ".ogg": 1}


def test_links_are_followed_once_and_doubles_are_listed(folder: Path) -> None:
    write(folder / "a/x.wav")
    write(folder / "a/y.wav", 1)
    (folder / "b").symlink_to(folder / "a")
    (folder / "a/up").symlink_to(folder)
    (folder / "a/self").symlink_to(folder / "a/self")
    (folder / "z.wav").symlink_to(folder / "a/x.wav")
    (folder / "zz.wav").hardlink_to(folder / "a/x.wav")
    (folder / "gone.wav").symlink_to(folder / "nowhere.wav")
    found = collect([folder], SETTINGS)
    assert ids(found) == {"a/x.wav", "a/y.wav"}
    assert left_out(found, folder) == {
        "a/self": ("not audio", "not an audio file (no suffix)"),
        "gone.wav": ("unusable", "cannot open: No such file or directory"),
        "z.wav": ("duplicate", "same sound as a/x.wav"),
        "zz.wav": ("duplicate", "same sound as a/x.wav"),
    }


def test_inputs_that_overlap_are_read_once(folder: Path) -> None:
    write(folder / "a/x.wav")
    write(folder / "y.wav", 1)
    assert [item.path for item in find([folder / "a", folder, folder])] == [
        folder / "a/x.wav",
        folder / "y.wav",
    ]


def test_same_names_under_two_inputs(tmp_path: Path) -> None:
    for seed, name in enumerate(("one/clips/x.wav", "two/clips/x.wav", "three/x.wav")):
        write(tmp_path / name, seed)
    found = collect([tmp_path / "one/clips", tmp_path / "two/clips", tmp_path / "three"], SETTINGS)
    assert ids(found) == {"clips/x.wav", "clips/x.wav#2", "three/x.wav"}


def test_the_order_does_not_depend_on_the_file_system(folder: Path) -> None:
    for name in ("c.wav", "a.wav", "b/z.wav", "B.wav"):
        write(folder / name)
    assert [item.id for item in find([folder])] == ["B.wav", "a.wav", "b/z.wav", "c.wav"]


def test_what_is_not_audio_is_counted(folder: Path) -> None:
    write(folder / "x.wav")
    write(folder / ".Trash/old.wav", 1)
    for name in ("notes.txt", "LICENSE", "._x.wav"):
        (folder / name).write_bytes(b"\x00\x05\x16\x07" * 100)
    found = collect([folder], SETTINGS)
    assert found.reasons() == {"not audio": 4}
    assert left_out(found, folder) == {
        "notes.txt": ("not audio", "not an audio file (.txt)"),
        "LICENSE": ("not audio", "not an audio file (no suffix)"),
        "._x.wav": ("not audio", "hidden: its name or its folder's begins with a dot"),
        ".Trash/old.wav": ("not audio", "hidden: its name or its folder's begins with a dot"),
    }


def test_a_hidden_folder_that_is_named_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / ".mine/x.wav")
    assert ids(collect([path.parent], SETTINGS)) == {"x.wav"}
    assert ids(collect([path], SETTINGS)) == {"x.wav"}


def test_a_folder_that_cannot_be_opened_is_listed(public: Path) -> None:
    for seed in range(3):
        write(public / f"{seed}.wav", seed)
    write(public / "locked/x.wav", 9)
    (public / "locked").chmod(0)
    with unprivileged():
        found = collect([public], SETTINGS)
        with pytest.raises(DistilkitError, match="cannot open `.*/x.wav`: Permission denied"):
            collect([public / "locked/x.wav"], SETTINGS)
        with pytest.raises(DistilkitError, match="/locked: cannot open: Permission denied"):
            collect([public / "locked"], SETTINGS)
    (public / "locked").chmod(0o755)
    assert left_out(found, public) == {"locked": ("unusable", "cannot open: Permission denied")}


def test_names_that_are_not_utf8_can_be_listed_and_trained_on(folder: Path) -> None:
    with (folder / os.fsdecode(b"\xe9t\xe9.wav")).open("wb") as file:
        soundfile.write(file, noise(1), 16000, format="WAV")
    write(folder / "two.wav", 1)
    (folder / os.fsdecode(b"\xff.wav")).touch()
    found = collect([folder], SETTINGS)
    assert ids(found) == {"\\udce9t\\udce9.wav", "two.wav"}
    assert [Path(item.path).name for item in found.skipped] == ["\\udcff.wav"]
    data.dump_skipped(found.skipped).encode()
    manifest = folder.parent / "windows.jsonl.gz"
    manifest.write_bytes(data.dump_windows(found))
    for cut in data.joined(*data.load_windows(manifest)):
        assert cut.load_audio().shape == (1, 16000)


def test_half_a_sign_in_a_name_or_a_reason_can_be_listed() -> None:
    """As JSON may hold it, and no file of text can."""
    item = Skipped(path="\ud800.wav", reason="there is no recording `\ud800`", kind="no audio")
    said = data.dump_skipped([item]).encode().decode()
    assert said.endswith("\t\\ud800.wav\tthere is no recording `\\ud800`\n")


def test_a_list_of_skipped_files_keeps_its_columns(folder: Path) -> None:
    item = Skipped(path="a\tb\nc.wav", reason="x", kind="unusable", seconds=1.5)
    assert (
        data.dump_skipped([item]) == "kind\tseconds\tpath\treason\nunusable\t1.50\ta b c.wav\tx\n"
    )


def test_missing_inputs_name_their_neighbour(folder: Path) -> None:
    with pytest.raises(DistilkitError, match="no such file or folder: `.*/adio`") as caught:
        collect([folder.parent / "adio"], SETTINGS)
    assert caught.value.hint == f"did you mean `{folder}`?"


# ----------------------------------------------------------------------------------- manifests


def recording(path: Path | str, name: str = "r", kind: str = "file") -> Recording:
    return Recording(
        id=name,
        sources=[AudioSource(type=kind, channels=[0], source=str(path))],
        sampling_rate=16000,
        num_samples=16000,
        duration=1.0,
    )


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_lhotse_manifests(folder: Path, ending: str) -> None:
    items = [recording(write(folder / f"{seed}.wav", seed), f"r{seed}") for seed in range(3)]
    RecordingSet.from_recordings(items).to_file(folder / f"recordings.{ending}")
    CutSet.from_cuts(
        MonoCut(id=f"{item.id}-{start}", start=start, duration=0.5, channel=0, recording=item)
        for item in items
        for start in (0.0, 0.5)
    ).to_file(folder / f"cuts.{ending}")
    for name in ("recordings", "cuts"):
        found = collect([folder / f"{name}.{ending}"], SETTINGS)
        assert ids(found) == {"0.wav", "1.wav", "2.wav"}
        assert found.skipped == []


def manifest(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_relative_paths_in_manifests(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "clips/x.wav")
    beside = manifest(folder / "m.jsonl", recording("clips/x.wav").to_dict())
    assert ids(collect([beside], SETTINGS)) == {"x.wav"}
    monkeypatch.chdir(folder)
    from_here = manifest(folder.parent / "m.jsonl", recording("clips/x.wav").to_dict())
    assert ids(collect([from_here], SETTINGS)) == {"x.wav"}


def test_files_that_a_manifest_misses_are_listed(folder: Path) -> None:
    rows = [recording(write(folder / "x.wav")).to_dict(), recording("/nowhere/y.wav").to_dict()]
    found = collect([manifest(folder / "m.jsonl", *rows)], SETTINGS)
    assert [(item.path, item.reason) for item in found.skipped] == [
        ("/nowhere/y.wav", "cannot open: No such file or directory")
    ]


def test_commands_in_manifests_are_never_run(folder: Path) -> None:
    row = recording(f"touch {folder}/ran", kind="command").to_dict()
    with pytest.raises(DistilkitError, match="a source of type `command`; only files are read"):
        collect([manifest(folder / "m.jsonl", row)], SETTINGS)
    assert not (folder / "ran").exists()


NO_MANIFEST = "is not a lhotse manifest of recordings or cuts"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"audio": "x.wav", "text": "hello"}\n', NO_MANIFEST),
        (b"not json\n", "is not JSON lines: line 1: Expecting value"),
        (b"[1, 2]\n", "is not JSON lines: line 1 is not an object"),
        (b'{}\n"text"\n', "is not a lhotse manifest|line 2 is not an object"),
        (b"[" * 100_000, "is not JSON lines: line 1: brackets within brackets without end"),
        (b'{"sources": [{"type": "file"}]}\n', NO_MANIFEST),
        (b'{"sources": [{"type": "file", "source": 3}]}\n', NO_MANIFEST),
        (b'{"sources": [{"type": "file", "source": "a\\u0000.wav"}]}\n', NO_MANIFEST),
        (b"\xff\xfe\x00", "is not UTF-8: byte 0"),
        (
            gzip.compress(b'{"sources": []}\n' * 1000, mtime=0)[:-20],
            "cannot be read: Compressed file ended",
        ),
    ],
)
def test_what_is_not_a_manifest(folder: Path, content: bytes, said: str) -> None:
    path = folder / ("m.jsonl.gz" if content[:2] == b"\x1f\x8b" else "m.jsonl")
    path.write_bytes(content)
    with pytest.raises(DistilkitError, match=said):
        collect([path], SETTINGS)


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(folder: Path) -> None:
    path = folder / "m.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" * (1 << 24), 9) * 5)  # 80 MiB from 80 KiB
    with pytest.raises(DistilkitError, match="unpacks to more than 64 MiB"):
        collect([path], SETTINGS)


def test_folders_within_folders_without_end(folder: Path, speech: Path) -> None:
    """A system allows 2,000 of them, Python 1,000 calls within one another; here both are fewer."""
    deep = folder
    for _ in range(200):
        deep = deep / "a"
        deep.mkdir()
    shutil.copyfile(speech / "a" / "clip00.flac", deep / "b.flac")
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        found = [item for item in find([folder]) if item.path.name == "b.flac"]
    finally:
        sys.setrecursionlimit(before)
    assert len(found) == 1


# ------------------------------------------------------------------------------------- archives


def pack(path: Path, *files: Path, **named: bytes) -> Path:
    """A tar of files, and of others by name."""
    with tarfile.open(path, "w") as tar:
        for file in files:
            tar.add(file, f"./{file.name}")
        for name, content in named.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def sounds(found: Collection) -> dict[str, tuple[object, ...]]:
    """By digest: the windows, and what is read there."""
    said: dict[str, tuple[object, ...]] = {}
    for cut in [*found.train, *found.valid]:
        wave = cut.load_audio()[0]
        key = f"{cut.custom['digest']}@{cut.start}"
        said[key] = (len(wave), float(np.abs(wave).sum()))
    return said


@pytest.mark.parametrize("format", ["flac", "wav"])
def test_shards_of_lhotse_hold_what_the_folder_holds(folder: Path, format: str) -> None:
    settings = Data(window_seconds=3.0)
    paths = [write(folder / f"{seed}.wav", seed, 1.0 + 2 * seed) for seed in range(4)]
    paths.append(write(folder / "4.wav", 4, 1.5, rate=44_100))
    cuts = CutSet.from_cuts(
        MonoCut(
            id=f"cut-{path.stem}", start=0, duration=soundfile.info(path).duration, channel=0,
            recording=Recording.from_file(path, recording_id=path.stem),
        )
        for path in paths
    )  # fmt: skip
    shards = folder.parent / "shar"
    shards.mkdir()
    cuts.to_shar(shards, fields={"recording": format}, shard_size=2)
    found, wanted = collect([shards], settings), collect([folder], settings)
    assert sounds(found) == sounds(wanted)
    assert ids(found) == {f"recording.00000{i // 2}.tar/cut-{i}.{format}" for i in range(5)}
    assert found.formats == {f".{format}": 5}
    assert Counter(item.reason for item in found.skipped) == {
        "not an audio file (.json)": 5,
        "not an audio file (.gz)": 3,
    }
    again = collect([shards], settings)
    assert [cut.to_dict() for cut in again.train] == [cut.to_dict() for cut in found.train]


def test_inspect_looks_into_archives(folder: Path, run: Run) -> None:
    """Shards of audio alone are audio; of a folder with nothing but archives too, and of one of them."""
    cuts = CutSet.from_cuts(
        Recording.from_file(write(folder / f"{seed}.wav", seed), recording_id=str(seed)).to_cut()
        for seed in range(3)
    )
    shards, tars = folder.parent / "shar", folder.parent / "tars"
    shards.mkdir()
    tars.mkdir()
    cuts.to_shar(shards, fields={"recording": "flac"}, shard_size=2)
    for tar in shards.glob("*.tar"):
        (tars / tar.name).write_bytes(tar.read_bytes())
    for place, count in ((shards, 3), (tars, 3), (tars / "recording.000001.tar", 1)):
        code, out, _ = run("inspect", place, "--json")
        said = json.loads(out)
        assert (code, said["is"], said["recordings"]) == (0, "audio", count)


def test_any_tar_is_looked_into(folder: Path) -> None:
    files = [write(folder / "in" / f"{seed}.flac", seed) for seed in range(3)]
    names = {
        "a/0001.txt": b"hello",
        "._0.wav": b"left by macOS",
        "../../up.wav": files[0].read_bytes(),
    }
    shard = pack(folder / "b.tar", *files[:2], **names)
    with tarfile.open(shard, "a") as tar:
        inner = tarfile.TarInfo("folder.wav")
        inner.type = tarfile.DIRTYPE
        tar.addfile(inner)
        link = tarfile.TarInfo("link.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    pack(folder / ".hidden.tar", files[2])
    found = collect([folder], SETTINGS)
    assert ids(found) == {"b.tar/0.flac", "b.tar/1.flac", "in/2.flac"}
    reasons = {item.path.removeprefix(f"{folder}/"): item.reason for item in found.skipped}
    assert reasons == {
        "b.tar/a/0001.txt": "not an audio file (.txt)",
        "b.tar/._0.wav": "hidden: its name or its folder's begins with a dot",
        "b.tar/../../up.wav": "same sound as b.tar/0.flac",
        "b.tar/link.wav": "a link, or no plain file, in an archive",
        ".hidden.tar": "not an audio file (.tar)",
        "in/0.flac": "same sound as b.tar/0.flac",
        "in/1.flac": "same sound as b.tar/1.flac",
    }
    assert ids(collect([shard], SETTINGS)) == {"b.tar/0.flac", "b.tar/1.flac"}
    assert not (folder.parent / "up.wav").exists()


def test_a_damaged_archive_gives_what_it_holds(folder: Path) -> None:
    files = [write(folder / "in" / f"{seed}.wav", seed) for seed in range(3)]
    data = pack(folder / "whole.tar", *files).read_bytes()
    (folder / "whole.tar").unlink()
    (folder / "a.tar").write_bytes(data[: 2 * len(data) // 5])
    pack(folder / "c.tar")
    (folder / "b.tar").write_bytes(b"no archive at all" * 100)
    for file in files:
        file.unlink()
    named = [write(folder / f"{name}.wav", seed) for seed, name in enumerate("xyz", 9)]
    found = collect([*named, folder / "a.tar", folder / "c.tar"], SETTINGS)
    assert ids(found) == {"x.wav", "y.wav", "z.wav", "a.tar/0.wav"}
    shown = {item.path.removeprefix(f"{folder}/"): item for item in found.skipped}
    assert {item.kind for item in shown.values()} == {"unusable"}
    assert "the archive ends after" in shown["a.tar/1.wav"].reason
    assert shown["a.tar"].reason.startswith("not a whole archive")
    assert shown["c.tar"].reason == "an archive without files"
    with pytest.raises(DistilkitError, match="not a whole archive"):
        collect([folder / "b.tar"], SETTINGS)


def test_sound_in_an_archive_that_cannot_be_decoded_is_named_there(folder: Path) -> None:
    shard = pack(
        folder / "x.tar", write(folder / "a.wav"), **{"b.wav": b"RIFF but no more than that"}
    )
    (item,) = collect([shard], SETTINGS).skipped
    assert item.path == f"{shard}/b.wav"
    assert "cache" not in item.reason


@pytest.mark.parametrize(
    ("kind", "place", "said"),
    [
        (tarfile.GNU_FORMAT, "a.tar/0.wav", "the archive ends after "),
        (tarfile.PAX_FORMAT, "a.tar", "not a whole archive: "),  # its header has a size too
    ],
)
def test_an_archive_that_promises_more_than_the_memory_holds(
    folder: Path, kind: int, place: str, said: str
) -> None:
    shard, file = folder / "a.tar", write(folder / "in" / "0.wav", 1)
    with tarfile.open(shard, "w", format=kind, pax_headers={"comment": "x"}) as tar:
        tar.add(file, "0.wav")
    file.unlink()
    data = bytearray(shard.read_bytes())
    data[124:136] = b"\x80" + (1 << 55).to_bytes(11, "big")  # its size, as large ones are written
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])  # the checksum of its header
    shard.write_bytes(data)
    for seed in (2, 3, 4):
        write(folder / f"{seed}.wav", seed)
    found = collect([folder], SETTINGS)
    assert ids(found) == {"2.wav", "3.wav", "4.wav"}
    reasons = {item.path.removeprefix(f"{folder}/"): item.reason for item in found.skipped}
    assert reasons[place].startswith(said)


def test_sound_out_of_an_archive_is_kept_whole(folder: Path, cache: Path) -> None:
    files = [write(folder / f"{seed}.wav", seed) for seed in range(2)]
    shard = pack(folder.parent / "x.tar", *files)
    before = sounds(collect([shard], SETTINGS))
    for path in cache.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:5_000])
    assert sounds(collect([shard], SETTINGS)) == before
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 2
    shutil.rmtree(cache)
    cache.write_text("a file")
    with pytest.raises(DistilkitError, match="cannot keep audio in") as caught:
        collect([shard], SETTINGS)
    assert "DISTILKIT_CACHE=FOLDER" in str(caught.value.hint)


def test_kept_sound_is_known_by_its_place_and_its_bytes(cache: Path) -> None:
    """Rows of a table may hold the same sound with different texts, and change."""
    asked = [(b"one", "a/1"), (b"one", "a/2"), (b"two", "a/1"), (b"one", "a/1")]
    paths = [archives.kept(sound, name, cache) for sound, name in asked]
    assert len(set(paths)) == 3
    assert paths[3] == paths[0]
    assert [path.read_bytes() for path in paths] == [sound for sound, _ in asked]


def test_who_wants_files_gets_the_archive(folder: Path) -> None:
    shard = pack(folder / "x.tar", write(folder / "a.wav"))
    assert [(item.path.name, item.audio) for item in find([folder])] == [
        ("a.wav", True),
        ("x.tar", False),
    ]
    assert [item.path for item in find([shard])] == [shard]


# ------------------------------------------------------------------------------- usable or not


def test_recordings_that_cannot_be_used_say_why(folder: Path) -> None:
    def wave(name: str, values: np.ndarray) -> Path:
        soundfile.write(folder / name, values.astype(np.float32), 16000, "FLOAT")
        return folder / name

    sound = noise(1)
    assert reason(wave("short.wav", sound[:160])) == "0.010 s is shorter than 0.1 s"
    assert reason(wave("zeros.wav", sound * 0)) == "silent: 1.0 s below -70 dBFS"
    assert reason(wave("dc.wav", sound * 0 + 0.5)) == "silent: 1.0 s below -70 dBFS"
    assert reason(wave("hiss.wav", sound * 1e-4 + 0.5)) == "silent: 1.0 s below -70 dBFS"
    assert reason(wave("phase.wav", np.stack([sound, -sound], 1))).startswith("silent: 1.0 s")
    sound[5] = np.nan
    assert reason(wave("nan.wav", sound)).startswith("holds values that are not finite")
    for name, content in (("empty.wav", b""), ("text.wav", b"words\n" * 99)):
        (folder / name).write_bytes(content)
    assert reason(folder / "empty.wav") == "is empty (0 bytes)"
    assert reason(folder / "text.wav").startswith("cannot be decoded: Invalid data found")


def test_faint_speech_is_not_silence(folder: Path) -> None:
    for name, values in (("a.wav", noise(1) * 0.01), ("b.wav", noise(1) * 0.01 + 0.3)):
        soundfile.write(folder / name, values, 16000, "FLOAT")
        assert isinstance(scanned(folder / name)[0], Clip)


def test_doubles_are_found_across_formats(folder: Path) -> None:
    steps = (noise(1) * 32767).astype(np.int16)
    soundfile.write(folder / "a.wav", steps, 16000)
    soundfile.write(folder / "b.flac", steps, 16000)
    soundfile.write(folder / "c.aiff", np.stack([steps, steps], 1), 16000)
    soundfile.write(folder / "d.wav", steps[::-1], 16000)
    found = collect([folder], SETTINGS)
    assert ids(found) == {"a.wav", "d.wav"}
    assert left_out(found, folder) == {
        "b.flac": ("duplicate", "same sound as a.wav"),
        "c.aiff": ("duplicate", "same sound as a.wav"),
    }
    assert [item.seconds for item in found.skipped] == [1.0, 1.0]


def test_more_than_half_unusable_is_one_error(folder: Path) -> None:
    for seed in range(8):
        write(folder / f"good{seed}.wav", seed)
        (folder / f"bad{seed}.wav").write_bytes(b"")
    (folder / "notes.txt").write_text("not counted")
    assert collect([folder], SETTINGS).recordings == 8
    (folder / "worse.wav").write_bytes(b"")
    with pytest.raises(DistilkitError) as caught:
        collect([folder], SETTINGS)
    lines = caught.value.problem.splitlines()
    assert lines[0] == f"9 of 17 audio files in `{folder}` cannot be used:"
    assert lines[1] == f"  {folder}/bad0.wav: is empty (0 bytes)"
    assert lines[6] == "  and 4 more"


def test_no_audio_at_all(folder: Path) -> None:
    with pytest.raises(DistilkitError, match="no audio in `.*`: no files at all"):
        collect([folder], SETTINGS)
    (folder / "a.txt").touch()
    with pytest.raises(DistilkitError, match=r"1 file, none with a known audio suffix"):
        collect([folder], SETTINGS)


# ------------------------------------------------------------------------------------- windows


def test_windows_tile_any_length_exactly() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        least = float(rng.choice([0.025, 0.1, 0.5]))
        settings = Data(window_seconds=float(rng.uniform(1, 3)), min_seconds=least)
        longest, shortest = int(settings.window_seconds * 16000), int(least * 16000)
        size = int(rng.integers(shortest, 20 * 16000))
        measure = _Measure(settings)
        wave = rng.standard_normal(size).astype(np.float32)
        for part in np.split(wave, np.sort(rng.integers(0, size, 5))):
            measure.add(part)
        windows = measure.finish()
        assert measure.samples == size
        at = 0
        for start, length in windows:
            assert start == at
            assert shortest <= length <= longest
            at += length
        assert at == size


def test_windows_do_not_depend_on_the_blocks() -> None:
    wave, results = noise(60), []
    for size in (1000, 480_000, 960_000):
        measure = _Measure(Data(window_seconds=5.0))
        for start in range(0, len(wave), size):
            measure.add(wave[start : start + size])
        results.append((measure.finish(), measure.digest.hexdigest()))
    assert results[0] == results[1] == results[2]


def test_long_recordings_are_cut_in_their_pauses(folder: Path) -> None:
    wave = noise(60)
    pauses = [(at, at + 0.4) for at in np.arange(2.0, 60.0, 3.0)]
    for start, end in pauses:
        wave[int(start * 16000) : int(end * 16000)] *= 0.01
    soundfile.write(folder / "a.wav", wave, 16000)
    (clip,) = scanned(folder)
    assert isinstance(clip, Clip)
    assert clip.samples == 960_000
    edges = [start / 16000 for start, _ in clip.windows[1:]]
    assert len(edges) >= 3
    for edge in edges:
        assert any(start < edge < end for start, end in pauses), edge


def test_silent_parts_are_listed_with_their_seconds(folder: Path) -> None:
    wave = np.concatenate([noise(10), np.zeros(16000 * 40, np.float32), noise(10, 1)])
    soundfile.write(folder / "a.wav", wave, 16000)
    found = collect([folder], SETTINGS)
    used = sum(cut.duration for cut in found.train)
    assert {item.kind for item in found.skipped} == {"silent part"}
    assert sum(item.seconds for item in found.skipped) == pytest.approx(60 - used)
    assert sum(item.seconds for item in found.skipped) > 15
    assert found.skipped[0].reason.startswith("silent from ")


def test_an_hour_takes_little_memory() -> None:
    block = noise(30)
    tracemalloc.start()
    measure = _Measure(SETTINGS)
    for _ in range(120):
        measure.add(block.copy())
    windows = measure.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(length for _, length in windows) == measure.samples == 3600 * 16000
    assert peak < 10e6


def test_windows_hold_the_very_samples(folder: Path) -> None:
    settings = Data(window_seconds=1.7)
    kinds = (("a.wav", 16000), ("b.flac", 16000), ("c.ogg", 16000), ("d.aiff", 16000),
             ("e.au", 16000), ("f.caf", 16000), ("g.w64", 16000), ("h.mp3", 44100))  # fmt: skip
    for seed, (name, rate) in enumerate(kinds):
        write(folder / name, seed, 5.0, rate)
    found = collect([folder], settings)
    assert len(ids(found)) == len(kinds)
    for cut in [*found.train, *found.valid]:
        whole = load(Path(cut.recording.sources[0].source))
        start = round(cut.start * 16000)
        np.testing.assert_array_equal(
            cut.load_audio()[0], whole[start : start + round(cut.duration * 16000)]
        )


# ------------------------------------------------------------------------------------- copies


def test_what_is_not_exact_is_kept_decoded(folder: Path, cache: Path) -> None:
    path = write(folder / "a.wav", rate=44100)
    (clip,) = scanned(folder)
    assert isinstance(clip, Clip)
    assert clip.source == path
    assert cache in clip.path.parents
    header = decode(clip.path).header
    assert header is not None
    assert header.exact
    np.testing.assert_allclose(load(clip.path), load(path), atol=1.1 / 32768)


def test_copies_are_reused_until_the_source_changes(folder: Path, cache: Path) -> None:
    path = write(folder / "a.wav", rate=44100)

    def copy() -> tuple[Path, int]:
        (clip,) = scanned(folder)
        assert isinstance(clip, Clip)
        return clip.path, clip.path.stat().st_mtime_ns

    first = copy()
    assert copy() == first
    os.utime(path, (1, 1))
    touched = copy()
    assert touched[0] != first[0]
    write(path, seconds=2.0, rate=44100)
    os.utime(path, (1, 1))
    grown = copy()
    assert grown[0] not in (first[0], touched[0])
    assert len(load(grown[0])) == 32000


def test_what_a_killed_process_left_goes_also_where_every_copy_is_there(
    folder: Path, cache: Path
) -> None:
    write(folder / "a.wav", rate=22_050)
    (before,) = scanned(folder)
    left = cache_folder() / ".distilkit-left"
    left.mkdir()
    (left / "raw.f32").write_bytes(b"half")
    assert scanned(folder) == [before]
    assert not left.exists()


def test_a_spoilt_copy_is_made_again(folder: Path, cache: Path) -> None:
    write(folder / "a.wav", rate=44100)
    (before,) = scanned(folder)
    for content in (b"", b"\0" * 10_000):
        (copy,) = cache.rglob("*.flac")
        copy.write_bytes(content)
        (after,) = scanned(folder)
        assert replace(after, stamp="") == replace(before, stamp="")  # the copy is a new one
        assert len(load(copy)) == 16000


def test_a_copy_of_other_sound_is_made_again(folder: Path, cache: Path) -> None:
    """What is damaged may still decode, to something else."""
    write(folder / "a.wav", rate=44100)
    (before,) = scanned(folder)
    (copy,) = cache.rglob("*.flac")
    whole = copy.read_bytes()
    slower = bytearray(whole)
    slower[18:20] = (16000 + 16 >> 4).to_bytes(2, "big")  # the rate in its header
    for content in (whole[len(whole) // 2 :] + whole[: len(whole) // 2], bytes(slower)):
        copy.write_bytes(content)
        (after,) = scanned(folder)
        assert replace(after, stamp="") == replace(before, stamp="")
        assert copy.read_bytes() == whole


@pytest.mark.parametrize("place", [20, 47])
def test_a_copy_that_only_ffmpeg_can_read_is_made_again(
    folder: Path, cache: Path, place: int
) -> None:
    """Windows of it are read in place, which needs libsndfile: training would stop at it each time."""
    write(folder / "a.wav", rate=44100)
    (before,) = scanned(folder)
    (copy,) = cache.rglob("*.flac")
    whole = copy.read_bytes()
    damaged = bytearray(whole)
    damaged[place] ^= 2  # the channels of the header; the first frame's
    copy.write_bytes(damaged)
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.read(copy)
    (after,) = scanned(folder)
    assert replace(after, stamp="") == replace(before, stamp="")
    assert copy.read_bytes() == whole


def test_a_copy_is_whole_or_not_there(folder: Path, cache: Path) -> None:
    path = write(folder / "a.flac", seconds=3, rate=44100)
    path.write_bytes(path.read_bytes()[:-30_000])
    assert reason(path).startswith("is damaged: ")
    assert [item for item in cache.rglob("*") if item.is_file()] == []


def test_sound_beyond_full_scale_is_scaled_not_clipped(folder: Path) -> None:
    wave = noise(1, rate=32000) * 30
    soundfile.write(folder / "a.wav", wave, 32000, "FLOAT")
    (clip,) = scanned(folder)
    assert isinstance(clip, Clip)
    kept, true = load(clip.path), load(folder / "a.wav")
    peak = float(np.abs(true).max())
    assert peak > 2
    np.testing.assert_allclose(kept, true / peak, atol=1.1 / 32768)


def test_a_full_disk_stops_the_run(folder: Path, cache: Path) -> None:
    for seed in range(3):
        write(folder / f"{seed}.wav", seed)
    write(folder / "long.wav", 9, 20.0, 44100)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            DistilkitError, match="cannot keep decoded audio in .*: File too large"
        ) as caught:
            collect([folder], SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.hint is not None
    assert "DISTILKIT_CACHE" in caught.value.hint
    assert [item for item in cache.rglob("*") if item.is_file()] == []


def test_a_cache_that_cannot_be_made_stops_the_run(folder: Path, cache: Path) -> None:
    write(folder / "a.wav", rate=8000)
    cache.write_text("a file")
    with pytest.raises(DistilkitError, match="cannot keep decoded audio in .*: Not a directory"):
        collect([folder], SETTINGS)


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTILKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/x")
    assert cache_folder() == Path("/var/x/distilkit/audio")
    monkeypatch.setenv("DISTILKIT_CACHE", "/var/y")
    assert cache_folder() == Path("/var/y/audio")


# -------------------------------------------------------------------------------------- split


def clips(seconds: list[float]) -> list[Clip]:
    return [
        Clip(
            id=f"{number}",
            source=Path(f"/{number}.wav"),
            path=Path(f"/{number}.wav"),
            samples=int(length * 16000),
            windows=((0, int(length * 16000)),),
            digest=f"{number}",
            stamp="",
        )
        for number, length in enumerate(seconds)
    ]


def test_the_split_holds_out_the_share_in_whole_recordings() -> None:
    rng = np.random.default_rng(0)
    for seed in range(50):
        lengths = rng.uniform(1, 10, 300).tolist()
        share = float(rng.choice([0.01, 0.05, 0.2, 0.5]))
        train, valid = split(clips(lengths), Data(valid_fraction=share), seed)
        kept, held = {clip.id for clip in train}, {clip.id for clip in valid}
        assert not kept & held
        assert len(kept | held) == 300
        assert sum(clip.samples for clip in valid) == pytest.approx(
            share * sum(lengths) * 16000, rel=0.5, abs=10 * 16000
        )


def test_the_share_is_not_overshot_by_a_long_recording() -> None:
    for seed in range(20):
        _, valid = split(clips([1.0] * 100 + [100.0] * 2), SETTINGS, seed)
        assert 10 <= sum(clip.samples for clip in valid) / 16000 <= 22.5


def test_the_split_follows_the_seed_alone() -> None:
    items = clips([2.0] * 100)
    results = [[clip.id for clip in split(items, SETTINGS, seed)[1]] for seed in (1, 1, 2)]
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("lengths", [[5.0, 5.0], [500.0, 1.0], [1.0, 500.0], [9.0, 8.0, 7.0]])
def test_both_sides_get_at_least_one_recording(lengths: list[float]) -> None:
    for seed in range(10):
        train, valid = split(clips(lengths), SETTINGS, seed)
        assert train
        assert valid


def test_nothing_is_held_out_of_one_recording_or_on_request() -> None:
    assert split(clips([50.0]), SETTINGS, 0)[1] == []
    assert split(clips([5.0] * 9), Data(valid_fraction=0.0), 0)[1] == []


def test_the_held_out_minutes_are_bounded() -> None:
    _, valid = split(clips([10.0] * 1000), Data(valid_fraction=0.5, valid_minutes=1.0), 0)
    assert sum(clip.samples for clip in valid) == 60 * 16000


# ------------------------------------------------------------------------------------- on disk


@pytest.mark.parametrize("kind", ["command", "url", "memory", "file"])
def test_windows_name_files_and_nothing_else(speech: Path, tmp_path: Path, kind: str) -> None:
    """A run that somebody else made is a folder like any other: lhotse would run the command."""
    path, script = tmp_path / "windows.jsonl.gz", tmp_path / "script"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    script.chmod(0o755)
    path.write_bytes(data.dump_windows(collect([speech], SETTINGS)))
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    rows[0]["recording"]["sources"][0] |= {"type": kind, "source": str(script)}
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    if kind == "file":
        train, valid = data.load_windows(path)
        with pytest.raises(DistilkitError, match="can no longer be read"):
            load_batch([cut for cut in train + valid if cut.id == rows[0]["id"]])
    else:
        with pytest.raises(
            DistilkitError, match="is damaged: a window whose sound is not in a file"
        ):
            data.load_windows(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("line", ["{}", '{"recording": {"sources": 3}}', "[]", "[" * 100_000, "{"])
def test_windows_that_are_damaged(speech: Path, tmp_path: Path, line: str) -> None:
    path = tmp_path / "windows.jsonl.gz"
    whole = gzip.decompress(data.dump_windows(collect([speech], SETTINGS)))
    path.write_bytes(gzip.compress(whole + line.encode() + b"\n"))
    with pytest.raises(DistilkitError, match="is damaged|is not JSON lines"):
        data.load_windows(path)


@pytest.mark.parametrize(
    ("source", "problem"),
    [(5, "is damaged: a window whose sound"), ("x" * 5000, "x` is gone"), ("x\0", "is gone")],
)
def test_windows_whose_file_has_no_name_that_can_be(
    speech: Path, tmp_path: Path, source: int | str, problem: str
) -> None:
    path = tmp_path / "windows.jsonl.gz"
    path.write_bytes(data.dump_windows(collect([speech], SETTINGS)))
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    rows[0]["recording"]["sources"][0]["source"] = source
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    with pytest.raises(DistilkitError, match=problem):
        data.load_windows(path)


def test_a_manifest_without_a_window_to_train_on(speech: Path, tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl.gz"
    whole = gzip.decompress(data.dump_windows(collect([speech], SETTINGS))).splitlines(
        keepends=True
    )
    held_out = b"".join(line for line in whole if b'"split": "valid"' in line)
    assert held_out
    for rows in (b"", held_out):
        path.write_bytes(gzip.compress(rows))
        with pytest.raises(DistilkitError, match="is damaged: no window to train on"):
            data.load_windows(path)


def test_windows_survive_the_disk(folder: Path, tmp_path: Path) -> None:
    for seed in range(6):
        write(folder / f"é {seed}.wav", seed, 4.321)
    found = collect([folder], Data(window_seconds=1.3, valid_fraction=0.3))
    path = tmp_path / "windows.jsonl.gz"
    path.write_bytes(data.dump_windows(found))
    train, valid = data.load_windows(path)
    assert data.dump_windows(found) == path.read_bytes()
    for before, after in ((found.train, train), (found.valid, valid)):
        assert len(before) == len(after) > 1
        for one, other in zip(before, after, strict=True):
            assert (one.id, one.start, one.duration) == (other.id, other.start, other.duration)
            np.testing.assert_array_equal(one.load_audio(), other.load_audio())


def test_windows_on_the_disk_are_those_that_lhotse_writes_and_reads(
    folder: Path, tmp_path: Path
) -> None:
    for seed in range(3):
        write(folder / f"é {seed}.wav", seed, 2.5)
    found = collect([folder], Data(window_seconds=1.3, valid_fraction=0.3))
    path = tmp_path / "windows.jsonl.gz"
    path.write_bytes(data.dump_windows(found))
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    cuts = [
        fastcopy(cut, custom={**cut.custom, "split": side})
        for side, windows in (("train", found.train), ("valid", found.valid))
        for cut in windows
    ]
    assert rows == [json.loads(json.dumps(cut.to_dict())) for cut in cuts]
    assert list(CutSet.from_file(path)) == cuts
    assert list(data.joined(*data.load_windows(path))) == cuts


def test_a_recording_that_vanished_is_named(folder: Path, tmp_path: Path) -> None:
    for seed in range(3):
        write(folder / f"{seed}.wav", seed)
    path = tmp_path / "windows.jsonl.gz"
    path.write_bytes(data.dump_windows(collect([folder], SETTINGS)))
    (folder / "1.wav").unlink()
    with pytest.raises(DistilkitError, match=r"`.*1\.wav` is gone, and this run needs it"):
        data.load_windows(path)


def test_a_manifest_of_windows_that_is_cut_short(tmp_path: Path) -> None:
    cut = MonoCut(id="c", start=0.0, duration=1.0, channel=0, recording=recording("/x.wav"))
    path = tmp_path / "windows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(cut.to_dict()).encode() * 50)[:-20])
    with pytest.raises(DistilkitError, match="cannot be read"):
        data.load_windows(path)


@pytest.mark.slow
def test_the_speech_set() -> None:
    if not os.environ.get("DISTILKIT_SHARED"):
        pytest.skip("DISTILKIT_SHARED is not set")
    found = collect([Path(os.environ["DISTILKIT_SHARED"]) / "speech"], SETTINGS)
    assert found.recordings == 3473
    assert found.reasons()["duplicate"] == 6
    assert found.reasons()["unusable"] == 0
    lengths = {
        Path(cut.recording.id).name: cut.recording.duration for cut in [*found.train, *found.valid]
    }
    assert lengths["alexa_126_damaged.flac"] == pytest.approx(1.94, abs=0.005)
    assert lengths["alexa_34_damaged.flac"] == pytest.approx(1.74, abs=0.005)
