"""The page: its head, its sections in order, its look, and a small script that it can do without."""

import base64
import hashlib
import time
from collections.abc import Callable
from html import escape

from distilkit import pages
from distilkit.audio import clock
from distilkit.report import course, results
from distilkit.report.charts import number
from distilkit.report.told import Told, counted, millions, named

SECTIONS: dict[str, tuple[str, Callable[[Told], str]]] = {  # those without content are left out
    "trained": ("What was trained on what", course.trained),
    "curves": ("Curves", course.curves),
    "errors": ("Errors", results.utterances),
    "kept": ("What was kept", results.kept),
    "layers": ("Likeness of layers", results.similarity),
    "speed": ("Size and speed", results.speed),
    "plan": ("Plan against reality", course.reality),
    "audio": ("Audio", course.audio),
    "again": ("The same again", course.reproduce),
}
STATES = {
    "training": "training",
    "trained": "trained",
    "stopped": "stopped",
    "": "not finished",
}


def render(told: Told) -> str:
    """The whole page."""
    made = {name: section(told) for name, (_, section) in SECTIONS.items()}
    made = {name: html for name, html in made.items() if html}
    links = "".join(f'<li><a href="#{name}">{SECTIONS[name][0]}</a>' for name in made)
    body = "".join(
        f"<section id={name} aria-labelledby={name}-title><h2 id={name}-title>{SECTIONS[name][0]}</h2>"
        f"{html}</section>"
        for name, html in made.items()
    )
    policy = (
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; media-src data:; "
        f"style-src 'unsafe-inline'; script-src '{_digest(SCRIPT)}'\">"
    )
    name = told.folder.resolve().name
    return (
        f"{pages.opening(f'{name}: report', pages.STYLE + STYLE, policy)}<header>{_head(told, name)}"
        f"</header><nav aria-label=Sections><ul>{links}</ul></nav>{body}<footer>{_foot(told)}</footer>"
        f"</main><script>{SCRIPT}</script></body></html>\n"
    )


def _digest(script: str) -> str:
    """What lets this script run, and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _head(told: Told, name: str) -> str:
    facts, history = told.facts, told.history
    what = "Distillation" if told.kind == "distill" else "Fine-tuning with CTC"
    audio, steps = clock(facts["train_seconds"]), counted(history.step, "step")
    if told.kind == "distill":
        student, teacher = facts["student"], facts["teacher"]
        of = f", distilled from {named(teacher['name'])}" if teacher else ", trained from scratch"
        story = f"A student of {millions(student['parameters'])} parameters{of}"
    else:
        story = f"A recogniser made of {named(facts['base']['name'])}"
    state = "finished" if told.finished else STATES[told.state]
    if not told.finished and history.step:
        state += f", step {history.step:,} of {told.steps:,}"
    tiles = "".join(
        f"<li><span>{label}</span><b>{value}</b><small>{more}</small>"
        for label, value, more in _tiles(told)
    )
    return (
        f"<p class=what>{what} <span class=state>{state}</span></p><h1>{named(name)}</h1>"
        f"<p class=story>{story} on {audio} of audio in {steps}.</p>{_left(told)}<ul class=tiles>{tiles}</ul>"
    )


def _left(told: Told) -> str:
    """Of a run that is not finished: how long it will take, and how to go on."""
    if told.finished:
        return ""
    history = told.history
    left = history.seconds / max(1, history.timed) * (told.steps - history.step)
    again = f"distilkit {told.kind} --resume --out {told.folder}"
    if told.state == "training":
        rest = f" About {clock(left)} of steps are left." if history.timed else ""
        return f"<p class=soft>Reload the page for a newer one.{rest}"
    if told.state == "trained":
        return "<p class=soft>The last step is done; the result is being written."
    return f"<p class=soft>If nothing works on it, this goes on: <code>{escape(again)}</code>"


def _tiles(told: Told) -> list[tuple[str, str, str]]:
    """The numbers that matter most: name, value, and what else is to be said; HTML."""
    history, facts = told.history, told.facts
    found = []
    if "wer" in history.checks:
        best = history.best["valid"]
        found.append(
            ("words wrong", f"{best['wer']:.1%}", f"held out, step {history.best['step']:,}")
        )
        found.append(("characters wrong", f"{best['cer']:.1%}", "at the same step"))
    elif history.newest:
        loss, first = history.newest["valid"]["loss"], history.first
        since = f"{number(first['valid']['loss'])} at step {first['step']:,}"
        found.append(("held-out loss", number(loss), since))
        right = [v for n, v in history.newest["valid"].items() if n.startswith("right_")]
        if right:
            share = f"{sum(right) / len(right):.1%}"
            found.append(("units told right", share, "held out, mean of layers"))
    elif history.curves.get("loss"):
        _, loss = history.curves["loss"].last or (0, 0.0)
        found.append(("training loss", number(loss), "of the last step"))
    size = facts["student"]["parameters"] if told.kind == "distill" else facts["parameters"]
    more = f"{facts['trained'] / size:.0%} of them trained" if told.kind != "distill" else ""
    if told.kind == "distill" and facts["teacher"]:
        more = f"{size / facts['teacher']['parameters']:.0%} of the teacher's"
    found.append(("parameters", millions(size), more))
    rows = told.measured.get("speed", {}).get("rows", [])
    if len(rows) > 1:
        found.append(("speed", f"{rows[-1]['ratio']:.1f} ×", "its teacher's, on this machine"))
    kept = [e["task"]["kept"]["value"] for e in told.probes.values() if e["task"]["kept"]]
    if kept:
        found.append(("kept", f"{sum(kept) / len(kept):.1%}", counted(len(kept), "task")))
    if history.timed:
        each = history.seconds / history.timed
        found.append(("time", clock(history.seconds), f"{each:.2g} s a step"))
        where = "of the GPU" if facts["plan"]["device"] != "cpu" else "of the process"
        found.append(("peak memory", f"{history.peak_gib:.1f} GiB", where))
    return found


def _foot(told: Told) -> str:
    when = time.strftime("%Y-%m-%d %H:%M")
    held = "names of files and folders"
    if told.kind == "finetune-ctc":
        held += " and transcripts"
        if told.sound and told.measured.get("utterances", {}).get("worst"):
            held += " and recordings"
    return (
        f"Written by distilkit {escape(told.facts['distilkit'])} on {when}. "
        f"This page holds {held} from the data: think before you pass it on."
    )


STYLE = """
:root{--c0:#0b6cb8;--c1:#c2500a;--c2:#1a7f5a;--c3:#a3458f;--c4:#8a6d00;--c5:#5b5fc7;
--grid:#e4e8ec;--card:#f6f8fa;--heat:#8fc1f0;--sub:#fbe3b3;--del:#f9cfc9;--ins:#cfe3fb}
@media(prefers-color-scheme:dark){:root{--c0:#5eb0f2;--c1:#f0935a;--c2:#4fc593;--c3:#e08fcb;
--c4:#d9b83a;--c5:#a3a6f5;--grid:#29313a;--card:#1b2128;--heat:#245b8f;--sub:#5c4712;--del:#6b2a24;
--ins:#1f4470}}
*{box-sizing:border-box}
main{max-width:72rem;padding:2rem 1.5rem 3rem}
h1{font-size:2.1rem;line-height:1.15;margin:.1rem 0 .4rem;overflow-wrap:anywhere;letter-spacing:-.01em}
h2{font-size:1.35rem;margin:0 0 .9rem}h3{font-size:1rem;margin:1.4rem 0 .3rem}
section{margin-top:2.6rem;padding-top:1.6rem;border-top:1px solid var(--line);scroll-margin-top:.5rem}
p{margin:.5rem 0 .8rem;max-width:46rem;overflow-wrap:anywhere}th bdi,summary,footer{overflow-wrap:anywhere}
.soft,.note{color:var(--soft);font-size:.9rem}
code{font-size:.92em}pre{background:var(--card);border:1px solid var(--line);border-radius:.5rem;
padding:.8rem 1rem;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.9rem;margin:.6rem 0}
a{color:var(--c0);text-underline-offset:.15em}
.what{color:var(--soft);margin:0;font-size:.95rem}
.state{display:inline-block;margin-left:.4rem;padding:.05rem .6rem;border:1px solid var(--line);
border-radius:1rem;color:var(--ink);background:var(--card);font-size:.85rem}
.story{font-size:1.1rem;margin:.2rem 0 1rem;max-width:48rem;overflow-wrap:anywhere}
.tiles,.legend,nav ul,.utterances,.files{list-style:none;margin:0;padding:0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.7rem;margin-top:1.2rem}
.tiles li{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.7rem .9rem}
.tiles span,.tiles small{display:block;color:var(--soft);font-size:.85rem;line-height:1.35}
.tiles b{display:block;font-size:1.45rem;line-height:1.35;font-weight:650;font-variant-numeric:tabular-nums}
.tiles b{white-space:nowrap}
nav{margin-top:1.4rem;font-size:.95rem}nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem}
nav a{display:inline-block;padding:.15rem 0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1.8rem 2.2rem;
align-items:start}
figure{margin:0;min-width:0}figure.full{grid-column:1/-1}
figcaption h3{margin:0 0 .15rem}figcaption small{font-weight:400}
.legend{display:flex;flex-wrap:wrap;gap:0 1rem;font-size:.85rem;line-height:1.6;color:var(--soft);
margin-bottom:.35rem}
.legend b{color:var(--ink);font-weight:600;font-variant-numeric:tabular-nums}
.legend i{display:inline-block;width:1.1rem;height:0;border-top:3px solid var(--c);vertical-align:.22em;
margin-right:.35rem;border-radius:2px}
.legend i.dashed{border-top-style:dashed}
.legend i.dot{width:.6rem;height:.6rem;border:0;border-radius:50%;background:var(--c);vertical-align:0}
.legend i[class^=bar]{width:.75rem;height:.75rem;border:0;vertical-align:-.06em;background:var(--c)}
.l0,.bar0{--c:var(--c0)}.l1,.bar1{--c:var(--c1)}.l2{--c:var(--c2)}.l3{--c:var(--c3)}.l4{--c:var(--c4)}
.l5{--c:var(--c5)}
.frame{display:grid;grid-template-columns:calc(var(--y) + .6rem) 1fr;margin-top:.5rem;font-size:.8rem;
color:var(--soft);font-variant-numeric:tabular-nums}
.y,.x,.plot{position:relative}.plot{height:13rem;border-bottom:1px solid var(--soft)}
.full .plot{height:17rem}
.y span{position:absolute;right:.5rem;transform:translateY(50%);white-space:nowrap;line-height:1}
.x{grid-column:2;height:1.5rem}
.x span{position:absolute;top:.3rem;transform:translateX(-50%);white-space:nowrap;line-height:1}
.x .end{transform:translateX(-100%)}
.plot svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.plot path{vector-effect:non-scaling-stroke;fill:none}
.grid{stroke:var(--grid);stroke-width:1}.mark{stroke:var(--soft);stroke-width:1.5;stroke-dasharray:5 4}
.line{stroke:var(--c);stroke-width:2;stroke-linejoin:round}.line.thin{stroke-width:1.5;opacity:.75}
.line.dashed{stroke-dasharray:6 4}
.plot .band{fill:var(--c);opacity:.2}.dots{stroke:var(--c);stroke-width:7;stroke-linecap:round}
.plot .bar0,.plot .bar1{fill:var(--c)}
.cursor{position:absolute;top:0;bottom:0;width:1px;background:var(--ink);pointer-events:none}
.note{margin:.2rem 0 0}
dl>div{display:grid;grid-template-columns:8rem 1fr;gap:1rem;grid-column:1/-1;padding:.15rem 0}
dd{overflow-wrap:anywhere}
th,td{font-size:.95rem}th:first-child,td:first-child{padding-left:0}
thead td{border-bottom:2px solid var(--line)}
.numbers{width:auto;min-width:min(100%,34rem)}.pair table{min-width:100%}
.numbers td,.numbers thead th:not(:first-child){text-align:right;
font-variant-numeric:tabular-nums}
tbody tr+tr>*{border-top:1px solid var(--grid)}.tasks tbody tr+tr>*{border-top:0}
.tasks tbody tr.first>*{border-top:1px solid var(--line)}
td,th{white-space:normal}.numbers td,.numbers thead th{white-space:nowrap}
.chips{list-style:none;margin:.8rem 0;padding:0;display:flex;flex-wrap:wrap;gap:.4rem}
.chips li{border:1px solid var(--line);border-radius:1rem;padding:.1rem .7rem;font-size:.9rem;
background:var(--card);color:var(--soft)}.chips b{color:var(--ink);font-weight:600}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,15rem),1fr));gap:1rem 2rem;
align-items:start}
.pair>*,.charts>*{min-width:0}
.warning{border-left:4px solid var(--c1);background:var(--card);padding:.3rem 1rem;margin:1.2rem 0}
.heat{width:auto;border-collapse:separate;border-spacing:2px;font-variant-numeric:tabular-nums}
.heat th,.heat td{padding:.35rem .45rem;text-align:center;border:0!important;white-space:nowrap}
.heat thead th,.heat thead td{border:0}.heat tbody td{border-radius:.25rem;
background:color-mix(in srgb,var(--heat) var(--w),var(--back))}
.heat td.best{outline:2px solid var(--mark);font-weight:700}
.utterances>li{border-top:1px solid var(--line);padding:.9rem 0}
.head{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 1rem;max-width:none;margin:0 0 .4rem;
font-size:.9rem}
.head bdi{font-weight:600;overflow-wrap:anywhere}.head span{color:var(--soft)}
.words{max-width:none;margin:.2rem 0 .5rem;line-height:1.35}
.word{display:inline-grid;padding:.1rem .3rem;margin:.1rem 0;border-radius:.3rem;max-width:100%}
.word span{overflow-wrap:anywhere}
.word span+span{color:var(--soft)}.word.sub{background:var(--sub)}.word.del{background:var(--del)}
.word.ins{background:var(--ins)}.sub span+span,.del span+span,.ins span+span{color:inherit}
.del span:first-child{text-decoration:line-through}.ins span+span{font-style:italic}
.sub span+span{text-decoration:underline}
.key .word{margin-right:.3rem;color:var(--ink)}
audio{width:100%;max-width:26rem;height:2.4rem;display:block}
.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.files li{padding:.3rem 0;border-top:1px solid var(--grid)}
.files span{display:block;color:var(--soft);font-size:.9rem}
details{margin:.8rem 0}summary{padding:.2rem 0}
footer{margin-top:3rem;padding-top:1rem;border-top:1px solid var(--line);color:var(--soft);font-size:.9rem}
:focus-visible{outline:2px solid var(--c0);outline-offset:2px}
@media(max-width:48rem){main{padding:1.2rem 1rem 2rem}h1{font-size:1.6rem}
.tiles{grid-template-columns:repeat(2,1fr);gap:.5rem}.tiles b{font-size:1.3rem}
.plot{height:11rem}.full .plot{height:13rem}dl>div{grid-template-columns:1fr;gap:0;padding:.3rem 0}
section{margin-top:1.8rem;padding-top:1.2rem}}
@media print{:root{color-scheme:light;--ink:#000;--paper:#fff}
body,.state,.tiles li,.band,.word,.heat td,.legend i{print-color-adjust:exact}
nav,audio{display:none}main{max-width:none;padding:0}figure,.tiles li,.utterances>li,table{break-inside:avoid}
h2,h3,h2+p{break-after:avoid}.charts{grid-template-columns:1fr 1fr}.tiles{grid-template-columns:repeat(3,1fr)}
dl>div{grid-template-columns:8rem 1fr}.plot{height:9rem}section{margin-top:1.2rem}}
"""

SCRIPT = """
for (const figure of document.querySelectorAll("figure.chart")) {
  const held = figure.querySelector("script");
  if (!held) continue;
  const {last, steps, lines} = JSON.parse(held.textContent);
  const plot = figure.querySelector(".plot"), shown = [...figure.querySelectorAll(".legend b")];
  const before = shown.map(value => value.textContent), cursor = document.createElement("div");
  cursor.className = "cursor";
  plot.addEventListener("pointermove", event => {
    const box = plot.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const step = 1 + share * (last - 1);
    shown[0].textContent = Math.round(step).toLocaleString("en");
    lines.forEach(([which, texts], line) => {
      let at = steps[which].findIndex(each => each > step);
      at = at < 0 ? texts.length - 1 : at - 1;
      shown[line + 1].textContent = at < 0 ? "–" : texts[at];
    });
    cursor.style.left = 100 * share + "%";
    plot.append(cursor);
  });
  plot.addEventListener("pointerleave", () => {
    shown.forEach((value, place) => value.textContent = before[place]);
    cursor.remove();
  });
}
"""
