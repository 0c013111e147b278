"""Ways to compute the same, of which one or another is quicker on a device: told to a model, in place."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from distilkit.convolutions import LeanConv
from distilkit.wording import first_line

VARIANTS = 64  # of a compiled layer: teacher or student, in training or not, masked or not, one clip or more


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """How a model computes: as torch does, where both are False."""

    products: bool = False  # the front end's convolutions on a GPU as products of windows
    compiled: bool = False  # transformer layers by `torch.compile`


STOCK = Kernels()


def apply(model: Any, kernels: Kernels) -> None:
    """Have a model compute so, and its copies; its weights and their names stay as they are.

    Each layer is compiled by itself and for any length, so all of them are one piece of code, and what lies
    between them (states that are kept, layers that are computed again) does not change.

    Args:
        model: an encoder of transformers, made `exact`.
        kernels: what is wanted.
    """
    for module in model.feature_extractor.modules():
        if isinstance(module, LeanConv):
            module.products = kernels.products
    for layer in model.encoder.layers:
        stock = type(layer).__base__ if isinstance(layer, Compiled) else type(layer)
        layer.__class__ = _compiled(stock) if kernels.compiled else stock


class Compiled:
    """Marks the kinds of layers below."""


@cache
def _compiled(stock: Any) -> type:
    """A kind of layer whose computation is compiled, but not what it is wrapped in: checkpoints, hooks.

    The hooks by which transformers collects attention weights, which nobody asks for, are taken away: each
    layer would be another piece of code, for what the layers before gave.
    """
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, VARIANTS)
    quick: Any = torch.compile(stock.forward, dynamic=True)

    def forward(self: Any, *given: Any, **more: Any) -> Any:
        self.attention._forward_hooks.clear()
        return quick(self, *given, **more)

    return type(f"Compiled{stock.__name__}", (stock, Compiled), {"forward": forward})


@cache
def obstacle(device: str) -> str:
    """What keeps code from being compiled for a device, in a line; empty where it can be: it is tried."""

    def tried(given: Tensor) -> Tensor:
        return torch.nn.functional.gelu(given).sum()

    try:
        torch.compile(tried)(torch.ones(64, device=device))
    except Exception as error:  # compilers, Triton and the system fail in ways of their own
        return first_line(error)
    return ""
