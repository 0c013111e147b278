"""The site of the docs: what its navigation follows from, and that a slip in a page fails the build."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def _settings() -> ModuleType:
    spec = importlib.util.spec_from_file_location("conf", DOCS / "conf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Build pages as `make docs` does."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    options = re.findall(r"sphinx-build (.+) -c docs \. build/site", makefile)[0].split()
    assert "-W" in options
    command = [sys.executable, "-m", "sphinx", *options, "-c", str(DOCS), str(source), str(out)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """Two pages of which the first links to the second."""
    folder = tmp_path / "source"
    (folder / "docs").mkdir(parents=True)
    (folder / "docs/README.md").write_text("# All\n\n## Guides\n\n- [Other](other.md): more\n")
    (folder / "docs/other.md").write_text("# Other\n\n## A heading\n\n[up](README.md#guides)\n")
    return folder


def test_pages_without_a_slip_are_built(pages: Path, tmp_path: Path) -> None:
    done = build(pages, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out/docs/other.html").read_text(encoding="utf-8")
    assert 'href="README.html#guides"' in page
    assert "docs/README.html" in (tmp_path / "out/index.html").read_text(encoding="utf-8")
    everything = [path.read_text(encoding="utf-8") for path in (tmp_path / "out").rglob("*.html")]
    outside = {
        found
        for text in everything
        for found in re.findall(r'(?:src|link[^>]+href)="(https?:[^"]+)', text)
    }
    assert outside == set(), "a page must need no network"


@pytest.mark.parametrize(
    ("slip", "said"),
    [
        ("[gone](gone.md)", "gone"),
        ("[no heading](README.md#nothing)", "nothing"),
        ("![none](none.png)", "none.png"),
        ("# Other\n\n#### Deep\n", "header"),
    ],
    ids=["page", "heading", "picture", "level"],
)
def test_a_slip_fails_the_build(pages: Path, tmp_path: Path, slip: str, said: str) -> None:
    page = pages / "docs/other.md"
    page.write_text(page.read_text() + f"\n{slip}\n")
    done = build(pages, tmp_path / "out")
    assert done.returncode != 0
    assert "other.md" in done.stderr
    assert said in done.stderr.lower()


def test_a_page_that_the_first_page_does_not_name_fails_the_build(
    pages: Path, tmp_path: Path
) -> None:
    (pages / "docs/third.md").write_text("# Third\n")
    done = build(pages, tmp_path / "out")
    assert done.returncode != 0
    assert "third.md" in done.stderr


def test_navigation_follows_from_the_first_page() -> None:
    page = (DOCS / "README.md").read_text(encoding="utf-8")
    made = _settings().navigation(page)
    assert made.count(":caption:") == page.count("\n## ")
    named = re.findall(r"^(.+) <(.+)>$", made, re.MULTILINE)
    assert len(named) == page.count("\n- [")
    assert ("Embeddings", "guides/embeddings") in named


def test_pictures_need_no_network_and_are_there() -> None:
    pictures = [path for path in (DOCS / "pictures").iterdir() if path.suffix in (".svg", ".png")]
    assert pictures
    for path in pictures:
        if path.suffix == ".svg":
            text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
            assert "http" not in text
        assert (DOCS / "pictures" / path.name).stat().st_size < 400_000
