"""Text files and tables that users bring: every problem names the file, and the line or byte."""

import csv
import errno
import gzip
import math
import shlex
import zlib
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from distilkit.errors import DistilkitError, did_you_mean
from distilkit.files import parse_json

Row = dict[str, Any] | str  # a row, or what is wrong with it
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
MOST_UNPACKED = 1 << 26  # bytes that gzip may unpack to in any case,
MOST_RATIO = (
    50  # and how many times a file's size where that is more; text packs to a tenth or less
)
LEAST_LINE = 64  # bytes that a line counts for at the least: millions of empty ones take time
PARQUET_ROWS = 32  # read at once; a row may hold a whole recording
csv.field_size_limit(2**31 - 1)  # characters of a value: 131,072 unless told otherwise


def text_of(path: Path) -> str:
    """A text file (gzipped where its name ends in `.gz`) with plain line ends and no mark.

    Raises:
        DistilkitError: it cannot be read, or is not UTF-8.
    """
    most = _most(path)
    try:
        with _opened(path) as file:
            raw = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DistilkitError(
            f"`{path}` cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    if len(raw) > most:
        raise _bomb(path, most)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        guess = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "WINDOWS-1252"
        new = path.with_name(f"{path.stem}-utf8{path.suffix}")
        raise DistilkitError(
            f"`{path}` is not UTF-8: byte {error.start} (line {line}) is {raw[error.start]:#04x}",
            f"iconv -f {guess} -t UTF-8 {shlex.quote(str(path))} > {shlex.quote(str(new))}",
        ) from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, numbered from 1, read as they are asked for.

    Raises:
        DistilkitError: as `text_of`.
    """
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            yield number, line


def _lines(path: Path) -> Iterator[str]:
    """All lines of what `text_of` gives, at flat memory."""
    try:
        most, taken = _most(path), 0
        with _opened(path) as file:
            for number, raw in enumerate(iter(lambda: file.readline(most), b"")):
                taken += max(len(raw), LEAST_LINE * (1 + raw.count(b"\r")))
                if taken > most:
                    raise _bomb(path, most)
                line = raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
                yield from (line if number else line.removeprefix("\ufeff")).split("\r")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        text_of(path)  # says what is wrong, and where
        raise


def _opened(path: Path) -> BufferedIOBase:
    """A file's bytes to read, unpacked where its name ends in `.gz`.

    Raises:
        OSError: it cannot be opened, or is a folder, a device or a pipe, which may have no end.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a file")
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _most(path: Path) -> int:
    """Bytes that a file may hold, unpacked."""
    return max(MOST_UNPACKED, MOST_RATIO * (path.stat().st_size if path.is_file() else 0))


def _bomb(path: Path, most: int) -> DistilkitError:
    return DistilkitError(
        f"`{path}` unpacks to more than {most >> 20} MiB, {MOST_RATIO} times its size and more",
        f"gzip --list {shlex.quote(str(path))}",
    )


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, with the numbers of their lines.

    Raises:
        DistilkitError: as `text_of`, or a line is not an object.
    """
    for number, line in lines_of(path):
        try:
            row = parse_json(line)
        except ValueError as error:
            said = getattr(error, "msg", None) or str(error)
            raise DistilkitError(f"`{path}` is not JSON lines: line {number}: {said}") from error
        if not isinstance(row, dict):
            raise DistilkitError(f"`{path}` is not JSON lines: line {number} is not an object")
        yield number, row


def first_row(path: Path) -> dict[str, Any]:
    """The object on the first line of a file of JSON lines; empty where there is none."""
    try:
        with _opened(path) as file:
            row = parse_json(file.readline(MOST_UNPACKED).decode("utf-8-sig"))
    except (OSError, EOFError, zlib.error, ValueError):
        return {}
    return row if isinstance(row, dict) else {}


def suffix(path: Path) -> str:
    """The end of a file's name that says what is in it, in lower case; that below `.gz`."""
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()


def table(path: Path) -> tuple[list[str], Iterable[tuple[int, Row]]]:
    """The columns and the numbered rows of a `.parquet`, `.jsonl` or `.json` table, or a text one.

    A text table has a header, whose commonest sign of `,` `;` `|` and tab separates. Quotes count
    except between tabs. A row with more or fewer values than columns is what is wrong with it.

    Raises:
        DistilkitError: it cannot be read.
    """
    if suffix(path) == ".parquet":
        return _parquet(path)
    if suffix(path) in (".jsonl", ".json"):
        keys = (key for _, row in json_lines(path) for key in row)
        return list(dict.fromkeys(keys)), json_lines(path)
    return _delimited(path)


def header(path: Path) -> str:
    """The first line of a text file; empty where it has none.

    Raises:
        DistilkitError: as `text_of`.
    """
    return next(lines_of(path), (0, ""))[1]


def _delimited(path: Path) -> tuple[list[str], Iterator[tuple[int, Row]]]:
    rows = _values(path)
    columns = [name.strip() for name in next(rows, (0, []))[1]]
    return columns, ((line, _named(columns, values)) for line, values in rows)


def _values(path: Path) -> Iterator[tuple[int, list[str]]]:
    sign = max(",;|\t", key=next(filter(None, _lines(path)), "").count)
    reader = csv.reader(
        (f"{line}\n" for line in _lines(path)),
        delimiter=sign,
        quoting=csv.QUOTE_NONE if sign == "\t" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    try:
        for values in reader:
            if any(value.strip() for value in values):
                yield reader.line_num, values
    except csv.Error as error:
        raise DistilkitError(
            f"`{path}` is not a table: line {reader.line_num}: {error}",
            "close every quotation mark, and double those inside a value",
        ) from error


def _named(columns: Sequence[str], values: Sequence[str]) -> Row:
    if len(values) != len(columns):
        return f"{len(values)} values for {len(columns)} columns; quote a text that holds the sign"
    return dict(zip(columns, values, strict=True))


def _parquet(path: Path) -> tuple[list[str], Iterable[tuple[int, Row]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DistilkitError(
            f"`{path}` needs pyarrow", "pip install 'distilkit[parquet]'"
        ) from error

    def damaged(error: Exception) -> DistilkitError:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        return DistilkitError(f"`{path}` cannot be read as Parquet: {said}")

    def rows() -> Iterator[tuple[int, Row]]:
        number = 0
        try:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise damaged(error) from error

    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise damaged(error) from error
    return list(file.schema_arrow.names), rows()


def column(columns: Iterable[str], wanted: Sequence[str]) -> str | None:
    """The first of the wanted columns that is there, whatever its case."""
    known = {name.lower(): name for name in reversed(list(columns))}
    return next((known[name] for name in wanted if name in known), None)


def text_column(
    path: Path, columns: Sequence[str], wanted: Sequence[str], chosen: str, others: Sequence[str]
) -> str:
    """The column of texts: the chosen one, else the first of the wanted ones.

    Args:
        others: names that columns of something else have; the hint offers none of them.

    Raises:
        DistilkitError: it is not there; names those that are.
    """
    found = chosen if chosen in columns else None if chosen else column(columns, wanted)
    if found is not None:
        return found
    free = [name for name in columns if name.lower() not in others]
    there = f"its columns are {quoted(columns)}"
    if chosen:
        near = did_you_mean(chosen, columns)
        hint = near or (f"--text-column {shlex.quote(free[0])}" if free else None)
        raise DistilkitError(f"`{path}` has no column `{chosen}`: {there}", hint)
    raise DistilkitError(
        f"`{path}` has no column of text: {there}; expected {quoted(wanted, 'or')}",
        f"--text-column {shlex.quote(free[0]) if free else 'NAME'}",
    )


def quoted(names: Iterable[str], last: str = "and") -> str:
    """Names in backticks, as a list in a sentence."""
    marked = [f"`{name}`" for name in names] or ["none"]
    return f" {last} ".join([", ".join(marked[:-1]), marked[-1]]) if marked[1:] else marked[0]


def plain(value: object) -> str:
    """A value as text; nothing and not-a-number are empty.

    Raises:
        ValueError: neither text nor a number, or not Unicode.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str | int | float):
        raise ValueError(f"a {type(value).__name__} where text is expected")
    text = str(value)
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise ValueError("text that is not Unicode (half of a surrogate pair)")
    return text


def seconds(value: object) -> float | None:
    """A value as seconds; None where there is none.

    Raises:
        ValueError: not a number, or below 0.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number) and number >= 0:
            return number
    raise ValueError(f"`{value}` where seconds are expected")
