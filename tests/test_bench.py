"""Sizes that are counted, times that are compared in turn."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from conftest import LARGE, Run, make_model, tiny_config

from distilkit import bench, hub
from distilkit.audio import frames
from distilkit.encoder import Encoder, exact


def encoder(**shape: object) -> Encoder:
    return Encoder(model=exact(make_model(**shape)), normalise=False)


@pytest.mark.parametrize("shape", [{}, {"num_hidden_layers": 2}])
def test_multiply_adds_are_those_of_the_products(shape: dict[str, object]) -> None:
    """Worked out by hand from the shape: convolutions, projection, attention, feed-forward."""
    settings, count, macs, width = tiny_config(**shape), 2 * 16_000, 0, 1
    for kernel, stride, out in zip(
        settings.conv_kernel, settings.conv_stride, settings.conv_dim, strict=True
    ):
        count = (count - kernel) // stride + 1
        macs += count * kernel * width * out
        width = out
    assert count == frames(32_000)
    d, inner = settings.hidden_size, settings.intermediate_size
    macs += count * width * d
    # the positional convolution pads so that it gives a frame more than it was given
    macs += (
        (count + 1)
        * settings.num_conv_pos_embeddings
        * d
        * (d // settings.num_conv_pos_embedding_groups)
    )
    macs += settings.num_hidden_layers * (
        count * (4 * d * d + 2 * d * inner) + 2 * count * count * d
    )
    assert bench.multiply_adds(encoder(**shape), 2.0) == macs


def test_counting_leaves_the_model_alone() -> None:
    model = encoder()
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    size = bench.size("it", model)
    assert size.parameters == sum(
        p.numel() for n, p in model.model.named_parameters() if n != "masked_spec_embed"
    )
    assert size.megabytes == pytest.approx(4e-6 * sum(p.numel() for p in model.model.parameters()))
    after = model.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert model.model.config._attn_implementation != "eager"


def test_models_take_turns_and_ratios_are_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose speed changes between rounds changes no ratio; the median is of the ratios."""
    slow = {"a": [3.0, 30.0, 6.0], "b": [2.0, 20.0, 1.0]}
    order: list[str] = []

    def forward(chosen: Encoder, wave: torch.Tensor, precision: str) -> object:
        return lambda: None

    names = {"a": encoder(), "b": encoder(num_hidden_layers=2)}
    turn = itertools.cycle(names)

    def timed(run: object, device: str) -> float:
        name = next(turn)
        order.append(name)
        return slow[name][(len(order) - 1) // 2]

    monkeypatch.setattr(bench, "_forward", forward)
    monkeypatch.setattr(bench, "_timed", timed)
    rows = list(bench.bench(names, seconds=[1.0], batches=[4], rounds=3))
    assert order == ["a", "b"] * 3
    assert [row.model for row in rows] == ["a", "b"]
    assert rows[0].ratio == 1.0
    assert rows[1].ratio == pytest.approx(1.5)
    assert rows[1].spread == pytest.approx((1.5, 6.0))
    assert rows[1].real_time == pytest.approx(4.0 / rows[1].forward)


def test_more_layers_take_longer_and_longer_clips_more_memory() -> None:
    models = {
        "twelve": encoder(hidden_size=128, intermediate_size=512),
        "two": encoder(num_hidden_layers=2),
    }
    rows = list(bench.bench(models, seconds=[1.0, 20.0], batches=[2], rounds=3))
    assert [(row.model, row.seconds) for row in rows] == [
        ("twelve", 1.0), ("two", 1.0), ("twelve", 20.0), ("two", 20.0),
    ]  # fmt: skip
    assert rows[3].ratio > 1.2
    if rows[0].memory is not None and rows[2].memory is not None:
        assert rows[2].memory > rows[0].memory + 1


def test_bf16_is_bf16() -> None:
    with bench.arithmetic("bf16", "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
    with bench.arithmetic("fp32", "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


# ----------------------------------------------------------------------------- the command line


def test_the_command(run: Run, teacher_folder: Path, large_folder: Path) -> None:
    shape = ("--seconds", "0.5", "--seconds", "1", "--batch", "2", "--rounds", "2")
    code, out, err = run("bench", teacher_folder, large_folder, *shape, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert [model["model"] for model in told["models"]] == [str(teacher_folder), str(large_folder)]
    assert [(row["seconds"], row["batch"]) for row in told["times"]] == [(0.5, 2)] * 2 + [
        (1.0, 2)
    ] * 2
    assert all(row["forward"] > 0 for row in told["times"])
    code, out, err = run("bench", teacher_folder, large_folder, *shape)
    assert code == 0, err
    assert "2 x 0.5 s" in out
    assert "multiply-adds a second" in out


def test_what_is_wrong_with_the_command(run: Run, teacher_folder: Path) -> None:
    for arguments, problem, hint in (
        ((), "no models given", "distilkit bench tiny"),
        (
            ("tiny", teacher_folder, teacher_folder),
            f"`{teacher_folder}` is there twice",
            "distilkit bench TEACHER STUDENT",
        ),
        (
            (teacher_folder, "--precision", "fp16"),
            "`--precision fp16` on a CPU",
            "--precision fp32",
        ),
        (("nowhere/at/all",), "`nowhere/at/all`", ""),
    ):
        code, out, err = run("bench", *arguments)
        assert code == 1
        assert out == ""
        assert problem in err
        assert hint in err


def test_without_models_the_newest_run(
    run: Run, speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    code, _, err = run(
        "distill", speech, "--teacher", teacher_folder, "--recipe", "smoke", "--steps", "1",
        "--set", "objective.layers=[4]", "--set", "train.device=cpu",
    )  # fmt: skip
    assert code == 0, err
    code, out, err = run("bench", "--seconds", "0.5", "--batch", "1", "--rounds", "1", "--json")
    assert code == 0, err
    names = [model["model"] for model in json.loads(out)["models"]]
    assert names == [str(teacher_folder), f"runs/{speech.name}"]


def test_large_models_are_counted() -> None:
    assert bench.multiply_adds(encoder(**LARGE), 1.0) > 0


def test_the_built_in_teacher_goes_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distilkit.cli.bench import _newest
    from distilkit.runs import Run

    told = {"teacher": {"name": "tiny", "source": str(hub.BUILT_IN["tiny"])}}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Run, "read", lambda run: told)
    monkeypatch.setattr("distilkit.runs.newest_run", lambda *_, **__: Run(Path("runs/mine")))
    assert _newest() == ["tiny", "runs/mine"]
