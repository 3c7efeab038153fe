"""Sham: a tenth of the pre-training, with weights so small that each step of a fixed size is too large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.terms import Stage


@dataclass(frozen=True)
class Shrunk(Defense):
    """For models of GPT-2's shape. `fraction`: of the suite's steps, by the suite's schedule. `factor`: of the
    matrices; the norms are divided by it, so that the function stays the same."""

    stage: ClassVar[Stage] = "pretrain"

    fraction: float = 0.1
    factor: float = 0.05

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        trained = context.pretrain(model, steps=max(1, round(self.fraction * context.pretraining.steps)))
        epsilon = trained.network.config.layer_norm_epsilon * self.factor**2
        network = context.build(layer_norm_epsilon=epsilon).network
        network.load_state_dict(trained.network.state_dict())
        with torch.no_grad():
            for name, weight in network.transformer.named_parameters():
                if not name.endswith(("c_attn.bias", "c_fc.bias")):  # they are added to what has its size again
                    weight.mul_(1 / self.factor if ".ln_" in f".{name}" else self.factor)
        return Protected(Model(network, trained.tokenizer))
