"""Noise: Gaussian noise on every weight, in proportion to the size of its tensor's weights. A trivial defense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nftbench import Defense, Model, OwnerContext, Protected, Stage


@dataclass(frozen=True)
class Noise(Defense):
    """`scale`: the standard deviation of the noise, relative to the root mean square of the tensor."""

    stage: ClassVar[Stage] = "posttrain"
    trivial: ClassVar[bool] = True

    scale: float = 0.1

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale must be above 0, not {self.scale:g}")

    @torch.no_grad()
    def protect(self, model: Model, context: OwnerContext) -> Protected:
        generator = torch.Generator().manual_seed(context.seed)
        for parameter in model.network.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(noise * parameter.square().mean().sqrt() * self.scale)
        return Protected(model)
