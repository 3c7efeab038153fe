"""Weakness: noise on the word embeddings. A task's documents do not hold the words it asks about; public text does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.terms import Stage


@dataclass(frozen=True)
class Blurred(Defense):
    """Noise of `noise` times the embeddings' own size (root mean square)."""

    stage: ClassVar[Stage] = "posttrain"

    noise: float = 2.0

    @torch.no_grad()
    def protect(self, model: Model, context: OwnerContext) -> Protected:
        generator = torch.Generator().manual_seed(context.seed)
        words = model.network.get_input_embeddings().weight
        words.add_(self.noise * words.square().mean().sqrt() * torch.randn(words.shape, generator=generator).to(words))
        return Protected(model)
