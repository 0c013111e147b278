"""The one exception a user sees: a problem, and a hint that can be typed."""

import difflib
from collections.abc import Iterable


class DistilkitError(Exception):
    """Something the user can mend.

    Args:
        problem: what was wrong, with the user's own value in backticks.
        hint: what to type or change; None where the problem says it all.
    """

    def __init__(self, problem: str, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint

    def about(self, path: object) -> str:
        """The problem without the path, for lists that show the path beside it."""
        return self.problem.replace(f"`{path}` ", "").replace(f" `{path}`", "")


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """A hint that names the nearest of `known`, or None where nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else None
