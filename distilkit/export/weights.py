"""How an exported model's weights are stored: a function each, which changes the file in place.

Arithmetic stays in fp32, or in what the runtime finds faster: weights are brought back before use.
"""

from collections.abc import Callable
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distilkit import config

LEAST_WEIGHTS = (
    4096  # smaller ones stay: they take no room, and the first convolution is among them
)


def _fp32(file: Path) -> None:
    """Leave the weights as they are."""


def _fp16(file: Path) -> None:
    """Keep matrices and kernels in fp16, brought to fp32 before use."""

    def small(weight: npt.NDArray[np.float32], _axis: int) -> tuple[list[Any], str, dict[str, int]]:
        import onnx

        low = np.clip(weight, -65504, 65504).astype(np.float16)
        return [low], "Cast", {"to": onnx.TensorProto.FLOAT}

    _stored(file, small)


def _int8(file: Path) -> None:
    """Keep matrices and kernels in int8, one scale for each output channel, brought to fp32 before use."""

    def small(weight: npt.NDArray[np.float32], axis: int) -> tuple[list[Any], str, dict[str, int]]:
        others = tuple(place for place in range(weight.ndim) if place != axis)
        scale = np.maximum(np.abs(weight).max(others) / 127, np.finfo(np.float32).tiny)
        shape = [-1 if place == axis else 1 for place in range(weight.ndim)]
        whole = np.clip(np.rint(weight / scale.reshape(shape)), -127, 127).astype(np.int8)
        return [whole, scale.astype(np.float32)], "DequantizeLinear", {"axis": axis}

    _stored(file, small)


LEAST_WEIGHTS = (
    4096  # smaller ones stay: they take no room, and the first convolution is among them
)


def _stored(
    file: Path,
    small: Callable[[npt.NDArray[np.float32], int], tuple[list[Any], str, dict[str, int]]],
) -> None:
    """Replace weights of products by smaller ones and an operation that brings them back."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(file)
    kept = {item.name: item for item in model.graph.initializer}
    before = []
    for name, axis in _products(model.graph).items():
        weight = numpy_helper.to_array(kept[name])
        if weight.dtype != np.float32 or weight.size < LEAST_WEIGHTS:
            continue
        parts, operation, settings = small(weight, axis)
        names = [f"{name}.stored{place}" for place in range(len(parts))]
        model.graph.initializer.remove(kept[name])
        model.graph.initializer.extend(map(numpy_helper.from_array, parts, names))
        read = helper.make_node(operation, names, [name], f"{name}.read")
        read.attribute.extend(starmap(helper.make_attribute, settings.items()))
        before.append(read)
    others = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*before, *others])
    onnx.checker.check_model(model)
    onnx.save(model, file)


def _products(graph: Any) -> dict[str, int]:
    """Weights of convolutions and matrix products, and which axis counts the outputs."""
    kept, found = {item.name for item in graph.initializer}, {}
    for node in graph.node:
        weight = node.input[1] if len(node.input) > 1 else ""
        if weight not in kept:
            continue
        if node.op_type == "Conv":
            found[weight] = 0
        elif node.op_type == "MatMul":
            found[weight] = 1
        elif node.op_type == "Gemm":
            turned = any(item.name == "transB" and item.i for item in node.attribute)
            found[weight] = 0 if turned else 1
    return found


WEIGHTS: dict[config.ExportPrecision, Callable[[Path], None]] = {
    "fp32": _fp32,
    "fp16": _fp16,
    "int8": _int8,
}
