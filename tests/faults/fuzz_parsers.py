"""Coverage-guided fuzzing of the parsers that are ours: whatever the bytes, only our own error may come out.

pip install 'distilkit[fuzz]'
python tests/faults/fuzz_parsers.py --minutes 3 --record
python tests/faults/fuzz_parsers.py --only arpa --minutes 1

atheris varies bytes towards code that was not reached yet. What ends in another error, takes more than 10
seconds or more than 2 GiB is a finding; its bytes are kept beside what was said.
"""

import argparse
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "benchmarks"), str(ROOT)]
os.environ.update({"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
SECONDS, MEBIBYTES = 10, 2048  # the most that one input may take


@dataclass(frozen=True)
class Target:
    """A parser, and bytes to begin with."""

    parse: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]


def _file(suffix: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    """A parser of a file as one of bytes."""

    def parse(data: bytes, folder: Path) -> object:
        path = folder / f"input{suffix}"
        path.write_bytes(data)
        return read(path)

    return parse


def _arpa(path: Path) -> object:
    from distilkit import ngram

    return ngram.read(path).sentence(["a", "b", "c"])


def _table(path: Path) -> object:
    from distilkit.data import tables

    columns, rows = tables.table(path)
    return [columns, list(rows)]


def _manifest(data: bytes, folder: Path) -> object:
    """Cuts of lhotse, for their words and for their sound."""
    from distilkit import data as collections
    from distilkit.data import transcripts

    path = folder / "cuts.jsonl"
    path.write_bytes(data)
    with contextlib.suppress(_error()):
        transcripts.texts([path])
    return list(collections.find([path]))


TEXTS = {  # files of a layout that the bytes become, parted by zero bytes
    "kaldi": ("wav.scp", "text", "segments", "utt2spk"),
    "ljspeech": ("metadata.csv",),
    "librispeech": ("1-2.trans.txt",),
    "common voice": ("validated.tsv",),
    "nemo": ("train.json",),
    "sidecars": ("a.txt", "b.lab"),
    "recordings": ("x_recordings.jsonl", "x_supervisions.jsonl"),
}


def _layouts(data: bytes, folder: Path) -> object:
    """The first byte chooses a layout, the others are its files."""
    from distilkit.data import transcripts

    name = list(TEXTS)[data[0] % len(TEXTS)] if data else "kaldi"
    place = folder / "corpus"
    shutil.rmtree(place, ignore_errors=True)
    for inner in ("wavs", "clips"):
        (place / inner).mkdir(parents=True)
    for sound in ("a.wav", "b.wav", "wavs/a.wav", "clips/a.wav", "1-2-3.flac"):
        (place / sound).touch()
    for file, content in zip(TEXTS[name], data[1:].split(b"\0"), strict=False):
        (place / file).write_bytes(content)
    return transcripts.texts([place])


def _recipe(path: Path) -> object:
    from distilkit import config

    found = config.load_recipe(str(path))
    again = path.with_name("again.toml")
    again.write_text(config.dump_recipe(found), encoding="utf-8")
    assert config.load_recipe(str(again)) == found
    return found


def _live(data: bytes, folder: Path) -> object:
    from distilkit import audio

    for block in audio.live(io.BytesIO(data)):
        assert len(block) == 0 or abs(float(block.max())) < float("inf")
    return None


def _sndfile_log(data: bytes, folder: Path) -> object:
    from distilkit import audio

    text = data.decode("utf-8", "replace")
    for format in ("WAV", "W64"):
        audio._check_whole(Path("a"), format, text)
    return None


def _ogg(path: Path) -> object:
    from distilkit import audio

    return audio._chained(path)


def _archive(path: Path) -> object:
    from distilkit.data import archives

    return [archives.read(held) for held in archives.listed(path) if not held.problem]


def _checkpoint(path: Path) -> object:
    from distilkit.teachers import files

    held = files.load(path)
    return [files.plain(value) for value in held.values()]


def _convolutions(data: bytes, folder: Path) -> object:
    from distilkit.teachers import layout

    return layout.conv_layers("a", data.decode("utf-8", "replace"))


def _configuration(data: bytes, folder: Path) -> object:
    from distilkit.teachers import huggingface

    (folder / "config.json").write_bytes(data)
    return huggingface.configuration(folder)


def _export(data: bytes, folder: Path) -> object:
    from distilkit import exported

    (folder / "export.json").write_bytes(data)
    return exported.read(folder)


def _stored(data: bytes, folder: Path) -> object:
    """Lines of where things lie, a zero byte, and what lies there."""
    from distilkit import data as collections
    from distilkit import stored

    kept = stored.Kept(
        model="m", layers=(1,), normalise=False, codebook="", arithmetic="fp32", form="fp16", widths=(4,)
    )  # fmt: skip
    place = folder / "store"
    store = stored.Store(place, kept)
    lines, _, numbers = data.partition(b"\0")
    (place / "part-0.jsonl").write_bytes(lines)
    (place / "part-0.bin").write_bytes(numbers)
    store = stored.Store(place, kept)
    clip = collections.Clip(
        id="a", source=Path("a"), path=Path("a"), samples=720, windows=((0, 720),), digest="d", stamp=""
    )  # fmt: skip
    (cut,) = collections.cuts(clip)
    return None if store.missing([cut]) else store.read(cut)


def _checkpoint_state(data: bytes, folder: Path) -> object:
    from distilkit.runs import Run

    place = folder / "run" / "checkpoints" / "step-00000001"
    place.mkdir(parents=True, exist_ok=True)
    (place / "state.json").write_bytes(data)
    (place / "tensors.safetensors").write_bytes(b"")
    (folder / "run" / "metrics.jsonl").write_bytes(data)
    run = Run(folder / "run")
    with contextlib.suppress(_error()):
        run.rows("metrics.jsonl")
    return run.load_checkpoint()


def _error() -> type[Exception]:
    from distilkit.errors import DistilkitError

    return DistilkitError


# ------------------------------------------------------------------------------- what to begin with


def _of(kind: str, *suffixes: str) -> Callable[[], list[bytes]]:
    """Files of the undamaged input of a campaign, with these ends of their names."""

    def seeds() -> list[bytes]:
        import importlib

        module: Any = importlib.import_module(f"mutate_{kind}")
        with tempfile.TemporaryDirectory() as name:
            module.seeds(Path(name))
            paths = sorted(path for path in Path(name).rglob("*") if path.is_file())
            return [path.read_bytes() for path in paths if path.name.endswith(suffixes)]

    return seeds


def _texts() -> list[bytes]:
    contents = [
        b"a a.wav\nb b.wav\n\0a one two\nb three\n\0a a 0.0 1.5\n\0a ada\n", b"a|one|one\n", b"1-2-3 ONE TWO\n",
        b"path\tsentence\na.wav\tone\n", b'{"audio_filepath": "a.wav", "text": "one", "duration": 1.0}\n',
        b"one two\0three\n",
        b'{"id": "a", "sources": [{"type": "file", "channels": [0], "source": "a.wav"}]}\n\0'
        b'{"id": "a", "recording_id": "a", "start": 0.0, "duration": 1.0, "text": "one"}\n',
    ]  # fmt: skip
    return [bytes([number]) + content for number, content in enumerate(contents)]


def _journal() -> list[bytes]:
    row = {"window": "d@0+720", "at": 0, "size": 16, "powers": [0], "kept": 0, "wave": 0}
    return [json.dumps(row).encode() + b"\n\0" + bytes(16)]


LOG = b"data : 32000 (should be 16000)\nRIFF : 4294967295 (should be 36)\nData Size : 7 (should be 9)\n"
TARGETS = {
    "arpa": Target(_file(".arpa", _arpa), _of("text", ".arpa")),
    "csv": Target(_file(".csv", _table), _of("text", ".csv", ".tsv")),
    "json lines": Target(_file(".jsonl", _table), _of("text", ".jsonl", "manifest.json")),
    "lhotse cuts": Target(_manifest, _of("text", ".jsonl")),
    "layouts": Target(_layouts, _texts),
    "recipe": Target(_file(".toml", _recipe), _of("text", ".toml")),
    "wave on a pipe": Target(_live, _of("audio", ".wav")),
    "libsndfile's log": Target(_sndfile_log, lambda: [LOG]),
    "ogg pages": Target(_file(".ogg", _ogg), _of("audio", ".ogg", ".opus")),
    "tar": Target(_file(".tar", _archive), _of("audio", ".tar")),
    "pickle": Target(_file(".pt", _checkpoint), _of("checkpoints", ".pt", ".ckpt")),
    "safetensors": Target(_file(".safetensors", _checkpoint), _of("checkpoints", ".safetensors")),
    "convolutions": Target(_convolutions, lambda: [b"[(512,10,5)] + [(512,3,2)] * 4"]),
    "config.json": Target(_configuration, _of("checkpoints", "config.json")),
    "export.json": Target(_export, _of("checkpoints", "export.json")),
    "stored targets": Target(_stored, _journal),
    "run": Target(_checkpoint_state, _of("checkpoints", "state.json", "metrics.jsonl")),
}


# --------------------------------------------------------------------------------------- running


def fuzz(name: str, options: list[str]) -> None:
    """Fuzz one parser in this process; it does not return."""
    import atheris

    with atheris.instrument_imports(include=["distilkit", "tomllib", "tarfile"]):
        import distilkit.config
        import distilkit.data
        import distilkit.exported
        import distilkit.ngram
        import distilkit.stored
        import distilkit.teachers.files  # noqa: F401
    refused, target = _error(), TARGETS[name]
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))

    def one(data: bytes) -> None:
        with contextlib.suppress(refused):
            target.parse(data, folder)

    atheris.Setup([sys.argv[0], *options], one)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def campaign(name: str, minutes: float, found: Path) -> dict[str, Any]:
    """Fuzz one parser in a process of its own; how many inputs it was given, and what was found."""
    corpus = Path(tempfile.mkdtemp())
    seeds = TARGETS[name].seeds()
    assert seeds, name
    for number, content in enumerate(seeds):
        (corpus / f"seed-{number:03d}").write_bytes(content)
    longest = max(4096, 2 * max(map(len, seeds)))
    prefix = found / re.sub(r"\W", "-", name)
    options = [
        str(corpus), f"-max_total_time={int(60 * minutes)}", f"-timeout={SECONDS}", f"-max_len={longest}",
        f"-rss_limit_mb={MEBIBYTES}", f"-artifact_prefix={prefix}-", "-print_final_stats=1", "-seed=1",
    ]  # fmt: skip
    line = [sys.executable, __file__, "--inside", name, *options]
    done = subprocess.run(line, capture_output=True, text=True, errors="replace", cwd=ROOT)
    counted = re.findall(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    covered = re.findall(r"\bcov: (\d+)", done.stderr)
    findings = sorted(path.name for path in found.glob(f"{prefix.name}-*"))
    if done.returncode and not findings:
        findings = [f"ended with {done.returncode}"]
    if findings:
        print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
    shutil.rmtree(corpus)
    return {
        "parser": name, "seeds": len(seeds), "inputs": int(counted[-1]) if counted else 0, "minutes": minutes,
        "covered": int(covered[-1]) if covered else 0, "findings": findings,
    }  # fmt: skip


def main() -> None:
    """Fuzz all parsers, or one."""
    if sys.argv[1:2] == ["--inside"]:
        fuzz(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    found = (
        Path(os.environ.get("HOSTILE_CASES", Path(tempfile.gettempdir()) / "hostile-cases"))
        / "fuzz"
    )
    found.mkdir(parents=True, exist_ok=True)
    for old in found.iterdir():
        old.unlink()
    failed = 0
    for name in [asked.only] if asked.only else TARGETS:
        values = campaign(name, asked.minutes, found)
        failed += len(values["findings"])
        values["command"] = (
            f"python tests/faults/fuzz_parsers.py --only {shlex.quote(name)} --minutes {asked.minutes}"
        )
        if asked.record:
            from record import record

            record("reliability", {"what": "fuzzing", **values})
        else:
            print(json.dumps(values), flush=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
