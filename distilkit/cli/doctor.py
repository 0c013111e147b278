"""`distilkit doctor`."""

import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

NEEDED = [
    "torch",
    "torchaudio",
    "transformers",
    "accelerate",
    "peft",
    "typer",
    "rich",
    "soundfile",
    "soxr",
    "av",
    "sentencepiece",
    "lhotse",
    "pydantic",
    "jiwer",
    "safetensors",
    "huggingface_hub",
    "numpy",
]
LEAST_FREE_GIB = 5


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at; `mend` is what to type where it is not well."""

    name: str
    well: bool
    found: str
    mend: str = ""


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Look for versions that do not fit together, GPU, precision, disk and hub access.

    `distilkit doctor` says what to type for each thing that is not well; status 1 if there is one.
    """
    from distilkit.cli import console

    checks = [
        _python(),
        *_versions(),
        _imports(),
        _device(),
        _decoders(),
        _runtimes(),
        _disk(),
        _hub(),
    ]
    if json:
        console.document([asdict(check) for check in checks])
    else:
        rows = [
            (check.name, "well" if check.well else "NOT WELL", check.found, check.mend)
            for check in checks
        ]
        console.show(console.table("", ("what", "is", "found", "type"), rows), to_result=True)
    if not all(check.well for check in checks):
        raise typer.Exit(1)


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check(name="python", well=sys.version_info >= (3, 11), found=version, mend="")


def _versions() -> list[Check]:
    """Each package against the bounds that distilkit's own metadata declares."""
    import importlib.metadata

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    wanted = {}
    for line in importlib.metadata.requires("distilkit") or []:
        requirement = Requirement(line)
        if requirement.marker is None:
            wanted[canonicalize_name(requirement.name)] = requirement
    checks, wrong = [], []
    for name in NEEDED:
        requirement = wanted[canonicalize_name(name)]
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append((name, "not installed", requirement))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append((name, version, requirement))
    for name, version, requirement in wrong:
        checks.append(
            Check(
                name=name,
                well=False,
                found=f"{version}; needs {requirement.specifier}",
                mend=f"pip install '{requirement}'",
            )
        )
    pair = " and ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("torch", "torchaudio", "transformers")
        if name not in [item[0] for item in wrong if item[1] == "not installed"]
    )
    if not wrong:
        checks.append(Check(name="versions", well=True, found=pair))
    return checks


def _imports() -> Check:
    """Whether the packages load, in a process of their own: a wrong pair can crash it."""
    code = "import torch, torchaudio; from transformers import HubertModel"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return Check(
            name="imports", well=True, found="torch, torchaudio and transformers load together"
        )
    last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    return Check(
        name="imports",
        well=False,
        found=last[:160],
        mend="pip install 'torch>=2.11,<2.15' 'torchaudio>=2.11,<2.12'",
    )


def _device() -> Check:
    from distilkit import plan
    from distilkit.config import Train

    where, why = plan.device(Train())
    arithmetic, because = plan.precision(Train(), where)
    free = plan.memory(where) / 2**30
    return Check(
        name="device",
        well=True,
        found=f"{where} ({why}), {arithmetic} ({because}), {free:.1f} GiB free",
    )


def _decoders() -> Check:
    import av
    import soundfile

    return Check(
        name="audio",
        well=True,
        found=f"libsndfile {soundfile.__libsndfile_version__}, FFmpeg {av.ffmpeg_version_info} (with PyAV)",
    )


def _runtimes() -> Check:
    import importlib.metadata

    from distilkit.exported import INSTALL, RUNTIMES, installed

    there = dict.fromkeys(RUNTIMES[name].package for name in installed())
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in there)
    return Check(
        name="exported models", well=True, found=found or f"no runtime; {INSTALL} brings one"
    )


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return Check(
        name="disk",
        well=free >= LEAST_FREE_GIB,
        found=f"{free:.0f} GiB free here",
        mend="" if free >= LEAST_FREE_GIB else "--out on another disk",
    )


def _hub() -> Check:
    """Whether the hub answers; not reaching it is well, since everything works with local paths."""
    import socket
    from urllib.parse import urlparse

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Check(
            name="hub", well=True, found="switched off by HF_HUB_OFFLINE; give local paths"
        )
    from huggingface_hub.constants import ENDPOINT

    host = urlparse(ENDPOINT)
    try:
        with socket.create_connection((host.hostname or "", host.port or 443), timeout=4):
            return Check(name="hub", well=True, found="reachable")
    except OSError:
        return Check(
            name="hub",
            well=True,
            found="out of reach: --teacher and --model take paths, and `tiny`, which is built in",
        )
