"""Embeddings of files and folders: exact in any batch, long files at flat memory, resumable.

Letters in names: B clips in a batch, S samples, T frames, L layers, D width.
"""

import io
import json
import math
import os
import shutil
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distilkit import config, leftovers
from distilkit.audio import FRAME_SAMPLES, SAMPLE_RATE, AudioError, Samples, decode, load
from distilkit.data import Found, Skipped, Tracker, find, stamp, untracked
from distilkit.errors import DistilkitError, enclosed_below
from distilkit.files import MALFORMED, append_line, make_parent, parse_json, replacing, write_text
from distilkit.listeners import Encodes, Frames, Stream, encode_stream, in_order

WHOLE_SECONDS = 30.0  # recordings up to this are embedded whole
BATCH_SECONDS = 30.0  # audio in memory at once, padding counted
POOL_SECONDS = 480.0  # read ahead, so that clips of similar length share a batch
INDEX = "embeddings.jsonl"
SETTINGS = "embeddings.json"


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """One file's embedding, on disk."""

    id: str
    source: str
    output: str
    shape: tuple[int, ...]
    seconds: float  # a whole number of samples at 16 kHz
    stamp: str  # size and time of the source, to notice changes

    @property
    def samples(self) -> int:
        """Of the source, at 16 kHz."""
        return round(self.seconds * SAMPLE_RATE)


def layer_numbers(layer: str, depth: int) -> list[int]:
    """`last`, `all` or a number as a list of layers; 0 is the input of the first layer.

    Raises:
        DistilkitError: the model has no such layer.
    """
    if layer == "last":
        return [depth]
    if layer == "all":
        return list(range(depth + 1))
    if not layer.isdecimal() or int(layer) > depth:
        raise DistilkitError(
            f"`--layer {layer}`: this model has layers 0 to {depth}",
            "--layer last, --layer all, --layer 1",
        )
    return [int(layer)]


def embed(
    inputs: Sequence[str | Path],
    encoder: Encodes,
    *,
    layer: str = "last",
    pool: config.Pool = "none",
    out: Path | None = None,
    format: config.EmbeddingFormat = "npy",
    name: str = "",
    device: str = "cpu",
    track: Tracker = untracked,
) -> tuple[list[Embedded], list[Skipped], Path]:
    """Embed files and folders and write the results.

    A single file gives one array at `out` (`NAME.npy` in the current folder when None). Otherwise
    `npy` gives a folder of arrays at the inputs' relative paths, and the other formats one file
    with the ids as keys. What an earlier, interrupted call has finished is kept; the rest gets the
    batch mates that it would have had, so that the result is the same to the last bit.

    Args:
        inputs: audio files, folders, lhotse manifests.
        encoder: the model, of PyTorch or exported.
        layer: `last`, `all`, or a number from 0 to the model's depth.
        pool: `none` for frames (T, D), `mean` for one vector (D,); with `all`, (L, T, D) or (L, D).
        out: where to write.
        format: `npy`, `npz`, `safetensors` or `parquet`.
        name: the model's name, to notice when `out` holds another model's embeddings.
        device: torch device to compute on.
        track: wraps an iterable to show progress.

    Returns:
        what was embedded, what was skipped, and the file or folder that holds the results.

    Raises:
        DistilkitError: an input is missing, nothing could be embedded, `out` holds something else.
    """
    layers = layer_numbers(layer, encoder.depth)
    if format == "parquet":
        _parquet()
    found = list(find(inputs))
    single = len(inputs) == 1 and len(found) == 1 and not Path(inputs[0]).is_dir()
    stem = Path(inputs[0]).stem if single else "embeddings"
    target = out or Path(stem if format == "npy" and not single else f"{stem}.{format}")
    alone = single and format == "npy" and (out is None or out.suffix == ".npy")
    settings = {
        "model": name,
        "fingerprint": encoder.digest,
        "layers": layers,
        "pool": pool,
        "format": format,
    }
    folder = target if format == "npy" else target.with_name(f".{target.name}.parts")
    if format != "npy":
        make_parent(target)  # before everything is listened to
    leftovers.tidy(target)
    leftovers.tidy(folder)
    with ExitStack() as holding:
        if alone:
            folder = target.parent
            outputs = {found[0].id: target.name}
            done: dict[str, Embedded] = {}
        else:
            outputs = _output_names(found)
            if folder.exists() and not folder.is_dir():
                raise DistilkitError(f"`{folder}` is a file", "another --out")
            holding.enter_context(leftovers.held(folder, target))
            done = _reopen(folder, settings, target)
        encoder.to(device)
        embedded: list[Embedded] = []
        skipped: list[Skipped] = []
        results = _embed_all(found, encoder, layers, layer == "all", pool, folder, outputs, done)
        for result in track(results, description="embedding", total=len(found)):
            if isinstance(result, Skipped):
                skipped.append(result)
                continue
            embedded.append(result)
            if not alone and result.id not in done:
                append_line(folder / INDEX, json.dumps(asdict(result), ensure_ascii=False))
        if not embedded:
            if not alone and not done:
                _remove_if_empty(folder)
            shown = "".join(f"\n  {item.path}: {item.reason}" for item in skipped[:5])
            names = ", ".join(f"`{item}`" for item in inputs)
            raise DistilkitError(f"nothing to embed in {names}{shown}", "distilkit inspect FOLDER")
        order = {item.id: place for place, item in enumerate(found)}
        embedded.sort(key=lambda item: order[item.id])
        if format != "npy":
            with replacing(target) as beside:
                PACKERS[format](folder, embedded, beside)
            leftovers.remove(folder)
    return embedded, skipped, target


# --------------------------------------------------------------------------------------- computing


def _embed_all(
    found: Sequence[Found],
    encoder: Encodes,
    layers: Sequence[int],
    stacked: bool,
    pool: config.Pool,
    folder: Path,
    outputs: dict[str, str],
    done: dict[str, Embedded],
) -> Iterator[Embedded | Skipped]:
    waiting: list[
        tuple[Found, int, Samples | None]
    ] = []  # samples; the sound of what is to be done

    def write(item: Found, pieces: Iterator[Frames], samples: Callable[[], int]) -> Embedded:
        shape = _write(folder / outputs[item.id], pieces, stacked, pool)
        return Embedded(
            id=item.id,
            source=str(item.path),
            output=outputs[item.id],
            shape=shape,
            seconds=samples() / SAMPLE_RATE,
            stamp=stamp(item.path),
        )

    def flush() -> Iterator[Embedded]:
        for chosen in in_order([samples for _, samples, _ in waiting], BATCH_SECONDS):
            batch = [waiting[place] for place in chosen]
            if all(wave_S is None for _, _, wave_S in batch):
                yield from (done[item.id] for item, _, _ in batch)
                continue
            clips = [load(item.path) if wave_S is None else wave_S for item, _, wave_S in batch]
            results = encoder.states(clips, layers)
            for (item, _, wave_S), clip, result_LTD in zip(batch, clips, results, strict=True):
                if wave_S is None:
                    yield done[item.id]
                else:
                    yield write(item, iter([result_LTD]), clip.__len__)
        waiting.clear()

    def full() -> bool:
        return sum(samples for _, samples, _ in waiting) >= POOL_SECONDS * SAMPLE_RATE

    for item in found:
        if not item.audio:
            yield Skipped(path=str(item.path), reason=item.reason, kind="not audio")
            continue
        try:
            if item.id in done and done[item.id].stamp == stamp(item.path):
                if done[item.id].seconds > WHOLE_SECONDS:
                    yield done[item.id]
                else:
                    waiting.append((item, done[item.id].samples, None))
                    yield from flush() if full() else ()
                continue
            stream = Stream(decode(item.path).blocks)
            head = stream.take(int(WHOLE_SECONDS * SAMPLE_RATE) + 1)
            if len(head) < FRAME_SAMPLES:
                raise AudioError(
                    f"{len(head) / SAMPLE_RATE:.3f} s is shorter than one frame (0.025 s)"
                )
            if len(head) > WHOLE_SECONDS * SAMPLE_RATE:
                pieces = encode_stream(encoder, head, stream, layers)
                yield write(item, pieces, lambda stream=stream: stream.samples)  # type: ignore[misc]
                continue
        except AudioError as error:
            yield Skipped(path=str(item.path), reason=error.about(item.path), kind="unusable")
            continue
        waiting.append((item, len(head), head))
        if full():
            yield from flush()
    yield from flush()


def live(blocks: Iterable[Samples], encoder: Encodes, layer: str = "last") -> Iterator[Frames]:
    """Chosen layers of a source as it goes on, (L, t, D) each, at flat memory.

    Joined, they are those of the file. The first come after `WHOLE_SECONDS`, the others every 16 s.

    Args:
        blocks: mono float32 samples at 16 kHz, as they arrive.
        encoder: the model, of PyTorch or exported.
        layer: `last`, `all`, or a number from 0 to the model's depth.

    Raises:
        DistilkitError: no such layer, or no frame of sound.
    """
    layers, stream = layer_numbers(layer, encoder.depth), Stream(blocks)
    head = stream.take(int(WHOLE_SECONDS * SAMPLE_RATE) + 1)
    if len(head) < FRAME_SAMPLES:
        raise DistilkitError(f"{len(head) / SAMPLE_RATE:.3f} s is shorter than one frame (0.025 s)")
    if len(head) > WHOLE_SECONDS * SAMPLE_RATE:
        yield from encode_stream(encoder, head, stream, layers)
        return
    yield from encoder.states([head], layers)


def save_live(
    pieces: Iterator[Frames], path: Path, layer: str, pool: config.Pool
) -> tuple[int, ...]:
    """Write what `live` gives as one array, once the source has ended; its shape."""
    leftovers.tidy(path)
    return _write(path, pieces, layer == "all", pool)


# --------------------------------------------------------------------------------------- writing


def _write(
    path: Path, pieces: Iterator[Frames], stacked: bool, pool: config.Pool
) -> tuple[int, ...]:
    """Write pieces (L, t, D) as one .npy array, whole, at flat memory; returns its shape.

    The array is (L, T, D) when `stacked`, else (T, D); without T when pooled.
    """
    make_parent(path)
    with replacing(path) as beside:
        if pool == "mean":
            total, count = np.zeros(()), 0
            for piece_LTD in pieces:
                total = total + piece_LTD.sum(1, dtype=np.float64)
                count += piece_LTD.shape[1]
            pooled = (total / count).astype(np.float32)
            pooled = pooled if stacked else pooled[0]
            with beside.open("wb") as file:
                np.save(file, pooled)
            return pooled.shape
        parts: list[Path] = []
        frames_written, width = 0, 0
        try:
            for piece_LTD in pieces:
                mode = "ab" if parts else "wb"
                parts = [beside.with_name(f"{beside.name}.{i}") for i in range(len(piece_LTD))]
                for part, rows in zip(parts, piece_LTD, strict=True):
                    with part.open(mode) as file:
                        file.write(np.ascontiguousarray(rows).data)
                frames_written, width = frames_written + piece_LTD.shape[1], piece_LTD.shape[2]
            shape = (len(parts), frames_written, width) if stacked else (frames_written, width)
            with beside.open("wb") as file:
                file.write(_header(shape))
                for part in parts:
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, file, 1 << 20)
        finally:
            for part in parts:
                part.unlink(missing_ok=True)
    return shape


def _output_names(found: Sequence[Found]) -> dict[str, str]:
    """`a/b.flac` becomes `a/b.npy`; where two would meet, both keep their full name."""
    stems = Counter(os.path.splitext(item.id)[0] for item in found if item.audio)
    names = {}
    for item in found:
        stem = os.path.splitext(item.id)[0]
        names[item.id] = f"{stem}.npy" if stems[stem] == 1 else f"{item.id}.npy"
    return names


def _reopen(folder: Path, settings: dict[str, Any], target: Path) -> dict[str, Embedded]:
    """What an earlier call with the same settings has finished in `folder`.

    Raises:
        DistilkitError: the place is taken by something else.
    """
    leftovers.tidy(folder / SETTINGS)
    if any(folder.iterdir()):
        try:
            if not (folder / SETTINGS).is_file():  # a device has no end, and a pipe waits for ever
                raise ValueError("no settings")
            there = parse_json((folder / SETTINGS).read_text(encoding="utf-8"))
            if not isinstance(there, dict):
                raise ValueError("no settings")
            enclosed_below(folder)  # it is written to
        except (OSError, ValueError) as error:
            raise DistilkitError(
                f"`{folder}` is not empty and holds no embeddings", "another --out"
            ) from error
        if there != settings:
            changed = ", ".join(
                f"{key} {there.get(key)} there, {value} here"
                for key, value in settings.items()
                if there.get(key) != value
            )
            raise DistilkitError(
                f"`{target}` holds other embeddings: {changed}", "another --out, or remove it"
            )
        leftovers.tidy_below(folder)
        index = folder / INDEX
        text = index.read_bytes().decode("utf-8", "replace") if index.is_file() else ""
        lines = text.split("\n")[:-1]
        write_text(index, "".join(line + "\n" for line in lines))
        rows = [_embedded(line, number, index) for number, line in enumerate(lines, 1)]
        return {row.id: row for row in rows if _is_whole(folder / row.output, row.shape)}
    write_text(folder / SETTINGS, json.dumps(settings, ensure_ascii=False, indent=2) + "\n")
    return {}


def _embedded(line: str, number: int, index: Path) -> Embedded:
    """What a line of the index says; nothing outside the folder is taken for an embedding."""
    try:
        row = Embedded(**parse_json(line))
        texts = row.id, row.source, row.output, row.stamp
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("other values than are written")
        place = (index.parent / row.output).resolve()
        if not place.is_relative_to(index.parent.resolve()):
            raise ValueError(f"`{row.output}` leads out of the folder")
        if row.samples < 0 or any(size < 0 for size in row.shape):
            raise ValueError("less than nothing")
    except (*MALFORMED, OSError, RuntimeError) as error:  # of links that lead to one another
        raise DistilkitError(
            f"`{index}` is damaged: line {number}: {error}", "another --out, or remove it"
        ) from error
    return row


def _is_whole(path: Path, shape: Sequence[int]) -> bool:
    """Whether an array is there as it was written; where it is not, it is embedded anew."""
    try:
        header = _header(shape)
        size = path.stat().st_size if path.is_file() else 0
        if size != len(header) + 4 * math.prod(shape):
            return False
        with path.open("rb") as file:
            return file.read(len(header)) == header
    except (*MALFORMED, OSError):
        return False


def _header(shape: Sequence[int]) -> bytes:
    """How the file of an array of that shape begins."""
    file = io.BytesIO()
    told = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, told)
    return file.getvalue()


def _remove_if_empty(folder: Path) -> None:
    if {path.name for path in folder.iterdir()} <= {SETTINGS, INDEX}:
        leftovers.remove(folder)


def _pack_npz(folder: Path, items: Sequence[Embedded], path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for item in items:
            held = zipfile.ZipInfo(f"{item.id}.npy")  # without a time: equal vectors, equal files
            with (
                (folder / item.output).open("rb") as source,
                archive.open(held, "w", force_zip64=True) as to,
            ):
                shutil.copyfileobj(source, to, 1 << 20)


def _pack_safetensors(folder: Path, items: Sequence[Embedded], path: Path) -> None:
    """One tensor per id, streamed: safetensors' own writer wants all of them in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    at = 0
    for item in items:
        size = 4 * int(np.prod(item.shape))
        header[item.id] = {
            "dtype": "F32",
            "shape": list(item.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for item in items:
            array = np.load(folder / item.output, mmap_mode="r")
            for start in range(0, array.shape[0], 4096):
                file.write(np.ascontiguousarray(array[start : start + 4096]).data)


def _parquet() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DistilkitError(
            "`--format parquet` needs pyarrow", "pip install 'distilkit[parquet]'"
        ) from error
    return pyarrow


def _pack_parquet(folder: Path, items: Sequence[Embedded], path: Path) -> None:
    """A row per vector: `id`, `row` (its place in the array without its last axis), `embedding`."""
    arrow = _parquet()
    width = items[0].shape[-1]
    fields = [
        ("id", arrow.string()),
        ("row", arrow.int64()),
        ("embedding", arrow.list_(arrow.float32(), width)),
    ]
    with arrow.parquet.ParquetWriter(path, arrow.schema(fields)) as writer:
        for item in items:
            rows = np.load(folder / item.output, mmap_mode="r").reshape(-1, width)
            for start in range(0, len(rows), 16_384):
                part = np.ascontiguousarray(rows[start : start + 16_384])
                vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(part.reshape(-1)), width)
                places = arrow.array(np.arange(start, start + len(part)))
                ids = arrow.array([item.id] * len(part))
                writer.write_table(arrow.table([ids, places, vectors], schema=arrow.schema(fields)))


PACKERS: dict[str, Callable[[Path, Sequence[Embedded], Path], None]] = {
    "npz": _pack_npz,
    "safetensors": _pack_safetensors,
    "parquet": _pack_parquet,
}
