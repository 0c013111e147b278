"""Golden values of distillation: step 0 and a curve of 50 steps, on a fixture from a fixed seed.

`python tests/golden/make.py` rewrites `distill.json` and prints what moved. The weights come from
NumPy's PCG64, whose stream is fixed, so nothing has to be stored but the numbers. That the same
code reproduces the values of the original implementation is tested on a fixture of its own where
that is at hand (`test_golden.py`).
"""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import HubertConfig, HubertModel

from distilkit import config, loop, students
from distilkit.assembly import Distiller, loss_function
from distilkit.batches import Batch
from distilkit.encoder import Encoder, exact, scale_conv_gradients
from distilkit.objectives import Heads
from distilkit.targets import LiveTargets

FILE = Path(__file__).with_name("distill.json")
STEPS, WARMUP = 50, 3
TRAIN = config.Train(
    learning_rate=2e-3, warmup_fraction=WARMUP / STEPS, steps=STEPS, precision="fp32", device="cpu"
)
OBJECTIVE = config.Objective(layers=[4, 8, 12])


def shape() -> HubertConfig:
    """12 layers, width 64, group norm, no dropout."""
    return HubertConfig(
        hidden_size=64,
        num_hidden_layers=12,
        num_attention_heads=4,
        intermediate_size=128,
        conv_dim=[32] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
    )


def fixture() -> tuple[HubertModel, Heads, torch.Tensor]:
    """A teacher, heads and four clips of half a second, all from one seed."""
    rng = np.random.default_rng(20211005)
    teacher, heads = HubertModel(shape()), Heads(64, 64, 3)
    with torch.no_grad():
        for name, tensor in sorted(teacher.state_dict().items()):
            values = rng.standard_normal(tensor.shape, dtype=np.float32)
            if name.endswith(("layer_norm.weight", "original0")):
                values = 1 + 0.1 * values
            elif tensor.dim() > 1:
                values *= np.float32(np.prod(tensor.shape[1:]) ** -0.5)
            else:
                values *= np.float32(0.05)
            tensor.copy_(torch.from_numpy(values))
        for tensor in heads.parameters():
            values = rng.uniform(-(64**-0.5), 64**-0.5, tensor.shape)
            tensor.copy_(torch.from_numpy(values.astype(np.float32)))
    wave_BS = torch.from_numpy(0.1 * rng.standard_normal((4, 8000), dtype=np.float32))
    return teacher, heads, wave_BS


def run(teacher: HubertModel, heads: Heads, wave_BS: torch.Tensor) -> list[loop.Step]:
    """Train a student of `teacher` on one fixed batch with distilkit's own objective and loop."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    encoder = Encoder(model=exact(teacher), normalise=False)
    student, begins = students.build(encoder, config.Student(dropout=0.0))
    assert not begins.fresh
    scale_conv_gradients(student.model, TRAIN.conv_gradient_scale)
    teach = LiveTargets(encoder, OBJECTIVE.layers)
    accelerator = loop.accelerator("cpu", "fp32")
    distiller = Distiller(student, heads, [student.depth])
    module, optimizer = accelerator.prepare(distiller, loop.optimizer(distiller, TRAIN))
    count, samples = wave_BS.shape
    batch = Batch(ids=("a",) * count, wave_BS=wave_BS, lengths=(samples,) * count)
    recipe = config.Recipe(objective=OBJECTIVE)
    loss_of = loss_function(recipe, teach, lambda _: None, torch.device("cpu"))
    batches = itertools.repeat([batch])
    steps = loop.fit(accelerator, module, optimizer, batches, loss_of, TRAIN, start=0, steps=STEPS)
    result = list(steps)
    torch.set_num_threads(threads)
    return result


def values(steps: list[loop.Step]) -> dict[str, Any]:
    """What is compared: the first step in full, then the loss and gradient norm of each."""
    return {
        "step_0": {"loss": steps[0].loss, "grad_norm": steps[0].grad_norm, **steps[0].parts},
        "loss": [step.loss for step in steps],
        "grad_norm": [step.grad_norm for step in steps],
    }


if __name__ == "__main__":
    new = values(run(*fixture()))
    if FILE.exists():
        old = json.loads(FILE.read_text())
        for key in ("loss", "grad_norm"):
            moved = max(abs(a - b) for a, b in zip(old[key], new[key], strict=True))
            print(f"{key}: moved by at most {moved:.2e}")
    FILE.write_text(json.dumps({"torch": torch.__version__, **new}, indent=1) + "\n")
    print(f"wrote {FILE.name}: loss {new['loss'][0]:.6f} to {new['loss'][-1]:.6f}")
