"""How alike the layers of one or two models are (linear CKA), and which of them to predict.

Letters in names: B clips in a batch, S samples, T frames, D width, L layers of the model,
K layers of what it is compared with, M all numbers of a frame (L x D, or K x D).
"""

import math
import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from distilkit import leftovers, plan
from distilkit.audio import FRAME_SAMPLES, SAMPLE_RATE, Samples, clock, decode
from distilkit.data import Found, Skipped, Tracker, find, untracked
from distilkit.encoder import Encoder, encode, frame_mask
from distilkit.errors import DistilkitError
from distilkit.files import replacing
from distilkit.listeners import in_order

MINUTES = 10.0  # of audio, unless asked otherwise
CLIP_SECONDS = 30.0  # longer recordings are heard in clips of this length
BATCH_SECONDS = 30.0  # audio in memory at once, padding counted
POOL_SECONDS = 240.0  # read ahead, so that clips of similar length share a batch
OPEN_FILES = 32  # long recordings that are read in turn
CHUNK_FRAMES = 512  # frames that are turned to fp64 at once
USUAL = (4, 8, 12)  # of 12: DistilHuBERT (arXiv 2110.01900), section 4
PICTURES = ("layers.png", "layers.svg")

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """How alike layers are, and what that was measured on."""

    cka_LK: Matrix
    rows: list[int]  # layer numbers of the model, L
    columns: list[int]  # those of what it is compared with, K; the same where that is itself
    width: int  # of the wider model
    frames: int
    seconds: float
    used: int  # files heard
    files: int  # audio files found
    skipped: list[Skipped]
    notes: list[str]

    @property
    def bests(self) -> list[tuple[int, float]]:
        """For each row, the layer among the columns that it is most like, and how much."""
        places = self.cka_LK.argmax(1)
        return [(self.columns[j], float(self.cka_LK[i, j])) for i, j in enumerate(map(int, places))]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Layers to predict, and how well they stand for all layers."""

    layers: list[int]
    coverage: float  # mean over all layers of the CKA to the chosen layer that each is most like
    covers: list[list[int]]  # the layers that each chosen one stands for


# -------------------------------------------------------------------------------------- similarity


class Products:
    """Sums of centred products over frames, for the linear CKA of all pairs of layers.

    Linear CKA of two layers with centred frames X (T, D) and Y (T, E) is
    |Y'X|^2 / (|X'X| |Y'Y|) in Frobenius norms: Kornblith et al. 2019, arXiv 1905.00414, section 3
    and table 1. Only the products are kept, in fp64, so memory does not grow with the frames. The
    means move as frames come; a part's own mean costs one more row of its product (Chan, Golub
    and LeVeque 1979).
    """

    def __init__(self) -> None:
        self.frames = 0
        self._sums: list[Tensor] = []  # row i: (D, M) against all columns, or against i and later
        self._own: list[Tensor] = []  # (L, D, D) and (K, E, E), where there are two models
        self._means: list[Tensor] = []  # (M,) of each model
        self._layers: list[int] = []  # L, and K where there are two models

    def add(self, x_LTD: Tensor, y_KTE: Tensor | None = None) -> None:
        """Take frames of all layers of a model, and of another one that heard the same.

        Args:
            x_LTD: layers, frames, width; any floating type.
            y_KTE: those of the other model; None compares the layers of one model.
        """
        both = [x_LTD] if y_KTE is None else [x_LTD, y_KTE]
        if not self._means:
            self._begin(both)
        for start in range(0, x_LTD.shape[1], CHUNK_FRAMES):
            self._add([part[:, start : start + CHUNK_FRAMES] for part in both])

    def _begin(self, both: list[Tensor]) -> None:
        fp64: dict[str, Any] = {"dtype": torch.float64}
        self._layers = [len(part) for part in both]
        self._means = [torch.zeros(len(part) * part.shape[2], **fp64) for part in both]
        width, columns = both[0].shape[2], len(self._means[-1])
        skipped = width if len(both) == 1 else 0  # of one model, every pair once
        self._sums = [
            torch.zeros(width, columns - i * skipped, **fp64) for i in range(len(both[0]))
        ]
        if len(both) == 2:
            self._own = [
                torch.zeros(len(part), part.shape[2], part.shape[2], **fp64) for part in both
            ]

    def _add(self, both: list[Tensor]) -> None:
        count = both[0].shape[1]
        weight = math.sqrt(self.frames * count / (self.frames + count))
        rows_TM = []
        for k, part in enumerate(both):
            x_TM = part.cpu().double().transpose(0, 1).flatten(1)
            mean_M = x_TM.mean(0)
            moved_M = mean_M - self._means[k]
            self._means[k] += moved_M * (count / (self.frames + count))
            rows_TM.append(torch.cat([x_TM - mean_M, weight * moved_M[None]]))
        width = both[0].shape[2]
        for i, sums in enumerate(self._sums):
            others = rows_TM[-1][:, -sums.shape[1] :]
            sums.addmm_(rows_TM[0][:, i * width : (i + 1) * width].T, others)
        for own, x_TM in zip(self._own, rows_TM, strict=False):
            x_LTD = x_TM.view(-1, *own.shape[:2]).transpose(0, 1)
            own.baddbmm_(x_LTD.mT, x_LTD)
        self.frames += count

    def cka(self) -> Matrix:
        """CKA of every layer with every layer, (L, K); 0 where a layer never changes."""
        rows, columns = self._layers[0], self._layers[-1]
        norms = np.zeros((rows, columns))
        for i, sums in enumerate(self._sums):
            there = columns if self._own else columns - i
            parts = sums.view(len(sums), there, -1)
            norms[i, columns - there :] = parts.square().sum((0, 2)).sqrt().numpy()
        if self._own:
            x_L, y_K = (own.square().sum((1, 2)).sqrt().numpy() for own in self._own)
        else:
            norms = np.maximum(norms, norms.T)
            x_L = y_K = norms.diagonal()
        most = np.outer(x_L, y_K)
        with np.errstate(invalid="ignore"):
            cka_LK: Matrix = np.divide(norms**2, most, out=np.zeros_like(norms), where=most != 0)
        return cka_LK


def similarity(
    inputs: Sequence[str | Path],
    encoder: Encoder,
    against: Encoder | None = None,
    *,
    minutes: float = MINUTES,
    device: str = "cpu",
    batch_seconds: float = BATCH_SECONDS,
    free_bytes: int | None = None,
    track: Tracker = untracked,
) -> Similarity:
    """Linear CKA between all layers of a model, or of two models, over the user's audio.

    Every clip counts only its own frames, so batches do not change the result. Of a file that is
    found damaged behind its first clips, those clips have been heard.

    Args:
        inputs: audio files, folders, lhotse manifests.
        encoder: the model; its layers are the rows.
        against: the model whose layers are the columns; None for the same one.
        minutes: of audio, at most; `sample` says which.
        device: torch device for the models; products are summed on the CPU.
        batch_seconds: audio in memory at once, padding counted.
        free_bytes: memory that sums may take half of; None for what is free now.
        track: wraps an iterable to show progress, an item a second of audio.

    Raises:
        DistilkitError: an input is missing, nothing can be heard, or a model gives values that
            are not finite.
    """
    found = list(find(inputs))
    free = plan.memory("cpu") if free_bytes is None else free_bytes
    encoders = [encoder] if against is None else [encoder, against]
    chosen, notes = _fitting(encoders, free // 2)
    for each in encoders:
        each.model.to(device).eval()
    products, skipped, used, heard = Products(), [], set[str](), 0

    def work() -> Iterator[None]:
        nonlocal heard
        waiting: list[Samples] = []
        for item in [*sample(found, int(minutes * 60 * SAMPLE_RATE)), None]:
            if isinstance(item, Skipped):
                skipped.append(item)
                continue
            if item is not None:
                used.add(item[0])
                waiting.append(item[1])
            pooled = sum(map(len, waiting))
            if item is None or pooled >= POOL_SECONDS * SAMPLE_RATE:
                for picked in in_order([len(clip) for clip in waiting], batch_seconds):
                    clips = [waiting[i] for i in picked]
                    states = [
                        _hidden(clips, model, layers, device)
                        for model, layers in zip(encoders, chosen, strict=True)
                    ]
                    products.add(*states)
                    before, heard = heard, heard + sum(map(len, clips))
                    yield from [None] * (heard // SAMPLE_RATE - before // SAMPLE_RATE)
                waiting.clear()

    for _ in track(work(), description="seconds of audio", total=math.ceil(minutes * 60)):
        pass
    if products.frames < 2:
        shown = "".join(f"\n  {item.path}: {item.reason}" for item in skipped[:5])
        names = ", ".join(f"`{item}`" for item in inputs)
        raise DistilkitError(f"nothing to compare in {names}{shown}", "distilkit inspect FOLDER")
    cka_LK = products.cka()
    if not np.isfinite(cka_LK).all():
        raise DistilkitError(
            "the model gives values that are not finite numbers", "distilkit inspect MODEL"
        )
    return Similarity(
        cka_LK=cka_LK,
        rows=chosen[0],
        columns=chosen[-1],
        width=max(model.width for model in encoders),
        frames=products.frames,
        seconds=heard / SAMPLE_RATE,
        used=len(used),
        files=sum(item.audio for item in found),
        skipped=skipped,
        notes=notes,
    )


def _hidden(
    clips: Sequence[Samples], encoder: Encoder, layers: Sequence[int], device: str
) -> Tensor:
    """Chosen layers of all frames that belong to a clip, (L, T, D)."""
    lengths = [len(clip) for clip in clips]
    wave_BS = pad_sequence(
        [torch.from_numpy(np.ascontiguousarray(clip)) for clip in clips], batch_first=True
    ).to(device)
    with torch.inference_mode():
        hidden = encode(encoder, wave_BS, lengths, layers)
        mask_BT = frame_mask(lengths, hidden[0].shape[1], wave_BS.device)
        return torch.stack([layer_BTD[mask_BT] for layer_BTD in hidden])


def _fitting(encoders: Sequence[Encoder], budget: int) -> tuple[list[list[int]], list[str]]:
    """Layers of each model whose sums fit in `budget` bytes: all of them, or every so many."""

    def chosen(step: int) -> list[list[int]]:
        return [
            sorted({*range(0, model.depth, step), *scaled(model.depth), model.depth})
            for model in encoders
        ]

    def size(step: int) -> int:
        numbers = [len(c) * m.width for c, m in zip(chosen(step), encoders, strict=True)]
        if len(encoders) == 1:
            return 4 * numbers[0] * (numbers[0] + encoders[0].width)
        own = sum(n * m.width for n, m in zip(numbers, encoders, strict=True))
        return 8 * (numbers[0] * numbers[1] + own)

    step, deepest = 1, max(model.depth for model in encoders)
    while size(step) > budget and step < deepest:
        step += 1
    if step == 1:
        return chosen(1), []
    note = (
        f"one layer in {step} is compared: all of them take {size(1) / 2**30:.1f} GiB, "
        f"and {budget / 2**30:.1f} GiB is half of what is free"
    )
    return chosen(step), [note]


# -------------------------------------------------------------------------------------------- audio


def spread(count: int) -> list[int]:
    """The numbers below `count` in an order whose every beginning is spread over all of them.

    Sorted by the fractional part of multiples of the golden ratio.
    """
    golden = (math.sqrt(5) - 1) / 2
    return sorted(range(count), key=lambda i: i * golden % 1)


def sample(found: Sequence[Found], limit: int) -> Iterator[tuple[str, Samples] | Skipped]:
    """Clips from files spread over all that was found, `limit` samples in all; no chance in it.

    First one clip of each file, in the order of `spread`; if that is less than the limit, the
    second clip of each, and so on.

    Returns:
        (id, samples) of each clip, and every file that cannot be used or is not audio.
    """
    for item in found:
        if not item.audio:
            yield Skipped(path=str(item.path), reason=item.reason, kind="not audio")
    audio = [item for item in found if item.audio]
    fresh = deque(audio[i] for i in spread(len(audio)))
    opened: deque[tuple[Found, Iterator[Samples]]] = deque()
    while (fresh or opened) and limit >= FRAME_SAMPLES:
        first = bool(fresh)
        item, clips = (fresh[0], _clips(fresh.popleft().path)) if first else opened.popleft()
        try:
            clip = next(clips, np.zeros(0, np.float32))
            if first and len(clip) < FRAME_SAMPLES:
                raise DistilkitError(
                    f"{len(clip) / SAMPLE_RATE:.3f} s is shorter than one frame (0.025 s)"
                )
        except DistilkitError as error:
            yield Skipped(path=str(item.path), reason=error.about(item.path), kind="unusable")
            continue
        if len(clip) < FRAME_SAMPLES:
            continue
        if len(clip) == int(CLIP_SECONDS * SAMPLE_RATE) and len(opened) < OPEN_FILES:
            opened.append((item, clips))
        clip = clip[:limit]
        limit -= len(clip)
        yield item.id, clip


def _clips(path: Path) -> Iterator[Samples]:
    """A recording in clips of `CLIP_SECONDS`, the last one shorter."""
    size, waiting = int(CLIP_SECONDS * SAMPLE_RATE), np.zeros(0, np.float32)
    for block in decode(path).blocks:
        waiting = np.concatenate([waiting, block])
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]
    yield waiting


# ---------------------------------------------------------------------------------- recommendation


def choice(cka_LL: Matrix, layers: Sequence[int], picked: Sequence[int]) -> Choice:
    """How well `picked` layers stand for all `layers`, each by the picked one it is most like."""
    places = [layers.index(layer) for layer in picked]
    near = cka_LL[:, places].argmax(1)
    return Choice(
        layers=list(picked),
        coverage=float(cka_LL[:, places].max(1).mean()),
        covers=[
            [layers[i] for i in np.flatnonzero(near == j).tolist()] for j in range(len(places))
        ],
    )


def recommend(cka_LL: Matrix, layers: Sequence[int], heads: int) -> Choice:
    """The `heads` layers from 1 up that stand for all layers best; all pairs tried, so exact.

    The medoids of Kaufman and Rousseeuw 1987 with CKA as the likeness: the sum over all layers of
    the CKA to the chosen layer that each is most like is greatest. Of equals, the lowest layers.

    Args:
        cka_LL: similarity of one model's layers, symmetric.
        layers: their numbers, ascending.
        heads: how many to choose; all of them where there are fewer.
    """
    places = [i for i, layer in enumerate(layers) if layer >= 1]
    heads = min(heads, len(places))
    best, picked = -1.0, places[:heads]
    for before in combinations(places, heads - 1):
        last = [i for i in places if not before or i > before[-1]]
        if not last:
            continue
        likeness_LK = cka_LL[:, last]
        if before:
            likeness_LK = np.maximum(likeness_LK, cka_LL[:, before].max(1)[:, None])
        sums_K = likeness_LK.sum(0)
        found = int(np.argmax(sums_K > sums_K.max() - 1e-9))
        if sums_K[found] > best + 1e-9:
            best, picked = float(sums_K[found]), [*before, last[found]]
    return choice(cka_LL, layers, [layers[i] for i in picked])


def scaled(depth: int) -> list[int]:
    """Layers 4, 8, 12 of a 12-layer teacher, which DistilHuBERT predicts, scaled to a depth."""
    return sorted({max(1, round(layer * depth / USUAL[-1])) for layer in USUAL})


# ------------------------------------------------------------------------------------------ picture


def check_pictures(folder: Path) -> None:
    """See beforehand that pictures can be drawn and written.

    Raises:
        DistilkitError: no matplotlib, or `folder` is taken or cannot be made.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise DistilkitError(
            f"`--out {folder}` draws a picture and needs matplotlib",
            "pip install 'distilkit[report]'",
        ) from error
    leftovers.tidy(folder)
    for name in PICTURES:
        leftovers.vacate(folder / name)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise DistilkitError(f"`{folder}` cannot be a folder: a file is there", "another --out")
    if not os.access(there, os.W_OK):
        raise DistilkitError(f"cannot make `{folder}`: Permission denied", "another --out")


def draw(
    result: Similarity,
    folder: Path,
    name: str,
    against: str | None = None,
    picked: Sequence[int] = (),
) -> list[Path]:
    """Write a heat map as PNG and SVG into `folder`, which is made if new.

    Outlined are the `picked` layers, or with two models the column that each row is most like.

    Args:
        result: what to draw.
        folder: where to.
        name: the model's name.
        against: the other model's name.
        picked: layers of one model to outline.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows, columns = len(result.rows), len(result.columns)
    cell = 0.48 if max(rows, columns) <= 26 else 0.26
    size = (max(7.0, 2.2 + cell * columns), max(3.2, 1.7 + cell * rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    low = math.floor(min(0.9, float(result.cka_LK.min())) * 10) / 10
    image = axes.imshow(result.cka_LK, vmin=low, vmax=1.0, cmap="viridis", origin="lower")
    figure.colorbar(image, ax=axes, label="linear CKA", shrink=0.9)
    axes.set_xticks(range(columns), [str(layer) for layer in result.columns])
    axes.set_yticks(range(rows), [str(layer) for layer in result.rows])
    axes.set_xlabel(f"layer of {_short(against)}" if against else "layer", parse_math=False)
    axes.set_ylabel(f"layer of {_short(name, 20)}" if against else "layer", parse_math=False)
    outlined = "the layer that each row is most like"
    title = f"Linear CKA, {_short(name)}"
    if against:
        title += f"\nagainst {_short(against)}"
    else:
        outlined = f"the {len(picked)} that stand for all layers best"
    measured = f"{clock(result.seconds)} of audio, {result.frames:,} frames"
    if against or picked:
        measured += f"; outlined: {outlined}"
    axes.set_title(f"{title}\n{measured}", parse_math=False, fontsize="medium")
    if cell > 0.4:
        for i, row in enumerate(result.cka_LK):
            for j, value in enumerate(row):
                dark = value < (low + 1) / 2
                text, colour = f"{value:.2f}", "white" if dark else "black"
                axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=7)
    marked = (
        [(i, result.columns.index(layer)) for i, (layer, _) in enumerate(result.bests)]
        if against
        else [(result.rows.index(layer),) * 2 for layer in picked]
    )
    for i, j in marked:
        frame = Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=1.8)
        axes.add_patch(frame).set_clip_on(False)
    paths = [folder / picture for picture in PICTURES]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        # The same file every time, with words that can be searched.
        matplotlib.rc_context({"svg.hashsalt": "distilkit", "svg.fonttype": "none"}),
        warnings.catch_warnings(action="ignore"),  # of letters that the font lacks
        ExitStack() as whole,  # all are drawn before the first is put in its place
    ):
        if folder.is_dir():
            places = [whole.enter_context(replacing(path)) for path in paths]
        else:
            beside = whole.enter_context(replacing(folder, new=True))
            beside.mkdir()
            places = [beside / picture for picture in PICTURES]
        for path, place in zip(paths, places, strict=True):
            form = path.suffix[1:]
            metadata = {"Date": None} if form == "svg" else {}
            figure.savefig(place, format=form, dpi=150, metadata=metadata)
    return paths


def _short(name: str, most: int = 48) -> str:
    """A name that fits: the end of a long one."""
    return name if len(name) <= most else f"…{name[1 - most :]}"
