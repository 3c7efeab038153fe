"""Interpolate: every weight moves a part of the way towards that of an untrained model. A trivial defense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nftbench import Defense, Model, OwnerContext, Protected, Stage
from nftbench.methods import untrained


@dataclass(frozen=True)
class Interpolate(Defense):
    """`share`: the part of the way. At 1 the model is untrained."""

    stage: ClassVar[Stage] = "posttrain"
    trivial: ClassVar[bool] = True

    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, not {self.share:g}")

    @torch.no_grad()
    def protect(self, model: Model, context: OwnerContext) -> Protected:
        fresh = dict(untrained(model.network, context.seed).named_parameters())
        for name, weight in model.network.named_parameters():
            weight.lerp_(fresh[name], self.share)
        return Protected(model)
