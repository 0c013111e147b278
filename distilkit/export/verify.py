"""Whether an export is still the model that it was made of, on speech.

Letters in names: T frames, L layers, D width, K tokens.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from distilkit import config
from distilkit.audio import FRAME_SAMPLES, SAMPLE_RATE, Samples, load
from distilkit.data import Tracker, find, transcripts, untracked
from distilkit.encoder import Encoder
from distilkit.errors import DistilkitError
from distilkit.exported import Exported
from distilkit.hub import BUILT_IN
from distilkit.listeners import HEARD_SECONDS, Frames
from distilkit.rates import errors
from distilkit.recognisers import Recogniser

CLIPS = 24  # checked at the most where nothing is given, of several lengths
SHORTEST, LONGEST = 0.03, 60.0  # seconds, of what is checked
TIMED_SECONDS = 10.0
ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far an export may be from the model that it was made of."""

    cosine: float  # the least of any frame of the last layer
    error: float | None  # the largest, relative to the largest number of the layer; None for any
    wer: float  # by how much more, or less, words may be wrong: absolute


TOLERANCES: dict[config.ExportPrecision, Tolerance] = {
    "fp32": Tolerance(cosine=0.9999, error=1e-4, wer=0.0),
    "fp16": Tolerance(cosine=0.999, error=None, wer=0.01),
    "int8": Tolerance(cosine=0.99, error=None, wer=0.01),
}


@dataclass(frozen=True, kw_only=True)
class Near:
    """How near a layer of the export is to that of the model, over all clips."""

    layer: int
    cosine: float  # the least of a frame
    error: float  # the largest difference over the largest number of that clip's layer


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found before a folder was kept, with one runtime."""

    runtime: str
    clips: int
    seconds: float
    shortest: float
    longest: float
    layers: list[Near]
    words: int | None  # of the texts, or of what the model itself wrote; None for an encoder
    labelled: bool  # whether texts are known
    wer: tuple[float, float] | None  # of the model and of the export, against the texts
    apart: float | None  # words that they write otherwise, over those of the model
    milliseconds: float  # of a clip of 10 s
    model_milliseconds: float  # of the model in fp32 in torch, in turn


def speech(audio: Sequence[str | Path], track: Tracker) -> tuple[list[Samples], list[str]]:
    """Clips of several lengths to verify on, shortest first, and their texts where all have one.

    Raises:
        DistilkitError: an input is missing, or none can be heard.
    """
    if audio:
        texted = _texted(audio, track)
        if texted is not None:
            return texted
    folder = BUILT_IN["tiny"].parent / "speech"
    clips = []
    for item in find(audio or [folder]):
        if item.audio:
            try:
                clip = load(item.path)
            except DistilkitError:
                continue
            if len(clip) >= FRAME_SAMPLES:
                clips.append(clip)
        if len(clips) == 4 * CLIPS:
            break
    if not clips:
        names = ", ".join(f"`{item}`" for item in audio)
        raise DistilkitError(f"nothing to verify on in {names}", "distilkit inspect FOLDER")
    whole = np.concatenate(clips)
    clips = sorted(clips, key=len)[:: max(1, len(clips) // CLIPS)][: CLIPS - 4]
    lengths = [int(seconds * SAMPLE_RATE) for seconds in (SHORTEST, 0.5, 15.0, LONGEST)]
    more = [np.resize(whole, length) for length in lengths]  # what is there again, where it is less
    return sorted([*clips, *more], key=len), []


def _texted(audio: Sequence[str | Path], track: Tracker) -> tuple[list[Samples], list[str]] | None:
    """All utterances with their texts, or None where there are none."""
    settings = config.Transcribed(max_seconds=3600.0, min_seconds=FRAME_SAMPLES / SAMPLE_RATE)
    try:
        cuts = transcripts.read(audio, settings, track=track).cuts
    except DistilkitError:
        return None
    return [cut.load_audio()[0] for cut in cuts], [cut.supervisions[0].text for cut in cuts]


def check(
    made: Exported,
    encoder: Encoder,
    recogniser: Recogniser | None,
    clips: Sequence[Samples],
    texts: Sequence[str],
    track: Tracker = untracked,
) -> Checked:
    """Compare an export with the model that it was made of, and time both.

    Args:
        made: the export.
        encoder: the model, in fp32.
        recogniser: the same with its head, where it has one.
        clips: what both hear.
        texts: what is said in them; empty where nobody knows.
        track: wraps an iterable to show progress.
    """
    encoder.to("cpu")
    layers = range(encoder.depth + 1)
    near = [Near(layer=layer, cosine=1.0, error=0.0) for layer in layers]
    said: list[str] = []
    heard: list[str] = []
    for clip in track(clips, description=f"verifying with {made.runtime}", total=len(clips)):
        part = clip[: int(LONGEST * SAMPLE_RATE)]
        (wanted_LTD,), (found_LTD,) = encoder.states([part], layers), made.states([part], layers)
        near = [_near(one, wanted_LTD[one.layer], found_LTD[one.layer]) for one in near]
        if recogniser is not None:
            part = clip[: int(HEARD_SECONDS * SAMPLE_RATE)]
            for listener, texts_of in ((recogniser, said), (made, heard)):
                (rows_TK,) = listener.logprobs([part])
                texts_of.append(recogniser.tokenizer.decode(rows_TK.argmax(1)))
    words = rates = apart = None
    if recogniser is not None:
        between = errors(said, heard).words
        words, apart = between.spoken, between.rate if between.spoken else 0.0
        if texts:
            asked = [recogniser.tokenizer.normalise(text) for text in texts]
            rates = errors(asked, said).words.rate, errors(asked, heard).words.rate
            words = errors(asked, said).words.spoken
    ours, theirs = _timed(made, encoder, recogniser)
    lengths = [len(clip) / SAMPLE_RATE for clip in clips]
    return Checked(
        runtime=made.runtime,
        clips=len(clips),
        seconds=round(sum(lengths), 2),
        shortest=round(min(lengths), 3),
        longest=round(min(max(lengths), LONGEST), 3),
        layers=near,
        words=words,
        labelled=bool(texts),
        wer=rates,
        apart=apart,
        milliseconds=round(1e3 * ours, 2),
        model_milliseconds=round(1e3 * theirs, 2),
    )


def _near(before: Near, wanted_TD: Frames, found_TD: Frames) -> Near:
    product_T = (wanted_TD * found_TD).sum(-1, dtype=np.float64)
    sizes_T = np.linalg.norm(wanted_TD.astype(np.float64), axis=-1) * np.linalg.norm(
        found_TD.astype(np.float64), axis=-1
    )
    cosine = float((product_T / np.maximum(sizes_T, 1e-30)).min())
    error = float(np.abs(wanted_TD - found_TD).max() / np.abs(wanted_TD).max())
    if not np.isfinite(found_TD).all():
        cosine, error = -1.0, float("inf")
    return replace(before, cosine=min(before.cosine, cosine), error=max(before.error, error))


def _timed(made: Exported, encoder: Encoder, recogniser: Recogniser | None) -> tuple[float, float]:
    """Seconds that the export and the model take for a clip, in turn, medians."""
    clip = 0.1 * np.random.default_rng(0).standard_normal(int(TIMED_SECONDS * SAMPLE_RATE))
    clips, last = [clip.astype(np.float32)], [encoder.depth]
    runs: list[Callable[[], object]] = [
        lambda: made.logprobs(clips) if recogniser else made.states(clips, last),
        lambda: recogniser.logprobs(clips) if recogniser else encoder.states(clips, last),
    ]
    times: list[list[float]] = [[], []]
    for number in range(ROUNDS + 1):
        for run, own in zip(runs, times, strict=True):
            began = time.perf_counter()
            run()
            if number:
                own.append(time.perf_counter() - began)
    return median(times[0]), median(times[1])


def beyond(checked: Checked, precision: config.ExportPrecision) -> list[str]:
    """In what an export is further from the model than it may be; empty where it is near enough."""
    allowed, last = TOLERANCES[precision], checked.layers[-1]
    found = []
    if last.cosine < allowed.cosine:
        found.append(
            f"a cosine of {last.cosine:.5f} in the last layer, {allowed.cosine} is the least"
        )
    for near in checked.layers:
        if allowed.error is not None and near.error > allowed.error:
            found.append(
                f"layer {near.layer} is {near.error:.1e} off, {allowed.error:.0e} is the most"
            )
    apart = abs(checked.wer[1] - checked.wer[0]) if checked.wer else checked.apart
    if apart is not None and apart > allowed.wer:
        what = f"{apart:.2%} of words otherwise than the model"
        if checked.wer:
            what = " and ".join(f"{rate:.2%}" for rate in checked.wer) + " of words wrong"
        found.append(f"{what}, {allowed.wer:.0%} more or less is allowed")
    return found


def refuse(
    checked: Checked, precision: config.ExportPrecision, name: str, audio: Sequence[str | Path]
) -> None:
    """Refuse an export that is further from the model than it may be.

    Raises:
        DistilkitError: it is; with the figures.
    """
    if found := beyond(checked, precision):
        other = {"int8": "--fp16", "fp16": "neither --fp16 nor --int8"}.get(
            precision, "distilkit doctor"
        )
        raise DistilkitError(
            f"`{name}` in {precision} is not what it was, with {checked.runtime} on {checked.clips} clips: "
            + "; ".join(found),
            other
            if precision != "int8" or audio
            else f"{other}, or recordings of your own: --data FOLDER",
        )
