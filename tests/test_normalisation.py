"""Text in one form: each rule of its own, twice is once, and numbers in every language that is known."""

import random
import re
import sys
import unicodedata
from typing import Any, get_args

import pytest

from distilkit import config, normalisation
from distilkit.config import Text
from distilkit.errors import DistilkitError
from distilkit.normalisation import normalise

AS_IS = Text(form="NFC", case="keep", punctuation="keep")


def spelled(language: str = "en", **more: Any) -> Text:
    return Text(digits="spell", language=language, **more)


NORMAL = {
    "plain": (Text(), "The  Bee's\tKnees!\n", "the bee's knees"),
    "typographic apostrophes": (Text(), "it\u2019s o\u2018clock d\u00b4or d`or d\uff07or", "it's o'clock d'or d'or d'or"),
    "apostrophe outside": (Text(), "'tis the dogs' 'bone'", "tis the dogs bone"),
    "apostrophe between digits": (Text(), "a'1 1'a", "a'1 1'a"),
    "apostrophe after a mark": (Text(form="NFD"), "e\u0301'a", "e\u0301'a"),
    "letter apostrophe": (Text(), "t\u02bc\u00e1\u00e1\u02bc", "t\u02bc\u00e1\u00e1\u02bc"),
    "inner dots": (Text(), "col\u00b7lecci\u00f3 \u00b7 a", "col\u00b7lecci\u00f3 a"),
    "hebrew": (Text(), "\u05e6\u05d4\u05f4\u05dc \u05f4\u05dc", "\u05e6\u05d4\u05f4\u05dc \u05dc"),
    "hyphens": (Text(), "well-known \u2013 non\u2010stop", "well known non stop"),
    "signs": (Text(), "5 % of $3 & a+b", "5 of 3 a b"),
    "punctuation kept": (Text(punctuation="keep"), "Well-known: \u201cyes\u201d, 5 %!", "well-known: \u201cyes\u201d, 5 %!"),
    "combined": (Text(form="NFC"), "Cafe\u0301", "caf\u00e9"),
    "decomposed": (Text(form="NFD"), "caf\u00e9", "cafe\u0301"),
    "compatibility": (Text(), "\ufb01ne \uff21\uff22 \u2460", "fine ab 1"),
    "no compatibility": (Text(form="NFC"), "\ufb01ne", "\ufb01ne"),
    "a mark on nothing": (Text(), "a \u0301b \u00a8c", "a b c"),
    "eszett": (Text(), "Stra\u00dfe STRA\u1e9eE", "stra\u00dfe stra\u00dfe"),
    "eszett upper": (Text(case="upper"), "Stra\u00dfe", "STRASSE"),
    "turkish elsewhere": (Text(), "\u0130stanbul ILIK", "i\u0307stanbul ilik"),
    "turkish": (Text(language="tr"), "\u0130stanbul ILIK", "istanbul \u0131l\u0131k"),
    "turkish by its region": (Text(language="TR-tr"), "\u0130stanbul ILIK", "istanbul \u0131l\u0131k"),
    "turkish decomposed": (Text(language="tr", form="NFD"), "\u0130stanbul", "istanbul"),
    "turkish upper": (Text(language="tr", case="upper"), "istanbul \u0131l\u0131k", "\u0130STANBUL ILIK"),
    "greek": (Text(), "\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c2"),
    "hindi": (Text(), "\u0939\u093f\u0902\u0926\u0940, \u092d\u093e\u0937\u093e\u0964", "\u0939\u093f\u0902\u0926\u0940 \u092d\u093e\u0937\u093e"),
    "hindi joiner": (Text(), "\u0915\u094d\u200d\u0937", "\u0915\u094d\u200d\u0937"),
    "hindi non-joiner": (Text(), "\u0915\u094d\u200c\u0937", "\u0915\u094d\u200c\u0937"),
    "malayalam joiner ends a word": (Text(), "\u0d05\u0d35\u0d28\u0d4d\u200d.", "\u0d05\u0d35\u0d28\u0d4d\u200d"),
    "persian": (Text(), "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
    "persian, twice typed": (Text(), "\u0645\u06cc\u200c\u200c\u062e", "\u0645\u06cc\u200c\u062e"),
    "persian, at the end": (Text(), "\u0645\u06cc\u200c \u062e", "\u0645\u06cc \u062e"),
    "joiner in latin": (Text(), "auf\u200clage a\u200db", "auflage ab"),
    "arabic": (Text(), "\u0645\u064e\u0631\u0652\u062d\u064e\u0628\u064b\u0627\u060c \u0644\u0627\u061f", "\u0645\u064e\u0631\u0652\u062d\u064e\u0628\u064b\u0627 \u0644\u0627"),
    "chinese": (Text(), "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u4f60\u597d \u4e16\u754c"),
    "emoji": (Text(), "so \U0001f469\u200d\U0001f52c \u2764\ufe0f 1\ufe0f\u20e3 \U0001f44d\U0001f3fd nice", "so 1 nice"),
    "emoji kept": (AS_IS, "so \u2764\ufe0f \U0001f600", "so \u2764 \U0001f600"),
    "hidden": (Text(), "\ufeffco\u00adop\u2060er\u200eate\x00", "cooperate"),
    "zero-width space": (Text(), "\u0e44\u0e17\u0e22\u200b\u0e14\u0e35", "\u0e44\u0e17\u0e22 \u0e14\u0e35"),
    "spaces": (Text(), "a\u00a0b\u2028c\u3000d", "a b c d"),
    "half a pair": (AS_IS, "a\ud83db", "a\ufffdb"),
    "reserved": (AS_IS, "a|b\u2581c\u2585d <pad> <UNK> <s>x</s>", "a b c d pad UNK s x s"),
    "reserved, wide": (Text(punctuation="keep"), "a\uff5cb", "a b"),
    "reserved in reserved": (AS_IS, "<<pad>pad>", "< pad pad>"),
    "numbers": (spelled(), "3.5 and 1,000 and 007", "three point five and one thousand and zero zero seven"),
    "ordinals": (spelled(), "the 4th and 21ST", "the fourth and twenty first"),
    "ordinals elsewhere": (spelled("de"), "4th", "vier th"),
    "german": (spelled("de"), "1.000,5 und 3.5", "eintausend komma f\u00fcnf und drei komma f\u00fcnf"),  # codespell:ignore komma
    "decimals one by one": (spelled(), "3.140", "three point one four zero"),
    "several": (spelled(), "1.2.34", "one two thirty four"),
    "beside letters": (spelled(), "B2B", "b two b"),
    "long": (spelled(), "1234567890", "one two three four five six seven eight nine zero"),
    "spelled, punctuation kept": (spelled(punctuation="keep"), "42, 1,001", "forty-two, one thousand and one"),
    "other digits": (spelled(), "\u0663", "three"),
    "country": (spelled("pt-BR"), "2", "dois"),
    "country that num2words does not tell apart": (spelled("de_AT"), "2", "zwei"),
    "digits kept": (Text(), "3.5 007", "3 5 007"),
    "nothing": (Text(), "... !", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMAL)
def test_text_is_normalised(name: str) -> None:
    settings, text, wanted = NORMAL[name]
    assert normalise(text, settings) == wanted
    assert normalise(wanted, settings) == wanted


def odd_texts(count: int, seed: int) -> list[str]:
    """Short texts of the characters that are most likely to meddle with one another, and of any."""
    draw = random.Random(seed)
    likely = (
        "aIi\u0130\u0131\u00df'\u2019\u00b4\u00b7  -<>|\u2581\u2585.,129\u0301\u0307\u0338\u0345\u200b\u200c"
        "\u200d\u200e\u00ad\ufe0f\u20e3\u094d\u0915\u0937\u093e\u0645\u06cc\u05f3\u1100\u1161\ufb01\ua7aa\u1fe2"
        "\u03a3\u0149=+`\u00bd\u00b2\u00a8\ufefb\ud800\U0001f600"
    )
    signs = [chr(code) for code in range(0x3000) if unicodedata.category(chr(code)) != "Cn"]
    return [
        "".join(draw.choices(likely if draw.random() < 0.7 else signs, k=draw.randint(1, 12)))
        for _ in range(count)
    ]


@pytest.mark.parametrize("form", get_args(config.UnicodeForm))
@pytest.mark.parametrize("case", get_args(config.Case))
def test_twice_is_once(form: config.UnicodeForm, case: config.Case) -> None:
    for punctuation in get_args(config.Punctuation):
        for language, digits in (("en", "keep"), ("tr", "keep"), ("de", "spell")):
            settings = Text(
                form=form, case=case, punctuation=punctuation, language=language, digits=digits
            )
            for text in odd_texts(1200, 1):
                once = normalise(text, settings)
                assert normalise(once, settings) == once, ascii(text)


def test_every_language_of_num2words_reads_numbers() -> None:
    from num2words import CONVERTER_CLASSES

    assert len(CONVERTER_CLASSES) > 50
    for language in sorted(set(CONVERTER_CLASSES) - {"am"}):
        three, five = (normalise(digit, spelled(language)) for digit in "35")
        read = normalise("3.5", spelled(language))
        assert re.fullmatch(rf"{three} [^\W\d].*\S {five}|{three} \S {five}", read), language
        assert not re.search(r"\d", normalise("1999 0,07 123.456.789 12345678", spelled(language)))


@pytest.mark.parametrize("language", ["est", "estonian", "am", "xx", ""])
def test_a_language_that_has_no_number_words(language: str) -> None:
    """`estonian` begins like `es`, and in Amharic num2words runs for ever."""
    with pytest.raises(DistilkitError, match=rf"in the language `{language}`$") as caught:
        normalise("7", spelled(language))
    assert re.match(r"--digits keep, or a --language of ar, az, .*, vi$", str(caught.value.hint))
    assert normalise("no digits", Text(language=language)) == "no digits"


def test_without_num2words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "num2words", None)
    normalisation._spelling.cache_clear()
    with pytest.raises(DistilkitError, match="spelling digits needs num2words") as caught:
        normalise("7", spelled())
    assert caught.value.hint == "pip install 'distilkit[digits]'"
    assert normalise("7", Text()) == "7"
