"""My defense: each weight matrix keeps its largest singular values alone. An example; no paper proposes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nftbench import Claim, Defense, Model, OwnerContext, Protected, Stage


@dataclass(frozen=True)
class MyDefense(Defense):
    """`keep`: share of the singular values that stay."""

    # "posttrain": protect is given the trained model. "pretrain": an untrained one, to train by context.pretrain.
    stage: ClassVar[Stage] = "posttrain"
    # It says that it withstands attackers who know how it works and have public text. None would claim nothing.
    claims: ClassVar[Claim | None] = Claim(frozenset({"method", "data"}))

    # A parameter with its default: my_defense[keep=0.5] is another row of the leaderboard.
    keep: float = 0.9

    @torch.no_grad()
    def protect(self, model: Model, context: OwnerContext) -> Protected:
        for weight in model.network.parameters():
            if weight.ndim == 2:
                left, values, right = torch.linalg.svd(weight, full_matrices=False)
                values[round(self.keep * len(values)) :] = 0
                weight.copy_(left * values @ right)
        # Weights and configuration are published, and no hooks. Draw what is random with the seed context.seed.
        return Protected(model)
