"""Distillation from a folder to a loadable student, stopped and resumed."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_model, quick
from formats import family
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel

from distilkit import codebooks, config, loop, teachers, units
from distilkit import distill as distillation
from distilkit.assembly import Distiller
from distilkit.batches import Batch
from distilkit.distill import distill, prepare, train
from distilkit.encoder import Encoder, exact, fingerprint
from distilkit.errors import DistilkitError
from distilkit.objectives import layerwise
from distilkit.runs import Run
from distilkit.students import save
from distilkit.targets import LiveTargets


def files(run: Path) -> dict[str, bytes]:
    """What two equal runs must have equal, to the byte."""
    names = ["metrics.jsonl", "heads.safetensors", "student/model.safetensors", "audio.jsonl.gz"]
    return {name: (run / name).read_bytes() for name in names}


def test_from_a_folder_to_a_student(speech: Path, teacher_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = quick("train.steps=30", "train.validate_every=10", "train.learning_rate=2e-3")
    student = distill([speech], teacher=str(teacher_folder), out=out, recipe=recipe)
    assert student == out / "student"
    rows = Run(out).rows("metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 31))
    valid = [row["valid"]["loss"] for row in rows if "valid" in row]
    assert len(valid) == 3
    assert valid[-1] < valid[0]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert {"l1_4", "cosine_4", "l1_8", "cosine_8", "l1_12", "cosine_12", "grad_norm"} <= set(
        rows[0]
    )
    model = AutoModel.from_pretrained(student)
    assert model.config.num_hidden_layers == 2
    AutoFeatureExtractor.from_pretrained(student)
    card = (student / "README.md").read_text()
    assert f"| loss | {valid[0]:.4f} | {valid[-1]:.4f} |" in card
    assert "None" not in card
    assert load_file(out / "heads.safetensors")["output_layer.2.weight"].shape == (3, 32, 32)
    with safe_open(out / "heads.safetensors", "pt") as heads:
        assert heads.metadata() == {"layers": "4,8,12"}
    windows = [
        json.loads(line)
        for line in gzip.decompress((out / "audio.jsonl.gz").read_bytes()).splitlines()
    ]
    held = {w["recording"]["id"] for w in windows if w["custom"]["split"] == "valid"}
    assert held
    assert not held & {w["recording"]["id"] for w in windows if w["custom"]["split"] == "train"}
    encoder, checkpoint = teachers.load(str(out))
    assert checkpoint.format == "huggingface"
    assert encoder.depth == 2


def test_equal_runs_are_equal_and_other_seeds_are_not(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    for name, changes in (("a", []), ("b", []), ("c", ["train.seed=1"])):
        distill([speech], teacher=str(teacher_folder), out=tmp_path / name, recipe=quick(*changes))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a") != files(tmp_path / "c")


def test_the_last_step_is_validated(speech: Path, teacher_folder: Path, tmp_path: Path) -> None:
    recipe = quick("train.steps=4", "train.validate_every=3")
    distill([speech], teacher=str(teacher_folder), out=tmp_path / "run", recipe=recipe)
    rows = Run(tmp_path / "run").rows("metrics.jsonl")
    assert [row["step"] for row in rows if "valid" in row] == [3, 4]


def test_what_is_assembled_follows_the_recipe(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    def assembled(*changes: str) -> Distiller:
        job = prepare([speech], teacher=str(teacher_folder), out=tmp_path, recipe=quick(*changes))
        parts, _ = distillation.assemble(job, loop.accelerator("cpu", "fp32"))
        return parts.module

    plain, again, other = assembled(), assembled(), assembled("train.seed=1")
    assert torch.equal(plain.heads.inner.weight, again.heads.inner.weight)
    assert not torch.equal(plain.heads.inner.weight, other.heads.inner.weight)
    for value in (True, False):
        recomputed = f"train.gradient_checkpointing={str(value).lower()}"
        assert assembled(recomputed).model.is_activation_checkpointing is value
    without = assembled("train.conv_gradient_scale=0", "student.dropout=0")
    for distiller, still in ((plain, False), (without, True)):
        sum(p.pow(2).sum() for p in distiller(torch.randn(1, 8_000), [8_000])).backward()  # type: ignore[union-attr]
        convs = distiller.model.feature_extractor.conv_layers
        assert all((c.conv.weight.grad.abs().max() == 0) == still for c in convs)


def test_the_loss_has_the_weights_of_the_recipe() -> None:
    settings = config.Objective(layers=[4], l1_weight=3.0, cosine_weight=0.5)
    predicted, target = torch.randn(2, 1, 2, 6, 8)
    mask = torch.ones(2, 6, dtype=torch.bool)
    loss = layerwise(predicted, target, mask, settings=settings)
    assert loss.total == 3.0 * loss.parts["l1_4"] + 0.5 * loss.parts["cosine_4"]


@pytest.mark.parametrize(("precision", "low"), [("fp32", False), ("bf16", True), ("fp16", False)])
def test_the_teacher_is_never_in_fp16(precision: config.Precision, low: bool) -> None:
    """Also inside the student's autocast."""
    teacher = Encoder(model=exact(make_model()), normalise=False)
    before = {name: weight.dtype for name, weight in teacher.model.named_parameters()}
    teach = LiveTargets(teacher, [4], "cpu", precision)
    ran: list[torch.dtype] = []
    linear = teach.teacher.model.encoder.layers[0].feed_forward.intermediate_dense
    linear.register_forward_hook(lambda _module, _inputs, output: ran.append(output.dtype))
    with torch.autocast("cpu", torch.float16):
        teach(torch.randn(1, 8_000), [8_000])
    assert ran == [torch.bfloat16 if low else torch.float32]
    assert linear.weight.dtype is ran[0]
    assert {name: weight.dtype for name, weight in teacher.model.named_parameters()} == before


def test_the_teacher_runs_up_to_the_deepest_layer(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    recipe = quick("objective.layers=[2,5]", "train.steps=1")
    job = prepare([speech], teacher=str(teacher_folder), out=tmp_path / "run", recipe=recipe)
    ran: list[int] = []
    for number, layer in enumerate(job.teacher.model.encoder.layers, start=1):
        layer.register_forward_hook(lambda *_, n=number: ran.append(n))
    list(train(job))
    assert sorted(set(ran)) == [1, 2, 3, 4, 5]
    assert len(job.teacher.model.encoder.layers) == job.teacher.depth > 5


def test_measuring_takes_nothing_from_the_job(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    """Nor does the teacher's being cut short: the student starts from layers above."""
    recipe = quick("objective.layers=[2]", "student.start_layers=[4,5]", "train.steps=1")
    for out, look in (("plain", False), ("measured", True)):
        job = prepare([speech], teacher=str(teacher_folder), out=tmp_path / out, recipe=recipe)
        if look:
            distillation.measure(job)
            assert distillation.disk_bytes(job) > 0
        list(train(job))
    assert files(tmp_path / "plain") == files(tmp_path / "measured")


def test_a_run_is_held_by_one_process(speech: Path, teacher_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    steps = train(prepare([speech], teacher=str(teacher_folder), out=out, recipe=quick()))
    next(steps)
    with pytest.raises(DistilkitError, match="is in use: process"):
        next(train(prepare([], out=out, resume=True)))
    steps.close()


@pytest.mark.parametrize("after", [1, 2, 5])
def test_stopped_and_resumed_is_uninterrupted(
    speech: Path, teacher_folder: Path, tmp_path: Path, after: int
) -> None:
    distill([speech], teacher=str(teacher_folder), out=tmp_path / "whole", recipe=quick())
    out = tmp_path / "broken"
    job = prepare([speech], teacher=str(teacher_folder), out=out, recipe=quick())
    done: list[int] = []
    for step in train(job, stop=lambda: len(done) >= after - 1):
        done.append(step.number)
    assert done == list(range(1, after + 1))
    assert not (out / "student").exists()
    again = prepare([], out=out, resume=True)
    assert again.resumed
    rest = [step.number for step in train(again)]
    assert rest == list(range(after + 1, 7))
    assert files(out) == files(tmp_path / "whole")


def test_resumed_after_memory_ran_out(
    speech: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lower limit is in the checkpoint: what follows is what an uninterrupted run does."""
    real = loop._accumulate
    calls: list[float] = []

    def tight(accelerator: object, module: object, micro: list[Batch], *rest: object) -> object:
        calls.append(max(batch.padded_seconds for batch in micro))
        if len(calls) == 2:  # the second step, once
            return None
        return real(accelerator, module, micro, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "_accumulate", tight)
    recipe = quick("train.checkpoint_every=1", "batches.seconds=8", "batches.micro_seconds=8")
    options = {"teacher": str(teacher_folder), "recipe": recipe}
    distill([speech], out=tmp_path / "whole", **options)
    limit = max(calls[2:])
    assert limit < calls[1]
    calls.clear()
    steps = train(prepare([speech], out=tmp_path / "broken", **options))
    assert [next(steps).lowered > 0 for _ in range(3)] == [False, True, False]
    steps.close()
    calls += [0.0, 0.0]
    for _ in train(prepare([], out=tmp_path / "broken", resume=True)):
        pass
    assert max(calls[-3:]) <= limit
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_abandoned_between_checkpoints_and_resumed(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    """As after a kill: step 3 was logged but never saved."""
    distill([speech], teacher=str(teacher_folder), out=tmp_path / "whole", recipe=quick())
    out = tmp_path / "broken"
    steps = train(prepare([speech], teacher=str(teacher_folder), out=out, recipe=quick()))
    for _ in range(3):
        next(steps)
    steps.close()
    assert len(Run(out).rows("metrics.jsonl")) == 3
    assert [step.number for step in train(prepare([], out=out, resume=True))] == [3, 4, 5, 6]
    assert files(out) == files(tmp_path / "whole")


def test_resuming_where_there_is_nothing_begins(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    options = {"teacher": str(teacher_folder), "recipe": quick(), "resume": True}
    job = prepare([speech], out=tmp_path / "run", **options)
    assert not job.resumed
    with pytest.raises(DistilkitError, match="holds no run to resume"):
        prepare([], out=tmp_path / "nothing", **options)


def test_a_finished_run_is_not_resumed(speech: Path, teacher_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    distill([speech], teacher=str(teacher_folder), out=out, recipe=quick("train.steps=1"))
    with pytest.raises(DistilkitError, match="is finished: its student is in"):
        prepare([], out=out, resume=True)


def test_a_teacher_by_relative_path_is_found_from_another_folder(
    speech: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.chdir(teacher_folder.parent)
    steps = train(prepare([speech], teacher=teacher_folder.name, out=out, recipe=quick()))
    next(steps)
    steps.close()
    monkeypatch.chdir(tmp_path)
    assert prepare([], out=out, resume=True).teacher is not None


def test_another_teacher_is_noticed(
    speech: Path, teacher_folder: Path, large_folder: Path, tmp_path: Path
) -> None:
    import shutil

    teacher, out = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(teacher_folder, teacher)
    steps = train(prepare([speech], teacher=str(teacher), out=out, recipe=quick()))
    next(steps)
    steps.close()
    shutil.rmtree(teacher)
    shutil.copytree(large_folder, teacher)
    with pytest.raises(DistilkitError, match="is not the one"):
        prepare([], out=out, resume=True)
    shutil.rmtree(teacher)
    shutil.copytree(teacher_folder, teacher)
    tensors = load_file(teacher / "model.safetensors")
    tensors["encoder.layers.0.attention.k_proj.bias"] += 0.01
    from safetensors.torch import save_file

    save_file(tensors, teacher / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DistilkitError, match="is not the one that"):
        prepare([], out=out, resume=True)


def test_a_layer_the_teacher_lacks(speech: Path, large_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DistilkitError, match="asks for layer 12, but the teacher .* has 4"
    ) as caught:
        prepare([speech], teacher=str(large_folder), out=tmp_path / "run", recipe=quick())
    assert caught.value.hint == '--set "objective.layers=[4]"'


@pytest.mark.parametrize("changes", [[], ["train.gradient_checkpointing=true"]])
def test_large_teachers_and_checkpointing(
    speech: Path, large_folder: Path, tmp_path: Path, changes: list[str]
) -> None:
    out = tmp_path / "run"
    recipe = quick("objective.layers=[2,4]", "train.steps=3", *changes)
    distill([speech], teacher=str(large_folder), out=out, recipe=recipe)
    extractor = AutoFeatureExtractor.from_pretrained(out / "student")
    assert extractor.do_normalize
    assert AutoModel.from_pretrained(out / "student").config.do_stable_layer_norm


def test_gradient_checkpointing_changes_no_number(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    for name, value in (("off", "false"), ("on", "true")):
        recipe = quick("train.steps=3", f"train.gradient_checkpointing={value}")
        distill([speech], teacher=str(teacher_folder), out=tmp_path / name, recipe=recipe)
    one, two = (Run(tmp_path / name).rows("metrics.jsonl") for name in ("off", "on"))
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_bf16_on_a_cpu_follows_fp32(speech: Path, teacher_folder: Path, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        recipe = quick("train.steps=4", f"train.precision={precision}")
        out = tmp_path / precision
        distill([speech], teacher=str(teacher_folder), out=out, recipe=recipe)
        losses[precision] = [row["loss"] for row in Run(out).rows("metrics.jsonl")]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


def test_the_teacher_does_not_change_and_has_no_dropout(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    job = prepare([speech], teacher=str(teacher_folder), out=tmp_path / "run", recipe=quick())
    before = fingerprint(job.teacher.model)
    list(train(job))
    assert fingerprint(job.teacher.model) == before
    assert not job.teacher.model.training
    assert not any(p.requires_grad for p in job.teacher.model.parameters())
    assert all(p.grad is None for p in job.teacher.model.parameters())


def test_one_recording_has_nothing_held_out(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    clip = speech / "b" / "clip11.wav"
    distill([clip], teacher=str(teacher_folder), out=out, recipe=quick("train.steps=2"))
    assert not any("valid" in row for row in Run(out).rows("metrics.jsonl"))
    assert "was not measured" in (out / "student" / "README.md").read_text()


def test_nothing_is_written_when_preparing_fails(
    speech: Path, large_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DistilkitError):
        prepare([speech], teacher=str(large_folder), out=tmp_path / "runs" / "a", recipe=quick())
    assert not (tmp_path / "runs").exists()


def test_measuring_leaves_nothing_behind(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    job = prepare([speech], teacher=str(teacher_folder), out=tmp_path / "run", recipe=quick())
    measured = distillation.measure(job).taken
    assert measured is not None
    assert measured.seconds_per_step > 0
    assert measured.peak_gib > 0
    assert not (tmp_path / "run").exists()
    list(train(job))
    distill([speech], teacher=str(teacher_folder), out=tmp_path / "plain", recipe=quick())
    assert files(tmp_path / "run") == files(tmp_path / "plain")
    assert torch.is_grad_enabled()


# ---------------------------------------------------------------- units, noise, other teachers

SMALL = [
    "student.width=32", "student.heads=4", "student.feed_forward=64", "student.layers=1",
    "student.position_frames=16", "student.conv_widths=[8,8,8,8,8,8,8]",
]  # fmt: skip
UNITS = ["objective.name=units", "objective.clusters=8"]
MFCC = [*UNITS, "objective.features=mfcc", *SMALL]
MASKED = ["objective.mask_probability=0.6", "objective.visible_weight=0.1"]
NOISY = ["noise.probability=0.7", "noise.voice=0.3", "noise.snr=[0.0,10.0]"]


def kept(run: Path) -> dict[str, bytes]:
    """As `files`, with the codebook where there is one."""
    codebook = run / "codebook.safetensors"
    return files(run) | ({"codebook": codebook.read_bytes()} if codebook.is_file() else {})


def one_run(audio: Path, out: Path, *changes: str, teacher: object = "none", **more: object) -> Run:
    recipe = quick("train.steps=3", "batches.seconds=2", *changes)
    distill([audio], teacher=str(teacher), out=out, recipe=recipe, **more)
    return Run(out)


def card_of(run: Run) -> str:
    return (run.folder / "student" / "README.md").read_text()


def test_units_of_mfcc_need_no_teacher(speech: Path, tmp_path: Path) -> None:
    """HuBERT's first iteration: its own student, its own units."""
    settings = [*MFCC, *MASKED, "train.learning_rate=5e-3", "train.steps=6"]
    run = one_run(speech, tmp_path / "run", *settings)
    rows = run.rows("metrics.jsonl")
    assert {"entropy_mfcc", "right_mfcc"} <= set(rows[0])
    assert rows[-1]["loss"] < rows[0]["loss"]
    valid = [row["valid"] for row in rows if "valid" in row]
    assert 0 <= valid[-1]["right_mfcc"] <= 1
    assert run.read()["teacher"] is None
    card = card_of(run)
    heading = next(line for line in card.splitlines() if line.startswith("# "))
    assert heading == "# A 0.01 M HuBERT"
    assert "pre-trained with distilkit" in card
    assert "- Objective: `units`, 8 clusters of MFCC, masked (0.6 in spans of 10 frames)." in card
    assert "- Start: random weights." in card
    assert "| right, mfcc |" in card
    assert "Teacher" not in card
    assert "None" not in card
    model = AutoModel.from_pretrained(run.folder / "student")
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (32, 1)
    heads = load_file(run.folder / "heads.safetensors")
    assert heads["units.0"].shape == (8, 256)
    found = codebooks.load(run.folder / "codebook.safetensors")
    assert (found.features, found.layers, found.model) == ("mfcc", (), "")


@pytest.mark.parametrize(("what", "after"), [("mfcc", 1), ("layers", 2), ("noise", 1)])
def test_resumed_is_uninterrupted_whatever_is_random(
    speech: Path, teacher_folder: Path, tmp_path: Path, what: str, after: int
) -> None:
    """Clusters, masks, noise and dropout: all to the byte."""
    changes, teacher = {
        "mfcc": ([*MFCC, *MASKED], "none"),
        "layers": ([*UNITS, "objective.layers=[2,5]"], teacher_folder),
        "noise": ([*NOISY, *MASKED], teacher_folder),
    }[what]
    changes = [*changes, "train.steps=3", "batches.seconds=2"]
    one_run(speech, tmp_path / "whole", *changes, teacher=teacher)
    out, done = tmp_path / "broken", []
    job = prepare([speech], teacher=str(teacher), out=out, recipe=quick(*changes))
    for step in train(job, stop=lambda: len(done) >= after - 1):
        done.append(step.number)
    assert not (out / "student").exists()
    assert [s.number for s in train(prepare([], out=out, resume=True))] == list(range(after + 1, 4))
    assert kept(out) == kept(tmp_path / "whole")
    assert ("codebook" in kept(out)) is (what != "noise")


def test_units_of_a_teachers_layers(speech: Path, teacher_folder: Path, tmp_path: Path) -> None:
    """DiceHuBERT: unmasked, several codebooks, the teacher up to the deepest layer."""
    changes = [*UNITS, "objective.layers=[2,5]", "objective.normalise=true"]
    run = one_run(speech, tmp_path / "run", *changes, teacher=teacher_folder)
    rows = run.rows("metrics.jsonl")
    assert {"entropy_2", "right_2", "entropy_5", "right_5"} <= set(rows[0])
    assert rows[0]["loss"] == pytest.approx(
        (rows[0]["entropy_2"] + rows[0]["entropy_5"]) / 2, rel=1e-5
    )
    found = codebooks.load(run.folder / "codebook.safetensors")
    assert (found.layers, [tuple(c.shape) for c in found.centres]) == ((2, 5), [(8, 32)] * 2)
    assert found.normalise
    assert found.model == run.read()["teacher"]["fingerprint"]
    with safe_open(run.folder / "heads.safetensors", "pt") as heads:
        assert heads.metadata() == {"layers": "2,5"}
    assert "- Objective: `units`, 8 clusters of layers 2, 5, normalised." in card_of(run)


def test_the_input_of_the_first_layer_can_be_predicted(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    run = one_run(
        speech, tmp_path / "run", "objective.layers=[0]", "train.steps=1", teacher=teacher_folder
    )
    assert run.rows("metrics.jsonl")[0]["l1_0"] > 0


def test_a_given_codebook(
    speech: Path, teacher_folder: Path, large_folder: Path, tmp_path: Path
) -> None:
    """Of a layer below the top one: the teacher is cut short, its fingerprint is of the whole."""
    model, _ = teachers.load(str(teacher_folder))
    made = units.units([speech], tmp_path / "units", model=model, layer=5, clusters=9)
    settings = ["objective.name=units", "objective.layers=[5]", "objective.clusters=9"]
    given = [*settings, f"objective.codebook={tmp_path / 'units'}"]
    run = one_run(speech, tmp_path / "run", *given, teacher=teacher_folder)
    assert (run.folder / "codebook.safetensors").read_bytes() == (
        made.folder / "codebook.safetensors"
    ).read_bytes()

    def refused(teacher: object, *changes: str) -> tuple[str, str | None]:
        with pytest.raises(DistilkitError) as caught:
            one_run(speech, tmp_path / "no", *given, *changes, teacher=teacher)
        assert not (tmp_path / "no").exists()
        return caught.value.problem, caught.value.hint

    name, fits = f"the codebook `{tmp_path / 'units'}`", "distilkit units AUDIO --out DIR makes one"
    problem, hint = refused(teacher_folder, "objective.layers=[4]")
    assert problem == f"{name} is of layers [5], not of layers [4]"
    assert str(hint).startswith(fits)
    problem, _ = refused(teacher_folder, "objective.layers=[4,5]")
    assert problem == f"{name} is of layers [5], not of layers [4, 5]"
    problem, _ = refused("none", "objective.features=mfcc", *SMALL)
    assert problem == f"{name} is of layers [5], not of MFCC"
    problem, hint = refused(teacher_folder, "objective.clusters=8")
    assert problem == f"{name} has 9 units, the recipe 8"
    assert hint == "--set objective.clusters=9"
    other = tmp_path / "other"
    save(Encoder(model=exact(make_model(seed=1)), normalise=False), other, "# tiny\n")
    problem, _ = refused(other)
    assert problem == f"{name} is of layers [5] of another model"
    problem, hint = refused(teacher_folder, f"objective.codebook={tmp_path / 'nowhere'}")
    assert problem.startswith("no codebook `")


def test_more_clusters_than_frames_leaves_nothing(speech: Path, tmp_path: Path) -> None:
    with pytest.raises(DistilkitError, match="20000 clusters cannot be found in") as caught:
        one_run(speech, tmp_path / "run", *MFCC, "objective.clusters=20000")
    assert str(caught.value.hint).startswith("more audio, or at most ")
    assert not (tmp_path / "run").exists()
    with pytest.raises(DistilkitError, match="400 clusters cannot be found in"):
        minutes = "objective.cluster_minutes=0.01"
        one_run(speech, tmp_path / "run", *MFCC, "objective.clusters=400", minutes)


def test_going_on_with_a_student(speech: Path, teacher_folder: Path, tmp_path: Path) -> None:
    """Its weights and its heads: it begins where the first run ended."""
    settings = ["train.learning_rate=5e-3", "train.warmup_fraction=0.05", "student.dropout=0"]
    first = one_run(speech, tmp_path / "first", *settings, "train.steps=16", teacher=teacher_folder)
    began = first.rows("metrics.jsonl")
    run = one_run(
        speech, tmp_path / "on", *settings, teacher=teacher_folder, student=str(first.folder)
    )
    rows = run.rows("metrics.jsonl")
    assert rows[0]["loss"] < 0.5 * (began[0]["loss"] + began[-1]["loss"])
    facts = run.read()["student"]
    assert facts["from"]["name"] == str(first.folder)
    assert facts["begins"] == (
        "100% of its weights are the student's: front end, projection, positional convolution, "
        "layers 1, 2, heads"
    )
    assert f"- Goes on from `{first.folder.name}`." in card_of(run)
    other = one_run(
        speech, tmp_path / "other", *settings, "train.steps=1", "objective.layers=[3,9]",
        teacher=teacher_folder, student=str(first.folder / "student"),
    )  # fmt: skip
    assert other.read()["student"]["begins"].endswith("layers 1, 2")


def test_going_on_is_resumed_without_the_first_run(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    import shutil

    settings = [*MASKED, "student.layers=1", "student.width=48", "train.steps=2"]
    first = one_run(speech, tmp_path / "first", *settings, teacher=teacher_folder)
    options = {"teacher": str(teacher_folder), "student": str(first.folder)}
    recipe = quick("train.steps=3")
    distill([speech], out=tmp_path / "whole", recipe=recipe, **options)
    steps = train(prepare([speech], out=tmp_path / "broken", recipe=recipe, **options))
    next(steps)
    next(steps)
    steps.close()
    shutil.rmtree(first.folder)
    assert [s.number for s in train(prepare([], out=tmp_path / "broken", resume=True))] == [3]
    assert kept(tmp_path / "broken") == kept(tmp_path / "whole")
    assert AutoModel.from_pretrained(tmp_path / "broken" / "student").config.hidden_size == 48


def test_a_run_of_an_older_version_is_resumed(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    """Its run.json knows no width of the teacher, and no stored targets."""
    options = {"teacher": str(teacher_folder), "recipe": quick("targets.store=none")}
    first = distill([speech], out=tmp_path / "first", **options)
    steps = train(prepare([speech], student=str(first), out=tmp_path / "run", **options))
    for _ in range(3):
        next(steps)
    steps.close()
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    del told["teacher"]["width"], told["plan"]["stored"], told["plan"]["stored_bytes"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(told))
    assert [step.number for step in train(prepare([], out=tmp_path / "run", resume=True))][-1] == 6


def test_going_on_with_what_is_no_student(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "wavlm"
    family("WavLM").save_pretrained(folder)
    with pytest.raises(DistilkitError, match="is a `wavlm` model; students are `hubert`") as caught:
        one_run(speech, tmp_path / "run", teacher=teacher_folder, student=str(folder))
    assert caught.value.hint == f"--teacher {folder} distils from it"


def test_layer_to_layer(speech: Path, teacher_folder: Path, tmp_path: Path) -> None:
    settings = ["objective.student_layers=[0,1,2]", "objective.cosine=raw", "objective.l2_weight=2"]
    run = one_run(speech, tmp_path / "run", *settings, teacher=teacher_folder)
    row = run.rows("metrics.jsonl")[0]
    total = sum(row[f"l1_{n}"] + 2 * row[f"l2_{n}"] + row[f"cosine_{n}"] for n in (4, 8, 12)) / 3
    assert row["loss"] == pytest.approx(total, rel=1e-5)
    assert load_file(run.folder / "heads.safetensors")["pairs.2.weight"].shape == (32, 32)
    assert (
        "- Objective: `layerwise`, layers 4, 8, 12 (L1 1, L2 2, raw cosine 1), from the student's "
        "layers 0, 1, 2."
    ) in card_of(run)


def test_noise_is_on_the_card_and_makes_it_harder(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    noise = tmp_path / "noise"
    noise.mkdir()
    soundfile.write(noise / "hiss.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    settings = ["student.architecture=paper-ln", "student.dropout=0"]
    plain = one_run(speech, tmp_path / "plain", *settings, teacher=teacher_folder)
    noisy = one_run(
        speech, tmp_path / "noisy", *settings, *NOISY, f"noise.folder={noise}", teacher=teacher_folder
    )  # fmt: skip
    first, other = (run.rows("metrics.jsonl")[0] for run in (plain, noisy))
    made = one_run(speech, tmp_path / "made", *settings, *NOISY, teacher=teacher_folder)
    assert len({first["loss"], other["loss"], made.rows("metrics.jsonl")[0]["loss"]}) == 3
    assert first["audio_seconds"] == other["audio_seconds"]
    assert (
        "- Noise: 70% of clips, 0 to 10 dB of noise, reverberation in 30%, band limits in 30%, "
        "other microphones in 30%, moved voices in 30%."
    ) in card_of(noisy)
    assert "- Noise:" not in card_of(plain)


def test_the_student_hears_parts_and_is_held_out_whole(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    parts = "objective.part_seconds=[0.2,0.4]"
    still = ["objective.normalise=true", "student.dropout=0", "train.learning_rate=1e-12"]
    whole = one_run(speech, tmp_path / "whole", *still, teacher=teacher_folder)
    run = one_run(speech, tmp_path / "parts", *still, parts, teacher=teacher_folder)
    (first, *_, last), (other, *_, final) = (each.rows("metrics.jsonl") for each in (whole, run))
    assert first["audio_seconds"] == other["audio_seconds"]
    assert other["loss"] == pytest.approx(
        sum(other[f"l1_{n}"] + other[f"cosine_{n}"] for n in (4, 8, 12)) / 3, rel=1e-5
    )
    assert other["loss"] != pytest.approx(first["loss"], rel=1e-3)
    assert final["valid"]["loss"] == pytest.approx(last["valid"]["loss"], rel=1e-5)
    assert 0.5 < other["cosine_12"] < 1.0  # -log sigmoid of a cosine near 0
    assert (
        "(L1 1, log-sigmoid cosine 1), normalised, heard in parts of at most 0.2 to 0.4 s."
        in card_of(run)
    )


def test_a_wrong_noise_folder_leaves_nothing(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    settings = ["noise.probability=0.5", f"noise.folder={tmp_path / 'nois'}"]
    with pytest.raises(DistilkitError, match="no such file or folder"):
        one_run(speech, tmp_path / "run", *settings, teacher=teacher_folder)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["wav2vec 2.0", "WavLM, large", "data2vec"])
def test_teachers_of_other_families(speech: Path, tmp_path: Path, name: str) -> None:
    family(name).save_pretrained(tmp_path / "teacher")
    (tmp_path / "teacher" / "preprocessor_config.json").write_text('{"do_normalize": true}')
    run = one_run(speech, tmp_path / "run", "objective.layers=[1,3]", teacher=tmp_path / "teacher")
    model = AutoModel.from_pretrained(run.folder / "student")
    assert type(model).__name__ == "HubertModel"
    assert AutoFeatureExtractor.from_pretrained(run.folder / "student").do_normalize
    begins = run.read()["student"]["begins"]
    assert "front end, projection, " in begins
    assert ("positional convolution" in begins) is (name != "data2vec")
    assert all(row["loss"] > 0 for row in run.rows("metrics.jsonl"))
