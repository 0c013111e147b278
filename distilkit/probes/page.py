"""What was measured, as one document and as one page that needs nothing else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from distilkit import leftovers, pages
from distilkit.files import write_text
from distilkit.hub import locate
from distilkit.pages import marked
from distilkit.probes import TASKS, Outcome, Value, retained
from distilkit.probes.examples import UNLABELLED
from distilkit.probes.metrics import Metric
from distilkit.runs import RESULTS

CAUTION = (
    "A proxy: tasks as SUPERB has them, with smaller heads, on your own recordings. Intervals are the "
    "middle 95% when speakers (or clips, where nobody says who speaks) are drawn anew."
)


def shown(metric: Metric | None, value: Value) -> str:
    """A value with its interval, as people read it."""
    return pages.shown(asdict(value), metric is None or metric.percent)


def document(
    outcomes: Sequence[Outcome], left: Mapping[str, str], models: Sequence[str], data: Sequence[str]
) -> dict[str, Any]:
    """All of it, for programs."""
    tasks = []
    for outcome in outcomes:
        tasks.append(
            {
                "task": outcome.task,
                "title": TASKS[outcome.task].title,
                "facts": dict(outcome.facts),
                "metrics": [
                    {
                        "name": metric.name,
                        "higher_is_better": metric.higher,
                        "percent": metric.percent,
                    }
                    for metric in outcome.metrics
                ],
                "values": {
                    system: {name: _rounded(value) for name, value in values.items()}
                    for system, values in outcome.values.items()
                },
                "kept": _rounded(outcome.kept) if outcome.kept else None,
                "kept_above_floor": None
                if outcome.above_floor is None
                else round(outcome.above_floor, 5),
                "chosen": outcome.chosen,
                "seconds": {name: round(value, 2) for name, value in outcome.seconds.items()},
                "skipped": [asdict(item) for item in outcome.skipped],
            }
        )
    share = retained(outcomes)
    return {
        "models": list(models),
        "data": [str(item) for item in data],
        "tasks": tasks,
        "kept": None if share is None else round(share, 5),
        "left_out": dict(left),
    }


def _rounded(value: Value) -> dict[str, float]:
    return {name: round(number, 5) for name, number in asdict(value).items()}


def write(
    path: Path,
    outcomes: Sequence[Outcome],
    left: Mapping[str, str],
    models: Sequence[str],
    data: Sequence[str],
) -> None:
    """Write the page: a table, and below it each task with its examples and chosen layers."""
    told = document(outcomes, left, models, data)
    share, systems = told["kept"], list(outcomes[0].values)
    table = pages.tasks(told["tasks"], {name: name for name in systems}, share is not None)
    mean = f"<p class=mean>Kept on average: <b>{share:.1%}</b>" if share is not None else ""
    others = "".join(
        f"<li><b>{escape(TASKS[name].title)}</b>: {marked(reason)}" for name, reason in left.items()
    )
    others = f"<h2>Left out</h2><ul>{others}</ul>" if others else ""
    details = "".join(_details(outcome) for outcome in outcomes)
    source = ", ".join(escape(str(item)) for item in data)
    write_text(
        path,
        f"{pages.opening(f'What {models[0]} knows')}"
        f"<h1>What <code>{escape(models[0])}</code> knows</h1><p>On {source}. {escape(CAUTION)}"
        f"{mean}{table}{details}{others}</main></body></html>\n",
    )


def keep(model: str, told: Mapping[str, Any]) -> Path | None:
    """Leave what was measured in the run folder that the model lies in, for the run's report.

    Of a task that was measured before, the new numbers count.

    Args:
        model: what was probed, by its name.
        told: from `document`.

    Returns:
        The file; None where the model is not a run's.

    Raises:
        DistilkitError: it cannot be written.
    """
    folder = locate(model)
    path = folder.parent / pages.PROBES
    if folder.name not in RESULTS or not (folder.parent / "run.json").is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged
        found = {}
    for task in told["tasks"]:
        found[task["task"]] = {"task": task, "models": told["models"], "data": told["data"]}
    found = {name: found[name] for name in TASKS if name in found}
    leftovers.tidy(path)
    write_text(path, json.dumps(found, ensure_ascii=False) + "\n")
    return path


def _details(outcome: Outcome) -> str:
    facts = "".join(
        f"<dt>{escape(name.replace('_', ' '))}<dd>{escape(_said(value))}"
        for name, value in outcome.facts.items()
    )
    chosen = "".join(
        f"<dt>{escape(system)}<dd>{'; '.join(escape(_choice(each)) for each in choices)}"
        for system, choices in outcome.chosen.items()
    )
    skipped = "".join(
        f"<li>{escape(item.path)}: {marked(item.reason)}"
        for item in outcome.skipped
        if item.kind != UNLABELLED
    )
    without = sum(item.kind == UNLABELLED for item in outcome.skipped)
    if without:
        skipped += f"<li>recordings without a label: {without}"
    listed = f"<h3>Not used</h3><ul>{skipped}</ul>" if skipped else ""
    return (
        f"<details><summary>{escape(TASKS[outcome.task].title)}</summary><dl>{facts}</dl>"
        f"<h3>Chosen on the development split</h3><dl>{chosen}</dl>{listed}</details>"
    )


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_said(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value))
    return str(value)


def _choice(chosen: Mapping[str, Any]) -> str:
    """What was chosen on one split: the rate, and the layers that weigh most."""
    parts = []
    for name, value in chosen.items():
        if name == "layers" and len(value) > 1:
            most = sorted(range(len(value)), key=lambda layer: -value[layer])[:3]
            listed = ", ".join(f"{layer} ({value[layer]:.0%})" for layer in most)
            parts.append(f"layers {listed}")
        elif name != "layers":
            parts.append(f"{name} {value:g}")
    return ", ".join(parts)
