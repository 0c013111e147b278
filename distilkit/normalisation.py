"""Text in one form: what tokenizers, language models and error rates see of a transcript."""

import re
import unicodedata
from functools import cache

from distilkit import config
from distilkit.errors import DistilkitError

# Quotation marks and accents that people type for an apostrophe. U+02BC stays: it is a letter.
APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u201b\u0060\u00b4\u1fef\u1ffd\uff07\uff40"), "'")
INNER = "'\u00b7\u05f3\u05f4"  # part of a word inside one: also Catalan's dot, Hebrew's geresh
JOINERS = re.compile("[\u200c\u200d]+")  # ZWNJ and ZWJ
JOINED = 0x0530  # Latin, Greek and Cyrillic letters lie below; joiners say nothing between them
VIRAMA = 9  # combining class of signs that silence a vowel, as in Indian scripts
RESERVED = re.compile(r"[|▁▅]|</?(pad|unk|s)>", re.IGNORECASE)  # ▅ is SentencePiece's own
NUMBER = re.compile(r"(\d+(?:[.,]\d+)*)(?:(st|[nr]d|th)\b)?", re.IGNORECASE)
LONGEST_NUMBER = 9  # digits; longer ones are read digit by digit
# Languages that write 1,000.5; all others write 1.000,5.
COMMA_GROUPS = frozenset(
    ["am", "ar", "bn", "cy", "en", "fa", "he", "ja", "kn", "ko", "te", "th"]  # codespell:ignore te
)
# How the sign of decimals is read, where num2words does not say.
POINTS = {
    "ar": "فاصلة", "bn": "দশমিক", "cy": "pwynt", "fa": "ممیز", "id": "koma",
    "it": "virgola", "ja": "点", "ru": "запятая", "vi": "phẩy",
}  # fmt: skip
UNSOUND = frozenset(["am"])  # num2words never returns from some numbers


def normalise(text: str, settings: config.Text) -> str:
    """Text as the tokenizer, the language model and the error rates see it.

    In this order: typographic apostrophes become `'`; the Unicode form; invisible characters go;
    digits; case; of the invisible joiners only those stay that shape words, as in Indian scripts and
    Persian; names and signs that tokenizers keep for themselves (`|`, `<pad>` ...); punctuation and
    symbols become spaces; white space becomes single spaces. To normalise twice changes nothing.

    Args:
        text: one utterance.
        settings: what is done.

    Raises:
        DistilkitError: digits shall be spelled in a language that num2words does not know.
    """
    text = unicodedata.normalize(settings.form, text.translate(APOSTROPHES))
    text = "".join(map(_visible, text))
    if settings.digits == "spell":
        language = _spelling(settings.language)
        text = NUMBER.sub(lambda found: _spelled(found, language), text)
    text = JOINERS.sub(_joiner, _cased(text, settings))
    text = unicodedata.normalize(settings.form, text)
    text = RESERVED.sub(r" \1 ", text)
    if settings.punctuation == "remove":
        text = _without_punctuation(text)
    return " ".join(text.split())


@cache
def _visible(char: str) -> str:
    """What a reader sees of a character; joiners are seen to elsewhere."""
    kind = unicodedata.category(char)
    if char == "\u200b" or char.isspace():  # U+200B ends words where no spaces are written
        return " "
    if kind == "Cs":  # half of a surrogate pair, as damaged JSON holds: no encoding has it
        return "\ufffd"
    variation = "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"
    hidden = variation or (kind in ("Cf", "Cc") and not JOINERS.match(char))
    return "" if hidden else char


@cache
def _kind(char: str) -> str:
    """What a character is: L letter, M mark on one, N number, P or S a sign, Z nothing or space."""
    kind = unicodedata.category(char) if char else "Zs"
    return "S" if kind == "Me" else kind[0]  # an enclosing mark is a keycap or the like


def _around(found: re.Match[str]) -> tuple[str, str]:
    """The characters before and after; empty at an end of the text."""
    start, end = found.span()
    return found.string[max(0, start - 1) : start], found.string[end : end + 1]


def _joiner(found: re.Match[str]) -> str:
    """The first of some joiners where it shapes a word, else nothing."""
    before, after = _around(found)
    if _kind(before) not in "LM" or ord(before) < JOINED:
        return ""
    silenced = unicodedata.combining(before) == VIRAMA and found[0][0] == "\u200d"
    return found[0][0] if silenced or _kind(after) in "LM" else ""


def _cased(text: str, settings: config.Text) -> str:
    turkic = settings.language.partition("_")[0] in ("tr", "az")
    if settings.case == "lower":
        for capital, small in (("I\u0307", "i"), ("İ", "i"), ("I", "ı")) if turkic else ():
            text = text.replace(capital, small)
        return text.lower()
    if settings.case == "upper":
        for small, capital in (("i", "İ"), ("ı", "I")) if turkic else ():
            text = text.replace(small, capital)
        return text.upper()
    return text


def _without_punctuation(text: str) -> str:
    """Spaces in place of punctuation, symbols, and marks that then have no letter under them."""
    kept: list[str] = []
    for place, char in enumerate(text):
        before = kept[-1] if kept else " "
        after = _kind(text[place + 1 : place + 2])
        inside = char in INNER and _kind(before) in "LMN" and after in "LN"
        bare = before.isspace() and (_kind(char) == "M" or JOINERS.match(char) is not None)
        kept.append(" " if bare or (_kind(char) in "PS" and not inside) else char)
    return "".join(kept)


@cache
def _spelling(language: str) -> str:
    """The name that num2words has for a language; it would take `estonian` for Spanish."""
    try:
        from num2words import CONVERTER_CLASSES
    except ImportError as error:
        raise DistilkitError(
            "spelling digits needs num2words", "pip install 'distilkit[digits]'"
        ) from error
    known = sorted(set(CONVERTER_CLASSES) - UNSOUND)
    for found in (language, language.partition("_")[0]):
        if found in known:
            return found
    raise DistilkitError(
        f"digits cannot be spelled in the language `{language}`",
        f"--digits keep, or a --language of {', '.join(known)}",
    )


def _spelled(found: re.Match[str], language: str) -> str:
    """A number in words: grouped thousands, decimals, and in English ordinals."""
    from num2words import CONVERTER_CLASSES, num2words

    number, suffix = found[1], found[2] or ""
    group, mark = (",", ".") if language.partition("_")[0] in COMMA_GROUPS else (".", ",")
    if re.fullmatch(rf"\d{{1,3}}(\{group}\d{{3}})+(\{mark}\d+)?", number):
        number = number.replace(group, "")
    whole, *parts = re.split("[.,]", number)
    if suffix and not parts and language.startswith("en") and _readable(whole):
        words = [num2words(int(whole), lang=language, to="ordinal")]
    elif len(parts) == 1:
        point = POINTS.get(language) or CONVERTER_CLASSES[language].pointword
        decimals = [_cardinal(digit, language) for digit in parts[0]]
        words = [_cardinal(whole, language), point, *decimals, suffix]
    else:  # a whole number, or a date, an address, a version
        words = [*(_cardinal(part, language) for part in (whole, *parts)), suffix]
    before, after = (" " * (_kind(char) in "LMN") for char in _around(found))
    return before + " ".join(filter(None, words)) + after


def _cardinal(digits: str, language: str) -> str:
    from num2words import num2words

    read = [digits] if _readable(digits) else digits
    return " ".join(str(num2words(int(one), lang=language)) for one in read)


def _readable(digits: str) -> bool:
    """Whether digits are read as one number: 007 is not, nor what is very long."""
    return len(digits) <= LONGEST_NUMBER and (digits == "0" or int(digits[0]) > 0)
