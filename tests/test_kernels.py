"""Other ways to compute the same: equal numbers, equal gradients, and what cannot be done here."""

from pathlib import Path

import pytest
import torch
from conftest import fine, make_model, quick, voice
from torch import Tensor, nn

from distilkit import ctc, distill, kernels, loop
from distilkit.encoder import Encoder, encode, exact
from distilkit.kernels import Kernels
from distilkit.runs import Run

# of torch's own, which looks at what a layer is given while it compiles it
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
STEADY = dict.fromkeys(
    (
        "hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop",
        "mask_time_prob",
    ),
    0.0,
)  # fmt: skip
needs_compiler = pytest.mark.skipif(bool(kernels.obstacle("cpu")), reason=kernels.obstacle("cpu"))


def computed(model: nn.Module, lengths: list[int]) -> list[Tensor]:
    """Hidden states of clips, and all gradients of the sum of their squares."""
    clips = [torch.from_numpy(voice(n / 16_000 + 1e-6, n)[:n]) for n in lengths]
    wave_BS = nn.utils.rnn.pad_sequence(clips, batch_first=True)
    model.zero_grad()
    states = encode(Encoder(model=model, normalise=False), wave_BS, lengths, [1, 2, 3])  # type: ignore[arg-type]
    least = min(lengths) // 320 - 1
    torch.stack([state[:, :least].square().sum() for state in states]).sum().backward()
    learned = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return [*(state[:, :least].detach() for state in states), *learned]


@needs_compiler
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_layers_give_the_same(recompute: bool) -> None:
    model = exact(make_model(num_hidden_layers=3, **STEADY)).train()
    if recompute:
        model.activation_checkpointing_enable()
    batches = [[16_000, 9_000], [12_345], [16_000, 16_000, 16_000]]
    wanted = [computed(model, lengths) for lengths in batches]
    names = set(model.state_dict())
    kernels.apply(model, Kernels(compiled=True))
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for lengths, own in zip(batches, wanted, strict=True):
        largest = max(float(theirs.abs().max()) for theirs in own)
        for theirs, found in zip(own, computed(model, lengths), strict=True):
            torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-6 * largest)
    # all layers are one piece of code; another where nothing is masked, and for one clip
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 4
    assert set(model.state_dict()) == names
    kernels.apply(model, kernels.STOCK)
    assert not any(isinstance(layer, kernels.Compiled) for layer in model.encoder.layers)


@needs_compiler
def test_a_run_with_compiled_layers(speech: Path, teacher_folder: Path, tmp_path: Path) -> None:
    """The losses of one without, and it goes on where it was stopped."""
    losses = {}
    for compiled in ("false", "true"):
        out = tmp_path / compiled
        recipe = quick(
            f"train.compile={compiled}", "train.steps=3", "targets.store=none", "student.dropout=0",
            "train.checkpoint_every=1",
        )  # fmt: skip
        job = distill.prepare([speech], teacher=str(teacher_folder), out=out, recipe=recipe)
        asked = iter([False, True])
        list(distill.train(job, stop=lambda asked=asked: next(asked)))  # type: ignore[misc]
        list(distill.train(distill.prepare([], out=out, resume=True)))
        rows = Run(out).rows("metrics.jsonl")
        losses[compiled] = [*(row["loss"] for row in rows), rows[-1]["valid"]["loss"]]
        assert Run(out).read()["plan"]["compiled"] is (compiled == "true")
    assert len(losses["true"]) == 4
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-4)
    assert losses["true"] != losses["false"]  # it was compiled


@needs_compiler
@pytest.mark.parametrize("changes", [("lora.rank=4", "lora.dropout=0"), ("model.layers=weighted",)])
def test_fine_tuning_with_compiled_layers(
    changes: tuple[str, ...], transcribed: Path, letters: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    losses = {}
    for compiled in ("false", "true"):
        recipe = fine(f"train.compile={compiled}", "train.steps=2", "model.dropout=0", *changes)
        job = ctc.prepare(
            [transcribed], tokenizer=letters, model=str(teacher_folder), out=tmp_path / compiled, recipe=recipe
        )  # fmt: skip
        layers = ctc.parts(
            job, loop.accelerator("cpu", "fp32")
        ).module.recogniser.encoder.model.encoder.layers
        assert all(isinstance(layer, kernels.Compiled) is (compiled == "true") for layer in layers)
        losses[compiled] = [step.loss for step in ctc.train(job)]
    assert len(losses["true"]) == 2
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-4)


def test_what_keeps_code_from_being_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("\nFailed to find C++ compiler.\nPlease specify")

    monkeypatch.setattr(torch, "compile", fail)
    assert kernels.obstacle.__wrapped__("cpu") == "Failed to find C++ compiler."
