"""An encoder made exact: what a clip gives does not depend on the clips it is batched with.

Base models normalise their first convolution over the whole time axis, padding included
(`feat_extract_norm="group"`); stock transformers therefore moves a padded clip's output by tens of
percent, mask or no mask. Here that norm runs over each clip's own frames, and the attention mask
does the rest, so a padded clip equals the clip alone. data2vec's positional convolutions get the
same care. The models are those of transformers: HuBERT, wav2vec 2.0, WavLM and data2vec-audio.

Letters in names: B clips in a batch, S samples, T frames, L layers, C channels, D width.
"""

import copy
import ctypes
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, linear, pad, scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    Data2VecAudioModel,
    HubertModel,
    PreTrainedConfig,
    Wav2Vec2Model,
    WavLMModel,
)
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from distilkit.audio import HOP_SAMPLES, SAMPLE_RATE, Samples, frames
from distilkit.convolutions import arithmetic, lean
from distilkit.errors import DistilkitError
from distilkit.front import LeanFront

MOST_LAYERS = 1000
MOST_WIDTH = 2**17  # a vector of that length is made before weights are
Frames = npt.NDArray[np.float32]
Model: TypeAlias = HubertModel | Wav2Vec2Model | WavLMModel | Data2VecAudioModel
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
FRONT = -1  # in place of a layer's number: what the conv front end gives
MODELS: dict[str, type[Model]] = {
    "hubert": HubertModel,
    "wav2vec2": Wav2Vec2Model,
    "wavlm": WavLMModel,
    "data2vec-audio": Data2VecAudioModel,
}
FAMILIES = {
    "hubert": "HuBERT",
    "wav2vec2": "wav2vec 2.0",
    "wavlm": "WavLM",
    "data2vec-audio": "data2vec-audio",
}  # by `model_type`, as users know them


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for the next tensor of that size.

    glibc asks the system for every large block and gives it back, and the system clears each anew,
    which takes time in every step. Other C libraries are left as they are.
    """
    with suppress(OSError, AttributeError):
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallopt(M_MMAP_MAX, 0)
        glibc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class FixedBatchNorm(nn.BatchNorm1d):
    """The batch norm before some models' positional convolution, the same for every batch.

    It keeps the statistics that it came with, in training too, and leaves the frames behind each
    clip's end at 0, where the convolution expects silence.
    """

    lengths: list[int] | None = None  # frames of each clip; None where nothing is padded

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, T) by the statistics that were loaded."""
        normed = batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )
        return normed if self.lengths is None else _silenced(normed, self.lengths)


class EndedConv(nn.Conv1d):
    """One of data2vec's positional convolutions, which sees silence behind each clip's end.

    There are several in a row. What each leaves behind the end would leak into the next one; a clip
    alone has nothing there but the zeros that a convolution pads with.
    """

    lengths: list[int] | None = None  # frames of each clip; None where nothing is padded

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (B, C, T), frames behind each clip's end taken as 0."""
        return super().forward(input if self.lengths is None else _silenced(input, self.lengths))


def _silenced(input: Tensor, lengths: list[int]) -> Tensor:
    """(B, C, T) with 0 in the frames behind each clip's end."""
    ends = torch.tensor(lengths, device=input.device)
    inside = torch.arange(input.shape[-1], device=input.device) < ends[:, None, None]
    return input * inside


class LeanAttention(WavLMAttention):  # type: ignore[misc]
    """WavLM's attention through one fused call: equal numbers, and no matrix of weights kept.

    The stock one hands torch a mask and a bias of different types, which torch warns about and will
    drop; there, attention to frames behind a clip's end is masked in the same way.
    """

    def torch_multi_head_self_attention(
        self, hidden_states: Tensor, attention_mask: Tensor | None, gated_position_bias: Tensor
    ) -> tuple[Tensor, None]:
        """Attend from (B, T, D) to itself, with a bias (B * heads, T, T) and a mask (B, T)."""
        count, width, _ = hidden_states.shape
        bias = gated_position_bias.view(count, self.num_heads, width, width)
        if attention_mask is not None:
            bias = bias.masked_fill(~attention_mask.bool()[:, None, None], float("-inf"))
        query, key, value = (
            linear(hidden_states, part.weight, part.bias)
            .view(count, width, self.num_heads, self.head_dim)
            .transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = scaled_dot_product_attention(query, key, value, bias.to(query.dtype), dropout)
        return self.out_proj(mixed.transpose(1, 2).reshape(count, width, self.embed_dim)), None


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A model, and whether it wants its waveform brought to zero mean and unit variance."""

    model: Model
    normalise: bool  # `do_normalize` of the checkpoint's preprocessor

    @property
    def depth(self) -> int:
        """Transformer layers of the model."""
        return int(self.model.config.num_hidden_layers)

    @property
    def width(self) -> int:
        """Size of a frame's vector, D."""
        return int(self.model.config.hidden_size)

    @property
    def digest(self) -> str:
        """Changes when a weight does."""
        return fingerprint(self.model)

    def to(self, device: str) -> "Encoder":
        """The same encoder, ready to be asked on a device."""
        if device == "cpu":
            keep_freed_memory()
        self.model.to(device).eval()
        return self

    def states(self, clips: Sequence[Samples], layers: Sequence[int]) -> list[Frames]:
        """Chosen layers of whole clips, (L, T, D) each; no clip depends on the others.

        Args:
            clips: mono float32 samples at 16 kHz, at least `FRAME_SAMPLES` each.
            layers: from 0 to the model's depth.
        """
        wave_BS, lengths = padded(clips)
        with torch.inference_mode():
            hidden = encode(self, wave_BS.to(self.model.device), lengths, layers)
            stacked_LBTD = torch.stack(hidden).float().cpu()
        check_finite(stacked_LBTD)
        return [stacked_LBTD[:, i, : frames(n)].numpy() for i, n in enumerate(lengths)]


def check_finite(computed: Tensor) -> None:
    """Refuse what a model computes where it is no number; sound is looked at when it is decoded.

    Raises:
        DistilkitError: there are values that are not finite.
    """
    if not computed.isfinite().all():
        raise DistilkitError(
            "what the model computes is not finite numbers (NaN or inf): its weights are damaged",
            "get the model again",
        )


def padded(clips: Sequence[Samples]) -> tuple[Tensor, list[int]]:
    """Clips as one batch, (B, S), padded behind each one's end, and samples of each."""
    waves = [torch.from_numpy(np.ascontiguousarray(clip)) for clip in clips]
    return pad_sequence(waves, batch_first=True), [len(clip) for clip in clips]


def check_sizes(shape: PreTrainedConfig) -> None:
    """Refuse settings of a model that nobody has, before it is built: that would never end.

    Raises:
        ValueError: names the size.
    """
    layers, convs = shape.num_hidden_layers, len(shape.conv_dim)
    if layers > MOST_LAYERS or convs > MOST_LAYERS:
        raise ValueError(f"{layers} layers and {convs} convolutions")
    for size in (shape.hidden_size, shape.intermediate_size):
        if size > MOST_WIDTH:
            raise ValueError(f"a width of {size}")
    if shape.num_conv_pos_embeddings > MOST_LAYERS:  # as many layers, in data2vec
        raise ValueError(f"{shape.num_conv_pos_embeddings} positions")
    if shape.num_attention_heads < 1:  # less than none divides every width
        raise ValueError(f"{shape.num_attention_heads} attention heads")


def exact(model: Model) -> Model:
    """Make a model padding-proof, in place, and return it; its state dict is unchanged."""
    model.feature_extractor.__class__ = LeanFront
    position = model.encoder.pos_conv_embed
    if getattr(model.config, "conv_pos_batch_norm", False) and not isinstance(
        position.batch_norm, FixedBatchNorm
    ):
        fixed = FixedBatchNorm(position.batch_norm.num_features, position.batch_norm.eps)
        fixed.load_state_dict(position.batch_norm.state_dict(), assign=True)
        position.batch_norm = fixed
    if model.config.model_type == "data2vec-audio":
        for layer in position.layers:
            if not isinstance(layer.conv, EndedConv):
                layer.conv.__class__ = EndedConv  # a Conv1d that looks at `lengths` first
    lean(model.feature_extractor)
    lean(position)
    if model.config.model_type == "wavlm":
        for layer in model.encoder.layers:
            layer.attention.__class__ = LeanAttention
    return model


def front_norm(shape: PreTrainedConfig) -> str:
    """The norm of a model's conv front end, `group` or `layer`; data2vec has the latter only."""
    return str(getattr(shape, "feat_extract_norm", "layer"))


def encode(
    encoder: Encoder,
    wave_BS: Tensor,
    lengths: Sequence[int],
    layers: Sequence[int],
    hidden_BT: Tensor | None = None,
    front_BTC: Tensor | None = None,
) -> list[Tensor]:
    """Hidden states of the chosen layers, one (B, T, D) each.

    Layer 0 is the input of the first transformer layer and layer N the output of the Nth; the last
    one is the model's `last_hidden_state`, behind its final norm (s3prl's convention, and that of
    transformers before version 5, which matters for models with `do_stable_layer_norm`).
    Layer `FRONT` is what the conv front end gives, (B, T, C). Frames behind a clip's end hold nothing of
    use; `frame_mask` says which.

    Args:
        encoder: the model, made padding-proof by `exact`.
        wave_BS: mono float samples at 16 kHz, padded behind each clip's end.
        lengths: samples of each clip, B numbers of at least `FRAME_SAMPLES`.
        layers: which layers, from 0 to the model's depth, or `FRONT`.
        hidden_BT: frames that the transformer sees masked (True), where the model is to guess them.
        front_BTC: what the front end gave for these clips, where that is known; it does not run then.
    """
    model, depth = encoder.model, encoder.depth
    if front_BTC is None:
        wave_BS = prepare(wave_BS, lengths, encoder.normalise)
    width = frames(wave_BS.shape[1])
    more = _more_frames(width, wave_BS)
    if more:
        wave_BS = pad(wave_BS, (0, more * HOP_SAMPLES))
        front_BTC = None if front_BTC is None else pad(front_BTC, (0, 0, 0, more))
        hidden_BT = None if hidden_BT is None else pad(hidden_BT, (0, more))
    longest = wave_BS.shape[1]
    padded = any(frames(length) != frames(longest) for length in lengths)
    _tell_lengths(model, lengths, longest, padded)
    mask_BS = None
    if padded:
        ends = torch.tensor(lengths, device=wave_BS.device)
        mask_BS = (torch.arange(longest, device=wave_BS.device) < ends[:, None]).long()
    inner = sorted({layer for layer in layers if layer not in (FRONT, depth)})
    given = {} if hidden_BT is None else {"mask_time_indices": hidden_BT}
    with _front(model, front_BTC) as front:
        output = model(wave_BS, attention_mask=mask_BS, output_hidden_states=inner or None, **given)
    found = {depth: output.last_hidden_state, FRONT: front[0]}
    states = (found[n] if n in found else output.hidden_states[n] for n in layers)
    return [state_BTD[:, :width] for state_BTD in states]


def _more_frames(width: int, wave_BS: Tensor) -> int:
    """Frames to put behind a batch, so that batches have few widths: at the most an eighth.

    For bf16 oneDNN makes code anew for every size of a product, on a processor, in milliseconds.
    """
    if wave_BS.device.type != "cpu" or arithmetic(wave_BS) != torch.bfloat16:
        return 0
    return -width % (1 << max(0, width.bit_length() - 4))


class _Given(nn.Module):
    """In the place of a front end: what is known already."""

    def __init__(self, front_BCT: Tensor) -> None:
        super().__init__()
        self.front_BCT = front_BCT

    def forward(self, _wave_BS: Tensor) -> Tensor:
        return self.front_BCT


@contextmanager
def _front(model: Model, front_BTC: Tensor | None) -> Iterator[list[Tensor]]:
    """What the front end gives, (B, T, C), as the one element of a list once the model has run."""
    own, seen = model.feature_extractor, [] if front_BTC is None else [front_BTC]
    if front_BTC is not None:
        model.feature_extractor = _Given(front_BTC.mT)
        try:
            yield seen
        finally:
            model.feature_extractor = own
        return
    hook = own.register_forward_hook(lambda _module, _inputs, output: seen.append(output.mT))
    try:
        yield seen
    finally:
        hook.remove()


def _tell_lengths(model: Model, lengths: Sequence[int], longest: int, padded: bool) -> None:
    """Tell the modules that have to know it where each clip ends; `lengths` in samples."""
    front = model.feature_extractor
    assert isinstance(front, LeanFront), "the model was not made exact"
    front.lengths = None if all(length == longest for length in lengths) else list(lengths)
    position = model.encoder.pos_conv_embed
    told: list[nn.Module] = []
    if getattr(model.config, "conv_pos_batch_norm", False):
        told = [position.batch_norm]
    elif model.config.model_type == "data2vec-audio":
        told = [layer.conv for layer in position.layers]
    for module in told:
        assert isinstance(module, FixedBatchNorm | EndedConv), "the model was not made exact"
        module.lengths = [frames(n) for n in lengths] if padded else None


def prepare(wave_BS: Tensor, lengths: Sequence[int], normalise: bool) -> Tensor:
    """Silence behind each clip's end, and zero mean and unit variance where the model wants it.

    Source: Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm of transformers.
    """
    rows = []
    for wave_S, length in zip(wave_BS, lengths, strict=True):
        clip_S = wave_S[:length]
        if normalise:
            clip_S = (clip_S - clip_S.mean()) / torch.sqrt(clip_S.var(correction=0) + 1e-7)
        rows.append(pad(clip_S, (0, wave_BS.shape[1] - length)))
    return torch.stack(rows)


def frame_mask(lengths: Sequence[int], width: int, device: torch.device) -> Tensor:
    """Which frames belong to their clip: bool (B, T) for T = `width`."""
    ends = torch.tensor([frames(length) for length in lengths], device=device)
    return torch.arange(width, device=device) < ends[:, None]


def truncated(encoder: Encoder, deepest: int) -> Encoder:
    """The same encoder without the layers above the deepest one asked for; weights are shared.

    The final norm of a model that is cut short belongs to a layer that is gone, so `encode` must be
    asked for hidden states below the old depth only: the depth itself is kept in the config.
    """
    if deepest >= encoder.depth:
        return encoder
    short = _structure(encoder.model)
    short.encoder.layers = short.encoder.layers[:deepest]
    return replace(encoder, model=short)


def in_bf16(encoder: Encoder) -> Encoder:
    """The same encoder with the weights of its products in bf16: half the memory, for use without gradient.

    Under `torch.autocast`, which casts them for each use otherwise, it gives the very same. Norms, embeddings
    and the first convolution, which a norm may become part of, stay as they are, shared with the encoder
    that was given.
    """
    model = _structure(encoder.model)
    first = model.feature_extractor.conv_layers[0].conv
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d) and module is not first:
            for name, weight in list(module.named_parameters(recurse=False)):
                low = weight.detach().to(torch.bfloat16)
                setattr(module, name, nn.Parameter(low, requires_grad=False))
    return replace(encoder, model=model)


def _structure(model: Model) -> Model:
    """A copy of a model whose weights are the very ones of the original."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def same_front(one: Encoder, other: Encoder) -> bool:
    """Whether the conv front ends of two encoders give the same for the same wave."""
    if one.normalise != other.normalise:
        return False
    fronts = [encoder.model.feature_extractor for encoder in (one, other)]
    weights = [front.state_dict() for front in fronts]
    if {name: value.shape for name, value in weights[0].items()} != {
        name: value.shape for name, value in weights[1].items()
    }:
        return False
    wave_BS = torch.randn(1, SAMPLE_RATE // 10, generator=torch.Generator().manual_seed(0))
    for encoder in (one, other):
        _tell_lengths(encoder.model, [wave_BS.shape[1]], wave_BS.shape[1], padded=False)
    with torch.no_grad():
        given = [
            front(wave_BS.to(next(front.parameters()).device)).float().cpu() for front in fronts
        ]
    return bool(torch.equal(*given))


def scale_conv_gradients(model: Model, factor: float) -> None:
    """Scale the gradient that enters the conv front end by `factor`, in place.

    Source: `feature_grad_mult` of fairseq's wav2vec 2.0 and s3prl's distiller.
    """

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * factor)  # type: ignore[no-untyped-call]

    if factor != 1.0:
        model.feature_extractor.register_forward_hook(hook)


def fingerprint(model: nn.Module) -> str:
    """A digest of all weights, to notice when a model is not the one that it was."""
    return digest_of(model.state_dict())


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """A digest of named tensors."""
    digest = hashlib.sha1(usedforsecurity=False)
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
