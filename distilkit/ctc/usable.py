"""Which utterances a recogniser can learn from with its tokenizer, and why it cannot from the others."""

from collections import Counter
from collections.abc import Sequence

from lhotse import MonoCut

from distilkit import config, data
from distilkit.audio import frames
from distilkit.data import Skipped
from distilkit.errors import DistilkitError
from distilkit.tokenizers import Tokenizer

UNKNOWN = "unknown characters"  # kinds of utterances that are left out
TOO_LONG = "text too long"
EMPTY = "empty text"


def fitting(
    cuts: Sequence[MonoCut], tokenizer: Tokenizer, settings: config.CtcRecipe
) -> tuple[Sequence[MonoCut], list[Skipped]]:
    """The utterances that can be learned from, and the others, each with its reason.

    CTC needs a frame for every token, and one more between two that are the same; the fastest speed
    leaves the fewest frames.

    Raises:
        DistilkitError: more than half of them are left out.
    """
    usable: list[int] = []
    left: list[Skipped] = []
    fastest = max(settings.augment.speeds)
    for place, cut in enumerate(cuts):
        text = tokenizer.normalise(cut.supervisions[0].text)
        ids = tokenizer.encode(text)
        unknown = tokenizer.unknown(text)
        room = frames(int(cut.num_samples / fastest))
        needed = len(ids) + sum(a == b for a, b in zip(ids, ids[1:], strict=False))
        if not text:
            kind, reason = EMPTY, f"nothing is left of `{cut.supervisions[0].text}`"
        elif unknown:
            kind = UNKNOWN
            reason = f"the tokenizer has no {', '.join(f'`{char}`' for char in unknown)}"
        elif needed > room:
            at = f" at speed {fastest:g}" if fastest != 1 else ""
            kind, reason = TOO_LONG, f"{needed} tokens for {room} frames of 20 ms{at}"
        else:
            usable.append(place)
            continue
        left.append(Skipped(path=cut.id, reason=reason, kind=kind, seconds=cut.duration))
    if len(left) > data.MAX_UNUSABLE * len(cuts):
        listed = "".join(f"\n  {item.path}: {item.reason}" for item in left[:5])
        hints = {
            EMPTY: "write what is said, or distilkit tokenizer DATA --punctuation keep --out DIR",
            TOO_LONG: "distilkit tokenizer DATA --kind unigram --out DIR makes fewer tokens of a text",
            UNKNOWN: "distilkit tokenizer DATA --out DIR makes one for these texts",
        }
        ((kind, _),) = Counter(item.kind for item in left).most_common(1)
        raise DistilkitError(
            f"{len(left)} of {len(cuts)} utterances cannot be learned with this tokenizer:{listed}",
            hints[kind],
        )
    return data.pick(cuts, usable), left
