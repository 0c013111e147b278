"""Decoding: every format, whole or refused with its reason."""

import io
import os
import random
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr
from conftest import unprivileged, voice

from distilkit import audio
from distilkit.audio import AudioError, decode, frames, load, samples

NOISE = random.Random(0).randbytes(50_000)
RATES = (8000, 16000, 22050, 44100, 48000)
LOSSLESS = {  # suffix: (libsndfile's format, its encodings)
    "wav": ("WAV", ["PCM_16", "PCM_24", "PCM_32", "PCM_U8", "FLOAT", "DOUBLE", "ULAW", "ALAW"]),
    "rf64": ("RF64", ["PCM_16", "FLOAT"]),
    "w64": ("W64", ["PCM_16", "PCM_24"]),
    "aiff": ("AIFF", ["PCM_16", "PCM_24", "FLOAT"]),
    "au": ("AU", ["PCM_16", "ULAW", "FLOAT"]),
    "caf": ("CAF", ["PCM_16", "ALAC_16"]),
    "flac": ("FLAC", ["PCM_16", "PCM_24", "PCM_S8"]),
    "voc": ("VOC", ["PCM_16"]),
    "sph": ("NIST", ["PCM_16"]),
    "snd": ("IRCAM", ["PCM_16"]),
    "bwf": ("WAVEX", ["PCM_16"]),
}
FEW_CHANNELS = ("flac", "voc", "snd")
LOSSY = {  # how many samples of codec padding are in order
    "adpcm.wav": ("WAV", "IMA_ADPCM", 4096),
    "ms.wav": ("WAV", "MS_ADPCM", 4096),
    "gsm.wav": ("WAV", "GSM610", 700),
    "g721.au": ("AU", "G721_32", 700),
    "vorbis.ogg": ("OGG", "VORBIS", 1),
    "opus.opus": ("OGG", "OPUS", 1),
}
FFMPEG = {  # name: (codec, rate, container options)
    "a.mp3": ("libmp3lame", 44100, {}),
    "a.MP3": ("libmp3lame", 16000, {}),
    "a.m4a": ("aac", 44100, {}),
    "a.aac": ("aac", 48000, {}),
    "a.mp4": ("aac", 16000, {"movflags": "frag_keyframe+empty_moov"}),
    "a.webm": ("libopus", 48000, {}),
    "a.mkv": ("flac", 44100, {}),
    "a.mov": ("pcm_s16le", 16000, {}),
    "a.mp2": ("mp2", 48000, {}),
    "a.avi": ("libmp3lame", 44100, {}),
    "a.wv": ("wavpack", 44100, {}),
    "a.tta": ("tta", 16000, {}),
    "a.ac3": ("ac3", 48000, {}),
    "alac.m4a": ("alac", 44100, {}),
    "a.g722": ("g722", 16000, {}),
}


def tone(seconds: float, rate: int = 16000, channels: int = 1) -> np.ndarray:
    """A chirp from 200 to 1000 Hz (no two places alike), (S, C) float32."""
    time = np.arange(int(seconds * rate)) / rate
    wave = 0.4 * np.sin(2 * np.pi * (200 + 400 * time / seconds) * time)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def alike(heard: np.ndarray, seconds: float, lag: int = 0) -> float:
    """Correlation with the tone as it is at 16 kHz, at the best lag up to `lag`."""
    true = tone(seconds)[:, 0]
    size = min(len(heard), len(true)) - 2 * lag
    heard = heard[lag : lag + size]
    return max(
        float(np.corrcoef(heard, true[lag + d : lag + d + size])[0, 1])
        for d in range(-lag, lag + 1)
    )


def encode(
    path: Path,
    wave: np.ndarray,
    codec: str,
    rate: int,
    container: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    bit_rate: int | None = None,
    video: bool = False,
) -> Path:
    """Write mono sound with one of FFmpeg's encoders."""
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono", options=options or {})
        if bit_rate:
            stream.bit_rate = bit_rate
        if video:
            picture = out.add_stream("mpeg4", rate=10, width=32, height=32, pix_fmt="yuv420p")
            for _ in range(30):
                still = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
                out.mux(picture.encode(still))
            out.mux(picture.encode())
        if not stream.codec_context.is_open:
            stream.codec_context.open()
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate)
        fifo = av.AudioFifo()
        frame = av.AudioFrame.from_ndarray(wave.reshape(1, -1), format="fltp", layout="mono")
        frame.sample_rate = rate
        for part in resampler.resample(frame):
            part.pts = None
            fifo.write(part)
        while part := fifo.read(size, partial=True):
            out.mux(stream.encode(part))
        out.mux(stream.encode())
    return path


def write(path: Path, wave: np.ndarray, rate: int = 16000, *how: str) -> Path:
    soundfile.write(path, wave, rate, *how)
    return path


# ------------------------------------------------------------------------------------- frames


def test_frames_are_what_transformers_counts() -> None:
    from transformers import HubertConfig, HubertModel

    class Counter:
        config = HubertConfig()

    count = HubertModel._get_feat_extract_output_lengths
    assert [frames(size) for size in range(1, 5001)] == [
        max(0, int(count(Counter, size))) for size in range(1, 5001)
    ]


def test_samples_is_the_least_that_gives_so_many_frames() -> None:
    assert (samples(0), samples(-1)) == (0, 0)
    for count in range(1, 500):
        assert frames(samples(count)) == count
        assert frames(samples(count) - 1) == count - 1


# ---------------------------------------------------------------------------------- libsndfile


@pytest.mark.parametrize(
    ("suffix", "encoding"),
    [(suffix, encoding) for suffix, (_, all) in LOSSLESS.items() for encoding in all],
)
def test_lossless_formats_at_any_rate_and_channels(
    tmp_path: Path, suffix: str, encoding: str
) -> None:
    kind = LOSSLESS[suffix][0]
    many = 2 if suffix in FEW_CHANNELS or encoding.startswith("ALAC") else 24
    for rate, channels in zip(RATES, (2, 1, many, 2, 1), strict=True):
        path = tmp_path / f"{rate}.{suffix}"
        write(path, tone(0.6, rate, channels), rate, encoding, None, kind)
        sound = decode(path)
        assert sound.header is not None
        heard = np.concatenate(list(sound.blocks))
        assert heard.dtype == np.float32
        assert heard.ndim == 1
        assert abs(len(heard) - 9600) <= 1, (kind, encoding, rate)
        assert alike(heard, 0.6) > 0.99, (kind, encoding, rate)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", LOSSY)
def test_lossy_formats_of_libsndfile(tmp_path: Path, name: str, rate: int) -> None:
    kind, encoding, padding = LOSSY[name]
    if encoding == "OPUS" and rate in (22050, 44100):
        pytest.skip("Opus has no such rate")
    path = write(tmp_path / name, tone(0.6, rate), rate, encoding, None, kind)
    heard = load(path)
    assert -1 <= len(heard) - 9600 <= padding * 16000 / rate + 1
    assert alike(heard, 0.6) > 0.97


def test_all_channels_are_mixed_alike(tmp_path: Path) -> None:
    wave = np.zeros((1600, 24), np.float32)
    wave[:, 23] = 0.48
    heard = load(write(tmp_path / "a.wav", wave, 16000, "FLOAT"))
    np.testing.assert_allclose(heard, 0.02, atol=1e-6)


def test_sound_above_the_new_nyquist_rate_is_gone(tmp_path: Path) -> None:
    time = np.arange(48000) / 48000
    path = write(tmp_path / "a.wav", np.sin(2 * np.pi * 10000 * time), 48000, "FLOAT")
    assert float(np.abs(load(path)[1000:-1000]).max()) < 1e-4


def test_only_what_can_be_read_in_place_is_called_exact(tmp_path: Path) -> None:
    wave = tone(0.5)
    cases = {
        "mono.wav": (wave, 16000, "PCM_16", True),
        "mono.flac": (wave, 16000, "PCM_16", True),
        "two.wav": (tone(0.5, channels=2), 16000, "PCM_16", False),
        "fast.wav": (tone(0.5, 44100), 44100, "PCM_16", False),
        "gsm.wav": (wave, 16000, "GSM610", False),  # cannot be sought in
        os.fsdecode(b"\xff.wav"): (wave, 16000, "PCM_16", False),  # lhotse cannot open it
    }
    for name, (sound, rate, encoding, exact) in cases.items():
        path = tmp_path / name
        with path.open("wb") as file:
            soundfile.write(file, sound, rate, encoding, format="FLAC" if "flac" in name else "WAV")
        header = decode(path).header
        assert header is not None
        assert header.exact is exact, name


def test_a_wave_file_named_sph_is_not_exact(tmp_path: Path) -> None:
    path = write(tmp_path / "a.sph", tone(0.5), 16000, "PCM_16", None, "WAV")
    header = decode(path).header  # lhotse would start sph2pipe
    assert header is not None
    assert not header.exact


def test_many_channels_are_read_in_small_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "BLOCK_VALUES", 24 * 100)
    path = write(tmp_path / "a.wav", tone(0.1, channels=24), 16000)
    assert [len(block) for block in decode(path).blocks] == [100] * 16


# -------------------------------------------------------------------------------------- FFmpeg


@pytest.mark.parametrize("name", FFMPEG)
def test_formats_of_ffmpeg(tmp_path: Path, name: str) -> None:
    codec, rate, options = FFMPEG[name]
    path = encode(tmp_path / name, tone(2, rate)[:, 0], codec, rate, options)
    sound = decode(path)
    assert sound.header is None
    heard = np.concatenate(list(sound.blocks))
    assert -100 <= len(heard) - 32000 <= 2500
    shift = 1200 if codec in ("aac", "libmp3lame", "mp2", "ac3", "g722", "libopus") else 1
    assert alike(heard, 2, shift) > (0.98 if shift > 1 else 0.99)


def test_titles_in_another_encoding(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", tone(2, 16000)[:, 0], "flac", 16000)
    data = path.read_bytes()
    assert b"ENCODER" in data
    path.write_bytes(data.replace(b"ENCODER", b"ENC\xd6DER"))
    assert abs(len(load(path)) - 32000) < 2500


def test_the_sound_of_a_video(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", tone(3)[:, 0], "aac", 16000, video=True)
    assert abs(len(load(path)) - 48000) < 2500


def test_a_video_without_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        picture = out.add_stream("mpeg4", rate=10, width=32, height=32, pix_fmt="yuv420p")
        out.mux(picture.encode(av.VideoFrame(32, 32, "yuv420p")))
        out.mux(picture.encode())
    with pytest.raises(AudioError, match="has no audio stream"):
        load(path)


def test_a_variable_rate_mp3_without_a_header_is_read_whole(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal(16000 * 50).astype(np.float32) * 0.2
    parts = []
    for index, (wave, bit_rate) in enumerate([(tone(10)[:, 0], 160_000), (noise, 24_000)]):
        part = tmp_path / f"part{index}.mp3"
        encode(part, wave, "libmp3lame", 16000, {"write_xing": "0", "id3v2_version": "0"},
               {"reservoir": "0"}, bit_rate)  # fmt: skip
        parts.append(part.read_bytes())
    path = tmp_path / "vbr.mp3"
    path.write_bytes(b"".join(parts))
    assert b"Xing" not in path.read_bytes()
    assert b"Info" not in path.read_bytes()
    with soundfile.SoundFile(path) as file:
        assert len(file.read()) < 40 * 16000  # why libsndfile is not asked
    assert abs(len(load(path)) - 60 * 16000) < 5000
    disguised = path.rename(tmp_path / "vbr.wav")
    assert abs(len(load(disguised)) - 60 * 16000) < 5000


def test_a_name_that_looks_like_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("12:30.mp3", "http:a.mp3", "12:30.wav"):
        write(Path(name), tone(1), 16000)
        assert abs(len(load(Path(name))) - 16000) < 2500


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    for suffix, kind in ((".wav", "WAV"), (".mp3", "MP3")):
        path = tmp_path / f"{os.fsdecode(bytes([0xE9, 0xFF]))}{suffix}"
        with path.open("wb") as file:
            soundfile.write(file, tone(1), 16000, format=kind)
        assert len(load(path)) >= 16000


def test_the_rate_may_change_on_the_way(tmp_path: Path) -> None:
    parts = [
        encode(tmp_path / f"{rate}.mp3", tone(2, rate)[:, 0], "libmp3lame", rate,
               {"write_xing": "0", "id3v2_version": "0"}).read_bytes()
        for rate in (16000, 24000)
    ]  # fmt: skip
    path = tmp_path / "a.mp3"
    path.write_bytes(b"".join(parts))
    assert abs(len(load(path)) - 64000) < 6000


def test_chained_ogg_is_read_to_its_end(tmp_path: Path) -> None:
    parts = [
        write(tmp_path / f"{rate}.ogg", tone(1, rate), rate, "OPUS", None, "OGG").read_bytes()
        for rate in (16000, 48000)
    ]
    path = tmp_path / "a.ogg"
    path.write_bytes(b"".join(parts))
    assert soundfile.info(path).duration == pytest.approx(1.0)  # why libsndfile is not asked
    assert abs(len(load(path)) - 32000) < 700


@pytest.mark.parametrize(
    "content",
    ["#EXTM3U\n#EXTINF:1,\n{}/b.mp3\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile b.mp3\n"],
)
def test_a_playlist_opens_nothing_else(tmp_path: Path, content: str) -> None:
    write(tmp_path / "b.mp3", tone(1))
    (tmp_path / "a.mp3").write_text(content.format(tmp_path))
    with pytest.raises(AudioError):
        load(tmp_path / "a.mp3")


def test_the_formats_that_ffmpeg_may_read_are_known_to_it() -> None:
    known = {name for names in av.formats_available for name in names.split(",")}
    assert set(audio.FORMATS.split(",")) <= known
    assert not set(audio.FORMATS.split(",")) & {
        "hls",
        "concat",
        "dash",
        "sdp",
        "rtsp",
        "lavfi",
        "image2",
    }


def test_more_channels_than_a_frame_has_planes(tmp_path: Path) -> None:
    """PyAV hands out the memory of eight; a ninth ended the process."""
    wave = np.stack([tone(1)[:, 0] * (n + 1) / 16 for n in range(16)], axis=1)
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        stream = out.add_stream("pcm_f32le", rate=16000, layout="16 channels")
        frame = av.AudioFrame.from_ndarray(wave.reshape(1, -1), format="flt", layout="16 channels")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    np.testing.assert_allclose(load(tmp_path / "a.mkv"), wave.mean(1), atol=1e-6)


# ------------------------------------------------------------------------------ damaged, odd


def flac_of_noise(path: Path) -> Path:
    noise = np.random.default_rng(0).standard_normal(48000) * 0.1
    return write(path, noise.astype(np.float32), 16000, "PCM_16")


def test_what_libsndfile_cannot_finish_is_finished_by_ffmpeg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = flac_of_noise(tmp_path / "a.flac")
    true = load(path)
    data = bytearray(path.read_bytes())
    # One frame of the middle is spoilt: libsndfile gives up there, FFmpeg conceals it.
    place = len(data) // 2
    data[place : place + 40] = b"\x55" * 40
    path.write_bytes(data)
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.read(path)
    monkeypatch.setattr(audio, "BLOCK_SECONDS", 0.5)  # some blocks come before the damage
    sound = decode(path)
    heard = np.concatenate(list(sound.blocks))
    assert sound.repaired
    assert len(heard) == len(true)
    np.testing.assert_array_equal(heard[:16000], true[:16000])
    np.testing.assert_array_equal(heard[-16000:], true[-16000:])


def test_two_damaged_recordings_as_they_were_found() -> None:
    if not os.environ.get("DISTILKIT_SHARED"):
        pytest.skip("DISTILKIT_SHARED is not set")
    folder = Path(os.environ["DISTILKIT_SHARED"]) / "speech/odd_formats"
    for name, seconds in (("alexa_126_damaged.flac", 1.94), ("alexa_34_damaged.flac", 1.74)):
        assert len(load(folder / name)) / 16000 == pytest.approx(seconds, abs=0.005)


@pytest.mark.parametrize("share", [0.5, 0.97])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.flac", r"damaged: \d\.\d\d s of 3\.00 s decode \(flac decoder lost sync\)"),
        ("a.wav", r"truncated: \d+ of 96000 bytes are there"),
        ("a.aiff", r"truncated: \d+ of 96008 bytes"),
        ("a.w64", r"truncated: \d+ of \d+ bytes"),
        ("a.rf64", r"truncated: \d+ of \d+ bytes"),
        ("a.au", r"truncated: \d+ of 96000 bytes"),
    ],
)
def test_truncated_files_are_refused(tmp_path: Path, name: str, reason: str, share: float) -> None:
    path = flac_of_noise(tmp_path / name)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(AudioError, match=reason):
        load(path)


@pytest.mark.parametrize("kept", [1, 1024, 50_001, 97_022])
def test_a_truncated_sphere_file_is_refused(tmp_path: Path, kept: int) -> None:
    """libsndfile takes it to be as long as its bytes are, whatever the header says."""
    path = flac_of_noise(tmp_path / "a.nist").rename(tmp_path / "a.sph")
    whole = path.read_bytes()
    assert (len(load(path)), len(whole)) == (48000, 97_024)
    path.write_bytes(whole[:kept])
    with pytest.raises(AudioError, match="truncated" if kept > 1024 else "a.sph"):
        load(path)


def test_a_truncated_mp4_is_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.m4a", tone(5)[:, 0], "aac", 16000, {"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(AudioError, match=r"truncated: \d\.\d\d s of 5\.06 s are there"):
        load(path)


def test_a_truncated_alac_in_caf_is_refused(tmp_path: Path) -> None:
    """libsndfile refuses it; FFmpeg, which is asked then, would give the beginning."""
    path = tmp_path / "a.caf"
    soundfile.write(path, voice(1.5, 1), 16_000, "ALAC_16", format="CAF")
    assert len(load(path)) == 24_000
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    with pytest.raises(AudioError, match=r"truncated: \d\.\d\d s of 1\.50 s are there"):
        load(path)


def test_packets_that_do_not_decode_are_counted(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.m4a", tone(5)[:, 0], "aac", 16000)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 2] = b"\xff" * (len(data) // 2 - len(data) // 3)
    path.write_bytes(data)
    with pytest.raises(AudioError, match=r"is damaged: \d+ of 8\d packets do not decode"):
        load(path)


def test_headerless_sound_is_not_guessed_at(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(1))
    path = path.rename(tmp_path / "a.G722")
    assert len(load(path)) == 2 * path.stat().st_size


def test_bytes_behind_the_sound_are_harmless(tmp_path: Path) -> None:
    for name in ("a.wav", "a.flac", "a.aiff", "a.au"):
        path = flac_of_noise(tmp_path / name)
        path.write_bytes(path.read_bytes() + bytes(1000))
        assert len(load(path)) == 48000, name


@pytest.mark.parametrize(
    "size", [0, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFF000, 0x80000000, 0xFFFFFFF0], ids=hex
)
def test_streamed_wave_files_are_read_whole(tmp_path: Path, size: int) -> None:
    path = write(tmp_path / "a.wav", tone(1), 16000)
    data = path.read_bytes()
    place = data.index(b"data") + 4
    said = size.to_bytes(4, "little")
    path.write_bytes(data[:4] + said + data[8:place] + said + data[place + 4 :])
    np.testing.assert_array_equal(load(path), soundfile.read(write(path, tone(1)), dtype="f4")[0])


def test_a_streamed_au_file_is_read_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.au", tone(1))
    data = path.read_bytes()
    path.write_bytes(data[:8] + b"\xff\xff\xff\xff" + data[12:])
    assert len(load(path)) == 16000


def test_a_flac_stream_of_unknown_length_is_read_whole(tmp_path: Path) -> None:
    path = flac_of_noise(tmp_path / "a.flac")
    true = load(path)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path.write_bytes(data)
    np.testing.assert_array_equal(load(path), true)


def test_a_flac_header_that_promises_days(tmp_path: Path) -> None:
    path = flac_of_noise(tmp_path / "a.flac")
    data = bytearray(path.read_bytes())
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    path.write_bytes(data)
    with pytest.raises(AudioError, match=r"damaged: 3.00 s of 4294967.30 s decode"):
        load(path)


def test_a_rate_that_no_recording_has(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(1), 7)
    with pytest.raises(AudioError, match="is damaged: its header says 7 samples a second"):
        load(path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.wav", b"", r"`.*a\.wav` is empty \(0 bytes\)"),
        ("a.mp3", b"", r"is empty \(0 bytes\)"),
        ("a.wav", b"my shopping list\n" * 50, "cannot be decoded: Invalid data found"),
        ("a.flac", NOISE, "cannot be decoded|is damaged|holds no sound"),
        ("a.mp3", NOISE, "cannot be decoded|is damaged|holds no sound"),
    ],
)
def test_what_is_not_audio(
    tmp_path: Path, name: str, content: bytes, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AudioError, match=reason):
        load(tmp_path / name)
    assert capfd.readouterr() == ("", "")


def test_a_header_without_sound(tmp_path: Path) -> None:
    for name in ("a.wav", "a.aiff"):
        path = write(tmp_path / name, np.zeros(0, np.float32))
        with pytest.raises(AudioError, match="holds no sound|cannot be decoded"):
            load(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_numbers(tmp_path: Path, value: float) -> None:
    wave = tone(1)
    wave[8000] = value
    with pytest.raises(AudioError, match="values that are not finite numbers"):
        load(write(tmp_path / "a.wav", wave, 16000, "FLOAT"))


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")  # opening it would wait for ever
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round.wav").symlink_to(tmp_path / "round.wav")
    for name, reason in (
        ("pipe.wav", "is not a file"),
        ("folder.wav", "is not a file"),
        ("gone.wav", "cannot open .*: No such file or directory"),
        ("round.wav", "cannot open .*: Too many levels of symbolic links"),
    ):
        with pytest.raises(AudioError, match=reason):
            load(tmp_path / name)


@pytest.mark.parametrize("name", ["a.wav", "a.mp3"])
def test_no_permission(public: Path, name: str) -> None:
    path = write(public / name, tone(1))
    path.chmod(0)
    with unprivileged(), pytest.raises(AudioError, match="cannot open .*: Permission denied"):
        load(path)


# ------------------------------------------------------------------------------------------- live


class Pipe(io.RawIOBase):
    """A pipe that brings so many bytes at a time."""

    def __init__(self, content: bytes, size: int) -> None:
        self.content, self.size = content, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        part = self.content[: min(self.size, len(buffer))]
        self.content = self.content[len(part) :]
        buffer[: len(part)] = part
        return len(part)


def piped(content: bytes, size: int = 4096, rate: int = 16_000) -> np.ndarray:
    return np.concatenate(list(audio.live(io.BufferedReader(Pipe(content, size)), rate)))


@pytest.mark.parametrize("size", [1, 7, 4096, 10**6])
def test_live_pcm_in_pieces_of_any_size(size: int) -> None:
    sound = (voice(1.3, 1) * 32_000).astype("<i2")
    np.testing.assert_array_equal(piped(sound.tobytes(), size), sound / np.float32(32_768))


@pytest.mark.parametrize("kind", ["PCM_16", "PCM_32", "FLOAT"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_live_wav_file_is_what_the_file_is(
    kind: str, rate: int, channels: int, tmp_path: Path
) -> None:
    sound = np.stack([voice(1.3, n) for n in range(channels)], axis=1)
    soundfile.write(tmp_path / "a.wav", sound, rate, kind)
    found = piped((tmp_path / "a.wav").read_bytes(), 999)
    np.testing.assert_allclose(found, audio.load(tmp_path / "a.wav"), atol=1e-6)


def test_a_live_wav_file_that_does_not_know_its_length(tmp_path: Path) -> None:
    """As recorders write it into a pipe; chunks before the samples are passed over."""
    soundfile.write(tmp_path / "a.wav", voice(1.3, 1), 16_000, "PCM_16")
    content = bytearray((tmp_path / "a.wav").read_bytes())
    start = content.index(b"data")
    content[4:8] = content[start + 4 : start + 8] = b"\xff\xff\xff\xff"
    content[start:start] = b"LIST\x05\x00\x00\x00abcde\x00"
    # A chunk longer than is read at once, with what looks like a chunk in it.
    content[start:start] = b"LIST" + struct.pack("<I", 200_000) + b"data\x08\0\0\0" * 25_000
    np.testing.assert_array_equal(piped(bytes(content)), audio.load(tmp_path / "a.wav"))


def test_live_values_that_are_not_numbers(tmp_path: Path) -> None:
    wave = voice(1.0, 1)
    wave[8000] = np.nan
    soundfile.write(tmp_path / "a.wav", wave, 16_000, "FLOAT")
    with pytest.raises(AudioError, match="standard input` holds values that are not finite"):
        piped((tmp_path / "a.wav").read_bytes())


def test_live_samples_of_another_rate() -> None:
    sound = voice(1.3, 1)
    found = piped(
        (soxr.resample(sound, 16_000, 8_000) * 32_000).astype("<i2").tobytes(), rate=8_000
    )
    assert abs(len(found) - len(sound)) < 20


def test_a_live_block_is_not_waited_for() -> None:
    """What has arrived is given on before the source goes on."""
    taken: list[int] = []

    class Slow(Pipe):
        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            taken.append(len(self.content))
            return super().readinto(buffer)

    sound = bytes(32_000 * 4)
    blocks = audio.live(io.BufferedReader(Slow(sound, 3_200)))
    first = next(blocks)
    assert len(first) <= 1_600
    assert taken[-1] >= len(sound) - 2 * 3_200


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "brings no sound"),
        (b"\x00", "brings no sound"),
        (b"OggS" + bytes(100), "brings Ogg, not PCM"),
        (b"fLaC" + bytes(100), "brings FLAC"),
        (b"ID3" + bytes(100), "brings MP3"),
        (b"RIFF\xff\xff\xff\xffWAVE", "ends in its header"),
        (b"RIFF\xff\xff\xff\xffWAVEfmt \x10\x00\x00\x00" + struct.pack("<HHIIHH", 6, 1, 8000, 8000, 1, 8), "format 6, 8 bits"),
    ],
)  # fmt: skip
def test_what_is_not_live_sound(content: bytes, said: str) -> None:
    with pytest.raises(AudioError, match=said) as told:
        piped(content)
    assert told.value.hint
    assert "ffmpeg" in told.value.hint
