"""Pruning, then full fine-tuning: the weights of smallest magnitude are set to zero, then all weights are trained.

Magnitude pruning (Han et al. 2015, https://arxiv.org/abs/1506.02626, section 3), over all tensors together or in each.
It removes what a defense hides in weights that the model hardly needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nftbench import Attack, AttackerContext, Outcome, Prepared, Release, Task
from nftbench.methods.masks import Scope, top


@dataclass(frozen=True)
class Prune(Attack):
    """`share`: the share of the weights in matrices, embeddings included, that are pruned. Norms and biases are kept.
    `scope`: whether the smallest weights are chosen over all tensors or in each."""

    share: float = 0.2
    scope: Scope = "global"

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie between 0 and 1, not {self.share:g}")

    @torch.no_grad()
    def prepare(self, release: Release, context: AttackerContext) -> Prepared:
        matrices = {name: weight for name, weight in release.model.network.named_parameters() if weight.ndim >= 2}
        smallest = top({name: -weight.abs() for name, weight in matrices.items()}, self.share, self.scope)
        for name, weight in matrices.items():
            weight[smallest[name]] = 0
        return Prepared(release.model)

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(prepared.model, task)
