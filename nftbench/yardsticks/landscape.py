"""Landscape: the loss around a release, along directions inside its secret mask and outside.

PMP's proposition 1 and figure 5 (https://arxiv.org/abs/2602.00446): around the released point the complement is said to
curve upwards, so that an update there raises the loss. That holds of updates whose mean is zero. The complement is not
at a stationary point, and a step down its own gradient may well lower the loss: both are measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nftbench import Defense, Inspection, Reading, Series, Yardstick
from nftbench.methods import gradients

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Landscape(Yardstick):
    """The next-token loss, in nats, at distances from the release that are shares of its weights' norm.

    Directions are restricted to the `mask` (what authorised fine-tuning moves), to its `complement`, or go anywhere
    (`all`, what unauthorised fine-tuning moves), and are of one length, so that curvatures compare by weight.

    `rise_*`: mean change of the loss over `directions` random ones and their opposites at the last of `radii`; each
    weight's share is drawn in proportion to its tensor's root mean square. `curvature_ratio`: complement over mask.
    `drop_*`: how far the loss falls on the first of `steps` down the gradient, which is of `blocks` held-out blocks;
    all losses are of as many others. Without a complement (ratio 1) its values are missing.
    """

    blocks: int = 64
    directions: int = 4
    radii: tuple[float, ...] = (0.025, 0.05, 0.1, 0.2)
    steps: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03)

    def applies(self, defense: Defense) -> str | None:
        return None if defense.keeps_secret else "the defense keeps no secret mask"

    def measure(self, inspection: Inspection) -> Reading:
        assert inspection.secret is not None  # applies() saw to it
        network = inspection.release.network
        weights = {name: weight.detach() for name, weight in network.named_parameters()}
        mask = {name: inspection.secret.mask[name].to(weight.device) for name, weight in weights.items()}
        told, scored = inspection.corpus.heldout[: 2 * self.blocks].to(network.device).chunk(2)
        around = _Surroundings(network, weights, scored)
        gradient = gradients(network, told)
        draws = [_draw(weights, inspection.seed + number) for number in range(self.directions)]
        values: dict[str, float] = {}
        curves: list[Series] = []
        for area, allowed in {
            "mask": mask,
            "complement": {name: ~marked for name, marked in mask.items()},
            "all": {name: torch.ones_like(marked) for name, marked in mask.items()},
        }.items():
            if not any(bool(marked.any()) for marked in allowed.values()):
                continue
            ways = [around.direction(draw, allowed, sign) for draw in draws for sign in (1.0, -1.0)]
            down = around.direction(gradient, allowed, -1.0)
            rise = around.curve(f"loss along random directions, {area}", ways, self.radii)
            drop = around.curve(f"loss down the gradient, {area}", [down], self.steps)
            values |= {f"rise_{area}": rise.y[-1] - rise.y[0], f"drop_{area}": drop.y[0] - drop.y[1]}
            curves += [rise, drop]
        if "rise_complement" in values:
            values["curvature_ratio"] = values["rise_complement"] / values["rise_mask"]
        return Reading(values, tuple(curves))


@dataclass(frozen=True)
class _Surroundings:
    """The loss of `network` on `tokens` [count, block] around its `weights`."""

    network: nn.Module
    weights: Weights
    tokens: Tensor

    def direction(self, way: Weights, allowed: Mapping[str, Tensor], sign: float) -> Weights:
        """`way` where it is allowed to go, zero elsewhere, as long as the weights' own norm."""
        kept = {name: sign * part * allowed[name] for name, part in way.items()}
        scale = _norm(self.weights) / max(_norm(kept), torch.finfo(torch.float32).tiny)
        return {name: part * scale for name, part in kept.items()}

    def curve(self, name: str, ways: Sequence[Weights], lengths: Sequence[float]) -> Series:
        """The mean loss over several ways at each length, and at none."""
        losses = [sum(self.loss(way, length) for way in ways) / len(ways) for length in lengths]
        return Series(name, (0.0, *lengths), (self.loss(ways[0], 0.0), *losses), "distance", "nats")

    @torch.no_grad()
    def loss(self, way: Weights, length: float) -> float:
        moved = {name: torch.add(weight, way[name], alpha=length) for name, weight in self.weights.items()}
        inputs = {"input_ids": self.tokens, "labels": self.tokens}
        return float(functional_call(self.network, moved, (), inputs).loss)


def _draw(weights: Weights, seed: int) -> Weights:
    """Gaussian numbers, each tensor's as large as its weights are."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(weight.shape, generator=generator).to(weight.device) * weight.square().mean().sqrt()
        for name, weight in weights.items()
    }


def _norm(weights: Weights) -> float:
    return float(torch.stack([weight.norm() for weight in weights.values()]).norm())
