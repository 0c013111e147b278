"""Targets computed once and kept on disk: every further pass needs no teacher.

A store is a folder:

    store.json      what is kept: whose layers, in which form
    part-0.bin      the numbers, a window behind the other, as they were computed
    part-0.jsonl    where each window lies, with checksums; a window is there once its line is whole

Each process that computes writes a part of its own. Windows are known by their sound, so a recording
that was renamed is found again and one that was changed is not.

Parts are read, not mapped: a mapped file that is cut short under a process ends it without a word,
and what is read lies in the same cache of the system.

Letters in names: T frames, D width.
"""

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from lhotse import MonoCut
from torch import Tensor

from distilkit import config, leftovers
from distilkit.audio import SAMPLE_RATE, frames
from distilkit.batches import Batch, ahead, out_of_memory
from distilkit.data import pick, samples
from distilkit.errors import DistilkitError, enclosed
from distilkit.files import MALFORMED, make_parent, parse_json, read_object, replacing, unwritable
from distilkit.listeners import in_order
from distilkit.targets import Targets

FORMAT = 1  # of the folder
DESCRIPTION = "store.json"
HALF_MOST = 2.0**15  # fp16 holds numbers up to twice that
Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a store holds; two stores of the same are interchangeable."""

    model: str  # fingerprint of the teacher; empty for MFCC
    layers: tuple[int, ...]
    normalise: bool
    codebook: str  # digest of the centres that units are nearest to; empty for features
    arithmetic: config.Precision  # that the teacher ran in
    form: config.Stored  # of features; units are whole numbers in any case
    widths: tuple[int, ...]  # D of each target; 0 for units

    @property
    def name(self) -> str:
        """A short name that differs where anything differs."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:12]

    @property
    def bytes_per_frame(self) -> int:
        """Bytes that one frame takes."""
        return bytes_per_frame(self.form, self.widths)


def bytes_per_frame(form: config.Stored, widths: Sequence[int]) -> int:
    """Bytes that one frame of targets of these widths takes; units have width 0."""
    each = {"fp16": 2, "int8": 1}[form]
    scale = {"fp16": 0, "int8": 4}[form]
    return sum(each * width + scale if width else 4 for width in widths)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a window's targets lie."""

    part: str
    at: int  # bytes from the part's beginning
    size: int  # bytes
    powers: tuple[int, ...]  # fp16 targets were divided by 2 to these
    kept: int  # checksum of the bytes
    wave: int  # checksum of the sound


class Store:
    """A folder of targets."""

    def __init__(self, folder: Path, kept: Kept) -> None:
        """Open a store, or begin one.

        Raises:
            DistilkitError: it holds something else, or cannot be read.
        """
        self.folder, self.kept = folder, kept
        if folder.is_dir():
            enclosed(folder)  # it is read, and written to
        path = folder / DESCRIPTION
        said = {"format": FORMAT, **json.loads(json.dumps(asdict(kept)))}
        if not path.is_file():
            make_parent(path)
            with replacing(path) as beside:
                beside.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        found = read_object(path, _anew(folder))
        if found != said:
            differ = [key for key in said if found.get(key) != said[key]]
            raise DistilkitError(
                f"`{folder}` holds targets of something else: `{differ[0] if differ else 'more'}` differs",
                _anew(folder),
            )
        self._places: dict[str, Place] = {}
        self._files: dict[str, IO[bytes]] = {}
        self._right: set[str] = set()  # windows whose bytes were checked in this process
        self.refresh()

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            file.close()

    def __getstate__(self) -> dict[str, Any]:
        """For processes that load: files are opened there."""
        return {**self.__dict__, "_files": {}}

    def refresh(self) -> None:
        """See what other processes have added."""
        for journal in filter(Path.is_file, sorted(self.folder.glob("part-*.jsonl"))):
            self._places |= _read_journal(journal)

    def missing(self, windows: Sequence[MonoCut]) -> Sequence[MonoCut]:
        """Those windows whose targets are not here yet."""
        left = [place for place, cut in enumerate(windows) if cut not in self]
        return pick(windows, left)

    def __contains__(self, cut: MonoCut) -> bool:
        return window_key(cut) in self._places

    def read(self, cut: MonoCut, wave_S: Tensor | None = None) -> list[Tensor]:
        """A window's targets, (T, D) in fp16 or (T,) whole numbers each.

        Args:
            cut: the window.
            wave_S: its sound, as it was just read; None where it is known to be the same.

        Raises:
            DistilkitError: the sound is another one by now, or the store is damaged.
        """
        key = window_key(cut)
        place = self._places[key]
        if wave_S is not None and checksum(wave_S) != place.wave:
            source = (cut.custom or {}).get("source", cut.recording.id)
            raise DistilkitError(
                f"`{source}` is no longer the sound that its targets were computed from",
                "put it back, or start a new run with another --out",
            )
        data = self._bytes(place)
        right = len(data) == frames(cut.num_samples) * self.kept.bytes_per_frame
        right = right and len(place.powers) == len(self.kept.widths)
        if not right or key not in self._right and zlib.crc32(data) != place.kept:
            raise DistilkitError(
                f"the stored targets `{self.folder / place.part}.bin` are damaged",
                _anew(self.folder),
            )
        self._right.add(key)
        return unpack(data, self.kept, frames(cut.num_samples), place.powers)

    def _bytes(self, place: Place) -> bytes:
        if place.part not in self._files:
            path = self.folder / f"{place.part}.bin"
            try:
                self._files[place.part] = path.open("rb")
            except OSError as error:
                raise DistilkitError(
                    f"`{path}` cannot be read: {error.strerror}", _anew(self.folder)
                ) from error
        return os.pread(self._files[place.part].fileno(), place.size, place.at)

    @contextmanager
    def writer(self) -> Iterator[Callable[[MonoCut, Tensor, Sequence[Tensor]], None]]:
        """What adds a window: its cut, its sound and its targets, (T, D) or (T,) each.

        Raises:
            DistilkitError: the disk is full, or cannot be written.
        """
        with _own_part(self.folder) as part:
            data, journal = self.folder / f"{part}.bin", self.folder / f"{part}.jsonl"
            own = {key: place for key, place in self._places.items() if place.part == part}
            end = max((place.at + place.size for place in own.values()), default=0)
            lines = "".join(_line(key, place) for key, place in own.items())
            try:
                with replacing(journal) as beside:  # without lines that were half written, or lie
                    beside.write_text(lines, encoding="utf-8")
                with data.open("ab") as numbers, journal.open("a", encoding="utf-8") as places:
                    numbers.truncate(end)
                    numbers.seek(end)

                    def add(cut: MonoCut, wave_S: Tensor, targets: Sequence[Tensor]) -> None:
                        if not all(target.isfinite().all() for target in targets):
                            raise DistilkitError(
                                f"what the teacher says of `{cut.id}` are not finite numbers",
                                "--set train.precision=fp32, or leave that recording out",
                            )
                        packed, powers = pack(targets, self.kept)
                        place = Place(
                            part=part,
                            at=numbers.tell(),
                            size=len(packed),
                            powers=powers,
                            kept=zlib.crc32(packed),
                            wave=checksum(wave_S),
                        )
                        numbers.write(packed)
                        numbers.flush()
                        places.write(_line(window_key(cut), place))
                        places.flush()
                        self._places[window_key(cut)] = place

                    yield add
                    for file in (numbers, places):
                        os.fsync(file.fileno())
            except OSError as error:
                raise DistilkitError(
                    f"cannot write `{data}`: {error.strerror}",
                    "free some space and type the command with --resume, or --set targets.store=none",
                ) from error


def fill(
    store: Store,
    windows: Sequence[MonoCut],
    targets: Targets,
    micro_seconds: float,
    device: torch.device | str = "cpu",
    share: tuple[int, int] = (0, 1),
) -> Iterator[str]:
    """Compute and keep what is missing of the windows; yield the ids of those that were computed.

    A window is always computed in the same batch, whatever is there already, so that a store that was
    interrupted ends up as one that was not.

    Args:
        store: where they are kept.
        windows: all that are wanted.
        targets: what computes them.
        micro_seconds: audio in memory at once, padding counted.
        device: where the waves go.
        share: which of several processes this is, and how many there are.

    Raises:
        DistilkitError: audio cannot be read, the disk is full, or the teacher's numbers are not finite.
    """
    leftovers.tidy_below(store.folder)
    groups = in_order(samples(windows), micro_seconds)[share[0] :: share[1]]
    chosen = [group for group in groups if any(windows[place] not in store for place in group)]
    if not chosen:
        return
    cuts = ([windows[place] for place in group] for group in chosen)
    with store.writer() as add, torch.no_grad():
        for group, batch in zip(chosen, ahead(cuts), strict=True):
            computed = _computed(targets, batch, device)
            for index, length in enumerate(batch.lengths):
                cut = windows[group[index]]
                if cut not in store:
                    add(cut, batch.wave_BS[index, :length], computed[index])
            yield from batch.ids


def _computed(targets: Targets, batch: Batch, device: torch.device | str) -> list[list[Tensor]]:
    """The targets of each clip; where memory runs out, of half of them at a time."""
    try:
        found = [each.cpu() for each in targets(batch.wave_BS.to(device), batch.lengths)]
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error) or len(batch.ids) == 1:
            raise
    else:
        return [
            [each[index, : frames(length)] for each in found]
            for index, length in enumerate(batch.lengths)
        ]
    halves = batch.within(0.75 * batch.padded_seconds)
    return [clip for half in halves for clip in _computed(targets, half, device)]


def pack(targets: Sequence[Tensor], kept: Kept) -> tuple[bytes, tuple[int, ...]]:
    """Targets as bytes, and the powers of 2 that fp16 ones were divided by to fit.

    int8 is symmetric, with a scale for each frame: a frame's largest number is 127 of them.
    """
    pieces: list[bytes] = []
    powers: list[int] = []
    for target, width in zip(targets, kept.widths, strict=True):
        values: Array = (target.float() if width else target).numpy()
        power = 0
        if not width:
            pieces.append(values.astype("<i4").tobytes())
        elif kept.form == "fp16":
            most = float(np.abs(values).max(initial=0.0))
            power = max(0, int(np.ceil(np.log2(most / HALF_MOST)))) if most else 0
            pieces.append(np.ldexp(values, -power).astype("<f2").tobytes())
        else:
            scale_T1 = np.abs(values).max(1, keepdims=True, initial=0.0).astype("<f4") / 127
            scale_T1[scale_T1 == 0] = 1
            pieces += [scale_T1.tobytes(), np.rint(values / scale_T1).astype("i1").tobytes()]
        powers.append(power)
    return b"".join(pieces), tuple(powers)


def unpack(data: bytes, kept: Kept, count: int, powers: Sequence[int]) -> list[Tensor]:
    """Targets of `count` frames from the bytes that `pack` made."""
    found: list[Tensor] = []
    at = 0

    def piece(kind: str, *shape: int) -> Array:
        nonlocal at
        values: Array = np.frombuffer(data, kind, int(np.prod(shape)), at).reshape(shape)
        at += values.nbytes
        return values

    for width, power in zip(kept.widths, powers, strict=True):
        if not width:
            found.append(torch.from_numpy(piece("<i4", count).astype(np.int64)))
        elif kept.form == "fp16":
            half_TD = piece("<f2", count, width)
            values = np.ldexp(half_TD.astype(np.float32), power) if power else half_TD.copy()
            found.append(torch.from_numpy(values))
        else:
            scale_T1 = piece("<f4", count, 1)
            found.append(torch.from_numpy(scale_T1 * piece("i1", count, width)))
    return found


def window_key(cut: MonoCut) -> str:
    """A window's name by its sound: what its recording sounds like, and which samples these are."""
    sound = (cut.custom or {}).get("digest") or cut.recording.id
    return f"{sound}@{round(cut.start * SAMPLE_RATE)}+{cut.num_samples}"


def checksum(wave_S: Tensor) -> int:
    """A number that differs where the sound does."""
    return zlib.crc32(np.ascontiguousarray(wave_S.numpy()).data)


def _line(key: str, place: Place) -> str:
    values: Mapping[str, Any] = {
        "window": key,
        "at": place.at,
        "size": place.size,
        "powers": place.powers,
        "kept": place.kept,
        "wave": place.wave,
    }
    return json.dumps({**values, "line": _line_sum(values)}) + "\n"


def _line_sum(row: Mapping[str, Any]) -> int:
    """A checksum of what a line says."""
    values = {name: value for name, value in row.items() if name != "line"}
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _read_journal(path: Path) -> dict[str, Place]:
    """The windows of a part that are there whole; of a file cut short those before the cut."""
    data = path.with_suffix(".bin")
    there = data.stat().st_size if data.is_file() else 0
    found: dict[str, Place] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        with suppress(*MALFORMED):  # a damaged line's window is computed anew
            row = parse_json(line)
            place = Place(
                part=path.stem,
                at=int(row["at"]),
                size=int(row["size"]),
                powers=tuple(map(int, row["powers"])),
                kept=int(row["kept"]),
                wave=int(row["wave"]),
            )
            told = _line_sum(row)
            right = row.get("line", told) == told  # older stores have none
            if right and 0 <= place.at <= place.at + place.size <= there:
                found[str(row["window"])] = place
    return found


@contextmanager
def _own_part(folder: Path) -> Iterator[str]:
    """The name of a part that no other process writes; the lock goes with the process."""
    number = 0
    while True:
        path = folder / f".part-{number}.lock"
        try:
            lock = path.open("w")
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            lock.close()
            number += 1
    with lock:
        yield f"part-{number}"


def _anew(folder: Path) -> str:
    return f"rm -r {folder}, and type the command with --resume: they are computed again"
