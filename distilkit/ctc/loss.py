"""The loss of a micro-batch, how its clips are varied beforehand, and the errors in what is held out.

Letters in names: B clips in a batch, S samples, T frames, K tokens.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from distilkit import config
from distilkit.audio import SAMPLE_RATE, frames
from distilkit.batches import Batch
from distilkit.decode import greedy
from distilkit.encoder import frame_mask
from distilkit.noise import Noises, disturb
from distilkit.objectives import Loss, mask_spans
from distilkit.rates import errors
from distilkit.tokenizers import Tokenizer


def loss_function(
    tokenizer: Tokenizer,
    settings: config.CtcRecipe,
    texts: Mapping[str, str],
    noises: Noises,
    device: torch.device,
) -> Callable[[nn.Module, Batch], Loss]:
    """The loss of a micro-batch: CTC's, in fp32; of what is held out also the errors of greedy decoding.

    Args:
        tokenizer: of the head.
        settings: the recipe's.
        texts: what is said in each utterance, normalised, by id.
        noises: for `settings.noise`.
        device: where to compute.

    Source: Graves et al., Connectionist temporal classification, ICML 2006, equation 8.
    """
    speeds = _speeds(settings.augment.speeds, device)

    def loss_of(module: nn.Module, batch: Batch) -> Loss:
        wave_BS, lengths = batch.wave_BS.to(device), list(batch.lengths)
        hidden_BT = None
        if module.training:
            with torch.autocast(device.type, enabled=False):
                wave_BS, lengths = sped(wave_BS, lengths, speeds)
                wave_BS = disturb(wave_BS, lengths, settings.noise, noises)
            hidden_BT = _hidden(lengths, settings.augment, device)
        scores_BTK = module(wave_BS, lengths, hidden_BT)
        said = [texts[id] for id in batch.ids]
        with torch.autocast(device.type, enabled=False):
            logprobs_BTK = scores_BTK.float().log_softmax(-1)
            if device.type == "mps":
                logprobs_BTK = logprobs_BTK.cpu()  # no CTC there
            loss_B = ctc(
                logprobs_BTK, lengths, [tokenizer.encode(text) for text in said], tokenizer.blank
            )
        parts = {} if module.training else _parts(logprobs_BTK, lengths, said, tokenizer)
        return Loss(total=loss_B.sum(), parts=parts)

    return loss_of


def ctc(
    logprobs_BTK: Tensor, lengths: Sequence[int], ids: Sequence[Sequence[int]], blank: int
) -> Tensor:
    """CTC's loss of each clip (B), in nats; that of a text with no room is 0.

    Args:
        logprobs_BTK: logarithms of probabilities.
        lengths: samples of each clip.
        ids: tokens of each clip's text.
        blank: the blank's id.
    """
    device = logprobs_BTK.device
    loss_B: Tensor = nn.functional.ctc_loss(
        logprobs_BTK.transpose(0, 1),
        torch.tensor([token for row in ids for token in row], device=device),
        torch.tensor([frames(length) for length in lengths], device=device),
        torch.tensor([len(row) for row in ids], device=device),
        blank=blank,
        reduction="none",
        zero_infinity=True,
    )
    return loss_B


def _speeds(factors: Sequence[float], device: torch.device) -> list[nn.Module | None]:
    """What changes the speed of a clip; None leaves it as it is."""
    from torchaudio.transforms import Speed

    return [None if f == 1 else Speed(SAMPLE_RATE, f).to(device) for f in factors]


def sped(
    wave_BS: Tensor, lengths: Sequence[int], speeds: Sequence[nn.Module | None]
) -> tuple[Tensor, list[int]]:
    """Clips at speeds drawn from torch's random state, pitch and all, and their new lengths.

    Source: Ko et al., Audio augmentation for speech recognition, Interspeech 2015.
    """
    if len(speeds) == 1 and speeds[0] is None:
        return wave_BS, list(lengths)
    drawn = torch.randint(len(speeds), (len(lengths),)).tolist()
    clips = []
    for wave_S, length, which in zip(wave_BS, lengths, drawn, strict=True):
        change = speeds[which]
        clips.append(wave_S[:length] if change is None else change(wave_S[:length])[0])
    return nn.utils.rnn.pad_sequence(clips, batch_first=True), [len(clip) for clip in clips]


def _hidden(lengths: Sequence[int], settings: config.Augment, device: torch.device) -> Tensor:
    """SpecAugment in time: which frames are hidden, bool (B, T); a span is at most half of its clip.

    Source: Park et al., SpecAugment, arXiv 1904.08779; spans as in wav2vec 2.0's fine-tuning.
    """
    counts = [frames(length) for length in lengths]
    mask_BT = frame_mask(lengths, max(counts), device)
    if not settings.mask_probability:
        return torch.zeros_like(mask_BT)
    return mask_spans(mask_BT, counts, settings.mask_probability, settings.mask_frames)


def _parts(
    logprobs_BTK: Tensor, lengths: Sequence[int], said: Sequence[str], tokenizer: Tokenizer
) -> dict[str, Tensor]:
    """Counts of errors and of what they are counted in; `told` makes rates of them."""
    rows = logprobs_BTK.detach().cpu().numpy()
    rows_TK = [row[: frames(length)] for row, length in zip(rows, lengths, strict=True)]
    heard = [tokenizer.decode(greedy(row_TK, tokenizer), frames=False) for row_TK in rows_TK]
    counts = errors(said, heard)
    counted = {
        "word_errors": counts.words.errors,
        "words": counts.words.spoken,
        "character_errors": counts.characters.errors,
        "characters": counts.characters.spoken,
        "empty": sum(not text for text in heard),
        "utterances": len(said),
        "blank": sum(int((row_TK.argmax(1) == tokenizer.blank).sum()) for row_TK in rows_TK),
    }
    return {name: torch.tensor(float(value)) for name, value in counted.items()}


MEASURED = {"loss", "wer", "cer", "empty", "blank"}  # of a validation


def told(valid: dict[str, float]) -> dict[str, float]:
    """A validation as rates: words and characters wrong, utterances without a word, blank frames."""
    return {
        "loss": valid["loss"],
        "wer": valid["word_errors"] / valid["words"],
        "cer": valid["character_errors"] / valid["characters"],
        "empty": valid["empty"] / valid["utterances"],
        "blank": valid["blank"],
    }
