"""Word n-gram language models: modified Kneser-Ney, and ARPA files of ours and of other tools.

All logarithms are to base 10, as in ARPA files.
"""

import gzip
import math
import re
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from distilkit.errors import DistilkitError
from distilkit.files import replacing

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
MARKS = frozenset((BEGIN, END, UNKNOWN))
NEVER = -99.0  # how ARPA writes the logarithm of zero
LONGEST_LINE = 1 << 16  # bytes
MOST_IDLE = 1_000_000  # lines of a file that are no n-grams
MAX_ORDER = 6
AHEAD = 32  # letters of a word by which it is found before it ends
FALLBACK = (0.5, 1.0, 1.5)  # discounts where counts are too few to estimate them, as KenLM's
HINT = "distilkit lm TEXT --out lm.arpa"

Gram = tuple[str, ...]  # a word behind the words before it
Context = tuple[str, ...]  # the words before, at most one less than the order


@dataclass(frozen=True, kw_only=True)
class NGram:
    """A back-off model of words: what an ARPA file holds."""

    order: int
    logs: dict[Gram, float]  # logarithm of the last word's probability behind the others
    backoffs: dict[Gram, float]  # logarithm of a context's weight; 0 where it is not listed

    def start(self) -> Context:
        """The context at the beginning of a sentence."""
        return (BEGIN,)[: self.order - 1]

    def knows(self, word: str) -> bool:
        """Whether a word is in the vocabulary."""
        return (word,) in self.logs and word not in MARKS

    def ahead(self, letters: str) -> float | None:
        """The logarithm of the most likely word that begins so, without a context; None for none.

        Of more than 32 letters the first 32 count.
        """
        return self._ahead.get(letters[:AHEAD])

    def words(self) -> Iterator[str]:
        """The vocabulary."""
        return (gram[0] for gram in self.logs if len(gram) == 1 and gram[0] not in MARKS)

    @cached_property
    def _ahead(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for word in self.words():
            value = self.logs[(word,)]
            for length in range(1, min(len(word), AHEAD) + 1):
                letters = word[:length]
                if value > found.get(letters, -math.inf):
                    found[letters] = value
        return found

    def score(self, context: Context, word: str) -> tuple[float, Context]:
        """The logarithm of a word's probability behind a context, and the next context.

        Args:
            context: of `start` or of the last call; longer than the order is harmless.
            word: `</s>` for the end of the sentence; one that is not known counts as `<unk>`.
        """
        if (word,) not in self.logs:
            word = UNKNOWN
        context = context[max(0, len(context) - self.order + 1) :]
        following = (*context, word)[1 if len(context) == self.order - 1 else 0 :]
        value = 0.0
        while (found := self.logs.get((*context, word))) is None:
            if not context:
                return value + NEVER, following  # a file without `<unk>`
            value += self.backoffs.get(context, 0.0)
            context = context[1:]
        return value + found, following

    def sentence(self, words: Sequence[str]) -> float:
        """The logarithm of a sentence's probability, its end included."""
        value, context = 0.0, self.start()
        for word in (*words, END):
            more, context = self.score(context, word)
            value += more
        return value

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> float:
        """The inverse of the mean probability (geometric) of a word, ends of sentences included.

        Words that are not known count with the probability of `<unk>`.
        """
        value, count = 0.0, 0
        for words in sentences:
            value += self.sentence(words)
            count += len(words) + 1
        return float(10 ** min(-value / count, 300.0)) if count else math.nan

    def sizes(self) -> list[int]:
        """The number of n-grams of each order, as the head of an ARPA file has them."""
        found = Counter(map(len, self.logs))
        return [found[size] for size in range(1, self.order + 1)]


# -------------------------------------------------------------------------------------- training


def train(sentences: Iterable[Sequence[str]], order: int = 3) -> NGram:
    """Estimate a model by interpolated Kneser-Ney smoothing with three discounts for each order.

    The words, the end of a sentence and `<unk>` are the vocabulary: behind every context their
    probabilities sum to 1. `<unk>` gets what the lowest order leaves, spread evenly.

    Args:
        sentences: the words of each, without white space in them; empty ones do not count.
        order: words in the longest n-gram, 1 to 6.

    Raises:
        DistilkitError: there are no words, or one is a mark such as `<s>`.

    Source: Chen and Goodman, An Empirical Study of Smoothing Techniques for Language Modeling,
    TR-10-98, 1998, section 3; details (counts behind `<s>`, the uniform distribution below the
    lowest order, the discounts of small texts) as in KenLM, Heafield et al., ACL 2013.
    """
    assert 1 <= order <= MAX_ORDER
    counts = _counts(sentences, order)
    if not counts[0]:
        raise DistilkitError("the text holds no words", "a text file with a sentence on each line")
    uniform = 1 / (len(counts[0]) + 1)
    logs: dict[Gram, float] = {(UNKNOWN,): 0.0, (BEGIN,): NEVER}
    backoffs: dict[Gram, float] = {}
    for size in range(1, order + 1):
        # Below the highest order an n-gram counts as often as there are different words before it;
        # before the beginning of a sentence there are none, and the n-gram keeps its count.
        grams = counts[size - 1]
        if size < order:
            different = Counter(gram[1:] for gram in counts[size])
            different.update({gram: n for gram, n in grams.items() if gram[0] == BEGIN})
            grams = counts[size - 1] = different
        discounts = (0.0, *_discounts(grams.values()))
        totals: dict[Context, float] = defaultdict(float)
        left: dict[Context, float] = defaultdict(float)
        for gram, count in grams.items():
            totals[gram[:-1]] += count
            left[gram[:-1]] += discounts[min(count, 3)]
        for context, total in totals.items():
            backoffs[context] = math.log10(left[context] / total)
        for gram, count in grams.items():
            context = gram[:-1]
            lower = uniform if size == 1 else 10 ** logs[gram[1:]]
            kept = count - discounts[min(count, 3)] + left[context] * lower
            logs[gram] = math.log10(kept / totals[context])
    logs[UNKNOWN,] = backoffs.pop(()) + math.log10(uniform)
    return NGram(order=order, logs=logs, backoffs=backoffs)


def _counts(sentences: Iterable[Sequence[str]], order: int) -> list[Counter[Gram]]:
    """How often each n-gram occurs, by order; the beginning of a sentence is not a word."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for words in sentences:
        if not MARKS.isdisjoint(words):
            mark = next(word for word in words if word in MARKS)
            raise DistilkitError(
                f"the text holds the word `{mark}`, which has a meaning of its own in a language model",
                f"take `{mark}` out of the text",
            )
        if words:
            padded = (BEGIN, *map(sys.intern, words), END)
            for size, counter in enumerate(counts, start=1):
                counter.update(zip(*(padded[at:] for at in range(size)), strict=False))
    del counts[0][BEGIN,]
    return counts


def _discounts(counts: Collection[int]) -> tuple[float, ...]:
    """What is taken off the counts 1, 2, and 3 or more.

    Source: Chen and Goodman 1998, equation 26.
    """
    of = Counter(counts)
    if not all(of[count] for count in (1, 2, 3, 4)):
        return FALLBACK
    share = of[1] / (of[1] + 2 * of[2])
    found = tuple(n - (n + 1) * share * of[n + 1] / of[n] for n in (1, 2, 3))
    return found if all(0 < found[n - 1] < n for n in (1, 2, 3)) else FALLBACK


def held_out(
    sentences: Iterable[Sequence[str]],
) -> tuple[list[Sequence[str]], list[Sequence[str]]]:
    """Split sentences in about nine tenths and one; equal sentences come to the same side."""
    sides: tuple[list[Sequence[str]], list[Sequence[str]]] = ([], [])
    for words in sentences:
        sides[zlib.crc32(" ".join(words).encode("utf-8", "replace")) % 10 == 0].append(words)
    return sides


# ------------------------------------------------------------------------------------ ARPA files


def write(model: NGram, path: Path) -> None:
    """Write a model as an ARPA file, compressed if the name ends in `.gz`; whole or not at all.

    Raises:
        DistilkitError: the file cannot be written.

    Source: the format is SRILM's ngram-format(5).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DistilkitError(
            f"cannot make `{path.parent}`: {error.strerror}", "another --out"
        ) from error
    with replacing(path) as beside, beside.open("wb") as plain:
        zipped = path.suffix == ".gz"
        # Without a time and a name: equal models make equal files.
        with gzip.GzipFile("", "wb", 6, plain, mtime=0) if zipped else plain as file:
            try:
                file.writelines(line.encode() for line in _arpa(model))
            except UnicodeEncodeError as error:
                raise DistilkitError(
                    f"a word of the text is not Unicode: {error.object.strip()!a}",
                    "write the text as UTF-8",
                ) from error


def _arpa(model: NGram) -> Iterator[str]:
    yield "\\data\\\n"
    for size, count in enumerate(model.sizes(), start=1):
        yield f"ngram {size}={count}\n"
    for size in range(1, model.order + 1):
        yield f"\n\\{size}-grams:\n"
        for gram, value in model.logs.items():
            if len(gram) == size:
                weight = model.backoffs.get(gram)
                tail = "" if weight is None else f"\t{weight:.7g}"
                yield f"{value:.7g}\t{' '.join(gram)}{tail}\n"
    yield "\n\\end\\\n"


def read(path: Path) -> NGram:
    """Read an ARPA file, compressed by gzip or not.

    Weights may be missing, fields may be apart by tabs or spaces, `<UNK>` is `<unk>`. Where a file
    has none, a word that is not known has the logarithm -99.

    Raises:
        DistilkitError: the file cannot be read, or is damaged; says the line.
    """
    number = 0
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            file = gzip.GzipFile(fileobj=plain) if packed else plain
            reader = _Reader()
            for line in iter(lambda: file.readline(LONGEST_LINE), b""):
                number += 1
                reader.take(line)
            return reader.model()
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DistilkitError(
            f"`{path}` is not an ARPA file: line {number}: {error}", HINT
        ) from error
    except FileNotFoundError as error:
        raise DistilkitError(f"no language model `{path}`: no such file", HINT) from error
    except OSError as error:
        raise DistilkitError(f"cannot read `{path}`: {error.strerror}", HINT) from error


class _Reader:
    """What the lines of an ARPA file have brought so far."""

    def __init__(self) -> None:
        self.logs: dict[Gram, float] = {}
        self.backoffs: dict[Gram, float] = {}
        self.names = {b"<UNK>": UNKNOWN}  # every word once
        self.declared: list[int] = []  # n-grams of each order, as the head says
        self.begun = self.ended = False
        self.size = 0  # order of the n-grams of this section
        self.idle = 0  # lines that say nothing, or stand before or behind the n-grams

    def model(self) -> NGram:
        """The model, after the last line."""
        if not self.begun:
            raise ValueError("the file has no `\\data\\`")
        if not self.ended:
            raise ValueError("the file ends before `\\end\\`")
        return NGram(order=len(self.declared), logs=self.logs, backoffs=self.backoffs)

    def take(self, line: bytes) -> None:
        """Read one more line."""
        if len(line) == LONGEST_LINE:
            raise ValueError("the line is too long")
        if line.startswith(b"mmap lm http://kheafield.com/code"):
            raise ValueError("this is KenLM's binary form; its ARPA file is needed")
        line = line.strip()
        self.idle += not (line and self.size)
        if self.idle > MOST_IDLE:
            raise ValueError(f"{MOST_IDLE} lines without an n-gram")
        if not self.begun:
            self.begun = line == b"\\data\\"
        elif self.ended or not line:
            pass
        elif match := re.fullmatch(rb"\\(\d+)-grams:", line):
            if int(match[1]) > len(self.declared):
                raise ValueError(f"the head has no `ngram {int(match[1])}=`")
            self._end_section(int(match[1]))
        elif line == b"\\end\\":
            if not self.declared:
                raise ValueError("the head has no `ngram 1=`")
            self._end_section(len(self.declared) + 1)
            self.ended = True
        elif self.size:
            self._add(line.split())
        else:
            match = re.fullmatch(rb"ngram\s+(\d+)\s*=\s*(\d+)", line)
            if match is None or int(match[1]) != len(self.declared) + 1:
                raise ValueError(f"`ngram {len(self.declared) + 1}=` was expected")
            self.declared.append(int(match[2]))

    def _end_section(self, following: int) -> None:
        """Check the section that ends against the head of the file, and begin the next."""
        size, declared = self.size, self.declared
        found = len(self.logs) - sum(declared[: size - 1])
        if size and found != declared[size - 1]:
            raise ValueError(
                f"{found} n-grams of order {size}, but the head says {declared[size - 1]}"
            )
        if following != size + 1:
            raise ValueError(f"`\\{size + 1}-grams:` was expected")
        self.size = following

    def _add(self, parts: Sequence[bytes]) -> None:
        """Add the n-gram of a line: a logarithm, the words, and perhaps a weight."""
        size, names = self.size, self.names
        if not size + 1 <= len(parts) <= size + 2:
            raise ValueError(f"an n-gram of order {size} does not have {len(parts)} fields")
        for part in parts[1 : size + 1]:
            if part not in names:
                names[part] = sys.intern(part.decode())
        gram = tuple(names[part] for part in parts[1 : size + 1])
        if gram in self.logs:
            raise ValueError(f"`{' '.join(gram)}` is there twice")
        value = _number(parts[0])
        if value > 1e-3:  # rounding may leave a little more than nothing
            raise ValueError(f"{value:g} is not the logarithm of a probability")
        self.logs[gram] = min(value, 0.0)
        if len(parts) == size + 2:
            self.backoffs[gram] = _number(parts[-1])


def _number(text: bytes) -> float:
    """A logarithm; minus infinity becomes -99."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value) or value == math.inf:
        raise ValueError(f"`{text.decode(errors='replace')}` is not a logarithm")
    return max(value, NEVER)
