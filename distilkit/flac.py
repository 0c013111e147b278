"""Sound that is kept as FLAC of 16 bits at 16 kHz, and every way in which it cannot be written."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path

import soundfile

from distilkit.audio import SAMPLE_RATE


@contextmanager
def writing(path: Path) -> Iterator[soundfile.SoundFile]:
    """A file to write mono samples into, int16 as they come; whole once this is left without an error.

    libsndfile does not say why it cannot write, and of the end of a FLAC, which it writes as it closes the
    file, not even that it could not. So what it writes goes through a file of Python's.

    Raises:
        OSError: it cannot be written, and why.
    """
    with path.open("w+b") as file:
        target = _Target(file)
        try:
            with soundfile.SoundFile(target, "w", SAMPLE_RATE, 1, "PCM_16", format="FLAC") as sound:
                yield sound
        except (soundfile.LibsndfileError, AssertionError) as error:  # of a count that is too small
            if target.error is None:
                raise
            raise target.error from error
        if target.error is not None:
            raise target.error


class _Target:
    """A file for libsndfile, which calls it from C: errors are kept, as none can be raised there."""

    def __init__(self, file: BufferedRandom) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            return 0

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self.file.seek(offset, whence)  # which writes what is waiting
        except OSError as error:
            self.error = self.error or error
            return -1

    def tell(self) -> int:
        return self.file.tell()
