"""What is probed: hidden states of a model, log-mel bands, or random weights; computed once, kept on disk.

Letters in names: B clips in a batch, S samples, N clips or frames, L layers,
T frames of a clip, C bands, D width.
"""

import copy
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lhotse import MonoCut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchaudio.compliance.kaldi import fbank
from torchaudio.functional import compute_deltas

from distilkit import config, stored
from distilkit.audio import FRAME_RATE, FRAME_SAMPLES, HOP_SAMPLES, SAMPLE_RATE
from distilkit.encoder import Encoder, exact, fingerprint
from distilkit.errors import DistilkitError
from distilkit.exported import Exported
from distilkit.listeners import Encodes
from distilkit.targets import LiveTargets, Targets

MELS = 80
SCALE = 2**15  # Kaldi's features are made for 16-bit samples
MICRO_SECONDS = 30.0  # audio in memory at once, padding counted
RANDOM_SEED = 0
LOG_MEL, RANDOM = "log-mel", "random weights"  # floors


@dataclass(frozen=True, kw_only=True)
class System:
    """Something that turns sound into frames, 50 a second."""

    name: str
    targets: Targets
    kept: stored.Kept

    def bytes(self, cuts: Iterable[MonoCut]) -> int:
        """Bytes on disk that its frames of some clips take."""
        seconds = sum(cut.duration for cut in cuts)
        return int(seconds * FRAME_RATE * self.kept.bytes_per_frame)


def model(name: str, encoder: Encoder, device: str, arithmetic: config.Precision) -> System:
    """All hidden states of a model, the first layer's input included, as s3prl counts them."""
    layers = range(encoder.depth + 1)
    kept = _kept(fingerprint(encoder.model), encoder, layers, arithmetic)
    encoder.model.eval()
    return System(name=name, targets=LiveTargets(encoder, layers, device, arithmetic), kept=kept)


def exported(name: str, listener: Exported) -> System:
    """All hidden states of an exported model."""
    layers = range(listener.depth + 1)

    def targets(wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        waves = wave_BS.cpu().numpy()
        found = listener.states(
            [wave_S[:n] for wave_S, n in zip(waves, lengths, strict=True)], layers
        )
        return [
            pad_sequence(
                [torch.from_numpy(clip_LTD[layer]) for clip_LTD in found], batch_first=True
            )
            for layer in layers
        ]

    kept = _kept(f"{listener.digest} {listener.runtime}", listener, layers, "fp32")
    return System(name=name, targets=targets, kept=kept)


def random(encoder: Encoder, device: str, arithmetic: config.Precision) -> System:
    """The same network with weights as they are drawn before any training."""
    torch.manual_seed(RANDOM_SEED)
    fresh = exact(type(encoder.model)(copy.deepcopy(encoder.model.config)))
    drawn = Encoder(model=fresh, normalise=encoder.normalise)
    return model(RANDOM, drawn, device, arithmetic)


def log_mel() -> System:
    """80 log-mel bands with first and second differences, (T, 240), in frames of HuBERT's length and step.

    SUPERB's floor, FBANK, has 10 ms steps; the rest is the same.
    """
    kept = stored.Kept(
        model="",
        layers=(),
        normalise=False,
        codebook="log-mel",
        arithmetic="fp32",
        form="fp16",
        widths=(3 * MELS,),
    )
    return System(name=LOG_MEL, targets=_log_mel, kept=kept)


def _log_mel(wave_BS: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    rows = []
    for clip_S, length in zip(wave_BS.cpu(), lengths, strict=True):
        bands_TC = fbank(
            clip_S[None, :length] * SCALE,
            num_mel_bins=MELS,
            frame_length=1000 * FRAME_SAMPLES / SAMPLE_RATE,
            frame_shift=1000 * HOP_SAMPLES / SAMPLE_RATE,
            dither=0.0,
        )
        first_CT = compute_deltas(bands_TC.T)
        rows.append(torch.cat([bands_TC.T, first_CT, compute_deltas(first_CT)]).T)
    return [pad_sequence(rows, batch_first=True)]


def _kept(
    model: str, encoder: Encodes, layers: Sequence[int], arithmetic: config.Precision
) -> stored.Kept:
    return stored.Kept(
        model=model,
        layers=tuple(layers),
        normalise=False,
        codebook="",
        arithmetic=arithmetic,
        form="fp16",
        widths=(encoder.width,) * len(layers),
    )


class Features:
    """The frames of clips as a system gives them, read from disk."""

    def __init__(self, name: str, store: stored.Store) -> None:
        self.name, self._store = name, store
        self.states = len(store.kept.widths)
        self.width = store.kept.widths[0]
        self._means: dict[str, Tensor] = {}

    def frames(self, cut: MonoCut) -> Tensor:
        """All layers of a clip, (L, T, D)."""
        return torch.stack([state_TD.float() for state_TD in self._store.read(cut)])

    def layer(self, cut: MonoCut, number: int) -> Tensor:
        """One layer of a clip, (T, D)."""
        return self._store.read(cut)[number].float()

    def rows(self, cuts: Sequence[MonoCut]) -> tuple[list[Tensor], Tensor]:
        """Frames of clips one behind the other, (N, D) for each of L layers, and frames of each clip."""
        read = [self._store.read(cut) for cut in cuts]
        states = [torch.cat(clips).float() for clips in zip(*read, strict=True)]
        return states, torch.tensor([len(clip[0]) for clip in read])

    def means(self, cuts: Sequence[MonoCut]) -> Tensor:
        """The mean over time of all layers of clips, (N, L, D)."""
        for cut in cuts:
            key = stored.window_key(cut)
            if key not in self._means:
                self._means[key] = self.frames(cut).mean(1)
        return torch.stack([self._means[stored.window_key(cut)] for cut in cuts])


def compute(
    system: System, cuts: Sequence[MonoCut], folder: Path, device: str
) -> tuple[int, Callable[[], Iterator[str]], stored.Store]:
    """What is missing of the frames of some clips in a folder, how to compute it, and the store.

    Raises:
        DistilkitError: not enough room on the disk.
    """
    store = stored.Store(folder / system.kept.name, system.kept)
    missing = store.missing(cuts)
    need, free = system.bytes(missing), shutil.disk_usage(folder).free
    if need > free:
        raise DistilkitError(
            f"frames of {system.name} take {need / 2**30:.1f} GiB, and `{folder}` has room for "
            f"{free / 2**30:.1f}",
            "--features FOLDER, on a disk with room",
        )

    def work() -> Iterator[str]:
        yield from stored.fill(store, cuts, system.targets, MICRO_SECONDS, device)

    return len(missing), work, store
