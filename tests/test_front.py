"""The conv front end: the stock one's numbers and gradients, clip by clip, and little is kept."""

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from conftest import make_model, voice
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from distilkit import front
from distilkit.encoder import exact

LENGTHS = (16_000, 16_000, 9_000, 12_345, 12_345, 12_345, 4_000)


def pair(norm: str) -> tuple[nn.Module, nn.Module]:
    """A stock front end, and ours of the same weights."""
    model = make_model(feat_extract_norm=norm).train()
    return copy.deepcopy(model.feature_extractor), exact(model).feature_extractor


def waves(lengths: tuple[int, ...]) -> Tensor:
    clips = [torch.from_numpy(voice(n / 16_000 + 1e-6, n)[:n]) for n in lengths]
    return nn.utils.rnn.pad_sequence(clips, batch_first=True)


def gradients(module: nn.Module, outputs: list[Tensor]) -> dict[str, Tensor]:
    """Of the squares of all that is given."""
    torch.stack([output.float().pow(2).sum() for output in outputs]).sum().backward()
    return {name: weight.grad for name, weight in module.named_parameters()}  # type: ignore[misc]


@pytest.mark.parametrize("most", [None, 1, 40])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_the_numbers_and_gradients_of_each_clip_alone(
    norm: str, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if most is not None:  # 1: a clip at once; 40: two seconds
        monkeypatch.setattr(front, "ON_CPU", most)
        monkeypatch.setattr(front, "BEGUN", most / 2)
    stock, ours = pair(norm)
    wave_BS = waves(LENGTHS)
    ours.lengths = list(LENGTHS)
    alone = [stock(wave_BS[i : i + 1, :n])[0] for i, n in enumerate(LENGTHS)]
    together = ours(wave_BS)
    assert together.shape == (7, *alone[0].shape)
    own = [row[:, : wanted.shape[-1]] for row, wanted in zip(together, alone, strict=True)]
    for row, wanted in zip(own, alone, strict=True):
        torch.testing.assert_close(row, wanted, rtol=1e-4, atol=1e-5)
    wanted_of = gradients(stock, alone)
    for name, found in gradients(ours, own).items():
        largest = float(wanted_of[name].abs().max())
        torch.testing.assert_close(found, wanted_of[name], rtol=1e-4, atol=1e-5 * largest, msg=name)


def test_bf16_is_that_of_the_stock_one() -> None:
    stock, ours = pair("group")
    wave_BS = waves((16_000, 16_000))
    found = []
    for module in (stock, ours):
        with torch.autocast("cpu", torch.bfloat16):
            output = module(wave_BS)
        assert output.dtype is torch.bfloat16
        found.append((output.detach(), gradients(module, [output])))
    torch.testing.assert_close(found[1][0], found[0][0])
    for name, wanted in found[0][1].items():
        largest = float(wanted.abs().max())
        torch.testing.assert_close(found[1][1][name], wanted, rtol=0.02, atol=0.01 * largest)


def convolutions(run: Callable[[], object]) -> int:
    """How many convolutions are computed forward meanwhile; those that stop before it do not count."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    return Counter(event.name for event in profiled.events())["aten::_convolution"]


def test_only_the_first_convolution_runs_again() -> None:
    _, ours = pair("group")
    wave_BS = waves((16_000, 16_000))
    outputs: list[Tensor] = []
    assert convolutions(lambda: outputs.append(ours(wave_BS))) == 7
    assert convolutions(outputs[0].sum().backward) == 1
    ours._freeze_parameters()
    assert not ours(wave_BS).requires_grad
    with torch.no_grad():
        assert convolutions(lambda: ours(wave_BS)) == 7


def test_little_audio_is_in_the_widest_part_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = pair("group")
    widths: list[tuple[int, ...]] = []
    for index in (0, 1, 2):
        ours.conv_layers[index].conv.register_forward_hook(
            lambda _module, inputs, _output: widths.append(tuple(inputs[0].shape))
        )
    channels = ours.conv_layers[0].conv.out_channels
    monkeypatch.setattr(front, "ON_CPU", 3 * channels)  # three seconds
    monkeypatch.setattr(front, "BEGUN", 2 * channels)
    with torch.no_grad():
        ours(waves((16_000,) * 4))
    assert [shape[0] for shape in widths] == [2, 2, 1, 1, 3, 1, 1, 1]
