"""`distilkit recipes`."""

from pathlib import Path
from typing import Annotated

import typer

from distilkit.cli import completion

app = typer.Typer(invoke_without_command=True)


@app.callback()
def recipes(context: typer.Context) -> None:
    """List, show and copy the built-in recipes.

    `distilkit recipes` lists them, `distilkit recipes copy paper mine.toml` makes one your own.
    """
    from distilkit.cli import console
    from distilkit.config import recipe_names, recipe_path

    if context.invoked_subcommand is None:
        rows = []
        for name in recipe_names():
            first = recipe_path(name).read_text(encoding="utf-8").splitlines()[0]
            rows.append((name, first.removeprefix("# What:").strip()))
        console.show(console.table("", ("recipe", "what"), rows), to_result=True)


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(help="A built-in recipe.", autocompletion=completion.recipes)
    ],
) -> None:
    """Print a recipe.

    `distilkit recipes show paper`
    """
    from distilkit.cli import console
    from distilkit.config import recipe_path

    console.result(recipe_path(name).read_text(encoding="utf-8").rstrip("\n"))


@app.command()
def copy(
    name: Annotated[
        str, typer.Argument(help="A built-in recipe.", autocompletion=completion.recipes)
    ],
    file: Annotated[Path, typer.Argument(help="Where to write the copy.")],
) -> None:
    """Copy a recipe to a file of your own.

    `distilkit recipes copy paper mine.toml`, then `distilkit distill ./my_audio --recipe mine.toml`.
    """
    from distilkit import leftovers
    from distilkit.cli import console
    from distilkit.config import recipe_path
    from distilkit.errors import DistilkitError
    from distilkit.files import write_text

    text = recipe_path(name).read_text(encoding="utf-8")
    leftovers.tidy(file)
    if file.exists():
        raise DistilkitError(f"`{file}` exists", "another file name")
    write_text(file, text)
    console.result(str(file))
