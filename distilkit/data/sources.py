"""An input of transcribed data: the files below it, and the utterances that readers find in it."""

import os
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType

from distilkit.audio import SUFFIXES
from distilkit.data.find import Found, find, shown
from distilkit.data.scan import Skipped

NO_AUDIO = "no audio"  # kinds of what is left out
NO_TEXT = "no text"
OUTSIDE = "outside"
BROKEN = "broken row"
NO_COLUMNS: Mapping[str, str] = MappingProxyType({})
WRONG = ("unusable", NO_AUDIO, OUTSIDE, BROKEN)  # kinds that are somebody's mistake to mend


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """Words, and where they are said."""

    id: str
    path: Path
    text: str
    speaker: str = ""  # empty where nobody says who
    language: str = ""
    start: float = 0.0  # seconds
    seconds: float | None = None  # None to the end of the file
    # Of its row, where labels are read.
    columns: Mapping[str, str] = field(default_factory=lambda: NO_COLUMNS)


Item = Utterance | Skipped


@dataclass(frozen=True, kw_only=True)
class Source:
    """An input, and what a reader needs to know of it."""

    place: Path  # as the user named it
    folder: Path  # the same, or where the file is
    files: tuple[Found, ...]  # all below it; a file alone is its own
    text_column: str = ""  # empty finds it
    cache: Path | None = None  # for sound out of archives; None where only the words are wanted
    labels: bool = False  # columns of labels are wanted; there may be no text

    def top(self, *suffixes: str) -> list[Path]:
        """Files right in the folder, or the file itself, whose name ends so (any case) and is not hidden."""
        return [path for path in self.below(*suffixes) if path.parent == self.folder]

    def below(self, *suffixes: str) -> list[Path]:
        """Files at any depth whose name ends so (any case); none hidden by a dot in front."""
        paths = [x.path for x in self.files if x.path.name.lower().endswith(suffixes)]
        parts = [path.relative_to(self.folder).parts for path in paths]
        return [x for x, y in zip(paths, parts, strict=True) if not any(z[0] == "." for z in y)]

    def has(self, *names: str) -> bool:
        """Whether the input is a folder with all of these."""
        return all((self.place / name).exists() for name in names)


def source(
    place: Path, text_column: str = "", cache: Path | None = None, labels: bool = False
) -> Source:
    """An input with the files below it.

    Raises:
        DistilkitError: there is no such file or folder, or it cannot be reached.
    """
    folder = place
    if place.is_dir() or not os.path.exists(place):
        files = tuple(find([place]))
    else:
        files = (Found(path=place, id=place.name, audio=place.suffix.lower() in SUFFIXES),)
        folder = place.parent
    return Source(
        place=place,
        folder=folder,
        files=files,
        text_column=text_column,
        cache=cache,
        labels=labels,
    )


def inside(folder: Path, name: str) -> Path | Skipped:
    """A file below a folder; a path that climbs out is not followed (a link may lead anywhere)."""
    if not name:
        return Skipped(path=shown(folder), reason="a row that names no file", kind=BROKEN)
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        return Skipped(path=shown(name), reason=f"leads out of `{shown(folder)}`", kind=OUTSIDE)
    return _present(folder / name)


def anywhere(folder: Path, name: str) -> Path:
    """A file of a manifest that may name any: counted from its folder, else from where we are.

    Raises:
        ValueError: the name is empty.
    """
    if not name:
        raise ValueError("names no file")
    near = _present(folder / name)  # an absolute name stands for itself
    return Path(name) if not os.path.exists(near) and os.path.exists(name) else near


def _present(path: Path) -> Path:
    """The file, where it is there only under the other Unicode form of its name that one."""
    if str(path).isascii() or os.path.lexists(path):
        return path
    forms = [Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD")]
    return next((form for form in forms if os.path.lexists(form)), path)


def by_name(suffix: str) -> Callable[[Path, str], Path | Skipped]:
    """What finds the audio file of a name in a folder: with this suffix, else as it is or with another.

    Folders are listed once: a table may name a million files of which none is there.
    """
    listed = cache(_audio_in)

    def named(folder: Path, name: str) -> Path | Skipped:
        path = inside(folder, name)
        if isinstance(path, Skipped):
            return path
        expected = _present(folder / f"{name}{suffix}")
        for file in (expected, path):
            if os.path.isfile(file):
                return file
        stem = unicodedata.normalize("NFC", expected.name.removesuffix(suffix))
        other = listed(expected.parent).get(stem, expected)
        return other if os.path.isfile(other) else expected

    return named


def _audio_in(folder: Path) -> dict[str, Path]:
    """The audio files of a folder by their names without suffix; where there are several, the first."""
    try:
        names = os.listdir(folder)
    except OSError:  # not there, or closed: then its files are missing, and are listed as such
        return {}
    found: dict[str, Path] = {}
    for name in sorted(names, key=lambda name: (Path(name).suffix.lower(), name)):
        if Path(name).suffix.lower() in SUFFIXES:
            found.setdefault(unicodedata.normalize("NFC", Path(name).stem), folder / name)
    return found


def relative(path: Path, source: Source) -> str:
    """A path counted from the input's folder where it is below it, else as it is."""
    below = path.is_relative_to(source.folder)
    return shown((path.relative_to(source.folder) if below else path).as_posix())


def broken(path: Path, line: int, error: Exception) -> Skipped:
    """A row that cannot be used, by file and line."""
    said = str(error)
    if isinstance(error, KeyError):
        said = f"`{error.args[0]}` is missing"
    elif not isinstance(error, ValueError):
        said = "not a row of such a table"
    return Skipped(path=shown(path), reason=f"line {line}: {said}", kind=BROKEN)
