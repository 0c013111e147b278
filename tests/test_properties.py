"""What holds for any input: batches, windows, lengths, text, splits, checkpoints. Examples are drawn by hypothesis.

`HYPOTHESIS_PROFILE=long pytest tests/test_properties.py` draws many more of them, other ones each time.
"""

import copy
import os
import re
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LARGE, tiny_config
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from lhotse import MonoCut
from test_transcripts import cut
from transformers import HubertModel

from distilkit import audio, config, tokenizers
from distilkit.batches import Schedule, _Steps
from distilkit.data import Clip, split
from distilkit.data.scan import SILENCE_PEAK, _Measure, silent_parts
from distilkit.data.splits import hold_out
from distilkit.encoder import Encoder, exact, prepare
from distilkit.errors import DistilkitError
from distilkit.listeners import in_order
from distilkit.normalisation import normalise
from distilkit.runs import Run
from distilkit.stored import Kept, pack, unpack

SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("quick", max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=SLOW)  # fmt: skip
settings.register_profile("long", max_examples=3000, deadline=None, suppress_health_check=SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

RATE = audio.SAMPLE_RATE
SECONDS = st.floats(0.05, 1e4)
LENGTHS = st.lists(st.integers(400, 250_000), min_size=1, max_size=80)

# ---------------------------------------------------------------------------------------- batches


@given(LENGTHS, SECONDS, SECONDS, st.integers(0, 2**40), st.integers(1, 5), st.integers(0, 3))
def test_a_pass_is_every_window_once_in_equal_shares_below_the_budget(
    lengths: list[int], seconds: float, micro: float, seed: int, ranks: int, epoch: int
) -> None:
    assume(len(lengths) >= ranks)
    shares = [
        Schedule(lengths=lengths, seconds=seconds, micro_seconds=micro, seed=seed, rank=r, ranks=ranks)
        for r in range(ranks)
    ]  # fmt: skip
    seen: Counter[int] = Counter()
    steps = shares[0].steps_per_pass
    for number in range(1 + epoch * steps, 1 + (epoch + 1) * steps):
        groups = [schedule.step(number) for schedule in shares]
        counts = [sum(map(len, of_rank)) for of_rank in groups]
        assert min(counts) >= 1
        assert max(counts) - min(counts) <= 1
        for group in (group for of_rank in groups for group in of_rank):
            longest = max(lengths[i] for i in group)
            assert len(group) == 1 or len(group) * longest <= micro * RATE
            seen.update(group)
    assert seen == Counter(range(len(lengths)))


@given(LENGTHS, SECONDS, st.integers(0, 99), st.data())
def test_a_resumed_schedule_is_the_tail_of_the_whole(
    lengths: list[int], seconds: float, seed: int, data: st.DataObject
) -> None:
    def schedule() -> Schedule:
        return Schedule(lengths=lengths, seconds=seconds, micro_seconds=30.0, seed=seed)

    last = 2 * schedule().steps_per_pass + 1
    at = data.draw(st.integers(1, last))
    before, after = _Steps(schedule(), 1, at - 1), _Steps(schedule(), at, last)
    assert [*before, *after] == list(_Steps(schedule(), 1, last))


@given(LENGTHS, SECONDS)
def test_whole_collections_are_grouped_without_loss(lengths: list[int], micro: float) -> None:
    groups = list(in_order(lengths, micro))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= micro * RATE


# ---------------------------------------------------------------------------------------- windows

PIECES = st.lists(
    st.tuples(st.integers(1, 40_000), st.sampled_from([0.0, 1e-4, 0.01, 0.9])), min_size=1, max_size=7
)  # fmt: skip


def measured(sound: np.ndarray, cuts: list[int], asked: config.Data) -> tuple[_Measure, list[tuple[int, int]]]:  # fmt: skip
    """Windows of a sound that arrives in blocks, cut at these places."""
    found = _Measure(asked)
    for block in np.split(sound, sorted(place % len(sound) for place in cuts)):
        found.add(block)
    return found, found.finish()


@given(
    PIECES, st.lists(st.integers(0, 10**6), max_size=6), st.floats(1.0, 3.0), st.floats(0.025, 0.5),
    st.integers(0, 9),
)  # fmt: skip
def test_windows_cover_all_sound_without_overlap(
    pieces: list[tuple[int, float]], cuts: list[int], longest: float, least: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    parts = [level * rng.uniform(-1, 1, size) for size, level in pieces]
    sound = np.concatenate(parts).astype(np.float32)
    asked = config.Data(window_seconds=longest, min_seconds=least)
    whole, windows = measured(sound, [], asked)
    again, others = measured(sound, cuts, asked)
    assert others == windows
    assert (again.samples, again.digest.hexdigest()) == (len(sound), whole.digest.hexdigest())
    most, fewest, at = int(longest * RATE), int(least * RATE), 0
    for start, length in windows:
        assert start >= at
        assert fewest <= length <= most
        at = start + length
    assert at <= len(sound)
    left = np.ones(len(sound), bool)
    for start, length in windows:
        left[start : start + length] = False
    if len(sound) >= fewest and left.any():
        assert np.ptp(sound[left]) / 2 < SILENCE_PEAK * 1.01
    clip = Clip(
        id="a", source=Path("a"), path=Path("a"), samples=len(sound), windows=tuple(windows),
        digest="", stamp="",
    )  # fmt: skip
    listed = sum(item.seconds for item in silent_parts(clip))
    assert listed == pytest.approx(left.sum() / RATE)


# ---------------------------------------------------------------------------------------- lengths


@given(st.integers(0, 10**9))
def test_frames_are_counted_as_the_model_counts_them(samples: int) -> None:
    counted = int(COUNTS._get_feat_extract_output_lengths(samples))
    assert audio.frames(samples) == max(0, counted)
    count = audio.frames(samples)
    assert audio.frames(audio.samples(count)) == count
    assert audio.samples(count) <= samples


COUNTS = HubertModel(tiny_config(num_hidden_layers=1)).eval()
NETS = [COUNTS, HubertModel(tiny_config(**{**LARGE, "num_hidden_layers": 1})).eval()]


@settings(max_examples=20)
@given(st.integers(400, 9_000), st.sampled_from(NETS))
@example(400, COUNTS)
@example(719, COUNTS)
def test_frames_are_those_that_come_out(samples: int, model: HubertModel) -> None:
    with torch.no_grad():
        found = model(torch.zeros(1, samples)).last_hidden_state
    assert found.shape[1] == audio.frames(samples)


@given(st.floats(0.0, 4e6))
@example(9.949)
@example(59.49)
@example(59.5)
@example(59.99)
@example(3599.6)
def test_a_time_reads_back_as_what_it_was(seconds: float) -> None:
    said = audio.clock(seconds)
    units = {"s": 1, "min": 60, "h": 3600}
    parts = [(float(number), unit) for number, unit in re.findall(r"([\d.]+) (s|min|h)", said)]
    assert sum(number * units[unit] for number, unit in parts) == pytest.approx(
        seconds, abs=0.0501 if seconds < 9.95 else 0.501 if seconds < 3600 else 60
    )
    assert all(number < 60 for number, unit in parts if unit != "h")


# ------------------------------------------------------------------------- normalisation of sound


@given(
    st.lists(st.tuples(st.integers(1, 3000), st.floats(0.01, 9.0), st.floats(-5, 5)), min_size=1, max_size=5),
    st.floats(-3, 3), st.integers(0, 99),
)  # fmt: skip
def test_a_clip_is_normalised_by_its_own_samples_whatever_lies_behind_it(
    clips: list[tuple[int, float, float]], behind: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    lengths = [size for size, _, _ in clips]
    wave_BS = torch.full((len(clips), max(lengths) + 7), behind)
    for row_S, (size, scale, offset) in zip(wave_BS, clips, strict=True):
        row_S[:size] = torch.from_numpy(scale * rng.standard_normal(size) + offset)
    found_BS = prepare(wave_BS.clone(), lengths, True)
    kept_BS = prepare(wave_BS.clone(), lengths, False)
    for wave_S, found_S, kept_S, size in zip(wave_BS, found_BS, kept_BS, lengths, strict=True):
        assert not found_S[size:].any()
        assert not kept_S[size:].any()
        assert torch.equal(kept_S[:size], wave_S[:size])
        mine = wave_S[:size].double()
        wanted = (mine - mine.mean()) / (mine.var(unbiased=False) + 1e-7).sqrt()
        torch.testing.assert_close(found_S[:size].double(), wanted, atol=2e-3, rtol=1e-3)


@settings(max_examples=8)
@given(st.lists(st.integers(400, 6_000), min_size=2, max_size=4), st.sampled_from([0, 1]), st.booleans())  # fmt: skip
def test_a_clip_comes_out_the_same_whoever_is_beside_it(
    lengths: list[int], which: int, normalise: bool
) -> None:
    encoder = Encoder(model=exact(copy.deepcopy(NETS[which])), normalise=normalise)
    rng = np.random.default_rng(sum(lengths))
    clips = [rng.standard_normal(size).astype(np.float32) for size in lengths]
    together = encoder.states(clips, [0, 1])
    for clip, states_LTD in zip(clips, together, strict=True):
        (alone_LTD,) = encoder.states([clip], [0, 1])
        assert states_LTD.shape == alone_LTD.shape == (2, audio.frames(len(clip)), encoder.width)
        np.testing.assert_allclose(states_LTD, alone_LTD, atol=2e-5)


# ------------------------------------------------------------------------------------------- text

TEXTS = st.text(st.characters(), max_size=60) | st.text(
    "aB9ß'’|<>pad/us.,-\u200d\u0301İiıＡ１½ﬁ \n", max_size=40
)
FORMS = st.sampled_from(["NFC", "NFKC", "NFD", "NFKD"])
WRITTEN = st.builds(
    config.Text, form=FORMS, case=st.sampled_from(["keep", "lower", "upper"]),
    punctuation=st.sampled_from(["keep", "remove"]), digits=st.sampled_from(["keep", "spell"]),
    language=st.sampled_from(["en", "de", "tr", "az", "fr"]),
)  # fmt: skip


def letters(text: str, form: str) -> list[str]:
    """Letters and numbers, in order."""
    plain = unicodedata.normalize(form, text)
    return [char for char in plain if unicodedata.category(char)[0] in "LN"]


@given(TEXTS, WRITTEN)
def test_to_normalise_twice_changes_nothing(text: str, written: config.Text) -> None:
    once = normalise(text, written)
    assert normalise(once, written) == once
    assert once == " ".join(once.split())


@given(TEXTS, WRITTEN)
def test_no_letter_and_no_digit_is_dropped(text: str, written: config.Text) -> None:
    kept = written.model_copy(update={"digits": "keep"})
    found = normalise(text, kept)
    turkic = kept.language in ("tr", "az")
    if kept.case == "keep":
        assert letters(found, kept.form) == letters(text, kept.form)
    elif not turkic:
        wanted = getattr(unicodedata.normalize(kept.form, text), kept.case)()
        assert letters(found, kept.form) == letters(wanted, kept.form)
    else:  # I and i are two letters there; how many there are stays the same
        same = str.maketrans("Iıİi", "iiii")
        wanted = getattr(unicodedata.normalize(kept.form, text).translate(same), kept.case)()
        here = getattr(found.translate(same), kept.case)()
        assert letters(here, kept.form) == letters(wanted, kept.form)


@settings(max_examples=15)
@given(
    st.lists(st.text("abcdeé' ", min_size=1, max_size=20), min_size=1, max_size=8),
    st.sampled_from(["char", "unigram", "bpe"]),
)
def test_what_is_encoded_is_decoded(lines: list[str], kind: str) -> None:
    text = config.Text(form="NFC")
    lines = [line for line in (normalise(line, text) for line in lines) if line]
    assume(lines)
    try:
        made = tokenizers.train(lines, config.Tokenizer(kind=kind), text)  # type: ignore[arg-type]
    except DistilkitError:  # too little text for subwords, which is said
        assume(False)
    for line in lines:
        assert made.decode(made.encode(line), frames=False) == line


# ----------------------------------------------------------------------------------------- splits


def clips_of(lengths: list[int]) -> list[Clip]:
    return [
        Clip(
            id=f"{'ab'[n % 2]}/{n:03d}.wav", source=Path("a"), path=Path("a"), samples=length,
            windows=((0, length),), digest=str(n), stamp="",
        )
        for n, length in enumerate(lengths)
    ]  # fmt: skip


@given(LENGTHS, st.integers(0, 99), st.floats(0.0, 0.5), st.randoms())
def test_recordings_are_split_once_whatever_their_order(
    lengths: list[int], seed: int, share: float, order: "np.random.Generator"
) -> None:
    asked, clips = config.Data(valid_fraction=share), clips_of(lengths)
    train, valid = split(clips, asked, seed)
    assert Counter(clip.id for clip in [*train, *valid]) == Counter(clip.id for clip in clips)
    assert train
    assert bool(valid) == (share > 0 and len(clips) > 1)
    mixed = list(clips)
    order.shuffle(mixed)  # type: ignore[arg-type]
    found = split(mixed, asked, seed)
    assert {clip.id for clip in found[1]} == {clip.id for clip in valid}
    assert [clip for clip in mixed if clip in found[0]] == found[0]


@given(
    st.lists(
        st.tuples(st.integers(1, 400), st.integers(0, 9), st.integers(0, 30)), min_size=1, max_size=40
    ),
    st.integers(0, 99), st.floats(0.0, 0.5), st.randoms(),
)  # fmt: skip
def test_speakers_and_recordings_are_on_one_side_whatever_their_order(
    said: list[tuple[int, int, int]], seed: int, share: float, order: "np.random.Generator"
) -> None:
    cuts: list[MonoCut] = [
        cut(f"{n}", tenths / 10, f"s{who}" if who else "", f"r{where}")
        for n, (tenths, who, where) in enumerate(said)
    ]
    asked = config.Transcribed(valid_fraction=share)
    train, valid = hold_out(cuts, asked, seed)
    assert Counter(one.id for one in [*train, *valid]) == Counter(one.id for one in cuts)
    assert train
    recordings = [{one.recording.id for one in side} for side in (train, valid)]
    assert not recordings[0] & recordings[1]
    people = [{one.supervisions[0].speaker for one in side} - {None} for side in (train, valid)]
    groups = {one.supervisions[0].speaker or one.recording.id for one in cuts}
    if people[0] & people[1]:  # only where whoever is known is one group
        assert len(groups) == 1 or linked(cuts)
    mixed = list(cuts)
    order.shuffle(mixed)  # type: ignore[arg-type]
    assert {one.id for one in hold_out(mixed, asked, seed)[1]} == {one.id for one in valid}


def linked(cuts: list[MonoCut]) -> bool:
    """Whether fewer than two groups with a known speaker remain, once those who share a recording are one."""
    groups: list[set[str]] = []
    for one in cuts:
        marks = {f"r {one.recording.id}"}
        if one.supervisions[0].speaker:
            marks.add(f"s {one.supervisions[0].speaker}")
        touching = [group for group in groups if group & marks]
        groups = [group for group in groups if not group & marks] + [marks.union(*touching)]
    return sum(any(mark.startswith("s ") for mark in group) for group in groups) < 2


# ------------------------------------------------------------------------------------ checkpoints

TENSORS = st.dictionaries(
    st.text("abc.é", min_size=1, max_size=6),
    st.tuples(
        st.lists(st.integers(0, 4), max_size=3),
        st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
    ),
    max_size=4,
)
STATES = st.dictionaries(
    st.text("xyz", min_size=1, max_size=3), st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
)  # fmt: skip


def made(shapes: dict[str, tuple[list[int], torch.dtype]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(shapes))
    return {
        name: torch.randint(0, 100, shape, generator=generator).to(kind)
        for name, (shape, kind) in shapes.items()
    }


@settings(max_examples=8)
@given(TENSORS, STATES, st.data())
def test_a_checkpoint_is_what_was_saved_and_damage_is_noticed(
    shapes: dict[str, tuple[list[int], torch.dtype]], state: dict[str, object], data: st.DataObject
) -> None:
    tensors = made(shapes)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "checkpoints").mkdir()
        Run(Path(name)).save_checkpoint(1, {"before": torch.ones(3)}, {})
        Run(Path(name)).save_checkpoint(2, tensors, state)
        found = Run(Path(name)).load_checkpoint()
        assert found is not None
        assert found[1] == {**state, "step": 2}
        assert found[0].keys() == tensors.keys()
        for key, value in tensors.items():
            assert found[0][key].dtype == value.dtype
            assert torch.equal(found[0][key], value)
        for file in sorted((Path(name) / "checkpoints" / "step-00000002").iterdir()):
            content = file.read_bytes()
            for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=9, max_size=9)):
                flipped = bytes([content[at] ^ 1 << at % 8])
                for damage in (content[:at], content[:at] + flipped + content[at + 1 :]):
                    file.write_bytes(damage)
                    run = Run(Path(name))
                    loaded = run.load_checkpoint()
                    assert loaded is not None
                    if loaded[1] != {"step": 1}:  # `1e9` has become `1E9`
                        assert loaded[1] == {**state, "step": 2}
                        assert file.name == "state.json"
                    else:
                        assert run.problems
            file.write_bytes(content)


@given(
    st.integers(0, 12), st.lists(st.sampled_from([0, 3, 8]), min_size=1, max_size=3),
    st.sampled_from(["fp16", "int8"]), st.floats(1e-6, 1e6),
)  # fmt: skip
def test_stored_targets_are_what_was_packed(
    count: int, widths: list[int], form: str, scale: float
) -> None:
    generator = torch.Generator().manual_seed(count)
    kept = Kept(
        model="", layers=(1,), normalise=False, codebook="", arithmetic="fp32", form=form,  # type: ignore[arg-type]
        widths=tuple(widths),
    )  # fmt: skip
    targets = [
        scale * torch.randn(count, width, generator=generator)
        if width
        else torch.randint(0, 500, (count,), generator=generator)
        for width in widths
    ]
    data, powers = pack(targets, kept)
    assert len(data) == count * kept.bytes_per_frame
    for target, found in zip(targets, unpack(data, kept, count, powers), strict=True):
        assert found.shape == target.shape
        if not target.is_floating_point():
            assert torch.equal(found, target)
        elif count:
            near = 2e-3 if form == "fp16" else 1 / 127
            assert float((found - target).abs().max()) <= near * float(target.abs().max()) + 1e-7
