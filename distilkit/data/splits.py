"""Which utterances are held out together: speakers and recordings are never on both sides of a split."""

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from lhotse import MonoCut

from distilkit import config


def hold_out(
    cuts: Sequence[MonoCut], settings: config.Transcribed, seed: int
) -> tuple[list[MonoCut], list[MonoCut]]:
    """Hold out whole speakers where at least two are known, else whole recordings, drawn by seed.

    About `valid_fraction` of the seconds; at least one is held out where there are two or more, and
    at least one is kept. Where the shortest speaker alone lasts more than `valid_minutes`, whole
    recordings are held out. A recording is never on both sides: speakers who share one go together. Where
    there is but one, its end is held out, as far as no utterance reaches into it.

    Returns:
        The cuts to train on, and those to validate on, each in the order given.
    """
    most = settings.valid_minutes * 60
    wanted = min(settings.valid_fraction * math.fsum(cut.duration for cut in cuts), most)
    groups = together(cuts)
    seconds = _seconds(groups, cuts)
    if len({group for group, cut in zip(groups, cuts, strict=True) if _speaker(cut)}) < 2 or (
        min(seconds.values()) > most
    ):
        groups = [cut.recording.id for cut in cuts]
        seconds = _seconds(groups, cuts)
    if wanted <= 0:
        return list(cuts), []
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
    sides: tuple[list[MonoCut], list[MonoCut]] = ([], [])
    for group, cut in zip(groups, cuts, strict=True):
        sides[group in held].append(cut)
    return sides


def _by_time(cuts: Sequence[MonoCut], wanted: float) -> tuple[list[MonoCut], list[MonoCut]]:
    """Utterances of one recording before and behind a moment between two of them."""
    ordered = sorted(cuts, key=lambda cut: cut.start)
    ends = list(accumulate((cut.end for cut in ordered), max))
    moment, lasting = math.inf, 0.0
    for place in range(len(ordered) - 1, 0, -1):
        lasting += ordered[place].duration
        if ends[place - 1] <= ordered[place].start:
            moment = ordered[place].start
        if lasting >= wanted and moment < math.inf:
            break
    return [cut for cut in cuts if cut.start < moment], [cut for cut in cuts if cut.start >= moment]


def _speaker(cut: MonoCut) -> str:
    return cut.supervisions[0].speaker or ""


def _seconds(groups: Sequence[str], cuts: Sequence[MonoCut]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for group, cut in zip(groups, cuts, strict=True):
        found.setdefault(group, []).append(cut.duration)
    return {group: math.fsum(seconds) for group, seconds in found.items()}


def together(cuts: Sequence[MonoCut]) -> list[str]:
    """For each cut a name that all have in common that share a speaker or a recording."""
    parents: dict[str, str] = {}

    def top(name: str) -> str:
        while parents.setdefault(name, name) != name:
            parents[name] = parents[parents[name]]
            name = parents[name]
        return name

    for cut in cuts:
        if _speaker(cut):
            one, other = top(f"speaker {_speaker(cut)}"), top(f"recording {cut.recording.id}")
            parents[max(one, other)] = min(one, other)
    return [top(f"recording {cut.recording.id}") for cut in cuts]
