"""Numbers for people: counts with their nouns, bytes, options to be typed."""

from collections.abc import Iterable


def counted(count: int, noun: str, plural: str = "") -> str:
    """`1 file`, `2 files`, `12,345 files`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def size(count: float) -> str:
    """Bytes of a file, in powers of ten: `212 B`, `870 kB`, `94.4 MB`, `1.26 GB`."""
    for unit, power, decimals in (("GB", 1e9, 2), ("MB", 1e6, 1), ("kB", 1e3, 0)):
        if count >= power:
            return f"{count / power:.{decimals}f} {unit}"
    return f"{count:.0f} B"


def listed(setting: str, numbers: Iterable[int]) -> str:
    """`--set "student.start_layers=[1,2]"`, quoted: some shells take bare brackets for a pattern."""
    return f'--set "{setting}=[{",".join(map(str, numbers))}]"'


def first_line(error: BaseException) -> str:
    """What an error says, in a line; its kind where it says nothing."""
    return str(error).strip().partition("\n")[0].strip() or type(error).__name__
