"""The one exception a user sees: a problem, and a hint that can be typed."""

import difflib
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

# Who calls in a URL, with a password or a token alone, and a token of the hub, wherever they stand.
SECRET = re.compile(r"(?<=://)(?:[^\s@`'\"]*:[^\s@`'\"]+|[^/\s@`'\"]+)(?=@)|\bhf_[A-Za-z0-9_]{20,}")

# What would move a terminal's cursor, or set its title, if a file's name or a model's text brought it along.
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
CONTROLS |= {ord(sign): sign for sign in "\n\t"}


def without_secrets(text: str) -> str:
    """The text with `***` for every password in a URL and every token of the hub."""
    return SECRET.sub("***", text)


def harmless(text: str) -> str:
    """The text for people to read: without secrets, and without what a terminal would obey."""
    return without_secrets(text).translate(CONTROLS)


class DistilkitError(Exception):
    """Something the user can mend.

    Args:
        problem: what was wrong, with the user's own value in backticks.
        hint: what to type or change; None where the problem says it all.
    """

    def __init__(self, problem: str, hint: str | None = None) -> None:
        self.problem = harmless(problem)
        self.hint = hint and harmless(hint)
        super().__init__(self.problem)

    def about(self, path: object) -> str:
        """The problem without the path, for lists that show the path beside it."""
        name = harmless(str(path))
        return self.problem.replace(f"`{name}` ", "").replace(f" `{name}`", "")


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """A hint that names the nearest of `known`, or None where nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else None


def present(path: Path) -> None:
    """Refuse an input that is not there.

    Raises:
        DistilkitError: there is no such file or folder, or it cannot be reached; names the nearest.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise DistilkitError(f"no such file or folder: `{path}`", _nearby(path)) from None
    except OSError as error:
        raise DistilkitError(f"cannot open `{path}`: {error.strerror}") from error


def enclosed(folder: Path) -> Path:
    """The folder, where no file in it is a link that leads out of it.

    The hub's cache is made of links, which stay within the repository's own part of it.

    Raises:
        DistilkitError: a link leads out, to what whoever made the folder cannot know.
    """
    home = folder.resolve()
    home = home.parents[1] if home.parent.name == "snapshots" else home
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not (target := Path(os.path.realpath(path))).is_relative_to(home):
            there, here = shlex.quote(str(target)), shlex.quote(str(path))
            raise DistilkitError(
                f"`{path}` is a link to `{target}`, outside its folder, and was not followed",
                f"rm {here} && cp -r {there} {here}"
                if target.is_dir()
                else f"cp --remove-destination {there} {here}",
            )
    return folder


def enclosed_below(folder: Path) -> None:
    """The same for all folders in it, at any depth.

    Raises:
        DistilkitError: a link leads out of the folder that it is in.
    """
    for place, _, _ in os.walk(folder):
        enclosed(Path(place))


def _nearby(missing: Path) -> str | None:
    parent = missing.parent
    names = [path.name for path in parent.iterdir()] if parent.is_dir() else []
    hint = did_you_mean(missing.name, names)
    return hint.replace("`", f"`{parent}/", 1) if hint and str(parent) != "." else hint
