"""How Sphinx makes a site of the pages: `make docs` writes it to build/site.

The pages are plain Markdown with relative links and read well without Sphinx. The order of the site's
navigation is that of docs/README.md: each of its headings is a group, each link below it a page.
"""

import re
from typing import Any

from distilkit import __version__

project = "distilkit"
author = "the distilkit authors"
release = version = __version__

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "docs/README"
include_patterns = [
    "*.md",
    "docs/**.md",
    "distilkit/assets/README.md",
    "distilkit/assets/tiny/README.md",
]
exclude_patterns = [".*", "build", "demo*", "embeddings", "recipes", "runs", "tests"]
myst_heading_anchors = 4
nitpicky = True
smartquotes = False  # an option's two hyphens are two

html_theme = "furo"
html_title = "distilkit"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
templates_path = ["site"]
html_additional_pages = {"index": "index.html"}  # leads to root_doc


def navigation(page: str) -> str:
    """The tables of contents that a page of headings and links stands for."""
    trees = []
    for block in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        links = re.findall(r"^- \[(.+?)\]\((\S+)\.md\)", block, flags=re.MULTILINE)
        if links:
            head = f"```{{toctree}}\n:hidden:\n:caption: {block.splitlines()[0]}\n"
            trees.append(
                "\n".join([head, *(f"{text} <{page}>" for text, page in links), "```", ""])
            )
    return "\n".join(trees)


def setup(app: Any) -> None:
    def add(app: Any, name: str, source: list[str]) -> None:
        if name == app.config.root_doc:
            source[0] += "\n" + navigation(source[0])

    app.connect("source-read", add)
