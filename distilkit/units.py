"""Hidden units of recordings, as HuBERT and DiceHuBERT use them: found by k-means, written as text."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import ne
from pathlib import Path

from lhotse import MonoCut

from distilkit import cards, codebooks, config, data, leftovers, stored
from distilkit.audio import frames
from distilkit.batches import count, whole
from distilkit.codebooks import Codebook, Source
from distilkit.encoder import Encoder, fingerprint
from distilkit.errors import DistilkitError, enclosed_below
from distilkit.files import digest, discard, read_object, replacing, write_text
from distilkit.targets import LiveTargets, Targets, live_mfcc, live_units, normalised

MICRO_SECONDS = 60.0  # audio in memory at once, padding counted
WINDOWS = config.Data(valid_fraction=0.0)
ASKED = "asked.json"


@dataclass(frozen=True, kw_only=True)
class Units:
    """What was written."""

    folder: Path
    codebook: Codebook
    windows: int
    seconds: float
    used: int  # units that occur
    perplexity: float  # 2 to the entropy of the units: how many they are worth
    run_frames: float  # frames until the unit changes, on average
    skipped: list[data.Skipped]


def units(
    audio: Sequence[str | Path],
    out: Path,
    *,
    model: Encoder | None = None,
    called: tuple[str, str] = ("", ""),
    layer: int | None = None,
    clusters: int = 100,
    codebook: Path | None = None,
    normalise: bool = False,
    minutes: float = 60.0,
    seed: int = 0,
    device: str = "cpu",
    track: data.Tracker = data.untracked,
) -> Units:
    """Find clusters of frames and write which one each frame of each recording is.

    The folder holds `codebook.safetensors` (for `objective.codebook`), `units.jsonl` (one window a
    line: recording, start, seconds, units at 50 a second), `units.km` (the same units as fairseq
    writes them) and `skipped.tsv`. What a call that was stopped has found is kept beside `out`, and
    the same call goes on from there.

    Args:
        audio: folders, files or lhotse manifests.
        out: the folder to write; must not exist.
        model: whose layer is clustered; None clusters MFCC.
        called: the model's name and where it lies, for the card.
        layer: which layer; the middle one when None.
        clusters: how many.
        codebook: use these clusters in place of finding some.
        normalise: bring the layer to zero mean and unit variance over each clip beforehand.
        minutes: of audio that the clusters are found on.
        seed: of the choice of audio and of k-means.
        device: where the model runs.
        track: wraps an iterable to show progress.

    Raises:
        DistilkitError: no such layer, too little audio, a codebook that does not fit, `out` exists.
    """
    parts = out.with_name(f".{out.name}.parts")
    leftovers.tidy(out)
    leftovers.tidy(parts)
    _check_new(out, parts)
    seen, source = _features(model, layer, normalise, device)
    clips, skipped = data.survey(audio, WINDOWS, track=track)
    windows = [cut for clip in clips for cut in data.cuts(clip)]
    if not windows:
        raise DistilkitError("no usable audio in " + ", ".join(f"`{a}`" for a in audio))
    chosen = data.some(windows, minutes * 60, seed)
    given = None
    if codebook is not None:
        codebooks.check_source(codebooks.load(codebook), codebook, source)
        given = codebook / codebooks.FILE if codebook.is_dir() else codebook
    else:
        codebooks.check(sum(frames(cut.num_samples) for cut in chosen), clusters)
    with leftovers.held(parts, out):
        _check_new(out, parts)  # whoever held it may have come to its end
        _begin(parts, source, clusters, digest(given) if given else "", minutes, seed, windows)
        kept = given or parts / codebooks.FILE
        if not kept.is_file():
            batches = track(
                whole(chosen, MICRO_SECONDS),
                description="finding clusters, batches",
                total=count(chosen, MICRO_SECONDS),
            )
            features = (
                (seen(batch.wave_BS.to(device), batch.lengths), batch.lengths) for batch in batches
            )
            with replacing(kept) as beside:
                codebooks.save(codebooks.find(features, clusters, source, seed), beside)
        found = codebooks.load(kept)
        store = stored.Store(parts / "units", _kept(source, digest(kept)))
        filling = stored.fill(store, windows, live_units(seen, found), MICRO_SECONDS, device)
        for _ in track(filling, description="units", total=len(store.missing(windows))):
            pass
        named = {cut.id: store.read(cut)[0].tolist() for cut in windows}
        counts = Counter(unit for row in named.values() for unit in row)
        total = sum(counts.values())
        changes = sum(1 + sum(map(ne, row, row[1:])) for row in named.values())
        entropy = -sum(n / total * math.log2(n / total) for n in counts.values())
        made = Units(
            folder=out,
            codebook=found,
            windows=len(windows),
            seconds=sum(cut.duration for cut in windows),
            used=len(counts),
            perplexity=2**entropy,
            run_frames=total / changes,
            skipped=skipped,
        )
        with replacing(out, new=True) as beside:
            beside.mkdir(parents=True)
            codebooks.save(found, beside / codebooks.FILE)
            _write(beside, windows, named)
            write_text(beside / "skipped.tsv", data.dump_skipped(skipped))
            card = cards.units_card(found, called if model else None, vars(made))
            write_text(beside / cards.CARD, card)
        leftovers.remove(parts)
    return made


def _check_new(out: Path, parts: Path) -> None:
    """See that there are none yet; of what was found on the way to them, no link is followed."""
    if parts.is_symlink():
        discard(parts)
    if out.exists():
        if (out / codebooks.FILE).is_file() and parts.is_dir():
            leftovers.remove(parts)  # all was done when the call before was killed
        raise DistilkitError(f"`{out}` exists", "another --out")


def _features(
    model: Encoder | None, layer: int | None, normalise: bool, device: str
) -> tuple[Targets, Source]:
    """What is clustered, and its name."""
    if model is None:
        if normalise:
            raise DistilkitError(
                "`--normalise` of no model; MFCC always are", "--model tiny --normalise"
            )
        return live_mfcc, Source(features="mfcc", layers=())
    chosen = (model.depth + 1) // 2 if layer is None else layer
    if not 0 <= chosen <= model.depth:
        raise DistilkitError(
            f"no layer `{chosen}`: the model has {model.depth}", f"--layer {model.depth}"
        )
    source = Source(
        features="layers", layers=(chosen,), model=fingerprint(model.model), normalise=normalise
    )
    seen = LiveTargets(model, [chosen], device)
    return (normalised(seen, 1) if normalise else seen), source


def _begin(
    parts: Path,
    source: Source,
    clusters: int,
    codebook: str,
    minutes: float,
    seed: int,
    windows: Sequence[MonoCut],
) -> None:
    """Say in the folder of what is found on the way what is asked for; what another call found gives way."""
    keys = "\n".join(map(stored.window_key, windows))
    asked = {
        "of": asdict(source) | {"layers": list(source.layers)},
        "codebook": codebook or [clusters, minutes, seed],
        "windows": hashlib.sha1(keys.encode(), usedforsecurity=False).hexdigest(),
    }
    try:
        there = read_object(parts / ASKED) if (parts / ASKED).is_file() else None
    except DistilkitError:
        there = None
    if there == asked:
        enclosed_below(parts)  # it is written to
        leftovers.tidy_below(parts)
        return
    for left in parts.iterdir():
        discard(left)
    write_text(parts / ASKED, json.dumps(asked))


def _kept(source: Source, codebook: str) -> stored.Kept:
    return stored.Kept(
        model=source.model,
        layers=source.layers,
        normalise=source.normalise,
        codebook=codebook,
        arithmetic="fp32",
        form="fp16",
        widths=(0,),
    )


def _write(folder: Path, windows: Sequence[MonoCut], named: Mapping[str, list[int]]) -> None:
    """The units of each window, as JSON and as fairseq writes them."""
    lines = [
        {
            "recording": cut.recording.id,
            "start": round(cut.start, 4),
            "seconds": round(cut.duration, 4),
            "units": named[cut.id],
        }
        for cut in windows
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_text(folder / "units.jsonl", text)
    rows = "".join(" ".join(map(str, named[cut.id])) + "\n" for cut in windows)
    write_text(folder / "units.km", rows)
