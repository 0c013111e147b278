"""The README of an exported folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distilkit.cards import head, hub_id, licence_of, public, terms
from distilkit.export.verify import ROUNDS, TIMED_SECONDS, Checked
from distilkit.wording import size

SCRIPT = "run.py"  # what runs the folder on a device


def card(facts: dict[str, Any], checks: Sequence[Checked], source: str | Path) -> str:
    """The README of an exported folder, in Markdown with the hub's metadata block.

    Args:
        facts: what export.json says.
        checks: what was found, with each runtime.
        source: where the model lies.
    """
    name = facts["source"]["name"]
    licence = licence_of(Path(source))
    recognises, first = facts["kind"] == "recogniser", checks[0]
    stored = "fp32" if facts["precision"] == "fp32" else f"weights stored in {facts['precision']}"
    gives = "logarithms of the tokens' probabilities (`logprobs`) and " if recognises else ""
    return "\n".join(
        [
            *head(
                library="onnx",
                pipeline="automatic-speech-recognition" if recognises else "feature-extraction",
                tags=[
                    "onnx",
                    facts["family"].lower().replace(" ", "-"),
                    "speech",
                    *(["ctc"] if recognises else []),
                ],
                base=hub_id(name, source),
                licence=licence,
            ),
            f"# {public(name, source)}, exported",
            "",
            f"A {facts['parameters'] / 1e6:.2f} M {facts['kind']} ({facts['family']}) as ONNX, {stored}, "
            f"{size(facts['bytes'])}. Made by {facts['made_by']}.",
            "",
            "```",
            "pip install onnxruntime soundfile numpy",
            f"python {SCRIPT} file.wav",
            "```",
            "",
            f"It hears mono audio of {facts['sample_rate']} samples a second as it was recorded (`wave`, "
            f"float32, clips of a batch of one length) and gives {gives}`layer_0` to "
            f"`layer_{facts['layers']}`, {facts['frame_rate']} vectors of {facts['width']} numbers a second.",
            "",
            "## What was measured",
            "",
            f"Beside the model in PyTorch, fp32, on {first.clips} clips of {first.shortest:g} to "
            f"{first.longest:g} s, {first.seconds:.0f} s in all; time for a clip of {TIMED_SECONDS:g} s, "
            f"median of {ROUNDS} in turn, on `{facts['processor']}`.",
            "",
            "| runtime | layer | least cosine | largest error | time | PyTorch |",
            "|---|---:|---:|---:|---:|---:|",
            *(_row(check, place) for check in checks for place in range(len(check.layers))),
            *(line for check in checks for line in _words(check)),
            "",
            *(_phone(facts["mobile"]) if "mobile" in facts else []),
            *terms(
                f"The licence of the model it was made of{f', {licence},' if licence else ''} decides"
            ),
        ]
    )


def _phone(told: dict[str, Any]) -> list[str]:
    """How the program for phones is asked."""
    return [
        "## On a phone",
        "",
        f"`{told['file']}` is the same model as an ExecuTorch program, weights in fp32, "
        f"{size(told['bytes'])}, computed by XNNPACK. Its method `forward` takes one clip, float32 "
        f"(1, samples), {told['shortest']} to {told['longest']} samples, as it was recorded, and gives "
        f"`{'`, `'.join(told['outputs'])}`, in this order. Kotlin, Swift and C++ load it with ExecuTorch's "
        "own library; so does Python:",
        "",
        "```python",
        "from executorch.runtime import Runtime",
        "",
        f'method = Runtime.get().load_program("{told["file"]}").load_method("forward")',
        "outputs = method.execute([wave])",
        "```",
        "",
    ]


def _row(check: Checked, place: int) -> str:
    near, last = check.layers[place], place == len(check.layers) - 1
    times = (check.milliseconds, check.model_milliseconds)
    cells = [
        check.runtime,
        str(near.layer),
        f"{near.cosine:.6f}",
        f"{near.error:.1e}",
        *(f"{spent:.0f} ms" if last else "" for spent in times),
    ]
    return f"| {' | '.join(cells)} |"


def _words(check: Checked) -> list[str]:
    if check.wer is not None:
        model, made = check.wer
        said = f"Words wrong with {check.runtime}: {made:.2%}, the model {model:.2%}"
    elif check.apart is not None:
        said = f"Words otherwise than the model's with {check.runtime}: {check.apart:.2%}"
    else:
        return []
    return ["", f"{said}, of {check.words}."]
