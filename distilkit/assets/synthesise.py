"""Write the small synthetic speech corpus in ``speech/`` with the ``espeak-ng`` command.

Fourteen invented speakers (each an espeak-ng voice at its own pitch and speed) read everyday
sentences in nine languages, English with two accents. All five English speakers read the four
``SHARED_ENGLISH`` sentences and both German speakers the two ``SHARED_GERMAN`` ones. Each clip is
resampled to 16 kHz with soxr, gets a seeded gain, seeded silence at both ends and seeded low
noise, and is stored as Ogg Opus (Ogg Vorbis at its smallest is over half as large again).

The encoder gives each Ogg stream a random serial number, so the pages are renumbered afterwards.
Twelve more English voices say single words into ``words/``, for a probe.

With the same espeak-ng, libsndfile, soxr and numpy on the same kind of processor a second run
writes byte-identical files.

Usage: ``python distilkit/assets/synthesise.py [FOLDER]`` writes FOLDER/speech and FOLDER/words
"""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

RATE = 16_000
SEED = 20
STEP = RATE // 100  # clips last a whole number of 10 ms steps, so two decimals are exact
PEAK = 0.9
COMPRESSION = 0.958  # libsndfile's scale, 0 the best to 1 the smallest

SHARED_ENGLISH = (
    "Good morning, how are you today?",
    "The kitchen window looks out over a small garden with two apple trees.",
    "Please bring three eggs, a bottle of milk and half a loaf of bread.",
    "If the rain stops before noon, we will take the train to the coast, walk along the cliffs, "
    "and be home in time for supper.",
)
SHARED_GERMAN = (
    "Guten Tag, ich hätte gern zwei Brötchen und einen Kaffee.",
    "Heute Morgen war es so kalt, dass die Fensterscheiben am Auto gefroren waren.",
)


WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("yes", "no", "stop", "go", "left", "right", "up", "down", "on", "off"),
)
WORD_VOICES = (  # espeak-ng voice and variant, pitch, words a minute
    ("en-us+m1", 35, 150),
    ("en-us+f2", 60, 165),
    ("en-us+m7", 50, 175),
    ("en-us+f4", 75, 150),
    ("en-gb+m3", 45, 160),
    ("en-gb+f1", 65, 170),
    ("en-gb+m5", 25, 140),
    ("en-gb+f3", 80, 180),
    ("en-gb-scotland+m2", 40, 155),
    ("en-gb-scotland+f5", 70, 165),
    ("en-gb-x-rp+m4", 55, 170),
    ("en-gb-x-rp+f2", 55, 145),
)


@dataclass(frozen=True)
class Speaker:
    """One invented speaker: an espeak-ng voice with its pitch, speed, noise and sentences."""

    name: str
    language: str
    voice: str
    pitch: int  # espeak-ng's 0 to 99
    speed: int  # words a minute
    noise_db: float  # level of the added white noise, dBFS
    sentences: tuple[str, ...]


SPEAKERS = (
    Speaker(
        name="en-us-a",
        language="en-us",
        voice="en-us+m3",
        pitch=45,
        speed=155,
        noise_db=-62.0,
        sentences=(
            *SHARED_ENGLISH,
            "My flight leaves at a quarter past six, so I have to be up before four.",
            "Stir the soup slowly, then let it rest for ten minutes with the lid on.",
        ),
    ),
    Speaker(
        name="en-us-b",
        language="en-us",
        voice="en-us+f2",
        pitch=55,
        speed=165,
        noise_db=-66.0,
        sentences=(
            *SHARED_ENGLISH,
            "Seven, twelve, twenty-five, thirty-eight, and one hundred and four.",
            "The library closes early on Fridays, but you can always return books through the "
            "slot by the door.",
        ),
    ),
    Speaker(
        name="en-us-c",
        language="en-us",
        voice="en-us+m7",
        pitch=35,
        speed=145,
        noise_db=-58.0,
        sentences=(
            *SHARED_ENGLISH,
            "Turn left at the gas station and keep going until you see the water tower.",
            "We painted the old barn blue last summer, and now all the neighbors ask us where "
            "we bought the paint.",
        ),
    ),
    Speaker(
        name="en-gb-a",
        language="en-gb",
        voice="en-gb+m1",
        pitch=50,
        speed=150,
        noise_db=-64.0,
        sentences=(
            *SHARED_ENGLISH,
            "There is fog on the hills this morning, but the forecast promises sunshine by "
            "lunchtime.",
            "Could you tell me which platform the nine forty train leaves from?",
        ),
    ),
    Speaker(
        name="en-gb-b",
        language="en-gb",
        voice="en-gb+f4",
        pitch=60,
        speed=160,
        noise_db=-60.0,
        sentences=(
            *SHARED_ENGLISH,
            "I have just put the kettle on. Would you like tea or coffee?",
            "My grandmother kept her recipes in a tin box, written on the backs of envelopes and "
            "old bus tickets.",
        ),
    ),
    Speaker(
        name="de-a",
        language="de",
        voice="de+m2",
        pitch=40,
        speed=150,
        noise_db=-61.0,
        sentences=(
            *SHARED_GERMAN,
            "Der Zug nach Hamburg fährt heute von Gleis sieben ab und hat zehn Minuten Verspätung.",
            "Wir haben am Wochenende den Keller aufgeräumt und dabei eine Kiste mit alten Fotos "
            "gefunden.",
            "Vielen Dank und bis morgen Abend!",
        ),
    ),
    Speaker(
        name="de-b",
        language="de",
        voice="de+f3",
        pitch=55,
        speed=160,
        noise_db=-65.0,
        sentences=(
            *SHARED_GERMAN,
            "Schneiden Sie die Zwiebeln in feine Würfel und braten Sie sie in etwas Butter "
            "goldgelb an.",
            "Meine Schwester wohnt im dritten Stock, gleich neben der Bäckerei.",
            "Einundzwanzig, zweiundvierzig, dreiundsechzig, vierundachtzig.",
        ),
    ),
    Speaker(
        name="fr-a",
        language="fr",
        voice="fr-fr+f5",
        pitch=50,
        speed=155,
        noise_db=-63.0,
        sentences=(
            "Ce matin, le marché était plein de fraises, de cerises et de fleurs.",
            "Excusez-moi, où se trouve la gare, s'il vous plaît ?",
            "Il a plu toute la nuit, mais le ciel s'est dégagé juste avant notre départ pour la "
            "montagne.",
            "Ajoutez deux cuillerées de farine, mélangez bien et laissez reposer la pâte pendant "
            "une heure.",
            "Nous étions dix-huit à table, et il manquait encore quatre chaises.",
            "Le dimanche, nous descendons à pied jusqu'au port. Les pêcheurs réparent leurs "
            "filets, les enfants mangent des glaces, et personne ne regarde l'heure.",
        ),
    ),
    Speaker(
        name="es-a",
        language="es",
        voice="es+m4",
        pitch=50,
        speed=160,
        noise_db=-59.0,
        sentences=(
            "Mañana iremos a la playa si no hace demasiado viento.",
            "¿A qué hora sale el último autobús para Sevilla?",
            "Mi abuelo planta tomates, pimientos y calabacines en el huerto que hay detrás de la "
            "casa.",
            "Pon el arroz cuando el caldo empiece a hervir y no lo remuevas más.",
            "Quince, veintidós, cuarenta y nueve, ochenta y siete.",
            "El tren de las diez va lleno, así que hemos comprado billetes para el siguiente. "
            "Mientras tanto, podemos desayunar en la plaza y pasear por el mercado.",
        ),
    ),
    Speaker(
        name="it-a",
        language="it",
        voice="it+f1",
        pitch=45,
        speed=150,
        noise_db=-66.0,
        sentences=(
            "Domani mattina prendiamo il traghetto delle otto per l'isola.",
            "Quanto costa un chilo di pesche?",
            "Il vento ha portato via le nuvole e adesso, dalla terrazza, si vedono tutte le "
            "montagne.",
            "Fai soffriggere l'aglio nell'olio, poi aggiungi i pomodori e un po' di basilico "
            "fresco.",
            "La farmacia è in fondo alla strada, accanto all'ufficio postale.",
        ),
    ),
    Speaker(
        name="pt-br-a",
        language="pt-br",
        voice="pt-br+m6",
        pitch=50,
        speed=155,
        noise_db=-62.0,
        sentences=(
            "Hoje vai fazer muito calor, então é melhor sair de casa bem cedo.",
            "Você sabe onde fica a estação de metrô mais próxima?",
            "Minha irmã comprou uma bicicleta vermelha e agora vai pedalando para o trabalho "
            "todos os dias.",
            "Misture a farinha com o leite e leve ao forno por quarenta minutos.",
            "Até amanhã, e obrigado pelo café!",
        ),
    ),
    Speaker(
        name="sv-a",
        language="sv",
        voice="sv+f2",
        pitch=45,
        speed=150,
        noise_db=-60.0,
        sentences=(
            "Det snöade hela natten och nu ligger gatorna alldeles tysta.",
            "Ursäkta, var ligger närmaste apotek?",
            "På lördag åker vi ut till sommarstugan för att plocka blåbär och bada i sjön.",
            "Koka potatisen i tjugo minuter och servera den med smör, lök och lite dill.",
            "Tåget till Göteborg avgår klockan halv nio från spår fyra.",
        ),
    ),
    Speaker(
        name="hu-a",
        language="hu",
        voice="hu+m5",
        pitch=50,
        speed=150,
        noise_db=-64.0,
        sentences=(
            "Ma reggel sűrű köd ült a folyó fölött, alig láttuk a túlsó partot.",
            "Elnézést, melyik busz megy a pályaudvarra?",
            "A nagymamám minden vasárnap húslevest főz, és az egész család az asztal köré ül.",
            "Tegyél bele egy kanál cukrot, két tojást és egy csipet sót.",
            "Tizenhárom, huszonhét, ötvenhat, kilencvenegy.",
            "Délután kiderült az ég, ezért kimentünk a piacra. Vettünk paprikát, paradicsomot és "
            "egy nagy dinnyét, aztán hazafelé megálltunk egy fagylaltra.",
        ),
    ),
    Speaker(
        name="nl-a",
        language="nl",
        voice="nl+f3",
        pitch=50,
        speed=155,
        noise_db=-61.0,
        sentences=(
            "Het regent al de hele week, maar morgen komt eindelijk de zon terug.",
            "Mag ik twee kaartjes naar Utrecht, alstublieft?",
            "We hebben de fietsen in de schuur gezet en zijn daarna pannenkoeken gaan bakken.",
            "Snijd de wortels in dunne plakjes en laat ze een kwartier zachtjes koken.",
            "Mijn broer woont op de vierde verdieping van een oud pand aan de gracht.",
            "Volgend voorjaar reizen we met de trein naar het zuiden. Eerst een week in de "
            "bergen, daarna nog een paar dagen aan zee.",
        ),
    ),
)


def speak(text: str, speaker: Speaker) -> npt.NDArray[np.float64]:
    """Return `text` as samples at RATE, without the silence espeak-ng leaves at the ends."""
    wav = subprocess.run(
        [
            "espeak-ng",
            "-b",
            "1",
            "-v",
            speaker.voice,
            "-p",
            str(speaker.pitch),
            "-s",
            str(speaker.speed),
            "--stdout",
            text,
        ],
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float64")
    samples = soxr.resample(samples, rate, RATE, quality="HQ")
    loud = np.flatnonzero(np.abs(samples) > 1e-3)
    return np.asarray(samples[loud[0] : loud[-1] + 1], dtype=np.float64)


def colour(
    samples: npt.NDArray[np.float64], noise_db: float, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Put silence around `samples`, change their gain a little and add white noise."""
    before, after = (int(n) for n in rng.integers(RATE // 10, RATE * 3 // 10, size=2))
    after += -(before + len(samples) + after) % STEP
    gain = 10 ** (rng.uniform(-4.0, 2.0) / 20)
    gain = min(gain, PEAK / float(np.max(np.abs(samples))))
    out = np.pad(gain * samples, (before, after))
    out += rng.normal(0.0, 10 ** (noise_db / 20), size=len(out))
    return out.astype(np.float32)


def crc_table() -> list[int]:
    """Return the table of the checksum that Ogg pages carry (polynomial 0x04C11DB7)."""
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


CRC_TABLE = crc_table()


def renumber(ogg: bytes, serial: int) -> bytes:
    """Return the Ogg stream with `serial` as the serial number of every page."""
    out, start = bytearray(), 0
    while start < len(ogg):
        segments = ogg[start + 26]
        size = 27 + segments + sum(ogg[start + 27 : start + 27 + segments])
        page = bytearray(ogg[start : start + size])
        if page[:4] != b"OggS" or len(page) != size:
            raise ValueError("not a whole Ogg page")
        page[14:18] = serial.to_bytes(4, "little")
        page[22:26] = bytes(4)
        crc = 0
        for byte in page:
            crc = ((crc << 8) & 0xFFFFFFFF) ^ CRC_TABLE[(crc >> 24) ^ byte]
        page[22:26] = crc.to_bytes(4, "little")
        out += page
        start += size
    return bytes(out)


def encode(samples: npt.NDArray[np.float32], serial: int) -> bytes:
    """Return `samples` as an Ogg Opus file."""
    buffer = io.BytesIO()
    soundfile.write(
        buffer, samples, RATE, format="OGG", subtype="OPUS", compression_level=COMPRESSION
    )
    return renumber(buffer.getvalue(), serial)


def synthesise(folder: Path) -> float:
    """Write the sentences and `metadata.csv` into `folder`; return the seconds written."""
    return write(folder, SPEAKERS, SEED)


def words(folder: Path) -> float:
    """Write the single words and `metadata.csv` into `folder`; return the seconds written."""
    speakers = tuple(
        Speaker(
            name=f"voice-{number:02d}",
            language="en",
            voice=voice,
            pitch=pitch,
            speed=speed,
            noise_db=-58.0,
            sentences=WORDS,
        )
        for number, (voice, pitch, speed) in enumerate(WORD_VOICES, start=1)
    )
    return write(folder, speakers, SEED + 1)


def write(folder: Path, speakers: tuple[Speaker, ...], seed: int) -> float:
    """Write what the speakers say, and `metadata.csv`; return the seconds written."""
    rows: list[tuple[str, str, str, str, str]] = []
    total = 0.0
    for which, speaker in enumerate(speakers, start=1):
        (folder / speaker.name).mkdir(parents=True, exist_ok=True)
        for number, text in enumerate(speaker.sentences, start=1):
            rng = np.random.default_rng([seed, which, number])
            samples = colour(speak(text, speaker), speaker.noise_db, rng)
            name = f"{speaker.name}/{number:03d}.ogg"
            (folder / name).write_bytes(encode(samples, serial=1000 * which + number))
            seconds = len(samples) / RATE
            rows.append((name, text, speaker.name, speaker.language, f"{seconds:.2f}"))
            total += seconds
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file_name", "transcription", "speaker", "language", "seconds"))
        writer.writerows(rows)
    return total


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, make in (("speech", synthesise), ("words", words)):
        print(f"{make(target / name) / 60:.1f} minutes in {target / name}")
