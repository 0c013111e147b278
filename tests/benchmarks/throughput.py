"""Audio seconds a second of distillation: the original's loop, a plain one, and distilkit's, in turn.

All train a 2-layer student of a teacher with random weights on the same recordings, in steps of the same
clips' number. Each runs in a process of its own and takes a step when it is its turn, so that what slows
the machine slows them all; ratios are of steps of the same round.

- `original`: s3prl's distiller, from a checkout (`--s3prl`), as it is trained there: batches of clips of similar
  length, padded, cropped to 15.6 s; its teacher whole and in fp32, its student in fp16 on a GPU.
- `plain`: a loop over stock transformers as one would write it.
- `live`: `distilkit distill` with `targets.store=none`; `stored`: with `fp16`. Computing the targets is told apart.
- `live, frozen` and `stored, frozen`: the same with `train.freeze_front_end`, which is not the same training.

python tests/benchmarks/throughput.py AUDIO --s3prl DIR [--rounds 5] [--warm 20] [--clips 6] [--precision bf16]
  [--record]
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from statistics import median

from record import record

MOST = 250_000  # samples; the original's crop
LAYERS = (4, 8, 12)
OURS = ("live", "stored", "live, frozen", "stored, frozen")
SIZES = {
    "base": {},
    "small": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "conv_dim": [128] * 7},
}  # fmt: skip


def clips(folder: Path) -> list[Path]:
    """The recordings, in an order that is the same everywhere."""
    return sorted(path for path in folder.rglob("*") if path.suffix in (".wav", ".flac", ".ogg"))


def sounds(folder: Path, count: int, seed: int) -> Iterator[list[object]]:
    """Batches as the original makes them: sorted by length, `count` at a time, shuffled, cropped at random."""
    import soundfile
    import torch

    lengths = {path: soundfile.info(path).frames for path in clips(folder)}
    ordered = sorted(lengths, key=lambda path: -lengths[path])
    batches = [ordered[at : at + count] for at in range(0, len(ordered) - count + 1, count)]
    rng = random.Random(seed)
    while True:
        rng.shuffle(batches)
        for batch in batches:
            waves = [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in batch]
            first = [rng.randrange(max(1, len(wave) - MOST)) for wave in waves]
            yield [wave[at : at + MOST] for wave, at in zip(waves, first, strict=True)]


def original(asked: argparse.Namespace, device: str) -> Iterator[float]:
    """Steps of s3prl's distiller; yields the seconds of audio of each."""
    import torch

    class Dict(dict):  # type: ignore[type-arg]
        __getattr__ = dict.__getitem__

    stubs = {"easydict": {"EasyDict": Dict}, "pandas": {}, "requests": {}}
    for name, content in stubs.items():  # of which nothing is used here
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content, __spec__=ModuleSpec(name, None))
    sys.path[:0] = [str(asked.s3prl), str(asked.s3prl / "s3prl")]
    import yaml
    from pretrain.distiller.pretrain_expert import DistillerForPretrain
    from s3prl.upstream.hubert import expert as hubert
    from s3prl.upstream.hubert.hubert_model import (
        HubertConfig,
        HubertModel,
        HubertPretrainingConfig,
    )
    from upstream.distiller.model import DistillerConfig

    shape = SIZES[asked.size]
    width = shape.get("hidden_size", 768)
    heads, inner = shape.get("num_attention_heads", 12), shape.get("intermediate_size", 3072)
    channels = shape.get("conv_dim", [512])[0]
    convs = f"[({channels},10,5)] + [({channels},3,2)] * 4 + [({channels},2,2)] * 2"

    def teacher(*_: object, **__: object) -> object:
        settings = HubertConfig(
            label_rate=50.0, encoder_embed_dim=width, encoder_ffn_embed_dim=inner,
            encoder_attention_heads=heads, final_dim=256, conv_feature_layers=convs,
        )  # fmt: skip
        task = HubertPretrainingConfig(label_rate=50.0)
        made = HubertModel(settings, task, [["a"] * 4])
        hubert.load_converted_model = lambda ckpt: (made, task)
        return hubert.UpstreamExpert("random")

    torch.hub.load = teacher
    folder = asked.s3prl / "s3prl" / "pretrain" / "distiller"
    settings = yaml.safe_load((folder / "config_model.yaml").read_text())
    settings["distiller"] |= {
        "n_tasks": len(LAYERS), "pred_layer_id": list(LAYERS), "encoder_embed_dim": width,
        "encoder_ffn_embed_dim": inner, "encoder_attention_heads": heads, "final_dim": width,
        "extractor_conv_feature_layers": convs,
    }  # fmt: skip
    runner = yaml.safe_load((folder / "config_runner.yaml").read_text())
    half = device == "cuda" and runner["runner"]["fp16"]
    model = DistillerForPretrain(DistillerConfig(settings["distiller"]), Dict(settings["teacher"]))
    model = model.to(device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=1e-6)
    scaler = torch.amp.GradScaler(device, enabled=half)
    for waves in sounds(asked.audio, asked.clips, 0):
        lengths = torch.tensor([len(wave) for wave in waves])
        padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True).to(device)
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).float().to(device)
        with torch.autocast(device, torch.float16, enabled=half):
            loss, _ = model(padded, waves, lengths.to(device), mask)
        scaler.scale(loss).backward()
        loss.item()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), runner["runner"]["gradient_clipping"])
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        yield float(lengths.sum()) / 16_000


def plain(asked: argparse.Namespace, device: str) -> Iterator[float]:
    """Steps of a loop over stock transformers; yields the seconds of audio of each."""
    import torch
    from torch.nn.functional import cosine_similarity, logsigmoid
    from transformers import HubertConfig, HubertModel

    shape = SIZES[asked.size]
    torch.manual_seed(0)
    teacher = HubertModel(HubertConfig(**shape)).to(device).eval().requires_grad_(False)
    student = HubertModel(
        HubertConfig(**shape, num_hidden_layers=2, layerdrop=0.0, apply_spec_augment=False)
    )
    width = student.config.hidden_size
    heads = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in LAYERS)
    model = torch.nn.ModuleDict({"student": student, "heads": heads}).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    low = asked.precision == "bf16"
    for waves in sounds(asked.audio, asked.clips, 0):
        lengths = torch.tensor([len(wave) for wave in waves])
        padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True).to(device)
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long().to(device)
        with torch.autocast(device, torch.bfloat16, enabled=low):
            with torch.no_grad():
                seen = teacher(padded, attention_mask=mask, output_hidden_states=True).hidden_states
            hidden = student(padded, attention_mask=mask).last_hidden_state
            total = torch.zeros((), device=device)
            for head, layer in zip(heads, LAYERS, strict=True):
                guess = head(hidden)
                near = cosine_similarity(guess, seen[layer], dim=-1)
                total = total + (guess - seen[layer]).abs().mean() - logsigmoid(near).mean()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        total.item()
        yield float(lengths.sum()) / 16_000


def ours(asked: argparse.Namespace, device: str, store: str, frozen: bool) -> Iterator[float]:
    """Steps of `distilkit distill`; yields the seconds of audio of each."""
    import torch
    from transformers import HubertConfig, HubertModel

    from distilkit import config, distill
    from distilkit.encoder import Encoder, exact
    from distilkit.students import save

    seconds = mean_step(asked.audio, asked.clips)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        teacher = Encoder(
            model=exact(HubertModel(HubertConfig(**SIZES[asked.size]))), normalise=False
        )
        save(teacher, Path(folder) / "teacher", "random\n")
        del teacher
        changes = [
            "train.steps=100000", "train.validate_every=100000", "train.checkpoint_every=100000",
            f"batches.seconds={seconds}", f"train.precision={asked.precision}", f"train.device={device}",
            f"targets.store={store}", f"train.freeze_front_end={str(frozen).lower()}", "data.valid_fraction=0", "objective.layers=[4,8,12]", *asked.set,
        ]  # fmt: skip
        recipe = config.load_recipe("paper", changes)
        job = distill.prepare(
            [asked.audio], teacher=f"{folder}/teacher", out=Path(folder) / "run", recipe=recipe
        )
        for step in distill.train(job):
            yield step.audio_seconds


def mean_step(folder: Path, count: int) -> float:
    """Seconds of audio in a step of so many clips, on average."""
    import soundfile

    lengths = [min(soundfile.info(path).frames, MOST) for path in clips(folder)]
    return round(count * sum(lengths) / len(lengths) / 16_000, 1)


def work(asked: argparse.Namespace) -> None:
    """Take a step for each line that comes in, and say what it took."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(os.cpu_count() or 1)
    steps = {
        "original": lambda: original(asked, device),
        "plain": lambda: plain(asked, device),
        "live": lambda: ours(asked, device, "none", False),
        "stored": lambda: ours(asked, device, "fp16", False),
        "live, frozen": lambda: ours(asked, device, "none", True),
        "stored, frozen": lambda: ours(asked, device, "fp16", True),
    }[asked.worker]()
    for _ in sys.stdin:
        began = time.perf_counter()
        audio = next(steps)
        if device == "cuda":
            torch.cuda.synchronize()
        print(json.dumps({"audio": audio, "seconds": time.perf_counter() - began}), flush=True)


def main() -> None:
    """Let them take turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("audio", type=Path)
    parser.add_argument("--s3prl", type=Path)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm", type=int, default=1)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument(
        "--only", action="append", help="not all of them; the first is compared with"
    )
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--worker")
    asked = parser.parse_args()
    asked.audio = asked.audio.resolve()
    if asked.worker:
        work(asked)
        return
    names = asked.only or [*(["original"] if asked.s3prl else []), "plain", *OURS]
    workers = {
        name: subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--worker", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for name in names
    }  # fmt: skip
    rates: dict[str, list[float]] = {name: [] for name in names}
    first: dict[str, float] = {}
    for number in range(asked.warm + asked.rounds):
        for name, worker in workers.items():
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
            lines = iter(worker.stdout.readline, "")
            told = json.loads(next(line for line in lines if line.startswith("{")))
            if number == 0:
                first[name] = told["seconds"]
            if number >= asked.warm:
                rates[name].append(told["audio"] / told["seconds"])
                print(f"round {number}: {name} {rates[name][-1]:.2f} s/s", flush=True)
    for worker in workers.values():
        worker.kill()
    base = rates[names[0]]
    measured = {
        "size": asked.size,
        "clips": asked.clips,
        "precision": asked.precision,
        "set": asked.set,
        "rounds": asked.rounds,
        "warm": asked.warm,
        "audio_seconds_a_step": mean_step(asked.audio, asked.clips),
        "audio_seconds_a_second": {name: round(median(own), 3) for name, own in rates.items()},
        f"times_{names[0]}": {
            name: [
                round(f([a / b for a, b in zip(own, base, strict=True)]), 3)
                for f in (median, min, max)
            ]
            for name, own in rates.items()
        },
        "first_step_seconds": {name: round(value, 1) for name, value in first.items()},
    }
    print(json.dumps(measured, indent=1))
    if asked.record:
        record("throughput", measured)


if __name__ == "__main__":
    main()
