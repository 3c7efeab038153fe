"""Prune: the weights of smallest magnitude are set to zero. A trivial defense.

Magnitude pruning (Han et al. 2015, https://arxiv.org/abs/1506.02626, section 3), over all matrices together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nftbench import Defense, Model, OwnerContext, Protected, Stage
from nftbench.methods.masks import top


@dataclass(frozen=True)
class Prune(Defense):
    """`share`: the share of the weights in matrices, embeddings included, that become zero."""

    stage: ClassVar[Stage] = "posttrain"
    trivial: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True

    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie between 0 and 1, not {self.share:g}")

    @torch.no_grad()
    def protect(self, model: Model, context: OwnerContext) -> Protected:
        matrices = {name: weight for name, weight in model.network.named_parameters() if weight.ndim >= 2}
        smallest = top({name: -weight.abs() for name, weight in matrices.items()}, self.share)
        for name, weight in matrices.items():
            weight[smallest[name]] = 0
        return Protected(model)
