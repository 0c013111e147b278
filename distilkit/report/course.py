"""What was trained, and how it went: the sections that need nothing but the run's own files."""

import shlex
from html import escape

from distilkit import config
from distilkit.audio import clock
from distilkit.cards import noise_text, objective_text, training_text
from distilkit.pages import marked
from distilkit.report.charts import Chart, Line, draw, histogram, number, percent
from distilkit.report.history import Curve, coarser
from distilkit.report.told import Told, counted, listed, millions, named, table

TERMS = {  # of the objective's parts: title, unit
    "l1": ("L1 distance", "mean over a vector's numbers"),
    "l2": ("L2 distance", "mean square over a vector's numbers"),
    "cosine": ("Cosine term", ""),
    "entropy": ("Cross-entropy", "nats a frame"),
    "right": ("Units told right", "share of frames"),
}
SHARES = ("right", "wer", "cer", "empty", "blank")  # shown as per cent
MOST_CHECKS = 40  # validations in the table
FINE, COARSE = 130, 50  # points of a line that is alone, and of one of several


# ----------------------------------------------------------------------------------- what it was


def trained(told: Told) -> str:
    """What was trained on what."""
    rows = _distilled(told) if told.kind == "distill" else _tuned(told)
    facts = told.facts
    held = "nothing" if not facts["valid_seconds"] else clock(facts["valid_seconds"])
    if facts.get("valid_speakers"):
        held += f", {counted(facts['valid_speakers'], 'speaker')}"
    spoken = counted(facts["recordings"], "recording")
    if facts.get("train_speakers"):
        spoken += f", {counted(facts['train_speakers'], 'speaker')} to train on"
    inputs = facts.get("audio") or facts.get("data") or []
    rows += [
        ("audio", f"{clock(facts['train_seconds'])} to train, of {spoken}"),
        ("held out", held),
        ("from", "<br>".join(named(item) for item in inputs)),
    ]
    return listed(rows)


def _distilled(told: Told) -> list[tuple[str, str]]:
    facts, recipe = told.facts, told.recipe
    teacher, student = facts["teacher"], facts["student"]
    rows = [("teacher", "none: trained from scratch on units of MFCC")]
    if teacher:
        size = f"{escape(teacher['format'])}, {teacher['layers']} layers"
        rows = [
            ("teacher", f"{named(teacher['name'])}, {size}, {millions(teacher['parameters'])}"),
            *[("", marked(note)) for note in teacher["notes"]],
        ]
    form = f"{student['layers']} layers, {millions(student['parameters'])} parameters"
    if student["from"]:
        form += f", goes on from {named(student['from']['name'])}"
    elif isinstance(recipe, config.Recipe):
        form += f", architecture <code>{escape(recipe.student.architecture)}</code>"
    rows += [("student", form), ("start", marked(student["begins"]))]
    if isinstance(recipe, config.Recipe):
        rows.append(("predicts", marked(objective_text(recipe.objective))))
        if recipe.noise.probability:
            rows.append(("noise", escape(noise_text(recipe.noise))))
    return rows


def _tuned(told: Told) -> list[tuple[str, str]]:
    facts, base, recipe = told.facts, told.facts["base"], told.recipe
    tokens = facts["tokenizer"]["tokens"]
    rows = [
        (
            "model",
            f"{named(base['name'])}, {escape(base['format'])}, {millions(base['parameters'])}",
        ),
        *[("", marked(note)) for note in base["notes"]],
        ("head", f"{tokens} tokens, {escape(facts['head'])}"),
    ]
    if isinstance(recipe, config.CtcRecipe):
        share = f"{millions(facts['trained'])} of {millions(facts['parameters'])} parameters"
        rows.append(("trained", f"{escape(training_text(recipe))}: {share}"))
        if recipe.noise.probability:
            rows.append(("noise", escape(noise_text(recipe.noise))))
    text = facts["text"]
    rows.append(
        ("text", f"{text['words']:,} words of {counted(len(text['alphabet']), 'character')}")
    )
    return rows


# ------------------------------------------------------------------------------------- the curves


def curves(told: Told) -> str:
    """Losses, errors, learning rate and gradients by optimizer step."""
    history = told.history
    if not history.step:
        return "<p>No optimizer step has been logged yet."
    clip = told.recipe.train.clip_norm if told.recipe else 0.0
    charts = [_loss(told), *_errors(told), *_parts(told)]
    rate, norm = history.curves.get("learning_rate"), history.curves.get("grad_norm")
    if rate:
        line = Line(name="schedule", points=_points(rate))
        charts.append(Chart(title="Learning rate", lines=[line], zero=True))
    if norm:
        lines = [_trained("before clipping", norm)]
        if clip and max(part.high for part in norm.stretches) > clip / 2:
            level = [(1.0, clip), (float(history.step), clip)]
            lines.append(Line(name="clipped at", points=level, colour=7))
        charts.append(Chart(title="Gradient norm", lines=lines))
    return f"<div class=charts>{_drawn(charts, told)}</div>{_checks(told)}{_trouble(told)}"


def _drawn(charts: list[Chart], told: Told) -> str:
    return "".join(draw(chart, told.history.step) for chart in charts)


def _points(curve: Curve, most: int = FINE) -> list[tuple[float, float]]:
    return [(part.middle, part.mean) for part in coarser(curve.stretches, most)]


def _trained(name: str, curve: Curve, colour: int = 0) -> Line:
    """A curve of training, with all that lay between its least and greatest values."""
    parts = coarser(curve.stretches, FINE)
    return Line(
        name=name,
        points=[(part.middle, part.mean) for part in parts],
        band=[(part.low, part.high) for part in parts],
        colour=colour,
    )


def _held(name: str, curve: Curve, colour: int) -> Line:
    """A curve of validations."""
    newest = curve.last[1] if curve.last else None
    return Line(name=name, points=_points(curve), colour=colour, dots=True, newest=newest)


def _loss(told: Told) -> Chart:
    lines, note = [], ""
    if curve := told.history.curves.get("loss"):
        lines.append(_trained("training", curve))
        if each := max(part.count for part in coarser(curve.stretches, FINE)) - 1:
            note = (
                f"Means over {each + 1:,} steps; the band reaches from the least to the greatest."
            )
    if check := told.history.checks.get("loss"):
        lines.append(_held("held out", check, 1))
    unit = "CTC, nats a frame" if told.kind == "finetune-ctc" else "mean a frame"
    return Chart(title="Loss", lines=lines, unit=unit, wide=True, note=note)


def _errors(told: Told) -> list[Chart]:
    """Of recognisers: words and characters wrong, and what shows that it says nothing."""
    checks = told.history.checks
    if "wer" not in checks:
        return []
    best = told.history.best
    wrong = [
        _held(name, checks[key], colour)
        for colour, (key, name) in enumerate((("wer", "words"), ("cer", "characters")))
    ]
    silent = [
        _held(name, checks[key], colour)
        for colour, (key, name) in enumerate(
            (("empty", "transcripts that are empty"), ("blank", "frames that are blank"))
        )
        if key in checks
    ]
    note = f"Dashed: step {best['step']:,}, the best, whose weights are kept."
    return [
        Chart(
            title="Errors on what is held out",
            lines=wrong,
            form=percent,
            zero=True,
            note=note,
            mark=(best["step"], "best"),
        ),
        Chart(title="What it leaves unsaid", lines=silent, form=percent, zero=True),
    ]


def _parts(told: Told) -> list[Chart]:
    """A chart for each term of the objective, a line for each layer."""
    history, found = told.history, dict[str, list[Line]]()
    for name, curve in history.curves.items():
        term, _, target = name.partition("_")
        if term not in TERMS or not target:
            continue
        lines = found.setdefault(term, [])
        colour = sum(not line.dots for line in lines)
        called = f"layer {target}" if target.isdigit() else target.upper()
        lines.append(Line(name=called, points=_points(curve, COARSE), colour=colour))
        if check := history.checks.get(name):
            lines.append(_held(f"{called}, held out", check, colour))
    charts = []
    for term, lines in found.items():
        title, unit = TERMS[term]
        if term == "cosine" and isinstance(told.recipe, config.Recipe):
            raw = told.recipe.objective.cosine == "raw"
            unit = "1 − cos" if raw else "−log σ(cos)"
        form = percent if term in SHARES else number
        charts.append(Chart(title=title, lines=lines, unit=unit, form=form))
    return charts


def _checks(told: Told) -> str:
    """All validations as numbers."""
    checks = told.history.checks
    if not checks:
        return "<p class=soft>Nothing is held out, or it was not validated yet."
    names = list(checks)
    by_step = {
        name: {part.last: part.mean for part in curve.stretches} for name, curve in checks.items()
    }
    steps = list(by_step[names[0]])
    shown = steps if len(steps) <= MOST_CHECKS else _spread(steps)
    rows = [
        [f"{step:,}", *(_value(name, by_step[name].get(step)) for name in names)] for step in shown
    ]
    left = (
        "" if shown is steps else f", {len(shown)} of them; all are in <code>metrics.jsonl</code>"
    )
    titles = [_title(name) for name in names]
    return (
        f"<details><summary>{counted(len(steps), 'validation')} as numbers{left}</summary>"
        f"{table(['step', *titles], rows, 'Validations', numbers=True)}</details>"
    )


def _spread(steps: list[int]) -> list[int]:
    places = {round(i * (len(steps) - 1) / (MOST_CHECKS - 1)) for i in range(MOST_CHECKS)}
    return [steps[place] for place in sorted(places)]


def _value(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return percent(value) if name.partition("_")[0] in SHARES else number(value)


def _title(name: str) -> str:
    """`l1_4` as `L1, layer 4`."""
    term, _, target = name.partition("_")
    known = {"wer": "words wrong", "cer": "characters wrong", "l1": "L1", "l2": "L2"}
    known |= {"empty": "empty transcripts", "blank": "blank frames"}
    if not target:
        return escape(known.get(term, term))
    return escape(f"{known.get(term, term)}, {'layer ' * target.isdigit()}{target}")


def _trouble(told: Told) -> str:
    """Steps that were left out, and why."""
    history = told.history
    if not history.left_out:
        return ""
    items = "".join(f"<li>Step {step:,}: {marked(text)}" for step, text in history.broken)
    overflows = history.left_out - len(history.broken)
    if overflows:
        items += f"<li>{counted(overflows, 'step')} more, mostly where fp16 overflowed"
    said = f"<strong>{counted(history.left_out, 'step')} of {history.step:,} left out</strong>"
    return f"<div class=warning><p>{said}: they changed no weight.<ul>{items}</ul></div>"


# ---------------------------------------------------------------------------- plan against reality


def reality(told: Told) -> str:
    """What the first steps promised, what was taken, and what was decided why."""
    history, plan = told.history, told.facts["plan"]
    choices = [
        [escape(c["name"]), escape(c["value"]), escape(c["reason"])] for c in plan["choices"]
    ]
    decided = table(["setting", "value", "why"], choices, "What was decided")
    if not history.timed:
        return decided
    each, early = history.seconds / history.timed, history.early_seconds
    promised = sum(early) / len(early) if early else None
    steps = f"{history.timed:,}" + (f" of {told.steps:,}" if history.timed != told.steps else "")

    def said(text: str) -> str:
        return text if promised else "–"

    said_each = f"{promised:.3g} s" if promised else "–"
    rows = [
        ["optimizer steps", f"{told.steps:,}", steps],
        ["time a step", said_each, f"{each:.3g} s"],
        [
            "time of these steps",
            clock(promised * history.timed) if promised else "–",
            clock(history.seconds),
        ],
        ["peak memory", said(f"{history.early_gib:.2f} GiB"), f"{history.peak_gib:.2f} GiB"],
        ["audio a second", "–", f"{history.audio_seconds / max(history.seconds, 1e-9):.1f} s"],
        ["share of time waiting", "–", f"{history.waited / max(history.seconds, 1e-9):.1%}"],
    ]
    note = (
        "The plan's time and memory are those of the first steps without the very first, "
        "which is what <code>--plan</code> measures."
    )
    if history.step < told.steps and told.finished:
        note += " The run ended early: validations no longer got better."
    where = "GPU" if plan["device"] != "cpu" else "process"
    curves = [
        Chart(
            title="Time a step",
            unit="s",
            zero=True,
            lines=[_trained("seconds", history.curves["seconds"])],
        ),
        Chart(
            title="Peak memory so far",
            unit=f"GiB, of the {where}",
            zero=True,
            lines=[Line(name="GiB", points=_points(history.curves["peak_gib"]))],
        ),
    ]
    return (
        f"{table(['', 'plan', 'reality'], rows, 'Plan against reality', numbers=True)}"
        f"<p class=soft>{note}<div class=charts>{_drawn(curves, told)}</div>"
        f"<h3>What was decided, and why</h3>{decided}"
    )


# ------------------------------------------------------------------------------------------ audio


def audio(told: Told) -> str:
    """Lengths, rates and kinds of files, and what was left out."""
    found = told.sources
    if not found.windows:
        return "<p>The list of windows, <code>audio.jsonl.gz</code>, is missing or damaged."
    edges, bars = found.bars()
    named_bars = [("to train", bars["train"])]
    if sum(bars["valid"]):
        named_bars.append(("held out", bars["valid"]))
    what = "Utterances" if told.kind == "finetune-ctc" else "Windows"
    rates = [
        [f"{rate / 1000:g} kHz" if rate else "not noted", f"{count:,}"]
        for rate, count in found.rates.most_common()
    ]
    suffixes = [[escape(name), f"{count:,}"] for name, count in found.suffixes.most_common(8)]
    return (
        f"<div class=charts>{histogram(f'{what} by length', edges, named_bars, 's')}<div class=pair>"
        f"{table(['files at', 'number'], rates, 'Rates of the files', numbers=True)}"
        f"{table(['kind', 'files'], suffixes, 'Kinds of files', numbers=True)}</div></div>"
        f"{_left_out(told)}"
    )


def _left_out(told: Told) -> str:
    found = told.sources
    if not found.kinds:
        return "<p>Nothing was left out."
    total = sum(count for count, _ in found.kinds.values())
    made = f"<h3>Left out: {total:,}</h3><p class=soft>All of it is in <code>skipped.tsv</code>."
    for kind, (count, seconds) in sorted(found.kinds.items(), key=lambda item: -item[1][0]):
        items = "".join(
            f"<li>{named(path)}<span>{marked(reason)}</span>"
            for path, reason in found.left_out[kind]
        )
        more = count - len(found.left_out[kind])
        items += f"<li>and {more:,} more" if more else ""
        lasting = f", {clock(seconds)}" if seconds else ""
        made += (
            f"<details><summary>{escape(kind)} <small>{count:,}{lasting}</small></summary>"
            f"<ul class=files>{items}</ul></details>"
        )
    return made


# -------------------------------------------------------------------------------------- reproduce


def reproduce(told: Told) -> str:
    """The command that does the same again, versions, and the recipe."""
    facts = told.facts
    versions = {"distilkit": facts["distilkit"], **facts["versions"]}
    chips = "".join(f"<li>{escape(name)} <b>{escape(v)}</b>" for name, v in versions.items())
    try:
        text = (told.folder / "recipe.toml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        text = "recipe.toml is missing or damaged"
    seed = f" Seed {told.recipe.train.seed}." if told.recipe else ""
    return (
        f"<pre><code>{escape(shlex.join(command(told)))}</code></pre>"
        "<p class=soft>From the folder that the run was started in, with the same recordings and "
        f"model.{seed} Equal runs give equal weights on a CPU, with these versions and as many threads."
        f"<ul class=chips>{chips}</ul><details><summary>The recipe, every default filled in</summary>"
        f"<pre><code>{escape(text)}</code></pre></details>"
    )


def command(told: Told) -> list[str]:
    """What to type for a run like this one, in another folder."""
    facts, folder = told.facts, told.folder
    again = ["--recipe", str(folder / "recipe.toml"), "--out", f"{folder}-again"]
    if told.kind == "distill":
        began = facts["student"]["from"]
        student = ["--student", began["name"]] if began else []
        teacher = facts["teacher"]["name"] if facts["teacher"] else "none"
        return ["distilkit", "distill", *facts["audio"], "--teacher", teacher, *student, *again]
    model = ["--tokenizer", str(folder / "tokenizer"), "--model", facts["base"]["name"]]
    rank = told.recipe.lora.rank if isinstance(told.recipe, config.CtcRecipe) else 0
    merged = ["--lora", "--rank", str(rank), "--merge"] if facts["merge"] and rank else []
    return ["distilkit", "finetune-ctc", *facts["data"], *model, *merged, *again]
