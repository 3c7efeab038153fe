"""Random mask: pre-training updates a random share of the weights, and the others keep their initial values.

PMP compares its mask with this control (Private Mask Pre-Training, https://arxiv.org/abs/2602.00446, figure 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nftbench import Claim, Defense, Model, OwnerContext, Protected, Secret, Stage


@dataclass(frozen=True)
class RandomMask(Defense):
    """`ratio`: the share of the weights that are trained."""

    stage: ClassVar[Stage] = "pretrain"
    claims: ClassVar[Claim | None] = Claim()
    keeps_secret: ClassVar[bool] = True

    ratio: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must lie in (0, 1], not {self.ratio:g}")

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        generator = torch.Generator().manual_seed(context.seed)
        mask = {
            name: (torch.rand(parameter.shape, generator=generator) < self.ratio).to(parameter.device)
            for name, parameter in model.network.named_parameters()
        }
        return Protected(context.pretrain(model, mask=mask), Secret(mask))
