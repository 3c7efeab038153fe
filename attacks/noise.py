"""Noise, then full fine-tuning: Gaussian noise on every weight, as large as a share of its tensor's own size.

It takes the release off any point that was chosen for what lies around it: a flat stretch, a trap, a sharp minimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nftbench import Attack, AttackerContext, Outcome, Prepared, Release, Task


@dataclass(frozen=True)
class Noise(Attack):
    """`scale`: standard deviation of the noise over the root mean square of the tensor."""

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
