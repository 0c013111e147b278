"""The conv front end: the stock one's numbers and gradients of each clip, and little is kept."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from conftest import make_model, voice
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from distilkit import convolutions, front, kernels
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


WAYS = ["processor", "gpu", "gpu, products"]


def told(way: str, norm: str, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, nn.Module]:
    """A stock front end, and ours, which computes as it would there."""
    model = make_model(feat_extract_norm=norm).train()
    stock = copy.deepcopy(model.feature_extractor)
    exact(model)
    if way != "processor":
        for module in (front, convolutions):
            monkeypatch.setattr(module, "on_cpu", lambda given: False)
    if way == "gpu, products":
        kernels.apply(model, kernels.Kernels(products=True))
        monkeypatch.setattr(
            convolutions.LeanConv, "_stock", lambda *given: pytest.fail("torch's own convolution")
        )
    return stock, model.feature_extractor


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("block", [256, 64, 7])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_the_numbers_and_gradients_of_each_clip_alone(
    norm: str, block: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several clips in one, or several for a clip.
    monkeypatch.setattr(front, "ON_CPU" if way == "processor" else "ON_GPU", block)
    stock, ours = told(way, norm, monkeypatch)
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


@pytest.mark.parametrize("way", ["processor", "gpu, products"])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_products_take_frames_as_they_lie(
    norm: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frame by frame in memory: anything else would be copied first."""
    _, ours = told(way, norm, monkeypatch)
    product, seen = convolutions._product, list[bool]()

    def watched(input_BCT: Tensor, *given: Any) -> Tensor:
        if input_BCT.shape[1] > 1:
            seen.append(input_BCT.mT.is_contiguous())
        return product(input_BCT, *given)

    monkeypatch.setattr(convolutions, "_product", watched)
    ours(waves(LENGTHS))
    assert len(seen) == 6
    assert all(seen)


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_all_that_is_made_on_a_gpu_is_there(norm: str, products: bool) -> None:
    """Tensors without numbers, which know where they are: those of two places cannot be mixed."""
    with FakeTensorMode(), torch.device("cuda"):
        model = exact(make_model(feat_extract_norm=norm).train())
        kernels.apply(model, kernels.Kernels(products=products))
        ours = model.feature_extractor
        ours.lengths = list(LENGTHS)
        found = ours(torch.empty(len(LENGTHS), max(LENGTHS)))
        assert (found.device.type, found.shape) == ("cuda", (7, 16, 49))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("offset", [0, 0.3])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_bf16_is_as_near_to_fp32_as_the_stock_ones(
    norm: str, offset: float, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock, ours = told(way, norm, monkeypatch)
    wave_BS = waves((16_000, 16_000)) + offset
    found = []
    for module, low in ((stock, False), (stock, True), (ours, True)):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            output = module(wave_BS)
        assert output.dtype is (torch.bfloat16 if low else torch.float32)
        learned = [gradient.flatten() for gradient in gradients(module, [output]).values()]
        found.append((output.detach().float(), torch.cat(learned)))
    for wanted, theirs, own in zip(*found, strict=True):
        assert (own - wanted).norm() < 1.5 * (theirs - wanted).norm()


def test_a_bias_that_a_norm_takes_away() -> None:
    model = make_model(conv_bias=True)
    torch.nn.init.normal_(model.feature_extractor.conv_layers[0].conv.bias)
    stock = copy.deepcopy(model.feature_extractor)
    ours = exact(model).feature_extractor
    ours.lengths = list(LENGTHS)
    for row, n, wave_S in zip(ours(waves(LENGTHS)), LENGTHS, waves(LENGTHS), strict=True):
        wanted = stock(wave_S[None, :n])[0]
        torch.testing.assert_close(row[:, : wanted.shape[-1]], wanted, rtol=1e-4, atol=1e-5)
        assert not row[:, wanted.shape[-1] :].any()


class Products(TorchDispatchMode):
    """Counts the products that are computed; those that a checkpoint stops before do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        fp64 = any(isinstance(arg, Tensor) and arg.dtype is torch.float64 for arg in args)
        self.counted[func.overloadpacket.__name__] += not fp64
        return func(*args, **kwargs or {})


def test_only_the_first_convolution_runs_again() -> None:
    _, ours = pair("group")
    wave_BS = waves((16_000, 16_000))
    with Products() as forward:
        output = ours(wave_BS)
    # Of three taps the third is on its own.
    assert [forward.counted[name] for name in ("mm", "addmm_")] == [1 + 6, 4]
    with Products() as backward:
        output.sum().backward()
    # The first again, of each product two gradients, and none of the waves.
    assert [backward.counted[name] for name in ("mm", "addmm_")] == [1 + 1 + 2 * (6 + 4), 0]
    ours._freeze_parameters()
    assert not ours(wave_BS).requires_grad


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_little_audio_is_in_it_at_once(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = pair(norm)
    frames: list[int] = []
    ours.conv_layers[2].conv.register_forward_hook(
        lambda _module, inputs, _output: frames.append(inputs[0].shape[-1] // 32)
    )
    monkeypatch.setattr(front, "ON_CPU", 128)
    for low, sizes in ((False, [128, 72]), (True, [128, 64, 32])):
        frames.clear()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=low):
            ours(waves((16_000,) * 4))
        assert frames == sizes
