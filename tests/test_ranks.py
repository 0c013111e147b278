"""Two processes under torchrun: the run of one, shared; one of them killed, and resumed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from conftest import quick

from distilkit import config
from distilkit.distill import distill
from distilkit.runs import Run

STEPS = 40
CHANGES = [
    "student.dropout=0", f"train.steps={STEPS}", "train.validate_every=20", "train.checkpoint_every=5",
    "batches.seconds=8",  # windows enough in each step for both, whatever their number
]  # fmt: skip


def launch(
    processes: int, *arguments: object, program: Sequence[object] = ("-m", "distilkit")
) -> subprocess.Popen[str]:
    """A distillation under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(processes)]
    command += [*map(str, program), "distill", *map(str, arguments)]
    return subprocess.Popen(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def ended(process: subprocess.Popen[str]) -> str:
    """What it printed."""
    out, log = process.communicate(timeout=240)
    assert process.returncode == 0, log
    return out


@pytest.fixture(scope="module", params=["none", "fp16"])
def pair(
    request: pytest.FixtureRequest,
    speech: Path,
    teacher_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path, list[object]]:
    """The same run by one process and by two; the arguments of the latter."""
    place = tmp_path_factory.mktemp(f"ranks-{request.param}")
    recipe = quick(*CHANGES, f"targets.store={request.param}")
    distill([speech], teacher=str(teacher_folder), out=place / "one", recipe=recipe)
    (place / "recipe.toml").write_text((place / "one" / "recipe.toml").read_text())
    arguments = [speech, "--teacher", teacher_folder, "--recipe", place / "recipe.toml", "--out"]
    assert ended(launch(2, *arguments, place / "two")) == f"{place}/two/student\n"
    return place / "one", place / "two", arguments


@pytest.mark.slow
def test_two_processes_train_as_one(pair: tuple[Path, Path, list[object]]) -> None:
    """Without dropout both runs see the same windows a step, so they must take the same way."""
    one, two = (Run(folder).rows("metrics.jsonl") for folder in pair[:2])
    assert len(one) == len(two) == STEPS
    for a, b in zip(one, two, strict=True):
        assert b["audio_seconds"] == pytest.approx(a["audio_seconds"])
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-4)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
    assert two[-1]["valid"]["loss"] == pytest.approx(one[-1]["valid"]["loss"], abs=1e-4)
    settings = json.loads((pair[1] / "student" / "config.json").read_text())
    assert settings["num_hidden_layers"] == 2
    assert not (pair[1] / "targets").exists()


DIFFERENT = """
import os, sys
from dataclasses import replace
from distilkit import plan
from distilkit.cli import main

decide, second = plan.decide, os.environ["RANK"] == "1"


def decided(*given):
    found = decide(*given)
    return replace(found, micro_seconds=2.5, steps=7, precision="bf16") if second else found


plan.decide = decided
sys.argv[0] = "distilkit"
main()
"""


@pytest.mark.slow
def test_processes_follow_one_plan(speech: Path, teacher_folder: Path, tmp_path: Path) -> None:
    """What they measure may differ: their cards, and what else is going on there."""
    (tmp_path / "different.py").write_text(DIFFERENT)
    recipe = quick(*CHANGES, "train.steps=6", "targets.store=fp16", "train.precision=auto")
    (tmp_path / "recipe.toml").write_text(config.dump_recipe(recipe))
    process = launch(
        2, speech, "--teacher", teacher_folder, "--recipe", tmp_path / "recipe.toml",
        "--out", tmp_path / "run", program=[tmp_path / "different.py"],
    )  # fmt: skip
    ended(process)
    told = Run(tmp_path / "run").read()["plan"]
    assert (told["steps"], told["micro_seconds"]) == (6, 2.5)
    assert len(Run(tmp_path / "run").rows("metrics.jsonl")) == 6


WRONG = """
import json, os, sys
from dataclasses import replace
from distilkit import distill, loop
from distilkit.cli import main
from distilkit.distill import parts
from distilkit.objectives import Loss

seed_step, rank, now = loop.seed_step, int(os.environ["RANK"]), [0]
seen = open(f"{os.environ['SEEN']}-{rank}", "a")


def seeded(*given):
    if len(given) == 3:  # of a step, not of a validation
        now[0] = given[1]
    seed_step(*given)


def assemble(*given):
    made, targets = parts.assemble(*given)

    def loss_of(module, batch):
        loss = made.loss_of(module, batch)
        seen.write(json.dumps([now[0], batch.ids]) + chr(10))
        seen.flush()
        total = loss.total
        if rank == 1 and now[0] in (2, 6, 7, 8):
            total = total * float("nan")
        if rank == 1 and now[0] == 4:  # the gradient alone
            total = total + (total - total.detach()).sqrt()
        return Loss(total=total, parts=loss.parts)

    return replace(made, loss_of=loss_of), targets


loop.seed_step, distill.assemble = seeded, assemble
sys.argv[0] = "distilkit"
main()
"""


@pytest.mark.slow
def test_clips_are_those_of_the_process_in_which_it_went_wrong(
    speech: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    recipe = quick(*CHANGES, "train.steps=100", "targets.store=none", "batches.micro_seconds=2")
    (tmp_path / "recipe.toml").write_text(config.dump_recipe(recipe))
    process = launch(
        2, speech, "--teacher", teacher_folder, "--recipe", tmp_path / "recipe.toml",
        "--out", tmp_path / "run", program=[tmp_path / "wrong.py"],
    )  # fmt: skip
    _, log = process.communicate(timeout=240)
    assert process.returncode != 0
    rows = Run(tmp_path / "run").rows("metrics.jsonl")
    assert [row["step"] for row in rows if row.get("broken")] == [2, 4, 6, 7]
    clips: list[dict[int, list[str]]] = [{}, {}]
    for rank in (0, 1):
        for line in (tmp_path / f"seen-{rank}").read_text().splitlines():
            number, ids = json.loads(line)
            clips[rank].setdefault(number, []).extend(ids)

    def named(rank: int, number: int, most: int) -> str:
        ids = clips[rank][number]
        more = f" and {len(ids) - most} more" if len(ids) > most else ""
        return f"process {rank}: clips {', '.join(f'`{id}`' for id in ids[:most])}{more}"

    assert not set(clips[0][2]) & set(clips[1][2])
    wrong = "the loss is nan, its gradient norm nan; "
    for number in (2, 6, 7):
        assert rows[number - 1]["broken"] == wrong + named(1, number, 8)
    assert rows[3]["loss"] is not None
    all_of_them = f"{named(0, 4, 4)}; {named(1, 4, 4)}"
    assert rows[3]["broken"].partition("; ")[2] == all_of_them
    assert f"step 8, the 3rd in a row: {wrong}{named(1, 8, 8)}" in " ".join(log.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ["targets.store=auto"],
        ["targets.store=none"],
        ["objective.name=units", "objective.layers=[4]", "objective.clusters=8"],
    ],
    ids=["stored", "live", "units"],
)
def test_two_processes_stop_in_the_time_that_they_have(
    changes: list[str], speech: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    """What they measure differs, and both make as many steps, on the same units."""
    recipe = quick(*CHANGES, "train.steps=1000000", "train.hours=0.004", *changes)
    (tmp_path / "recipe.toml").write_text(config.dump_recipe(recipe))
    arguments = [speech, "--teacher", teacher_folder, "--recipe", tmp_path / "recipe.toml"]
    ended(launch(2, *arguments, "--out", tmp_path / "two"))
    run = Run(tmp_path / "two")
    made = run.read()["plan"]["steps"]
    assert 0 < made < 1_000_000
    assert len(run.rows("metrics.jsonl")) == made
    assert run.finished


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_one_of_two_is_killed_and_both_are_resumed(
    pair: tuple[Path, Path, list[object]], tmp_path: Path, killed: int
) -> None:
    out, whole = tmp_path / "broken", Run(pair[1]).rows("metrics.jsonl")
    process = launch(2, *pair[2], out)
    wanted = random.Random(killed).randrange(8, STEPS - 8)
    metrics = out / "metrics.jsonl"
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < wanted:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    workers = sorted(psutil.Process(process.pid).children(), key=lambda child: child.pid)
    ranks = {int(worker.environ()["RANK"]): worker for worker in workers}
    ranks[killed].send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert not (out / "student").exists()
    ended(launch(2, "--resume", "--out", out))
    assert Run(out).rows("metrics.jsonl") == whole
    for name in ("student/model.safetensors", "heads.safetensors"):
        assert (out / name).read_bytes() == (pair[1] / name).read_bytes()
