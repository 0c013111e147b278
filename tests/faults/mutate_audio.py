"""Hostile audio: every format that is read, damaged anywhere, with headers that lie.

What is used of it counts as used only if every window of it can be read again, as long as was said and
finite; what is not used has to be listed.
"""

import io
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import soundfile
from conftest import voice
from mutate import BYTES, NUMBERS, Seed, damaged
from test_audio import FFMPEG, encode

from distilkit import audio, batches, config, data

SECONDS = 1.5
SNDFILE = {  # name: (rate, channels, libsndfile's format, encoding)
    "pcm.wav": (16000, 1, "WAV", "PCM_16"),
    "float.wav": (16000, 1, "WAV", "FLOAT"),
    "stereo.wav": (44100, 2, "WAV", "PCM_24"),
    "wavex.wav": (8000, 3, "WAVEX", "PCM_16"),
    "adpcm.wav": (16000, 1, "WAV", "IMA_ADPCM"),
    "ms.wav": (16000, 1, "WAV", "MS_ADPCM"),
    "gsm.wav": (8000, 1, "WAV", "GSM610"),
    "a.w64": (16000, 1, "W64", "PCM_16"),
    "a.rf64": (16000, 1, "RF64", "PCM_16"),
    "a.flac": (16000, 1, "FLAC", "PCM_16"),
    "stereo.flac": (48000, 2, "FLAC", "PCM_24"),
    "vorbis.ogg": (22050, 1, "OGG", "VORBIS"),
    "a.opus": (48000, 2, "OGG", "OPUS"),
    "a.aiff": (16000, 1, "AIFF", "PCM_16"),
    "float.aiff": (22050, 2, "AIFF", "FLOAT"),
    "a.au": (16000, 1, "AU", "PCM_16"),
    "g721.au": (8000, 1, "AU", "G721_32"),
    "a.caf": (16000, 1, "CAF", "PCM_16"),
    "alac.caf": (44100, 1, "CAF", "ALAC_16"),
    "a.sph": (16000, 1, "NIST", "PCM_16"),
    "a.voc": (16000, 1, "VOC", "PCM_16"),
    "a.snd": (16000, 1, "IRCAM", "PCM_16"),
    "a.mp2": (16000, 1, "MP3", "MPEG_LAYER_II"),
}
# Formats that say how long they are: of these, most of the sound cannot be missing without a word.
SECRET = 0.5  # seconds of the sound that a playlist names
SIZED = (".wav", ".w64", ".rf64", ".flac", ".aiff", ".au", ".caf", ".m4a", ".mov", ".tta", ".sph")


def seeds(folder: Path) -> list[Seed]:
    """A file of every format, and archives of some."""
    found = []

    def add(name: str) -> Path:
        place = folder / f"{len(found):02d}"
        place.mkdir()
        found.append(Seed(name=name, folder=place, facts={"seconds": SECONDS}))
        return place / name

    for name, (rate, channels, format, kind) in SNDFILE.items():
        if (format, kind) == ("MP3", "MPEG_LAYER_II"):
            continue  # FFmpeg writes it below
        wave = np.stack([voice(SECONDS, n, rate) for n in range(channels)], axis=1)
        path = add(name)
        soundfile.write(path, wave, rate, kind, format=format)
    for name, (codec, rate, options) in FFMPEG.items():
        exact = {"fflags": "+bitexact"} | options
        encode(add(name), voice(SECONDS, 1, rate), codec, rate, exact, bit_rate=48_000)
    encode(add("video.mkv"), voice(SECONDS, 1, 44100), "libopus", 48000,
           {"fflags": "+bitexact"}, video=True)  # fmt: skip
    tag = b"ID3\x04\x00\x00" + bytes((0, 0, 8, 0)) + bytes(1024)
    path = add("tagged.mp3")
    path.write_bytes(tag + (folder / "22" / "a.mp3").read_bytes())
    for name, format in (("wav.tar", tarfile.USTAR_FORMAT), ("pax.tar", tarfile.PAX_FORMAT)):
        with tarfile.open(add(name), "w", format=format) as archive:
            for inner in ("a.flac", "b/ü.wav", "c.mp3", "d.json"):
                content = io.BytesIO()
                if inner.endswith("json"):
                    content.write(b"{}")
                else:
                    kind = "MP3" if inner.endswith("mp3") else inner.rpartition(".")[2].upper()
                    soundfile.write(content, voice(0.6, len(inner)), 16000, format=kind)
                member = tarfile.TarInfo(inner)
                member.size = content.tell()
                content.seek(0)
                archive.addfile(member, content)
    return found


# -------------------------------------------------------------------------------- headers that lie


def _at(data: bytearray, mark: bytes, skip: int, code: str, values: tuple[float, ...], rng: Random) -> bytes:  # fmt: skip
    """Another value in a field, so many bytes behind a mark; where there is no mark, nothing."""
    place = data.find(mark)
    if place >= 0 and place + skip + struct.calcsize(code) <= len(data):
        struct.pack_into(code, data, place + skip, rng.choice(values))
    return data


RATES = (0, 1, 7, 999, 1000, 1001, 12345, 192_000, 655_350, 10**7, 2**31 - 1, 2**32 - 1)
SMALL = (0, 1, 2, 3, 7, 8, 16, 24, 31, 32, 33, 64, 255, 256, 1024, 1025, 65535)
REALS = (0.0, -1.0, 1e-300, 0.5, 999.0, 1e9, 1e300, float("nan"), float("inf"))
NARROW = tuple(value % 2**32 for value in NUMBERS)
FIELDS: dict[str, tuple[bytes, int, str, tuple[float, ...]]] = {
    "WAV rate": (b"fmt ", 12, "<I", RATES),
    "WAV channels": (b"fmt ", 10, "<H", SMALL),
    "WAV format": (b"fmt ", 8, "<H", (*SMALL, 0xFFFE, 0x11, 0x31, 0x55, 0x161)),
    "WAV block": (b"fmt ", 20, "<H", SMALL),
    "WAV bits": (b"fmt ", 22, "<H", SMALL),
    "WAV fmt size": (b"fmt ", 4, "<I", (*NARROW, 14, 15, 17, 18, 40)),
    "WAV data size": (b"data", 4, "<I", (*NARROW, 3, 10**6)),
    "WAV fact": (b"fact", 8, "<I", NARROW),
    "RIFF size": (b"RIFF", 4, "<I", NARROW),
    "RF64 size": (b"ds64", 16, "<Q", NUMBERS),
    "W64 rate": (b"fmt \xf3\xac", 28, "<I", RATES),
    "W64 size": (b"data\xf3\xac", 16, "<Q", NUMBERS),
    "AIFF channels": (b"COMM", 8, ">H", SMALL),
    "AIFF frames": (b"COMM", 10, ">I", NARROW),
    "AIFF bits": (b"COMM", 14, ">H", SMALL),
    "AIFF rate": (b"COMM", 16, ">H", (0, 0x3FFF, 0x400C, 0x401E, 0x7FFF, 0xC00C, 0xFFFF)),
    "AIFF size": (b"SSND", 4, ">I", NARROW),
    "AU offset": (b".snd", 4, ">I", NARROW),
    "AU size": (b".snd", 8, ">I", NARROW),
    "AU encoding": (b".snd", 12, ">I", (0, 1, 2, 3, 6, 7, 23, 27, 99)),
    "AU rate": (b".snd", 16, ">I", RATES),
    "AU channels": (b".snd", 20, ">I", (*SMALL, 2**32 - 1)),
    "CAF rate": (b"desc", 12, ">d", REALS),
    "CAF bytes per packet": (b"desc", 28, ">I", NARROW),
    "CAF frames per packet": (b"desc", 32, ">I", NARROW),
    "CAF channels": (b"desc", 36, ">I", (*SMALL, 2**32 - 1)),
    "CAF size": (b"data", 4, ">Q", NUMBERS),
    "FLAC blocks": (b"fLaC", 8, ">I", (0, 0x00010001, 0x00100010, 0xFFFFFFFF)),
    "FLAC rate and channels": (b"fLaC", 18, ">Q", (0, 0x0FFFFF << 44, 0x0001 << 44, 2**64 - 1)),
    "FLAC length": (b"fLaC", 22, ">I", NARROW),
    "Vorbis rate": (b"\x01vorbis", 12, "<I", RATES),
    "Vorbis channels": (b"\x01vorbis", 11, "<B", (0, 1, 2, 8, 255)),
    "Opus channels": (b"OpusHead", 9, "<B", (0, 1, 2, 3, 8, 255)),
    "Opus skip": (b"OpusHead", 10, "<H", SMALL),
    "Opus gain": (b"OpusHead", 16, "<H", SMALL),
    "Opus mapping": (b"OpusHead", 18, "<B", (1, 2, 3, 255)),
    "Ogg place": (b"OggS\x00\x04", 6, "<Q", NUMBERS),
    "MP4 timescale": (b"mdhd", 16, ">I", RATES),
    "MP4 duration": (b"mdhd", 20, ">I", NARROW),
    "MP4 rate": (b"mp4a", 28, ">I", tuple(rate << 16 & 0xFFFFFFFF for rate in RATES)),
    "MP4 channels": (b"mp4a", 20, ">H", SMALL),
    "MP4 samples": (b"stts", 12, ">I", NARROW),
    "MP4 sizes": (b"stsz", 12, ">I", NARROW),
    "MP4 sizes' count": (b"stsz", 16, ">I", NARROW),
    "MP4 chunks": (b"stco", 8, ">I", NARROW),
    "MP4 box": (b"moov", -4, ">I", NARROW),
    "Matroska rate": (b"\xb5\x88", 2, ">d", REALS),
    "Matroska channels": (b"\x9f\x81", 2, ">B", (0, 1, 2, 255)),
    "MP3 length": (b"Xing", 8, ">I", NARROW),
    "MP3 frames": (b"Info", 8, ">I", NARROW),
    "NIST rate": (b"sample_rate -i ", 15, "5s", tuple(f"{n:<5d}"[:5].encode() for n in RATES)),  # type: ignore[dict-item]
    "NIST count": (b"sample_count -i ", 16, "5s", (b"00000", b"99999", b"-9999")),  # type: ignore[dict-item]
    "tar size": (b"ustar", -133, "12s", (b"77777777777\0", b"00000000001\0", b"-0000000001\0", b"\x80" + b"\xff" * 11)),  # type: ignore[dict-item]
    "tar kind": (b"ustar", -101, "1s", (b"1", b"2", b"5", b"6", b"x", b"g", b"L", b"S", b"V")),  # type: ignore[dict-item]
    "tar name": (b"ustar", -257, "20s", (b"../../outside/a.wav", b"/etc/passwd.wav", b"\xff\xfe.wav", b"a\0b.wav")),  # type: ignore[dict-item]
}  # fmt: skip


def _field(data: bytearray, rng: Random) -> bytes:
    """One to three fields of the header that this file has."""
    there = [name for name, (mark, *_) in FIELDS.items() if mark in data]
    for name in rng.sample(there, min(len(there), rng.choice((1, 1, 2, 3)))):
        mark, skip, code, values = FIELDS[name]
        data = bytearray(_at(data, mark, skip, code, values, rng))
    return summed(data)


def summed(data: bytearray) -> bytearray:
    """Checksums of Ogg pages and tar headers made right again, so that the lie is believed."""
    at = data.find(b"OggS")
    while at >= 0 and at + 27 <= len(data):
        count = data[at + 26]
        end = at + 27 + count + sum(data[at + 27 : at + 27 + count])
        if end > len(data):
            break
        data[at + 22 : at + 26] = bytes(4)
        struct.pack_into("<I", data, at + 22, _ogg_sum(data[at:end]))
        at = data.find(b"OggS", end)
    for at in range(0, len(data) - 511, 512):
        if data[at + 257 : at + 262] == b"ustar":
            block = bytes(data[at : at + 148]) + b" " * 8 + bytes(data[at + 156 : at + 512])
            data[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return data


def _ogg_table() -> list[int]:
    table = []
    for number in range(256):
        value = number << 24
        for _ in range(8):
            value = (value << 1) ^ 0x04C11DB7 if value & 0x80000000 else value << 1
        table.append(value & 0xFFFFFFFF)
    return table


OGG_TABLE = _ogg_table()


def _ogg_sum(page: bytes) -> int:
    value = 0
    for byte in page:
        value = (value << 8 & 0xFFFFFFFF) ^ OGG_TABLE[value >> 24 ^ byte]
    return value


def _syncsafe(number: int) -> bytes:
    return bytes(number >> 7 * place & 0x7F for place in (3, 2, 1, 0))


def _tags(data: bytearray, rng: Random) -> bytes:
    """ID3 tags: deep, many, enormous, compressed to a bomb, or longer than they are."""
    how = rng.randrange(7)
    if how == 0:  # tags within tags
        for _ in range(200):
            data = bytearray(b"ID3\x04\0\0" + _syncsafe(len(data) % 2**28) + data)
        return data
    if how == 1:  # tags one behind the other
        return b"ID3\x03\0\0\0\0\0\0" * 50_000 + data
    frame = b"TXXX" + _syncsafe(3) + b"\0\0\x03a\0"
    frames = {
        2: frame * 50_000,
        3: b"APIC" + _syncsafe(2**28 - 1) + b"\0\0" + bytes(1000),
        4: b"TXXX" + _syncsafe(2**21) + b"\0\x09" + b"\x7f\xff\xff\xff" + zlib.compress(bytes(1 << 24), 9),
        5: b"CHAP" + _syncsafe(2**20) + b"\0\0" + (b"CHAP" + _syncsafe(2**20) + b"\0\0a\0") * 5_000,
        6: b"",
    }[how]  # fmt: skip
    size = rng.choice((len(frames), 0, 2**28 - 1, len(frames) // 2))
    version, flags = rng.choice(b"\x02\x03\x04\x09"), rng.choice((0, 0x80, 0x40, 0xFF))
    return b"ID3" + bytes((version, 0, flags)) + _syncsafe(min(size, 2**28 - 1)) + frames + data


def _boxes(data: bytearray, rng: Random) -> bytes:
    """Boxes within boxes without end, of MP4, Matroska, RIFF and AIFF."""
    size, kind = 100_000, rng.randrange(4)
    if kind == 0:
        deep = b"".join(
            struct.pack(">I", size * 8 - 8 * n) + rng.choice((b"moov", b"trak"))
            for n in range(size)
        )
        return b"\0\0\0\x14ftypM4A \0\0\0\0M4A " + deep + data
    if kind == 1:
        return b"\x1aE\xdf\xa3\x80" + b"\x18S\x80g\x01\xff\xff\xff\xff\xff\xff\xff" * size + data
    if kind == 2:
        return b"RIFF\xff\xff\xff\xffWAVE" + b"LIST\x04\0\0\0INFO" * size + data
    return b"FORM\x7f\xff\xff\xffAIFF" + b"ANNO\0\0\0\0" * size + data


def _playlist(data: bytearray, rng: Random) -> bytes:
    """No sound, but names of other files: nothing of them may be heard."""
    name = rng.choice(("../outside/secret.wav", "secret.bin", "./secret.bin"))
    return rng.choice(
        (
            f"ffconcat version 1.0\nfile {name}\n",
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{name}\n#EXT-X-ENDLIST\n",
            f"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\na={name}\n",
            f"[playlist]\nFile1={name}\nNumberOfEntries=1\n",
            f'<?xml version="1.0"?><MPD><Period><BaseURL>{name}</BaseURL></Period></MPD>',
            ";FFMETADATA1\ntitle=a\n",
        )
    ).encode()


WAYS: dict[str, Callable[[bytearray, Random], bytes]] = {
    **BYTES,
    "a header that lies": _field,
    "another header that lies": _field,
    "one more header that lies": _field,
    "tags": _tags,
    "boxes within boxes": _boxes,
    "a playlist": _playlist,
}


def mutate(seed: Seed, folder: Path, rng: Random) -> str:
    """A damaged copy of a seed's file, sometimes under another format's name."""
    (path,) = seed.folder.iterdir()
    content, told = damaged(path.read_bytes(), rng, WAYS)
    name = path.name
    if rng.random() < 0.1:
        name = f"{path.stem}{rng.choice(sorted(audio.SUFFIXES))}"
        told += f"; named {name}"
    (folder / name).write_bytes(content)
    if "a playlist" in told:
        soundfile.write(folder / "secret.bin", voice(SECRET, 3), 16000, format="WAV")
        shutil.copyfile(folder / "secret.bin", folder.parent / "outside" / "secret.wav")
    return told


def enclosed(seed: Seed, told: str) -> bool:
    """Whether nothing outside may be opened: whatever sound says."""
    return True


def use(seed: Seed, folder: Path, told: str) -> tuple[str, str]:
    """Scan a folder, and read every window of what is said to be usable."""
    cache = folder.parent / "cache"
    clips, skipped = data.survey([folder], config.Data(), cache=cache)
    found = {item.id for item in data.find([folder], unpack=True)}
    whole = [item for item in skipped if item.kind != "silent part"]
    assert len(clips) + len(whole) == len(found), "a file is neither used nor listed"
    assert all(item.reason for item in whole)
    for clip in clips:
        assert clip.source.is_relative_to(folder), f"{clip.source} is outside"
        for cut in data.cuts(clip):
            batch = batches.load([cut])
            assert batch.lengths == (cut.num_samples,), "a window is shorter than was said"
            assert bool(batch.wave_BS.isfinite().all()), "values that are not finite"
        kept = clip.samples / audio.SAMPLE_RATE
        packed = seed.name.endswith(".tar")  # what of it is lost is listed by its name
        if told == "cut short" and clip.source.suffix in SIZED and not packed:
            assert kept > 0.9 * seed.facts["seconds"], (
                f"only {kept:.2f} s are left, and nobody says so"
            )
        if told.startswith("a playlist") and not packed:  # which some codecs take for sound
            assert abs(kept - SECRET) > 0.01, "the sound of another file"
    if clips:
        return "used", f"{len(clips)} of {len(found)}"
    return "refused", f"listed: {whole[0].reason}"
