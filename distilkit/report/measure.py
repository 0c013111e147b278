"""What is measured of a finished run, once, and kept in `report.json`: layers, speed, the worst utterances.

Nothing of it is needed to train, and all of it takes a while; without it the report has sections less.
"""

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from lhotse import MonoCut

from distilkit import bench, data, evaluate, layers, recognisers, teachers
from distilkit.audio import FRAME_RATE, SAMPLE_RATE, Samples
from distilkit.data import Tracker, untracked
from distilkit.encoder import Encoder
from distilkit.errors import DistilkitError
from distilkit.evaluate import Judged
from distilkit.files import parse_json, write_text
from distilkit.recognisers import Recogniser
from distilkit.report import sources
from distilkit.runs import Run

FILE = "report.json"
FRAMES_PER_NUMBER = 10  # of audio that layers are compared on, for each number of a vector
LEAST_SECONDS, MOST_SECONDS = 30.0, 240.0  # of it
WORK = 2e10  # weights times seconds of audio, of which a processor is given no more
CLIP_SECONDS = 10.0  # that forward passes are timed on
ROUNDS = 3
LISTENED = 1200.0  # seconds of held-out utterances
WORST = 8  # utterances that are shown
LISTED = 12  # speakers and confusions
HEARD_SECONDS = 20.0  # of an utterance, kept as sound
SOUNDS = (("MP3", "MPEG_LAYER_III", "audio/mpeg"), ("FLAC", "PCM_16", "audio/flac"))


class Models:
    """What a run made, what it was made of, and what was held out; each is opened once it is needed."""

    def __init__(self, run: Run) -> None:
        self.run, self.facts = run, run.read()
        wanted = str(self.facts["plan"]["device"])
        self.device = wanted if wanted != "cuda" or torch.cuda.is_available() else "cpu"

    @cached_property
    def recogniser(self) -> Recogniser:
        """Of fine-tuning: what was made."""
        return recognisers.load(str(self.run.folder))

    @cached_property
    def own(self) -> Encoder:
        """The encoder that was made."""
        if self.run.kind == "distill":
            return teachers.load(str(self.run.folder))[0]
        return self.recogniser.encoder

    @cached_property
    def other(self) -> Encoder | None:
        """The teacher, or what fine-tuning began with; None where there is none.

        Raises:
            DistilkitError: it is gone, out of reach, or another one.
        """
        told = self.facts["teacher"] if self.run.kind == "distill" else self.facts["base"]
        if told is None:
            return None
        return teachers.again(told, f"`{self.run.folder}` began with")[0]

    @cached_property
    def held_out(self) -> list[MonoCut]:
        """The windows or utterances that were not trained on."""
        rows = sources.windows(self.run.folder / "audio.jsonl.gz")
        return [data.window(row, {}) for row in rows if row["custom"]["split"] == "valid"]


def similarity(models: Models, track: Tracker) -> dict[str, Any]:
    """How alike the layers of both models are, on a little of what was held out."""
    if not models.held_out:
        return {"none": "Nothing was held out, so layers were not compared."}
    own, other = models.own, models.other
    if other is None:
        return {"none": "There was no teacher, so there are no layers to compare with."}
    width = max(own.width, other.width)
    seconds = max(LEAST_SECONDS, FRAMES_PER_NUMBER * width / FRAME_RATE)
    most = MOST_SECONDS
    if models.device == "cpu":
        most = WORK / sum(weight.numel() for weight in other.model.parameters())
    files = {str(cut.recording.sources[0].source): None for cut in models.held_out}
    found = layers.similarity(
        list(files), own, other, minutes=min(seconds, most) / 60, device=models.device, track=track
    )
    return {
        "rows": found.rows,
        "columns": found.columns,
        "cka": np.round(found.cka_LK, 4).tolist(),
        "frames": found.frames,
        "seconds": round(found.seconds, 1),
        "files": found.used,
        "few": found.frames < FRAMES_PER_NUMBER * width,
        "notes": found.notes,
    }


def speed(models: Models, track: Tracker) -> dict[str, Any]:
    """Parameters, multiply-adds, and forward passes over a clip, timed in turn."""
    given = {"model": models.own}
    if models.run.kind == "distill" and models.other is not None:
        given = {"teacher": models.other, "student": models.own}
    rows = bench.bench(
        given, seconds=[CLIP_SECONDS], batches=[1], device=models.device, rounds=ROUNDS
    )
    timed = list(track(rows, description="timing", total=len(given)))
    return {
        "sizes": [asdict(bench.size(name, encoder)) for name, encoder in given.items()],
        "rows": [asdict(row) for row in timed],
        "device": models.device,
        "threads": torch.get_num_threads(),
    }


def utterances(models: Models, track: Tracker) -> dict[str, Any]:
    """Errors on what was held out, and the worst utterances with their sound."""
    held = models.held_out
    if not held:
        return {"none": "Nothing was held out, so no errors were counted."}
    chosen, seconds = [], 0.0
    for place in layers.spread(len(held)):
        if seconds < LISTENED:
            chosen.append(held[place])
            seconds += held[place].duration
    found = evaluate.evaluated(chosen, models.recogniser, device=models.device, track=track)
    cuts = {cut.id: cut for cut in chosen}
    worst = sorted(found.worst(len(chosen)), key=_rank)[:WORST]
    speakers = list(found.speakers().items())
    return {
        "utterances": len(found.utterances),
        "of": len(held),
        "seconds": round(found.seconds, 1),
        "wer": [found.errors.words.rate, *found.wer],
        "cer": [found.errors.characters.rate, *found.cer],
        "words": asdict(found.errors.words),
        "right": sum(not item.errors.words.errors for item in found.utterances),
        "worst": [
            {
                "id": item.id,
                "speaker": item.speaker,
                "seconds": item.seconds,
                "said": item.said,
                "heard": item.heard,
                "errors": item.errors.words.errors,
                "words": item.errors.words.spoken,
                **sound(cuts[item.id].load_audio()[0]),
            }
            for item in worst
        ],
        "speakers": [[name, e.words.errors, e.words.spoken] for name, e in speakers[:LISTED]],
        "more_speakers": max(0, len(speakers) - LISTED),
        "confusions": [[*pair, count] for pair, count in found.confusions().items()][:LISTED],
    }


def _rank(item: Judged) -> tuple[float, float, str]:
    """Most words wrong first; of equals, the greater share."""
    return -item.errors.words.errors, -item.errors.words.rate, item.id


def sound(samples: Samples) -> dict[str, str]:
    """The beginning of a recording as a small file that browsers play, in base64, and what it is."""
    format, subtype, kind = next(
        each for each in SOUNDS if soundfile.check_format(each[0], each[1])
    )
    file = io.BytesIO()
    kept = samples[: int(HEARD_SECONDS * SAMPLE_RATE)]
    soundfile.write(file, kept, SAMPLE_RATE, format=format, subtype=subtype)
    return {"kind": kind, "sound": base64.b64encode(file.getvalue()).decode()}


Measure = Callable[[Models, Tracker], dict[str, Any]]
MEASURES: dict[str, dict[str, Measure]] = {  # of a run of each command
    "distill": {"similarity": similarity, "speed": speed},
    "finetune-ctc": {"similarity": similarity, "speed": speed, "utterances": utterances},
}


def kept(folder: Path) -> dict[str, Any]:
    """What was measured before; nothing where there is no such file, or it is damaged."""
    try:
        found = parse_json((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def missing(run: Run) -> list[str]:
    """What can be measured and was not yet, or could not be."""
    if not run.finished:
        return []
    found = kept(run.folder)
    return [name for name in MEASURES[run.kind] if "problem" in found.get(name, {"problem": ""})]


def measure(run: Run, names: Sequence[str], track: Tracker = untracked) -> dict[str, str]:
    """Measure what is asked for and keep it in the run folder; what failed is returned, and why.

    Args:
        run: finished.
        names: from `missing`.
        track: wraps an iterable to show progress.

    Raises:
        DistilkitError: the file cannot be written.
    """
    found, problems, models = kept(run.folder), {}, Models(run)
    for name in names:
        try:
            found[name] = MEASURES[run.kind][name](models, track)
        except Exception as error:  # of models, files and devices: the page says it in its place
            problems[name] = reason(error)
            found[name] = {"problem": problems[name]}
        write_text(run.folder / FILE, json.dumps(found, ensure_ascii=False) + "\n")
    return problems


def reason(error: Exception) -> str:
    """An error in a line."""
    if isinstance(error, DistilkitError):
        return error.problem
    said = (str(error).strip() or "without a word").splitlines()[0]
    return f"{type(error).__name__}: {said}"
