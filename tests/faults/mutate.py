"""Damage: what is done to bytes, to JSON and to whole files of any kind, each by a name.

Everything is drawn from the generator that is given, so that a seed gives the same damage again.
"""

import copy
import gzip
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

LONG = 200_000  # signs in a very long text, brackets in very deep JSON
OUTSIDE = "../outside/canary"  # beside every case's folder there is such a file
BOMB = 1 << 31  # bytes that a bomb unpacks to
NUMBERS = (0, 1, 2, 255, 256, 65535, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


@dataclass(frozen=True, kw_only=True)
class Seed:
    """Undamaged input: a folder, and which code reads it."""

    name: str
    folder: Path
    place: str = "."  # what is given to the code, counted from the folder
    reader: str = ""  # which of a kind's readers
    facts: dict[str, Any] = field(default_factory=dict)  # what the reader has to know of it


# ------------------------------------------------------------------------------------------- bytes


def _flip(data: bytearray, rng: Random) -> bytes:
    for _ in range(rng.choice((1, 1, 4, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _flip_early(data: bytearray, rng: Random) -> bytes:
    for _ in range(rng.choice((1, 2, 8))):
        data[rng.randrange(min(len(data), 256))] ^= 1 << rng.randrange(8)
    return data


def _span(data: bytearray, rng: Random) -> slice:
    start = rng.randrange(len(data))
    return slice(start, start + rng.choice((1, 4, 64, 1024, len(data) // 3 + 1)))


def _fill(data: bytearray, rng: Random) -> bytes:
    span = _span(data, rng)
    size = len(data[span])
    data[span] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))
    return data


def _number(data: bytearray, rng: Random) -> bytes:
    """A number that lies, of any width and order, near the beginning."""
    code = rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q", "<d", ">d", "<f", ">f"))
    at = rng.randrange(min(len(data), 256))
    if code[1] in "df":
        value: float = rng.choice((0.0, -1.0, 1e300 if code[1] == "d" else 1e30, float("nan")))
    else:
        value = rng.choice(NUMBERS) % (1 << 8 * struct.calcsize(code))
    data[at : at + struct.calcsize(code)] = struct.pack(code, value)
    return data


def _cut(data: bytearray, rng: Random) -> bytes:
    return data[: rng.choice((rng.randrange(len(data)), rng.randrange(min(len(data), 512))))]


def _lose(data: bytearray, rng: Random) -> bytes:
    del data[_span(data, rng)]
    return data


def _repeat(data: bytearray, rng: Random) -> bytes:
    span = _span(data, rng)
    data[span.start : span.start] = data[span] * rng.choice((1, 1, 20))
    return data


def _insert(data: bytearray, rng: Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 3, 500)))
    return data


def _swap(data: bytearray, rng: Random) -> bytes:
    middle = rng.randrange(len(data))
    return data[middle:] + data[:middle]


def _more(data: bytearray, rng: Random) -> bytes:
    return data + rng.choice((rng.randbytes(5_000), bytes(5_000), bytes(data)))


def _nothing(data: bytearray, rng: Random) -> bytes:
    return rng.choice((b"", b"\0", bytes(len(data)), rng.randbytes(len(data))))


BYTES: dict[str, Callable[[bytearray, Random], bytes]] = {
    "bits flipped": _flip,
    "bits flipped early": _flip_early,
    "a stretch overwritten": _fill,
    "a number that lies": _number,
    "cut short": _cut,
    "a stretch lost": _lose,
    "a stretch repeated": _repeat,
    "bytes put in": _insert,
    "front and back swapped": _swap,
    "bytes behind the end": _more,
    "something else": _nothing,
}


def damaged(data: bytes, rng: Random, ways: dict[str, Any] = BYTES) -> tuple[bytes, str]:
    """Bytes with one to three kinds of damage, and which; `something else` stands alone."""
    told = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice(list(ways))
        if data:
            data = bytes(ways[name](bytearray(data), rng))
            told.append(name)
    return data, ", ".join(told)


# -------------------------------------------------------------------------------------------- JSON

DEEP = "\ue000deep\ue000"  # stands for brackets within brackets, which Python would not write


def hostile(rng: Random) -> Any:
    """A value that hardly any field of JSON expects."""
    values: list[Callable[[], Any]] = [
        lambda: None,
        lambda: rng.choice((True, False)),
        lambda: rng.choice((0, -1, 1, 2, 7, 10**4, 10**6, 10**9, 2**31, 2**63, 10**30)),
        lambda: rng.choice((0.0, -0.5, 1e308, float("nan"), float("inf"), float("-inf"))),
        lambda: rng.choice(("", " ", "\0", "\ud800", "\u202e", "a" * LONG, "0", "nan", "<pad>")),
        lambda: rng.choice((OUTSIDE, "..", "/etc/passwd", "/dev/zero", "|touch ran", "~/x")),
        lambda: rng.choice(("os.system", "__import__('os').system('touch ran')", "evil.Model")),
        lambda: rng.choice(([], {}, [[]], [None] * 3, {"a": 1}, [1, "a"], ["a"] * 10_000)),
        lambda: [rng.randrange(-5, 10**9) for _ in range(7)],
        lambda: DEEP,
        lambda: {"quant_method": rng.choice(("gptq", "torchao", "bitsandbytes", 7))},
        lambda: {
            "AutoModel": "evil.Model",
            "AutoConfig": "evil.Config",
            "AutoTokenizer": ["a", "b"],
        },
    ]
    return rng.choice(values)()


EXTRA = (
    "auto_map", "trust_remote_code", "quantization_config", "_attn_implementation", "architectures",
    "torch_dtype", "dtype", "custom_pipelines", "__class__", "transforms", "init_inputs", "a",
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in JSON values are, the whole included."""
    found = [path]
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value[:50])
        if isinstance(value, list)
        else ()
    )
    for key, item in inner:
        found += places(item, (*path, key))
    return found


def changed(value: Any, rng: Random, other: Callable[[Random], Any] = hostile) -> tuple[Any, str]:
    """Nested values with one to four of them replaced, removed, doubled or added to; and which."""
    value, told = copy.copy(value) if not isinstance(value, dict | list) else _copied(value), []
    for _ in range(rng.choice((1, 1, 2, 4))):
        path = rng.choice(places(value))
        if not path:
            if rng.random() < 0.1:
                return other(rng), "all of it"
            continue
        holder = value
        for step in path[:-1]:
            holder = holder[step]
        how = rng.random()
        if how < 0.15:
            del holder[path[-1]]
            told.append(f"no {path}")
        elif how < 0.25 and isinstance(holder, dict):
            holder[rng.choice(EXTRA)] = other(rng)
            told.append(f"more beside {path}")
        elif how < 0.35:
            holder[path[-1]] = [holder[path[-1]]] if rng.random() < 0.5 else {"a": holder[path[-1]]}
            told.append(f"wrapped {path}")
        else:
            holder[path[-1]] = other(rng)
            told.append(f"another {path}")
    return value, "; ".join(told)


def _copied(value: Any) -> Any:
    """Containers anew, what they hold as it is."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def json_text(value: Any, rng: Random) -> str:
    """JSON as text, with what Python would not write put in."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    deep = rng.choice(("[" * LONG, "[" * LONG + "]" * LONG, '{"a":' * LONG, "9" * 10_000, "1e999"))
    return text.replace(json.dumps(DEEP), deep).replace(f'"{DEEP}"', deep)


def json_file(path: Path, rng: Random) -> str:
    """Change what a JSON file says."""
    value, told = changed(json.loads(path.read_text(encoding="utf-8")), rng)
    write_text(path, json_text(value, rng))
    return f"{path.name}: {told}"


def write_text(path: Path, text: str) -> None:
    """Text with halves of surrogate pairs too, as damaged files have them."""
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


# ------------------------------------------------------------------------------------ whole files


def gzip_bomb(start: bytes = b"") -> bytes:
    """Bytes that gzip unpacks to two gigabytes."""
    part = gzip.compress(b"\n" * (1 << 24), 9)
    return gzip.compress(start) + part * (BOMB >> 24)


def bytes_file(path: Path, rng: Random) -> str:
    """Damage a file's bytes; what is in a `.gz` file mostly inside."""
    data, inside = path.read_bytes(), path.suffix == ".gz" and rng.random() < 0.7
    try:
        plain = gzip.decompress(data) if inside else data
    except Exception:  # it was damaged before
        plain, inside = data, False
    found, told = damaged(plain, rng)
    path.write_bytes(gzip.compress(found) if inside else found)
    return f"{path.name}: {told}{' inside' * inside}"


def link(path: Path, rng: Random) -> str:
    """A file that is a link: out of the folder, to nothing, to itself, to a device."""
    target = rng.choice((OUTSIDE, "nothing", path.name, "/dev/zero", "/dev/full", ".."))
    if target == OUTSIDE:
        up = next(n for n, above in enumerate(path.parents) if (above / OUTSIDE).exists())
        target = "../" * up + OUTSIDE
    path.unlink()
    path.symlink_to(target)
    return f"{path.name} links to {target}"


def gone(path: Path, rng: Random) -> str:
    """A file that is gone, or a folder in its place."""
    path.unlink()
    if rng.random() < 0.5:
        path.mkdir()
        return f"{path.name} is a folder"
    return f"{path.name} is gone"
