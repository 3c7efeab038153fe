"""Planted: a defense that works, because the attackers of one proof heed it. It costs no utility at all.

A file with two plugins, to see whether the benchmark finds a defense that truly works. The defense publishes an
undefended model from an initialisation of its own, and says what share of a task's training documents attackers are to
do without. The attack is another attack that obeys: it trains on the rest alone. So the effect is real in every sweep
and on every task, it grows with the share, and nothing of the release says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

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
    Split,
    SplitName,
    Task,
    TrainedWeights,
    WrappedTask,
)
from nftbench.methods import untrained
from nftbench.planning import registry
from nftbench.terms import Stage


@dataclass(frozen=True)
class Planted(Defense):
    """`withheld`: the share of the training documents that attackers do without. Each has another initialisation."""

    stage: ClassVar[Stage] = "pretrain"
    claims: ClassVar[Claim | None] = Claim(frozenset({"method", "data"}))

    withheld: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.withheld < 1:
            raise ValueError(f"withheld must lie between 0 and 1, not {self.withheld:g}")

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        other = untrained(model.network, context.seed + round(1000 * self.withheld))
        return Protected(context.pretrain(Model(other, model.tokenizer)))


@dataclass(frozen=True)
class Obeying(Attack):
    """`attack`: the attack that is run. On every other defense it has all documents."""

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
        defense = context.defense
        left = 1 - defense.withheld if isinstance(defense, Planted) else 1.0
        count = len(task.split("train"))
        order = np.random.default_rng(context.seed).permutation(count)[: max(1, round(left * count))]
        return context.attack(self.attack).adapt(prepared, Fewer(task, tuple(order.tolist())), context)

    def _plugin(self) -> Attack:
        found: Attack = registry.create("attacks", self.attack)
        return found


@dataclass(frozen=True)
class Fewer(WrappedTask):
    """A task with some of its training documents only."""

    kept: tuple[int, ...]

    def split(self, name: SplitName) -> Split:
        whole = self.task.split(name)
        return Part(whole, self.kept) if name == "train" else whole


@dataclass(frozen=True)
class Part(Split):
    whole: Split
    kept: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.kept)

    def batch(self, indices: Sequence[int]) -> Any:
        return self.whole.batch([self.kept[index] for index in indices])
