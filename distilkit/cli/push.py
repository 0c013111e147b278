"""`distilkit push`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distilkit.cli import completion, options

if TYPE_CHECKING:
    from distilkit.push import Parcel


def push(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A student, recogniser, adapter, export or tokenizer, or a finished run.",
            autocompletion=completion.runs,
        ),
    ],
    repo: Annotated[
        str,
        typer.Argument(
            metavar="[REPO]",
            help="`OWNER/NAME` on the hub, or `NAME` for one of your own.",
            show_default="the folder's name",
        ),
    ] = "",
    private: Annotated[
        bool,
        typer.Option("--private/--public", help="Whether only you may read it, or everybody."),
    ] = True,
    message: Annotated[
        str,
        typer.Option(metavar="TEXT", help="Message of the commit.", show_default="what it is"),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be uploaded, and stop.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Upload what distilkit made to the Hugging Face hub, in one commit, for you alone.

    `distilkit push runs/my_audio my-student` makes a private repository. Recordings, transcripts, reports and
    checkpoints never go.
    """
    from distilkit import push as pushing
    from distilkit.cli import console

    if repo:
        pushing.check_name(repo)  # before everything is read
    parcel = pushing.pack(path.expanduser())
    where = repo or parcel.name
    pushing.check_name(where)
    facts = {
        "kind": parcel.kind,
        "folder": str(parcel.folder),
        "private": private,
        "files": {name: parcel.size(name) for name in parcel.files},
        "left": parcel.left,
        "licence": parcel.licence,
    }
    if json and dry_run:
        console.document({"repo": where, **facts})
        return
    _show(parcel, where, private, result=dry_run)
    if dry_run:
        return
    console.interruption("nothing was committed; what the hub has already got is not sent again")
    sent = pushing.send(parcel, repo, private=private, message=message)
    if json:
        console.document({"repo": sent.repo, "url": sent.url, "commit": sent.commit, **facts})
    else:
        console.result(sent.url)


def _show(parcel: "Parcel", where: str, private: bool, *, result: bool) -> None:
    """What goes, as a table of files and a table of what else there is to know."""
    from distilkit.cli import console
    from distilkit.wording import size

    sizes = {name: parcel.size(name) for name in parcel.files}
    rows = [(name, size(count)) for name, count in sizes.items()]
    rows.append(("in all", size(sum(sizes.values()))))
    console.show(console.table("what goes", ("file", "size"), rows), to_result=result)
    to = where if "/" in where else f"YOU/{where}"
    taken = ", ".join(f"{len(found)} out of {name}" for name, found in parcel.cleaned.items())
    rows = [
        ("what it is", parcel.kind),
        ("from", str(parcel.folder)),
        ("to", f"{to}, {'private' if private else 'PUBLIC: everybody may read it'}"),
        ("stays here", ", ".join(parcel.left) or "nothing"),
        ("paths of this computer", f"taken: {taken}" if taken else "none"),
        ("licence", parcel.licence),
    ]
    console.show(console.table("", ("what", "value"), rows), to_result=result)
