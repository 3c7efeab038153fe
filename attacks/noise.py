"""Noise, then full fine-tuning: Gaussian noise is added to every weight, in proportion to its tensor's size.

It moves the release away from points that a defense chose for their surroundings: a plateau, a trap, a sharp minimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nftbench import Attack, AttackerContext, Outcome, Prepared, Release, Task


@dataclass(frozen=True)
class Noise(Attack):
    """`scale`: the standard deviation of the noise, relative to the root mean square of the tensor."""

    scale: float = 0.1

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale must be above 0, not {self.scale:g}")

    @torch.no_grad()
    def prepare(self, release: Release, context: AttackerContext) -> Prepared:
        generator = torch.Generator().manual_seed(context.seed)
        for parameter in release.model.network.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(noise * parameter.square().mean().sqrt() * self.scale)
        return Prepared(release.model)

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(prepared.model, task)
