"""What was measured, as one document and as one page that needs nothing else."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from distilkit.probes import TASKS, Outcome, Value, retained
from distilkit.probes.examples import UNLABELLED
from distilkit.probes.metrics import Metric, score
from distilkit.runs import write_text

LONGEST_NAME = 28  # letters of a model above its column
CAUTION = (
    "A proxy: tasks as SUPERB has them, with smaller heads, on your own recordings. Intervals are the "
    "middle 95% when speakers (or clips, where nobody says who speaks) are drawn anew."
)


def shown(metric: Metric | None, value: Value) -> str:
    """A value with its interval, as people read it."""
    if metric is None or metric.percent:
        return f"{value.value:.1%} ({100 * value.low:.0f} to {100 * value.high:.0f})"
    return f"{value.value:.3f} ({value.low:.2f} to {value.high:.2f})"


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
                    {"name": metric.name, "higher_is_better": metric.higher}
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
    systems = list(outcomes[0].values)
    share = retained(outcomes)
    head = "".join(f"<th scope=col>{escape(_short(name))}" for name in systems)
    rows = "".join(_row(outcome, systems) for outcome in outcomes)
    kept = "<th scope=col>kept" if share is not None else ""
    mean = f"<p class=mean>Kept on average: <b>{share:.1%}</b>" if share is not None else ""
    others = "".join(
        f"<li><b>{escape(TASKS[name].title)}</b>: {_marked(reason)}"
        for name, reason in left.items()
    )
    others = f"<h2>Left out</h2><ul>{others}</ul>" if others else ""
    details = "".join(_details(outcome) for outcome in outcomes)
    source = ", ".join(escape(str(item)) for item in data)
    write_text(
        path,
        f"<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>What {escape(models[0])} knows</title><style>{STYLE}</style></head><body><main>"
        f"<h1>What <code>{escape(models[0])}</code> knows</h1><p>On {source}. {escape(CAUTION)}"
        f"{mean}<div class=wide><table><thead><tr><th scope=col>task<th scope=col>metric{head}{kept}"
        f"</thead><tbody>{rows}</tbody></table></div>{details}{others}</main></body></html>\n",
    )


def _row(outcome: Outcome, systems: Sequence[str]) -> str:
    lines = []
    for place, metric in enumerate(outcome.metrics):
        title = escape(TASKS[outcome.task].title) if not place else ""
        arrow = "higher is better" if metric.higher else "lower is better"
        cells = "".join(
            _cell(system, metric, outcome.values[system][metric.name]) for system in systems
        )
        share = ""
        if outcome.kept is not None:
            share = (
                f"<td data-of=kept>{_number(None, outcome.kept)}"
                if not place
                else "<td class=none>"
            )
        lines.append(
            f"<tr{' class=first' if not place else ''}><th scope=row>{title}"
            f'<td title="{arrow}">{escape(metric.name)} {"↑" if metric.higher else "↓"}{cells}{share}'
        )
    return "".join(lines)


def _short(name: str) -> str:
    """A model's name that fits above a column: the end of a long path."""
    return name if len(name) <= LONGEST_NAME else f"…{name[-LONGEST_NAME:]}"


def _marked(text: str) -> str:
    """Text with what stands in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _number(metric: Metric | None, value: Value) -> str:
    """A value, and its interval small beside it."""
    number, _, rest = shown(metric, value).partition(" ")
    return f"<span>{number} <small>{rest.strip('()')}</small></span>"


def _cell(system: str, metric: Metric, value: Value) -> str:
    """A number with a bar below it as long as what is right, and where the interval lies."""
    good = 100 * min(1.0, score(metric, value.value))
    ends = sorted(100 * min(1.0, score(metric, end)) for end in (value.low, value.high))
    return (
        f'<td data-of="{escape(_short(system))}">{_number(metric, value)}'
        f'<svg viewBox="0 0 100 5" preserveAspectRatio=none aria-hidden=true>'
        f"<rect class=back width=100 height=5 /><rect class=bar width={good:.1f} height=5 />"
        f"<rect class=span x={ends[0]:.1f} y=2 width={max(0.5, ends[1] - ends[0]):.1f} height=1 /></svg>"
    )


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
        f"<li>{escape(item.path)}: {_marked(item.reason)}"
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


STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--line:#d5dae0;--soft:#5a6470;
--bar:#7fb2e5;--back:#eef1f4;--mark:#1b4f86}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--paper:#14181d;--line:#333b44;--soft:#a3adb8;
--bar:#3f78b5;--back:#222931;--mark:#cfe3f7}}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:80rem;margin:auto;padding:1.5rem}
h1{font-size:1.5rem}h2{font-size:1.2rem}h3{font-size:1rem;margin-bottom:.2rem}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{padding:.3rem .6rem;text-align:left;vertical-align:top;white-space:nowrap;font-weight:normal}
thead th{border-bottom:2px solid var(--line);color:var(--soft)}
tr.first>*{border-top:1px solid var(--line)}tbody th{font-weight:600}
small{color:var(--soft);font-size:.8em}code{overflow-wrap:anywhere}
td svg{display:block;width:100%;min-width:6rem;height:5px}
.back{fill:var(--back)}.bar{fill:var(--bar)}.span{fill:var(--mark)}
details{margin:1rem 0;border-top:1px solid var(--line);padding-top:.5rem}
summary{cursor:pointer;font-weight:600}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;margin:.5rem 0}
dt{color:var(--soft)}dd{margin:0}li{overflow-wrap:anywhere}
@media(max-width:48rem){thead{display:none}table,tbody{display:block}
tr{display:grid;grid-template-columns:1fr 1fr}tr.first>*{border:0}
tr.first{border-top:1px solid var(--line)}tbody th{grid-column:1/-1}tbody th:empty,.none{display:none}
td:nth-child(2){grid-column:1/-1;color:var(--soft)}th,td{white-space:normal}
td[data-of]::before{content:attr(data-of);display:block;color:var(--soft);font-size:.8em;
overflow-wrap:anywhere}}
@media print{.wide{overflow:visible}}
"""
