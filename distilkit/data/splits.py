"""Which utterances are held out together: speakers and recordings are never on both sides of a split."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import itemgetter
from sys import intern

import numpy as np
from lhotse import MonoCut

from distilkit import config
from distilkit.audio import SAMPLE_RATE
from distilkit.data import windows

Sides = tuple[Sequence[MonoCut], Sequence[MonoCut]]  # to train on, and to validate on


def hold_out(cuts: Sequence[MonoCut], settings: config.Transcribed, seed: int) -> Sides:
    """Hold out whole speakers where at least two are known, else whole recordings, drawn by seed.

    About `valid_fraction` of the seconds; at least one is held out where there are two or more, and
    at least one is kept. Where the shortest speaker alone lasts more than `valid_minutes`, whole
    recordings are held out. A recording is never on both sides: speakers who share one go together. Where
    there is but one, its end is held out, as far as no utterance reaches into it.

    Returns:
        The cuts to train on, and those to validate on, each in the order given.
    """
    most = settings.valid_minutes * 60
    wanted = min(settings.valid_fraction * windows.seconds(cuts), most)
    if wanted <= 0:
        return cuts, []
    lengths = windows.samples(cuts)
    speaking = who(cuts)
    groups = _together(speaking)
    seconds = _seconds(groups, lengths)
    known = {group for group, (speaker, _) in zip(groups, speaking, strict=True) if speaker}
    if len(known) < 2 or min(seconds.values()) > most:
        groups = [recording for _, recording in speaking]
        seconds = _seconds(groups, lengths)
    if len(seconds) < 2:
        return _by_time(cuts, wanted)
    names = sorted(seconds)  # so that the order in which cuts are given decides nothing
    held: set[str] = set()
    lasting = 0.0
    for index in np.random.default_rng([seed, len(names)]).permutation(len(names)):
        if lasting + seconds[names[index]] <= min(1.5 * wanted, most):
            held.add(names[index])
            lasting += seconds[names[index]]
        if lasting >= wanted:
            break
    if not held:  # every one is longer than the share: the shortest one it is
        held.add(min(names, key=lambda name: seconds[name]))
    return _parted(cuts, [group in held for group in groups])


def together(cuts: Iterable[MonoCut]) -> list[str]:
    """For each cut a name that all have in common that share a speaker or a recording."""
    return _together(who(cuts))


def who(cuts: Iterable[MonoCut]) -> list[tuple[str, str]]:
    """Speaker, empty where unknown, and recording of each."""
    found = ((cut.supervisions[0].speaker or "", cut.recording.id) for cut in cuts)
    return [(intern(speaker), intern(recording)) for speaker, recording in found]


def _together(speaking: Sequence[tuple[str, str]]) -> list[str]:
    parents: dict[str, str] = {}

    def top(name: str) -> str:
        while parents.setdefault(name, name) != name:
            parents[name] = parents[parents[name]]
            name = parents[name]
        return name

    for speaker, recording in speaking:
        if speaker:
            one, other = top(f"speaker {speaker}"), top(f"recording {recording}")
            parents[max(one, other)] = min(one, other)
    return [top(f"recording {recording}") for _, recording in speaking]


def _seconds(groups: Sequence[str], lengths: Sequence[int]) -> dict[str, float]:
    found: Counter[str] = Counter()
    for group, length in zip(groups, lengths, strict=True):
        found[group] += length
    return {group: samples / SAMPLE_RATE for group, samples in found.items()}


def _by_time(cuts: Sequence[MonoCut], wanted: float) -> Sides:
    """Utterances of one recording before and behind a moment between two of them."""
    spans = [(cut.start, cut.end) for cut in cuts]
    ordered = sorted(spans, key=itemgetter(0))
    ends = list(accumulate((end for _, end in ordered), max))
    moment, lasting = math.inf, 0.0
    for place in range(len(ordered) - 1, 0, -1):
        start, end = ordered[place]
        lasting += end - start
        if ends[place - 1] <= start:
            moment = start
        if lasting >= wanted and moment < math.inf:
            break
    return _parted(cuts, [start >= moment for start, _ in spans])


def _parted(cuts: Sequence[MonoCut], held: Sequence[bool]) -> Sides:
    train, valid = ([i for i, out in enumerate(held) if out == side] for side in (False, True))
    return windows.pick(cuts, train), windows.pick(cuts, valid)
