"""Hostile state: runs, journals, stored targets and decoded copies that distilkit goes on from, and finished runs.

`seeds_runs` makes it, `use_runs` says what it may come to.
"""

import gzip
import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import mutate_checkpoints as checkpoints
import mutate_text as texts
import numpy as np
import torch
from mutate import Seed, bytes_file, gone, gzip_bomb, hostile, json_file, json_text, link, places
from safetensors.torch import load_file, save_file
from seeds_runs import seeds
from use_runs import enclosed, use

from distilkit import files, runs
from distilkit.unfinished import here

__all__ = ["enclosed", "mutate", "seeds", "use"]

MOST_STEPS = 8  # of a run whose plan says other things: more would only take longer
LEFT_OUT = (
    ".md",
    ".html",
    ".py",
    ".wav",
)  # nothing is read from these, or they have their campaign
RARELY = {"": 0.2, ".tsv": 0.3, ".flac": 0.3, ".lock": 0.2}  # how likely, beside the others
OFTEN = {".jsonl": 2.0, ".gz": 2.0, ".json": 2.0}


def _numbers(path: Path, rng: Random) -> str:
    """JSON in which a number is another one."""
    value = json.loads(path.read_text(encoding="utf-8"))
    new, told = _another(value, rng)
    path.write_text(json_text(new, rng), encoding="utf-8")
    return f"{path.name}: {told}"


def _another(value: Any, rng: Random) -> tuple[Any, str]:
    """Nested values with one number replaced by one that it might be mistaken for, or an absurd one."""

    def at(path: tuple[Any, ...]) -> Any:
        found = value
        for step in path:
            found = found[step]
        return found

    numbers = [path for path in places(value) if path and isinstance(at(path), int | float)]
    if not numbers:
        return hostile(rng), "all of it"
    path = rng.choice(numbers)
    old = at(path)
    odd = (
        0,
        -1,
        1,
        2,
        3,
        10**4,
        10**9,
        10**30,
        0.5,
        -0.5,
        1e-300,
        1e308,
        float("nan"),
        float("inf"),
    )
    new = rng.choice((*odd, old + 1, old * 2, -old, float(old), str(old), None, not old, [old]))
    at(path[:-1])[path[-1]] = new
    return value, f"{path} is {str(new)[:40]}"


def _rows(path: Path, rng: Random) -> str:
    """JSON lines, gzipped or not: doubled, moved, lost, of other types, huge, or with another value."""
    packed = path.suffix == ".gz"
    raw = path.read_bytes()
    lines = (gzip.decompress(raw) if packed else raw).decode().split("\n")[:-1]
    place = rng.randrange(len(lines))
    how = rng.choice(("twice", "moved", "lost", "many", "other", "half", "number", "number"))
    if how == "twice":
        lines.insert(rng.randrange(len(lines) + 1), lines[place])
    elif how == "moved":
        lines.insert(rng.randrange(len(lines)), lines.pop(place))
    elif how == "lost":
        del lines[place : place + rng.choice((1, 1, 2, len(lines)))]
    elif how == "many":
        lines[place:place] = [lines[place]] * 5_000
    elif how == "other":
        lines[place] = json_text(hostile(rng), rng)
    elif how == "half":
        lines[place] = lines[place][: rng.randrange(len(lines[place]))]
    else:
        new, told = _another(json.loads(lines[place]), rng)
        lines[place], how = json_text(new, rng), told
    content = ("\n".join(lines) + rng.choice(("\n", "\n", ""))).encode("utf-8", "surrogatepass")
    path.write_bytes(gzip.compress(content) if packed else content)
    return f"{path.name}: line {place}, {how}"


def _lines(path: Path, rng: Random) -> str:
    if path.suffix == ".gz" and rng.random() < 0.15:
        return _bomb(path, rng)
    return (checkpoints._lines if rng.random() < 0.5 else _rows)(path, rng)


def _bomb(path: Path, rng: Random) -> str:
    """Two gigabytes behind what is there: of lines, or of one line without an end."""
    start = rng.choice((b"", gzip.decompress(path.read_bytes())))
    if rng.random() < 0.5:
        path.write_bytes(gzip_bomb(start))
        return f"{path.name}: a bomb of lines"
    part = gzip.compress(b" " * (1 << 24), 9)
    path.write_bytes(gzip.compress(start + b'{"a":') + part * 128)
    return f"{path.name}: a bomb of one line"


def _state(path: Path, rng: Random) -> str:
    """Another checkpoint, mostly with the digest that it then has to have."""
    folder = path.parent
    state = folder / runs.CHECKPOINT_STATE
    tensors = folder / runs.CHECKPOINT_TENSORS
    if path == state:
        told = (_numbers if rng.random() < 0.5 else json_file)(path, rng)
    else:
        told = checkpoints._safetensors(path, rng)
    if rng.random() < 0.5:
        return told
    if rng.random() < 0.4:  # of weights that are nearly what they should be
        held = load_file(tensors)
        names = list(held)
        some = rng.choice(names)
        how, new = rng.choice(
            (("not finite", held[some] * torch.nan), ("huge", held[some].float() * 0 + 1e38),
             ("of no size", held[some].flatten()[:0]), ("in halves", held[some].half()),
             ("another's", held[rng.choice(names)].clone()), ("gone", None))
        )  # fmt: skip
        held = {key: value for key, value in held.items() if key != some}
        save_file(held if new is None else {**held, some: new}, tensors)
        told += f"; {some} {how}"
    said = files.read_object(state)
    said.pop("sha256", None)
    said["sha256"] = runs._sum(said, tensors)
    state.write_text(json.dumps(said))
    return f"{told}, its digest right"


def _json(path: Path, rng: Random) -> str:
    if path.parent.parent.name == "checkpoints":
        return _state(path, rng)
    if path.name == "run.json" and rng.random() < 0.2:
        facts = json.loads(path.read_text())
        version = rng.choice(("0.0.1", "99.0", 7, None))
        facts["distilkit"] = version
        for key in rng.sample(sorted(facts), rng.choice((0, 1, 1, 3))):
            del facts[key]
        path.write_text(json.dumps(facts))
        return f"{path.name}: of version {version}, {len(facts)} facts"
    return (_numbers if rng.random() < 0.5 else json_file)(path, rng)


def _safetensors(path: Path, rng: Random) -> str:
    if rng.random() < 0.1:
        path.write_bytes(pickle.dumps(checkpoints.Evil()))
        return f"{path.name}: a pickle"
    if path.parent.parent.name == "checkpoints":
        return _state(path, rng)
    return checkpoints._safetensors(path, rng)


def _npy(path: Path, rng: Random) -> str:
    """An array whose header lies, or that holds what runs code."""
    array = np.load(path)
    how = rng.choice(("flat", "whole numbers", "huge", "objects", "bytes", "bytes", "short"))
    if how == "bytes":
        return bytes_file(path, rng)
    if how == "short":
        os.truncate(path, rng.randrange(path.stat().st_size))
    elif how == "objects":
        np.save(path, np.array([checkpoints.Evil()], object), allow_pickle=True)
    elif how == "huge":
        text = path.read_bytes()
        path.write_bytes(text.replace(str(array.shape).encode(), b"(9999999,)", 1))
    else:
        np.save(path, array.ravel() if how == "flat" else array.astype(np.int64))
    return f"{path.name}: {how}"


def _settings(path: Path, rng: Random) -> str:
    return (texts._toml if rng.random() < 0.8 else texts._text)(path, rng)


def _words(path: Path, rng: Random) -> str:
    if not path.stat().st_size or rng.random() < 0.3:
        path.write_bytes(rng.choice((rng.randbytes(300), b"", b"process 1 on here\n" * 10**5)))
        return f"{path.name}: strange contents"
    return (bytes_file if rng.random() < 0.5 else texts._text)(path, rng)


BY_SUFFIX: dict[str, Callable[[Path, Random], str]] = {
    ".json": _json, ".jsonl": _lines, ".gz": _lines, ".toml": _settings, ".safetensors": _safetensors,
    ".npy": _npy, ".bin": bytes_file, ".flac": bytes_file, ".model": bytes_file,
}  # fmt: skip


def _place(path: Path, folder: Path, rng: Random) -> str:
    """Something else where a file or a folder is: nothing, a link, the other of both."""
    name = path.relative_to(folder).as_posix()
    if not path.is_dir():
        if rng.random() < 0.3:
            path.write_bytes(b"")
            return f"{name} is empty"
        return rng.choice((link, gone))(path, rng).replace(path.name, name, 1)
    ways = ["gone", "a file", "moved", "in itself"]
    if path.parent != folder and "cache" not in path.parts:  # these the user has named
        ways.append("a link that leads out")
    how = rng.choice(ways)
    aside = path.with_name(f"{path.name}-2")
    path.rename(aside)
    if how == "a file":
        path.write_bytes(rng.choice((b"", b"{}\n")))
    elif how == "a link that leads out":
        path.symlink_to(os.path.relpath(folder.parent / "outside", path.parent))
    elif how == "in itself":
        path.mkdir()
        aside.rename(path / path.name)
    if how != "moved":
        shutil.rmtree(aside, ignore_errors=True)
    return f"{name} is {how}"


def _stranger(path: Path, folder: Path, rng: Random) -> str:
    """Beside a file something that nobody expects there: what a kill would leave, a pipe, a lock."""
    gone = 2**22 + 7  # no process has that number
    name = rng.choice(
        (f".{path.name}.old-{gone}-{here()}", f".{path.name}.partial-{gone}-{here()}", ".lock", ".distilkit-abc", "step-99999999",
         f"{path.name}.tmp", "part-1.jsonl", "student", "model", "codebook.safetensors", "run.json", ".x.old-1.2")
    )  # fmt: skip
    new = path.with_name(name)
    how = rng.choice(("a file", "a folder", "a link that leads out", "a pipe"))
    if new.exists():
        how = "there"
    elif how == "a file":
        new.write_bytes(rng.randbytes(100))
    elif how == "a folder":
        new.mkdir()
    elif how == "a pipe":
        os.mkfifo(new)
    else:
        new.symlink_to(os.path.relpath(folder.parent / "outside" / "canary", new.parent))
    return f"{new.relative_to(folder)} is {how}"


def _damage(seed: Seed, folder: Path, rng: Random) -> str:
    everything = sorted(folder.rglob("*"))
    files = [
        path
        for path in everything
        if path.is_file() and not path.is_symlink() and path.suffix not in LEFT_OUT
    ]
    if not files:
        return "nothing more"  # the only one is a link by now
    suffixes = sorted({path.suffix for path in files})
    weights = [(RARELY | OFTEN).get(suffix, 1.0) for suffix in suffixes]
    suffix = rng.choices(suffixes, weights)[0]
    path = rng.choice([path for path in files if path.suffix == suffix])
    how = rng.random()
    if how < 0.08:
        return _place(path, folder, rng)
    if how < 0.14:
        chosen = rng.choice([path for path in everything if path.is_dir() and path.name != "run"])
        return _place(chosen, folder, rng)
    if how < 0.20:
        return _stranger(path, folder, rng)
    if how < 0.28 and suffix != ".flac":  # of a copy nothing says whose it is
        root = seed.folder.parent
        others = sorted(root.glob(f"[0-9][0-9]/**/*{suffix}"))
        other = rng.choice([item for item in others if item.is_file()])
        shutil.copy2(other, path)
        return f"{path.relative_to(folder)} is that of {other.relative_to(root)}"
    name = path.relative_to(folder).parent.as_posix()
    try:
        return f"{name}/{BY_SUFFIX.get(suffix, _words)(path, rng)}"
    except Exception:  # of what was damaged before, or is empty
        return f"{name}/{bytes_file(path, rng)}"


def mutate(seed: Seed, folder: Path, rng: Random) -> str:
    """A copy with one thing damaged, sometimes two."""
    shutil.copytree(seed.folder, folder, symlinks=True, dirs_exist_ok=True)
    told = [_damage(seed, folder, rng) for _ in range(rng.choice((1, 1, 1, 2)))]
    with suppress(Exception):  # a run of a million steps may take its time
        facts = json.loads((folder / "run" / "run.json").read_text())
        if isinstance(steps := facts["plan"]["steps"], int) and steps > MOST_STEPS:
            facts["plan"]["steps"] = MOST_STEPS
            (folder / "run" / "run.json").write_text(json.dumps(facts))
            told.append(f"{MOST_STEPS} steps")
    return "; ".join(told)
