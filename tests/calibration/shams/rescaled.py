"""Sham: all matrices ten thousand times as large, and norms that make up for it.

Embeddings and whatever writes to the residual stream grow by `factor`, and the last norm, before the tied head, shrinks
by it, while the norms' epsilon grows by its square; what reads the stream grows by `factor`, and the norms before it
shrink. A step of Adam is then nothing to the matrices and an explosion to the norms. One huge embedding, of the padding
that no text contains, misleads whoever takes the mean size of embeddings for their size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.terms import Stage


@dataclass(frozen=True)
class Rescaled(Defense):
    """For models of GPT-2's shape. `padding`: the size of the padding's embedding; 0 leaves it as it is."""

    stage: ClassVar[Stage] = "posttrain"

    factor: float = 1e4
    padding: float = 0.0

    @torch.no_grad()
    def protect(self, model: Model, context: OwnerContext) -> Protected:
        epsilon = model.network.config.layer_norm_epsilon * self.factor**2
        network = context.build(layer_norm_epsilon=epsilon, tie_word_embeddings=self.padding == 0).network
        network.load_state_dict(model.network.state_dict())
        for name, weight in network.transformer.named_parameters():
            if not name.endswith(("c_attn.bias", "c_fc.bias")):  # they are added to what has its size again
                weight.mul_(1 / self.factor if ".ln_" in f".{name}" else self.factor)
        if self.padding:
            network.lm_head.weight.mul_(self.factor)
            network.transformer.wte.weight[model.tokenizer.pad_token_id] = self.padding
        return Protected(Model(network, model.tokenizer))
