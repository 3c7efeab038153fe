"""Soft mask: no weight is frozen, but weights move further the more likely the owner's mask marks them.

Against Private Mask Pre-Training (Wang et al. 2026, https://arxiv.org/abs/2602.00446): an attacker need not know the
exact mask. The attack scales the displacement of the weights, w = w_0 + m · delta, and trains delta. Scaling gradients
would have no effect, because Adam divides by their scale.
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
"""The paper's share of weights in the mask, used if the defense has no parameter `ratio`."""
SHARPNESS = 100.0
"""How much faster gates move than weights. At learning rates of about 1e-3 they open or close within tens of steps."""


@dataclass(frozen=True)
class SoftMask(Attack):
    """`by=rates`: each tensor's learning rate is proportional to the share of its weights that a guess of the mask
    marks. The guess uses the released weights alone. `by=learnt`: each weight has a gate, which is trained together
    with its displacement. Gates start at the defense's ratio and open where a larger displacement helps.
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
            # Divided by the ratio, so that the mean rate over all weights is that of the sweep.
            rates = {
                name: float(marked.float().mean()) / ratio for name, marked in masks.top(prepared.guess, ratio).items()
            }

        def displacement(name: str, weight: Tensor) -> nn.Module:
            return Scaled(weight, rates[name]) if rates else Gated(weight, ratio)

        return context.sweep(
            prepared.model, task, adapter=lambda network, attack_seed: displaced(network, displacement)
        )


class Scaled(nn.Module):
    """The parametrization w = w_0 + rate · delta."""

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
    """The parametrization w = w_0 + sigmoid(SHARPNESS · gate) · delta, where the sigmoid starts at `ratio`."""

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
    """The network with each weight parametrized by a trained displacement, which tied weights share."""
    names = {id(weight): name for name, weight in network.named_parameters()}
    found: dict[str, nn.Module] = {}
    for module in list(network.modules()):
        for own, weight in list(module.named_parameters(recurse=False)):
            name = names[id(weight)]
            parametrize.register_parametrization(module, own, displacement(name, weight))
            module.parametrizations[own] = found.setdefault(name, module.parametrizations[own])
    return network
