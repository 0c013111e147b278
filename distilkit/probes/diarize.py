"""Diarization: who of two speaks when, in conversations made of clips, overlap included.

Letters in names: B clips in a batch, T frames of a conversation, K speakers.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lhotse import AudioSource, MonoCut, Recording
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from distilkit import flac
from distilkit.audio import FRAME_RATE, SAMPLE_RATE, Samples, frames
from distilkit.batches import load
from distilkit.data import Skipped
from distilkit.errors import DistilkitError
from distilkit.pauses import levels, stretches
from distilkit.probes.examples import Asked, Example, Solved, Split, people
from distilkit.probes.features import Features
from distilkit.probes.heads import Effort, Judged, Mixed, Recurrent, fit, spread
from distilkit.probes.metrics import DER, Metric, Rows

STATISTICS = 64  # training conversations whose frames say what mean and spread are
HIDDEN = 128  # of the LSTM; SUPERB's is 512 wide
PAUSE = 2.0  # seconds between utterances of a speaker, mean of an exponential distribution
UTTERANCES = (2, 5)  # of each speaker in a conversation, least and most
MOST_CONVERSATIONS = {"train": 60, "dev": 16, "test": 24}
THRESHOLDS, MEDIANS = (
    (0.3, 0.4, 0.5, 0.6, 0.7),
    (1, 11),
)  # tried on the development split, as SUPERB

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A made-up conversation of two people, and who speaks when."""

    cut: MonoCut
    people: tuple[str, str]
    speaking: tuple[tuple[tuple[float, float], ...], ...]  # start and end in seconds, for each

    def activity(self) -> Tensor:
        """Who speaks in which frame, (T, 2) of 0 and 1."""
        middle_T = (torch.arange(frames(self.cut.num_samples)) + 0.625) / FRAME_RATE
        found = torch.zeros(len(middle_T), len(self.people))
        for place, times in enumerate(self.speaking):
            for start, end in times:
                found[(middle_T >= start) & (middle_T < end), place] = 1
        return found


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """Conversations made of clips of speakers, the speakers of each side its own."""

    made: list[Conversation]
    splits: list[Split]
    skipped: list[Skipped]

    @property
    def cuts(self) -> Sequence[MonoCut]:
        """All conversations'."""
        return [item.cut for item in self.made]

    @property
    def metrics(self) -> Sequence[Metric]:
        """DER."""
        return (DER,)

    @property
    def facts(self) -> Mapping[str, Any]:
        """How many, how long, and how much of the speech is of both at once."""
        active = [item.activity() for item in self.made]
        speech = sum(float((row.sum(1) > 0).sum()) for row in active)
        return {
            "conversations": len(self.made),
            "people": len({name for item in self.made for name in item.people}),
            "minutes": round(sum(item.cut.duration for item in self.made) / 60, 2),
            "overlap": round(sum(float((row.sum(1) > 1).sum()) for row in active) / speech, 4),
        }

    def groups(self, split: Split) -> list[tuple[str, ...]]:
        """The two people of each tested conversation."""
        return [self.made[place].people for place in split.test]

    def solve(self, features: Features, split: Split, effort: Effort, seed: int) -> Solved:
        """Train an LSTM to say who of two speaks in each frame, in whichever order."""
        active = [item.activity() for item in self.made]
        mean_LD, spread_LD = spread(
            features.frames(self.made[place].cut) for place in split.train[:STATISTICS]
        )

        def logits(head: nn.Module, places: Sequence[int]) -> list[Tensor]:
            states, lengths = features.rows([self.made[place].cut for place in places])
            found_BTK = head(states, lengths)
            return [row[:length] for row, length in zip(found_BTK, lengths, strict=True)]

        def loss(head: nn.Module, places: list[int]) -> Tensor:
            rows = zip(logits(head, places), places, strict=True)
            return torch.stack([either_way(row, active[place]) for row, place in rows]).mean()

        def judge(head: nn.Module) -> Judged:
            return (-float(torch.stack([loss(head, [place]) for place in split.dev]).mean()),)

        head, rate = fit(
            lambda: Recurrent(
                Mixed(mean_LD, spread_LD), 2, hidden=HIDDEN, layers=1, both_ways=False, dropout=0.0
            ),
            loss,
            judge,
            split.train,
            effort,
            seed,
            [item.cut.num_samples for item in self.made],
        )
        with torch.no_grad():
            heard = {
                place: logits(head, [place])[0].sigmoid().numpy()
                for place in (*split.dev, *split.test)
            }
        chosen = min(
            ((threshold, median) for threshold in THRESHOLDS for median in MEDIANS),
            key=lambda pair: self._error(heard, split.dev, *pair),
        )
        rows = self._rows(heard, split.test, *chosen)
        return Solved(
            rows=rows,
            chosen={
                "rate": rate,
                "threshold": chosen[0],
                "median": chosen[1],
                "layers": head.mixed.mix.weight.softmax(0).tolist(),
            },
        )

    def _error(
        self, heard: Mapping[int, Array], places: Sequence[int], threshold: float, median: int
    ) -> float:
        rows = self._rows(heard, places, threshold, median)
        return DER.measure(rows, np.ones(len(places)))

    def _rows(
        self, heard: Mapping[int, Array], places: Sequence[int], threshold: float, median: int
    ) -> Rows:
        from scipy.ndimage import median_filter

        found = []
        for place in places:
            smooth = median_filter(heard[place], (median, 1))
            found.append(diarization_error(self.made[place], smooth > threshold))
        return {
            "errors": np.array([wrong for wrong, _ in found]),
            "spoken": np.array([spoken for _, spoken in found]),
        }


def either_way(logits_TK: Tensor, active_TK: Tensor) -> Tensor:
    """The cross-entropy of who speaks, speakers in the order that fits best.

    Source: permutation-free training, Fujita et al., Interspeech 2019 (arXiv 1909.05952), equation 3.
    """
    costs = [
        binary_cross_entropy_with_logits(logits_TK, active_TK[:, list(order)])
        for order in permutations(range(active_TK.shape[1]))
    ]
    return torch.stack(costs).min()


def diarization_error(said: Conversation, heard_TK: Array) -> tuple[float, float]:
    """Seconds of missed, surplus and confused speech, and seconds of speech; overlap counts, no collar.

    Args:
        said: who speaks when.
        heard_TK: who is heard in which frame.

    Source: DER of NIST's Rich Transcription evaluations, by pyannote.metrics.
    """
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate

    reference, hypothesis = Annotation(), Annotation()
    for person, times in zip(said.people, said.speaking, strict=True):
        for start, end in times:
            reference[Segment(start, end), f"{person} {start}"] = person
    for number, row_T in enumerate(heard_TK.T):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row_T.astype(np.int8), [0]])))
        for first, last in edges.reshape(-1, 2).tolist():
            segment = Segment(first / FRAME_RATE, last / FRAME_RATE)
            hypothesis[segment, f"{number} {first}"] = str(number)
    whole = Segment(0.0, said.cut.duration)
    found = DiarizationErrorRate(collar=0.0, skip_overlap=False)(
        reference, hypothesis, uem=Timeline([whole]), detailed=True
    )
    wrong = found["missed detection"] + found["false alarm"] + found["confusion"]
    return float(wrong), float(found["total"])


def diarization(cuts: Sequence[MonoCut], asked: Asked) -> Conversations:
    """Diarization: who of two speaks when, in conversations made of their clips, overlap included."""
    try:
        import pyannote.metrics  # noqa: F401
    except ImportError as error:
        raise DistilkitError(
            "diarization is measured by pyannote.metrics, which is not installed",
            "pip install 'distilkit[probes]'",
        ) from error
    examples, skipped, splits = people(cuts, asked, "diarization")
    folder = asked.folder / "conversations"
    made: list[Conversation] = []
    sides: dict[str, list[int]] = {}
    for number, side in enumerate(MOST_CONVERSATIONS):
        own = [examples[place] for place in getattr(splits[0], side)]
        seconds = sum(item.cut.duration for item in own)
        most = max(2, min(MOST_CONVERSATIONS[side], int(seconds / 10)))
        rng = np.random.default_rng([asked.seed, number])
        sides[side] = list(range(len(made), len(made) + most))
        made += [converse(own, rng, folder) for _ in range(most)]
    return Conversations(made=made, splits=[Split(**sides)], skipped=skipped)


def converse(examples: Sequence[Example], rng: np.random.Generator, folder: Path) -> Conversation:
    """A conversation of two people drawn at random, written to a file.

    Each says some of their clips with pauses between, whoever else speaks: so voices meet. When a person
    speaks is what the sound of their clips says.

    Source: Fujita et al., ASRU 2019 (arXiv 1909.06247), algorithm 1, without rooms and noise.
    """
    names = sorted({str(item.label) for item in examples})
    both = [names[place] for place in rng.permutation(len(names))[:2]]
    tracks: list[list[tuple[int, Samples]]] = []
    speaking: list[tuple[tuple[float, float], ...]] = []
    for person in both:
        own = [item for item in examples if item.label == person]
        count = min(len(own), int(rng.integers(*UTTERANCES, endpoint=True)))
        at = 0
        track: list[tuple[int, Samples]] = []
        times: list[tuple[float, float]] = []
        for place in rng.permutation(len(own))[:count].tolist():
            at += int(rng.exponential(PAUSE) * SAMPLE_RATE)
            clip = load([own[place].cut]).wave_BS[0].numpy()
            track.append((at, clip))
            sounds = stretches(levels(clip))
            spans = [(x.start, x.end) for x in sounds] or [(0.0, len(clip) / SAMPLE_RATE)]
            times += [(at / SAMPLE_RATE + start, at / SAMPLE_RATE + end) for start, end in spans]
            at += len(clip)
        tracks.append(track)
        speaking.append(tuple(times))
    sound = np.zeros(max(at + len(clip) for track in tracks for at, clip in track), np.float32)
    for track in tracks:
        for at, clip in track:
            sound[at : at + len(clip)] += clip
    sound /= max(1.0, float(np.abs(sound).max()))
    steps = np.rint(sound * 32767).astype(np.int16)
    digest = hashlib.sha1(steps.tobytes(), usedforsecurity=False).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest}.flac"
    with flac.writing(path) as file:
        file.write(steps)
    return Conversation(
        cut=_cut(path, digest, len(steps)),
        people=(both[0], both[1]),
        speaking=tuple(speaking),
    )


def _cut(path: Path, digest: str, samples: int) -> MonoCut:
    recording = Recording(
        id=digest,
        sources=[AudioSource(type="file", channels=[0], source=str(path))],
        sampling_rate=SAMPLE_RATE,
        num_samples=samples,
        duration=samples / SAMPLE_RATE,
    )
    return MonoCut(
        id=digest,
        start=0.0,
        duration=samples / SAMPLE_RATE,
        channel=0,
        recording=recording,
        custom={"digest": digest},
    )
