"""What is trained: a recogniser, frozen and adapted as the recipe says, and its learning rates.

Letters in names: B clips in a batch, S samples, T frames, D width, K tokens.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distilkit import config, loop, recognisers
from distilkit.encoder import scale_conv_gradients
from distilkit.errors import DistilkitError
from distilkit.recognisers import Recogniser
from distilkit.teachers import Checkpoint
from distilkit.tokenizers import Tokenizer


class Trainee(nn.Module):
    """A recogniser while it is trained, its adapters in place."""

    def __init__(
        self, recogniser: Recogniser, settings: config.CtcRecipe, *, head: str, adapters: Any = None
    ) -> None:
        super().__init__()
        self.model = recogniser.model
        self.recogniser, self.adapters = recogniser, (adapters,)  # a tuple, so that it is no child
        self.head = head  # where the head comes from, for the user to read
        if settings.augment.mask_widths:
            self.recogniser.encoder.model.feature_projection.register_forward_hook(
                self._hide_widths(settings.augment.mask_widths)
            )

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        return sum(weight.numel() for weight in self.parameters() if weight.requires_grad)

    def forward(
        self, wave_BS: Tensor, lengths: Sequence[int], hidden_BT: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, K); frames that `hidden_BT` marks are hidden from the transformer."""
        return recognisers.logits(self.model, self.recogniser.encoder, wave_BS, lengths, hidden_BT)

    def weights(self) -> dict[str, Tensor]:
        """The weights that are trained, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def _hide_widths(self, share: float) -> Callable[..., Any]:
        """SpecAugment along a frame's numbers: one span, the same in all frames of a clip, becomes 0."""

        def hook(_module: nn.Module, _inputs: object, output: Any) -> Any:
            state_BTD = output[0] if isinstance(output, tuple) else output
            if not self.training:
                return output
            width = state_BTD.shape[-1]
            kept_BD = torch.ones(len(state_BTD), width)
            for row in kept_BD:
                span = int(torch.randint(int(share * width) + 1, ()))
                start = int(torch.randint(width - span + 1, ()))
                row[start : start + span] = 0
            state_BTD = state_BTD * kept_BD[:, None].to(state_BTD)
            return (state_BTD, *output[1:]) if isinstance(output, tuple) else state_BTD

        return hook


def assemble(checkpoint: Checkpoint, tokenizer: Tokenizer, settings: config.CtcRecipe) -> Trainee:
    """What is trained: the recogniser on its encoder, frozen and adapted as the recipe says."""
    loop.seed_step(settings.train.seed, 0)
    made = recognisers.build(checkpoint, tokenizer, settings.model)
    head = _known_head(checkpoint, tokenizer, type(made.model))
    if head:
        made.model.load_state_dict(head, strict=False)
    if settings.frozen_front_end:
        made.model.freeze_feature_encoder()  # before peft, which would leave its graph alive
    else:
        scale_conv_gradients(made.encoder.model, settings.train.conv_gradient_scale)
    adapters = _adapt(made, settings) if settings.lora.rank else None
    said = "the model's own, for the same tokens" if head else "new"
    return Trainee(made, settings, head=said, adapters=adapters)


def _known_head(
    checkpoint: Checkpoint, tokenizer: Tokenizer, kind: type[nn.Module]
) -> dict[str, Tensor]:
    """What a recogniser of that kind has behind its encoder, where its tokens are the same; else nothing."""
    path = Path(checkpoint.source)
    if not any("lm_head" in note for note in checkpoint.notes) or not path.is_dir():
        return {}
    try:
        there = recognisers.load(str(path))
    except DistilkitError:  # no tokenizer beside it: nobody knows what its tokens were
        return {}
    if type(there.model) is not kind or there.tokenizer.tokens != tokenizer.tokens:
        return {}
    encoder = f"{there.model.base_model_prefix}."
    weights = there.model.state_dict()
    return {name: weight for name, weight in weights.items() if not name.startswith(encoder)}


def _adapt(made: Recogniser, settings: config.CtcRecipe) -> Any:
    """Put low-rank adapters into the encoder; they and the head are trained, nothing else.

    Source: arXiv 2106.09685.
    """
    from peft import LoraConfig, get_peft_model

    lora = settings.lora
    whole = ["lm_head", *(["layer_mix"] if settings.model.layers == "weighted" else [])]
    if lora.norms:
        whole += [
            name
            for name, module in made.model.named_modules()
            if isinstance(module, nn.LayerNorm) and ".feature_extractor." not in name
        ]
    if lora.positions:
        whole.append("pos_conv_embed")
    if lora.front_end:
        whole += [
            name
            for name, module in made.model.named_modules()
            if isinstance(module, nn.Conv1d) and ".feature_extractor." in name
        ]
    adapters = LoraConfig(
        r=lora.rank,
        lora_alpha=2 * lora.rank if lora.alpha == "auto" else lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        bias="lora_only" if lora.norms else "none",
        modules_to_save=whole,
    )
    with recognisers.quiet_peft():
        return get_peft_model(made.model, adapters)


def groups(trainee: Trainee, settings: config.CtcRecipe, steps: int) -> list[loop.Group]:
    """The parameters by learning rate: the head from the first step, the encoder's layers later.

    Args:
        trainee: what is trained.
        settings: the recipe's.
        steps: optimizer steps in all.
    """
    train, depth = settings.train, trainee.recogniser.encoder.depth
    _, peak = settings.peak_rate
    after = int(train.head_fraction * steps) if trainee.head == "new" else 0
    found: dict[tuple[float, int], list[nn.Parameter]] = {}
    for name, parameter in trainee.named_parameters():
        if not parameter.requires_grad:
            continue
        if "lm_head" in name or "layer_mix" in name:
            key = (train.head_learning_rate / train.learning_rate, 0)
        else:
            layer = re.search(r"encoder\.layers\.(\d+)\.", name)
            front = ".feature_extractor." in name
            below = depth - 1 - int(layer[1]) if layer else depth + front
            key = (peak / train.learning_rate * train.layer_decay**below, after)
        found.setdefault(key, []).append(parameter)
    return [loop.Group(params=params, scale=s, after=a) for (s, a), params in found.items()]
