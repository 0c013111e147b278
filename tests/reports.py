"""Runs whose reports are hard to write: hostile names, and very many steps."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from distilkit import report

HOSTILE = "\"><script>alert(1)</script>'& \u202etxt.flac \u05e9\u05dc\u05d5\u05dd " + "x" * 300


def edit(folder: Path, name: str, change: Any) -> None:
    """Change a JSON file of a run."""
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def make_hostile(folder: Path) -> None:
    """Put names and texts that are no plain text into every file of a run of fine-tuning."""

    def facts(content: dict[str, Any]) -> None:
        content["data"] = [HOSTILE]
        content["base"] |= {"name": HOSTILE, "notes": [f"`{HOSTILE}`"], "format": HOSTILE}
        content["head"] = HOSTILE
        content["tokenizer"]["folder"] = HOSTILE
        content["versions"] = {HOSTILE: HOSTILE}
        content["plan"]["choices"][0] = {"name": HOSTILE, "value": HOSTILE, "reason": HOSTILE}

    def worst(content: dict[str, Any]) -> None:
        for item in content["utterances"]["worst"]:
            item |= {"id": HOSTILE, "speaker": HOSTILE, "said": HOSTILE, "heard": f"a {HOSTILE}"}
        content["utterances"]["speakers"] = [[HOSTILE, 1, 2]]
        content["utterances"]["confusions"] = [[HOSTILE, HOSTILE, 2]]
        content["similarity"] = {"problem": HOSTILE}
        content["speed"] = {"none": HOSTILE}

    edit(folder, "run.json", facts)
    edit(folder, report.FILE, worst)
    (folder / "skipped.tsv").write_text(
        f"kind\tseconds\tpath\treason\n{HOSTILE}\t1.00\t{HOSTILE}\t{HOSTILE}\n"
    )
    recipe = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(f"# {HOSTILE}\n{recipe}")
    task = {
        "title": HOSTILE, "kept": None,
        "metrics": [{"name": HOSTILE, "higher_is_better": True, "percent": True}],
        "values": {HOSTILE: {HOSTILE: {"value": 1.0, "low": 0.5, "high": 1.0}}},
    }  # fmt: skip
    probes = {"ks": {"task": task, "models": [HOSTILE], "data": [HOSTILE]}}
    (folder / "probes.json").write_text(json.dumps(probes))


def make_long(folder: Path) -> None:
    """Give a run the logs of 100,000 steps of three layers, with one spike."""
    steps, rng = 100_000, np.random.default_rng(0)
    noise = rng.normal(1.0, 0.05, (steps, 8)) * np.linspace(3, 1, steps)[:, None]
    names = ["loss", *(f"{term}_{n}" for n in (4, 8, 12) for term in ("l1", "cosine")), "grad_norm"]
    with (folder / "metrics.jsonl").open("w") as file, (folder / "speed.jsonl").open("w") as clock:
        for step, values in enumerate(noise.tolist(), 1):
            row = {"step": step, **dict(zip(names, values, strict=True)), "learning_rate": 1e-4}
            row["loss"] = 99.25 if step == 54_321 else row["loss"]
            if step % 500 == 0:
                row["valid"] = dict(zip(names[:7], values, strict=False))
            file.write(json.dumps(row) + "\n")
            clock.write(f'{{"step": {step}, "seconds": 0.5, "waited": 0.0, "peak_gib": 1.5}}\n')
