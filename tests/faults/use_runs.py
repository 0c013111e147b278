"""What is done with damaged state: the command goes on with it or reads it, and what comes out is looked at.

It counts as used only if it comes to its end, and the result loads and is finite and whole. Where nothing is
damaged but what has a digest, the result must be the one of an undisturbed run.
"""

import filecmp
import json
import os
from collections.abc import Callable
from pathlib import Path

import conftest
import numpy as np
from mutate import Seed
from safetensors.torch import load_file
from seeds_runs import clips, command, weights

from distilkit import data, recognisers, teachers
from distilkit.audio import frames, load
from distilkit.errors import DistilkitError
from distilkit.runs import Run

WAVE = conftest.voice(0.4, 1)
# What of a run may be damaged without a change to its result: it has a digest, or nothing depends on it.
CHECKED = ("run/checkpoints/", "run/targets/", "run/report", "run/speed", "run/skipped", "run/.")
BELIEVED = ("its digest right", "is that of")  # damage that no digest can tell


def _changed() -> set[str]:
    """The files and folders that are not what they were."""
    here, whole = Path(), Path("../whole")
    names = {str(path.relative_to(root)) for root in (here, whole) for path in root.rglob("*")}

    def same(name: str) -> bool:
        one, other = here / name, whole / name
        if one.is_symlink() or one.is_dir() != other.is_dir():
            return False
        if one.is_dir():
            return True
        return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)

    return {name for name in names if not same(name)}


def _resumed(seed: Seed, told: str) -> str:
    changed = _changed()
    run = Run(Path("run"))
    assert command(seed.facts["command"], "--resume", "--out", "run") == 0
    _sound(run)
    apart = all(f"{name}/".startswith(CHECKED) for name in changed)
    if apart and not any(word in told for word in BELIEVED):
        assert weights(run) == seed.facts["digest"], "another result than that of a whole run"
    return f"{run.result}, {len(run.rows('metrics.jsonl'))} rows"


def _sound(run: Run) -> None:
    """The result of a run loads, and all that it computes is finite."""
    assert run.finished, "there is no result"
    if run.kind == "finetune-ctc":
        found = recognisers.load("run")
        values = found.logprobs([WAVE])
        assert values[0].shape[0] == frames(len(WAVE))
    else:
        encoder, _ = teachers.load("run")
        values = encoder.states([WAVE], [encoder.depth])
    assert all(np.isfinite(value).all() for value in values), "numbers that are not finite"


def _looked(seed: Seed, told: str) -> str:
    """A finished run, given to what reads one."""
    refused = None
    speech = f"{seed.facts['given']}/speech"
    hears = seed.facts["command"] == "finetune-ctc"
    for words in (
        ("inspect", "run", "--json"),
        ("inspect", "run"),
        ("report", "run", "--json"),
        ("transcribe", speech, "--model", "run", "--out", "texts")
        if hears
        else ("embed", speech, "--model", "run", "--out", "vectors"),
        (seed.facts["command"], "--resume", "--out", "run"),
    ):
        try:
            assert command(*words) == 0, words
        except DistilkitError as error:
            if "is finished" not in error.problem:
                refused = refused or error
    if refused:
        raise refused
    _sound(Run(Path("run")))
    return "looked at"


def _recordings(seed: Seed) -> list[tuple[str, int]]:
    """What is heard: names without their ends, and frames."""
    root = Path(seed.facts["given"], "speech")
    found = sorted(path for path in root.rglob("*") if path.is_file())
    return [(str(path.relative_to(root).with_suffix("")), len(load(path))) for path in found]


def _embedded(seed: Seed, told: str) -> str:
    form = seed.facts["format"]
    out = "vectors" if form == "npy" else f"vectors.{form}"
    words = ["embed", f"{seed.facts['given']}/speech", "--model", f"{seed.facts['given']}/teacher"]
    assert command(*words, "--out", out, "--format", form) == 0
    if form == "npy":
        found = {str(path)[8:-4]: np.load(path) for path in Path(out).rglob("*.npy")}
    elif form == "npz":
        with np.load(out) as archive:
            found = {os.path.splitext(name)[0]: archive[name] for name in archive.files}
    else:
        held = load_file(out)
        found = {os.path.splitext(name)[0]: value.numpy() for name, value in held.items()}
    for name, samples in _recordings(seed):
        assert name in found, f"`{name}` has no vectors"
        assert found[name].shape == (frames(samples), 32), f"`{name}`: {found[name].shape}"
        assert found[name].dtype == np.float32
    return f"{len(found)} recordings"


def _transcribed(seed: Seed, told: str) -> str:
    words = [
        "transcribe",
        f"{seed.facts['given']}/speech",
        "--model",
        f"{seed.facts['given']}/hears",
    ]
    assert command(*words, "--format", "json", "--out", "texts") == 0
    for name, _ in _recordings(seed):
        assert Path("texts", f"{name}.json").is_file(), f"`{name}` has no text"
    return "texts"


def _counted(seed: Seed, told: str) -> str:
    words = ["units", f"{seed.facts['given']}/speech", "--model", f"{seed.facts['given']}/teacher"]
    assert command(*words, "--clusters", "4", "--out", "units") == 0
    rows = [json.loads(row) for row in Path("units/units.jsonl").read_text().splitlines()]
    found = {os.path.splitext(row["recording"])[0]: row["units"] for row in rows}
    for name, samples in _recordings(seed):
        assert len(found[name]) == frames(samples), f"`{name}` has {len(found[name])} units"
        assert all(0 <= unit < 4 for unit in found[name]), f"`{name}` has units that are none"
    assert not Path(".units.parts").exists(), "what was on the way is left over"
    return f"{len(rows)} windows"


def _copies(seed: Seed, told: str) -> str:
    found = clips(Path(), Path(seed.facts["given"]))
    digests = {clip.id: clip.digest for clip in found}
    assert digests == seed.facts["digests"], "other sound than that of the recordings"
    for clip in found:
        for cut in data.cuts(clip):
            wave = cut.load_audio()
            assert wave.shape == (1, cut.num_samples)
            assert np.isfinite(wave).all()
    return f"{len(found)} clips"


READERS: dict[str, Callable[[Seed, str], str]] = {
    "resumed": _resumed,
    "looked at": _looked,
    "embedded": _embedded,
    "transcribed": _transcribed,
    "units": _counted,
    "copies": _copies,
}


def enclosed(seed: Seed, told: str) -> bool:
    """Whether nothing outside may be opened: runs name models and recordings anywhere, and links are links."""
    return seed.reader not in ("resumed", "looked at") and "link" not in told


def use(seed: Seed, folder: Path, told: str) -> tuple[str, str]:
    """Go on with it as the commands do, or look at it."""
    return "used", READERS[seed.reader](seed, told)
