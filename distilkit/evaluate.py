"""How well a recogniser does on recordings whose text is known."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from lhotse import MonoCut

from distilkit import config, rates
from distilkit.audio import SAMPLE_RATE
from distilkit.data import Skipped, Tracker, transcripts, untracked
from distilkit.decode import Search, decoded
from distilkit.errors import DistilkitError
from distilkit.files import write_text
from distilkit.listeners import HEARD_SECONDS, Hears, LogProbs, hear_stream, in_order
from distilkit.rates import Errors, confusions, errors, interval

BATCH_SECONDS = 60.0  # audio in memory at once, padding counted
LONGEST = 3600.0  # seconds; of an utterance


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One utterance: what was said, what was heard, both normalised, and the errors."""

    id: str
    speaker: str  # empty where nobody says who
    seconds: float
    said: str
    heard: str
    errors: Errors


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A recogniser's errors on a set of utterances."""

    utterances: list[Judged]  # in the order of the data
    skipped: list[Skipped]
    errors: Errors
    wer: tuple[float, float]  # 95% interval
    cer: tuple[float, float]
    unknown: dict[str, int]  # characters of the texts that the tokenizer cannot write, and how many

    @property
    def seconds(self) -> float:
        """Seconds of audio."""
        return sum(item.seconds for item in self.utterances)

    def speakers(self) -> dict[str, Errors]:
        """The errors of each speaker, worst first; empty where speakers are not known."""
        names = {item.speaker for item in self.utterances if item.speaker}
        found = {
            name: errors(
                [item.said for item in self.utterances if item.speaker == name],
                [item.heard for item in self.utterances if item.speaker == name],
            )
            for name in names
        }
        return dict(sorted(found.items(), key=lambda item: (-item[1].words.rate, item[0])))

    def worst(self, count: int) -> list[Judged]:
        """The utterances with the most words wrong."""
        wrong = [item for item in self.utterances if item.errors.words.errors]
        return sorted(wrong, key=lambda item: -item.errors.words.errors)[:count]

    def confusions(self) -> dict[tuple[str, str], int]:
        """How often which word was heard as which."""
        return confusions(
            [item.said for item in self.utterances], [item.heard for item in self.utterances]
        )


def evaluate(
    inputs: Sequence[str | Path],
    recogniser: Hears,
    *,
    search: Search | None = None,
    text_column: str = "",
    device: str = "cpu",
    track: Tracker = untracked,
) -> Evaluation:
    """Transcribe recordings with text and count the errors.

    Both texts are normalised as the recogniser's tokenizer says. Characters that it cannot write
    stay, and count as errors.

    Args:
        inputs: recordings with text, of any layout.
        recogniser: of ours, or any with CTC, or exported.
        search: beam search; greedy decoding when None.
        text_column: column of a table that holds the text; empty finds it.
        device: torch device to compute on.
        track: wraps an iterable to show progress.

    Raises:
        DistilkitError: an input is missing, or holds no recordings with text.
    """
    settings = config.Transcribed(max_seconds=LONGEST, min_seconds=0.025, text_column=text_column)
    read = transcripts.read(inputs, settings, track=track)
    return evaluated(
        read.cuts, recogniser, skipped=read.skipped, search=search, device=device, track=track
    )


def evaluated(
    cuts: Sequence[MonoCut],
    recogniser: Hears,
    *,
    skipped: Sequence[Skipped] = (),
    search: Search | None = None,
    device: str = "cpu",
    track: Tracker = untracked,
) -> Evaluation:
    """Transcribe utterances and count the errors.

    Args:
        cuts: with their text as supervision.
        recogniser: of ours, or any with CTC, or exported.
        skipped: what was left out before.
        search: beam search; greedy decoding when None.
        device: torch device to compute on.
        track: wraps an iterable to show progress.

    Raises:
        DistilkitError: no text is left once it is normalised.
    """
    tokenizer = recogniser.tokenizer
    recogniser.to(device)
    said = [tokenizer.normalise(cut.supervisions[0].text) for cut in cuts]
    left = list(skipped)
    kept = []
    for place, (cut, text) in enumerate(zip(cuts, said, strict=True)):
        if text:
            kept.append(place)
        else:
            reason = f"nothing is left of `{cut.supervisions[0].text}`"
            left.append(Skipped(path=cut.id, reason=reason, kind="empty text"))
    if not kept:
        raise DistilkitError("no text is left once it is normalised", "distilkit inspect DATA")
    batches = in_order([cuts[place].num_samples for place in kept], BATCH_SECONDS)
    heard: dict[int, str] = {}
    for chosen in track(batches, description="listening", total=len(batches)):
        places = [kept[index] for index in chosen]
        for place, rows_TK in zip(
            places, _hear([cuts[p] for p in places], recogniser), strict=True
        ):
            heard[place] = _text(rows_TK, recogniser, search)
    judged = [
        Judged(
            id=cuts[place].id,
            speaker=cuts[place].supervisions[0].speaker or "",
            seconds=round(cuts[place].duration, 3),
            said=said[place],
            heard=heard[place],
            errors=errors([said[place]], [heard[place]]),
        )
        for place in kept
    ]
    return Evaluation(
        utterances=judged,
        skipped=left,
        errors=errors([item.said for item in judged], [item.heard for item in judged]),
        wer=interval(*_counted(judged, "words")),
        cer=interval(*_counted(judged, "characters")),
        unknown=_unknown(judged, recogniser),
    )


def _hear(cuts: Sequence[MonoCut], recogniser: Hears) -> list[LogProbs]:
    clips = [cut.load_audio()[0] for cut in cuts]
    if any(len(clip) > HEARD_SECONDS * SAMPLE_RATE for clip in clips):
        return [
            np.concatenate([rows_TK for rows_TK, _ in hear_stream(recogniser, [clip])])
            for clip in clips
        ]
    return recogniser.logprobs(clips)


def _text(rows_TK: LogProbs, recogniser: Hears, search: Search | None) -> str:
    tokenizer = recogniser.tokenizer
    return tokenizer.decode(decoded(rows_TK, tokenizer, search), frames=False)


def _counted(judged: Sequence[Judged], kind: str) -> tuple[list[int], list[int]]:
    counts = [getattr(item.errors, kind) for item in judged]
    return [count.errors for count in counts], [count.spoken for count in counts]


def _unknown(judged: Sequence[Judged], recogniser: Hears) -> dict[str, int]:
    whole = "".join(item.said for item in judged)
    return {char: whole.count(char) for char in recogniser.tokenizer.unknown(whole)}


def difference(one: Evaluation, other: Evaluation) -> tuple[float, tuple[float, float]]:
    """By how much the second's word error rate is above the first's, and the 95% interval of that.

    Both heard the same utterances; texts may be normalised otherwise.
    """
    pairs = {item.id: item for item in other.utterances}
    both = [(item, pairs[item.id]) for item in one.utterances if item.id in pairs]
    return rates.difference(
        [item.errors.words for item, _ in both], [item.errors.words for _, item in both]
    )


def write(evaluation: Evaluation, path: Path, against: Evaluation | None = None) -> None:
    """Write every utterance as a JSON object on a line, beside what a second recogniser heard."""
    others = {item.id: item for item in against.utterances} if against else {}
    rows = []
    for item in evaluation.utterances:
        row = {key: value for key, value in asdict(item).items() if key != "errors"}
        row |= {"word_errors": item.errors.words.errors, "words": item.errors.words.spoken}
        if other := others.get(item.id):
            row |= {"against": other.heard, "against_word_errors": other.errors.words.errors}
        rows.append(row)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
