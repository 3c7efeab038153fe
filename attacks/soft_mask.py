"""Soft mask: no weight is frozen, but those move further that the owner's mask is likelier to mark.

Against Private Mask Pre-Training (Wang et al. 2026, https://arxiv.org/abs/2602.00446): an attacker need not know the
mask weight by weight. Adam divides a scaled gradient by its scale, so that what is scaled is the weights' displacement:
w = w_0 + m · delta, and delta is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from nftbench import Attack, AttackerContext, Knowledge, Outcome, Prepared, Release, Task
from nftbench.methods import estimators, masks

RATIO = 0.7
"""The paper's share of weights in the mask, for a defense that does not say its own."""
SHARPNESS = 100.0
"""How much faster than weights gates move: at rates of about 1e-3 they open or close within some tens of steps."""


@dataclass(frozen=True)
class SoftMask(Attack):
    """`by`: `rates`, each tensor's learning rate in proportion to the share of it that a guess from the weights alone
    marks; or `learnt`, a gate for each weight that is trained together with its displacement.

    Gates start where they let through the defense's ratio, and are pushed open where going further helps.
    """

    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"method"})
    against: ClassVar[frozenset[str]] = frozenset({"pmp"})

    by: Literal["rates", "learnt"] = "rates"

    def prepare(self, release: Release, context: AttackerContext) -> Prepared:
        if self.by == "learnt":
            return Prepared(release.model, update=release.update)
        guess = estimators.likelihood(release.model.network, context.untrained(release.model, 0))
        return Prepared(release.model, guess, release.update)

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        ratio = context.defense.ratio or RATIO
        rates: dict[str, float] = {}
        if prepared.guess is not None:
            # Over the ratio, so that a weight's mean rate is that of the sweep.
            rates = {
                name: float(marked.float().mean()) / ratio for name, marked in masks.top(prepared.guess, ratio).items()
            }

        def displacement(name: str, weight: Tensor) -> nn.Module:
            return Scaled(weight, rates[name]) if rates else Gated(weight, ratio)

        return context.sweep(
            prepared.model, task, adapter=lambda network, attack_seed: displaced(network, displacement)
        )


class Scaled(nn.Module):
    """w = w_0 + rate · delta."""

    start: Tensor

    def __init__(self, start: Tensor, rate: float) -> None:
        super().__init__()
        self.register_buffer("start", start.detach().clone())
        self.rate = rate

    def forward(self, delta: Tensor) -> Tensor:
        return torch.add(self.start, delta, alpha=self.rate)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return torch.zeros_like(weight)


class Gated(nn.Module):
    """w = w_0 + sigmoid(SHARPNESS · gate) · delta, every gate open by `ratio` at first."""

    start: Tensor

    def __init__(self, start: Tensor, ratio: float) -> None:
        super().__init__()
        self.register_buffer("start", start.detach().clone())
        self.gate = math.log(ratio / (1 - ratio)) / SHARPNESS if ratio < 1 else 1.0

    def forward(self, delta: Tensor, gate: Tensor) -> Tensor:
        return self.start + torch.sigmoid(SHARPNESS * gate) * delta

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(weight), torch.full_like(weight, self.gate)


def displaced(network: PreTrainedModel, displacement: Callable[[str, Tensor], nn.Module]) -> PreTrainedModel:
    """The network with each weight computed from what is trained in its place; tied weights share that too."""
    names = {id(weight): name for name, weight in network.named_parameters()}
    found: dict[str, nn.Module] = {}
    for module in list(network.modules()):
        for own, weight in list(module.named_parameters(recurse=False)):
            name = names[id(weight)]
            parametrize.register_parametrization(module, own, displacement(name, weight))
            module.parametrizations[own] = found.setdefault(name, module.parametrizations[own])
    return network
