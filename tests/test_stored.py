"""Targets that are computed once: the same numbers, kept safely, and noticed where they do not belong."""

import json
import math
import os
import shutil
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
import torch
from conftest import make_model, quick, voice
from lhotse import MonoCut
from safetensors.torch import load_file
from torch import Tensor

from distilkit import assembly, batches, config, data, distill, plan, stored, teachers
from distilkit.batches import Schedule
from distilkit.distill import keeping
from distilkit.encoder import Encoder, exact
from distilkit.errors import DistilkitError
from distilkit.listeners import in_order
from distilkit.runs import Run
from distilkit.stored import Kept, Store, fill, pack, unpack
from distilkit.targets import LiveTargets

LAYERS = (4, 8, 12)
WHAT = Kept(
    model="0123", layers=LAYERS, normalise=False, codebook="", arithmetic="fp32", form="fp16", widths=(32,) * 3,
)  # fmt: skip
MICRO = 6.0  # seconds


@pytest.fixture(scope="module")
def windows(speech: Path) -> list[MonoCut]:
    return data.collect([speech], config.Data(valid_fraction=0.0)).train


@pytest.fixture(scope="module")
def live() -> LiveTargets:
    return LiveTargets(Encoder(model=exact(make_model()), normalise=False), LAYERS)


def filled(folder: Path, windows: Sequence[MonoCut], live: LiveTargets, kept: Kept = WHAT) -> Store:
    store = Store(folder, kept)
    assert set(fill(store, windows, live, MICRO)) == {cut.id for cut in windows}
    return store


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


@pytest.mark.parametrize(("form", "most"), [("fp16", 5e-4), ("int8", 0.02)])
def test_what_is_kept_is_what_the_teacher_said(
    windows: list[MonoCut], live: LiveTargets, tmp_path: Path, form: config.Stored, most: float
) -> None:
    store = filled(tmp_path, windows, live, replace(WHAT, form=form))
    for cut in windows:
        wave = torch.from_numpy(cut.load_audio())
        said = live(wave, [wave.shape[1]])
        for kept, target in zip(store.read(cut, wave[0]), said, strict=True):
            assert kept.shape == target[0].shape
            assert (kept.float() - target[0]).abs().max() <= most * target.abs().max()
            assert not torch.equal(kept.float(), target[0])  # it went through the form
    size = sum((tmp_path / name).stat().st_size for name in contents(tmp_path) if ".bin" in name)
    count = sum(len(store.read(c, torch.from_numpy(c.load_audio()[0]))[0]) for c in windows)
    assert size == count * {"fp16": 192, "int8": 108}[form] == count * store.kept.bytes_per_frame


def test_batches_bring_them(windows: list[MonoCut], live: LiveTargets, tmp_path: Path) -> None:
    store = filled(tmp_path, windows, live)
    lengths = [cut.num_samples for cut in windows]
    schedule = Schedule(lengths=lengths, seconds=6.0, micro_seconds=4.0, seed=0)
    for workers in (0, 1):
        steps = batches.stream(
            windows, schedule, first=1, last=4, workers=workers, beside=store.read
        )
        for batch in (micro for step in steps for micro in step):
            said = live(batch.wave_BS, batch.lengths)
            for kept_BTD, said_BTD in zip(batch.targets, said, strict=True):
                for index, length in enumerate(batch.lengths):
                    count = batches.frames(length)
                    torch.testing.assert_close(
                        kept_BTD[index, :count].float(),
                        said_BTD[index, :count],
                        atol=4e-3,
                        rtol=2e-3,
                    )


def test_large_numbers_fit_into_fp16() -> None:
    target = torch.randn(7, 32) * 3e5
    data, powers = pack([target, torch.zeros(7, 32)], replace(WHAT, widths=(32, 32)))
    assert powers[0] > 0
    kept, zero = unpack(data, replace(WHAT, widths=(32, 32)), 7, powers)
    assert (kept - target).abs().max() <= 5e-4 * target.abs().max()
    assert not zero.any()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_int8_has_a_scale_for_each_frame(scale: float) -> None:
    target = torch.randn(9, 32) * torch.logspace(-2, 2, 9)[:, None] * scale
    target[4] = 0
    what = replace(WHAT, form="int8", widths=(32,))
    (kept,) = unpack(*pack([target], what)[:1], what, 9, (0,))
    most = target.abs().amax(1, keepdim=True)
    assert ((kept - target).abs() <= most / 253).all()


def test_units_are_whole_numbers(windows: list[MonoCut], tmp_path: Path) -> None:
    def units(wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        return [torch.arange(batches.frames(wave_BS.shape[1])).repeat(len(lengths), 1) + 40_000]

    store = Store(tmp_path, replace(WHAT, codebook="x", widths=(0,)))
    assert len(list(fill(store, windows, units, MICRO))) == len(windows)
    wave = torch.from_numpy(windows[3].load_audio()[0])
    (kept,) = store.read(windows[3], wave)
    assert kept.tolist() == [40_000 + i for i in range(batches.frames(len(wave)))]


def test_what_is_there_is_not_computed_again(
    windows: list[MonoCut], live: LiveTargets, tmp_path: Path
) -> None:
    filled(tmp_path, windows, live)
    before = contents(tmp_path)
    assert not list(fill(Store(tmp_path, WHAT), windows, live, MICRO))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("batches_done", range(1, 5))
def test_interrupted_and_filled_again_is_uninterrupted(
    windows: list[MonoCut], live: LiveTargets, tmp_path: Path, batches_done: int
) -> None:
    whole = contents(filled(tmp_path / "whole", windows, live).folder)
    groups = in_order([cut.num_samples for cut in windows], MICRO)
    assert len(groups) > 4
    wanted = sum(map(len, groups[:batches_done])) - 1  # in the middle of a batch
    broken = Store(tmp_path / "broken", WHAT)
    added = 0

    with broken.writer() as add:
        for group in groups:
            batch = batches.load([windows[index] for index in group])
            said = live(batch.wave_BS, batch.lengths)
            for row, (index, length) in enumerate(zip(group, batch.lengths, strict=True)):
                if added < wanted:
                    count = batches.frames(length)
                    add(windows[index], batch.wave_BS[row, :length], [t[row, :count] for t in said])
                    added += 1
    with (tmp_path / "broken" / "part-0.bin").open("ab") as part:
        part.write(b"half a window")
    with (tmp_path / "broken" / "part-0.jsonl").open("a") as part:
        part.write('{"window": "half a li')
    again = Store(tmp_path / "broken", WHAT)
    assert len(again.missing(windows)) == len(windows) - wanted
    list(fill(again, windows, live, MICRO))
    assert contents(tmp_path / "broken") == whole


def test_a_part_cut_short_is_computed_again_from_there(
    windows: list[MonoCut], live: LiveTargets, tmp_path: Path
) -> None:
    whole = contents(filled(tmp_path, windows, live).folder)
    part = tmp_path / "part-0.bin"
    os.truncate(part, part.stat().st_size // 2)
    again = Store(tmp_path, WHAT)
    assert 0 < len(again.missing(windows)) < len(windows)
    list(fill(again, windows, live, MICRO))
    assert contents(tmp_path) == whole


def test_processes_share_the_work(
    windows: list[MonoCut], live: LiveTargets, tmp_path: Path
) -> None:
    alone = filled(tmp_path / "alone", windows, live)
    first, second = Store(tmp_path / "both", WHAT), Store(tmp_path / "both", WHAT)
    one = fill(first, windows, live, MICRO, share=(0, 2))
    done = {next(one)}  # holds the first part
    done |= set(fill(second, windows, live, MICRO, share=(1, 2)))
    done |= set(one)
    assert done == {cut.id for cut in windows}
    assert {path.name for path in (tmp_path / "both").glob("*.bin")} == {"part-0.bin", "part-1.bin"}
    first.refresh()
    for cut in windows:
        wave = torch.from_numpy(cut.load_audio()[0])
        for a, b in zip(alone.read(cut, wave), first.read(cut, wave), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("count", [1, 2])
def test_each_process_of_a_run_computes_its_share(
    speech: Path, teacher_folder: Path, tmp_path: Path, count: int
) -> None:
    recipe = quick("targets.store=fp16", "batches.micro_seconds=4")
    job = distill.prepare(
        [speech], teacher=str(teacher_folder), out=tmp_path / "run", recipe=recipe
    )
    teacher = LiveTargets(job.teacher, (4, 8, 12)) if job.teacher else pytest.fail("no teacher")
    heard: list[int] = []

    def counted(wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        heard.append(len(lengths))
        return teacher(wave_BS, lengths)

    windows = len([*job.train, *job.valid])
    for index in range(count):
        process = SimpleNamespace(
            process_index=index, num_processes=count, device="cpu", wait_for_everyone=lambda: None
        )
        before = sum(heard)
        keeping.filled(job, process, counted, lambda: False, data.untracked)  # type: ignore[arg-type]
        assert windows // count - 4 <= sum(heard) - before <= windows // count + 4
    assert sum(heard) == windows
    assert not keeping.missing(job)


# ---------------------------------------------------------------------------------- what is wrong


def test_another_teacher_layer_or_form_is_noticed(tmp_path: Path) -> None:
    Store(tmp_path, WHAT)
    for change, name in (
        ({"model": "4567"}, "model"),
        ({"layers": (4, 8)}, "layers"),
        ({"form": "int8"}, "form"),
        ({"normalise": True}, "normalise"),
        ({"arithmetic": "bf16"}, "arithmetic"),
        ({"codebook": "x"}, "codebook"),
    ):
        other = replace(WHAT, **change)  # type: ignore[arg-type]
        assert other.name != WHAT.name
        with pytest.raises(DistilkitError, match=f"`{name}` differs") as error:
            Store(tmp_path, other)
        assert error.value.hint is not None
        assert error.value.hint.startswith(f"rm -r {tmp_path}")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"])
def test_a_damaged_description_is_one_error(tmp_path: Path, text: str) -> None:
    Store(tmp_path, WHAT)
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(DistilkitError, match="store.json|something else"):
        Store(tmp_path, WHAT)


def test_damaged_numbers_are_noticed(
    windows: list[MonoCut], live: LiveTargets, tmp_path: Path
) -> None:
    store = filled(tmp_path, windows, live)
    part = tmp_path / "part-0.bin"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    said: list[str] = []
    for cut in windows:
        try:
            store.read(cut, torch.from_numpy(cut.load_audio()[0]))
        except DistilkitError as error:
            said.append(error.problem)
    assert len(said) == 1
    assert "damaged" in said[0]


def test_a_part_cut_short_under_a_reader_is_one_error(
    windows: list[MonoCut], live: LiveTargets, tmp_path: Path
) -> None:
    store = filled(tmp_path, windows, live)
    waves = [torch.from_numpy(cut.load_audio()[0]) for cut in windows]
    for cut, wave in zip(windows, waves, strict=True):
        store.read(cut, wave)
    os.truncate(tmp_path / "part-0.bin", 100)
    with pytest.raises(DistilkitError, match="damaged"):
        store.read(windows[5], waves[5])


def test_a_damaged_journal_costs_its_lines_only(
    windows: list[MonoCut], live: LiveTargets, tmp_path: Path
) -> None:
    filled(tmp_path, windows, live)
    journal = tmp_path / "part-0.jsonl"
    lines = journal.read_text().splitlines()
    lines[2] = lines[2][:30]
    lines[4] = json.dumps({"window": "x"})
    lines[6] = "null"
    lines[7] = "[" * 100_000
    lies = {"at": -(10**18), "size": 10**18}
    lines[8] = json.dumps(json.loads(lines[8]) | lies)
    lines[9] = json.dumps(json.loads(lines[9]) | {"powers": [math.inf]})
    journal.write_bytes(("\n".join(lines) + "\n").encode() + b"\xff\xfe\n")
    assert len(Store(tmp_path, WHAT).missing(windows)) == 6


def test_a_journal_that_lies_elsewhere_is_not_followed(
    windows: list[MonoCut], live: LiveTargets, tmp_path: Path
) -> None:
    filled(tmp_path / "kept", windows, live)
    (tmp_path / "canary").write_text("mine")
    (tmp_path / "kept" / "part-1.jsonl").symlink_to("../canary")
    with pytest.raises(DistilkitError, match="is a link to"):
        Store(tmp_path / "kept", WHAT)
    assert (tmp_path / "canary").read_text() == "mine"


def test_a_description_that_lies_elsewhere_is_not_read(
    windows: list[MonoCut], live: LiveTargets, tmp_path: Path
) -> None:
    filled(tmp_path / "kept", windows, live)
    (tmp_path / "canary").write_text("{}")
    (tmp_path / "kept" / "store.json").unlink()
    (tmp_path / "kept" / "store.json").symlink_to("../canary")
    with pytest.raises(DistilkitError, match="is a link to"):
        Store(tmp_path / "kept", WHAT)


@pytest.mark.parametrize("lie", [{"size": 7}, {"size": 0}, {"powers": []}, {"at": 1}])
def test_a_journal_that_lies_is_one_error(
    windows: list[MonoCut], live: LiveTargets, tmp_path: Path, lie: dict[str, object]
) -> None:
    filled(tmp_path, windows, live)
    journal = tmp_path / "part-0.jsonl"
    lines = journal.read_text().splitlines()
    row = json.loads(lines[0]) | lie
    data = (tmp_path / "part-0.bin").read_bytes()[row["at"] : row["at"] + row["size"]]
    row["kept"] = zlib.crc32(data)
    del row["line"]  # as in older stores
    journal.write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")
    store = Store(tmp_path, WHAT)
    if lie == {"at": 1}:  # bytes of the right number, and nothing says that they are others
        store.read(windows[0])
        return
    refused = []
    for cut in windows:
        try:
            store.read(cut)
        except DistilkitError as error:
            refused.append(error.problem)
    assert len(refused) == 1
    assert "part-0.bin` are damaged" in refused[0]


@pytest.mark.parametrize("form", ["fp16", "int8"])
@pytest.mark.parametrize(
    "lie", [{"powers": [0, 9, 0]}, {"powers": [10**30, 0, 0]}, {"wave": 7}, {"at": 1}]
)
def test_a_line_that_is_not_as_it_was_written_counts_for_nothing(
    windows: list[MonoCut], live: LiveTargets, tmp_path: Path, lie: dict[str, object], form: Any
) -> None:
    what = replace(WHAT, form=form)
    store = Store(tmp_path, what)
    for _ in fill(store, windows, live, 8.0):
        pass
    journal = tmp_path / "part-0.jsonl"
    lines = journal.read_text().splitlines()
    row = json.loads(lines[0]) | lie
    journal.write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")
    assert len(Store(tmp_path, what).missing(windows)) == 1


def test_a_journal_that_is_a_folder_is_written_anew(
    windows: list[MonoCut], live: LiveTargets, tmp_path: Path
) -> None:
    store = filled(tmp_path, windows, live)
    journal = tmp_path / "part-0.jsonl"
    journal.unlink()
    journal.mkdir()
    store = Store(tmp_path, WHAT)
    assert len(store.missing(windows)) == len(windows)
    for _ in fill(store, windows, live, 8.0):
        pass
    assert journal.is_file()
    assert not Store(tmp_path, WHAT).missing(windows)


def test_a_lock_that_cannot_be_opened_is_one_error(
    windows: list[MonoCut], live: LiveTargets, tmp_path: Path
) -> None:
    store = Store(tmp_path, WHAT)
    (tmp_path / ".part-0.lock").mkdir()
    with pytest.raises(DistilkitError, match="cannot write .*part-0.lock`: Is a directory"):
        next(fill(store, windows, live, 8.0))


def test_changed_sound_is_noticed_and_a_new_name_is_not(
    speech: Path, live: LiveTargets, tmp_path: Path
) -> None:
    own = tmp_path / "speech"
    shutil.copytree(speech, own)
    settings = config.Data(valid_fraction=0.0)
    before = data.collect([own], settings).train
    store = filled(tmp_path / "store", before, live)
    (own / "a" / "clip00.flac").rename(own / "a" / "other.flac")
    soundfile.write(own / "b" / "clip01.wav", voice(0.85, 77), 16_000, "PCM_16")
    after = data.collect([own], settings).train
    assert [cut.id for cut in store.missing(after)] == ["b/clip01.wav"]
    changed = next(cut for cut in before if cut.id == "b/clip01.wav")
    with pytest.raises(DistilkitError, match=r"clip01.wav` is no longer the sound"):
        batches.load([changed], store.read)


def test_out_of_memory_is_half_at_a_time(
    windows: list[MonoCut], live: LiveTargets, tmp_path: Path
) -> None:
    whole = filled(tmp_path / "whole", windows, live)
    sizes: list[int] = []

    def tight(wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        sizes.append(len(lengths))
        if len(lengths) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return live(wave_BS, lengths)

    store = Store(tmp_path / "tight", WHAT)
    assert len(list(fill(store, windows, tight, MICRO))) == len(windows)
    assert max(sizes) > 2
    for cut in windows:
        wave = torch.from_numpy(cut.load_audio()[0])
        for kept, said in zip(store.read(cut, wave), whole.read(cut, wave), strict=True):
            torch.testing.assert_close(kept, said, atol=4e-3, rtol=2e-3)

    def broken(wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        list(fill(Store(tmp_path / "broken", WHAT), windows, broken, MICRO))


def test_what_is_not_finite_is_not_kept(
    windows: list[MonoCut], live: LiveTargets, tmp_path: Path
) -> None:
    def wild(wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        said = live(wave_BS, lengths)
        said[1][0, 3, 5] = float("inf")
        return said

    for form in ("fp16", "int8"):
        store = Store(tmp_path / form, replace(WHAT, form=form))
        with pytest.raises(DistilkitError, match="not finite numbers") as error:
            list(fill(store, windows, wild, MICRO))
        assert "train.precision=fp32" in str(error.value.hint)
        assert len(store.missing(windows)) == len(windows)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_is_the_same_whoever_loads(
    windows: list[MonoCut], live: LiveTargets, tmp_path: Path, workers: int
) -> None:
    store = filled(tmp_path, windows, live)
    os.truncate(tmp_path / "part-0.bin", 100)
    lengths = [cut.num_samples for cut in windows]
    schedule = Schedule(lengths=lengths, seconds=6.0, micro_seconds=4.0, seed=0)
    steps = batches.stream(windows, schedule, first=1, last=4, workers=workers, beside=store.read)
    with pytest.raises(DistilkitError) as error:
        list(steps)
    assert error.value.problem == f"the stored targets `{tmp_path}/part-0.bin` are damaged"
    assert str(error.value.hint).startswith(f"rm -r {tmp_path}")


def test_a_full_disk_is_one_error_and_loses_nothing(
    windows: list[MonoCut], live: LiveTargets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, WHAT)
    calls = 0
    real = stored.pack

    def full(targets: Sequence[Tensor], kept: Kept) -> tuple[bytes, tuple[int, ...]]:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise OSError(28, "No space left on device")
        return real(targets, kept)

    monkeypatch.setattr(stored, "pack", full)
    with pytest.raises(DistilkitError, match="No space left") as error:
        list(fill(store, windows, live, MICRO))
    assert "--resume" in str(error.value.hint)
    assert len(Store(tmp_path, WHAT).missing(windows)) == len(windows) - 5


# ------------------------------------------------------------------------------------ in a run


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in Run(run).rows("metrics.jsonl")]


STEPS = ("train.steps=24", "train.checkpoint_every=5", "train.validate_every=8")


def run(speech: Path, teacher: Path, out: Path, *changes: str) -> Path:
    distill.distill([speech], teacher=str(teacher), out=out, recipe=quick(*STEPS, *changes))
    return out


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("objective.normalise=true",),
        ("objective.part_seconds=[0.5, 1.0]", "noise.probability=0.5"),
        ("objective.mask_probability=0.5",),
        ("objective.name=units", "objective.clusters=8"),
        ("objective.name=units", "objective.clusters=8", "objective.features=mfcc"),
        ("train.freeze_front_end=true",),
        ("train.freeze_front_end=true", "objective.name=units", "objective.clusters=8"),
        ("train.freeze_front_end=true", "noise.probability=0.5"),
    ],
)
def test_stored_follows_live(
    speech: Path, teacher_folder: Path, tmp_path: Path, changes: tuple[str, ...]
) -> None:
    by = {
        form: losses(
            run(speech, teacher_folder, tmp_path / form, f"targets.store={form}", *changes)
        )
        for form in ("none", "fp16")
    }
    assert by["fp16"] == pytest.approx(by["none"], rel=1e-3)
    assert not (tmp_path / "fp16" / "targets").exists()  # the student is there
    if "objective.name=units" not in changes:
        assert by["fp16"] != by["none"]


def test_stopped_while_the_teacher_runs_and_resumed(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    whole = run(
        speech, teacher_folder, tmp_path / "whole", "targets.store=fp16", "batches.micro_seconds=4"
    )
    recipe = quick(*STEPS, "targets.store=fp16", "batches.micro_seconds=4")
    out = tmp_path / "broken"
    job = distill.prepare([speech], teacher=str(teacher_folder), out=out, recipe=recipe)
    asked = 0

    def soon() -> bool:
        nonlocal asked
        asked += 1
        return asked == 4

    assert not list(distill.train(job, soon))
    assert (out / "targets" / "part-0.bin").stat().st_size > 0
    for _ in distill.train(distill.prepare([], out=out, resume=True)):
        pass
    for name in ("metrics.jsonl", "student/model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("changes", [(), ("objective.name=units", "objective.clusters=8")])
def test_a_frozen_front_end_is_kept_and_computed_once(
    speech: Path, teacher_folder: Path, tmp_path: Path, changes: tuple[str, ...]
) -> None:
    """With what the teacher's gave on the disk, with what it gives now, and with its own it is the same."""
    frozen = ("train.freeze_front_end=true", *changes)
    by = {
        form: run(speech, teacher_folder, tmp_path / form, f"targets.store={form}", *frozen)
        for form in ("none", "fp16")
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "shared_front", lambda *asked: 0)
        by["own"] = run(speech, teacher_folder, tmp_path / "own", "targets.store=none", *frozen)
    assert losses(by["none"]) == pytest.approx(losses(by["own"]), rel=1e-5)
    assert losses(by["fp16"]) == pytest.approx(losses(by["own"]), rel=1e-3)
    teacher = load_file(teacher_folder / "model.safetensors")
    for form, folder in by.items():
        plan = Run(folder).read()["plan"]
        assert plan["front_width"] == (0 if form == "own" else 16)
        said = next(row for row in plan["choices"] if row["name"] == "conv front end")
        assert ("the teacher's" in said["reason"]) == (form != "own")
        student = load_file(folder / "student" / "model.safetensors")
        for name, value in student.items():
            if name.startswith("feature_extractor."):
                assert torch.equal(value, teacher[name])


@pytest.mark.parametrize(
    "student",
    ["student.architecture=paper", "student.start_layers=[3, 5]", "train.freeze_front_end=true"],
)
def test_once_stored_no_teacher_is_loaded(
    speech: Path,
    teacher_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    student: str,
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(teacher_folder, teacher)
    settings = ("targets.store=fp16", student)
    whole = run(speech, teacher, tmp_path / "whole", *settings)
    out, heard = tmp_path / "broken", list[weakref.ref[LiveTargets]]()
    begin = LiveTargets.__init__

    def watched(self: LiveTargets, *given: Any) -> None:
        heard.append(weakref.ref(self))
        begin(self, *given)

    monkeypatch.setattr(LiveTargets, "__init__", watched)
    job = distill.prepare([speech], teacher=str(teacher), out=out, recipe=quick(*STEPS, *settings))
    done: list[int] = []
    for step in distill.train(job, lambda: len(done) >= 7):
        done.append(step.number)
        assert job.teacher is not None
        assert all(tensor.is_meta for tensor in job.teacher.model.parameters())
        assert len(heard) == 1
        assert heard[0]() is None  # nor does what it had of its own stay in memory
    shutil.rmtree(teacher)
    monkeypatch.setattr(teachers, "load", lambda name: pytest.fail(f"loaded {name}"))
    for _ in distill.train(distill.prepare([], out=out, resume=True)):
        pass
    for name in ("metrics.jsonl", "student/model.safetensors", "heads.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_a_folder_of_targets_serves_other_runs(
    speech: Path, teacher_folder: Path, large_folder: Path, tmp_path: Path
) -> None:
    folder = f'targets.folder="{tmp_path / "kept"}"'
    run(speech, teacher_folder, tmp_path / "a", "targets.store=fp16", folder)
    (kept,) = (tmp_path / "kept").iterdir()
    before = contents(kept)
    run(speech, teacher_folder, tmp_path / "b", "targets.store=fp16", folder, "train.seed=1")
    assert contents(kept) == before
    options = {
        "teacher": str(teacher_folder),
        "recipe": quick(*STEPS, "targets.store=fp16", folder),
    }
    job = distill.prepare([speech], out=tmp_path / "d", **options)
    taken = distill.measure(job).taken
    assert taken is not None
    assert taken.target_seconds == 0
    layers = "objective.layers=[2,4]"
    run(speech, large_folder, tmp_path / "c", "targets.store=fp16", folder, layers)
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_the_plan_says_what_it_takes(speech: Path, teacher_folder: Path, tmp_path: Path) -> None:
    recipe = quick(*STEPS, "targets.store=fp16")
    job = distill.prepare(
        [speech], teacher=str(teacher_folder), out=tmp_path / "run", recipe=recipe
    )
    measured = distill.measure(job).taken
    assert measured is not None
    assert measured.target_seconds > 0
    assert job.plan.stored_bytes > 100_000
    live = distill.disk_bytes(replace(job, plan=replace(job.plan, stored=None)))
    assert distill.disk_bytes(job) == live + job.plan.stored_bytes
    steps = distill.train(job)
    next(steps)
    steps.close()
    again = distill.prepare([], out=tmp_path / "run", resume=True)
    assert again.teacher is not None  # there is no checkpoint yet to take the student from
    assert distill.disk_bytes(again) == live


@pytest.mark.parametrize(
    ("settings", "passes", "size", "form", "reason"),
    [
        ({}, 1.5, 1, None, "beside the student in 1.5 passes"),
        ({}, 20, 1, "fp16", "once for 20 passes"),
        ({}, 1000, 1, "fp16", "once for 1,000 passes"),
        ({"store": "int8"}, 1, 1, "int8", "asked for"),
        ({"store": "none"}, 99, 1, None, "asked for"),
        ({"most_gib": 0.5}, 20, 2**30, None, "more than `targets.most_gib`"),
        ({"most_gib": 1e12}, 20, 2**60, None, "are free"),
    ],
)
def test_when_targets_are_kept(
    tmp_path: Path,
    settings: dict[str, object],
    passes: float,
    size: int,
    form: str | None,
    reason: str,
) -> None:
    asked = config.Targets(**settings)  # type: ignore[arg-type]
    steps = round(passes * 10)
    found, bytes_, choice = plan.stored(
        asked, steps, 10, lambda form: size, tmp_path / "not" / "yet", units=False
    )
    assert (found, bytes_) == (form, size if form else 0)
    assert reason in choice.reason
