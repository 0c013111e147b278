"""Hostile checkpoints of every format: settings, weights, pickles, zip structure, exports, runs, stored targets.

What is used of it counts as used only if what it computes is finite and of the promised size.
"""

import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import conftest
import formats
import numpy as np
import soundfile
import test_teachers_lighthubert as light
import test_teachers_s3prl as distiller
import torch
from mutate import (
    OUTSIDE,
    Seed,
    bytes_file,
    changed,
    damaged,
    gone,
    hostile,
    json_file,
    json_text,
    link,
)
from safetensors.torch import load_file, save_file
from test_recognisers import made

from distilkit import (
    batches,
    codebooks,
    config,
    data,
    exported,
    recognisers,
    stored,
    teachers,
    tokenizers,
)  # fmt: skip
from distilkit.encoder import Encoder, exact
from distilkit.files import digest
from distilkit.runs import Run
from distilkit.students import save
from distilkit.teachers import lighthubert

WAVE = conftest.voice(0.4, 1)
KEPT = stored.Kept(
    model="m", layers=(1, 2), normalise=False, codebook="", arithmetic="fp32", form="int8", widths=(4, 4)
)  # fmt: skip


def seeds(folder: Path) -> list[Seed]:
    """A checkpoint of every format, small."""
    lighthubert.PARTS = light.SMALL  # type: ignore[assignment]  # narrow ones
    found: list[Seed] = []

    def add(name: str, reader: str = "encoder", place: str = ".") -> Path:
        inner = folder / f"{len(found):02d}"
        inner.mkdir()
        found.append(Seed(name=name, folder=inner, place=place, reader=reader))
        return inner

    _huggingface(add)
    _libraries(add)
    _recognisers(add, folder)
    _exports(add, folder)
    _runs(add)
    return found


Add = Callable[..., Path]


def _huggingface(add: Add) -> None:
    small = conftest.make_model(num_hidden_layers=2)
    for name, model in {
        "base": small,
        "large": conftest.make_model(**{**conftest.LARGE, "num_hidden_layers": 2}),
        "wav2vec 2.0": formats.family("wav2vec 2.0"),
        "WavLM": formats.family("WavLM"),
        "data2vec": formats.family("data2vec"),
    }.items():
        save(Encoder(model=exact(model), normalise=False), add(name, place="m") / "m", "#\n")
    place = add("sharded")
    small.save_pretrained(place, max_shard_size="60KB")
    place = add("pickled")
    small.config.save_pretrained(place)
    torch.save(small.state_dict(), place / "pytorch_model.bin")


def _libraries(add: Add) -> None:
    weights = formats.fairseq_weights(formats.reference(layers=1))
    content = formats.fairseq_file(weights, formats.settings(layers=1), {"normalize": False})
    torch.save(content, add("fairseq", place="hubert.pt") / "hubert.pt")
    torch.save(
        content, add("fairseq, legacy", place="hubert.pt") / "hubert.pt",
        _use_new_zipfile_serialization=False,
    )  # fmt: skip
    task = {"task_cfg": {"normalize": True}, "model_cfg": formats.settings(layers=1)}
    torch.save(task | {"model_weight": weights}, add("fairseq by s3prl", place="a.pt") / "a.pt")
    student = distiller.distiller_weights(distiller.student()) | distiller.head_weights(3)
    torch.save(distiller.distiller_file(student), add("s3prl", place="s.ckpt") / "s.ckpt")
    whole = formats.reference(layers=1).state_dict()
    torch.save(whole, add("torchaudio", place="t.pth") / "t.pth")
    save_file(dict(whole), add("torchaudio, safetensors", place="t.safetensors") / "t.safetensors")
    torch.save(
        formats.reference(wavlm=True, width=96, heads=3, layers=1).state_dict(),
        add("torchaudio WavLM", place="w.pth") / "w.pth",
    )
    light.written(add("LightHuBERT", place="l.pt") / "l.pt", "base")


def _recognisers(add: Add, folder: Path) -> None:
    base, letters = folder / "base", folder / "letters"
    model = exact(conftest.make_model(num_hidden_layers=2))
    save(Encoder(model=model, normalise=False), base, "#\n")
    tokens = tokenizers.train(conftest.SAYINGS, config.Tokenizer(), config.Text())
    tokenizers.save(tokens, letters)
    recognisers.save(made(base, letters), add("recogniser", "recogniser", "m") / "m", "#\n")
    recognisers.save(
        made(base, letters, layers="weighted"), add("weighted", "recogniser", "m") / "m", "#\n"
    )
    place = add("adapter", "recogniser", "adapter")
    shutil.copytree(base, place / "base")
    from distilkit.ctc import trainee

    settings = conftest.fine("lora.rank=4")
    _, checkpoint = teachers.load(str(place / "base"))
    trained = trainee.assemble(checkpoint, tokens, settings)
    (adapters,) = trained.adapters
    adapters.save_pretrained(place / "adapter", save_embedding_layers=False)
    trained.recogniser.model.config.save_pretrained(place / "adapter")
    tokenizers.save(tokens, place / "adapter")
    # The base is found by its name, from the folder where the case runs.
    told = checkpoint.facts("base") | {"source": "base", "layers": "last"}
    (place / "adapter" / "base.json").write_text(json.dumps(told))


def _exports(add: Add, folder: Path) -> None:
    from distilkit.export import export, verify

    verify.CLIPS, verify.LONGEST, verify.ROUNDS, verify.TIMED_SECONDS = 4, 5.0, 1, 0.5  # type: ignore[misc]
    recognisers.save(made(folder / "base", folder / "letters"), folder / "hears", "#\n")
    export(str(folder / "base"), add("exported", "exported", "x") / "x")
    export(str(folder / "hears"), add("exported recogniser", "exported", "x") / "x")


def _runs(add: Add) -> None:
    place = add("run", "run", "run")
    (place / "audio").mkdir()
    for number in range(3):
        soundfile.write(place / "audio" / f"{number}.wav", conftest.voice(1.0, number), 16000)
    # What a run names lies where it was; here that is a folder that every case has.
    there = os.getcwd()
    os.chdir(place)
    try:
        found = data.collect(["audio"], config.Data(), cache=Path("cache"))
        text = json.dumps([cut.to_dict() for cut in found.train + found.valid])
        windows = data.dump_windows(found)
    finally:
        os.chdir(there)
    assert str(place) in text
    run = Run(place / "run")
    facts = {"kind": "distill", "teacher": {"name": "t"}, "plan": {"steps": 4}, "versions": {}}
    run.create(
        {
            "recipe.toml": config.dump_recipe(config.load_recipe("smoke")),
            "run.json": json.dumps(facts),
            "audio.jsonl.gz": _relative(windows, place),
            "metrics.jsonl": '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n',
        }
    )
    for step in (1, 2):
        run.save_checkpoint(step, {"a": torch.ones(3, 4) * step}, {"optimizer": {"lr": 0.1}})
    place = add("stored targets", "store", "store")
    store = stored.Store(place / "store", KEPT)
    with store.writer() as write:
        for cut in _cuts():
            frames = (cut.num_samples - 400) // 320 + 1
            write(cut, torch.from_numpy(WAVE), [torch.randn(frames, 4), torch.randn(frames, 4)])
    place = add("codebook", "codebook", "c.safetensors")
    of = codebooks.Source(features="layers", layers=(1,), model="m", normalise=False)
    codebooks.save(
        codebooks.Codebook(**asdict(of), centres=(torch.randn(4, 8),)), place / "c.safetensors"
    )


def _relative(windows: bytes, place: Path) -> bytes:
    """A manifest whose absolute names count from where the case runs."""
    import gzip

    return gzip.compress(gzip.decompress(windows).replace(f"{place}/".encode(), b""), mtime=0)


def _cuts() -> list[Any]:
    clip = data.Clip(
        id="a", source=Path("a.wav"), path=Path("a.wav"), samples=len(WAVE), windows=((0, 3200), (3200, 3200)),
        digest="d", stamp="",
    )  # fmt: skip
    return data.cuts(clip)


# --------------------------------------------------------------------------------------- damage


class Evil:
    """Unpickled by an ordinary unpickler, it runs a command."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch ran",)


def _laughs() -> Any:
    """Little to read, and endless to go through: each holds the one before ten times."""
    found: Any = "ha"
    for _ in range(30):
        found = (found,) * 10
    return found


def other(rng: Random) -> Any:
    """A value that hardly any place in a pickle expects."""
    values: list[Callable[[], Any]] = [
        lambda: torch.ones(()),
        lambda: torch.zeros(rng.choice(((0,), (3,), (1, 1), (2, 0, 3)))),
        lambda: torch.zeros(1).expand(100_000, 100_000),
        lambda: torch.full((128,), float("nan")),
        lambda: torch.zeros(
            4, dtype=rng.choice((torch.int8, torch.bool, torch.complex64, torch.float64))
        ),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.zeros(3, 3, device="meta"),
        lambda: torch.nn.Parameter(torch.ones(2)),
        lambda: _laughs(),
        lambda: Evil(),
        lambda: formats.Namespace(w2v_args={"a": 1}, model=7),
        lambda: rng.choice((b"bytes", 3 + 4j, (1, "a"), {1, 2}, {7: 8}, bytearray(3), 10**400)),
    ]
    return hostile(rng) if rng.random() < 0.5 else rng.choice(values)()


def _twisted(content: dict[str, Any], rng: Random) -> str:
    """Weights that are nearly what they should be."""
    weights = next((content[key] for key in ("model", "Distiller", "model_weight") if key in content), content)  # fmt: skip
    name = rng.choice([key for key in weights if isinstance(weights[key], torch.Tensor)])
    value = weights[name]
    how, new = rng.choice(
        [
            ("in half", value.half()), ("in whole numbers", value.long()), ("flat", value.flatten()),
            ("not finite", value * float("nan")), ("beyond fp32", value.double() * 1e300),
            ("of no size", value[:0]), ("turned", value.T if value.ndim == 2 else value[None]),
            ("alone", value.sum()), ("complex", value.to(torch.complex64)),
            ("stretched", value.flatten()[:1].expand(value.shape)),
        ]
    )  # fmt: skip
    weights[name] = new
    if rng.random() < 0.2:
        weights[rng.choice(("encoder.layers.9999.fc1.weight", "", "a" * 5000, "__class__"))] = value
    return f"{name} {how}"


def _pickled(path: Path, rng: Random) -> str:
    """A checkpoint of torch, with other values in it or another structure around it."""
    how = rng.random()
    if how < 0.15:
        return bytes_file(path, rng)
    if how < 0.4 and zipfile.is_zipfile(path):
        return _zip(path, rng)
    content = torch.load(path, weights_only=False)
    told = _twisted(content, rng) if rng.random() < 0.3 else ""
    if not told:
        content, told = changed(content, rng, other)
    if rng.random() < 0.1:
        path.write_bytes(pickle.dumps(content, rng.choice((0, 2, 4))))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.7)
    return f"{path.name}: {told}"


def _zip(path: Path, rng: Random) -> str:
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    inner = next(name for name in parts if name.endswith("data.pkl"))
    some = rng.choice(list(parts))
    way = zipfile.ZIP_STORED
    how = rng.choice(
        ("pickle", "packed", "bomb", "lost", "renamed", "climbs", "entry", "twice", "order")
    )
    if how == "pickle":
        parts[inner], _ = damaged(parts[inner], rng)
    elif how == "packed":
        way = zipfile.ZIP_DEFLATED
    elif how == "bomb":
        way = zipfile.ZIP_DEFLATED
        parts[some] = parts[some] + bytes(1 << 28)
    elif how == "lost":
        del parts[some]
    elif how == "renamed":
        parts[some.replace("/", "//")] = parts.pop(some)
    elif how == "climbs":
        parts[f"../{OUTSIDE}"] = parts["/etc/passwd"] = b"written"
    elif how == "entry":
        parts[some], _ = damaged(parts[some], rng)
    elif how == "order":
        parts = {
            name: (b"big" if name.endswith("byteorder") else held) for name, held in parts.items()
        }
        parts = {
            name: (b"99999" if name.endswith("version") else held) for name, held in parts.items()
        }
    with zipfile.ZipFile(path, "w", way) as archive:
        for name, held in parts.items():
            archive.writestr(name, held)
        if how == "twice":
            archive.writestr(f"{inner[:-8]}other.pkl", parts[inner])
    return f"{path.name}: zip, {how} {some}"


def _safetensors(path: Path, rng: Random) -> str:
    """Another header before the same numbers, or other numbers."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    how = rng.random()
    if how < 0.3:
        return bytes_file(path, rng)
    if how < 0.5:
        held = load_file(path)
        told = _twisted(held, rng)
        save_file({key: value.contiguous() for key, value in held.items()}, path, {"format": "pt"})
        return f"{path.name}: {told}"
    if how < 0.6:
        lie = rng.choice((0, 1, size - 1, size + 1, len(data), 2**31, 2**63, 2**64 - 1))
        path.write_bytes(struct.pack("<Q", lie) + data[8:])
        return f"{path.name}: a header of {lie} bytes"
    header, told = changed(json.loads(data[8 : 8 + size]), rng)
    text = json_text(header, rng).encode("utf-8", "surrogatepass")
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    return f"{path.name}: header, {told}"


SIZES = (
    "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size",
    "num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "num_buckets", "conv_pos_kernel_size",
)  # fmt: skip


def _absurd(path: Path, rng: Random) -> str:
    """Sizes that no machine has room for."""
    settings = json.loads(path.read_text())
    for key in rng.sample(SIZES, rng.choice((1, 2, 5))):
        settings[key] = rng.choice((-1, 0, 3, 4096, 60_000, 10**6, 10**9, 2**40, 10**25))
    if rng.random() < 0.3:
        count = rng.choice((0, 1, 7, 10_000))
        for key in ("conv_dim", "conv_kernel", "conv_stride"):
            settings[key] = [rng.choice((0, 1, 2, 512, 10**6, 10**12))] * count
        settings["num_feat_extract_layers"] = count
    path.write_text(json.dumps(settings))
    return f"{path.name}: absurd sizes"


def _index(path: Path, rng: Random) -> str:
    """Shards that are elsewhere."""
    index = json.loads(path.read_text())
    names = index["weight_map"]
    shard = path.parent / sorted(set(names.values()))[0]
    outside = path.parent.parent / "outside" / "shard.safetensors"
    if rng.random() < 0.5 and outside.parent.is_dir():
        shutil.move(shard, outside)
        new = rng.choice((f"../outside/{outside.name}", str(outside)))
        index["weight_map"] = {
            key: new if name == shard.name else name for key, name in names.items()
        }
        path.write_text(json.dumps(index))
        return f"{path.name}: a shard outside"
    return json_file(path, rng)


def _onnx(path: Path, rng: Random) -> str:
    """Another graph; mostly with the digest that export.json then has to say."""
    import onnx

    how = rng.choice(
        ("bytes", "bytes", "outside", "outputs", "sizes", "operator", "huge", "inputs")
    )
    if how == "bytes":
        told = bytes_file(path, rng)
    else:
        model = onnx.load(path)
        graph = model.graph
        tensor = rng.choice(list(graph.initializer))
        if how == "outside":
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            name = rng.choice((OUTSIDE, f"../{OUTSIDE}", "/etc/passwd", "export.json"))
            tensor.external_data.add(key="location", value=name)
        elif how == "outputs":
            del graph.output[rng.randrange(len(graph.output))]
        elif how == "sizes":
            tensor.dims[:] = rng.choice(([0], [-1], [2**40], [3, 3], []))
        elif how == "huge":
            tensor.dims[:] = [2**20, 2**20]
            tensor.ClearField("raw_data")
        elif how == "inputs":
            graph.input[0].name = "other"
        else:
            rng.choice(list(graph.node)).op_type = rng.choice(
                ("Evil", "Loop", "If", "Reshape", "Tile")
            )
        path.write_bytes(model.SerializeToString())
        told = f"{path.name}: {how}"
    if rng.random() < 0.8:
        facts = json.loads((path.parent / "export.json").read_text())
        facts["sha256"] = digest(path)
        (path.parent / "export.json").write_text(json.dumps(facts))
        told += ", its digest right"
    return told


def _lines(path: Path, rng: Random) -> str:
    """JSON lines, gzipped or not, with values changed in one of them."""
    import gzip

    packed = path.suffix == ".gz"
    if rng.random() < 0.3:
        return bytes_file(path, rng)
    text = (gzip.decompress(path.read_bytes()) if packed else path.read_bytes()).decode()
    lines = text.splitlines()
    place = rng.randrange(len(lines))
    row = json.loads(lines[place])
    sources = row.get("recording", {}).get("sources", [])
    if sources and rng.random() < 0.4:
        sources[0] |= rng.choice(
            (
                {"type": "command", "source": "touch ran; cat audio/0.wav"},
                {"type": "command", "source": f"../{OUTSIDE}"},
                {"type": "url", "source": "http://127.0.0.1:9/a.wav"},
                {"type": "memory", "source": "AAAA"},
                {"source": OUTSIDE},
            )
        )
        if sources[0]["type"] == "command" and rng.random() < 0.7:
            script = path.parent.parent / "audio" / "script"
            script.write_text("#!/bin/sh\ntouch ran\n")
            script.chmod(0o755)
            sources[0]["source"] = "audio/script"
        told = f"a source {sources[0]['type']}"
    else:
        row, told = changed(row, rng)
    lines[place] = json_text(row, rng)
    new = ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")
    path.write_bytes(gzip.compress(new) if packed else new)
    return f"{path.name}: {told}"


def _config(path: Path, rng: Random) -> str:
    return _absurd(path, rng) if rng.random() < 0.4 else json_file(path, rng)


BY_NAME: dict[str, Callable[[Path, Random], str]] = {
    "config.json": _config,
    "model.safetensors.index.json": _index,
    ".json": json_file,
    ".safetensors": _safetensors,
    ".pt": _pickled,
    ".pth": _pickled,
    ".ckpt": _pickled,
    "pytorch_model.bin": _pickled,
    ".onnx": _onnx,
    ".jsonl": _lines,
    ".gz": _lines,
}
LEFT = (".wav", ".md", ".py", ".lock")  # nothing of these is a checkpoint


def mutate(seed: Seed, folder: Path, rng: Random) -> str:
    """A copy of a checkpoint with one of its files damaged, sometimes two."""
    shutil.copytree(seed.folder, folder, symlinks=True, dirs_exist_ok=True)
    told = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        files = sorted(
            path for path in folder.rglob("*") if path.is_file() and path.suffix not in LEFT
        )
        if not files:
            break
        path = rng.choice(files)
        if rng.random() < 0.05:
            told.append(rng.choice((link, gone))(path, rng))
            continue
        way = BY_NAME.get(path.name) or BY_NAME.get(path.suffix) or bytes_file
        try:
            told.append(way(path, rng) if rng.random() < 0.85 else bytes_file(path, rng))
        except Exception:  # of what was damaged before
            told.append(bytes_file(path, rng))
    return "; ".join(told)


# ------------------------------------------------------------------------------------------- use


def _finite(values: Any) -> None:
    assert all(bool(np.isfinite(value).all()) for value in values), "numbers that are not finite"


def _encoder(place: Path) -> str:
    encoder, checkpoint = teachers.load(str(place))
    (states,) = encoder.states([WAVE], range(encoder.depth + 1))
    assert states.shape == (encoder.depth + 1, 19, encoder.width)
    _finite([states])
    return f"{checkpoint.format}, {checkpoint.family}"


def _recogniser(place: Path) -> str:
    found = recognisers.load(str(place))
    (rows,) = found.logprobs([WAVE])
    assert rows.shape[0] == 19
    assert rows.shape[1] >= len(found.tokenizer)
    known = found.model.lm_head.out_features  # tokens that the head lacks are impossible
    _finite([rows[:, :known]])
    return found.tokenizer.decode(rows.argmax(1) % len(found.tokenizer))


def _exported(place: Path) -> str:
    hears = exported.read(place)["kind"] == "recogniser"
    found = exported.load(place.name, place, recogniser=hears)
    (states,) = found.states([WAVE], range(found.depth + 1))
    assert states.shape == (found.depth + 1, 19, found.width)
    rows = found.logprobs([WAVE])[0] if hears else states
    _finite([states, rows])
    return found.tokenizer.decode(rows.argmax(1)) if hears else "states"


def _run(place: Path) -> str:
    run = Run(place)
    facts, rows = run.read(), run.rows("metrics.jsonl")
    kept = run.load_checkpoint()
    config.load_recipe(str(place / "recipe.toml"))
    train, valid = data.load_windows(place / "audio.jsonl.gz")
    for cut in train + valid:
        batches.load([cut])
    assert kept is None or kept[1]["step"] in (1, 2)
    return f"{run.kind}, {len(facts)} facts, {len(rows)} rows"


def _store(place: Path) -> str:
    store, found = stored.Store(place, KEPT), 0
    for cut in _cuts():
        if not store.missing([cut]):
            found += 1
            for target in store.read(cut, torch.from_numpy(WAVE)):
                assert target.shape == (9, 4)
    return f"{found} windows"


def _codebook(place: Path) -> str:
    found = codebooks.load(place)
    _finite(centre.numpy() for centre in found.centres)
    assert all(centre.ndim == 2 for centre in found.centres)
    return str(found)


READERS: dict[str, Callable[[Path], str]] = {
    "encoder": _encoder,
    "recogniser": _recogniser,
    "exported": _exported,
    "run": _run,
    "store": _store,
    "codebook": _codebook,
}


def enclosed(seed: Seed, told: str) -> bool:
    """Whether nothing outside may be opened: not so for a run, whose recordings may lie anywhere.

    A file that was named itself may be a link, too.
    """
    return seed.reader != "run" and not (Path(seed.place).suffix and "links to" in told)


def use(seed: Seed, folder: Path, told: str) -> tuple[str, str]:
    """Read a checkpoint as the commands do, and ask it something."""
    return "used", READERS[seed.reader](folder / seed.place)
