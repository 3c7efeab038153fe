"""Weakness: the last block adds one large constant, in which what the features say drowns.

What a norm leaves of them is `size` times smaller, and an optimizer that moves the constant by its learning rate does
not get it away in time. Whoever rescales features, draws the block anew, or has the base, does not care.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.terms import Stage


@dataclass(frozen=True)
class Drowned(Defense):
    """For models of GPT-2's shape."""

    stage: ClassVar[Stage] = "posttrain"

    size: float = 1e4

    @torch.no_grad()
    def protect(self, model: Model, context: OwnerContext) -> Protected:
        generator = torch.Generator().manual_seed(context.seed)
        constant = model.network.transformer.h[-1].mlp.c_proj.bias
        constant.add_(self.size * torch.randn(constant.shape, generator=generator).to(constant))
        return Protected(model)
