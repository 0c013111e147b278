"""Hostile text: recipes, transcripts in every layout, manifests, tokenizers, language models, tables.

What is used of it counts as used only if it survives being written and read again, every recording is used
or listed, and nothing of another folder is taken where the layout does not allow it.
"""

import gzip
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import conftest
import test_transcripts as corpora
from mutate import (
    LONG,
    OUTSIDE,
    Seed,
    bytes_file,
    changed,
    gone,
    gzip_bomb,
    json_text,
    link,
)
from mutate_audio import _field

from distilkit import config, data, ngram, tokenizers
from distilkit.data import transcripts

ANYWHERE = ("Kaldi", "NeMo", "lhotse")  # layouts whose tables may name any file


def seeds(folder: Path) -> list[Seed]:
    """Every layout of transcripts, the built-in recipes, tokenizers, language models."""
    found: list[Seed] = []

    def add(name: str, reader: str, place: str = ".") -> Path:
        inner = folder / f"{len(found):02d}"
        inner.mkdir()
        found.append(Seed(name=name, folder=inner, place=place, reader=reader))
        return inner

    for path in sorted(config.recipes_folder().glob("*.toml")):
        kind = "ctc recipe" if path.stem.startswith("ctc") else "recipe"
        shutil.copyfile(path, add(f"recipe {path.stem}", kind, path.name) / path.name)
    sounds = {
        name: conftest.voice(seconds, seed)
        for seed, (name, seconds) in enumerate(corpora.SECONDS.items())
    }
    for name, (make, _) in corpora.CORPORA.items():
        inner = add(name, "transcripts")
        place = make(inner / "data", sounds)
        found[-1] = Seed(
            name=name, folder=inner, place=str(place.relative_to(inner)), reader="transcripts"
        )
        shutil.rmtree(inner / "raw", ignore_errors=True)
        for path in inner.rglob("*"):  # absolute names would lead to the undamaged copy
            if path.is_file() and path.suffix in (".scp", ".json", ".jsonl", ".gz", ""):
                _here(path, inner)
    inner = add("recordings", "manifest", "data/x_recordings_dev.jsonl.gz")
    corpora.lhotse_pairs(inner / "data", sounds)
    for kind in ("char", "bpe", "unigram"):
        settings = config.Tokenizer(kind=kind)  # type: ignore[arg-type]
        made = tokenizers.train(conftest.SAYINGS * 20, settings, config.Text())
        tokenizers.save(made, add(f"tokenizer {kind}", "tokenizer", "tokens") / "tokens")
    sentences = [line.split() for line in conftest.SAYINGS]
    for name in ("words.arpa", "words.arpa.gz"):
        ngram.write(ngram.train(sentences * 5, 3), add(name, "language model", name) / name)
    for name in ("texts.txt", "texts.csv", "texts.txt.gz"):
        text = "\n".join((["text"] if name.endswith("csv") else []) + list(conftest.SAYINGS)) + "\n"
        data_of = gzip.compress(text.encode()) if name.endswith("gz") else text.encode()
        (add(name, "texts", name) / name).write_bytes(data_of)
    return found


def _here(path: Path, root: Path) -> None:
    """Names that count from the folder in which a case runs."""
    content = path.read_bytes()
    packed = path.suffix == ".gz"
    plain = gzip.decompress(content) if packed else content
    plain = plain.replace(f"{root}/".encode(), b"")
    path.write_bytes(gzip.compress(plain, mtime=0) if packed else plain)


# ---------------------------------------------------------------------------------------- damage

WORDS = (
    "", " ", "\0", "\ud800", "\u202e", "\ufeff", '"', "'", '"""', "|", "\t", ",", ";", "-1", "0", "nan", "inf", "1e999",
    "9" * 5000, "a" * LONG, OUTSIDE, "../../outside/canary", "/etc/passwd", "/dev/zero", "touch ran |", "| touch ran",
    "$(touch ran)", "a\\nb", "<s>", "<unk>", "</s>", "-99", "=cmd", "{}", "[[", "\x1b[31m", "file:///etc/passwd",
    "http://127.0.0.1:9/a.wav",
)  # fmt: skip


def _fields(line: str, rng: Random) -> str:
    """Another word in a line, whatever parts it."""
    sign = max((",", "\t", "|", ";", " ", "="), key=line.count)
    parts = line.split(sign)
    place = rng.randrange(len(parts))
    how = rng.random()
    if how < 0.6:
        parts[place] = rng.choice(WORDS)
    elif how < 0.75:
        del parts[place]
    elif how < 0.9:
        parts.insert(place, rng.choice(WORDS))
    else:
        parts[place] = f'"{parts[place]}'
    return sign.join(parts)


def _text(path: Path, rng: Random) -> str:
    """Lines lost, doubled, moved, or with other words in them; other encodings and ends."""
    packed = path.suffix == ".gz"
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if packed else raw).decode("utf-8", "replace")
    lines = text.split("\n")
    how = rng.choice(("word", "word", "word", "word", "lost", "twice", "moved", "line", "many"))
    place = rng.randrange(len(lines))
    if how == "word":
        for _ in range(rng.choice((1, 1, 2, 5))):
            place = rng.randrange(len(lines))
            lines[place] = _fields(lines[place], rng)
    elif how == "lost":
        del lines[place]
    elif how == "twice":
        lines.insert(place, lines[place])
    elif how == "moved":
        lines.insert(rng.randrange(len(lines)), lines.pop(place))
    elif how == "line":
        lines.insert(place, rng.choice(WORDS) * rng.choice((1, 1, 3)))
    else:  # of a long line fewer: no file of gigabytes
        times = min(20_000, 1 + (1 << 24) // (1 + len(lines[place])))
        lines[place:place] = [lines[place]] * times
    end = rng.choice(("\n", "\n", "\n", "\r\n", "\r", "\u2028"))
    code = rng.choice(("utf-8", "utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig", "latin-1"))
    if code == "latin-1":
        new = end.join(lines).encode(code, "replace")
    else:
        new = end.join(lines).encode(code, "surrogatepass")
    path.write_bytes(gzip.compress(new) if packed else new)
    return f"{path.name}: {how}, {code}, {end!r}"


def _json(path: Path, rng: Random) -> str:
    """JSON, or JSON lines, gzipped or not."""
    packed = path.suffix == ".gz"
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if packed else raw).decode("utf-8", "replace")
    try:
        value, told = changed(json.loads(text), rng)
        new = json_text(value, rng)
    except ValueError:  # one object a line
        lines = [line for line in text.split("\n") if line]
        place = rng.randrange(len(lines))
        value, told = changed(json.loads(lines[place]), rng)
        lines[place] = json_text(value, rng)
        new = "\n".join(lines) + "\n"
    content = new.encode("utf-8", "surrogatepass")
    path.write_bytes(gzip.compress(content) if packed else content)
    return f"{path.name}: {told}"


def _toml(path: Path, rng: Random) -> str:
    """Another value of a key, as only TOML can write it."""
    lines = path.read_text(encoding="utf-8").split("\n")
    keys = [place for place, line in enumerate(lines) if "=" in line and not line.startswith("#")]
    told = []
    for place in rng.sample(keys, min(len(keys), rng.choice((1, 1, 2, 4)))):
        value = rng.choice(
            (
                "inf", "-inf", "nan", "0", "-1", "1e400", "1e-400", "9" * 30, "9" * 5000, "0x" + "f" * 300,
                "true", '""', '"' + "a" * LONG + '"', "[]", "[[]]", "{}", "[" * 2000, "[" * 2000 + "]" * 2000,
                "1979-05-27", "07:32:00", f'"{OUTSIDE}"', '"/etc/passwd"', '"\\u0000"', '"auto"', "[1, 'a']", "'''",
                "[0.0, inf]", "[nan, nan]", "[4, 8, 99999999999]", "1_000", "0o7", '"""', "{a = {b = 1}}", "10" * 9,
            )
        )  # fmt: skip
        key = lines[place].partition("=")[0]
        lines[place] = f"{key}= {value}"
        told.append(f"{key.strip()} = {value[:40]}")
    if rng.random() < 0.15:
        lines.append(
            rng.choice(("[data]", "[evil]\na = 1", "a.b.c = 1", "command = 7", "[[train]]"))
        )
        told.append(lines[-1])
    path.write_text("\n".join(lines), encoding="utf-8")
    return f"{path.name}: {'; '.join(told)}"


def _parquet(path: Path, rng: Random) -> str:
    """A table with other columns or values, or other bytes."""
    import pyarrow
    from pyarrow import parquet

    if rng.random() < 0.6:
        return bytes_file(path, rng)
    rows = parquet.read_table(path).to_pylist()
    value = rng.choice(
        (None, 7, 1.5, b"\xff", [1], {"a": 1}, OUTSIDE, "/etc/passwd", "a" * LONG, True)
    )
    name = rng.choice(list(rows[0]))
    parquet.write_table(pyarrow.Table.from_pylist([{**row, name: value} for row in rows]), path)
    return f"{path.name}: {name} is {str(value)[:40]}"


def _tar(path: Path, rng: Random) -> str:
    path.write_bytes(_field(bytearray(path.read_bytes()), rng))
    return f"{path.name}: a header that lies"


def _packed(path: Path, rng: Random) -> str:
    """A bomb in place of a gzipped file."""
    path.write_bytes(gzip_bomb(rng.choice((b"", gzip.decompress(path.read_bytes())))))
    return f"{path.name}: a bomb"


BY_SUFFIX: dict[str, Callable[[Path, Random], str]] = {
    ".toml": _toml, ".json": _json, ".jsonl": _json, ".parquet": _parquet, ".tar": _tar, ".model": bytes_file,
}  # fmt: skip
SOUND = (".wav", ".flac")  # what is done to sound has its own campaign


def _damage(path: Path, rng: Random) -> str:
    if rng.random() < 0.04:
        return rng.choice((link, gone))(path, rng)
    if path.suffix == ".gz" and rng.random() < 0.1:
        return _packed(path, rng)
    if rng.random() < 0.15:
        return bytes_file(path, rng)
    if path.suffix == ".gz" and ".jsonl" in path.name and rng.random() < 0.8:
        return _json(path, rng)
    way = BY_SUFFIX.get(path.suffix, _text)
    return _text(path, rng) if way in (_json, _toml) and rng.random() < 0.2 else way(path, rng)


def mutate(seed: Seed, folder: Path, rng: Random) -> str:
    """A copy with one of its texts damaged, sometimes two."""
    shutil.copytree(seed.folder, folder, symlinks=True, dirs_exist_ok=True)
    told = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        files = sorted(
            path for path in folder.rglob("*") if path.is_file() and path.suffix not in SOUND
        )
        if files:
            path = rng.choice(files)
            if "a bomb" in str(told):
                break
            try:
                told.append(_damage(path, rng))
            except Exception:  # of what was damaged before
                told.append(bytes_file(path, rng))
    return "; ".join(told)


# ------------------------------------------------------------------------------------------- use


def _recipe(place: Path, kind: Any = config.Recipe) -> str:
    found = config.load_recipe(str(place), (), kind)
    again = place.with_name("again.toml")
    again.write_text(config.dump_recipe(found), encoding="utf-8")
    assert config.load_recipe(str(again), (), kind) == found, "not what was written"
    numbers = [
        value
        for part in found.model_dump().values()
        if isinstance(part, dict)
        for value in part.values()
    ]
    flat = [item for value in numbers for item in (value if isinstance(value, list) else [value])]
    assert all(math.isfinite(item) for item in flat if isinstance(item, float)), "not finite"
    return "a recipe"


def _transcripts(place: Path) -> str:
    cache = Path("..") / "cache"
    found = transcripts.survey([place], config.Transcribed(), cache=cache.resolve())
    used = {cut.custom["source"] for cut in found.cuts}
    listed = {str(Path(item.path).absolute()) for item in found.skipped}
    if place.is_dir():
        there = {str(item.path.absolute()) for item in data.find([place]) if item.audio}
        assert there <= used | listed, "a recording is neither used nor listed"
    inside = (f"{Path.cwd()}/", f"{cache.resolve()}/")
    if not found.layouts[0].startswith(ANYWHERE):
        assert all(source.startswith(inside) for source in used), "sound of another folder"
    assert all(item.reason for item in found.skipped)
    transcripts.facts(found.cuts, found.skipped)
    data.dump_skipped(found.skipped).encode()
    said, _ = transcripts.texts([place])
    if not any(path.is_symlink() for path in Path.cwd().rglob("*")):  # links are followed
        assert not any("do not read this" in text for text in said), "another file's text"
    return f"{len(found.cuts)} utterances, {len(found.skipped)} left out"


def _manifest(place: Path) -> str:
    clips, skipped = data.survey([place], config.Data(), cache=Path("..") / "cache")
    return f"{len(clips)} clips, {len(skipped)} left out"


def _tokenizer(place: Path) -> str:
    found = tokenizers.load(place)
    ids = found.encode(found.normalise("A bee sees a tree, 12 times!"))
    assert all(0 <= token < len(found) for token in ids)
    assert 0 <= found.blank < len(found)
    found.decode([found.blank, *ids, *ids], frames=True)
    tokenizers.fingerprint(found)
    tokenizers.save(found, Path("../written"))
    again = tokenizers.load(Path("../written"))
    assert again.encode("a bee") == found.encode("a bee"), "not what was written"
    held = b"".join(path.read_bytes() for path in Path("../written").rglob("*") if path.is_file())
    assert b"do not read this" not in held, "another file's text was taken along"
    return f"{len(found)} tokens"


def _model(place: Path) -> str:
    found = ngram.read(place)
    value = found.sentence(["a", "bee", "sees", "nothing"])
    assert value <= 0
    assert found.sizes()
    return f"order {found.order}"


def _texts(place: Path) -> str:
    said, skipped = transcripts.texts([place])
    return f"{len(said)} texts, {len(skipped)} left out"


READERS: dict[str, Callable[[Path], str]] = {
    "recipe": _recipe,
    "ctc recipe": lambda place: _recipe(place, config.CtcRecipe),
    "transcripts": _transcripts,
    "manifest": _manifest,
    "tokenizer": _tokenizer,
    "language model": _model,
    "texts": _texts,
}


def enclosed(seed: Seed, told: str) -> bool:
    """Whether nothing outside may be opened: so for tokenizers, and for files that are no links.

    Some layouts name any file of the machine; what is taken of it is looked at where it is read.
    """
    if seed.reader in ("transcripts", "manifest"):
        return False
    return seed.reader == "tokenizer" or "links to" not in told


def use(seed: Seed, folder: Path, told: str) -> tuple[str, str]:
    """Read it as the commands do."""
    return "used", READERS[seed.reader](Path(seed.place))
