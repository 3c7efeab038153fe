"""Pruning, then full fine-tuning: the weights that are smallest by magnitude become zero once and move again after it.

Magnitude pruning after Han et al. 2015, https://arxiv.org/abs/1506.02626, section 3; over all tensors at once or in
each. What a defense hides in weights that the model hardly needs goes with them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nftbench import Attack, AttackerContext, Outcome, Prepared, Release, Task
from nftbench.methods.masks import Scope, top


@dataclass(frozen=True)
class Prune(Attack):
    """`share`: of the weights in matrices, embeddings among them; norms and biases stay."""

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
