"""Many windows in little memory: the same cuts come out as went in, and processes share them."""

import gc
import multiprocessing
import pathlib
import pickle
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from random import Random

import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lhotse import MonoCut, SupervisionSegment

from distilkit.data import Windows, joined, pick, samples, seconds
from distilkit.data.windows import recorded

TEXT = st.text(max_size=8)
LINUX = sys.platform == "linux"


def cut(number: int, said: str = "one two three", file: int = 0, **more: object) -> MonoCut:
    sound = recorded(f"é/{file}.wav", Path(f"/no/{file}.wav"), 160_000)
    words = SupervisionSegment(
        id=f"{number}", recording_id=sound.id, start=0.0, duration=0.75, text=said, speaker="who"
    )
    return MonoCut(
        id=f"{number}",
        start=number % 100 / 16,
        duration=0.75,
        channel=0,
        supervisions=[words],
        recording=sound,
        custom={"source": f"/no/{file}.wav", "stamp": [1, number // 50], **more},
    )


@example([("one", 0, "é"), ("two", 0, "\udce9.wav")], Random(0))  # of a name that is no text
@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(TEXT, st.integers(0, 3), TEXT), max_size=12),
    st.randoms(use_true_random=False),
)
def test_what_goes_in_comes_out(told: list[tuple[str, int, str]], random: Random) -> None:
    cuts = [cut(i, said, file, more=more) for i, (said, file, more) in enumerate(told)]
    for cut_ in cuts[::2]:
        cut_.supervisions = []
    for cut_ in cuts[::3]:
        cut_.custom = None
    kept = Windows(cuts)
    assert list(kept) == cuts
    assert [kept[-1 - i] for i in range(len(cuts))] == cuts[::-1]
    places = [random.randrange(len(cuts)) for _ in cuts]
    assert list(kept.pick(places)) == [cuts[i] for i in places]
    assert list(kept[1::2]) == cuts[1::2]
    assert list(pickle.loads(pickle.dumps(kept))) == cuts
    assert list(kept[::2] + kept[1::2]) == cuts[::2] + cuts[1::2]
    assert list(kept.samples) == [one.num_samples for one in cuts]


def test_a_list_will_do_as_well() -> None:
    cuts = [cut(number, file=number // 2) for number in range(6)]
    for given_cuts in (cuts, Windows(cuts)):
        assert list(samples(given_cuts)) == [12_000] * 6
        assert seconds(given_cuts) == 4.5
        assert list(pick(given_cuts, [4, 1])) == [cuts[4], cuts[1]]
        assert list(joined(given_cuts[:2], given_cuts[4:])) == [*cuts[:2], *cuts[4:]]
    assert list(joined(Windows(cuts), cuts)) == cuts * 2


def test_a_place_that_is_none() -> None:
    kept = Windows([cut(0)])
    for place in (1, -2):
        with pytest.raises(IndexError):
            kept[place]
    assert Windows()[:] is not None
    assert not Windows()
    with pytest.raises(ValueError, match="two places"):
        Windows([cut(0)]) + Windows([cut(1)])


def test_many_take_little_memory() -> None:
    list(Windows([cut(0)]))  # imports
    tracemalloc.start()
    kept = Windows(cut(number, file=number // 50) for number in range(20_000))
    gc.collect()
    found = tracemalloc.take_snapshot()
    tracemalloc.stop()
    interned = tracemalloc.Filter(False, pathlib.__file__)  # a table that grows now and then
    taken = sum(trace.size for trace in found.filter_traces([interned]).traces)
    assert len(kept) == 20_000
    assert taken < 200 * len(kept)


def looked(cuts: Sequence[MonoCut], found: "multiprocessing.SimpleQueue[int]") -> None:
    """Bytes that are this process's own after looking at all of them."""
    gc.disable()
    before = psutil.Process().memory_full_info().uss
    for one in cuts:
        assert one.num_samples == 12_000
    found.put(psutil.Process().memory_full_info().uss - before)


@pytest.mark.skipif(not LINUX, reason="processes that load audio start anew here")
def test_processes_that_look_at_windows_share_them() -> None:
    cuts = [cut(number, file=number // 50) for number in range(20_000)]
    start = multiprocessing.get_context("fork")
    grown = []
    for each in (cuts, Windows(cuts)):
        found = start.SimpleQueue()
        process = start.Process(target=looked, args=(each, found))
        process.start()
        grown.append(found.get())
        process.join()
    assert grown[0] > 10 * 2**20  # what objects come to
    assert grown[1] < grown[0] / 4
