"""A model as one ONNX graph: recorded waves in, all layers out.

Letters in names: B clips in a batch, S samples, T frames, D width, K tokens.
"""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.models.hubert.modeling_hubert import HubertFeatureEncoder

from distilkit.audio import FRAME_SAMPLES, SAMPLE_RATE
from distilkit.encoder import Encoder
from distilkit.errors import DistilkitError
from distilkit.exported import LOGPROBS, WAVE
from distilkit.layer_mix import MixedHubertForCTC
from distilkit.recognisers import Recogniser
from distilkit.wording import first_line


class Graph(nn.Module):
    """What is exported: waves (B, S) as they were recorded in, all layers (B, T, D) out.

    Of a recogniser also the logarithms of the tokens' probabilities, (B, T, K).

    Clips of a batch have to be of one length; then each gives what it gives alone.
    """

    def __init__(self, encoder: Encoder, recogniser: Recogniser | None) -> None:
        super().__init__()
        self.normalise, self.depth = encoder.normalise, encoder.depth
        model = (
            copy.deepcopy(recogniser.model if recogniser else encoder.model).cpu().float().eval()
        )
        self.head = model if recogniser else None
        self.encoder = getattr(model, model.base_model_prefix) if recogniser else model
        self.encoder.feature_extractor.__class__ = HubertFeatureEncoder  # lengths are of no concern
        for module in list(self.encoder.modules()):
            if parametrize.is_parametrized(module):
                _plain(module)

    @property
    def outputs(self) -> list[str]:
        """Names of what `forward` gives."""
        return [*(f"layer_{n}" for n in range(self.depth + 1)), *([LOGPROBS] if self.head else [])]

    def forward(self, wave: Tensor) -> tuple[Tensor, ...]:
        """All layers, and a recogniser's logarithms of probabilities behind them."""
        if self.normalise:
            wide = wave.double()  # some runtimes add up samples one by one
            wide = wide - wide.mean(1, keepdim=True)
            wave = (wide / torch.sqrt((wide * wide).mean(1, keepdim=True) + 1e-7)).float()
        seen = self.encoder(wave, output_hidden_states=True)
        states = [*seen.hidden_states[: self.depth], seen.last_hidden_state]
        if self.head is None:
            return tuple(states)
        mixed = isinstance(self.head, MixedHubertForCTC)
        hidden = self.head.layer_mix(states) if mixed else states[-1]
        return (*states, self.head.lm_head(hidden).log_softmax(-1))


def _plain(module: nn.Module) -> None:
    """Make a module's parametrised weights plain ones, in place.

    torch's own way takes them from the class, which copies of a module share.
    """
    parts = module.parametrizations
    assert isinstance(parts, nn.ModuleDict)
    weights = {name: getattr(module, name).detach() for name in parts}
    del module.parametrizations
    module.__class__ = type(module).__mro__[1]
    for name, weight in weights.items():
        module.register_parameter(name, nn.Parameter(weight, requires_grad=False))


def to_onnx(graph: Graph, file: Path, name: str) -> None:
    """Write a graph as ONNX; clips and samples may be of any number.

    Raises:
        DistilkitError: it holds something that cannot be exported.
    """
    samples = torch.export.Dim("samples", min=FRAME_SAMPLES, max=3600 * SAMPLE_RATE)
    clips = torch.export.Dim("clips", min=1, max=1024)
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph.eval(),
                (torch.randn(2, SAMPLE_RATE),),
                dynamo=True,
                input_names=[WAVE],
                output_names=graph.outputs,
                dynamic_shapes={"wave": {0: clips, 1: samples}},
                external_data=False,
                verbose=False,
            )
            assert program is not None
            _forget_origin(program.model)
            program.save(file)
    except Exception as error:  # of torch.export, onnxscript and protobuf alike
        said = first_line(error)
        raise DistilkitError(
            f"`{name}` cannot be exported: {said}",
            "distilkit export tiny --out tiny-onnx shows one that can",
        ) from error


def _forget_origin(model: Any) -> None:
    """Take out of a graph where the code that it was made from lay on this computer."""
    for part in (model.graph, *model.functions.values()):
        part.metadata_props.clear()
        for node in part.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporter tells of its own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
