"""Folders and corpora to lhotse cuts; every skipped file accounted for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distilkit import config
from distilkit.audio import SAMPLE_RATE
from distilkit.data import transcripts, windows
from distilkit.data.common import MAX_UNUSABLE, Tracker, untracked
from distilkit.data.find import Found, find, shown
from distilkit.data.scan import (
    Clip,
    Skipped,
    cache_folder,
    scan,
    silent_parts,
    stamp,
    still,
    tidy_cache,
)
from distilkit.data.windows import Windows, joined, pick, recorded, samples, seconds, window
from distilkit.data.windows import load as load_windows
from distilkit.errors import DistilkitError
from distilkit.wording import counted

if TYPE_CHECKING:
    from lhotse import MonoCut

__all__ = [
    "MAX_UNUSABLE",
    "Clip",
    "Collection",
    "Found",
    "Skipped",
    "Tracker",
    "Windows",
    "collect",
    "cuts",
    "dump_skipped",
    "dump_windows",
    "find",
    "joined",
    "load_windows",
    "pick",
    "samples",
    "scan",
    "seconds",
    "shown",
    "split",
    "stamp",
    "still",
    "survey",
    "tidy_cache",
    "transcripts",
    "untracked",
    "window",
]


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What a set of inputs holds, split by recording."""

    train: "Sequence[MonoCut]"
    valid: "Sequence[MonoCut]"
    skipped: list[Skipped]
    recordings: int
    formats: dict[str, int]  # suffix to number of usable files

    @property
    def train_seconds(self) -> float:
        """Seconds of audio to train on."""
        return seconds(self.train)

    @property
    def valid_seconds(self) -> float:
        """Seconds of audio to validate on."""
        return seconds(self.valid)

    def reasons(self) -> Counter[str]:
        """How many files or parts were left out, by kind."""
        return Counter(item.kind for item in self.skipped)


def survey(
    inputs: Sequence[str | Path],
    settings: config.Data,
    *,
    cache: Path | None = None,
    track: Tracker = untracked,
) -> tuple[list[Clip], list[Skipped]]:
    """Read everything once: the usable recordings, and all else with its reason.

    Raises:
        DistilkitError: an input is missing, or decoded copies cannot be written.
    """
    found = list(find(inputs, unpack=True))
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
    for clip in clips:
        skipped += silent_parts(clip)
    return clips, skipped


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
        inputs: folders (searched in depth, archives of sound too), audio files, or lhotse manifests.
        settings: window length, least length, share held out.
        seed: decides which recordings are held out.
        cache: where decoded copies go; the user's cache folder when None.
        track: wraps an iterable to show progress; called with `description` and `total`.

    Raises:
        DistilkitError: an input is missing, there is no audio, or most of it is unusable.
    """
    clips, skipped = survey(inputs, settings, cache=cache, track=track)
    unusable = [item for item in skipped if item.kind == "unusable"]
    tried = len(clips) + len(unusable)
    names = ", ".join(f"`{item}`" for item in inputs)
    if not tried:
        raise DistilkitError(
            f"no audio in {names}: {counted(len(skipped), 'file')}, none with a known audio suffix"
            if skipped
            else f"no audio in {names}: no files at all",
            "give a folder with recordings",
        )
    if len(unusable) > MAX_UNUSABLE * tried:
        listed = "".join(f"\n  {item.path}: {item.reason}" for item in unusable[:5])
        more = f"\n  and {len(unusable) - 5} more" if len(unusable) > 5 else ""
        raise DistilkitError(
            f"{len(unusable)} of {tried} audio files in {names} cannot be used:{listed}{more}",
            f"mend or remove them; distilkit inspect {inputs[0]} lists them all",
        )
    train, valid = split(clips, settings, seed)
    every = Windows(cut for clip in (*train, *valid) for cut in cuts(clip))
    count = sum(len(clip.windows) for clip in train)
    return Collection(
        train=every.pick(range(count)),
        valid=every.pick(range(count, len(every))),
        skipped=skipped,
        recordings=len(clips),
        formats=dict(Counter(clip.source.suffix.lower() for clip in clips).most_common()),
    )


def split(clips: Sequence[Clip], settings: config.Data, seed: int) -> tuple[list[Clip], list[Clip]]:
    """Hold out whole recordings, drawn by seed, until the wanted share of the audio is reached.

    At least one recording is held out where there are two or more, and at least one is kept.
    """
    total = sum(clip.samples for clip in clips)
    wanted = min(settings.valid_fraction * total, settings.valid_minutes * 60 * SAMPLE_RATE)
    valid: set[int] = set()
    if wanted > 0 and len(clips) > 1:
        # Drawn by name, so that the order in which recordings are given decides nothing.
        names = sorted(range(len(clips)), key=lambda index: Path(clips[index].id).parts)
        order = np.random.default_rng([seed, len(clips)]).permutation(len(clips))
        held = 0
        for index in (names[place] for place in order):
            size = clips[index].samples
            if held + size <= 1.5 * wanted:  # never more than three quarters of everything
                valid.add(index)
                held += size
            if held >= wanted:
                break
        if not valid:  # every recording is longer than the share: the shortest one it is
            valid.add(min(names, key=lambda index: clips[index].samples))
    train = [clip for index, clip in enumerate(clips) if index not in valid]
    return train, [clip for index, clip in enumerate(clips) if index in valid]


def cuts(clip: Clip) -> "list[MonoCut]":
    """The windows of a clip as lhotse cuts."""
    from lhotse import MonoCut

    recording = recorded(clip.id, clip.path, clip.samples)
    about = {  # which they share
        "source": str(clip.source.absolute()),
        "digest": clip.digest,
        "stamp": clip.stamp,
        "rate": clip.rate,
    }
    return [
        MonoCut(
            id=clip.id if len(clip.windows) == 1 else f"{clip.id}@{start / SAMPLE_RATE:.2f}",
            start=start / SAMPLE_RATE,
            duration=length / SAMPLE_RATE,
            channel=0,
            recording=recording,
            custom=about,
        )
        for start, length in clip.windows
    ]


def some(cuts: "Sequence[MonoCut]", seconds: float, seed: int) -> "list[MonoCut]":
    """Cuts drawn at random until they last `seconds`; at least one."""
    chosen: list[MonoCut] = []
    lasting = 0.0
    for index in np.random.default_rng(seed).permutation(len(cuts)):
        if chosen and lasting >= seconds:
            break
        chosen.append(cuts[index])
        lasting += chosen[-1].duration
    return chosen


def dump_windows(collection: Collection) -> bytes:
    """The windows as a gzipped lhotse cut manifest; `custom.split` says which validate."""
    return windows.dump(collection.train, collection.valid)


def dump_skipped(skipped: Sequence[Skipped]) -> str:
    """The skipped files as tab-separated text with a header line."""

    def plain(text: str) -> str:
        return shown(text.replace("\t", " ").replace("\n", " "))

    rows = [
        f"{item.kind}\t{item.seconds:.2f}\t{plain(item.path)}\t{plain(item.reason)}"
        for item in skipped
    ]
    return "\n".join(["kind\tseconds\tpath\treason", *rows]) + "\n"
