"""Recognisers: an encoder, a CTC head and a tokenizer, made exact, in folders that stock transformers loads.

Letters in names: B clips in a batch, S samples, T frames, K tokens.
"""

import copy
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import log_softmax, pad
from transformers import (
    Data2VecAudioForCTC,
    HubertForCTC,
    PreTrainedConfig,
    Wav2Vec2ForCTC,
    WavLMForCTC,
)

from distilkit import config, hub, layer_mix, teachers, tokenizers
from distilkit.audio import Samples, frames
from distilkit.encoder import Encoder, check_finite, encode, exact, front_norm, padded
from distilkit.errors import DistilkitError
from distilkit.files import read_object
from distilkit.layer_mix import MixedHubertForCTC
from distilkit.listeners import LogProbs
from distilkit.teachers import Checkpoint, huggingface
from distilkit.teachers.files import AGAIN
from distilkit.teachers.weights import UNUSED, refuse
from distilkit.teachers.weights import check_finite as check_weights
from distilkit.tokenizers import Tokenizer

Model: TypeAlias = HubertForCTC | Wav2Vec2ForCTC | WavLMForCTC | Data2VecAudioForCTC
MODELS: dict[str, type[Model]] = {
    "hubert": HubertForCTC,
    "wav2vec2": Wav2Vec2ForCTC,
    "wavlm": WavLMForCTC,
    "data2vec-audio": Data2VecAudioForCTC,
}
ADAPTER, WEIGHTS = "adapter_config.json", hub.ADAPTER
BASE = "base.json"  # beside an adapter: which model it was trained on


@dataclass(frozen=True, kw_only=True)
class Recogniser:
    """A model with a CTC head, and the tokenizer of that head."""

    model: Model
    tokenizer: Tokenizer
    normalise: bool  # whether it wants zero-mean, unit-variance waveforms
    notes: tuple[str, ...] = ()

    @property
    def encoder(self) -> Encoder:
        """The model without its head."""
        inner = getattr(self.model, self.model.base_model_prefix)
        return Encoder(model=inner, normalise=self.normalise)

    def to(self, device: str) -> "Recogniser":
        """The same recogniser, ready to listen on a device."""
        self.model.to(device).eval()
        return self

    def logprobs(self, clips: Sequence[Samples]) -> list[LogProbs]:
        """Logarithms of the tokens' probabilities, (T, K) for each clip: `hear` where the model is."""
        return hear(self, clips, str(self.model.device))


def build(checkpoint: Checkpoint, tokenizer: Tokenizer, settings: config.Recogniser) -> Recogniser:
    """A new recogniser on a pre-trained encoder; its head knows nothing yet.

    Args:
        checkpoint: the encoder, of any family.
        tokenizer: decides the size of the head; its padding token is CTC's blank.
        settings: dropout, what the head reads, whether the encoder's weights are kept.

    Raises:
        DistilkitError: a weighted sum of layers over another family than HuBERT.
    """
    shape = copy.deepcopy(checkpoint.model.config)
    shape.update(
        {
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.blank,
            "bos_token_id": None,
            "eos_token_id": None,
            "ctc_loss_reduction": "mean",
            "ctc_zero_infinity": True,
            "final_dropout": settings.dropout,
            "hidden_dropout": settings.dropout,
            "attention_dropout": settings.dropout,
            "activation_dropout": settings.dropout,
            "layerdrop": 0.0,
            # Which frames are hidden in training is ours to say, and nothing else is hidden.
            "apply_spec_augment": True,
            "mask_time_prob": getattr(shape, "mask_time_prob", 0.0) or 0.05,
            "mask_feature_prob": 0.0,
        }
    )
    kind = MODELS[checkpoint.family]
    if settings.layers == "weighted":
        if checkpoint.family != "hubert":
            raise DistilkitError(
                f"`model.layers` cannot be `weighted` for a {checkpoint.family} model, only for a HuBERT",
                "--set model.layers=last",
            )
        kind = MixedHubertForCTC
    shape.architectures = [kind.__name__]
    model = kind(shape)
    inner = getattr(model, model.base_model_prefix)
    if settings.start == "pretrained":
        found = inner.load_state_dict(checkpoint.model.state_dict(), strict=False)
        refuse(
            f"the weights of `{checkpoint.source}` do not fit a recogniser",
            missing=[name for name in found.missing_keys if name != UNUSED],
            unexpected=[name for name in found.unexpected_keys if name != UNUSED],
            misshaped=[],
        )
    exact(inner)
    return Recogniser(model=model, tokenizer=tokenizer, normalise=checkpoint.normalise)


def logits(
    model: Model,
    encoder: Encoder,
    wave_BS: Tensor,
    lengths: Sequence[int],
    hidden_BT: Tensor | None = None,
) -> Tensor:
    """Logits (B, T, K) of padded waveforms, the same for each clip as alone.

    Args:
        model: a recogniser's model, its adapters in place.
        encoder: the model's encoder.
        wave_BS: mono float samples at 16 kHz.
        lengths: samples of each clip.
        hidden_BT: frames that the transformer sees masked.
    """
    if isinstance(model, MixedHubertForCTC):
        states = encode(encoder, wave_BS, lengths, range(encoder.depth + 1), hidden_BT)
        state_BTD = model.layer_mix(states)
    else:
        (state_BTD,) = encode(encoder, wave_BS, lengths, [encoder.depth], hidden_BT)
    scores: Tensor = model.lm_head(model.dropout(state_BTD))
    return scores


# ------------------------------------------------------------------------------------ listening


def hear(recogniser: Recogniser, clips: Sequence[Samples], device: str) -> list[LogProbs]:
    """Logarithms of the tokens' probabilities, (T, K) for each clip, none depending on the others.

    Args:
        recogniser: in evaluation mode, on `device`.
        clips: mono float32 samples at 16 kHz, at least one frame each.
        device: torch device.
    """
    wave_BS, lengths = padded(clips)
    with torch.inference_mode():
        scores_BTK = logits(recogniser.model, recogniser.encoder, wave_BS.to(device), lengths)
        found_BTK = log_softmax(scores_BTK.float(), dim=-1).cpu()
    check_finite(found_BTK)
    behind = len(recogniser.tokenizer) - found_BTK.shape[-1]  # tokens that the head does not know
    found_BTK = pad(found_BTK, (0, behind), value=-torch.inf)
    return [found_BTK[i, : frames(length)].numpy() for i, length in enumerate(lengths)]


# ---------------------------------------------------------------------------------------- files


def load(name: str) -> Recogniser:
    """A recogniser of ours, or any with CTC that transformers loads: a folder, a run or a hub id.

    An adapter is merged into the model that it was trained on.

    Raises:
        DistilkitError: nothing there, no CTC head, no tokenizer or another model's, damaged files.
    """
    path = hub.locate(name)
    if not (path / "config.json").is_file():
        raise DistilkitError(
            f"`{name}` is not a folder with a recogniser: it has no config.json",
            "distilkit finetune-ctc DATA --tokenizer DIR makes one",
        )
    if (path / ADAPTER).is_file():
        return _adapted(path)
    shape = huggingface.configuration(path)
    mixed = shape.architectures == [MixedHubertForCTC.__name__]
    kind = MixedHubertForCTC if mixed else MODELS[shape.model_type]
    if not str((shape.architectures or [kind.__name__])[0]).endswith("ForCTC"):
        raise _no_head(name, shape)
    model, found = huggingface.weights(path, shape, kind)
    if any(key.startswith("lm_head") for key in found["missing_keys"]):
        raise _no_head(name, shape)
    unused = f"{model.base_model_prefix}.{UNUSED}"
    refuse(
        f"the weights in `{path}` do not fit its config.json",
        missing=[f"`{key}`" for key in found["missing_keys"] - {unused}],
        unexpected=[f"`{key}`" for key in found["unexpected_keys"] - {unused}],
        misshaped=[f"`{key}`" for key, *_ in found["mismatched_keys"]],
    )
    exact(getattr(model, model.base_model_prefix))
    normalise, assumed = huggingface.normalises(path, front_norm(shape))
    return Recogniser(
        model=model.eval(),
        tokenizer=_tokenizer(path, shape),
        normalise=normalise,
        notes=(assumed,) if assumed else (),
    )


def _no_head(name: str, shape: PreTrainedConfig) -> DistilkitError:
    of = f"a `{(shape.architectures or [shape.model_type])[0]}`"
    return DistilkitError(
        f"`{name}` is no recogniser: it is {of}, without a CTC head",
        f"distilkit finetune-ctc DATA --tokenizer DIR --model {name}",
    )


def _tokenizer(path: Path, shape: PreTrainedConfig) -> Tokenizer:
    tokenizer = tokenizers.load(path)
    # A tokenizer may bring names of its own behind the head's tokens, as for an end: nobody says them.
    more = set(range(shape.vocab_size, len(tokenizer))) - set(tokenizer.stock.all_special_ids)
    if more or len(tokenizer) < shape.vocab_size:
        raise DistilkitError(
            f"the tokenizer in `{path}` is another model's: it has {len(tokenizer)} tokens, "
            f"the model's head {shape.vocab_size}",
            "put the tokenizer that it was trained with beside it",
        )
    if shape.pad_token_id is not None and shape.pad_token_id != tokenizer.blank:
        raise DistilkitError(
            f"the tokenizer in `{path}` is another model's: its blank is token {tokenizer.blank}, "
            f"the model's {shape.pad_token_id}",
            "put the tokenizer that it was trained with beside it",
        )
    return tokenizer


def _adapted(path: Path) -> Recogniser:
    """What an adapter makes of the model that it was trained on."""
    from peft import PeftModel

    told, adapters = base_of(path), _adapters(path)
    _, checkpoint = teachers.again(told, f"the adapter in `{path}` was trained on")
    settings = config.Recogniser(layers=told["layers"])
    made = build(checkpoint, tokenizers.load(path), settings)
    try:
        with quiet_peft():
            merged = PeftModel.from_pretrained(made.model, path, config=adapters).merge_and_unload()
            check_weights(path, merged.state_dict())
    except DistilkitError:
        raise
    except Exception as error:  # of peft, safetensors and torch alike
        reason = str(error).strip().split("\n")[0]
        raise DistilkitError(f"the adapter in `{path}` cannot be loaded: {reason}") from error
    return Recogniser(model=merged.eval(), tokenizer=made.tokenizer, normalise=made.normalise)


def _adapters(path: Path) -> Any:
    """The settings of adapters as fine-tuning writes them.

    peft knows many more, among them modules to import and files to open, wherever they are.

    Raises:
        DistilkitError: no adapters, damaged settings, or others than those.
    """
    from peft import LoraConfig

    if not (path / WEIGHTS).is_file():  # peft would ask the hub
        raise DistilkitError(f"`{path}` holds no {WEIGHTS}", AGAIN)
    told = read_object(path / ADAPTER, AGAIN)
    try:
        if told.get("peft_type") != "LORA":
            raise ValueError(f"`peft_type` is `{told.get('peft_type')}`")
        known = config.Lora(
            rank=told["r"], alpha=told["lora_alpha"], targets=told["target_modules"]
        )
        whole = told.get("modules_to_save") or []
        if not isinstance(whole, list) or not all(isinstance(name, str) for name in whole):
            raise ValueError("`modules_to_save` is not a list of names")
        return LoraConfig(
            r=known.rank,
            lora_alpha=known.alpha,
            target_modules=list(known.targets),
            modules_to_save=whole,
            bias="lora_only" if told.get("bias") == "lora_only" else "none",
            inference_mode=True,
        )
    except (ValueError, LookupError, TypeError) as error:
        said = " ".join(str(error).partition(" [type=")[0].split())
        raise DistilkitError(
            f"`{path / ADAPTER}` is not as fine-tuning writes it: {said}",
            "merge the adapter into its model with peft's `merge_and_unload` and save that",
        ) from error


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without peft's use of a name that transformers will drop, which would be told to users."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def base_of(adapter: Path) -> dict[str, Any]:
    """Which model an adapter was trained on: its name, where it lay, its fingerprint.

    Raises:
        DistilkitError: the adapter does not say.
    """
    told = read_object(adapter / BASE) if (adapter / BASE).is_file() else {}
    found = {key: told.get(key) for key in ("name", "source", "fingerprint", "layers")}
    if not all(isinstance(value, str) for value in found.values()):
        raise DistilkitError(
            f"`{adapter}` holds an adapter, but no {BASE} that names its model",
            "merge it into its model with peft's `merge_and_unload` and save that",
        )
    return found


def save(recogniser: Recogniser, folder: Path, card: str) -> None:
    """Write a recogniser as a Hugging Face folder: config, weights, tokenizer, feature extractor, card."""
    folder.mkdir(parents=True)
    model = recogniser.model
    shape = copy.deepcopy(model.config)
    shape.architectures = [type(model).__name__]
    shape.dtype = "float32"
    if isinstance(model, MixedHubertForCTC):
        source = Path(layer_mix.__file__)
        shutil.copyfile(source, folder / source.name)
        shape.auto_map = {"AutoModelForCTC": f"{source.stem}.{MixedHubertForCTC.__name__}"}
    shape.save_pretrained(folder)
    weights = {
        name: tensor.detach().float().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    masks = front_norm(shape) == "layer"
    tokenizers.save(recogniser.tokenizer, folder, recogniser.normalise, masks)
    (folder / "README.md").write_text(card, encoding="utf-8")
