"""A pipeline of other attacks: the preparation that is best on validation, followed by the best way of fine-tuning.

The choice is made for each task, as AutoAttack takes the worst of its attacks for each example (Croce & Hein 2020,
arXiv:2003.01690). Unlike there, it is made before the test split is seen.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from nftbench import Attack, AttackerContext, Candidates, Knowledge, Model, Outcome, Prepared, Release, Task
from nftbench.methods import tuned


@dataclass(frozen=True)
class Pipeline(Attack):
    """`preparations`: specs of attacks whose `prepare` is tried if they apply to the defense; no preparation is tried,
    too. The best one after a single fine-tuning run of the longest duration is taken. `tuners`: specs of attacks that
    then run a whole sweep each."""

    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"method", "data"})

    preparations: tuple[str, ...] = ("heal", "redistill", "rebalance")
    tuners: tuple[str, ...] = ("full", "lora")

    def uses(self) -> tuple[str, ...]:
        return (*self.preparations, *self.tuners)

    def prepare(self, release: Release, context: AttackerContext) -> Prepared:
        known = [context.attack(spec) for spec in self.preparations]
        tried = [attack for attack in known if attack.applies(context.defense) is None]
        prepared = [attack.prepare(_copied(release), context) for attack in tried]
        untouched = Prepared(release.model, update=release.update)
        return dataclasses.replace(untouched, parts=(untouched, *prepared))

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        # Shorter runs choose wrongly, because the preparation that learns fastest is not always the one that ends best.
        steps = max(context.budget.durations)

        def looks() -> Candidates:
            yield prepared.model.network, 0, 0  # in case the single learning rate of these runs suits none of them
            for index, part in enumerate(prepared.parts):
                yield tuned(part.model.network, task, context, steps), index, steps

        part = prepared.parts[int(context.select(task, looks()).picked.learning_rate)]
        tuners = [context.attack(spec) for spec in self.tuners]
        found = [one.adapt(one.prepare(_copied(part), context), task, context) for one in tuners]
        return max(found, key=_standing)


def _copied(part: Prepared | Release) -> Release:
    """A copy for one attack, so that its changes to the model do not reach the next attack."""
    return Release(Model(copy.deepcopy(part.model.network), part.model.tokenizer), part.update)


def _standing(outcome: Outcome) -> tuple[float, float]:
    """A sort key that is larger for better outcomes: by validation score, then by validation loss."""
    found = outcome.validation
    assert found is not None
    return found.value * (1 if found.higher_is_better else -1), -(found.loss or 0.0)
