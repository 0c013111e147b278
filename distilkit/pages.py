"""Pages that need nothing else: one look in light and dark, on phones and paper, and cells of numbers."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

LONGEST_NAME = 28  # letters of a model above its column
PROBES = "probes.json"  # in a run folder: what `distilkit probe` found of its model, by task

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
@media(max-width:48rem){.tasks thead{display:none}.tasks,.tasks tbody{display:block}
.tasks tr{display:grid;grid-template-columns:1fr 1fr}.tasks tr.first>*{border:0}
.tasks tr.first{border-top:1px solid var(--line)}.tasks tbody th{grid-column:1/-1}
.tasks tbody th:empty,.none{display:none}
.tasks td:nth-child(2){grid-column:1/-1;color:var(--soft)}.tasks th,.tasks td{white-space:normal}
td[data-of]::before{content:attr(data-of);display:block;color:var(--soft);font-size:.8em;
overflow-wrap:anywhere}}
@page{margin:14mm}@media print{.wide{overflow:visible}tr{break-inside:avoid}}
"""


def opening(title: str, style: str = STYLE, head: str = "") -> str:
    """A page up to its first heading.

    Args:
        title: plain text.
        style: CSS.
        head: more of the page's head, as HTML.
    """
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta name=viewport content="width=device-width,initial-scale=1">{head}'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>"
    )


def short(name: str) -> str:
    """A model's name that fits above a column: the end of a long path."""
    return name if len(name) <= LONGEST_NAME else f"…{name[-LONGEST_NAME:]}"


def marked(text: str) -> str:
    """Text with what stands in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


# --------------------------------------------------------------------------- what was kept: tasks


def shown(value: Mapping[str, float], percent: bool = True) -> str:
    """A value with its interval, as people read it.

    Args:
        value: `value`, `low` and `high`.
        percent: whether it is a share.
    """
    low, high = value["low"], value["high"]
    if percent:
        return f"{value['value']:.1%} ({100 * low:.0f} to {100 * high:.0f})"
    return f"{value['value']:.3f} ({low:.2f} to {high:.2f})"


def tasks(
    found: Sequence[Mapping[str, Any]], systems: Mapping[str, str], kept: bool = False
) -> str:
    """The table of tasks: a row for each metric, a column for each system.

    Args:
        found: the tasks of a document of `distilkit probe`.
        systems: keys of the tasks' values, and what stands above their columns.
        kept: whether there is a column for the share that was kept.
    """
    head = "".join(f"<th scope=col>{escape(short(name))}" for name in systems.values())
    rows = "".join(_task(task, systems, kept) for task in found)
    return (
        '<div class=wide role=region tabindex=0 aria-label="Tasks, a table"><table class=tasks>'
        "<thead><tr><th scope=col>task<th scope=col>metric"
        f"{head}{'<th scope=col>kept' if kept else ''}</thead><tbody>{rows}</tbody></table></div>"
    )


def _task(task: Mapping[str, Any], systems: Mapping[str, str], kept: bool) -> str:
    lines = []
    for place, metric in enumerate(task["metrics"]):
        title = escape(task["title"]) if not place else ""
        better = metric["higher_is_better"]
        cells = "".join(
            _cell(name, metric, task["values"][system][metric["name"]])
            if system in task["values"]
            else "<td>"
            for system, name in systems.items()
        )
        share = ""
        if kept and task["kept"] is not None:
            share = f"<td data-of=kept>{_number(task['kept'])}" if not place else "<td class=none>"
        lines.append(
            f"<tr{' class=first' if not place else ''}><th scope=row>{title}"
            f'<td title="{"higher" if better else "lower"} is better">{escape(metric["name"])} '
            f"{'↑' if better else '↓'}{cells}{share}"
        )
    return "".join(lines)


def _number(value: Mapping[str, float], percent: bool = True) -> str:
    """A value, and its interval small beside it."""
    number, _, rest = shown(value, percent).partition(" ")
    return f"<span>{number} <small>{rest.strip('()')}</small></span>"


def _cell(system: str, metric: Mapping[str, Any], value: Mapping[str, float]) -> str:
    """A number with a bar below it as long as what is right, and where the interval lies."""
    good, *ends = (
        100 * min(1.0, max(0.0, end if metric["higher_is_better"] else 1 - end))
        for end in (value["value"], value["low"], value["high"])
    )
    low, high = sorted(ends)
    return (
        f'<td data-of="{escape(short(system))}">{_number(value, metric["percent"])}'
        f'<svg viewBox="0 0 100 5" preserveAspectRatio=none aria-hidden=true>'
        f"<rect class=back width=100 height=5 /><rect class=bar width={good:.1f} height=5 />"
        f"<rect class=span x={low:.1f} y=2 width={max(0.5, high - low):.1f} height=1 /></svg>"
    )
