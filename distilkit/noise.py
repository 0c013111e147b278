"""Disturbances: what the student hears where the teacher hears the clean recording.

Every disturbance keeps the time axis: frame t of the disturbed clip is frame t of the clean one.
All are computed on the device that trains, from torch's random state.

Letters in names: B clips in a batch, S samples.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchaudio.functional import add_noise, fftconvolve, phase_vocoder

from distilkit import audio, config, data
from distilkit.audio import SAMPLE_RATE
from distilkit.errors import DistilkitError

FFT, HOP = 512, 128  # samples of the window that moves a voice, and of its step
VOICE = 0.18  # the most that a voice is moved, as a share of its frequencies
ROOM = (0.1, 0.8)  # seconds until a room's echo is 60 dB down
BANDS = ((300.0, 3400.0), (0.0, 4000.0), (100.0, 6000.0), (500.0, 8000.0))  # Hz that are left

LOWEST = 60.0  # Hz; microphones are alike below
COSINES, COLOUR = 4, 6.0  # of a microphone's curve over frequency; the most of each in dB

Noises = Callable[[int], Tensor | None]  # samples -> a stretch of a noise recording


def recordings(folder: str) -> Noises:
    """Stretches of the noise recordings of a folder, which are kept in memory; none for no folder.

    Raises:
        DistilkitError: no such folder, a file that cannot be read, or nothing but silence.
    """
    if not folder:
        return lambda _: None
    files = [found.path for found in data.find([folder]) if found.audio]
    loaded = [torch.from_numpy(audio.load(path)) for path in files]
    loud = [noise_S for noise_S in loaded if noise_S.any()]
    if not loud:
        raise DistilkitError(
            f"no noise recordings in `{folder}`", 'a folder of audio, or --set noise.folder=""'
        )

    def stretch(length: int) -> Tensor:
        noise_S = loud[int(_draw() * len(loud))]
        first = int(_draw() * max(1, len(noise_S) - length))
        return _repeat(noise_S[first : first + length], length)

    return stretch


def disturb(
    wave_BS: Tensor,
    lengths: Sequence[int],
    settings: config.Noise,
    noises: Noises = lambda _: None,
) -> Tensor:
    """Disturb some of the clips, each in some of the ways: (B, S) like the input, aligned with it.

    Args:
        wave_BS: mono float samples at 16 kHz, zeros behind each clip's end.
        lengths: samples of each clip.
        settings: which share of clips, and how much.
        noises: a stretch of a noise recording; None makes coloured noise, or babble of the batch.

    Source: multi-condition training as in WavLM (arXiv 2110.13900, section 3.2), the moved voices
    as in ContentVec (arXiv 2204.09224, section 3.2).
    """
    if settings.probability == 0:
        return wave_BS
    output_BS = wave_BS.clone()
    for index, length in enumerate(lengths):
        if _draw() >= settings.probability:
            continue
        clip_S = wave_BS[index, :length]
        if _draw() < settings.voice:
            clip_S = move_voice(clip_S, 1 + VOICE * (2 * _draw() - 1))
        if _draw() < settings.reverberation:
            clip_S = reverberate(clip_S, ROOM[0] + (ROOM[1] - ROOM[0]) * _draw())
        noise_S = noises(length)
        if noise_S is None:
            other = int(_draw() * len(lengths))
            babble = other != index and _draw() < 0.3
            noise_S = (
                _repeat(wave_BS[other, : lengths[other]], length)
                if babble
                else coloured(length, 2 * _draw(), wave_BS.device)
            )
        snr = settings.snr[0] + (settings.snr[1] - settings.snr[0]) * _draw()
        if clip_S.any() and noise_S.any():
            clip_S = add_noise(clip_S, noise_S.to(clip_S), clip_S.new_tensor(snr))
        if _draw() < settings.equaliser:
            clip_S = equalise(clip_S, [COLOUR * (2 * _draw() - 1) for _ in range(COSINES)])
        if _draw() < settings.band:
            clip_S = limit(clip_S, *BANDS[int(_draw() * len(BANDS))])
        level = settings.gain[0] + (settings.gain[1] - settings.gain[0]) * _draw()
        output_BS[index, :length] = (clip_S * 10 ** (level / 20)).clamp(-1, 1)
    return output_BS


def coloured(length: int, slope: float, device: torch.device) -> Tensor:
    """Noise whose power falls with frequency to the power of `slope`: 0 white, 1 pink, 2 brown."""
    spectrum = torch.fft.rfft(torch.randn(length, device=device))
    bins = torch.arange(1, len(spectrum) + 1, device=device)
    noise_S: Tensor = torch.fft.irfft(spectrum * bins ** (-slope / 2), n=length)
    return noise_S / noise_S.square().mean().sqrt().clamp_min(1e-12)


def reverberate(clip_S: Tensor, seconds: float) -> Tensor:
    """Put a clip into a room whose echo is 60 dB down after `seconds`; the level is kept.

    The room is noise that decays exponentially behind the direct sound, which comes at once, so
    that nothing moves in time.
    """
    size = max(2, int(seconds * SAMPLE_RATE))
    time = torch.arange(size, device=clip_S.device) / SAMPLE_RATE
    tail = torch.randn(size, device=clip_S.device) * torch.exp(-6.91 * time / seconds)
    room = 0.5 * tail / tail.square().sum().sqrt()
    room[0] = 1.0
    return _level(fftconvolve(clip_S, room)[: len(clip_S)], clip_S)


def limit(clip_S: Tensor, low: float, high: float) -> Tensor:
    """Leave only the band from `low` to `high` Hz, as a telephone or a cheap microphone does."""
    spectrum = torch.fft.rfft(clip_S)
    hertz = torch.fft.rfftfreq(len(clip_S), 1 / SAMPLE_RATE, device=clip_S.device)
    keep = torch.sigmoid((hertz - low) / 20) if low else torch.ones_like(hertz)
    limited_S: Tensor = torch.fft.irfft(
        spectrum * keep * torch.sigmoid((high - hertz) / 50), n=len(clip_S)
    )
    return limited_S


def equalise(clip_S: Tensor, weights: Sequence[float]) -> Tensor:
    """Colour a clip as another microphone would; the level is kept.

    Args:
        clip_S: the clip.
        weights: dB, of cosines over the logarithm of frequency from 60 Hz to 8 kHz: the first is a
            tilt, the next bend it.
    """
    spectrum = torch.fft.rfft(clip_S)
    hertz = torch.fft.rfftfreq(len(clip_S), 1 / SAMPLE_RATE, device=clip_S.device)
    place = torch.log(hertz.clamp_min(LOWEST) / LOWEST) / math.log(SAMPLE_RATE / 2 / LOWEST)
    curve = sum(w * torch.cos(torch.pi * n * place) for n, w in enumerate(weights, start=1))
    coloured_S: Tensor = torch.fft.irfft(spectrum * 10 ** (curve / 20), n=len(clip_S))
    return _level(coloured_S, clip_S)


def move_voice(clip_S: Tensor, factor: float) -> Tensor:
    """Multiply pitch and formants by `factor`, in the same time: a longer or shorter throat.

    A phase vocoder stretches the clip by `factor`, then it is resampled to its length. The level is
    kept.
    """
    length = len(clip_S)
    if length < FFT:
        return clip_S
    window = torch.hann_window(FFT, device=clip_S.device)
    spectrum = torch.stft(clip_S, FFT, HOP, window=window, return_complex=True)
    advance = torch.linspace(0, torch.pi * HOP, FFT // 2 + 1, device=clip_S.device)[:, None]
    stretched = phase_vocoder(spectrum[None], 1 / factor, advance)[0]
    longer = max(FFT, round(length * factor))
    long_S = torch.istft(stretched, FFT, HOP, window=window, length=longer)
    bins = torch.fft.rfft(long_S)[: length // 2 + 1]
    bins = torch.nn.functional.pad(bins, (0, length // 2 + 1 - len(bins)))
    moved_S: Tensor = torch.fft.irfft(bins, n=length)
    return _level(moved_S, clip_S)


def _level(clip_S: Tensor, like_S: Tensor) -> Tensor:
    """A clip at another's level."""
    return clip_S * (like_S.square().sum() / clip_S.square().sum().clamp_min(1e-12)).sqrt()


def _repeat(clip_S: Tensor, length: int) -> Tensor:
    return clip_S.repeat(-(-length // len(clip_S)))[:length]


def _draw() -> float:
    return float(torch.rand(()))
