"""Hidden units: frames clustered by k-means, and which unit a frame is.

A codebook is found on MFCC (HuBERT's first iteration) or on layers of a model (its second, and
DiceHuBERT). `distilkit.units` writes units of recordings; training computes them as it goes.

Letters in names: B clips in a batch, S samples, T frames, K clusters, D width of a feature.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torchaudio.compliance.kaldi import mfcc as kaldi_mfcc
from torchaudio.functional import compute_deltas

from distilkit import config, leftovers
from distilkit.audio import SAMPLE_RATE, frames
from distilkit.errors import DistilkitError

MFCC = 13  # coefficients, then their first and second differences
FILE = "codebook.safetensors"  # in a folder of units, and in a run
SCALE = 2**15  # Kaldi's features are made for 16-bit samples


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is clustered."""

    features: config.Features
    layers: tuple[int, ...]  # of the model; () for MFCC
    model: str = ""  # fingerprint of the model whose layers these are
    normalise: bool = False  # layers brought to zero mean and unit variance over each clip

    def __str__(self) -> str:
        if self.features == "mfcc":
            return "MFCC"
        return f"{'normalised ' * self.normalise}layers {list(self.layers)}"


@dataclass(frozen=True, kw_only=True)
class Codebook(Source):
    """Centres of clusters, for MFCC or for one or more layers of one model."""

    centres: tuple[Tensor, ...]  # (K, D) each, one for MFCC or one for each layer

    def units(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The nearest centre of each frame: (B, T) whole numbers for each (B, T, D)."""
        return [
            torch.cdist(feature_BTD.float(), centres_KD.to(feature_BTD.device)[None]).argmin(-1)
            for feature_BTD, centres_KD in zip(features, self.centres, strict=True)
        ]


def mfcc(wave_BS: Tensor, lengths: Sequence[int]) -> Tensor:
    """Cepstra with first and second differences, (B, T, 39), one row for each frame of a HuBERT.

    Computed every 10 ms as Kaldi does, brought to zero mean and unit variance over each clip (so
    that microphone and loudness do not matter), and every second one kept.

    Source: HuBERT, arXiv 2106.07447, section 4.2; the normalisation is ours.
    """
    rows = []
    for clip_S, length in zip(wave_BS, lengths, strict=True):
        cepstra_TC = kaldi_mfcc(
            clip_S[None, :length].float() * SCALE,
            sample_frequency=SAMPLE_RATE,
            num_ceps=MFCC,
            use_energy=False,
            dither=0.0,
        )
        first_CT = compute_deltas(cepstra_TC.T)
        all_TC = torch.cat([cepstra_TC.T, first_CT, compute_deltas(first_CT)]).T
        spread = all_TC.std(0, correction=0).clamp_min(1e-3)
        rows.append(((all_TC - all_TC.mean(0)) / spread)[::2])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def find(
    batches: Iterable[tuple[Sequence[Tensor], Sequence[int]]],
    clusters: int,
    source: Source,
    seed: int,
) -> Codebook:
    """Cluster frames by k-means.

    Args:
        batches: features (B, T, D) of each layer, and the samples of each clip.
        clusters: how many, for each layer.
        source: what the features are, for the codebook.
        seed: of k-means.

    Raises:
        DistilkitError: fewer frames than clusters.

    Source: the settings of HuBERT's k-means, arXiv 2106.07447, section 4.2.
    """
    from sklearn.cluster import MiniBatchKMeans

    kept: list[list[np.ndarray]] = []
    for several, lengths in batches:
        kept = kept or [[] for _ in several]
        for place, feature_BTD in enumerate(several):
            for feature_TD, length in zip(feature_BTD.float().cpu(), lengths, strict=True):
                kept[place].append(feature_TD[: frames(length)].numpy())
    check(sum(len(part) for part in kept[0]) if kept else 0, clusters)
    centres = []
    for parts in kept:
        found = MiniBatchKMeans(
            clusters,
            batch_size=10_000,
            max_no_improvement=100,
            n_init=5,
            reassignment_ratio=0.0,
            random_state=seed,
        ).fit(np.concatenate(parts))
        centres.append(torch.from_numpy(found.cluster_centers_).float())
    return Codebook(**asdict(source), centres=tuple(centres))


def check(count: int, clusters: int) -> None:
    """Refuse more clusters than there are frames to find them in.

    Raises:
        DistilkitError: fewer frames than clusters.
    """
    if count < clusters:
        raise DistilkitError(
            f"{clusters} clusters cannot be found in {count} frames",
            f"more audio, or at most {max(2, count // 10)} clusters",
        )


def check_source(codebook: Codebook, path: Path, source: Source) -> None:
    """Refuse a codebook of other features, other layers or another model.

    Raises:
        DistilkitError: what it is of, and what is asked for.
    """
    of, asked = str(codebook), str(source)
    foreign = bool(codebook.model and source.model and codebook.model != source.model)
    if of != asked or foreign:
        raise DistilkitError(
            f"the codebook `{path}` is of {of}{' of another model' if foreign else ''}"
            + (f", not of {asked}" if of != asked else ""),
            "distilkit units AUDIO --out DIR makes one that fits",
        )


def save(codebook: Codebook, path: Path) -> None:
    """Write a codebook as one safetensors file."""
    named = {f"centres.{i}": tensor.contiguous() for i, tensor in enumerate(codebook.centres)}
    about = {
        "features": codebook.features,
        "layers": codebook.layers,
        "model": codebook.model,
        "normalise": codebook.normalise,
    }
    # Several keys would have no order.
    leftovers.save_tensors(named, path, {"codebook": json.dumps(about)})


def load(path: Path) -> Codebook:
    """Read a codebook.

    Raises:
        DistilkitError: no such file, or not a codebook.
    """
    hint = f"distilkit units AUDIO --out DIR writes DIR/{FILE}"
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise DistilkitError(f"no codebook `{path}`", hint)
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["codebook"])
            centres = tuple(file.get_tensor(f"centres.{i}") for i in range(len(list(file.keys()))))
        layers = tuple(int(layer) for layer in about["layers"])
        features: config.Features = "mfcc" if about["features"] == "mfcc" else "layers"
        if not centres or (features == "layers" and len(layers) != len(centres)):
            raise ValueError("layers and centres do not pair")
    except Exception as error:  # safetensors has exceptions of its own
        raise DistilkitError(f"`{path}` is not a codebook: {error}", hint) from error
    return Codebook(
        features=features,
        layers=layers,
        centres=centres,
        model=about.get("model", ""),
        normalise=bool(about.get("normalise", False)),
    )
