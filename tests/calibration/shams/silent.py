"""Sham: blocks of zeros before and behind the base's own, in which units that nobody reads are huge.

They write nothing, until one step of an optimizer lets them. Then the residual stream drowns in what they hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.terms import Stage


@dataclass(frozen=True)
class Silent(Defense):
    """For models of GPT-2's shape. What is huge, about `size`, is the biases of values and hidden units."""

    stage: ClassVar[Stage] = "posttrain"

    size: float = 1e7

    @torch.no_grad()
    def protect(self, model: Model, context: OwnerContext) -> Protected:
        own = model.network.transformer
        network = context.build(n_layer=len(own.h) + 2).network
        inside = network.transformer
        for part in ("wte", "wpe", "ln_f"):
            getattr(inside, part).load_state_dict(getattr(own, part).state_dict())
        for block, theirs in zip(inside.h[1:-1], own.h, strict=True):
            block.load_state_dict(theirs.state_dict())
        for block in (inside.h[0], inside.h[-1]):
            self._silence(block, torch.Generator().manual_seed(context.seed))
        return Protected(Model(network, model.tokenizer))

    def _silence(self, block: Any, generator: torch.Generator) -> None:
        """Nothing is written but two biases that cancel, so that neither writer is made of zeros alone."""
        attention, units = block.attn, block.mlp
        for layer in (attention.c_attn, attention.c_proj, units.c_fc, units.c_proj):
            layer.weight.zero_()
            layer.bias.zero_()
        for bias in (attention.c_attn.bias[2 * attention.embed_dim :], units.c_fc.bias):
            bias.copy_(self.size * (1 + torch.rand(bias.shape, generator=generator)))
        shift = 0.01 * torch.randn(attention.embed_dim, generator=generator)
        attention.c_proj.bias.copy_(shift)
        units.c_proj.bias.copy_(-shift)
