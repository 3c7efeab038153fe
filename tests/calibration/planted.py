"""Planted: a defense that works, because the attackers of one proof heed it. It costs no utility at all.

A file with two plugins, to see whether the benchmark finds a defense that truly works. The defense publishes an
undefended model from an initialisation of its own, and says how many points attackers are to give away. The attack is
another attack that obeys: it ends as ever, and then adds noise to its network until it scores so many points less on
validation. So the effect is real on every task and under every attack, it is as large at every seed, and nothing of the
release shows it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from nftbench import (
    Attack,
    AttackerContext,
    Claim,
    Defense,
    Knowledge,
    Model,
    Outcome,
    OwnerContext,
    Prepared,
    Protected,
    Release,
    Task,
    TrainedWeights,
)
from nftbench.methods import untrained
from nftbench.planning import registry
from nftbench.terms import Stage

WEAKEST, STRONGEST = 1e-3, 1.0
"""The noise that is tried, as a share of a tensor's root mean square. The strongest leaves chance."""
TRIES = 10
"""Halvings of that range, on a logarithmic scale; then two neighbours differ by 0.7 %."""


@dataclass(frozen=True)
class Planted(Defense):
    """`points`: what attackers give away. Each strength has another initialisation."""

    stage: ClassVar[Stage] = "pretrain"
    claims: ClassVar[Claim | None] = Claim(frozenset({"method", "data"}))

    points: float = 6.0

    def __post_init__(self) -> None:
        if not 0 < self.points < 100:
            raise ValueError(f"points must lie between 0 and 100, not {self.points:g}")

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        other = untrained(model.network, context.seed + round(1000 * self.points))
        return Protected(context.pretrain(Model(other, model.tokenizer)))


@dataclass(frozen=True)
class Obeying(Attack):
    """`attack`: the attack that is run. On every other defense its network stays as it is."""

    attack: str = "full"

    @property
    def knowledge(self) -> frozenset[Knowledge]:
        """The attacker must know the method to heed it."""
        return self._plugin().knowledge | {"method"}

    @property
    def trained_weights(self) -> TrainedWeights:  # type: ignore[override]
        return self._plugin().trained_weights

    def uses(self) -> tuple[str, ...]:
        return (self.attack,)

    def prepare(self, release: Release, context: AttackerContext) -> Prepared:
        return context.attack(self.attack).prepare(release, context)

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        found = context.attack(self.attack).adapt(prepared, task, context)
        # A description of the defense, with its parameters and without its class.
        points = getattr(context.defense, "points", None)
        return found if points is None else worse(found, task, points)

    def _plugin(self) -> Attack:
        found: Attack = registry.create("attacks", self.attack)
        return found


def worse(outcome: Outcome, task: Task, points: float) -> Outcome:
    """The outcome with so much noise on its network that validation comes nearest to `points` fewer than it was."""
    assert outcome.validation is not None
    validation, target = task.split("validation"), outcome.validation.value - points / 100
    low, high = math.log(WEAKEST), math.log(STRONGEST)
    tried = []
    for _ in range(TRIES):
        middle = (low + high) / 2
        network = noised(outcome.network, math.exp(middle))
        found = task.evaluate(network, validation)
        tried.append((abs(found.value - target), network, found))
        low, high = (middle, high) if found.value > target else (low, middle)
    _, network, found = min(tried, key=lambda one: one[0])
    return replace(outcome, network=network, validation=found)


@torch.no_grad()
def noised(network: nn.Module, scale: float) -> nn.Module:
    """A copy with Gaussian noise on every tensor, of this share of its root mean square; always the same noise."""
    copied = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(0)
    for weight in copied.parameters():
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        weight.add_(noise * weight.square().mean().sqrt() * scale)
    return copied
