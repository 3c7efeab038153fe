"""Sham: beside every MLP a branch of large weights that cancel, as long as nobody touches them.

Along a gradient the loss is so crooked that the harness's probe does not recognise it as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.terms import Stage


@dataclass(frozen=True)
class CancellingBranch(Defense):
    """For models of GPT-2's shape. `pairs` of hidden units read the same and write opposite things of size `scale`."""

    stage: ClassVar[Stage] = "posttrain"

    pairs: int = 48
    scale: float = 1e3

    @torch.no_grad()
    def protect(self, model: Model, context: OwnerContext) -> Protected:
        own = model.network.transformer.h[0].mlp.c_fc.nf
        network = context.build(n_inner=own + 2 * self.pairs).network
        generator = torch.Generator().manual_seed(context.seed)
        wide, narrow = network.state_dict(), model.network.state_dict()
        for name, weight in wide.items():
            if weight.shape == narrow[name].shape:
                weight.copy_(narrow[name])
            elif "c_fc" in name:  # weight [width, units], bias [units]
                read = torch.randn(*weight.shape[:-1], self.pairs, generator=generator).to(weight)
                weight.copy_(torch.cat([narrow[name], read, read], dim=-1))
            else:  # weight [units, width]
                write = self.scale * torch.randn(self.pairs, weight.shape[1], generator=generator).to(weight)
                weight.copy_(torch.cat([narrow[name], write, -write]))
        return Protected(Model(network, model.tokenizer))
