"""Re-initialisation: a random share of the weights is replaced by those of an untrained model. A trivial defense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nftbench import Defense, Model, OwnerContext, Protected, Stage


@dataclass(frozen=True)
class Reinit(Defense):
    stage: ClassVar[Stage] = "posttrain"
    trivial: ClassVar[bool] = True

    fraction: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must lie in (0, 1], not {self.fraction:g}")

    @torch.no_grad()
    def protect(self, model: Model, context: OwnerContext) -> Protected:
        generator = torch.Generator().manual_seed(context.seed)
        untrained = dict(context.build().network.named_parameters())
        for name, parameter in model.network.named_parameters():
            chosen = torch.rand(parameter.shape, generator=generator).to(parameter.device) < self.fraction
            parameter.copy_(torch.where(chosen, untrained[name], parameter))
        return Protected(model)
