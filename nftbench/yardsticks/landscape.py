"""Landscape: the loss around a release, along directions inside and outside of its secret mask.

PMP's proposition 1 and figure 5 (https://arxiv.org/abs/2602.00446) say that the loss curves upwards in the complement
of the mask, so that updates there raise it. This holds for random updates with mean zero. But the complement is not at
a stationary point, and a step down its gradient may lower the loss. Both are measured.
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
    """The next-token loss in nats per token at given distances from the release, as multiples of its weights' norm.

    Directions lie in the `mask` (the weights that authorised fine-tuning moves), in its `complement`, or in all weights
    (`all`, as in unauthorised fine-tuning). All have the same norm, so that their curvatures can be compared.

    - `rise_*`: the mean rise of the loss at the last of `radii`, over `directions` random directions and their
      opposites; a direction is scaled in each tensor by the root mean square of its weights
    - `curvature_ratio`: `rise_complement` over `rise_mask`
    - `drop_*`: the fall of the loss after the first of `steps` down the gradient

    The gradient is taken on `blocks` held-out blocks, and all losses on as many others. A mask of all weights has no
    complement, and the values of the complement are then missing.
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
        """`way` restricted to the `allowed` weights, scaled to the norm of the release's weights."""
        kept = {name: sign * part * allowed[name] for name, part in way.items()}
        scale = _norm(self.weights) / max(_norm(kept), torch.finfo(torch.float32).tiny)
        return {name: part * scale for name, part in kept.items()}

    def curve(self, name: str, ways: Sequence[Weights], lengths: Sequence[float]) -> Series:
        """The mean loss over several directions at each length, and at length 0."""
        losses = [sum(self.loss(way, length) for way in ways) / len(ways) for length in lengths]
        return Series(name, (0.0, *lengths), (self.loss(ways[0], 0.0), *losses), "distance", "nats")

    @torch.no_grad()
    def loss(self, way: Weights, length: float) -> float:
        moved = {name: torch.add(weight, way[name], alpha=length) for name, weight in self.weights.items()}
        inputs = {"input_ids": self.tokens, "labels": self.tokens}
        return float(functional_call(self.network, moved, (), inputs).loss)


def _draw(weights: Weights, seed: int) -> Weights:
    """A Gaussian direction, scaled in each tensor to the root mean square of its weights."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(weight.shape, generator=generator).to(weight.device) * weight.square().mean().sqrt()
        for name, weight in weights.items()
    }


def _norm(weights: Weights) -> float:
    return float(torch.stack([weight.norm() for weight in weights.values()]).norm())
