"""What a shell offers to complete: names of recipes, and models and runs that are there."""

from pathlib import Path


def recipes(incomplete: str) -> list[str]:
    """Built-in recipes."""
    from distilkit.config import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


def models(incomplete: str) -> list[str]:
    """The built-in model, and runs in `runs`; where none of them fits, the shell offers files."""
    return [name for name in ("tiny", *runs("")) if name.startswith(incomplete)]


def runs(incomplete: str) -> list[str]:
    """Run folders in `runs`."""
    found = sorted(str(path.parent) for path in Path("runs").glob("*/run.json"))
    return [name for name in found if name.startswith(incomplete)]
