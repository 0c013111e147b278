"""Folders and corpora to lhotse cuts; every skipped file accounted for.

Letters in names: S samples.
"""

import gzip
import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from lhotse import AudioSource, CutSet, MonoCut, Recording

from distilkit import config
from distilkit.audio import BLOCK_SECONDS, SAMPLE_RATE, SUFFIXES, AudioError, Samples, decode
from distilkit.errors import DistilkitError
from distilkit.runs import discard

SILENCE_PEAK = 3e-4  # of full scale (-70 dBFS), after the mean is taken away
QUIET_SECONDS = 0.05  # the stretch whose energy decides where a long recording is cut
CUT_ZONE = 1 / 3  # cuts fall in this last share of the longest window
MAX_UNUSABLE = 0.5  # share of unusable audio files above which a collection is refused

Tracker = Callable[..., Iterable[Any]]


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file that may hold audio, and the id its recording gets."""

    path: Path
    id: str
    audio: bool  # whether its name says that it holds audio, or the user named it

    @property
    def reason(self) -> str:
        """Why a file that is not `audio` is left out."""
        if self.path.suffix.lower() in SUFFIXES:
            return "hidden: its name or its folder's begins with a dot"
        return f"not an audio file ({self.path.suffix.lower() or 'no suffix'})"


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file, or a part of one, that is not used, and why."""

    path: str
    reason: str
    kind: str  # `not audio`, `unusable`, `duplicate` or `silent part`
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A usable recording and its windows as (first sample, samples) at 16 kHz."""

    id: str
    source: Path  # the user's file
    path: Path  # what is read: the same, or its decoded copy
    samples: int
    windows: tuple[tuple[int, int], ...]
    digest: str  # of the decoded samples


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What a set of inputs holds, split by recording."""

    train: list[MonoCut]
    valid: list[MonoCut]
    skipped: list[Skipped]
    recordings: int
    formats: dict[str, int]  # suffix to number of usable files

    @property
    def train_seconds(self) -> float:
        """Seconds of audio to train on."""
        return float(sum(cut.duration for cut in self.train))

    @property
    def valid_seconds(self) -> float:
        """Seconds of audio to validate on."""
        return float(sum(cut.duration for cut in self.valid))

    def reasons(self) -> Counter[str]:
        """How many files or parts were left out, by kind."""
        return Counter(item.kind for item in self.skipped)


def untracked(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    """A tracker that shows nothing."""
    return items


def cache_folder() -> Path:
    """Where decoded copies are kept: `$DISTILKIT_CACHE`, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("DISTILKIT_CACHE") or Path(base) / "distilkit") / "audio"


def collect(
    inputs: Sequence[str | Path],
    settings: config.Data,
    *,
    seed: int = 0,
    cache: Path | None = None,
    track: Tracker = untracked,
) -> Collection:
    """Read folders, files and lhotse manifests into training and validation windows.

    Args:
        inputs: folders (searched in depth), audio files, or lhotse manifests.
        settings: window length, least length, share held out.
        seed: decides which recordings are held out.
        cache: where decoded copies go; the user's cache folder when None.
        track: wraps an iterable to show progress; called with `description` and `total`.

    Raises:
        DistilkitError: an input is missing, there is no audio, or most of it is unusable.
    """
    found = list(find(inputs))
    clips: list[Clip] = []
    skipped: list[Skipped] = []
    first: dict[str, str] = {}
    for item in track(
        scan(found, settings, cache or cache_folder()),
        description="reading audio",
        total=len(found),
    ):
        if isinstance(item, Skipped):
            skipped.append(item)
        elif item.digest in first:
            reason = f"same sound as {first[item.digest]}"
            skipped.append(
                Skipped(
                    path=shown(item.source),
                    reason=reason,
                    kind="duplicate",
                    seconds=item.samples / SAMPLE_RATE,
                )
            )
        elif isinstance(item, Clip):
            first[item.digest] = item.id
            clips.append(item)
    unusable = [item for item in skipped if item.kind == "unusable"]
    tried = len(clips) + len(unusable)
    names = ", ".join(f"`{item}`" for item in inputs)
    if not tried:
        raise DistilkitError(
            f"no audio in {names}: {len(skipped)} files, none with a known audio suffix"
            if skipped
            else f"no audio in {names}: no files at all",
        )
    if len(unusable) > MAX_UNUSABLE * tried:
        listed = "".join(f"\n  {item.path}: {item.reason}" for item in unusable[:5])
        more = f"\n  and {len(unusable) - 5} more" if len(unusable) > 5 else ""
        raise DistilkitError(
            f"{len(unusable)} of {tried} audio files in {names} cannot be used:{listed}{more}",
            "mend or remove them; distilkit inspect FOLDER lists them all",
        )
    for clip in clips:
        skipped += _silent_parts(clip)
    train, valid = split(clips, settings, seed)
    return Collection(
        train=[cut for clip in train for cut in cuts(clip)],
        valid=[cut for clip in valid for cut in cuts(clip)],
        skipped=skipped,
        recordings=len(clips),
        formats=dict(Counter(clip.source.suffix.lower() for clip in clips).most_common()),
    )


# ---------------------------------------------------------------------------------------- finding


def find(inputs: Sequence[str | Path]) -> Iterator[Found]:
    """Every file under the inputs, each once, in a fixed order; links that go round are harmless.

    Raises:
        DistilkitError: an input does not exist or cannot be reached, or is a manifest with sources
            that are not files.
    """
    seen: set[tuple[int, int]] = set()
    taken: Counter[str] = Counter()
    several = len(inputs) > 1
    for root in map(Path, inputs):
        try:
            root.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise DistilkitError(f"no such file or folder: `{root}`", _nearby(root)) from None
        except OSError as error:
            raise DistilkitError(f"cannot open `{root}`: {error.strerror}") from error
        for path, name, audio in _candidates(root, several, seen):
            id = shown(name)
            taken[id] += 1
            yield Found(path=path, id=id if taken[id] == 1 else f"{id}#{taken[id]}", audio=audio)


def shown(path: Path | str) -> str:
    """A path as text that can be written anywhere: bytes that are not UTF-8 become `\\udcff`."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _candidates(
    root: Path, several: bool, seen: set[tuple[int, int]]
) -> Iterator[tuple[Path, str, bool]]:
    if root.is_dir():
        prefix = f"{root.resolve().name}/" if several else ""
        for path in _walk(root, seen):
            relative = path.relative_to(root)
            # What macOS, editors and trash bins leave begins with a dot.
            hidden = any(part.startswith(".") for part in relative.parts)
            audio = path.suffix.lower() in SUFFIXES or path.is_dir()
            yield path, prefix + relative.as_posix(), audio and not hidden
    elif root.name.endswith((".jsonl", ".jsonl.gz")):
        for path in dict.fromkeys(_manifest_files(root)):
            yield path, path.name, True
    else:
        yield root, root.name, True


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Files below a folder, sorted; each folder is entered once, whatever links to it.

    A folder that cannot be opened is given back itself; decoding it says why.
    """
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        yield folder
        return
    key = (status.st_dev, status.st_ino)
    if key in seen:
        return
    seen.add(key)
    for entry in entries:
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link that goes round in a circle: decoding will say so
            is_folder = False
        if is_folder:
            yield from _walk(Path(entry.path), seen)
        else:
            yield Path(entry.path)


def _manifest_files(manifest: Path) -> Iterator[Path]:
    """The audio files that a lhotse recording or cut manifest names.

    Raises:
        DistilkitError: not a manifest, or a source that is not a file (a command is never run).
    """
    from lhotse.serialization import load_jsonl

    try:
        for row in load_jsonl(manifest):
            recording = row.get("recording", row)
            for source in recording["sources"]:
                if source["type"] != "file":
                    raise DistilkitError(
                        f"`{manifest}` has a source of type `{source['type']}`; only files are read"
                    )
                yield _beside(Path(source["source"]), manifest)
    except (
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        OSError,
        EOFError,
        zlib.error,
    ) as error:
        raise DistilkitError(
            f"`{manifest}` is not a lhotse manifest of recordings or cuts",
            "give the folder with the audio instead",
        ) from error


def _beside(path: Path, manifest: Path) -> Path:
    """A relative path is taken from the working folder, as lhotse does, or from the manifest's."""
    if "\0" in str(path):
        raise ValueError("a name with a zero byte")
    other = manifest.parent / path
    return other if not path.exists() and other.exists() else path


def _nearby(missing: Path) -> str | None:
    from distilkit.errors import did_you_mean

    parent = missing.parent
    names = [path.name for path in parent.iterdir()] if parent.is_dir() else []
    hint = did_you_mean(missing.name, names)
    return hint.replace("`", f"`{parent}/", 1) if hint and str(parent) != "." else hint


# --------------------------------------------------------------------------------------- scanning


def scan(found: Iterable[Found], settings: config.Data, cache: Path) -> Iterator[Clip | Skipped]:
    """Decode every file once and say what it is: a usable clip, or skipped with its reason.

    What cannot be read exactly in place is kept as a decoded copy under `cache`.
    """
    for item in found:
        if not item.audio:
            yield Skipped(path=shown(item.path), reason=item.reason, kind="not audio")
            continue
        try:
            yield _scan_file(item, settings, cache)
        except AudioError as error:
            reason = shown(error.about(item.path))
            yield Skipped(path=shown(item.path), reason=reason, kind="unusable")


def _scan_file(item: Found, settings: config.Data, cache: Path) -> Clip:
    path, measure = item.path, _Measure(settings)
    sound = decode(path)
    in_place = sound.header is not None and sound.header.exact
    if in_place:
        for block in sound.blocks:
            measure.add(block)
    if not in_place or sound.repaired:
        path, measure = _copy_path(item.path, cache), _Measure(settings)
        if not _read_copy(path, measure):
            measure = _Measure(settings)
            _write_copy(decode(item.path).blocks, path, measure)
    windows = measure.finish()
    seconds = measure.samples / SAMPLE_RATE
    if not measure.samples:
        raise AudioError("holds no samples")
    if seconds < settings.min_seconds:
        raise AudioError(f"{seconds:.3f} s is shorter than {settings.min_seconds:g} s")
    if not windows:
        raise AudioError(f"silent: {seconds:.1f} s below {20 * np.log10(SILENCE_PEAK):.0f} dBFS")
    return Clip(
        id=item.id,
        source=item.path,
        path=path,
        samples=measure.samples,
        windows=tuple(windows),
        digest=measure.digest.hexdigest(),
    )


def _copy_path(path: Path, cache: Path) -> Path:
    status = path.stat()
    key = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return cache / digest[:2] / f"{digest}.flac"


def _read_copy(copy: Path, measure: "_Measure") -> bool:
    """Measure an earlier decoded copy; False where there is none, or it is damaged."""
    try:
        for block in decode(copy).blocks:
            measure.add(block)
    except AudioError:
        return False
    return True


def _write_copy(blocks: Iterator[Samples], copy: Path, measure: "_Measure") -> None:
    """Keep decoded sound as 16-bit FLAC; what goes beyond full scale is scaled down as a whole.

    Moved to its place whole, but not forced to the disk, which takes longer than all the rest: a
    copy that a power cut spoils is made again.

    Raises:
        DistilkitError: the copy cannot be written; an AudioError is about the source.
    """
    beside = copy.with_name(f".{copy.name}.{os.getpid()}")
    raw = beside.with_name(f"{beside.name}.f32")
    peak = 1.0
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            with raw.open("wb") as file:
                for block in blocks:
                    peak = max(peak, float(np.abs(block).max(initial=0.0)))
                    file.write(block.tobytes())
            with (
                raw.open("rb") as source,
                soundfile.SoundFile(beside, "w", SAMPLE_RATE, 1, "PCM_16", format="FLAC") as out,
            ):
                while data := source.read(int(BLOCK_SECONDS * SAMPLE_RATE) * 4):
                    scaled = np.frombuffer(data, np.float32) * np.float32(32768 / peak)
                    steps = np.clip(np.rint(scaled), -32768, 32767).astype(np.int16)
                    out.write(steps)
                    measure.add(steps.astype(np.float32) / np.float32(32768))
            os.replace(beside, copy)
        finally:
            discard(raw)
            discard(beside)
    except (OSError, soundfile.LibsndfileError) as error:
        raise DistilkitError(
            f"cannot keep decoded audio in `{copy.parent.parent}`: "
            f"{getattr(error, 'strerror', None) or error}",
            "DISTILKIT_CACHE=FOLDER, with a folder that can be written and has room",
        ) from error


class _Measure:
    """Counts, hashes and cuts a recording while it streams by, at flat memory."""

    def __init__(self, settings: config.Data) -> None:
        self.samples = 0
        self.digest = hashlib.sha1(usedforsecurity=False)
        self._longest = int(settings.window_seconds * SAMPLE_RATE)
        self._least = int(settings.min_seconds * SAMPLE_RATE)
        self._start = 0
        self._waiting = np.zeros(0, np.float32)
        self._windows: list[tuple[int, int]] = []

    def add(self, block: Samples) -> None:
        """Take the next samples."""
        self.samples += len(block)
        self.digest.update(np.ascontiguousarray(block).data)
        self._waiting = block if not len(self._waiting) else np.concatenate([self._waiting, block])
        while len(self._waiting) >= 2 * self._longest:
            self._emit(quietest(self._waiting, int(self._longest * (1 - CUT_ZONE)), self._longest))

    def finish(self) -> list[tuple[int, int]]:
        """The windows that hold sound."""
        while len(self._waiting) > self._longest:
            last = min(self._longest, len(self._waiting) - self._least)
            self._emit(
                quietest(self._waiting, min(int(self._longest * (1 - CUT_ZONE)), last), last)
            )
        if len(self._waiting) >= self._least:
            self._emit(len(self._waiting))
        return self._windows

    def _emit(self, length: int) -> None:
        window = self._waiting[:length]
        if _has_sound(window):
            self._windows.append((self._start, length))
        self._start += length
        self._waiting = self._waiting[length:]


def _has_sound(window: Samples) -> bool:
    high, low = float(window.max()), float(window.min())
    if (high - low) / 2 < SILENCE_PEAK:
        return False
    if max(high, -low) > 100 * SILENCE_PEAK:
        return True
    return float(np.abs(window - window.mean()).max()) >= SILENCE_PEAK


def quietest(sound_S: Samples, first: int, last: int) -> int:
    """The place between samples `first` and `last` where the sound is quietest.

    Energy is taken over stretches of `QUIET_SECONDS`; the middle of the quietest is returned.
    """
    step = int(QUIET_SECONDS * SAMPLE_RATE)
    stretches = (last - first) // step
    if stretches < 1:
        return last
    energy = np.square(sound_S[first : first + stretches * step].reshape(stretches, step)).sum(1)
    return first + int(energy.argmin()) * step + step // 2


def _silent_parts(clip: Clip) -> Iterator[Skipped]:
    """The stretches of a usable recording that no window covers."""
    at = 0
    for start, length in [*clip.windows, (clip.samples, 0)]:
        if start > at:
            span = f"{at / SAMPLE_RATE:.2f} to {start / SAMPLE_RATE:.2f} s"
            yield Skipped(
                path=shown(clip.source),
                reason=f"silent from {span}",
                kind="silent part",
                seconds=(start - at) / SAMPLE_RATE,
            )
        at = start + length


# --------------------------------------------------------------------------------------- splitting


def split(clips: Sequence[Clip], settings: config.Data, seed: int) -> tuple[list[Clip], list[Clip]]:
    """Hold out whole recordings, drawn by seed, until the wanted share of the audio is reached.

    At least one recording is held out where there are two or more, and at least one is kept.
    """
    total = sum(clip.samples for clip in clips)
    wanted = min(settings.valid_fraction * total, settings.valid_minutes * 60 * SAMPLE_RATE)
    valid: set[int] = set()
    if wanted > 0 and len(clips) > 1:
        order = np.random.default_rng([seed, len(clips)]).permutation(len(clips))
        held = 0
        for index in order:
            size = clips[index].samples
            if held + size <= 1.5 * wanted:  # never more than three quarters of everything
                valid.add(int(index))
                held += size
            if held >= wanted:
                break
        if not valid:  # every recording is longer than the share: the shortest one it is
            valid.add(min(range(len(clips)), key=lambda index: clips[index].samples))
    train = [clip for index, clip in enumerate(clips) if index not in valid]
    return train, [clip for index, clip in enumerate(clips) if index in valid]


def cuts(clip: Clip) -> list[MonoCut]:
    """The windows of a clip as lhotse cuts."""
    recording = Recording(
        id=clip.id,
        sources=[AudioSource(type="file", channels=[0], source=str(clip.path.absolute()))],
        sampling_rate=SAMPLE_RATE,
        num_samples=clip.samples,
        duration=clip.samples / SAMPLE_RATE,
    )
    return [
        MonoCut(
            id=clip.id if len(clip.windows) == 1 else f"{clip.id}@{start / SAMPLE_RATE:.2f}",
            start=start / SAMPLE_RATE,
            duration=length / SAMPLE_RATE,
            channel=0,
            recording=recording,
            custom={"source": str(clip.source.absolute())},
        )
        for start, length in clip.windows
    ]


# --------------------------------------------------------------------------------------- on disk


def dump_windows(collection: Collection) -> bytes:
    """The windows as a gzipped lhotse cut manifest; `custom.split` says which validate."""
    import json

    rows = []
    for name, windows in (("train", collection.train), ("valid", collection.valid)):
        for cut in windows:
            row = cut.to_dict()
            row["custom"] = {**row.get("custom", {}), "split": name}
            rows.append(json.dumps(row) + "\n")  # ASCII, so that any file name can be written
    return gzip.compress("".join(rows).encode(), mtime=0)


def load_windows(path: Path) -> tuple[list[MonoCut], list[MonoCut]]:
    """Training and validation windows from a manifest that `dump_windows` made.

    Raises:
        DistilkitError: the manifest or one of the audio files in it is gone.
    """
    try:
        windows = list(CutSet.from_file(path))
    except (OSError, ValueError, EOFError) as error:
        raise DistilkitError(f"`{path}` cannot be read: {error}") from error
    for name in {cut.recording.sources[0].source for cut in windows}:
        if not Path(name).is_file():
            raise DistilkitError(
                f"`{name}` is gone, and this run needs it", "start a new run with another --out"
            )
    train = [cut for cut in windows if cut.custom["split"] == "train"]
    return train, [cut for cut in windows if cut.custom["split"] == "valid"]


def dump_skipped(skipped: Sequence[Skipped]) -> str:
    """The skipped files as tab-separated text with a header line."""

    def plain(text: str) -> str:
        return text.replace("\t", " ").replace("\n", " ")

    rows = [
        f"{item.kind}\t{item.seconds:.2f}\t{plain(item.path)}\t{plain(item.reason)}"
        for item in skipped
    ]
    return "\n".join(["kind\tseconds\tpath\treason", *rows]) + "\n"
