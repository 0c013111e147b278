"""Decode every file once, and say what it is: a clip with its windows, or skipped with a reason.

Letters in names: S samples.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from distilkit import config, flac, leftovers
from distilkit.audio import BLOCK_SECONDS, SAMPLE_RATE, AudioError, Samples, decode
from distilkit.data import archives
from distilkit.data.find import Found, shown
from distilkit.errors import DistilkitError

SILENCE_PEAK = 3e-4  # of full scale (-70 dBFS), after the mean is taken away
QUIET_SECONDS = 0.05  # the stretch whose energy decides where a long recording is cut
FLAC_SOUND = slice(26, 42)  # bytes of a FLAC file that hold the MD5 of its samples
CUT_ZONE = 1 / 3  # cuts fall in this last share of the longest window


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file, or a part of one, that is not used, and why."""

    path: str
    reason: str
    kind: str  # `not audio`, `unusable`, `duplicate`, `silent part`; of text see `transcripts`
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
    stamp: str  # size and time of what is read, to notice changes
    rate: int = 0  # Hz, of the user's file; 0 where FFmpeg reads it


def cache_folder() -> Path:
    """Where decoded copies are kept: `$DISTILKIT_CACHE`, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("DISTILKIT_CACHE") or Path(base) / "distilkit") / "audio"


def tidy_cache() -> None:
    """Remove what killed processes left there half-written, also where a command has nothing to do."""
    for place in (cache_folder(), cache_folder().parent):
        leftovers.clear(place)


def scan(found: Iterable[Found], settings: config.Data, cache: Path) -> Iterator[Clip | Skipped]:
    """Decode every file once and say what it is: a usable clip, or skipped with its reason.

    What cannot be read exactly in place is kept as a decoded copy under `cache`.
    """
    leftovers.clear(cache)  # also where every copy is there, and none is written
    for item in found:
        if not item.audio:
            yield Skipped(path=shown(item.path), reason=item.reason, kind="not audio")
            continue
        path = item.path
        try:
            if item.problem:
                raise AudioError(item.problem)
            path = _file(item, cache)
            yield _scan_file(item, path, settings, cache)
        except AudioError as error:
            reason = shown(error.about(path))
            yield Skipped(path=shown(item.path), reason=reason, kind="unusable")


def _scan_file(item: Found, origin: Path, settings: config.Data, cache: Path) -> Clip:
    path, measure, before = origin, _Measure(settings), stamp(origin)
    sound = decode(path)
    in_place = sound.header is not None and sound.header.exact
    if in_place:
        for block in sound.blocks:
            measure.add(block)
    if not in_place or sound.repaired:
        path, measure = _copy_path(origin, cache), _Measure(settings)
        if not _read_copy(path, measure):
            measure = _Measure(settings)
            _write_copy(decode(origin).blocks, path, measure)
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
        stamp=before if path == origin else stamp(path),
        rate=sound.header.rate if sound.header else 0,
    )


def _file(item: Found, cache: Path) -> Path:
    """The file itself; of what lies in an archive its bytes, kept under `cache`."""
    if item.held is None:
        return item.path
    name = f"{item.held.archive.resolve()}/{item.held.name}"
    return archives.kept(archives.read(item.held), name, cache)


def _copy_path(path: Path, cache: Path) -> Path:
    status = path.stat()
    key = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return cache / digest[:2] / f"{digest}.flac"


def _read_copy(copy: Path, measure: "_Measure") -> bool:
    """Measure an earlier decoded copy; False where there is none, or its sound is not what was written.

    Nor does one do that only FFmpeg can make sense of: training reads windows of it in place.
    """
    sound = hashlib.md5(usedforsecurity=False)
    try:
        decoded = decode(copy)
        for block in decoded.blocks:
            measure.add(block)
            steps = np.clip(block * 32768, -32768, 32767)
            sound.update(steps.astype("<i2").tobytes())
        if decoded.repaired or decoded.header is None or not decoded.header.exact:
            return False
        with copy.open("rb") as file:
            return file.read(FLAC_SOUND.stop)[FLAC_SOUND] == sound.digest()
    except (AudioError, OSError):
        return False


def _write_copy(blocks: Iterator[Samples], copy: Path, measure: "_Measure") -> None:
    """Keep decoded sound as 16-bit FLAC; what goes beyond full scale is scaled down as a whole.

    Moved to its place whole, but not forced to the disk, which takes longer than all the rest: a
    copy that a power cut spoils is made again.

    Raises:
        DistilkitError: the copy cannot be written; an AudioError is about the source.
    """
    peak = 1.0
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with leftovers.temporary(copy.parent.parent) as folder:
            raw, beside = folder / "raw.f32", folder / copy.name
            with raw.open("wb") as file:
                for block in blocks:
                    peak = max(peak, float(np.abs(block).max(initial=0.0)))
                    file.write(block.tobytes())
            with raw.open("rb") as source, flac.writing(beside) as out:
                while data := source.read(int(BLOCK_SECONDS * SAMPLE_RATE) * 4):
                    scaled = np.frombuffer(data, np.float32) * np.float32(32768 / peak)
                    steps = np.clip(np.rint(scaled), -32768, 32767).astype(np.int16)
                    out.write(steps)
                    measure.add(steps.astype(np.float32) / np.float32(32768))
            os.replace(beside, copy)
    except OSError as error:
        raise DistilkitError(
            f"cannot keep decoded audio in `{copy.parent.parent}`: {error.strerror or error}",
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


def stamp(path: Path) -> str:
    """Size and time of a file; nothing where it is gone."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size}:{status.st_mtime_ns}"


def still(path: Path, before: str, digest: str) -> bool:
    """Whether a file has the sound that it was scanned with.

    Args:
        path: the file.
        before: its stamp then; where it has another now, its samples are compared.
        digest: of its samples then.
    """
    now = stamp(path)
    return now == before or _sound(path, now) == digest


@lru_cache(maxsize=4096)
def _sound(path: Path, now: str) -> str:
    """The digest of a file's samples as `_Measure` has it; nothing where it cannot be read."""
    digest = hashlib.sha1(usedforsecurity=False)
    try:
        for block in decode(path).blocks:
            digest.update(np.ascontiguousarray(block).data)
    except AudioError:
        return ""
    return digest.hexdigest()


def silent_parts(clip: Clip) -> Iterator[Skipped]:
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
