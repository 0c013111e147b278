"""Windows and utterances as lhotse cuts: many in little memory, written to a manifest and read back."""

import gzip
import io
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from distilkit.audio import SAMPLE_RATE
from distilkit.data import tables
from distilkit.errors import DistilkitError

if TYPE_CHECKING:
    from lhotse import MonoCut, Recording, SupervisionSegment

SOUND = ("id", "sampling_rate", "num_samples", "duration", "channel_ids")  # of a recording
SAID = (  # of a supervision, in the order in which lhotse takes them
    *("id", "recording_id", "start", "duration", "channel"),
    *("text", "language", "speaker", "gender", "custom"),
)
ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
BYTES = ("utf-8", "surrogatepass")  # names of files may be no text


class _Rows:
    """JSON values, one behind the other; the same value twice in a row is kept once."""

    def __init__(self) -> None:
        self._data, self._ends = bytearray(), array("q", [0])
        self._last: Any = None

    def place(self, value: Any) -> int:
        """Where this value is, if need be from now on."""
        if len(self._ends) == 1 or self._last != value:
            self._data += ENCODER.encode(value).encode(*BYTES)
            self._ends.append(len(self._data))
            self._last = value
        return len(self._ends) - 2

    def __getitem__(self, place: int) -> Any:
        return json.loads(self._data[self._ends[place] : self._ends[place + 1]].decode(*BYTES))


class Windows(Sequence["MonoCut"]):
    """Cuts that are made anew whenever they are asked for.

    As objects, a million of them take several times the memory, and each process that loads audio
    ends up with its own copy: to look at an object is to change its count of references, and so its
    page of memory. What is kept here are a few long blocks of bytes, to which no reader writes.
    """

    def __init__(self, cuts: "Iterable[MonoCut]" = ()) -> None:
        self._rows, self._recordings, self._abouts = _Rows(), _Rows(), _Rows()
        self._places = array("q")  # of the rows that are these windows
        self._last: tuple[int, int, Any, Any] = (-1, -1, None, None)
        self.samples = array("q")  # of each window
        for cut in cuts:
            self.append(cut)

    def append(self, cut: "MonoCut") -> None:
        """Take one more; what it has in common with the one before is kept once."""
        sound = cut.recording
        files = [(file.type, file.channels, file.source) for file in sound.sources]
        recording = self._recordings.place((files, *(getattr(sound, name) for name in SOUND)))
        about = self._abouts.place(cut.custom)
        said = [tuple(getattr(words, name) for name in SAID) for words in cut.supervisions]
        row = cut.id, cut.start, cut.duration, cut.channel, said, recording, about
        self._places.append(self._rows.place(row))
        self.samples.append(cut.num_samples)

    def pick(self, places: Iterable[int]) -> "Windows":
        """Those in these places, in this order; both are of the same bytes."""
        chosen, found = array("q", places), Windows()
        found._rows, found._recordings, found._abouts = self._rows, self._recordings, self._abouts
        found._places = array("q", (self._places[place] for place in chosen))
        found.samples = array("q", (self.samples[place] for place in chosen))
        return found

    def __add__(self, other: "Windows") -> "Windows":
        """These, and behind them others that were picked from the same."""
        if other._rows is not self._rows:
            raise ValueError("windows that are kept in two places")
        found = self.pick(range(len(self)))
        found._places.extend(other._places)
        found.samples.extend(other.samples)
        return found

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> "MonoCut": ...

    @overload
    def __getitem__(self, place: slice) -> "Windows": ...

    def __getitem__(self, place: int | slice) -> "MonoCut | Windows":
        """A cut, or several of them kept in the same way."""
        if isinstance(place, slice):
            return self.pick(range(len(self))[place])
        from lhotse import MonoCut, SupervisionSegment

        id, start, duration, channel, said, recording, about = self._rows[self._places[place]]
        sound, known = self._shared(recording, about)
        return MonoCut(
            id=id,
            start=start,
            duration=duration,
            channel=channel,
            supervisions=[SupervisionSegment(*words) for words in said],
            recording=sound,
            custom=known,
        )

    def _shared(self, recording: int, about: int) -> "tuple[Recording, dict[str, Any] | None]":
        """The recording and what is known of it: cuts one after the other share both."""
        from lhotse import AudioSource, Recording

        last_recording, last_about, sound, known = self._last
        if recording != last_recording:
            files, *values = self._recordings[recording]
            sources = [AudioSource(*file) for file in files]
            sound = Recording(sources=sources, **dict(zip(SOUND, values, strict=True)))
        if about != last_about:
            known = self._abouts[about]
        self._last = recording, about, sound, known
        return sound, known

    def __iter__(self) -> "Iterator[MonoCut]":
        return map(self.__getitem__, range(len(self)))


def samples(cuts: "Sequence[MonoCut]") -> Sequence[int]:
    """The length of each cut."""
    return cuts.samples if isinstance(cuts, Windows) else [cut.num_samples for cut in cuts]


def seconds(cuts: "Sequence[MonoCut]") -> float:
    """How long cuts last together."""
    return sum(samples(cuts)) / SAMPLE_RATE


def pick(cuts: "Sequence[MonoCut]", places: Iterable[int]) -> "Sequence[MonoCut]":
    """The cuts in these places, in this order."""
    return cuts.pick(places) if isinstance(cuts, Windows) else [cuts[place] for place in places]


def joined(first: "Sequence[MonoCut]", second: "Sequence[MonoCut]") -> "Sequence[MonoCut]":
    """The one, and behind it the other."""
    if isinstance(first, Windows) and isinstance(second, Windows):
        return first + second
    return [*first, *second]


def recorded(id: str, path: Path, samples: int) -> "Recording":
    """The recording in a file at 16 kHz with one channel."""
    from lhotse import AudioSource, Recording

    return Recording(
        id=id,
        sources=[AudioSource(type="file", channels=[0], source=str(path.absolute()))],
        sampling_rate=SAMPLE_RATE,
        num_samples=samples,
        duration=samples / SAMPLE_RATE,
    )


def dump(train: "Iterable[MonoCut]", valid: "Iterable[MonoCut]") -> bytes:
    """Windows as a gzipped lhotse cut manifest; `custom.split` says which validate."""
    packed = io.BytesIO()
    last: tuple[Recording | None, dict[str, Any]] = (None, {})
    with gzip.GzipFile("", "wb", 6, packed, mtime=0) as file:
        for name, windows in (("train", train), ("valid", valid)):
            for cut in windows:
                if cut.recording is not last[0]:
                    last = cut.recording, cut.recording.to_dict()
                row = {  # what `cut.to_dict` gives, in a tenth of the time
                    "id": cut.id,
                    "start": cut.start,
                    "duration": cut.duration,
                    "channel": cut.channel,
                    "supervisions": [_said(words) for words in cut.supervisions],
                    "recording": last[1],
                    "custom": {**(cut.custom or {}), "split": name},
                    "type": "MonoCut",
                }
                # ASCII, so that any file name can be written.
                file.write((json.dumps(row) + "\n").encode())
    return packed.getvalue()


def _said(words: "SupervisionSegment") -> dict[str, Any]:
    """What is known of them."""
    return {name: value for name in SAID if (value := getattr(words, name)) is not None}


def window(row: dict[str, Any], known: "dict[tuple[str, str], Recording]") -> "MonoCut":
    """A window from a row that `dump` wrote; nothing that it names is run.

    Args:
        row: what it says.
        known: the recordings up to now, which windows share.
    """
    from lhotse import MonoCut, Recording, SupervisionSegment

    told = row["recording"]
    (sound,) = told["sources"]
    if sound["type"] != "file" or not isinstance(sound["source"], str):
        raise ValueError("a window whose sound is not in a file")  # a command is never run
    place = told["id"], sound["source"]
    if place not in known:
        known[place] = Recording.from_dict(told)
    return MonoCut(
        id=row["id"],
        start=row["start"],
        duration=row["duration"],
        channel=row["channel"],
        supervisions=[SupervisionSegment.from_dict(words) for words in row["supervisions"]],
        recording=known[place],
        custom=row["custom"],
    )


def load(path: Path) -> tuple[Windows, Windows]:
    """Training and validation windows from a manifest that `dump` made.

    Raises:
        DistilkitError: the manifest is damaged, or one of the audio files in it is gone.
    """
    recordings: dict[tuple[str, str], Recording] = {}
    every, sides = Windows(), {"train": array("q"), "valid": array("q")}
    try:
        for _, row in tables.json_lines(path):
            sides[row["custom"]["split"]].append(len(every))
            every.append(window(row, recordings))
        if not sides["train"]:
            raise ValueError("no window to train on")
    except (
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        ArithmeticError,
        AssertionError,
    ) as error:
        raise DistilkitError(
            f"`{path}` is damaged: {error}", "start a new run with another --out"
        ) from error
    for _, name in recordings:
        if not os.path.isfile(name):  # Path's fails at a name that is too long
            raise DistilkitError(
                f"`{name}` is gone, and this run needs it",
                "put it back, or start a new run with another --out",
            )
    return every.pick(sides["train"]), every.pick(sides["valid"])
