"""Disturbances: the time axis is kept, levels are as asked, and only what is to change does."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import voice
from torch import Tensor

from distilkit import config, noise
from distilkit.errors import DistilkitError
from distilkit.noise import (
    coloured,
    disturb,
    equalise,
    limit,
    move_voice,
    recordings,
    reverberate,
)

RATE = 16_000
ALL = config.Noise(probability=1.0, reverberation=1.0, band=1.0, voice=1.0, equaliser=1.0)


def only(**changes: object) -> config.Noise:
    """Every clip, noise that cannot be measured, and nothing else but `changes`."""
    quiet = {
        "snr": [150.0, 150.0],
        "gain": [0.0, 0.0],
        "reverberation": 0.0,
        "band": 0.0,
        "equaliser": 0.0,
    }
    return config.Noise(**{"probability": 1.0, **quiet, **changes})


def clips(*seconds: float, level: float = 0.3) -> tuple[Tensor, list[int]]:
    """Voices in one batch, zeros behind each end."""
    waves = [torch.from_numpy(voice(s, seed)) * level for seed, s in enumerate(seconds)]
    return torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), [len(w) for w in waves]


def tone(hertz: float, seconds: float = 1.0) -> Tensor:
    return 0.2 * torch.sin(2 * math.pi * hertz * torch.arange(int(seconds * RATE)) / RATE)


def power(wave_S: Tensor) -> float:
    return float(wave_S.double().square().mean())


def decibels(one: Tensor, other: Tensor) -> float:
    return 10 * math.log10(power(one) / power(other))


# ---------------------------------------------------------------------------- what is disturbed


def test_off_is_the_same_tensor() -> None:
    wave_BS, lengths = clips(0.5, 0.3)
    assert disturb(wave_BS, lengths, config.Noise()) is wave_BS


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_share_of_clips(share: float) -> None:
    torch.manual_seed(0)
    wave_BS = 0.1 * torch.randn(1_000, 400)
    changed = (disturb(wave_BS, [400] * 1_000, only(probability=share)) != wave_BS).any(1)
    assert float(changed.float().mean()) == pytest.approx(share, abs=0.06 if share < 1 else 0)


def test_the_input_and_what_lies_behind_a_clip_stay() -> None:
    wave_BS, lengths = clips(1.0, 0.4, 0.7)
    before = wave_BS.clone()
    torch.manual_seed(0)
    output_BS = disturb(wave_BS, lengths, ALL)
    assert torch.equal(wave_BS, before)
    for output_S, wave_S, length in zip(output_BS, wave_BS, lengths, strict=True):
        assert not output_S[length:].any()
        assert (output_S[:length] != wave_S[:length]).float().mean() > 0.9


def test_one_seed_one_result() -> None:
    wave_BS, lengths = clips(1.0, 0.4)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(disturb(wave_BS, lengths, ALL))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_short_silent_and_loud_clips() -> None:
    """The shortest clip of a run, digital silence, and what is already as loud as can be."""
    torch.manual_seed(0)
    wave_BS = torch.stack([0.1 * torch.randn(400), torch.zeros(400), torch.randn(400).sign()])
    for _ in range(20):
        output_BS = disturb(wave_BS, [400] * 3, ALL)
        assert output_BS.isfinite().all()
        assert output_BS.abs().max() <= 1
        assert not output_BS[1].any()


@pytest.mark.parametrize(
    ("setting", "function"),
    [
        ("voice", "move_voice"), ("reverberation", "reverberate"), ("band", "limit"),
        ("equaliser", "equalise"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_each_kind_has_its_share(
    monkeypatch: pytest.MonkeyPatch, setting: str, function: str, share: float
) -> None:
    asked: list[tuple[float, ...]] = []

    def spy(clip_S: Tensor, *how: float) -> Tensor:
        asked.append(how)
        return clip_S

    monkeypatch.setattr(noise, function, spy)
    torch.manual_seed(0)
    disturb(0.1 * torch.randn(400, 400), [400] * 400, only(**{setting: share}))
    assert len(asked) / 400 == pytest.approx(share, abs=0.1 if share == 0.4 else 0)
    if setting == "band":
        assert set(asked) <= set(noise.BANDS)
        assert len(set(asked)) == (4 if share else 0)
    elif setting == "equaliser":
        weights = np.array([curve for (curve,) in asked]).reshape(-1, 4)
        assert np.abs(weights).max(initial=0) <= 6
        if share:
            assert np.abs(weights.mean(0)).max() < 1
            assert (weights.max(0) > 5).all()
            assert (weights.min(0) < -5).all()
    elif share:
        low, high = {"voice": (0.82, 1.18), "reverberation": (0.1, 0.8)}[setting]
        values = [value for (value,) in asked]
        margin = 0.1 * (high - low)
        assert low <= min(values) < low + margin
        assert high - margin < max(values) <= high


# ---------------------------------------------------------------------------------------- levels


@pytest.mark.parametrize("snr", [-5.0, 10.0])
def test_the_noise_has_the_level_that_was_asked_for(snr: float) -> None:
    wave_BS, lengths = clips(1.0, 0.4)
    for seed in range(5):
        torch.manual_seed(seed)
        output_BS = disturb(wave_BS, lengths, only(snr=[snr, snr]))
        for output_S, wave_S, length in zip(output_BS, wave_BS, lengths, strict=True):
            rest = output_S[:length] - wave_S[:length]
            assert decibels(wave_S[:length], rest) == pytest.approx(snr, abs=0.05)


@pytest.mark.parametrize("setting", ["snr", "gain"])
def test_levels_fill_their_range(setting: str) -> None:
    torch.manual_seed(0)
    wave_BS = 0.02 * torch.randn(300, 800)
    output_BS = disturb(wave_BS, [800] * 300, only(**{setting: [-6.0, 14.0]}))
    found = sorted(
        decibels(a, b - a) if setting == "snr" else decibels(b, a)
        for a, b in zip(wave_BS, output_BS, strict=True)
    )
    assert -6.05 < found[0] < -5
    assert 13 < found[-1] < 14.05
    assert np.mean(found) == pytest.approx(4, abs=1)


def test_coloured_noise_falls_with_frequency() -> None:
    torch.manual_seed(0)
    for slope in (0.0, 1.0, 2.0):
        noise_S = coloured(2**16, slope, torch.device("cpu"))
        assert power(noise_S) == pytest.approx(1, rel=1e-4)
        spectrum = torch.fft.rfft(noise_S).abs().square()
        octaves = [2**k for k in range(5, 15)]
        levels = [float(spectrum[b : 2 * b].mean().log2()) for b in octaves]
        assert np.polyfit(np.arange(10), levels, 1)[0] == pytest.approx(-slope, abs=0.1)


def test_babble_is_another_clip_of_the_batch() -> None:
    wave_BS, lengths = clips(0.5, 0.2)
    other_S = wave_BS[1, : lengths[1]].repeat(3)[: lengths[0]]
    alike = []
    for seed in range(150):
        torch.manual_seed(seed)
        rest = disturb(wave_BS, lengths, only(snr=[0.0, 0.0]))[0] - wave_BS[0]
        alike.append(float(torch.cosine_similarity(rest, other_S, dim=0)) > 0.999)
    assert 0.08 < np.mean(alike) < 0.25  # another clip in half of the draws, babble in 30% of those
    alone = disturb(wave_BS[:1], lengths[:1], only(snr=[0.0, 0.0]))[0] - wave_BS[0]
    assert abs(float(torch.cosine_similarity(alone, wave_BS[0], dim=0))) < 0.3


# ------------------------------------------------------------------------------------- time axis


def envelope(wave_S: Tensor) -> Tensor:
    """The level of every millisecond."""
    return wave_S.double().square()[: len(wave_S) // 16 * 16].view(-1, 16).mean(1).sqrt()


def moved(before_S: Tensor, after_S: Tensor) -> int:
    """Milliseconds by which a clip's envelope moved."""
    one, other = envelope(before_S), envelope(after_S)
    one, other = one - one.mean(), other - other.mean()
    lags = range(-60, 61)
    return max(lags, key=lambda lag: float((one * other.roll(-lag)).sum()))


def bursts() -> Tensor:
    """Tones of 30 ms at irregular places."""
    wave_S = torch.zeros(2 * RATE)
    for first in (3_000, 7_000, 9_500, 16_000, 21_000, 28_000):
        wave_S[first : first + 480] = tone(1_000, 0.03)
    return wave_S


@pytest.mark.parametrize(
    ("change", "within"),
    [
        (lambda clip_S: move_voice(clip_S, 0.82), 10),
        (lambda clip_S: move_voice(clip_S, 1.18), 10),
        (lambda clip_S: reverberate(clip_S, 0.4), 1),
        (lambda clip_S: limit(clip_S, 300.0, 3400.0), 1),
        (lambda clip_S: equalise(clip_S, [6.0, -6.0, 6.0, -6.0]), 1),
        (lambda clip_S: disturb(clip_S[None], [len(clip_S)], ALL)[0], 10),
    ],
    ids=["lower voice", "higher voice", "room", "telephone", "microphone", "all"],
)
def test_nothing_moves_in_time(change: Callable[[Tensor], Tensor], within: int) -> None:
    """A vocoder smears by up to half a frame; it must not drift, whatever the length."""
    torch.manual_seed(0)
    clip_S = bursts().repeat(6)
    changed_S = change(clip_S)
    assert changed_S.shape == clip_S.shape
    size = 2 * RATE
    for first in range(0, len(clip_S), size):
        part = slice(first, first + size)
        assert abs(moved(clip_S[part], changed_S[part])) <= within


@pytest.mark.parametrize("factor", [0.82, 0.95, 1.0, 1.1, 1.18])
def test_a_moved_voice_has_another_pitch_and_the_same_level(factor: float) -> None:
    clip_S = tone(440)
    moved_S = move_voice(clip_S, factor)
    assert moved_S.shape == clip_S.shape
    peak = int(torch.fft.rfft(moved_S * torch.hann_window(RATE)).abs().argmax())
    assert peak == pytest.approx(440 * factor, abs=2)
    assert power(moved_S) == pytest.approx(power(clip_S), rel=1e-3)


def test_what_is_too_short_for_the_vocoder_keeps_its_voice() -> None:
    clip_S = tone(440)[:511]
    assert torch.equal(move_voice(clip_S, 1.1), clip_S)
    assert move_voice(tone(440)[:512], 1.1).shape == (512,)
    assert not move_voice(torch.zeros(2_000), 0.9).any()


def test_a_room_comes_behind_the_direct_sound() -> None:
    torch.manual_seed(0)
    clip_S = torch.zeros(RATE)
    clip_S[1_000] = 0.5
    room_S = reverberate(clip_S, 0.3)
    assert int(room_S.abs().argmax()) == 1_000
    assert room_S[:1_000].abs().max() < 1e-6
    assert power(room_S) == pytest.approx(power(clip_S), rel=1e-4)
    tail = room_S[1_001:]
    assert power(tail) * len(tail) / float(room_S[1_000]) ** 2 == pytest.approx(0.25, rel=0.02)
    early, late = tail[:480], tail[4_320:4_800]  # 270 ms later, of 300 ms for 60 dB
    assert decibels(early, late) == pytest.approx(54, abs=3)
    assert tail[4_800:].abs().max() < 1e-6


@pytest.mark.parametrize(("low", "high"), noise.BANDS)
def test_a_band_is_all_that_is_left(low: float, high: float) -> None:
    torch.manual_seed(0)
    clip_S = torch.randn(RATE)
    limited_S = limit(clip_S, low, high)
    before, after = (torch.fft.rfft(wave_S).abs() for wave_S in (clip_S, limited_S))
    inside = slice(int(low) + 200, int(high) - 300)
    assert decibels(after[inside], before[inside]) == pytest.approx(0, abs=0.1)
    if low:
        assert decibels(after[: int(low) - 80], before[: int(low) - 80]) < -30
    if high < 8_000:
        assert decibels(after[int(high) + 300 :], before[int(high) + 300 :]) < -30
    assert low or after[0] == pytest.approx(float(before[0]), rel=1e-3)


def test_a_microphone_has_the_curve_that_was_asked_for() -> None:
    """Of two cosines over the logarithm of frequency from 60 Hz to 8 kHz, in dB."""
    torch.manual_seed(0)
    clip_S = torch.randn(RATE)
    before = torch.fft.rfft(clip_S).abs()
    after = torch.fft.rfft(equalise(clip_S, [6.0, -3.0])).abs()
    middle = math.sqrt(60 * 8_000)
    ratio = {
        f: 20 * math.log10(after[round(f)] / before[round(f)]) for f in (20, 60, middle, 7_999)
    }
    assert ratio[20] == pytest.approx(ratio[60], abs=0.01)
    assert ratio[60] - ratio[7_999] == pytest.approx(12, abs=0.1)
    assert ratio[60] - ratio[middle] == pytest.approx(6 - 3 - 3, abs=0.1)
    assert power(equalise(clip_S, [6.0, -3.0])) == pytest.approx(power(clip_S), rel=1e-3)
    assert torch.allclose(equalise(clip_S, [0.0] * 4), clip_S, atol=1e-5)


# -------------------------------------------------------------------------------- noise recordings


def test_no_folder_is_no_recordings() -> None:
    assert recordings("")(400) is None


def test_stretches_of_recordings(tmp_path: Path) -> None:
    """Each sample's value says which file and which place it comes from."""
    (tmp_path / "notes.txt").write_text("not audio")
    ramps = [np.arange(1, n + 1, dtype=np.float32) * s for n, s in ((9_000, 1e-5), (5_000, -1e-5))]
    for index, ramp in enumerate([*ramps, np.zeros(3_000, np.float32)]):
        soundfile.write(tmp_path / f"{index}.wav", ramp, RATE, "FLOAT")
    stretch = recordings(str(tmp_path))
    torch.manual_seed(0)
    firsts: dict[bool, list[int]] = {True: [], False: []}
    for _ in range(200):
        found = stretch(1_000)
        assert found is not None
        assert found.shape == (1_000,)
        rising = bool(found[0] > 0)
        first = round(abs(float(found[0])) * 1e5) - 1
        np.testing.assert_array_equal(found.numpy(), ramps[not rising][first : first + 1_000])
        firsts[rising].append(first)
    assert 70 < len(firsts[True]) < 130
    assert min(firsts[True]) < 800
    assert max(firsts[True]) > 7_000
    long = stretch(20_000)
    assert long is not None
    ramp = ramps[bool(long[0] < 0)]
    np.testing.assert_array_equal(long.numpy(), np.tile(ramp, 5)[:20_000])


def test_the_noise_is_the_recording(tmp_path: Path) -> None:
    hum = tone(120, 0.5)
    soundfile.write(tmp_path / "hum.wav", hum.numpy(), RATE, "FLOAT")
    wave_BS, lengths = clips(1.0, 0.7)
    torch.manual_seed(0)
    output_BS = disturb(wave_BS, lengths, only(snr=[5.0, 5.0]), recordings(str(tmp_path)))
    for output_S, wave_S, length in zip(output_BS, wave_BS, lengths, strict=True):
        rest = output_S[:length] - wave_S[:length]
        assert decibels(wave_S[:length], rest) == pytest.approx(5, abs=0.05)
        spectrum = torch.fft.rfft(rest[:4_000]).abs()
        assert int(spectrum.argmax()) == 30
        hum_there = hum.repeat(2)[:length]
        assert float(torch.cosine_similarity(rest, hum_there, dim=0)) > 0.999


def test_folders_without_noise(tmp_path: Path) -> None:
    with pytest.raises(DistilkitError, match="no such file or folder"):
        recordings(str(tmp_path / "nois"))
    with pytest.raises(DistilkitError, match="no noise recordings in `.*`"):
        recordings(str(tmp_path))
    soundfile.write(tmp_path / "silence.wav", np.zeros(3_000), RATE)
    with pytest.raises(DistilkitError, match="no noise recordings in `.*`") as caught:
        recordings(str(tmp_path))
    assert caught.value.hint == 'a folder of audio, or --set noise.folder=""'
    assert config.load_recipe("smoke", ['noise.folder=""']).noise.folder == ""
    (tmp_path / "broken.wav").touch()
    with pytest.raises(DistilkitError, match="broken.wav"):
        recordings(str(tmp_path))
