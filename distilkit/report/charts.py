"""Charts as HTML and SVG: the picture stretches, its words do not, so that they stay legible on a phone."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from html import escape

COLOURS = 6  # of the style; further lines take them again, dashed
LOG_FROM = 30.0  # greatest over least value from which on a scale is logarithmic
WIDE, HIGH = 1000, 400  # units of a picture, whatever its size on the screen
TICKS = 5
MOST_DOTS = 60
END = 0.94  # of the width, from which on a label would reach beyond it
Format = Callable[[float], str]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]  # (step, value), ascending
    band: Sequence[tuple[float, float]] = ()  # (least, greatest) at each point
    colour: int = 0
    dots: bool = False  # measured now and then: a dot at each point, where there is room
    newest: float | None = None  # for the legend; the last point's value when None
    listed: bool = True  # in the legend


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What a chart shows."""

    title: str
    lines: Sequence[Line]
    unit: str = ""
    note: str = ""
    form: Format = field(default_factory=lambda: number)
    zero: bool = False  # whether the scale begins at 0
    wide: bool = False
    mark: tuple[float, str] | None = None  # a step and what it is


def number(value: float) -> str:
    """A number as people read it, with four digits."""
    size = abs(value)
    if value and (size >= 1e6 or size < 1e-3):
        digits, power = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


def percent(value: float) -> str:
    """A share as per cent."""
    return f"{value:.1%}"


def ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Round numbers that span a range, about `count` of them."""
    if high <= low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(m for m in (1, 2, 5, 10, 20) if (high - low) / (m * step) <= count)
    first = math.ceil(low / step - 1e-9)
    found = []
    while first * step <= high + 1e-9 * step:
        found.append(first * step)
        first += 1
    return found


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, and 2 and 5 between them where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(powers) > 4 else (1, 3) if len(powers) > 3 else (1, 2, 5)
    every = math.ceil(len(powers) / 7)
    found = [factor * 10.0**power for power in powers[::every] for factor in factors]
    return [value for value in found if low * 0.999 <= value <= high * 1.001]


@dataclass(frozen=True)
class _Scale:
    """From values to shares of the height."""

    low: float
    high: float
    log: bool
    ticks: list[float]

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        return (value - low) / (high - low)


def _scale(chart: Chart) -> _Scale:
    values = [value for line in chart.lines for _, value in line.points]
    values += [value for line in chart.lines for ends in line.band for value in ends]
    low, high = min(values), max(values)
    zero = chart.zero or chart.form is percent
    if low > 0 and high / low > LOG_FROM and not zero:
        return _Scale(low / 1.1, high * 1.1, True, log_ticks(low / 1.1, high * 1.1))
    low = min(low, 0.0) if zero else low
    if high == low:
        low, high = (low - 0.5 * abs(low), high + 0.5 * abs(high)) if low else (0.0, 1.0)
    room = 0.05 * (high - low)
    low = low if zero and low == 0 else low - room
    return _Scale(low, high + room, False, ticks(low, high + room))


def draw(chart: Chart, last: int) -> str:
    """A chart as HTML: title, legend with the newest values, picture, and what a cursor reads.

    Lines without points are left out; without any, so is the chart.

    Args:
        chart: what to draw.
        last: the step that it ends at; it begins at step 1.
    """
    lines = [line for line in chart.lines if line.points]
    if not lines:
        return ""
    chart = replace(chart, lines=lines)
    scale = _scale(chart)

    def across(step: float) -> float:
        return (step - 1) / (last - 1) if last > 1 else 0.5

    grid = "".join(f"<path class=grid d='M0 {_y(scale(tick))}H{WIDE}'/>" for tick in scale.ticks)
    drawn = "".join(_drawn(line, place, across, scale) for place, line in enumerate(lines))
    mark = ""
    if chart.mark:
        mark = f"<path class=mark d='M{_x(across(chart.mark[0]))} 0V{HIGH}'/>"
    labels = _labels(scale.ticks, chart.form)
    heights = "".join(
        f'<span style="bottom:{100 * scale(tick):.1f}%">{escape(text)}</span>'
        for tick, text in zip(scale.ticks, labels, strict=True)
    )
    widths = "".join(_below(across(tick), f"{tick:,.0f}") for tick in _steps(last))
    unit = f" <small>{escape(chart.unit)}</small>" if chart.unit else ""
    log = " <small>logarithmic</small>" if scale.log else ""
    note = f"<p class=note>{chart.note}</p>" if chart.note else ""
    return (
        f'<figure class="chart{" full" if chart.wide else ""}"><figcaption><h3>{escape(chart.title)}'
        f"{unit}{log}</h3>{_legend(chart, last)}</figcaption>"
        f'<div class=frame style="--y:{max(map(len, labels))}ch">'
        f"<div class=y aria-hidden=true>{heights}</div>"
        f'<div class=plot><svg viewBox="0 0 {WIDE} {HIGH}" preserveAspectRatio=none role=img '
        f'aria-label="{escape(_spoken(chart, last))}">{grid}{mark}{drawn}</svg></div>'
        f"<div class=x aria-hidden=true>{widths}</div></div>{note}{_data(chart, last)}</figure>"
    )


def _x(share: float) -> str:
    return f"{WIDE * share:.1f}".removesuffix(".0")


def _y(share: float) -> str:
    return f"{HIGH * (1 - share):.1f}".removesuffix(".0")


def _drawn(line: Line, place: int, across: Callable[[float], float], scale: _Scale) -> str:
    """A line, the band between its least and greatest values, its dots."""
    xs = [_x(across(step)) for step, _ in line.points]
    ys = [_y(scale(value)) for _, value in line.points]
    style = f"l{line.colour % COLOURS}" + (" dashed" if line.colour >= COLOURS else "")
    path = "M" + "L".join(f"{x} {y}" for x, y in zip(xs, ys, strict=True))
    made = ""
    if any(low < high for low, high in line.band):
        tops = [f"{x} {_y(scale(high))}" for x, (_, high) in zip(xs, line.band, strict=True)]
        feet = [f"{x} {_y(scale(low))}" for x, (low, _) in zip(xs, line.band, strict=True)]
        made += f"<path class='band {style}' d='M{'L'.join([*tops, *reversed(feet)])}Z'/>"
    if len(xs) > 1:
        made += f"<path class='line {style}{' thin' if line.dots else ''}' d='{path}'/>"
    if (line.dots and len(xs) <= MOST_DOTS) or len(xs) == 1:
        dots = "".join(f"M{x} {y}h0" for x, y in zip(xs, ys, strict=True))
        made += f"<path class='dots {style}' d='{dots}'/>"
    return made


def _labels(scale: Sequence[float], form: Format = number) -> list[str]:
    """Labels of an axis, all with as many decimals as its steps need."""
    if form is percent:
        return [f"{text}%" for text in _labels([100 * tick for tick in scale])]
    even = len(scale) > 2 and math.isclose(scale[1] - scale[0], scale[2] - scale[1])
    size = max(map(abs, scale))
    if not even or not 1e-2 <= size < 1e6:
        return [form(tick) for tick in scale]
    decimals = max(0, -math.floor(math.log10(scale[1] - scale[0]) + 1e-9))
    return [f"{tick:,.{decimals}f}" for tick in scale]


def _below(share: float, text: str) -> str:
    """A label below a picture; the last one ends where the picture does."""
    end = " class=end" if share > END else ""
    return f'<span{end} style="left:{100 * share:.1f}%">{text}</span>'


def _steps(last: int) -> list[float]:
    """Steps that stand below a chart."""
    return [tick for tick in ticks(1, last) if tick == round(tick)] or [1]


def _legend(chart: Chart, last: int) -> str:
    """What each line is, and its newest value; a script puts there what the cursor is at."""
    at = "".join(
        f"<li><i class='l{line.colour % COLOURS}{' dashed' if line.colour >= COLOURS else ''}"
        f"{' dot' if line.dots else ''}'></i>{escape(line.name)} "
        f"<b>{escape(chart.form(line.points[-1][1] if line.newest is None else line.newest))}</b>"
        for line in chart.lines
        if line.listed
    )
    return f"<ul class=legend><li class=at>step <b>{last:,}</b>{at}</ul>"


def _spoken(chart: Chart, last: int) -> str:
    """A chart in words."""
    said = [f"{chart.title}, steps 1 to {last:,}"]
    for line in chart.lines:
        values = [value for _, value in line.points]
        least, most = (chart.form(end(values)) for end in (min, max))
        ends = " to ".join(chart.form(value) for value in (values[0], values[-1]))
        said.append(f"{line.name}: from {ends}, least {least}, greatest {most}")
    return "; ".join(said)


def _data(chart: Chart, last: int) -> str:
    """The numbers for the script, which page and picture can do without."""
    places: list[list[float]] = []
    rows = []
    for line in chart.lines:
        if not line.listed:
            continue
        steps = [round(step, 1) for step, _ in line.points]
        if steps not in places:
            places.append(steps)
        texts = [chart.form(value) for _, value in line.points]
        if any(low < high for low, high in line.band):
            texts = [
                f"{text} ({chart.form(low)} to {chart.form(high)})" if low < high else text
                for text, (low, high) in zip(texts, line.band, strict=True)
            ]
        rows.append([places.index(steps), texts])
    data = json.dumps({"last": last, "steps": places, "lines": rows}, separators=(",", ":"))
    return f"<script type=application/json>{data.replace('<', chr(92) + 'u003c')}</script>"


# ------------------------------------------------------------------------------------- histograms


def histogram(
    title: str, edges: Sequence[float], counts: Sequence[tuple[str, Sequence[int]]], unit: str
) -> str:
    """Stacked bars.

    Args:
        title: what is counted.
        edges: of the bars, one more than bars.
        counts: a name and a count for each bar, by kind; stacked from below.
        unit: of the edges.
    """
    totals = [sum(kind) for kind in zip(*(values for _, values in counts), strict=True)]
    most, span = max(totals), edges[-1] - edges[0]
    scale = _Scale(0.0, 1.08 * most, False, [t for t in ticks(0, 1.08 * most) if t == round(t)])
    bars, below = "", [0] * len(totals)
    for place, (_, values) in enumerate(counts):
        for bar, value in enumerate(values):
            left, right = (WIDE * (edges[bar + i] - edges[0]) / span for i in (0, 1))
            top, foot = scale(below[bar] + value), scale(below[bar])
            below[bar] += value
            if value:
                bars += (
                    f"<path class='bar{place}' d='M{left + 1.5:.1f} {_y(foot)}V{_y(top)}"
                    f"H{right - 1.5:.1f}V{_y(foot)}Z'/>"
                )
    grid = "".join(f"<path class=grid d='M0 {_y(scale(tick))}H{WIDE}'/>" for tick in scale.ticks)
    labels = [f"{tick:,.0f}" for tick in scale.ticks]
    heights = "".join(
        f'<span style="bottom:{100 * scale(tick):.1f}%">{text}</span>'
        for tick, text in zip(scale.ticks, labels, strict=True)
    )
    widths = "".join(
        _below((tick - edges[0]) / span, text)
        for tick, text in zip(
            ticks(edges[0], edges[-1]), _labels(ticks(edges[0], edges[-1])), strict=True
        )
    )
    legend = "".join(
        f"<li><i class='bar{place}'></i>{escape(name)} <b>{sum(values):,}</b>"
        for place, (name, values) in enumerate(counts)
    )
    fullest = totals.index(most)
    spoken = (
        f"{title}: {sum(totals):,} from {number(edges[0])} to {number(edges[-1])} {unit}; most, "
        f"{most:,}, from {number(edges[fullest])} to {number(edges[fullest + 1])} {unit}"
    )
    return (
        f"<figure class=chart><figcaption><h3>{escape(title)} <small>{escape(unit)}</small></h3>"
        f"<ul class=legend>{legend}</ul></figcaption>"
        f'<div class=frame style="--y:{max(map(len, labels))}ch">'
        f"<div class=y aria-hidden=true>{heights}</div>"
        f'<div class=plot><svg viewBox="0 0 {WIDE} {HIGH}" preserveAspectRatio=none role=img '
        f'aria-label="{escape(spoken)}">{grid}{bars}</svg></div>'
        f"<div class=x aria-hidden=true>{widths}</div></div></figure>"
    )
