"""What the voices of `corpus.py` say: random words of a language, in English also commands and numbers."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import wordfreq  # type: ignore[import-not-found]


def items(text: str) -> list[str]:
    """The items of a list that is written with commas."""
    return text.split(", ")


UNITS = items(
    "zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, "
    "fourteen, fifteen, sixteen, seventeen, eighteen, nineteen"
)
TENS = items("twenty, thirty, forty, fifty, sixty, seventy, eighty, ninety")
VERBS = items(
    "turn on, turn off, switch on, switch off, dim, open, close, make, start, stop, bring me, "
    "get me, give me, find, show me, play, call, clean, heat, check, lock, order, move, set, "
    "I would like, can I have, please get"
)
ROOMS = items(
    "kitchen, bedroom, bathroom, living room, hallway, garage, garden, office, cellar, attic, "
    "nursery, porch, dining room, washroom, upstairs, downstairs"
)
THINGS = items(
    "lights, lamp, heating, music, volume, door, window, blinds, fan, television, radio, oven, "
    "alarm, timer, camera, newspaper, shoes, phone, towel, temperature"
)
DRINKS = items(
    "coffee, tea, espresso, latte, cappuccino, mocha, americano, hot chocolate, lemonade, "
    "orange juice, milk, water, apple juice, macchiato, soda, beer"
)
SIZES = items(
    "small, medium, large, extra large, tiny, double, single, big, little, regular, half, huge"
)
COLOURS = items(
    "red, green, blue, yellow, orange, purple, black, white, brown, pink, grey, silver, violet, "
    "turquoise"
)
SINGLE = items(
    "yes, no, stop, go, up, down, left, right, on, off, marvin, sheila, happy, bird, cat, dog, bed, "
    "house, tree, wow, backward, forward, follow, learn, visual, computer, jarvis, alexa, hello, "
    "please, thanks, okay, cancel, help, next, back, louder, quieter, monday, tuesday, wednesday, "
    "thursday, friday, saturday, sunday"
)
NOT_LATIN = ("ru", "uk", "bg", "el", "hi")


def sentence(rng: np.random.Generator, language: str) -> str:
    """What the next clip says."""
    kind = rng.random()
    english = language == "en"
    if kind < 0.15:
        return short(rng, language)
    if kind < 0.27:
        return ", ".join(listed(rng, language, int(rng.integers(3, 8))))
    if english and kind < 0.42:
        return number(rng) + (f", {number(rng)}" if rng.random() < 0.4 else "")
    if english and kind < 0.57:
        return command(rng)
    drawn = words(rng, language, int(rng.integers(4, 13)))
    if len(drawn) > 6 and rng.random() < 0.5:
        drawn[int(rng.integers(2, len(drawn) - 2))] += ","
    return " ".join(drawn)


def short(rng: np.random.Generator, language: str) -> str:
    """One to three words, in English also a digit, a keyword or a short command."""
    if language != "en" or rng.random() >= 0.7:
        return " ".join(words(rng, language, int(rng.integers(1, 4))))
    kind = some(rng, ["digit", "single", "command"])
    if kind == "command":
        return f"{some(rng, VERBS[:6])} {some(rng, THINGS)}"
    return some(rng, UNITS[:11] if kind == "digit" else SINGLE)


def listed(rng: np.random.Generator, language: str, count: int) -> list[str]:
    """Single words, to be said with pauses; in English half the time all of one kind."""
    if language != "en" or rng.random() >= 0.5:
        return words(rng, language, count)
    kind = (COLOURS, DRINKS, ROOMS, SINGLE)[int(rng.integers(4))]
    return [some(rng, kind) for _ in range(count)]


def number(rng: np.random.Generator) -> str:
    """A number in English: digit by digit, or up to the thousands."""
    kind = rng.random()
    if kind < 0.5:
        return " ".join(some(rng, UNITS[:10]) for _ in range(rng.integers(1, 7)))
    small = (
        some(rng, UNITS) if rng.random() < 0.4 else f"{some(rng, TENS)} {some(rng, UNITS[1:10])}"
    )
    if kind < 0.75:
        return small
    return f"{some(rng, UNITS[1:10])} {'hundred' if kind < 0.9 else 'thousand'} and {small}"


def command(rng: np.random.Generator) -> str:
    """A request in English."""
    thing = some(rng, THINGS if rng.random() < 0.5 else DRINKS)
    described = [word for word in (some(rng, SIZES), some(rng, COLOURS)) if rng.random() < 0.4]
    place = f" {some(rng, ['in', 'to', 'for', 'from'])} the {some(rng, ROOMS)}"
    text = " ".join([some(rng, VERBS), some(rng, ["the", "a", "my", "some"]), *described, thing])
    return text + (place if rng.random() < 0.5 else "")


def words(rng: np.random.Generator, language: str, count: int) -> list[str]:
    """Random words of a language: half by how frequent they are, half any of the list."""
    pool, chances = vocabulary(language)
    common = rng.choice(len(pool), size=count, p=chances)
    return [pool[i] if rng.random() < 0.5 else some(rng, pool) for i in common]


def some(rng: np.random.Generator, pool: Sequence[str]) -> str:
    """One of `pool`."""
    return pool[int(rng.integers(len(pool)))]


@functools.cache
def vocabulary(language: str) -> tuple[list[str], npt.NDArray[np.float64]]:
    """The few thousand most frequent words of a language, and the chance of each."""
    pool = [word for word in wordfreq.top_n_list(language, 5000) if usable(word, language)]
    weights = np.array([wordfreq.word_frequency(word, language) for word in pool]) ** 0.7
    return pool, weights / weights.sum()


def usable(word: str, language: str) -> bool:
    """Whether a word is of 2 to 15 letters, in the script of its language."""
    letters = word.replace("'", "")
    if not 1 < len(letters) < 16:
        return False
    if language == "hi":  # its vowel signs are no letters to `isalpha`
        return all("\u0900" <= letter <= "\u097f" for letter in letters)
    return letters.isalpha() and not (letters.isascii() and language in NOT_LATIN)
