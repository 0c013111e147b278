"""What came out of a run: errors with recordings to listen to, likeness of layers, tasks, size and speed."""

from collections.abc import Mapping
from html import escape
from typing import Any

from distilkit import pages
from distilkit.audio import clock
from distilkit.rates import pairs
from distilkit.report.told import Told, counted, millions, named, table

LONGEST = 60  # letters of an utterance's name
LEAST_SPAN = 0.2  # of likeness, that colours run over


def _measured(told: Told, name: str) -> tuple[Mapping[str, Any] | None, str]:
    """What was measured, or a sentence on why it was not."""
    found = told.measured.get(name)
    if found is None:
        again = f"distilkit report {told.folder}"
        said = f"This is measured when the run has ended, or by <code>{escape(again)}</code>."
        return None, f"<p class=soft>{said}" if told.finished else ""
    if problem := found.get("problem"):
        return None, f"<p class=soft>This could not be measured: {pages.marked(problem)}."
    if none := found.get("none"):
        return None, f"<p class=soft>{escape(none)}"
    return found, ""


# ----------------------------------------------------------------------------------------- errors


def utterances(told: Told) -> str:
    """Of a recogniser: its errors, and the worst utterances word by word, with their sound."""
    if told.kind != "finetune-ctc":
        return ""
    found, instead = _measured(told, "utterances")
    if found is None:
        return instead
    words, (rate, low, high) = found["words"], found["wer"]
    kinds = f"{words['substitutions']:,} substituted, {words['deletions']:,} missing"
    part = "all" if found["utterances"] == found["of"] else f"of {found['of']:,}"
    made = (
        f"<p>{counted(found['utterances'], 'held-out utterance')} ({part}), {clock(found['seconds'])}, "
        f"decoded greedily: <strong>{rate:.1%}</strong> of words wrong (95%: {low:.1%} to {high:.1%}), "
        f"{found['cer'][0]:.1%} of characters; {kinds}, {words['insertions']:,} added. "
        f"{counted(found['right'], 'utterance')} without an error."
    )
    if not found["worst"]:
        return made
    items = "".join(_utterance(item, told.sound) for item in found["worst"])
    made += (
        "<h3>The worst utterances</h3><p class=soft>What was said above, what was heard below: "
        "<span class=key><span class='word sub'>substituted</span> <span class='word del'>missing</span> "
        f"<span class='word ins'>added</span></span></p><ol class=utterances>{items}</ol>"
    )
    return f"{made}<div class=pair>{_confusions(found)}{_speakers(found)}</div>"


def _utterance(item: Mapping[str, Any], sound: bool) -> str:
    who = f", {named(item['speaker'])}" if item["speaker"] else ""
    player = ""
    if sound and item.get("sound"):
        label = escape(f"Recording {item['id']}")
        player = (
            f'<audio controls preload=metadata aria-label="{label}" '
            f'src="data:{escape(item["kind"])};base64,{escape(item["sound"])}"></audio>'
        )
    return (
        f"<li><p class=head>{named(item['id'], LONGEST)}<span>{item['errors']} of "
        f"{counted(item['words'], 'word')} wrong, {item['seconds']:.1f} s{who}</span></p>"
        f"{alignment(item['said'], item['heard'])}{player}"
    )


def alignment(said: str, heard: str) -> str:
    """Both texts, word above word, as HTML; those who do not see it hear one after the other."""
    cells = "".join(_word(*pair) for pair in pairs(said, heard))
    spoken = f"said: {said}; heard: {heard or 'nothing'}"
    return (
        f"<p class=unseen dir=auto>{escape(spoken)}</p>"
        f"<p class=words dir=auto aria-hidden=true>{cells}</p>"
    )


def _word(said: str, heard: str) -> str:
    kind = "same" if said == heard else "ins" if not said else "del" if not heard else "sub"
    return (
        f"<span class='word {kind}'><span>{escape(said) or '·'}</span>"
        f"<span>{escape(heard) or '·'}</span></span> "
    )


def _confusions(found: Mapping[str, Any]) -> str:
    rows = [
        [f"{named(said) if said else '·'}", f"{named(heard) if heard else '·'}", f"{count:,}"]
        for said, heard, count in found["confusions"]
        if count > 1
    ]
    made = table(["said", "heard", "times"], rows, "Words heard as others")
    return f"<div><h3>Words heard as others, twice or more</h3>{made}</div>" if rows else ""


def _speakers(found: Mapping[str, Any]) -> str:
    rows = [
        [named(name, LONGEST), f"{errors / max(1, words):.1%}", f"{words:,}"]
        for name, errors, words in found["speakers"]
    ]
    more = found["more_speakers"]
    note = f"<p class=soft>and {counted(more, 'speaker')} with fewer errors" if more else ""
    made = table(["speaker", "words wrong", "words"], rows, "Errors by speaker", numbers=True)
    return f"<div><h3>By speaker</h3>{made}{note}</div>" if rows else ""


# ----------------------------------------------------------------------------------------- layers


def similarity(told: Told) -> str:
    """How alike the layers of what was made and of what it was made of are: linear CKA."""
    found, instead = _measured(told, "similarity")
    if found is None:
        return instead
    own, other = (
        ("student", "teacher") if told.kind == "distill" else ("recogniser", "model before")
    )
    low, high = (end(map(end, found["cka"])) for end in (min, max))
    high = max(high, low + LEAST_SPAN)
    bests = [max(range(len(row)), key=row.__getitem__) for row in found["cka"]]
    rows = []
    for layer, values, best in zip(found["rows"], found["cka"], bests, strict=True):
        cells = "".join(
            f'<td{" class=best" if place == best else ""} style="--w:{_weight(value, low, high):.0f}%">'
            f"{value:.2f}"
            for place, value in enumerate(values)
        )
        rows.append(f"<tr><th scope=row>{layer}{cells}")
    head = "".join(f"<th scope=col>{layer}" for layer in found["columns"])
    last, best = found["rows"][-1], bests[-1]
    label = f"Likeness of the {own}'s layers with those of the {other}"
    few = " Few frames for vectors this wide: all values come out too high." if found["few"] else ""
    notes = "".join(f" {escape(note)}." for note in found["notes"])
    heads = ""
    if told.kind == "distill":
        heads = (
            " The student predicts through heads, so it may predict a layer well and be unlike it."
        )
    return (
        f"<p>Linear CKA, 1 where two layers say the same: the {own}'s last layer, {last}, is most like "
        f"layer {found['columns'][best]} of the {other} ({found['cka'][-1][best]:.2f})."
        f"<p class=soft>Rows: layers of the {own}. Columns: layers of the {other}. "
        f"Outlined: the layer that each row is most like. Colour runs from {low:.2f} to {high:.2f}."
        f'<div class=wide role=region tabindex=0 aria-label="{label}"><table class=heat>'
        f"<thead><tr><td>{head}</thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"<p class=soft>On {clock(found['seconds'])} of held-out audio, {found['frames']:,} frames; "
        f"layer 0 is what the transformer is given.{heads}{few}{notes}"
    )


def _weight(value: float, low: float, high: float) -> float:
    """How strongly a cell is coloured, in per cent."""
    return 100 * (value - low) / (high - low)


# ------------------------------------------------------------------------------------------ tasks


def kept(told: Told) -> str:
    """What `distilkit probe` found of this run."""
    if not told.probes:
        return ""
    entries = list(told.probes.values())
    systems: dict[str, str] = {}
    tasks = []
    for entry in entries:
        own, *others = entry["models"]
        roles = {own: "this model"}
        values = {
            roles.get(system, system): value for system, value in entry["task"]["values"].items()
        }
        systems |= {"this model": "this model", **{name: name for name in [*others, *values]}}
        tasks.append({**entry["task"], "values": values})
    shares = [task["kept"]["value"] for task in tasks if task["kept"]]
    mean = ""
    if shares:
        over = counted(len(shares), "task")
        mean = f"<p>Kept on average over {over}: <strong>{sum(shares) / len(shares):.1%}</strong>."
    data = {item: None for entry in entries for item in entry["data"]}
    return (
        f"{mean}{pages.tasks(tasks, systems, bool(shares))}<p class=soft>On "
        f"{', '.join(named(item) for item in data)}. A proxy: tasks as SUPERB has them, with smaller "
        "heads. Small: the middle 95% when speakers are drawn anew."
    )


# -------------------------------------------------------------------------------------- the model


def speed(told: Told) -> str:
    """Parameters, size and forward passes, beside the teacher's."""
    found, instead = _measured(told, "speed")
    if found is None:
        return instead
    sizes, rows = found["sizes"], found["rows"]  # in the same order
    lines = [
        ["parameters", *(millions(size["parameters"]) for size in sizes)],
        ["weights in fp32", *(f"{size['megabytes']:.1f} MB" for size in sizes)],
        ["multiply-adds a second of audio", *(_macs(size["macs"]) for size in sizes)],
        [f"{rows[0]['seconds']:.0f} s take", *(f"{1000 * row['forward']:.0f} ms" for row in rows)],
        ["times as fast as real time", *(f"{row['real_time']:.0f}" for row in rows)],
        ["memory beside the weights", *(_mib(row["memory"]) for row in rows)],
    ]
    said = ""
    if len(rows) > 1:
        low, high = rows[-1]["spread"]
        share = sizes[-1]["parameters"] / sizes[0]["parameters"]
        said = (
            f"<p>The student has {share:.0%} of the teacher's parameters and is "
            f"<strong>{rows[-1]['ratio']:.1f} times</strong> as fast ({low:.1f} to {high:.1f})."
        )
    where = f"{counted(found['threads'], 'thread')} of a processor"
    if found["device"] != "cpu":
        where = f"device <code>{escape(found['device'])}</code>"
    head = ["", *(escape(row["model"]) for row in rows)]
    return (
        f"{said}{table(head, lines, 'Size and speed', numbers=True)}<p class=soft>One clip of "
        f"{rows[0]['seconds']:.0f} s at a time in fp32 on {where}, median of paired passes. "
        "<code>distilkit bench</code> measures other lengths, precisions and exported models."
    )


def _macs(macs: float | None) -> str:
    return f"{macs / 1e9:.2f} G" if macs else "–"


def _mib(memory: float | None) -> str:
    return f"{memory:.0f} MiB" if memory is not None else "–"
