"""A network that reads a prompt before every input, as few-shot prompting does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput


class Prompted(nn.Module):
    """A network that reads `examples`, each a row of tokens, before every input.

    If the window of `length` tokens is too short, the first examples are left out. Padding counts as input, so that all
    rows of a batch have the same prompt. The network has no cache, so callers cannot share prefixes.
    """

    def __init__(self, network: nn.Module, examples: Sequence[Sequence[int]], length: int | None) -> None:
        super().__init__()
        self.network, self.examples, self.length = network, [list(one) for one in examples], length

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, logits_to_keep: int = 0
    ) -> CausalLMOutput:
        """Logits at the last `logits_to_keep` positions of `input_ids` [rows, tokens], or at all of them."""
        width = input_ids.shape[1]
        prompt = input_ids.new_tensor(self.prompt(width))
        kept = logits_to_keep or width
        logits = []
        # Split the batch so that a pass has about as many tokens as the caller planned without the prompt.
        most = max(1, input_ids.numel() // (len(prompt) + width))
        for first in range(0, len(input_ids), most):
            rows = input_ids[first : first + most]
            before = prompt.expand(len(rows), -1)
            mask = None
            if attention_mask is not None:
                mask = attention_mask[first : first + most]
                mask = torch.cat([mask.new_ones(before.shape), mask], 1)
            whole = torch.cat([before, rows], 1)
            found = self.network(input_ids=whole, attention_mask=mask, use_cache=False, logits_to_keep=kept)
            logits.append(found.logits[:, -kept:])
        return CausalLMOutput(logits=torch.cat(logits))

    def prompt(self, width: int) -> list[int]:
        """The prompt before `width` input tokens: the last examples that fit the window."""
        shown: list[int] = []
        for example in reversed(self.examples):
            if self.length is not None and len(example) + len(shown) + width > self.length:
                break
            shown = [*example, *shown]
        return shown
