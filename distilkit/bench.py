"""How large, how fast and how hungry models are on this machine, measured side by side.

Letters in names: B clips in a batch, S samples.
"""

import copy
import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.hubert.modeling_hubert import HubertFeatureEncoder

from distilkit import config, students
from distilkit.audio import SAMPLE_RATE
from distilkit.encoder import Encoder, encode
from distilkit.exported import Exported
from distilkit.listeners import Encodes

PEAK = Path("/proc/self/clear_refs")  # writing 5 to it resets the process's peak memory (Linux)


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a model is, without running it."""

    model: str
    parameters: int
    megabytes: float  # of its weights in fp32, or of an exported file; a megabyte is 10^6 bytes
    macs: (
        float | None
    )  # multiply-adds for one second of audio, in clips of 10 s; None where not known


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model on one shape of batch."""

    model: str
    seconds: float  # of each clip
    batch: int  # clips
    forward: float  # seconds of wall-clock time, median
    real_time: float  # seconds of audio for each second of time
    memory: float | None  # MiB beyond the weights, at the most; None where it cannot be measured
    ratio: float  # time of the first model over that of this one, median of pairs
    spread: tuple[float, float]  # least and greatest ratio of a pair


def size(name: str, encoder: Encodes) -> Size:
    """Parameters, bytes and multiply-adds of a model."""
    if isinstance(encoder, Exported):
        facts = encoder.facts
        return Size(
            model=name, parameters=facts["parameters"], megabytes=facts["bytes"] / 1e6, macs=None
        )
    assert isinstance(encoder, Encoder)
    return Size(
        model=name,
        parameters=students.parameters(encoder.model),
        megabytes=sum(weight.numel() for weight in encoder.model.parameters()) * 4e-6,
        macs=multiply_adds(encoder, 10.0) / 10.0,
    )


def multiply_adds(encoder: Encoder, seconds: float) -> int:
    """Multiply-adds of a forward pass over one clip, all layers; counted, not run."""
    shape_only = copy.deepcopy(encoder.model).to("meta")
    shape_only.set_attn_implementation("eager")  # products that are counted by name
    shape_only.feature_extractor.__class__ = HubertFeatureEncoder  # lengths are of no concern
    wave_BS = torch.empty(1, int(seconds * SAMPLE_RATE), device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shape_only(wave_BS)
    return int(counter.get_total_flops() // 2)


def bench(
    models: Mapping[str, Encodes],
    *,
    seconds: Sequence[float] = (1.0, 5.0, 15.0, 60.0),
    batches: Sequence[int] = (1, 8),
    precision: config.Precision = "fp32",
    device: str = "cpu",
    rounds: int = 5,
) -> Iterator[Row]:
    """Time forward passes, the models in turn so that what slows the machine slows them all.

    Each round runs every model once; a ratio is of two passes of the same round. The first pass of
    each shape is not counted.

    Args:
        models: by name; ratios are against the first one.
        seconds: lengths of clips.
        batches: clips in a batch.
        precision: arithmetic, of models in PyTorch.
        device: where.
        rounds: how often each model is timed on each shape.
    """
    for encoder in models.values():
        encoder.to(device)
    for length in seconds:
        for count in batches:
            wave_BS = noise(count, length).to(device)
            passes = {
                name: _forward(encoder, wave_BS, precision) for name, encoder in models.items()
            }
            memory = {  # other runtimes keep what they once took: nothing of it would be seen
                name: peak(run, device) if isinstance(models[name], Encoder) else None
                for name, run in passes.items()
            }
            times: dict[str, list[float]] = {name: [] for name in models}
            for _ in range(rounds):
                for name, run in passes.items():
                    times[name].append(_timed(run, device))
            first = times[next(iter(models))]
            for name, own in times.items():
                pairs = [a / b for a, b in zip(first, own, strict=True)]
                yield Row(
                    model=name,
                    seconds=length,
                    batch=count,
                    forward=median(own),
                    real_time=count * length / median(own),
                    memory=memory[name],
                    ratio=median(pairs),
                    spread=(min(pairs), max(pairs)),
                )


def noise(count: int, seconds: float) -> Tensor:
    """Clips of noise: how long a pass takes does not depend on what is heard."""
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(count, int(seconds * SAMPLE_RATE), generator=generator)


def _forward(
    encoder: Encodes, wave_BS: Tensor, precision: config.Precision
) -> Callable[[], object]:
    if not isinstance(encoder, Encoder):
        clips = list(wave_BS.cpu().numpy())
        return lambda: encoder.states(clips, [encoder.depth])
    lengths, layers = [wave_BS.shape[1]] * len(wave_BS), [encoder.depth]

    def run() -> object:
        with torch.inference_mode(), arithmetic(precision, wave_BS.device.type):
            return encode(encoder, wave_BS, lengths, layers)

    return run


def arithmetic(precision: config.Precision, device: str) -> AbstractContextManager[object]:
    """Autocast to that precision."""
    kinds = {"fp32": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device, kinds[precision], enabled=precision != "fp32")


def _timed(run: Callable[[], object], device: str) -> float:
    _wait(device)
    began = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def peak(run: Callable[[], object], device: str) -> float | None:
    """MiB that a call takes at the most, beyond what is held before it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before) / 2**20
    run()  # what is prepared once does not count
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed would be taken again, unseen
    try:
        PEAK.write_text("5")
        before = psutil.Process().memory_info().rss
        run()
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        most = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        return max(0.0, float(most) * 1024 - float(before)) / 2**20
    except (OSError, StopIteration):
        return None
