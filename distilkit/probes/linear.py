"""What an encoder's frames tell: a linear classifier on their mean, tested on people it never heard.

A proxy for SUPERB's tasks on one's own labelled recordings, not SUPERB itself.

Letters in names: N recordings, L layers, D width.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pad_sequence
from torchaudio.compliance.kaldi import fbank

from distilkit.audio import Samples, frames
from distilkit.encoder import Encoder, encode
from distilkit.listeners import in_order

BATCH_SECONDS = 30.0  # audio in memory at once, padding counted
MELS = 80
Features = npt.NDArray[np.float32]


def pooled(encoder: Encoder, clips: Sequence[Samples], layers: Sequence[int]) -> Features:
    """The mean over time of each clip's hidden states, (N, L, D).

    Args:
        encoder: the model.
        clips: mono float32 samples at 16 kHz, each at least 400.
        layers: which layers, 0 (the first one's input) to the depth.
    """
    encoder.model.eval()
    device = next(encoder.model.parameters()).device
    means = np.empty((len(clips), len(layers), encoder.width), np.float32)
    for chosen in in_order([len(clip) for clip in clips], BATCH_SECONDS):
        lengths = [len(clips[index]) for index in chosen]
        waves = pad_sequence([torch.from_numpy(clips[i]) for i in chosen], batch_first=True)
        with torch.inference_mode():
            states = encode(encoder, waves.to(device), lengths, layers)
        for place, index in enumerate(chosen):
            count = frames(lengths[place])
            for column, state_BTD in enumerate(states):
                means[index, column] = state_BTD[place, :count].float().mean(0).cpu().numpy()
    return means


def log_mel(clips: Sequence[Samples]) -> Features:
    """The mean and deviation over time of 80 log-mel bands, (N, 160): what needs no model."""
    rows = []
    for clip in clips:
        bands_TC = fbank(torch.from_numpy(clip)[None] * 2**15, num_mel_bins=MELS)
        rows.append(torch.cat([bands_TC.mean(0), bands_TC.std(0, correction=0)]).numpy())
    return np.stack(rows).astype(np.float32)


def linear_probe(
    features_ND: Features, labels: Sequence[str], groups: Sequence[str]
) -> dict[str, float]:
    """Accuracy on each group by a linear classifier that was fitted on the others.

    The classifier is linear discriminant analysis with Ledoit and Wolf's shrinkage: it has nothing to
    tune, so nothing can be tuned on what is tested.

    Args:
        features_ND: one row per recording.
        labels: what is to be told.
        groups: whom to leave out together: speakers, or folds of speakers.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.preprocessing import StandardScaler

    named, grouped = np.asarray(labels), np.asarray(groups)
    right = {}
    for group in sorted(set(groups)):
        test = grouped == group
        scaler = StandardScaler().fit(features_ND[~test])
        classifier = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        classifier.fit(scaler.transform(features_ND[~test]), named[~test])
        guessed = classifier.predict(scaler.transform(features_ND[test]))
        right[group] = float((guessed == named[test]).mean())
    return right
