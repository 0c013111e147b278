"""Add a crowd to the built-in speech: 130 voices of six engines, with everyday sentences.

The voices are some of those of `corpus_voices.py`: 102 say four sentences each in English, natively or with
an accent, and 28 say two each in a language of `synthesise.py`, whose texts they share. Clips are
16 kHz mono Ogg Opus, like its. The crowd's existing clips are replaced; with the same engines on the
same kind of processor they sound the same, sample by sample. Voices that are made of a person's recordings
under the GPL or LGPL are left out: pieces of them would be in what is given away here.

python distilkit/assets/crowd.py [FOLDER]
"""

from __future__ import annotations

import csv
import shutil
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soxr

if TYPE_CHECKING:  # to mypy they are parts of the package, to Python scripts in one folder
    from distilkit.assets.corpus_voices import ENGINES, Line, Samples, Voice, available
    from distilkit.assets.synthesise import SPEAKERS, encode
else:
    from corpus_voices import ENGINES, Line, Samples, Voice, available
    from synthesise import SPEAKERS, encode

RATE = 16_000
SEED = 21
ENGLISH_CLIPS, FOREIGN_CLIPS = 4, 2  # of each voice
ENGLISH_VOICES = {"espeak": 24, "festival": 8, "flite": 8, "hibari": 4, "kokoro": 50, "pico": 8}
FOREIGN_VOICES = {"espeak": 8, "kokoro": 12, "pico": 8}  # festival's are under the GPL
LEVEL = (-28.0, -18.0)  # dBFS of the whole clip, before the peak is limited
PEAK = 0.9

ENGLISH = """
    The bus was late again, so I walked along the river instead.
    Could you water the plants on the balcony while we are away?
    Our neighbour keeps bees, and every autumn he leaves a jar of honey at the door.
    I wrote the number down twice: four zero seven, nine one six, two eight.
    She laughed so loudly that the whole carriage turned round.
    The soup needs a little more salt and perhaps a squeeze of lemon.
    There were only three chairs left, and five of us wanted to sit down.
    He measured the shelf carefully and still cut it an inch too short.
    On Thursday the market stays open until eight o'clock in the evening.
    My keys are either in the blue jacket or under the newspaper.
    The children built a tent from two blankets and a clothes line.
    If you hear the bell, leave your books and go out by the side door.
    It takes about forty minutes by bike, or six if the wind is behind you.
    Nobody could remember who had first suggested the trip.
    The old clock in the hall strikes one, whatever the hour.
    We ran out of flour, so the cake became a pudding.
    Please hold the line, someone will be with you shortly.
    A thin layer of ice had formed on the pond by morning.
    He plays the trumpet badly but with great pleasure.
    The doctor told her to rest for a week, and she managed two days.
    Zero, one, or two sugars in your tea?
    From the top of the tower you can see both bridges and the harbour.
    I have never been good at saying goodbye on the telephone.
    The dog next door barks at everyone except the postman.
    Put the heavy boxes at the bottom and the glasses on top.
    They met by chance in a queue for theatre tickets.
    The road to the village is closed, but you can still walk through the wood.
    Seven people signed up for the course, and nine came.
    Her handwriting is so small that I need my glasses to read it.
    The radio said there would be snow above five hundred metres.
    Would you rather sit by the window or next to the door?
    Our train passed a field of sunflowers that had no end.
    He keeps every ticket, every map and every letter in a drawer.
    The lamp over the table flickers whenever the lift starts.
    Yesterday's bread makes the best toast.
    We have lived here for eleven years and still find new paths.
    The cat slept on the printer because it was warm.
    Take the second street on the right, then ask for the baker.
    Four of the eggs were cracked, so I paid for eight.
    My brother is learning to juggle with oranges.
    The tide comes in quickly here, so do not stay on the sand too long.
    She had packed for the mountains, and he had packed for the beach.
    No one noticed the small door behind the curtain.
    Yes, the shop is open, but the owner is having lunch.
    The teacher drew a circle without lifting the chalk.
    In the evening the swallows fly low over the roofs.
    Stop the car, I think I left the oven on!
    The paint dries in an hour, the second coat takes longer.
    Go up the stairs, turn left and knock on the third door.
    I found your umbrella, but not the one you lost.
    A small boat with a red sail came round the point.
    They argued about the route until the petrol ran out.
    The film begins at twenty past nine and ends after midnight.
    His first job was to carry ladders for a man who cleaned windows.
    Do not forget to switch off the light when you go down to the cellar.
    The peaches are hard today, but by Sunday they will be perfect.
    Every winter the lake freezes, and the whole town goes out to skate.
    She answered in six words and hung up.
    The coffee machine makes a noise like an aeroplane.
    We planted two rows of beans and one of peas.
    The letter came back three times with a different stamp.
    It was so quiet that we could hear the snow falling from the branches.
    He has a photograph of every house he ever lived in.
    The judge asked the question again, more slowly.
    Bring a torch, a rope, and something warm to drink.
    The waiter remembered what everyone had ordered but not for whom.
    I usually read on the train, but today I only looked out.
    Eight, nine, ten, and the lift still had not come.
    The wall is thick enough to keep the kitchen cool in August.
    A stranger gave us the key and told us to help ourselves.
    The piano is older than the house and needs tuning twice a year.
    They sell fresh fish on the quay from five in the morning.
    My grandfather could tell the time by the shadow of the chimney.
    The question is not whether it will rain but when.
    We changed trains at a station with no name.
    She painted the door yellow so that visitors could find it.
    The engine coughed, stopped, and then ran for another ten years.
    On the left you see the castle, on the right the car park.
    There is a hole in my pocket, and that explains a great deal.
    The youngest of the three sisters became a pilot.
    Nothing tastes better than a cold apple after a long walk.
    The bridge sways a little in the wind, but it has held for a century.
    He asked for half a pound of cheese and got half a wheel.
    Their garden is narrow and long, with a bench at the far end.
    I can lend you five, but not fifty.
    The museum is free on the first Monday of the month.
    A bell, a whistle, and then the wheels began to turn.
    She reads the last page first and enjoys the book all the same.
    The shoes were a bargain, although one was larger than the other.
    We waited under the bridge until the storm had passed.
    The baby slept through the fireworks and woke when they were over.
    His map showed a path where the river now runs.
    You will need a pan, a wooden spoon and a great deal of patience.
    The last ferry goes at a quarter to seven.
    They counted the sheep twice and got two different numbers.
    I like the sound of rain on a tin roof.
"""


def texts(language: str) -> list[str]:
    """The sentences of a language."""
    if language == "en":
        return [line.strip() for line in ENGLISH.strip().splitlines()]
    spoken = [
        text for one in SPEAKERS if one.language.startswith(language) for text in one.sentences
    ]
    return list(dict.fromkeys(spoken))


def crowd() -> list[Voice]:
    """The voices, spread evenly over those of each engine."""
    chosen: list[Voice] = []
    voices = available()
    for english, counts in ((True, ENGLISH_VOICES), (False, FOREIGN_VOICES)):
        for engine, count in counts.items():
            own = [
                voice
                for voice in voices
                if voice.engine == engine
                and (voice.language == "en") is english
                and texts(voice.language)
            ]
            if len(own) < count:
                sys.exit(f"{engine}: {len(own)} voices, {count} are needed")
            chosen += [own[number * len(own) // count] for number in range(count)]
    return chosen


def finish(samples: Samples, rate: int, rng: np.random.Generator) -> Samples:
    """The clip at RATE between short silences, at a level of its own, whole steps of 10 ms long."""
    samples = soxr.resample(samples, rate, RATE, quality="HQ")
    loud = np.flatnonzero(np.abs(samples) > 1e-2 * np.abs(samples).max())
    samples = samples[loud[0] : loud[-1] + 1]
    before, after = rng.integers(RATE // 10, RATE // 4, 2)
    samples = np.pad(samples, (before, after + -(before + len(samples) + after) % (RATE // 100)))
    level = 10 ** (rng.uniform(*LEVEL) / 20) / np.sqrt(np.mean(samples**2))
    return np.asarray(samples * min(level, PEAK / np.abs(samples).max()), np.float32)


def main(folder: Path) -> None:
    """Write the crowd's clips, and their rows behind those of the other speakers."""
    metadata = folder / "metadata.csv"
    others = {speaker.name for speaker in SPEAKERS} | {"speaker"}
    with metadata.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row[2] in others]
    for old in folder.iterdir():
        if old.is_dir() and old.name not in others:
            shutil.rmtree(old)
    said: dict[str, int] = {}
    for voice in crowd():
        pool = texts(voice.language)
        for number in range(ENGLISH_CLIPS if voice.language == "en" else FOREIGN_CLIPS):
            rng = np.random.default_rng([SEED, zlib.crc32(voice.folder.encode()), number])
            at = said.get(voice.language, 0)
            said[voice.language] = at + 1
            text = pool[at % len(pool)]
            rate = float(np.clip(rng.normal(1.0, 0.1), 0.85, 1.2)) / voice.warp
            pitch = int(np.clip(voice.pitch + rng.normal(0, 5), 5, 95))
            [spoken] = ENGINES[voice.engine](voice, [Line(text, rate, pitch)])
            if spoken is None or not len(spoken[0]) or not np.abs(spoken[0]).max():
                sys.exit(f"{voice.folder}: nothing was said for `{text}`")
            clip = finish(spoken[0], round(spoken[1] * voice.warp), rng)
            name = f"{voice.folder}/{number + 1:03d}.ogg"
            (folder / voice.folder).mkdir(exist_ok=True)
            (folder / name).write_bytes(encode(clip, zlib.crc32(name.encode())))
            rows.append([name, text, voice.folder, voice.language, f"{len(clip) / RATE:.2f}"])
    with metadata.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    minutes = sum(float(row[4]) for row in rows[1:]) / 60
    print(f"{len(rows) - 1} clips, {minutes:.1f} minutes in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "speech")
