"""FLAC that is kept: the same sound, or an error that says why there is none, wherever in the file that is."""

import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distilkit import flac

STEPS = (np.random.default_rng(0).normal(size=48_000) * 3000).astype(np.int16)


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """No file grows beyond so many bytes."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def keep(path: Path) -> None:
    with flac.writing(path) as file:
        for part in np.split(STEPS, [1000, 20_000]):
            file.write(part)


def test_it_is_the_sound(tmp_path: Path) -> None:
    keep(tmp_path / "kept.flac")
    heard, rate = soundfile.read(tmp_path / "kept.flac", dtype="int16")
    assert rate == 16_000
    assert (heard == STEPS).all()
    soundfile.write(tmp_path / "other.flac", STEPS, 16_000, "PCM_16")
    assert (tmp_path / "kept.flac").read_bytes() == (tmp_path / "other.flac").read_bytes()


@pytest.mark.parametrize("lacking", [1, 100, 5_000, 20_000, 80_000])
def test_room_for_all_but_its_end(tmp_path: Path, lacking: int) -> None:
    """libsndfile writes the end as it closes the file, and says nothing where that fails."""
    keep(tmp_path / "whole.flac")
    size = (tmp_path / "whole.flac").stat().st_size
    with at_most(size - lacking), pytest.raises(OSError, match="File too large"):
        keep(tmp_path / "kept.flac")
    with at_most(size):
        keep(tmp_path / "kept.flac")
    assert (tmp_path / "kept.flac").read_bytes() == (tmp_path / "whole.flac").read_bytes()


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no such device")
def test_a_full_disk() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        keep(Path("/dev/full"))
