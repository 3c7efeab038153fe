"""A causal LM that reads the same tokens before every text, with the interface of the network inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Prefixed(nn.Module):
    """`network` with the token ids `prefix` in front of all input ids.

    The logits are those of the input's own positions. Where prefix and input are longer than the `window` together, the
    first tokens of the input are dropped, and so are their logits. A cache that is handed in holds the prefix already.
    """

    prefix: Tensor

    def __init__(self, network: PreTrainedModel, prefix: Sequence[int], window: int) -> None:
        super().__init__()
        self.network = network
        self.window = window
        self.register_buffer("prefix", torch.tensor(list(prefix), dtype=torch.long, device=network.device))

    def get_base_model(self) -> PreTrainedModel:
        """The network inside. PEFT's wrappers have a method of this name, too."""
        return self.network

    def forward(self, input_ids: Tensor, past_key_values: Any = None, logits_to_keep: int = 0, **options: Any) -> Any:
        if past_key_values is not None:
            return self.network(
                input_ids=input_ids, past_key_values=past_key_values, logits_to_keep=logits_to_keep, **options
            )
        room = self.window - len(self.prefix)
        ids = torch.cat([self.prefix.expand(len(input_ids), -1), input_ids[:, -room:]], dim=1)
        kept = logits_to_keep or min(input_ids.shape[1], room)
        return self.network(input_ids=ids, logits_to_keep=kept, **options)
