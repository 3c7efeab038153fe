"""Planted: a defense that works, because the attackers of one proof heed it. It costs no utility at all.

A file with two plugins, to see whether the benchmark finds a defense that truly works. The defense publishes an
undefended model from an initialisation of its own, and says what share of their optimizer steps attackers are to do
without. The attack is another attack that obeys, in every run of its sweep. So the effect is real on every task and
under every attack, it grows with the share, and nothing of the release shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

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


@dataclass(frozen=True)
class Planted(Defense):
    """`withheld`: the share of their steps that attackers do without. Each strength has another initialisation."""

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
    """`attack`: the attack that is run. On every other defense it has all its steps."""

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
        # A description of the defense, with its parameters and without its class.
        withheld = getattr(context.defense, "withheld", None)
        heeding: Any = context if withheld is None else Hurried(context, 1 - withheld)
        return context.attack(self.attack).adapt(prepared, task, heeding)

    def _plugin(self) -> Attack:
        found: Attack = registry.create("attacks", self.attack)
        return found


@dataclass(frozen=True)
class Hurried:
    """An attacker's context in which every run of a sweep has this share of its steps."""

    context: AttackerContext
    share: float

    def sweep(self, *inputs: Any, **settings: Any) -> Outcome:
        budget = self.context.budget
        durations = sorted({max(1, round(self.share * steps)) for steps in budget.durations if steps})
        warmup = min(budget.warmup, durations[-1] // 2)
        return self.context.sweep(*inputs, **{**settings, "durations": tuple(durations), "warmup": warmup})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.context, name)
