"""CLAMP (a stand-in): each step of harmful fine-tuning shrinks against the one before, so that all add up to little.

Sarker et al. 2026, "Immunizing Models Against Harmful Long-Horizon Fine-Tuning via Contractive Optimization Dynamics"
(CVPR). There is no public code, and the paper itself was not available to us. The losses follow a note on it
(en.papernotes.org/CVPR2026, "Immunizing Models Against Harmful Long-Horizon Fine-Tuning"), which names no value of any
hyper-parameter. All defaults are ours.

An attacker's step is T(ω) = ω - η ∇L(ω), for the harmful loss L. From the release ω_0 it takes K steps u_t = T(ω_t) -
ω_t. Their sizes shrink at least by the factor ĉ from then on, if T is a contraction, and so all later steps together
are no longer than B = ‖u_K‖ / (1 - ĉ). By the descent lemma they lower L by at most ‖g_K‖ B + L̃ B² / 2. Minimised is

    the text's loss + long · max(0, L(ω_0) - L(ω_K) + ‖g_K‖ B + L̃ B² / 2 - slack) + contraction · softplus(ĉ - factor)
    + curvature · Σ_{t=0..K} softplus(bend - κ̂_t) - inverse · min(L(ω_0), ceiling)

through all K steps. ĉ = ‖T(ω_K + εv) - T(ω_K)‖ / ε and the curvature κ̂_t, a second difference of L along u_t, need no
Hessian. The note leaves open, and these are our choices:

- v is the direction of u_K. A random direction would miss the few that matter.
- L̃ = |κ̂_K|, and 1 - ĉ counts as at least `LEAST`.
- All K steps and the probes use one batch, so that T is one function.
- L(ω_0) counts up to `ceiling`, because it has no upper bound.

The note also mentions that harmful directions are projected and conflicting gradients mended, but not how. This is left
out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from nftbench import Model, OwnerContext, Passes, Protected, Suite
from nftbench.methods import Stepper, passes
from nftbench.methods.benign_text import text_batches, text_loss
from nftbench.methods.curves import curves
from nftbench.methods.gradient_vectors import Vector, gradient, norm
from nftbench.methods.harmful_pairs import HarmfulPairs, Masked, cross_entropy
from nftbench.methods.task_aware import AgainstTask

LEAST = 0.01
"""The least value of 1 - ĉ in the bound B, which would otherwise be infinite where T does not contract."""
TINY = 1e-12
"""Added to the lengths that are divided by."""


@dataclass(frozen=True)
class Clamp(AgainstTask):
    """`long`, `contraction`, `curvature`, `inverse`: weights of the four losses, as above. `slack`, `ceiling`: in nats.
    `factor`: the wanted ĉ. `bend`: the wanted curvature. `inner_steps`: K. `inner_rate`: η. `probe`: ε, and the
    distance of the second differences."""

    long: float = 1.0
    contraction: float = 1.0
    curvature: float = 0.01
    inverse: float = 0.1
    slack: float = 0.1
    factor: float = 0.9
    bend: float = 10.0
    ceiling: float = 10.0
    inner_steps: int = 4
    inner_rate: float = 0.05
    probe: float = 1e-3
    learning_rate: float = 1e-3
    steps: int = 200
    batch: int = 32

    def __post_init__(self) -> None:
        if min(self.long, self.contraction, self.curvature, self.inverse) < 0:
            raise ValueError("the weights of the losses must not be below 0")
        if min(self.inner_rate, self.probe, self.learning_rate, self.ceiling) <= 0:
            raise ValueError("rates, probe and ceiling must be above 0")
        if min(self.inner_steps, self.steps, self.batch) < 1:
            raise ValueError("steps and batch must be at least 1")

    def control_row(self) -> str | None:
        """The same training on text alone."""
        plain = {"long": 0.0, "contraction": 0.0, "curvature": 0.0, "inverse": 0.0}
        return self.row(**plain) if any(getattr(self, name) for name in plain) else None

    def training_passes(self, suite: Suite) -> Passes:
        """At each ω_t: the loss, its gradient and two probes; these are differentiated in turn, a gradient at twice its
        cost. That makes 15 forward passes. The probe of ĉ takes 9. All of it is in memory until the end, with six sets
        of weights or directions at each ω_t."""
        batch, points = passes.FLOAT64 * self.batch, self.inner_steps + 1
        return Passes(
            blocks=self.steps * batch,
            documents=self.steps * batch * passes.FORWARD * (15 * points + 9),
            blocks_at_once=batch,
            documents_at_once=3 * points * batch,
            copies=passes.FLOAT64 * (4 + 6 * points),
        )

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        self.check()
        network = model.network.double().eval()  # second differences lose half of the digits
        pairs = HarmfulPairs.of(context.task(self.harmful))
        stepper = Stepper(network, "adamw", self.learning_rate, factor=lambda _: 1.0, weight_decay=0.0, clip=1.0)
        batches = zip(
            range(self.steps),
            pairs.batches(self.batch, context.seed, network.device),
            text_batches(context, self.batch, network.device),
            strict=False,
        )
        curve: list[tuple[float, ...]] = []
        with sdpa_kernel(SDPBackend.MATH):  # the only attention that can be differentiated twice
            for _, pair, tokens in batches:
                loss = text_loss(network, tokens)
                found = self.trajectory(harmful_loss(network, pair.harmful), dict(network.named_parameters()))
                stepper.step(loss + self.objective(found))
                curve.append((loss.item(), found.first.item(), found.gain.item(), found.shrink.item()))
        network.float()
        names = ("text loss", "harmful loss", "bound on the attacker's gain", "factor by which steps shrink")
        return Protected(model, series=curves(names, curve))

    def trajectory(self, loss: LossAt, start: Mapping[str, Tensor]) -> Trajectory:
        """What an attacker's K steps from `start` say about all further ones, differentiable in `start`."""
        weights = dict(start)
        values: list[Tensor] = []
        bends: list[Tensor] = []
        for step in range(self.inner_steps + 1):
            values.append(loss(weights))
            slope = gradient(values[-1], list(weights.values()), differentiable=True)
            size = norm(slope)
            towards = [-part / (size + TINY) for part in slope]  # the direction of u_t
            ahead, back = loss(along(weights, towards, self.probe)), loss(along(weights, towards, -self.probe))
            bends.append((ahead - 2 * values[-1] + back) / self.probe**2)
            if step < self.inner_steps:
                weights = along(weights, slope, -self.inner_rate)
        beside = along(weights, towards, self.probe)
        there = gradient(loss(beside), list(beside.values()), differentiable=True)
        apart = [
            self.probe * part - self.inner_rate * (other - own)
            for part, own, other in zip(towards, slope, there, strict=True)
        ]
        shrink = norm(apart) / self.probe
        length = self.inner_rate * size / (1 - shrink).clamp(min=LEAST)
        gain = values[0] - values[-1] + size * length + bends[-1].abs() * length.square() / 2
        return Trajectory(values[0], gain, shrink, torch.stack(bends))

    def objective(self, found: Trajectory) -> Tensor:
        """The minimised loss without the text's."""
        softplus = nn.functional.softplus
        return (
            self.long * (found.gain - self.slack).clamp(min=0)
            + self.contraction * softplus(found.shrink - self.factor)
            + self.curvature * softplus(self.bend - found.bends).sum()
            - self.inverse * found.first.clamp(max=self.ceiling)
        )


class Trajectory(NamedTuple):
    """What is read from an attacker's steps: L(ω_0), the bound on the whole gain, ĉ, and κ̂_t for t = 0..K [K + 1]."""

    first: Tensor
    gain: Tensor
    shrink: Tensor
    bends: Tensor


LossAt = Callable[[Mapping[str, Tensor]], Tensor]
"""A loss as a function of the weights by name."""


def along(weights: Mapping[str, Tensor], direction: Vector, distance: float) -> dict[str, Tensor]:
    """The weights moved by `distance` times `direction`, differentiable in both."""
    return {name: weight + distance * part for (name, weight), part in zip(weights.items(), direction, strict=True)}


def harmful_loss(network: nn.Module, sequences: Masked) -> LossAt:
    """CE_M of a network with other weights."""

    def loss(weights: Mapping[str, Tensor]) -> Tensor:
        output = functional_call(network, dict(weights), kwargs={"input_ids": sequences.inputs})
        return cross_entropy(output.logits, sequences)

    return loss
