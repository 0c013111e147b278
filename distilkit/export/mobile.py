"""The same graph for phones: an ExecuTorch program, computed by XNNPACK."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional

from distilkit.audio import FRAME_SAMPLES, HOP_SAMPLES, SAMPLE_RATE
from distilkit.errors import DistilkitError
from distilkit.export.graph import Graph, quiet
from distilkit.exported import Exported, Given, Waves
from distilkit.files import digest
from distilkit.listeners import HEARD_SECONDS
from distilkit.wording import first_line

FILE = "model.pte"
RUNTIME = "executorch"
INSTALL = "pip install 'distilkit[mobile]'"
LONGEST = int(HEARD_SECONDS * SAMPLE_RATE)  # samples of a clip; memory is planned for as many
RUN = 256  # frames that are added up at once


def to_mobile(graph: Graph, file: Path, name: str) -> None:
    """Write a graph as an ExecuTorch program: one clip at a time, of any length up to `LONGEST`.

    Raises:
        DistilkitError: executorch is missing, or the graph holds something that cannot be lowered.
    """
    try:
        with quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    except ImportError as error:
        raise DistilkitError(f"`--mobile` needs executorch: {error}", INSTALL) from error
    _steady(graph)
    # Two frames are the least that torch.export takes for any number; one frame is verified like all else.
    samples = torch.export.Dim("samples", min=FRAME_SAMPLES + HOP_SAMPLES, max=LONGEST)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                graph.eval(),
                (torch.zeros(1, LONGEST),),  # memory is planned by the example
                dynamic_shapes={"wave": {1: samples}},
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            _drop_asserts(program)
            lowered = to_edge_transform_and_lower(
                program,
                partitioner=[XnnpackPartitioner()],
                compile_config=EdgeCompileConfig(
                    _check_ir_validity=False
                ),  # sizes that depend on S
            )
            with file.open("wb") as stream:
                lowered.to_executorch().write_to_file(stream)
    except Exception as error:  # of torch.export and executorch alike
        said = first_line(error)
        raise DistilkitError(
            f"`{name}` cannot be exported for phones: {said}", "leave --mobile out"
        ) from error


class SteadyNorm(nn.Module):
    """Group norm over time, a channel a group, added up in runs.

    A phone's own kernel adds 100,000 frames one by one, and what is added last is lost in the sum.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Bring each channel to zero mean and unit variance over time."""
        x_BCT = x_BCT - _mean(x_BCT)
        x_BCT = x_BCT * torch.rsqrt(_mean(x_BCT * x_BCT) + self.eps)
        return x_BCT * self.weight[:, None] + self.bias[:, None]


def _mean(x_BCT: Tensor) -> Tensor:
    """The mean over time, as (B, C, 1)."""
    runs = functional.avg_pool1d(functional.pad(x_BCT, (0, RUN - 1)), RUN, RUN)
    return runs.sum(2, keepdim=True) * RUN / x_BCT.shape[2]


def _steady(graph: Graph) -> None:
    """Put steady norms in the place of group norms, in the graph alone."""
    for module in list(graph.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                assert child.num_groups == child.num_channels, "a group has one channel"
                setattr(module, name, SteadyNorm(child))


def _drop_asserts(program: ExportedProgram) -> None:
    """Take out the checks that lengths divide, which hold for every length and have no kernel on a phone."""
    nodes = program.graph_module.graph
    for node in list(nodes.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            nodes.erase_node(node)
    nodes.eliminate_dead_code()
    program.graph_module.recompile()


def load(folder: Path, facts: dict[str, Any], outputs: Sequence[str]) -> Exported:
    """The program of a folder, ready to be asked as its ONNX file is; clips of `LONGEST` at the most."""
    with _silent():
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(folder / FILE)
        method = program.load_method("forward")
    places = {name: place for place, name in enumerate(outputs)}

    def run(wave_BS: Waves, names: Sequence[str]) -> list[Given]:
        with _silent():
            given = method.execute([torch.from_numpy(wave_BS)])
        return [np.array(given[places[name]]) for name in names]

    return Exported(folder=folder, facts=facts, runtime=RUNTIME, run=run)


def describe(folder: Path, outputs: Sequence[str]) -> dict[str, Any]:
    """What export.json says of the program."""
    return {
        "file": FILE,
        "sha256": digest(folder / FILE),
        "bytes": (folder / FILE).stat().st_size,
        "shortest": FRAME_SAMPLES,
        "longest": LONGEST,
        "outputs": list(outputs),
    }


@contextmanager
def _silent() -> Iterator[None]:
    """Without what the runtime's own code tells of the processor, past Python, on standard error."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
