"""A student's step on a processor: its convolutions by oneDNN, and as distilkit computes them.

Forward and backward of a two-layer student with random weights, in turn. `new`: every batch has a width that
was not seen before, as clips of many lengths have; `known`: always the same one.

python tests/benchmarks/convolutions.py [--precision bf16] [--rounds 16] [--clips 2] [--seconds 4] [--record]
"""

import argparse
import copy
import random
import time
from statistics import median, quantiles

import torch
from record import record
from torch import nn
from transformers import HubertConfig, HubertModel

from distilkit.audio import SAMPLE_RATE
from distilkit.convolutions import LeanConv
from distilkit.encoder import Encoder, encode, exact, keep_freed_memory

SIZES = {
    "tiny": {
        "conv_dim": [32, 64, 96, 128, 128, 160, 160],
        "hidden_size": 160,
        "num_attention_heads": 4,
        "intermediate_size": 576,
        "num_conv_pos_embeddings": 32,
    },
    "base": {},
}


def pair(shape: dict[str, object]) -> dict[str, Encoder]:
    """The same student twice, its convolutions torch's own in one of them."""
    torch.manual_seed(0)
    ours = exact(HubertModel(HubertConfig(num_hidden_layers=2, layerdrop=0.0, **shape))).train()
    stock = copy.deepcopy(ours)
    for module in stock.modules():
        if isinstance(module, LeanConv):
            bases = [base for base in type(module).__mro__ if not issubclass(base, LeanConv)]
            module.__class__ = bases[0]
            assert isinstance(module, nn.Conv1d)
    return {
        name: Encoder(model=model, normalise=False)
        for name, model in (("oneDNN", stock), ("distilkit", ours))
    }


def seconds(encoder: Encoder, wave_BS: torch.Tensor, low: bool) -> float:
    """What forward and backward take."""
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        (state_BTD,) = encode(encoder, wave_BS, [wave_BS.shape[1]] * len(wave_BS), [2])
    state_BTD.float().square().mean().backward()
    return time.perf_counter() - began


def main() -> None:
    """Take steps in turn, and compare those of the same round."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    keep_freed_memory()
    rng = random.Random(0)
    mean = int(asked.seconds * SAMPLE_RATE)
    for size, shape in SIZES.items():
        students = pair(shape)
        for widths in ("new", "known"):
            taken: dict[str, list[float]] = {name: [] for name in students}
            steps = rng.sample(range(mean // 640), asked.rounds + 2)
            for number, step in enumerate(steps):
                for place, name in enumerate(rng.sample(sorted(students), 2)):
                    new = mean // 2 + 640 * step + 320 * place  # a frame more for the second
                    wave_BS = torch.randn(asked.clips, new if widths == "new" else mean)
                    took = seconds(students[name], wave_BS, asked.precision == "bf16")
                    if number >= 2:  # the first ones warm up
                        taken[name].append(took)
            ratios = [a / b for a, b in zip(taken["oneDNN"], taken["distilkit"], strict=True)]
            low, _, high = quantiles(ratios, n=4)
            measured = {
                "size": size,
                "widths": widths,
                "precision": asked.precision,
                "clips": asked.clips,
                "seconds": asked.seconds,
                "rounds": asked.rounds,
                "threads": torch.get_num_threads(),
                "step_seconds": {name: round(median(each), 4) for name, each in taken.items()},
                "ratio": round(median(ratios), 2),
                "ratio_quartiles": [round(low, 2), round(high, 2)],
            }
            if asked.record:
                record("convolutions", measured)
            else:
                print(measured)


if __name__ == "__main__":
    main()
