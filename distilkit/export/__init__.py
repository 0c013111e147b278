"""Models for devices: an ONNX file, weights in fp32, fp16 or int8, checked on speech before it is kept."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distilkit import __version__, config, exported, leftovers, teachers
from distilkit.audio import FRAME_RATE, FRAME_SAMPLES, HOP_SAMPLES, SAMPLE_RATE
from distilkit.cards import CARD
from distilkit.data import Tracker, untracked
from distilkit.encoder import FAMILIES, Encoder, fingerprint
from distilkit.errors import DistilkitError
from distilkit.export import mobile as phones
from distilkit.export.card import SCRIPT, card
from distilkit.export.graph import Graph, to_onnx
from distilkit.export.verify import (
    TIMED_SECONDS,
    TOLERANCES,
    Checked,
    beyond,
    check,
    refuse,
    speech,
)
from distilkit.export.weights import WEIGHTS
from distilkit.exported import MODEL
from distilkit.files import digest, make_parent, replacing
from distilkit.hub import EXPORTED, is_exported, locate
from distilkit.recognisers import ADAPTER, Recogniser
from distilkit.recognisers import load as load_recogniser
from distilkit.teachers import Checkpoint

__all__ = ["TIMED_SECONDS", "TOLERANCES", "WEIGHTS", "Checked", "Export", "beyond", "export"]


@dataclass(frozen=True, kw_only=True)
class Export:
    """A folder that was kept."""

    folder: Path
    facts: dict[str, Any]
    checks: list[Checked]  # with every runtime, those included that the folder will not be run with


def export(
    name: str,
    out: Path,
    *,
    precision: config.ExportPrecision = "fp32",
    mobile: bool = False,
    audio: Sequence[str | Path] = (),
    track: Tracker = untracked,
) -> Export:
    """Write a model for devices, verified on speech, whole or not at all.

    Args:
        name: an encoder or a recogniser: a folder, file, run or hub id.
        out: the folder to make; it must be new.
        precision: how weights are stored in the ONNX file.
        mobile: write a program for phones too (ExecuTorch), whose weights stay in fp32.
        audio: recordings to verify on, with text or without; empty for the built-in speech.
        track: wraps an iterable to show progress.

    Raises:
        DistilkitError: `out` exists, `name` cannot be read or exported, onnx is missing, nothing to verify
            on, or the export is further from the model than `TOLERANCES` allow.
    """
    leftovers.vacate(out)
    needed(mobile)
    said, recogniser, encoder, checkpoint = _read(name)
    clips, texts = speech(audio, track)
    make_parent(out)
    with replacing(out, new=True) as folder:
        folder.mkdir()
        graph = Graph(encoder, recogniser)
        to_onnx(graph, folder / MODEL, name)
        WEIGHTS[precision](folder / MODEL)
        facts = _facts(name, said, encoder, recogniser, checkpoint, precision)
        facts |= {
            "sha256": digest(folder / MODEL),
            "bytes": (folder / MODEL).stat().st_size,
        }
        (states,) = encoder.states([exported.known_sound()], [encoder.depth])
        known = [float(f"{value:.4g}") for value in exported.contrast(states)]
        _write(folder, facts)
        checks = []
        for runtime in _runtimes(precision):
            made = exported.load(name, folder, runtime=runtime)
            found = check(made, encoder, recogniser, clips, texts, track)
            if runtime == exported.DEVICE:
                refuse(found, precision, name, audio)
            checks.append(found)
        kept = [check for check in checks if not beyond(check, precision)]
        facts |= {
            "processor": exported.processor(),
            "known": known,
            "milliseconds": {check.runtime: check.milliseconds for check in kept},
            "checked": [asdict(check) for check in checks],
        }
        if mobile:
            phones.to_mobile(graph, folder / phones.FILE, name)
            made = phones.load(folder, facts, graph.outputs)
            short = [clip[: phones.LONGEST] for clip in clips]
            found = check(made, encoder, recogniser, short, texts, track)
            refuse(found, "fp32", name, audio)
            facts["mobile"] = phones.describe(folder, graph.outputs) | {"checked": asdict(found)}
            checks, kept = [*checks, found], [*kept, found]
        _write(folder, facts)
        shutil.copyfile(Path(exported.__file__).with_name("on_device.py"), folder / SCRIPT)
        (folder / CARD).write_text(card(facts, kept, locate(name)), encoding="utf-8")
    return Export(folder=out, facts=facts, checks=checks)


def needed(mobile: bool) -> None:
    """Refuse where the packages are missing that write and run ONNX, or programs for phones."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise DistilkitError(f"`distilkit export` needs {package}", exported.INSTALL)
    if mobile and find_spec(phones.RUNTIME) is None:
        raise DistilkitError(f"`--mobile` needs {phones.RUNTIME}", phones.INSTALL)


def _runtimes(precision: config.ExportPrecision) -> list[str]:
    """What an export is checked with: all that is installed, low arithmetic where it is fast and allowed."""
    low = precision != "fp32" and exported.bf16_is_fast()
    return [name for name in exported.installed() if low or not exported.RUNTIMES[name].low]


def _read(name: str) -> tuple[str, Recogniser | None, Encoder, Checkpoint | None]:
    """What a name stands for: in words, and as a recogniser or an encoder."""
    path = locate(name)
    if is_exported(path):
        of = exported.read(path)["source"]["name"]
        raise DistilkitError(
            f"`{name}` is an exported model already", f"distilkit export {of} --out DIR"
        )
    if _is_recogniser(path):
        recogniser = load_recogniser(name)
        shape = recogniser.model.config
        return FAMILIES[shape.model_type], recogniser, recogniser.encoder, None
    encoder, checkpoint = teachers.load(name)
    return FAMILIES[checkpoint.family], None, encoder, checkpoint


def _is_recogniser(path: Path) -> bool:
    if (path / ADAPTER).is_file():
        return True
    try:
        told = json.loads((path / "config.json").read_text(encoding="utf-8"))
        return any(str(kind).endswith("ForCTC") for kind in told.get("architectures") or [])
    except (OSError, ValueError, AttributeError):
        return False


def _facts(
    name: str,
    family: str,
    encoder: Encoder,
    recogniser: Recogniser | None,
    checkpoint: Checkpoint | None,
    precision: config.ExportPrecision,
) -> dict[str, Any]:
    """What export.json says."""
    import onnx

    model = recogniser.model if recogniser else encoder.model
    facts: dict[str, Any] = {
        "format": exported.FORMAT,
        "made_by": f"distilkit {__version__}",
        "kind": "recogniser" if recogniser else "encoder",
        "family": family,
        "precision": precision,
        "file": MODEL,
        "source": {
            "name": name,
            "format": checkpoint.format if checkpoint else "huggingface",
            "fingerprint": fingerprint(model),
        },
        "licence": "that of the model it was made of",
        "sample_rate": SAMPLE_RATE,
        "frame_samples": FRAME_SAMPLES,
        "hop_samples": HOP_SAMPLES,
        "frame_rate": FRAME_RATE,
        "layers": encoder.depth,
        "width": encoder.width,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "onnx": onnx.__version__,
    }
    if recogniser:
        facts |= {
            "tokens": recogniser.tokenizer.tokens[: int(model.config.vocab_size)],
            "blank": recogniser.tokenizer.blank,
            "text": recogniser.tokenizer.text.model_dump(),
        }
    return facts


def _write(folder: Path, facts: dict[str, Any]) -> None:
    text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    (folder / EXPORTED).write_text(text, encoding="utf-8")
