"""A HuBERT recogniser whose head reads a learned sum of all layers.

Stock transformers has no such model, so this file goes into the folder of every model that needs it
(`trust_remote_code=True` loads it). It therefore imports nothing of distilkit.

Letters in names: B clips in a batch, S samples, T frames, D width, L layers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import HubertConfig, HubertForCTC
from transformers.modeling_outputs import CausalLMOutput


class LayerMix(nn.Module):
    """A learned weighted sum of hidden states; all weigh the same at first.

    Source: SUPERB, arXiv 2105.01051, section 3.
    """

    def __init__(self, states: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(states))

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """The sum (B, T, D) of L + 1 states (B, T, D), by the softmax of the weights."""
        shares = self.weight.softmax(0)
        total: Tensor = sum(share * state for share, state in zip(shares, states, strict=True))
        return total


class MixedHubertForCTC(HubertForCTC):  # type: ignore[misc]
    """HubertForCTC with a `LayerMix` between encoder and head."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__(config)
        self.layer_mix = LayerMix(config.num_hidden_layers + 1)

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        """Logits (B, T, K) of waveforms (B, S)."""
        seen = self.hubert(input_values, attention_mask=attention_mask, output_hidden_states=True)
        states = [*seen.hidden_states[:-1], seen.last_hidden_state]
        return CausalLMOutput(logits=self.lm_head(self.dropout(self.layer_mix(states))))
