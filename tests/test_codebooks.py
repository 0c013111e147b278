"""Hidden units: MFCC by the frame, clusters that are found, and a codebook's file."""

from pathlib import Path

import pytest
import torch
from conftest import voice
from safetensors.torch import save_file
from torch import Tensor
from torchaudio.compliance.kaldi import mfcc as kaldi_mfcc

from distilkit import codebooks
from distilkit.audio import frames, samples
from distilkit.codebooks import Codebook, Source, mfcc
from distilkit.errors import DistilkitError

HINT = "distilkit units AUDIO --out DIR writes DIR/codebook.safetensors"
CEPSTRA = Source(features="mfcc", layers=())
LAYERS = Source(features="layers", layers=(4, 9), model="abc", normalise=True)


def clip(seconds: float, seed: int = 0) -> Tensor:
    return torch.from_numpy(voice(seconds, seed))


def book(*sizes: int, width: int = 3, **changes: object) -> Codebook:
    generator = torch.Generator().manual_seed(len(sizes))
    centres = tuple(torch.randn(size, width, generator=generator) for size in sizes)
    settings = {"features": "layers", "layers": tuple(range(4, 4 + len(sizes))), "model": "abc"}
    return Codebook(centres=centres, **{**settings, **changes})


# ------------------------------------------------------------------------------------------ MFCC


@pytest.mark.parametrize(
    "length", [400, 401, 559, 560, 561, 719, 720, 721, 879, 880, 1_040, 4_000, 15_999, 16_000]
)
def test_one_row_for_each_frame(length: int) -> None:
    assert mfcc(clip(1.0)[None, :length], [length]).shape == (1, frames(length), 39)


def test_no_length_is_a_row_off() -> None:
    wave_BS = clip(0.3)[None]
    for length in range(400, 2_000, 37):
        assert mfcc(wave_BS, [length]).shape[1] == frames(length), length
    for count in (1, 2, 3, 7):
        assert mfcc(wave_BS, [samples(count)]).shape[1] == count


def test_a_clip_does_not_see_its_batch() -> None:
    waves = [clip(0.9, 1), clip(0.3, 2), clip(0.5, 3)]
    lengths = [len(wave_S) for wave_S in waves]
    wave_BS = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True, padding_value=0.5)
    together = mfcc(wave_BS, lengths)
    for found, wave_S, length in zip(together, waves, lengths, strict=True):
        alone = mfcc(wave_S[None], [length])[0]
        assert torch.equal(found[: frames(length)], alone)
        assert not found[frames(length) :].any()


@pytest.mark.parametrize("gain", [0.1, 3.0])
def test_the_level_does_not_matter(gain: float) -> None:
    wave_S = clip(0.8, 1) + 0.01 * torch.randn(12_800, generator=torch.Generator().manual_seed(0))
    one, other = (mfcc(w[None], [len(w)]) for w in (wave_S, gain * wave_S))
    torch.testing.assert_close(one, other, rtol=0, atol=2e-2)


def naive_deltas(feature_TC: Tensor) -> Tensor:
    """Slope of the line through five frames, the ends repeated."""
    count = len(feature_TC)

    def at(place: int) -> Tensor:
        return feature_TC[min(max(place, 0), count - 1)]

    return torch.stack(
        [sum(n * (at(t + n) - at(t - n)) for n in (1, 2)) / 10 for t in range(count)]
    )


def test_kaldis_cepstra_and_their_slopes() -> None:
    wave_S = clip(0.7, 4)
    cepstra_TC = kaldi_mfcc(
        wave_S[None] * 32_768, sample_frequency=16_000.0, num_ceps=13, use_energy=False, dither=0.0
    )
    first = naive_deltas(cepstra_TC)
    wanted = torch.cat([cepstra_TC, first, naive_deltas(first)], 1)
    wanted = (wanted - wanted.mean(0)) / wanted.std(0, correction=0)
    torch.testing.assert_close(mfcc(wave_S[None], [len(wave_S)])[0], wanted[::2], rtol=0, atol=1e-4)


def test_silence_has_finite_features() -> None:
    assert mfcc(torch.zeros(1, 1_000), [1_000]).isfinite().all()


# -------------------------------------------------------------------------------------- clusters


def heaps(seed: int) -> tuple[Tensor, Tensor]:
    """Frames around five well separated centres, (2, 300, 4), and which heap each is of."""
    generator = torch.Generator().manual_seed(seed)
    centres = 20 * torch.eye(5, 4) + seed
    which = torch.randint(5, (2, 300), generator=generator)
    return centres[which] + 0.1 * torch.randn(2, 300, 4, generator=generator), which


def test_separate_heaps_are_found() -> None:
    (one, which_one), (other, which_other) = heaps(1), heaps(2)
    lengths = [samples(300), samples(200)]
    one[1, 200:], other[1, 200:] = 1e4, -1e4  # behind the second clip's end
    batches = [([one, other], lengths)]
    found = codebooks.find(batches, 5, LAYERS, seed=0)
    assert (found.features, found.layers, found.model) == ("layers", (4, 9), "abc")
    assert found.normalise
    units = found.units([one, other])
    for heap, unit in zip((which_one, which_other), units, strict=True):
        pairs = {(int(h), int(u)) for h, u in zip(heap[0], unit[0], strict=True)}
        pairs |= {(int(h), int(u)) for h, u in zip(heap[1, :200], unit[1, :200], strict=True)}
        assert len(pairs) == len({h for h, _ in pairs}) == len({u for _, u in pairs}) == 5
    for heap, centres, feature in zip((1, 2), found.centres, (one, other), strict=True):
        assert centres.dtype == torch.float32
        distance = torch.cdist(20 * torch.eye(5, 4) + heap, centres)
        assert distance.min(1).values.max() < 0.1, feature


def test_several_batches_count_together_and_the_seed_decides() -> None:
    parts = [([heaps(1)[0]], [samples(300)] * 2), ([heaps(1)[0] + 0.01], [samples(300)] * 2)]

    def centres(seed: int) -> Tensor:
        return codebooks.find(parts, 7, CEPSTRA, seed).centres[0]

    assert centres(0).shape == (7, 4)
    assert torch.equal(centres(0), centres(0))
    assert not torch.equal(centres(0), centres(1))


def test_more_clusters_than_frames() -> None:
    batches = [([torch.randn(1, 30, 4)], [samples(15)])]
    with pytest.raises(DistilkitError) as caught:
        codebooks.find(batches, 16, CEPSTRA, seed=0)
    assert caught.value.problem == "16 clusters cannot be found in 15 frames"
    assert caught.value.hint == "more audio, or at most 2 clusters"
    assert len(codebooks.find(batches, 2, CEPSTRA, seed=0).centres[0]) == 2
    with pytest.raises(DistilkitError, match="in 0 frames"):
        codebooks.find([], 2, CEPSTRA, seed=0)


def test_the_unit_is_the_nearest_centre() -> None:
    codebook = book(6, 4)
    features = [torch.randn(2, 5, 3), torch.randn(2, 5, 3)]
    for feature, centres, unit in zip(
        features, codebook.centres, codebook.units(features), strict=True
    ):
        assert unit.shape == (2, 5)
        assert not unit.is_floating_point()
        for b in range(2):
            for t in range(5):
                far = [float((feature[b, t] - centre).square().sum()) for centre in centres]
                assert int(unit[b, t]) == far.index(min(far))
    half = [feature.bfloat16() for feature in features]
    rounded = [feature.float() for feature in half]
    for one, other in zip(codebook.units(half), codebook.units(rounded), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="zip"):
        codebook.units(features[:1])


# ------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("codebook", [book(6, 4), book(5, features="mfcc", layers=(), model="")])
def test_a_file_reads_back_equal_and_is_always_the_same(tmp_path: Path, codebook: Codebook) -> None:
    for index in range(8):
        codebooks.save(codebook, tmp_path / f"{index}.safetensors")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    found = codebooks.load(tmp_path / "0.safetensors")
    assert (found.features, found.layers, found.model) == (
        codebook.features,
        codebook.layers,
        codebook.model,
    )
    assert all(
        torch.equal(one, other) for one, other in zip(found.centres, codebook.centres, strict=True)
    )
    codebooks.save(found, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "0.safetensors"
    ).read_bytes()


def test_eleven_layers_keep_their_order(tmp_path: Path) -> None:
    """`centres.10` comes before `centres.2` by name."""
    codebook = book(*range(2, 13))
    codebooks.save(codebook, tmp_path / "x.safetensors")
    found = codebooks.load(tmp_path / "x.safetensors")
    assert [len(centres) for centres in found.centres] == list(range(2, 13))


def test_a_folder_of_units_will_do(tmp_path: Path) -> None:
    codebooks.save(book(3), tmp_path / "codebook.safetensors")
    assert codebooks.load(tmp_path).layers == (4,)


def test_no_codebook(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "x", "x"), (tmp_path, "codebook.safetensors")):
        with pytest.raises(DistilkitError, match=f"no codebook `.*{said}`") as caught:
            codebooks.load(path)
        assert caught.value.hint == HINT


def test_not_a_codebook(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    about = '{"features": "layers", "layers": [4, 8], "model": ""}'
    centres = {"centres.0": torch.rand(3, 2)}
    writes = [
        lambda: path.write_text("nonsense"),
        lambda: path.write_bytes(b""),
        lambda: save_file({"weight": torch.rand(2)}, path),
        lambda: save_file(centres, path, metadata={"codebook": "{}"}),
        lambda: save_file(centres, path, metadata={"codebook": "no JSON"}),
        lambda: save_file(centres, path, metadata={"codebook": about}),  # one layer is missing
        lambda: save_file({"centres.1": torch.rand(3, 2)}, path, metadata={"codebook": about}),
    ]
    for write in writes:
        write()
        with pytest.raises(DistilkitError) as caught:
            codebooks.load(path)
        assert caught.value.problem.startswith(f"`{path}` is not a codebook: ")
        assert caught.value.hint == HINT
