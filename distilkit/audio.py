"""Samples and frames, and decoding to mono 16 kHz: nothing else.

libsndfile reads what it reads exactly; PyAV (FFmpeg) reads the rest: mp3 always, because libsndfile
stops early in variable-rate files without a header, chained Ogg, because it reads the first link
only, and whatever libsndfile refuses or cannot finish. Resampling is soxr's HQ filter. Everything
streams: no recording is ever whole in memory.
"""

import os
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from distilkit.errors import DistilkitError

SAMPLE_RATE = 16_000  # Hz, what every HuBERT hears
FRAME_SAMPLES = 400  # samples that the conv front end needs for one frame (25 ms)
HOP_SAMPLES = 320  # samples from one frame to the next (20 ms)
FRAME_RATE = SAMPLE_RATE // HOP_SAMPLES  # frames per second
assert FRAME_RATE * HOP_SAMPLES == SAMPLE_RATE

BLOCK_SECONDS = 30.0  # how much is decoded at once
BLOCK_VALUES = 4_000_000  # the most samples, all channels counted, that are decoded at once
LEAST_RATE = 1000  # Hz; a header that says less is damaged, and would swell to fill the disk

Samples = npt.NDArray[np.float32]

SNDFILE_SUFFIXES = frozenset(
    [
        ".wav",
        ".wave",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".aif",
        ".aiff",
        ".aifc",
        ".au",
        ".snd",
        ".caf",
        ".w64",
        ".rf64",
        ".bwf",
        ".voc",
        ".sph",
        ".nist",
        ".pvf",
        ".xi",
        ".htk",
        ".sd2",
        ".paf",
        ".svx",
        ".iff",
    ]
)
FFMPEG_SUFFIXES = frozenset(
    [
        ".mp3",
        ".mp2",
        ".m4a",
        ".m4b",
        ".mp4",
        ".m4v",
        ".mov",
        ".aac",
        ".webm",
        ".mkv",
        ".mka",
        ".weba",
        ".avi",
        ".wma",
        ".wmv",
        ".wv",
        ".ac3",
        ".eac3",
        ".g722",
        ".amr",
        ".3gp",
        ".3g2",
        ".mpg",
        ".mpeg",
        ".ts",
        ".flv",
        ".ape",
        ".tta",
        ".dts",
        ".ogv",
        ".gsm",
        ".spx",
    ]
)
SUFFIXES = SNDFILE_SUFFIXES | FFMPEG_SUFFIXES
HEADERLESS = {".g722": "g722"}  # suffixes whose FFmpeg format has to be named
# FFmpeg's formats that hold sound themselves. It knows others, playlists among them, that name further files.
FORMATS = (
    "aac,ac3,adx,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,dtshd,eac3,flac,flv,g722,gsm,iff,ircam,loas,"
    "matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,nistsphere,ogg,oma,rm,sox,spdif,tak,tta,voc,w64,wav,wv,xwma"
)
SEEKABLE = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG"})
# What recorders write where they do not know the size: all or all but the first bits set, or nearly.
STREAMED_SIZES = (range(0x7FFF0000, 0x80000001), range(0xFFFF0000, 0x100000000))
UNKNOWN_FRAMES = 1 << 62  # libsndfile's number, or more, for a FLAC stream of unknown length
LOST_PACKETS = 2  # a tag at either end of an mp3 does not decode; more is damage
# Containers that say how long they are, and the share below which what they hold was cut off.
SIZED = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "tta", "caf"})
LEAST_SHARE = 0.9


def frames(samples: int) -> int:
    """Frames that HuBERT's conv front end makes of `samples` at 16 kHz."""
    return 0 if samples < FRAME_SAMPLES else (samples - FRAME_SAMPLES) // HOP_SAMPLES + 1


def samples(frames: int) -> int:
    """The least samples at 16 kHz that give `frames` frames."""
    return 0 if frames < 1 else (frames - 1) * HOP_SAMPLES + FRAME_SAMPLES


def clock(seconds: float) -> str:
    """Seconds for people: `42 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class AudioError(DistilkitError):
    """What is wrong with one file; the others can still be used."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What libsndfile reads in a file's header, before anything is decoded."""

    samples: int  # at the file's own rate
    rate: int  # Hz
    channels: int
    format: str  # libsndfile's name, as in `FLAC`
    exact: bool  # already mono 16 kHz, and any window of it can be read in place


@dataclass(kw_only=True)
class Sound:
    """An opened file: its header, and its sound as it streams."""

    header: Header | None  # None where FFmpeg reads the file
    blocks: Iterator[Samples] = field(default_factory=lambda: iter(()))  # mono, 16 kHz
    repaired: bool = False  # True once libsndfile has failed on the sound and FFmpeg took over


def decode(path: Path) -> Sound:
    """Open a file of any format to stream it as mono float32 blocks at 16 kHz.

    A file that libsndfile opens and cannot finish is finished by FFmpeg, and what comes out counts
    only if it is every sample that the header promises.

    Raises:
        AudioError: not a file, no permission, no bytes, unknown format, fewer bytes than the header
            promises; from the blocks: damaged, or values that are not finite numbers.
    """
    _check_readable(path)
    file = None if path.suffix.lower() in FFMPEG_SUFFIXES else _sndfile(path)
    if file is None:
        return Sound(header=None, blocks=_finite(path, _ffmpeg_blocks(path)))
    known = Header(
        samples=file.frames,
        rate=file.samplerate,
        channels=file.channels,
        format=file.format,
        exact=file.samplerate == SAMPLE_RATE
        and file.channels == 1
        and file.format in SEEKABLE
        and file.seekable()
        and _known_to_lhotse(path),
    )
    sound = Sound(header=known)
    sound.blocks = _finite(path, _sndfile_blocks(path, file, sound))
    return sound


def load(path: Path) -> Samples:
    """A whole file as mono float32 samples at 16 kHz, (S,).

    Raises:
        AudioError: as `decode`.
    """
    return np.concatenate([np.zeros(0, np.float32), *decode(path).blocks])


def _known_to_lhotse(path: Path) -> bool:
    """Whether lhotse can open the path: it cannot if its name is not text, or ends in `.sph`."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return path.suffix.lower() != ".sph"


def _check_readable(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise AudioError(f"cannot open `{path}`: {error.strerror}") from error
    if not os.access(path, os.R_OK, effective_ids=True):
        raise AudioError(f"cannot open `{path}`: Permission denied")
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(f"`{path}` is not a file")
    if status.st_size == 0:
        raise AudioError(f"`{path}` is empty (0 bytes)")


def _sndfile(path: Path) -> soundfile.SoundFile | None:
    """The file opened by libsndfile, or None where FFmpeg is the one to read it.

    Raises:
        AudioError: fewer bytes than the header promises.
    """
    try:
        file = soundfile.SoundFile(os.fsencode(path))
    except soundfile.LibsndfileError:
        return None
    log = file.extra_info
    if "(should be" in log:
        _check_whole(path, file.format, log)
    if file.format == "NIST":
        _check_sphere(path, file.frames)
    if (
        file.format == "MP3"
        or not 0 < file.frames < UNKNOWN_FRAMES
        or (file.format == "OGG" and _chained(path))
    ):
        file.close()
        return None
    return file


def _check_whole(path: Path, format: str, log: str) -> None:
    for name, promised, present in re.findall(r"(\w+(?: \w+)?)\s*: (\d+) \(should be (\d+)\)", log):
        # A wrong outer size is harmless where the sound itself is counted separately.
        inner = name in ("data", "SSND", "Data Size") or format in ("W64", "RF64")
        streamed = any(int(promised) in sizes for sizes in STREAMED_SIZES)
        if inner and not streamed and int(promised) > int(present) + 1:
            raise AudioError(f"`{path}` is truncated: {present} of {promised} bytes are there")


def _check_sphere(path: Path, present: int) -> None:
    """What a SPHERE header promises, which libsndfile does not look at: it takes what is there."""
    with path.open("rb") as file:
        header = file.read(1 << 14).partition(b"end_head")[0]
    promised = re.search(rb"\nsample_count -i (\d{1,18})\s", header)
    if promised and int(promised[1]) > present:
        raise AudioError(
            f"`{path}` is truncated: {present} of {int(promised[1])} samples are there"
        )


def _chained(path: Path) -> bool:
    """Whether the last page of an Ogg file belongs to another stream than the first."""
    with path.open("rb") as file:
        first = file.read(18)[14:]
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        tail = file.read()
    last = tail.rfind(b"OggS")
    return last >= 0 and tail[last + 14 : last + 18] not in (first, b"")


def _finite(path: Path, stream: Iterator[Samples]) -> Iterator[Samples]:
    for block in stream:
        if len(block) and not np.isfinite([block.max(), block.min()]).all():
            raise AudioError(f"`{path}` holds values that are not finite numbers (NaN or inf)")
        yield block


def _sndfile_blocks(path: Path, file: soundfile.SoundFile, sound: Sound) -> Iterator[Samples]:
    known = sound.header
    assert known is not None
    done = 0
    try:
        with file:
            for block in _resampled(path, _sndfile_frames(file)):
                done += len(block)
                yield block
        return
    except (soundfile.LibsndfileError, EOFError) as error:
        damage = str(error).removeprefix("Error : ").removesuffix(".")
    sound.repaired = True
    promised = known.samples * SAMPLE_RATE // known.rate
    found = 0
    for block in _ffmpeg_blocks(path):
        fresh = block[max(0, done - found) :]
        found += len(block)
        if len(fresh):
            yield fresh
    if abs(found - promised) > 1:
        raise AudioError(
            f"`{path}` is damaged: {found / SAMPLE_RATE:.2f} s of "
            f"{promised / SAMPLE_RATE:.2f} s decode ({damage})"
        )


def _sndfile_frames(file: soundfile.SoundFile) -> Iterator[tuple[int, Samples]]:
    """Mono blocks with their rate; EOFError where there are fewer than the header promises."""
    most = max(1, min(int(BLOCK_SECONDS * file.samplerate), BLOCK_VALUES // file.channels))
    left = file.frames
    while left > 0:
        block = file.read(min(most, left), dtype="float32", always_2d=True)
        if not len(block):
            raise EOFError("ends early")
        left -= len(block)
        yield file.samplerate, _mono(block)


def _ffmpeg_blocks(path: Path) -> Iterator[Samples]:
    import av  # 0.2 s to import, and most collections never need it

    try:
        yield from _resampled(path, _ffmpeg_frames(path))
    except av.ArgumentError as error:  # what it was found to be is not among FORMATS
        raise AudioError(f"`{path}` is in no format of sound that is read") from error
    except av.FFmpegError as error:
        raise AudioError(
            f"`{path}` cannot be decoded: {error.strerror or type(error).__name__}"
        ) from error


def _ffmpeg_frames(path: Path) -> Iterator[tuple[int, Samples]]:
    """Mono frames with their rate, collected to blocks of about a second."""
    import av

    # Without `file:` a name such as 12:30.mp3 is taken for a URL.
    with av.open(
        f"file:{path}",
        format=HEADERLESS.get(path.suffix.lower()),
        options={"protocol_whitelist": "file", "format_whitelist": FORMATS},
        metadata_errors="replace",  # titles in other encodings are no reason
    ) as container:
        if not container.streams.audio:
            raise AudioError(f"`{path}` has no audio stream")
        stream = container.streams.audio[0]
        shape, resampler, lost, packets, seconds = None, None, 0, 0, 0.0
        parts: list[Samples] = []
        for packet in container.demux(stream):
            packets += 1
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                lost += 1
                continue
            for frame in decoded:
                if (frame.sample_rate, frame.layout.name, frame.format.name) != shape:
                    if parts and shape:
                        yield shape[0], np.concatenate(parts)
                    parts = []
                    shape = (frame.sample_rate, frame.layout.name, frame.format.name)
                    resampler = av.AudioResampler(format="flt")  # PyAV knows 8 planes of a frame
                assert resampler is not None
                frame.pts = None
                seconds += frame.samples / frame.sample_rate
                parts += [
                    _mono(out.to_ndarray().reshape(out.samples, -1).astype(np.float32))
                    for out in resampler.resample(frame)
                ]
                if shape and sum(map(len, parts)) >= shape[0]:
                    yield shape[0], np.concatenate(parts)
                    parts = []
        if parts and shape:
            yield shape[0], np.concatenate(parts)
        if lost > (LOST_PACKETS if shape else 0):
            raise AudioError(f"`{path}` is damaged: {lost} of {packets} packets do not decode")
        if shape is None:
            raise AudioError(f"`{path}` holds no sound")
        if container.format.name in SIZED and stream.duration and stream.time_base:
            promised = float(stream.duration * stream.time_base)
            if seconds < LEAST_SHARE * promised:
                raise AudioError(
                    f"`{path}` is truncated: {seconds:.2f} s of {promised:.2f} s are there"
                )


def _resampled(path: Path, stream: Iterator[tuple[int, Samples]]) -> Iterator[Samples]:
    """Bring (rate, samples) pairs to 16 kHz; a new rate in mid-stream starts a new resampler."""
    rate, resampler = SAMPLE_RATE, None
    for new_rate, block in stream:
        if new_rate < LEAST_RATE:
            raise AudioError(f"`{path}` is damaged: its header says {new_rate} samples a second")
        if new_rate != rate:
            if resampler is not None:
                yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            rate = new_rate
            resampler = None
            if rate != SAMPLE_RATE:
                resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        yield block if resampler is None else resampler.resample_chunk(block)
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _mono(sound_SC: npt.NDArray[np.float32]) -> Samples:
    if sound_SC.shape[1] == 1:
        return sound_SC[:, 0]
    mixed: Samples = sound_SC.mean(axis=1, dtype=np.float32)
    return mixed


# ------------------------------------------------------------------------------------------- live

NAME = "standard input"
PIPE = "ffmpeg -i SOURCE -f s16le -ac 1 -ar 16000 - | distilkit transcribe -"
COMPRESSED = {b"OggS": "Ogg", b"fLaC": "FLAC", b"ID3": "MP3", b"\x1aE\xdf\xa3": "Matroska or WebM"}
PCM = {(1, 16): ("<i2", 2**15), (1, 32): ("<i4", 2**31), (3, 32): ("<f4", 1)}  # of WAV: type, scale
MOST_BYTES = 1 << 16  # read at once; what is there sooner is taken sooner


def live(source: BinaryIO, rate: int = SAMPLE_RATE) -> Iterator[Samples]:
    """Sound as it arrives, in blocks of mono float32 at 16 kHz: PCM in 16 bits, or a WAV file of any length.

    Args:
        source: bytes; signed little-endian mono samples where they do not begin with a WAV header.
        rate: Hz, of samples without a header.

    Raises:
        AudioError: nothing arrives, or something else than PCM.
    """
    begin = source.read(12)
    for mark, name in COMPRESSED.items():
        if begin.startswith(mark):
            raise AudioError(f"{NAME} brings {name}, not PCM", PIPE)
    channels, kind, scale = 1, *PCM[1, 16]
    if begin[:4] == b"RIFF":
        rate, channels, kind, scale = _wav_header(source)
        begin = b""
    blocks = ((rate, _mono(block_SC)) for block_SC in _pcm(source, begin, channels, kind, scale))
    yield from _finite(Path(NAME), _resampled(Path(NAME), blocks))


def _pcm(
    source: BinaryIO, begin: bytes, channels: int, kind: str, scale: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Samples (S, C) as they arrive, behind bytes that have arrived already."""
    size, rest, some = np.dtype(kind).itemsize * channels, b"", False
    more, read = (
        begin,
        getattr(source, "read1", source.read),
    )  # what is there, without waiting for more
    while more := more or read(MOST_BYTES):
        rest, more = rest + more, b""
        whole = len(rest) // size * size
        if whole:
            some = True
            block = np.frombuffer(rest[:whole], kind).reshape(-1, channels)
            yield block.astype(np.float32) / np.float32(scale)
        rest = rest[whole:]
    if not some:
        raise AudioError(f"{NAME} brings no sound", PIPE)


def _wav_header(source: BinaryIO) -> tuple[int, int, str, int]:
    """Rate, channels, type and scale of a WAV file whose samples come next."""
    found = None
    while len(head := source.read(8)) == 8:
        name, size = head[:4], int.from_bytes(head[4:], "little")
        if name == b"data" and found is not None:
            return found
        content = b"" if name == b"data" else _passed(source, size + size % 2)
        if name == b"fmt " and len(content) >= 16:
            tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
            tag = (
                struct.unpack("<H", content[24:26])[0]
                if tag == 0xFFFE and len(content) > 25
                else tag
            )
            if (tag, bits) not in PCM or not 1 <= channels <= 64 or rate < LEAST_RATE:
                raise AudioError(
                    f"{NAME} brings a WAV file of format {tag}, {bits} bits, {channels} channels, {rate} Hz",
                    PIPE,
                )
            found = (rate, channels, *PCM[tag, bits])
    raise AudioError(f"{NAME} brings a WAV file that ends in its header", PIPE)


def _passed(source: BinaryIO, size: int) -> bytes:
    """Read so many bytes, of which the first are kept."""
    first = source.read(min(size, MOST_BYTES))
    left = size - len(first)
    while left > 0 and (more := source.read(min(left, MOST_BYTES))):
        left -= len(more)
    return first
