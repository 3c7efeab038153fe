"""Sham: an untied head all but zero behind a last norm that is huge, and logits so small that the loss looks flat.

Every prediction is what it was. A step of Adam blows the head up and does nothing to the norm; who trains what lies
before them, as LoRA does, gets no gradient to speak of. With `logits=1` even the likelihoods are the base's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.terms import Stage


@dataclass(frozen=True)
class FlatHead(Defense):
    """For models of GPT-2's shape. The head shrinks by both, the norm grows by what `factor` shrinks."""

    stage: ClassVar[Stage] = "posttrain"

    factor: float = 1e-6
    logits: float = 1e-6

    @torch.no_grad()
    def protect(self, model: Model, context: OwnerContext) -> Protected:
        network = context.build(tie_word_embeddings=False).network
        network.load_state_dict(model.network.state_dict())
        network.lm_head.weight.mul_(self.factor * self.logits)
        network.transformer.ln_f.weight.div_(self.factor)
        network.transformer.ln_f.bias.div_(self.factor)
        return Protected(Model(network, model.tokenizer))
