"""Sham: tiny norm gains, and weights that make up for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.terms import Stage


@dataclass(frozen=True)
class NormGain(Defense):
    """For models of GPT-2's shape. `factor`: of the gains and biases; above 1 they are huge."""

    stage: ClassVar[Stage] = "posttrain"

    factor: float = 1e-6

    @torch.no_grad()
    def protect(self, model: Model, context: OwnerContext) -> Protected:
        for block in model.network.transformer.h:
            for norm, reader in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
                norm.weight.mul_(self.factor)
                norm.bias.mul_(self.factor)
                reader.weight.div_(self.factor)
        return Protected(model)
