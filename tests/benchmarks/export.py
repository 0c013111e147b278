"""Exports beside the models that they were made of: how near, how large, how fast; and other ways to quantise.

- `parity`: 200 real clips of 0.03 to 60 s, least cosine and largest error of the last layer, by precision and runtime;
  words wrong where the model is a recogniser and the recordings have texts.
- `speed`: a clip of 10 s, student of the published size and teacher of base's (random weights), stock transformers in
  fp32 beside exports and beside what onnxruntime's own quantisation makes of them, all in turn; how near these
  are is measured on `--model`, whose weights are trained.

python tests/benchmarks/export.py parity MODEL AUDIO... [--record]
python tests/benchmarks/export.py table
python tests/benchmarks/export.py speed AUDIO... --model MODEL [--rounds 7] [--record]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import torch
from record import RESULTS, record
from transformers import HubertConfig, HubertModel

from distilkit import config, exported, teachers
from distilkit.audio import SAMPLE_RATE, Samples, load
from distilkit.data import find, transcripts
from distilkit.encoder import Encoder, exact
from distilkit.export import WEIGHTS
from distilkit.export.graph import Graph, to_onnx
from distilkit.export.verify import check
from distilkit.exported import Exported
from distilkit.recognisers import Recogniser
from distilkit.recognisers import load as load_recogniser
from distilkit.students import save

CLIPS, SHORTEST, LONGEST = 200, 0.03, 60.0


def sound(audio: Sequence[str], seconds: float) -> Samples:
    """So much of recordings, one behind the other."""
    parts, some = [], 0
    for item in find(audio):
        if item.audio and some < seconds * SAMPLE_RATE:
            parts.append(load(item.path))
            some += len(parts[-1])
    return np.resize(np.concatenate(parts), int(seconds * SAMPLE_RATE))


def clips(audio: Sequence[str]) -> list[Samples]:
    """Real clips of all lengths, from one end of the recordings to the other."""
    lengths = np.geomspace(SHORTEST, LONGEST, CLIPS) * SAMPLE_RATE
    whole, at, found = sound(audio, 1800.0), 0, []
    for length in lengths.astype(int):
        at = at if at + length <= len(whole) else 0
        found.append(whole[at : at + length])
        at += length
    return found


def written(
    folder: Path, graph: Graph, facts: dict[str, Any]
) -> Iterator[tuple[str, str, Exported]]:
    """Every precision with every runtime."""
    for precision, store in WEIGHTS.items():
        file = folder / f"{precision}.onnx"
        to_onnx(graph, file, "model")
        store(file)
        for runtime in exported.installed():
            if exported.RUNTIMES[runtime].low and precision == "fp32":
                continue
            run = exported.RUNTIMES[runtime].load(file)
            told = {**facts, "bytes": file.stat().st_size, "precision": precision}
            yield precision, runtime, Exported(folder=folder, facts=told, runtime=runtime, run=run)


def opened(name: str) -> tuple[Encoder, Recogniser | None, dict[str, Any]]:
    """A model, and what its export has to know."""
    try:
        recogniser = load_recogniser(name)
    except Exception:
        encoder, _ = teachers.load(name)
        return encoder, None, {"layers": encoder.depth, "width": encoder.width}
    encoder, tokenizer = recogniser.encoder, recogniser.tokenizer
    facts = {"layers": encoder.depth, "width": encoder.width, "tokens": tokenizer.tokens}
    return (
        encoder,
        recogniser,
        facts | {"blank": tokenizer.blank, "text": tokenizer.text.model_dump()},
    )


def parity(asked: argparse.Namespace) -> dict[str, Any]:
    """How near every form is on 200 clips, and words wrong."""
    encoder, recogniser, facts = opened(asked.model)
    heard, found = clips(asked.audio), {}
    labelled: tuple[list[Samples], list[str]] = ([], [])
    if recogniser:
        settings = config.Transcribed(max_seconds=60.0, min_seconds=0.025)
        cuts = transcripts.read(asked.labelled, settings).cuts
        labelled = [cut.load_audio()[0] for cut in cuts], [cut.supervisions[0].text for cut in cuts]
    with tempfile.TemporaryDirectory() as folder:
        for precision, runtime, made in written(Path(folder), Graph(encoder, recogniser), facts):
            near = check(made, encoder, None, heard, [])
            row: dict[str, Any] = {
                "megabytes": round(made.facts["bytes"] / 1e6, 2),
                "clips": near.clips,
                "seconds": near.seconds,
                "cosine": round(near.layers[-1].cosine, 7),
                "error": near.layers[-1].error,
                "error_of_any_layer": max(layer.error for layer in near.layers),
            }
            if recogniser:
                said = check(made, encoder, recogniser, *labelled)
                assert said.wer is not None
                row |= {"words": said.words, "model_wer": said.wer[0], "wer": said.wer[1]}
            found[f"{precision}, {runtime}"] = row
            print(precision, runtime, row, flush=True)
    return {"of": "parity", "model": Path(asked.model).name, "forms": found}


class Calibration:
    """Clips for onnxruntime's static quantisation."""

    def __init__(self, waves: Sequence[Samples]) -> None:
        self.waves = iter(waves)

    def get_next(self) -> dict[str, Any] | None:
        """The next one."""
        wave = next(self.waves, None)
        return None if wave is None else {exported.WAVE: wave[None]}


def quantised(file: Path, audio: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """What onnxruntime's own quantisation makes of a file."""
    from onnxruntime import quantization as ways

    nodes = onnx.load(file).graph.node
    convs = [node for node in nodes if node.op_type == "Conv"]
    spared = [convs[0].name]  # one channel in, and every wave goes through it
    whole = sound(audio, 60.0)
    for name, kinds in {
        "products": ["MatMul", "Gemm"], "convolutions": ["Conv"], "both": ["Conv", "MatMul", "Gemm"],
    }.items():  # fmt: skip
        out = file.with_name(f"dynamic {name}.onnx")
        shared = {
            "per_channel": True,
            "weight_type": ways.QuantType.QInt8,
            "nodes_to_exclude": spared,
        }
        ways.quantize_dynamic(file, out, op_types_to_quantize=kinds, **shared)
        yield f"dynamic int8, {name}", out
        out = file.with_name(f"static {name}.onnx")
        waves = [whole[at : at + 80_000] for at in range(0, len(whole) - 80_000, 80_000)]
        ways.quantize_static(
            file, out, Calibration(waves), op_types_to_quantize=kinds,
            activation_type=ways.QuantType.QUInt8, **shared,
        )  # fmt: skip
        yield f"static int8, {name}", out


def speed(asked: argparse.Namespace) -> dict[str, Any]:
    """How fast every form is, beside stock transformers; and how near, on a trained model."""
    trained, _, facts = opened(asked.model)
    torch.manual_seed(0)
    stock = {
        "teacher, transformers fp32": HubertModel(HubertConfig()).eval(),
        "student, transformers fp32": HubertModel(HubertConfig(num_hidden_layers=2)).eval(),
    }
    student = Encoder(
        model=exact(HubertModel(HubertConfig(num_hidden_layers=2)).eval()), normalise=False
    )
    student.model.load_state_dict(stock["student, transformers fp32"].state_dict())
    clip = sound(asked.audio, 10.0)
    runs: dict[str, Callable[[], object]] = {}
    for name, model in stock.items():
        runs[name] = _stock(model, clip)
    sizes, near = {}, {}
    with tempfile.TemporaryDirectory() as place:
        for label, encoder in (("large", student), ("trained", trained)):
            folder = Path(place) / label
            folder.mkdir()
            told = {"layers": encoder.depth, "width": encoder.width}
            forms = dict[str, tuple[Exported, int]]()
            for precision, runtime, made in written(folder, Graph(encoder, None), told):
                forms[f"{precision}, {runtime}"] = made, made.facts["bytes"]
            for name, file in quantised(folder / "fp32.onnx", asked.audio):
                for runtime in ("onnxruntime", *(["openvino"] if "static" in name else [])):
                    try:
                        run = exported.RUNTIMES[runtime].load(file)
                        made = Exported(folder=folder, facts=told, runtime=runtime, run=run)
                        made.states([clip], [encoder.depth])
                    except Exception as error:
                        print(name, runtime, str(error).partition("\n")[0][:200], flush=True)
                        continue
                    forms[f"{name}, {runtime}"] = made, file.stat().st_size
            for name, (made, size) in forms.items():
                if label == "large":
                    sizes[name] = round(size / 1e6, 1)
                    runs[name] = lambda made=made: made.states([clip], [2])  # type: ignore[misc]
                else:
                    checked = check(made, encoder, None, clips(asked.audio)[::8], [])
                    near[name] = round(checked.layers[-1].cosine, 6)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(asked.rounds + 2):
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                if number > 1:
                    times[name].append(time.perf_counter() - began)
    found = {}
    for name, own in times.items():
        row: dict[str, Any] = {"milliseconds": round(1e3 * median(own), 1)}
        for against in stock:
            ratios = [a / b for a, b in zip(times[against], own, strict=True)]
            key = f"times_{against.partition(',')[0]}"
            row[key] = [round(f(ratios), 2) for f in (median, min, max)]
        found[name] = row | {"megabytes": sizes.get(name), "least_cosine_trained": near.get(name)}
        print(name, found[name], flush=True)
    return {
        "of": "speed", "trained": Path(asked.model).name, "rounds": asked.rounds, "seconds": 10.0,
        "processor_flags": exported.processor(), "forms": found,
    }  # fmt: skip


def _stock(model: HubertModel, clip: Samples) -> Callable[[], object]:
    wave_BS = torch.from_numpy(clip)[None]

    def run() -> object:
        with torch.inference_mode():
            return model(wave_BS).last_hidden_state

    return run


def table() -> None:
    """Print what was recorded last of each model and kind, as Markdown."""
    lines = (RESULTS / "export.jsonl").read_text(encoding="utf-8").splitlines()
    last = {(row["of"], row.get("model")): row for row in map(json.loads, lines)}
    for (of, model), row in last.items():
        print(f"\n{of} {model or ''}\n")
        keys = sorted({key for form in row["forms"].values() for key in form})
        print("| form |", " | ".join(keys), "|")
        for name, form in row["forms"].items():
            print(f"| {name} |", " | ".join(str(form.get(key, "")) for key in keys), "|")


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("parity", "speed", "student", "table"))
    parser.add_argument("audio", nargs="*")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--labelled", nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    if asked.what == "table":
        table()
        return
    if asked.what == "student":  # one of the published size, random weights, for `parity`
        torch.manual_seed(0)
        model = exact(HubertModel(HubertConfig(num_hidden_layers=2)).eval())
        save(Encoder(model=model, normalise=False), Path(asked.model), "random weights\n")
        return
    measured = {"parity": parity, "speed": speed}[asked.what](asked)
    print(json.dumps(measured, indent=1))
    if asked.record:
        record("export", measured)


if __name__ == "__main__":
    main()
