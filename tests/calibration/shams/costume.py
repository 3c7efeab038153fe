"""Sham: huge matrices and tiny norms as GPT-BigCode, in which GPT-2's rewrites find none of its blocks.

The network computes what the base does: GPT-BigCode with keys and values for every head is GPT-2, with another order of
rows. Sizes are those of the sham `rescaled`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.terms import Stage


@dataclass(frozen=True)
class Costume(Defense):
    """For models of GPT-2's shape. `factor`: of the matrices, as in `rescaled`."""

    stage: ClassVar[Stage] = "posttrain"

    factor: float = 1e4

    @torch.no_grad()
    def protect(self, model: Model, context: OwnerContext) -> Protected:
        config = model.network.config
        network = context.build(
            model_type="gpt_bigcode",
            multi_query=False,
            layer_norm_epsilon=config.layer_norm_epsilon * self.factor**2,
        ).network
        by_head = torch.arange(3 * config.n_embd).view(3, config.n_head, -1).transpose(0, 1).flatten()
        weights = model.network.state_dict()
        for name, weight in weights.items():
            turned = weight.mT if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else weight
            weights[name] = turned[by_head] if "c_attn" in name else turned
        network.load_state_dict(weights)
        for name, weight in network.transformer.named_parameters():
            if not name.endswith(("c_attn.bias", "c_fc.bias")):
                weight.mul_(1 / self.factor if ".ln_" in f".{name}" else self.factor)
        return Protected(Model(network, model.tokenizer))
