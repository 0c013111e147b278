"""Numbers for people."""

import pytest

from distilkit.wording import counted, first_line, size


def test_counts_agree_with_their_nouns() -> None:
    assert [counted(count, "file") for count in (0, 1, 2, 12_345)] == [
        "0 files", "1 file", "2 files", "12,345 files",
    ]  # fmt: skip
    assert counted(1, "copy", "copies") == "1 copy"
    assert counted(3, "copy", "copies") == "3 copies"


def test_sizes_of_files() -> None:
    said = [size(count) for count in (0, 999, 1e3, 999_499, 1e6, 94_370_000, 1e9, 1_262_000_000)]
    assert said == ["0 B", "999 B", "1 kB", "999 kB", "1.0 MB", "94.4 MB", "1.00 GB", "1.26 GB"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("\n too long \nline 2"), "too long"),
        (ValueError(" "), "ValueError"),
        (KeyError(), "KeyError"),
    ],
)
def test_an_error_in_a_line(error: Exception, said: str) -> None:
    assert first_line(error) == said
