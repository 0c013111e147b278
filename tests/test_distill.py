"""Distillation from a folder to a loadable student, stopped and resumed."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from conftest import quick
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel

from distilkit import config, loop, teachers
from distilkit import distill as distillation
from distilkit.distill import distill, prepare, train
from distilkit.encoder import fingerprint
from distilkit.errors import DistilkitError
from distilkit.objectives import layerwise
from distilkit.runs import Run


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
    def assembled(*changes: str) -> distillation.Distiller:
        job = prepare([speech], teacher=str(teacher_folder), out=tmp_path, recipe=quick(*changes))
        return distillation.assemble(job, loop.accelerator("cpu", "fp32"))[0]

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
    """Also inside the student's autocast; the norms of large teachers leave fp16's range."""
    accelerator = loop.accelerator("cpu", "fp32")
    with torch.autocast("cpu", torch.float16):
        with distillation._teacher_precision(accelerator, precision):
            assert torch.is_autocast_enabled("cpu") is low
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is (
                torch.bfloat16 if low else torch.float32
            )


def test_the_teacher_runs_up_to_the_deepest_layer(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    recipe = quick("objective.layers=[2,5]", "train.steps=1")
    job = prepare([speech], teacher=str(teacher_folder), out=tmp_path / "run", recipe=recipe)
    list(train(job))
    assert len(job.teacher.model.encoder.layers) == 5


def test_a_run_is_held_by_one_process(speech: Path, teacher_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    steps = train(prepare([speech], teacher=str(teacher_folder), out=out, recipe=quick()))
    next(steps)
    with pytest.raises(DistilkitError, match="another process is working in"):
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
    assert caught.value.hint == "--set objective.layers=[4]"


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
    measured = distillation.measure(job)
    assert measured.seconds_per_step > 0
    assert measured.hours == pytest.approx(measured.seconds_per_step * 6 / 3600)
    assert not (tmp_path / "run").exists()
    list(train(job))
    distill([speech], teacher=str(teacher_folder), out=tmp_path / "plain", recipe=quick())
    assert files(tmp_path / "run") == files(tmp_path / "plain")
    assert torch.is_grad_enabled()
