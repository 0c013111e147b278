"""The report of a run: curves of bounded size, a page from whatever the folder holds, and what goes wrong."""

import base64
import gzip
import hashlib
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import Run as Command
from conftest import fine, quick
from reports import edit, make_hostile, make_long

from distilkit import ctc, distill, loop, rates, report
from distilkit.data import tables
from distilkit.errors import DistilkitError
from distilkit.report import charts, history, measure, page, results, sources
from distilkit.runs import Run


class Page(HTMLParser):
    """What is on a page: its words, its elements, and all that it would fetch."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts = "", list[str]()
        self.source = file.read_text(encoding="utf-8")
        self._inside = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.text += data
        self._inside = "" if self._inside in ("script", "style") else self._inside

    @property
    def titles(self) -> list[str]:
        """Ids of the sections."""
        return [str(attrs["id"]) for tag, attrs in self.tags if tag == "section"]

    def count(self, name: str) -> int:
        """How many elements of a kind there are."""
        return sum(tag == name for tag, _ in self.tags)


@pytest.fixture
def copied(distilled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(distilled, tmp_path / "run"))


@pytest.fixture
def copied_ctc(tuned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tuned, tmp_path / "run"))


def written(folder: Path, **options: Any) -> Page:
    return Page(report.Report(Run(folder)).write(**options))


# -------------------------------------------------------------------------------------- the logs


@pytest.mark.parametrize("steps", [1, 399, 400, 401, 12_345, 100_000])
def test_a_curve_is_bounded_and_exact(steps: int) -> None:
    values = np.random.default_rng(0).normal(2.0, 0.1, steps)
    values[steps // 3] = 50.0
    values[-1] = -3.0
    curve = history.Curve()
    for step, value in enumerate(values, 1):
        curve.add(step, float(value))
    found = curve.stretches
    assert min(steps, history.MOST // 2) <= len(found) <= history.MOST
    assert [part.first for part in found[1:]] == [part.last + 1 for part in found[:-1]]
    assert (found[0].first, found[-1].last) == (1, steps)
    for some in (found, history.coarser(found, 50)):
        assert sum(part.count for part in some) == steps
        for part in some:
            own = values[part.first - 1 : part.last]
            assert (part.low, part.high) == (own.min(), own.max())
            assert part.mean == pytest.approx(own.mean())
        assert len(some) <= history.MOST
    assert max(part.high for part in history.coarser(found, 50)) == values.max()  # spikes stay


def test_a_log_is_read_on_and_half_a_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = history.Log(path)
    assert list(log.new()) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [row["step"] for row in log.new()] == [1, 2]
    assert list(log.new()) == []
    with path.open("a") as file:
        file.write('ep": 3}\n')
    assert [row["step"] for row in log.new()] == [3]


def test_steps_that_were_left_out(copied: Path) -> None:
    rows = Run(copied).rows("metrics.jsonl")
    rows[1] |= {"loss": None, "updated": False, "broken": "the loss is nan; clips `a<b`"}
    rows[2] |= {"updated": False}
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (copied / "metrics.jsonl").write_text(text)
    found = written(copied)
    assert "2 steps of 6 left out" in found.text
    assert "Step 2: the loss is nan; clips a<b" in found.text
    assert "1 step more" in found.text


# -------------------------------------------------------------------------------------- charts


def test_numbers_and_ticks() -> None:
    values = (0, 2.5e-4, 0.05, 1.827, 12.3456, 999.94, 1234.5, 123456, 2e6, -2.0)
    said = "0 2.5e-4 0.05 1.827 12.35 999.9 1,234 123,456 2e6 -2"
    assert [charts.number(value) for value in values] == said.split()
    assert charts.ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert charts.ticks(1, 750) == [200, 400, 600]
    assert charts.ticks(3, 3) == [3]
    assert charts.log_ticks(0.3, 50) == pytest.approx([0.3, 1, 3, 10, 30])
    assert len(charts.log_ticks(1e-9, 1e9)) <= 7
    for low, high in ((1e-7, 3e-7), (0.1, 0.11), (-5, 1e6)):
        assert 2 <= len(charts.ticks(low, high)) <= 7


def test_a_chart_says_what_it_shows() -> None:
    points = [(1.0, 2.0), (5.0, 9.0), (10.0, 1.0)]
    band = [(2.0, 2.0), (1.5, 20.0), (1.0, 1.0)]
    line = charts.Line(name="a <b>", points=points, band=band)
    made = charts.draw(charts.Chart(title="Loss & all", lines=[line]), 10)
    assert "Loss &amp; all, steps 1 to 10; a &lt;b&gt;: from 2 to 1, least 1, greatest 9" in made
    numbers = re.findall(r"class='line l0' d='M([^']*)'", made)[0].split("L")
    assert [float(pair.split()[0]) for pair in numbers] == pytest.approx([0, 444.4, 1000], abs=0.1)
    heights = [float(pair.split()[1]) for pair in numbers]
    assert heights[1] < heights[0] < heights[2]
    top = re.findall(r"class='band l0' d='M([^']*)Z'", made)[0].split("L")[1]
    assert float(top.split()[1]) < heights[1]  # the greatest value lies above the mean
    (data,) = re.findall(r"<script type=application/json>(.*)</script>", made)
    assert json.loads(data) == {
        "last": 10,
        "steps": [[1.0, 5.0, 10.0]],
        "lines": [[0, ["2", "9 (1.5 to 20)", "1"]]],
    }


def test_charts_of_next_to_nothing() -> None:
    assert (
        charts.draw(charts.Chart(title="none", lines=[charts.Line(name="x", points=[])]), 3) == ""
    )
    for value in (0.0, 1.0, -1e-9):
        one = charts.Line(name="x", points=[(1.0, value)])
        assert "class='dots l0' d='M500 " in charts.draw(charts.Chart(title="one", lines=[one]), 1)


def test_wide_ranges_are_logarithmic_but_shares_are_not() -> None:
    line = charts.Line(name="x", points=[(1.0, 0.01), (2.0, 0.9)])
    assert "logarithmic" in charts.draw(charts.Chart(title="t", lines=[line]), 2)
    shares = charts.draw(charts.Chart(title="t", lines=[line], form=charts.percent), 2)
    assert "logarithmic" not in shares
    assert ">0%<" in shares


def test_the_histogram_counts_every_window(distilled: Path) -> None:
    found = sources.read(distilled)
    edges, bars = found.bars()
    with gzip.open(distilled / "audio.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    assert sum(map(sum, bars.values())) == len(rows) == found.windows
    assert sum(bars["valid"]) == sum(row["custom"]["split"] == "valid" for row in rows)
    wanted, _ = np.histogram([row["duration"] for row in rows], np.asarray(edges))
    assert [sum(pair) for pair in zip(*bars.values(), strict=True)] == wanted.tolist()
    assert found.rates == {16_000: 12}
    assert found.suffixes == {".wav": 8, ".flac": 4}


def test_windows_of_absurd_lengths_are_counted_too() -> None:
    """Without a look at every length that lies between."""
    found = sources.Sources()
    found.lengths["train"].update([50, 50, 10**30])
    edges, bars = found.bars()
    assert len(edges) == len(bars["train"]) + 1
    assert sum(bars["train"]) == 3
    assert (bars["train"][0], bars["train"][-1]) == (2, 1)


# -------------------------------------------------------------------------------------- the page


def test_the_page_of_a_distillation(distilled: Path) -> None:
    found = Page(distilled / "report.html")
    assert found.titles == ["trained", "curves", "layers", "speed", "plan", "audio", "again"]
    for word in (
        "A student of", "finished", "held-out loss", "L1 distance", "Cosine term", "−log σ(cos)",
        "layer 4, held out", "Learning rate", "Gradient norm", "Time a step", "Peak memory so far",
        "2 validations as numbers", "Rows: layers of the student", "16 kHz", ".flac", "Nothing was left out",
        "distilkit distill", "--teacher", "torch", "[objective]",
    ):  # fmt: skip
        assert word in found.text, word
    assert found.count("figure") == 8
    assert found.count("audio") == 0


def test_the_page_of_a_fine_tuning(tuned: Path) -> None:
    found = Page(tuned / "report.html")
    wanted = ["trained", "curves", "errors", "layers", "speed", "plan", "audio", "again"]
    assert found.titles == wanted
    for word in (
        "words wrong", "Errors on what is held out", "What it leaves unsaid", "The worst utterances",
        "who", "distilkit finetune-ctc", "--tokenizer", "Rows: layers of the recogniser",
    ):  # fmt: skip
        assert word in found.text, word
    players = [attrs for tag, attrs in found.tags if tag == "audio"]
    assert players
    for attrs in players:
        kind, _, data = str(attrs["src"]).partition(";base64,")
        assert kind == "data:audio/mpeg"
        sound, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
        assert rate == 16_000
        assert sound.ndim == 1
        assert 1.1 < len(sound) / rate < 3.0
        assert np.abs(sound).max() > 0.05
    assert "and recordings" in found.text


@pytest.mark.parametrize("run", ["distilled", "tuned"])
def test_nothing_is_fetched_and_only_our_script_runs(
    run: str, request: pytest.FixtureRequest
) -> None:
    found = Page(request.getfixturevalue(run) / "report.html")
    for tag, attrs in found.tags:
        assert tag not in ("link", "img", "iframe", "object", "base"), tag
        for name in ("src", "href", "srcset", "poster", "action"):
            assert str(attrs.get(name) or "#").startswith(("#", "data:audio/")), (tag, attrs)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp", found.source)
    (policy,) = (attrs["content"] for tag, attrs in found.tags if "http-equiv" in attrs)
    digest = base64.b64encode(hashlib.sha256(page.SCRIPT.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in str(policy)
    assert "default-src 'none'" in str(policy)
    assert found.scripts[-1] == page.SCRIPT
    for data in found.scripts[:-1]:
        json.loads(data)


def test_likeness_is_that_of_the_layers(distilled: Path) -> None:
    from distilkit import layers, teachers

    kept = measure.kept(distilled)["similarity"]
    held = measure.Models(Run(distilled)).held_out
    files = sorted({cut.recording.sources[0].source for cut in held})
    facts = Run(distilled).read()
    found = layers.similarity(
        files,
        teachers.load(str(distilled))[0],
        teachers.load(facts["teacher"]["source"])[0],
    )
    np.testing.assert_allclose(kept["cka"], found.cka_LK, atol=1e-3)
    assert kept["columns"] == list(range(13))
    assert kept["few"]  # a few seconds of audio


def test_likeness_of_a_model_with_itself(copied: Path) -> None:
    """The teacher in the student's place: each layer is most like itself."""
    facts = Run(copied).read()
    shutil.rmtree(copied / "student")
    shutil.copytree(facts["teacher"]["source"], copied / "student")
    (copied / report.FILE).unlink()
    path, problems = report.complete(Run(copied))
    assert not problems
    found = Page(path)
    assert "is most like layer 12 of the teacher (1.00)" in found.text
    best = re.findall(r"<td class=best[^>]*>(\d\.\d\d)", found.source)
    assert best == ["1.00"] * 13


def test_words_are_aligned() -> None:
    said, heard = "the bee sees a tree", "oh the be sees tree"
    assert rates.pairs(said, heard) == [
        ("", "oh"), ("the", "the"), ("bee", "be"), ("sees", "sees"), ("a", ""), ("tree", "tree"),
    ]  # fmt: skip
    made = results.alignment(said, heard)
    kinds = re.findall(r"<span class=.word (\w+).>", made)
    assert kinds == ["ins", "same", "sub", "same", "del", "same"]
    assert "said: the bee sees a tree; heard: oh the be sees tree" in made
    assert rates.pairs("", "oh no") == [("", "oh"), ("", "no")]
    assert rates.pairs("a b", "") == [("a", ""), ("b", "")]


def test_recordings_can_be_left_out(copied_ctc: Path, run: Command, tmp_path: Path) -> None:
    out = tmp_path / "to share" / "page.html"
    code, said, _ = run("report", copied_ctc, "--no-audio", "--out", out)
    assert (code, said) == (0, f"{out}\n")
    found = Page(out)
    assert found.count("audio") == 0
    assert "base64" not in re.sub("sha256-[^']*", "", found.source)
    assert "and recordings" not in found.text
    assert "The worst utterances" in found.text
    assert Page(copied_ctc / "report.html").count("audio") > 0  # it was not touched


# ------------------------------------------------------------------------------------- hostile


def test_names_and_texts_of_users_are_only_text(copied_ctc: Path) -> None:
    folder = copied_ctc.rename(copied_ctc.with_name('"><img src=x onerror=alert(1)>'))
    make_hostile(folder)
    found = written(folder)
    assert found.count("img") == 0
    scripts = [attrs.get("type") for tag, attrs in found.tags if tag == "script"]
    assert scripts.count(None) == 1
    assert "<script>alert" not in found.source
    assert found.text.count("<script>alert(1)</script>") > 15
    for tag, attrs in found.tags:
        assert not [name for name in attrs if name.startswith("on")], tag
    for start in [at.start() for at in re.finditer("\u202e", found.source)]:
        before = found.source[:start]  # turned text never turns what stands around it
        opened = max(before.rfind("<bdi"), before.rfind("dir=auto"), before.rfind("<code"))
        assert opened > 0


# -------------------------------------------------------------------------------- what is missing


def broken_files(folder: Path) -> Iterator[tuple[str, bytes | None]]:
    """Each file of a run, gone, empty and damaged."""
    for name in (
        "recipe.toml", "audio.jsonl.gz", "skipped.tsv", "metrics.jsonl", "speed.jsonl", "report.json",
    ):  # fmt: skip
        whole = (folder / name).read_bytes()
        for content in (None, b"", whole[: len(whole) // 2]):
            if content is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(content)
            yield name, content
            (folder / name).write_bytes(whole)


def sound(found: Page) -> None:
    """No section of a page is empty, and all that is measured is a number."""
    parts = re.split(r"<section id=", found.source)[1:]
    for part in parts:
        body = re.sub(r"<script.*?</script>|<[^>]*>", " ", part.partition("</h2>")[2])
        assert len(body.split()) > 4, part[:40]
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", found.text)


@pytest.mark.parametrize("run", ["copied", "copied_ctc"])
def test_whatever_is_missing_there_is_a_page(run: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(run)
    for name, content in broken_files(folder):
        found = written(folder)
        sound(found)
        if name == "report.json":
            assert f"distilkit report {folder}" in found.text
        if name == "metrics.jsonl" and not content:
            assert "No optimizer step has been logged yet" in found.text
        if name == "audio.jsonl.gz" and not content:
            assert "is missing or damaged" in found.text
    for name in ("metrics.jsonl", "speed.jsonl", "report.json", "skipped.tsv", "recipe.toml"):
        (folder / name).unlink()
    sound(written(folder))


@pytest.mark.parametrize("made", ["copied", "copied_ctc"])
def test_files_that_say_other_things_are_one_error(
    made: str, run: Command, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of other types, missing ones, endless brackets, other bytes: there is a page, or one error."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "faults")
    from mutate import bytes_file, changed, json_file, json_text, write_text

    folder, ends = request.getfixturevalue(made), Counter[str]()
    monkeypatch.setattr(measure, "measure", lambda *_: {"speed": "not now"})
    task = {"title": "a", "kept": None, "metrics": [], "values": {}}
    probes = {"ks": {"task": task, "models": ["m"], "data": []}}
    (folder / "probes.json").write_text(json.dumps(probes))
    names = ["run.json", "report.json", "probes.json", "metrics.jsonl", "speed.jsonl"]
    for name in (*names, "audio.jsonl.gz"):
        whole = (folder / name).read_bytes()
        for number in range(10):
            rng = Random(f"{name} {number}")
            if name.endswith(".json"):
                json_file(folder / name, rng)
            elif name.endswith(".jsonl"):
                lines = whole.decode().splitlines()
                value, _ = changed(json.loads(lines[0]), rng)
                write_text(folder / name, "\n".join([*lines[1:], json_text(value, rng), ""]))
            else:
                bytes_file(folder / name, rng)
            code, _, err = run("report", folder, "--no-audio")
            assert (code != 0) == ("error: " in err)
            if code:
                assert "` is damaged: " in err
                assert "hint: " in err
            ends[Path(err.split("error: `")[1].split("`")[0]).name if code else "used"] += 1
            (folder / name).write_bytes(whole)
    assert sum(ends[name] for name in names) > 10
    assert ends["used"] > 10


def test_no_report_runs_what_a_manifest_says(copied_ctc: Path, tmp_path: Path) -> None:
    (copied_ctc / "report.json").unlink()
    path, ran = copied_ctc / "audio.jsonl.gz", tmp_path / "ran"
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\ntouch {ran}\n")
    script.chmod(0o755)
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    for row in rows:
        row["recording"]["sources"][0] |= {"type": "command", "source": str(script)}
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    _, problems = report.complete(Run(copied_ctc))
    assert not ran.exists()
    assert "not in a file" in problems["utterances"]


def test_a_manifest_that_unpacks_to_gigabytes_is_not_read(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = copied / "audio.jsonl.gz", list[int]()
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole) + gzip.compress(b" " * (1 << 24), 9) * 5)
    real = tables.parse_json
    monkeypatch.setattr(tables, "parse_json", lambda text: read.append(len(text)) or real(text))
    monkeypatch.setattr(sources, "parse_json", tables.parse_json, raising=False)
    found = sources.read(copied)
    assert found.windows == len(whole.splitlines())
    assert max(read) < 1 << 16


def test_a_run_that_has_only_begun(copied: Path) -> None:
    for name in ("metrics.jsonl", "speed.jsonl", "report.json"):
        (copied / name).unlink()
    shutil.rmtree(copied / "student")
    found = written(copied, state="training")
    assert found.titles == ["trained", "curves", "plan", "audio", "again"]
    assert "training" in found.text
    sound(found)


def test_nothing_held_out_and_no_teacher(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quick(
        "data.valid_fraction=0.0", "objective.name=units", "objective.features=mfcc",
        "objective.clusters=4", "student.architecture=hubert", "student.layers=2", "student.width=32",
        "student.heads=2", "student.feed_forward=64", "student.position_frames=16",
        "student.conv_widths=[16,16,16,16,16,16,16]", "student.start=random", "train.steps=2",
    )  # fmt: skip
    distill.distill([speech], teacher="none", out=tmp_path / "run", recipe=recipe)
    found = Page(tmp_path / "run" / "report.html")
    for text in (
        "trained from scratch", "Nothing was held out, so layers were not compared", "Units told right",
        "MFCC", "--teacher none", "training loss",
    ):  # fmt: skip
        assert text in found.text
    assert "of the teacher's" not in found.text
    sound(found)


def test_adapters(transcribed: Path, letters: Path, teacher_folder: Path, tmp_path: Path) -> None:
    options = {"tokenizer": letters, "model": str(teacher_folder), "out": tmp_path / "run"}
    ctc.finetune([transcribed], **options, recipe=fine("lora.rank=4", "train.steps=2"))
    found = Page(tmp_path / "run" / "report.html")
    assert "adapters of rank 4" in found.text
    assert "The worst utterances" in found.text
    assert "Rows: layers of the recogniser" in found.text
    sound(found)


def test_a_teacher_that_is_gone_is_said_and_tried_again(
    copied: Path, teacher_folder: Path, tmp_path: Path, run: Command
) -> None:
    moved = shutil.copytree(teacher_folder, tmp_path / "teacher")
    edit(
        copied,
        "run.json",
        lambda content: content["teacher"].update(source=str(moved), name=str(moved)),
    )
    (copied / report.FILE).unlink()
    Path(moved).rename(tmp_path / "elsewhere")
    code, out, err = run("report", copied)
    assert (code, out) == (0, f"{copied}/report.html\n")
    assert "the report lacks similarity: no such model" in err
    found = Page(copied / "report.html")
    assert "This could not be measured: no such model" in found.text
    assert "class=heat" not in found.source
    (tmp_path / "elsewhere").rename(moved)
    code, _, err = run("report", copied)
    assert "measuring similarity, speed" in err
    assert "lacks" not in err
    assert "class=heat" in Page(copied / "report.html").source
    code, _, err = run("report", copied)
    assert "measuring" not in err


# -------------------------------------------------------------------------------- while it trains


def test_the_page_is_there_while_the_run_trains(
    speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    job = distill.prepare([speech], teacher=str(teacher_folder), out=out, recipe=quick())
    seen = []
    for step in distill.train(job, lambda: len(seen) == 3):
        seen.append(step.number)
        found = Page(out / "report.html")
        if step.number == 1:
            assert "No optimizer step has been logged yet" in found.text
            assert "Reload the page" in found.text
    found = Page(out / "report.html")
    assert "stopped, step 4 of 6" in found.text
    assert f"distilkit distill --resume --out {out}" in found.text
    assert "layers" not in found.titles
    for _ in distill.train(distill.prepare([], out=out, resume=True)):
        pass
    assert "trained, step 6 of 6" in Page(out / "report.html").text
    path, problems = report.complete(Run(out))
    assert not problems
    assert "finished" in Page(path).text
    assert not list(out.glob(".report*"))


def test_a_report_takes_a_hundredth_of_the_time(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, pages = [100.0], []
    monkeypatch.setattr("distilkit.report.time.monotonic", lambda: now[0])

    def write(self: report.Report, state: str) -> None:
        pages.append(now[0])
        now[0] += 0.2

    monkeypatch.setattr(report.Report, "write", write)
    writer = report.Report(Run(copied))
    for _ in range(600):
        assert writer.update("training") == ""
        now[0] += 0.1
    assert len(pages) == 3
    assert pages[1] - pages[0] >= 20
    writer.update("stopped")  # is always written
    assert len(pages) == 4


def test_a_report_that_fails_is_said_and_costs_nothing(
    speech: Path, teacher_folder: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(told: object) -> str:
        raise ValueError("no room for curves")

    monkeypatch.setattr(page, "render", fail)
    arguments = [
        "distill",
        speech,
        "--teacher",
        teacher_folder,
        "--recipe",
        "smoke",
        "--out",
        "run",
    ]
    settings = [
        "train.steps=4",
        "batches.seconds=4",
        "train.precision=fp32",
        "train.checkpoint_every=2",
    ]
    code, out, err = run(*arguments, *(word for item in settings for word in ("--set", item)))
    assert (code, out) == (0, "run/student\n")
    said = "the report could not be written: ValueError: no room for curves"
    assert err.count(f"step 1: {said}") == 1
    assert err.count(said) == 2  # in the run, and at its end
    assert "hint: distilkit report run" in err
    assert "Traceback" not in err
    assert Run(Path("run")).finished


def test_a_full_disk_does_not_end_a_run(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise DistilkitError(f"cannot write `{path}`: No space left on device", "make room")

    monkeypatch.setattr("distilkit.report.write_text", full)
    said = report.Report(Run(copied)).update("training")
    assert said.startswith("the report could not be written: cannot write `")
    assert "No space left on device" in said


def test_only_the_process_that_writes_makes_the_page(
    speech: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(report.Report, "update", lambda self, state: made.append(state) or "")
    monkeypatch.setattr(loop.Accelerator, "is_main_process", property(lambda self: False))
    out = tmp_path / "run"
    shutil.copytree(speech, tmp_path / "speech")
    job = distill.prepare([speech], teacher=str(teacher_folder), out=out, recipe=quick())
    job.run.create({"run.json": "{}", "recipe.toml": ""})
    list(distill.train(job))
    assert made == []


# -------------------------------------------------------------------------------- the long run


def test_a_long_run_has_a_small_page(copied: Path) -> None:
    """100,000 steps of three layers, with one spike."""
    make_long(copied)
    path = report.Report(Run(copied)).write()
    assert path.stat().st_size < 600_000
    found = Page(path)
    assert "greatest" in found.text or "99.25" in found.source
    assert "to 99.25)" in found.source  # the spike is in the band
    assert "200 validations as numbers, 40 of them" in found.text
    assert "13 h 53 min" in found.text


# ------------------------------------------------------------------------------------ the command


@pytest.mark.parametrize(
    ("arguments", "problem", "hint"),
    [
        (["nowhere"], "`nowhere` holds no run", "distilkit distill AUDIO --out DIR"),
        (["{run}", "--out", "{run}/run.json"], "already exists", "another --out, or"),
    ],
)
def test_bad_input(
    run: Command, distilled: Path, arguments: list[str], problem: str, hint: str
) -> None:
    code, out, err = run("report", *(word.format(run=distilled) for word in arguments))
    assert (code, out) == (1, "")
    assert problem in err
    assert hint in err


def test_an_unfinished_run_and_json(run: Command, copied: Path) -> None:
    shutil.rmtree(copied / "student")
    code, out, err = run("report", copied, "--json")
    assert code == 0
    assert json.loads(out) == {"report": f"{copied}/report.html", "lacks": {}}
    assert "not finished" in err
    assert "not finished, step 6 of 6" in Page(copied / "report.html").text


def test_what_was_kept_is_shown(copied: Path) -> None:
    def task(name: str, kept: float, systems: tuple[str, ...]) -> dict[str, Any]:
        value = {"accuracy": {"value": 0.9, "low": 0.85, "high": 0.95}}
        return {
            "task": name, "title": f"task {name}", "kept": {"value": kept, "low": 0.9, "high": 1.0},
            "metrics": [{"name": "accuracy", "higher_is_better": True, "percent": True}],
            "values": {system: value for system in systems},
        }  # fmt: skip

    found = {
        "ks": {
            "task": task("ks", 0.95, ("runs/a", "tiny")),
            "models": ["runs/a", "tiny"],
            "data": ["d"],
        },
        "sid": {
            "task": task("sid", 0.97, ("runs/a/student", "tiny", "log-mel")),
            "models": ["runs/a/student", "tiny"],
            "data": ["e"],
        },
    }
    (copied / "probes.json").write_text(json.dumps(found))
    shown = written(copied)
    assert "kept" in shown.titles
    assert "Kept on average over 2 tasks: 96.0%" in shown.text
    heads = re.findall(r"<th scope=col>([^<]*)", shown.source.partition("class=tasks")[2])[:6]
    assert heads == ["task", "metric", "this model", "tiny", "log-mel", "kept"]
    assert shown.source.count('data-of="this model"') == 2
    sound(shown)
