"""Probes: means that do not depend on the batch, and a classifier that cannot have heard its test."""

import numpy as np
import pytest
import torch
from conftest import LARGE, make_model, voice

from distilkit.encoder import Encoder, encode, exact
from distilkit.probes.linear import linear_probe, log_mel, pooled

CLIPS = [voice(seconds, seed) for seed, seconds in enumerate((0.5, 1.7, 0.025, 1.5))]


@pytest.mark.parametrize("changes", [{}, LARGE])
def test_the_mean_of_each_clip_alone(changes: dict[str, object]) -> None:
    encoder = Encoder(model=exact(make_model(**changes)), normalise=bool(changes))
    layers = [0, 2, encoder.depth]
    found = pooled(encoder, CLIPS, layers)
    assert found.shape == (4, 3, 32)
    assert found.dtype == np.float32
    for row, clip in zip(found, CLIPS, strict=True):
        with torch.no_grad():
            states = encode(encoder, torch.from_numpy(clip)[None], [len(clip)], layers)
        wanted = torch.stack([state[0].mean(0) for state in states])
        np.testing.assert_allclose(row, wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(row, pooled(encoder, [clip], layers)[0], rtol=1e-4, atol=1e-5)


def test_dropout_is_off() -> None:
    encoder = Encoder(model=exact(make_model(hidden_dropout=0.5)).train(), normalise=False)
    np.testing.assert_array_equal(pooled(encoder, CLIPS, [3]), pooled(encoder, CLIPS, [3]))


def test_log_mel_needs_no_model() -> None:
    found = log_mel(CLIPS)
    assert found.shape == (4, 160)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    louder = log_mel([10 * clip for clip in CLIPS])
    np.testing.assert_allclose(louder[:2, :80] - found[:2, :80], 2 * np.log(10), atol=0.05)
    np.testing.assert_allclose(louder[:2, 80:], found[:2, 80:], atol=0.05)
    assert not found[2, 80:].any()  # one frame does not deviate


def people(shift: float) -> tuple[np.ndarray, list[str], list[str]]:
    """Four people who say `yes` and `no`, each with an accent; the words are `shift` apart."""
    rng = np.random.default_rng(0)
    rows, labels, groups = [], [], []
    for person in ("Ada", "Bo", "Cy", "Di"):
        accent = rng.standard_normal(6)
        for index in range(60):
            label = ("yes", "no")[index % 2]
            row = 0.5 * rng.standard_normal(6) + 0.3 * accent
            row[0] = rng.standard_normal() + shift * (index % 2)
            rows.append(row * [1, 100, 0.01, 1, 1, 1])
            labels.append(label)
            groups.append(person)
    return np.asarray(rows, np.float32), labels, groups


def test_what_can_be_told_is_told_of_people_who_were_left_out() -> None:
    right = linear_probe(*people(8.0))
    assert list(right) == ["Ada", "Bo", "Cy", "Di"]
    assert min(right.values()) > 0.97


def test_noise_is_told_by_chance() -> None:
    right = linear_probe(*people(0.0))
    assert np.mean(list(right.values())) == pytest.approx(0.5, abs=0.1)


def test_who_is_left_out_is_never_seen() -> None:
    """One person calls everything by the other name: nobody else's numbers say so."""
    features, labels, groups = people(8.0)
    turned = {"yes": "no", "no": "yes"}
    labels = [
        turned[name] if who == "Bo" else name for name, who in zip(labels, groups, strict=True)
    ]
    right = linear_probe(features, labels, groups)
    assert right["Bo"] < 0.1
    assert min(right[who] for who in ("Ada", "Cy", "Di")) > 0.9
    moved = features.copy()
    moved[np.asarray(groups) == "Di"] += 1e3
    assert linear_probe(moved, labels, groups)["Di"] < 0.7  # not scaled by what is tested


def test_a_person_no_word_was_heard_of() -> None:
    """A label that only the left-out person has cannot be guessed."""
    features, labels, groups = people(8.0)
    labels = ["maybe" if who == "Cy" else name for name, who in zip(labels, groups, strict=True)]
    assert linear_probe(features, labels, groups)["Cy"] == 0
