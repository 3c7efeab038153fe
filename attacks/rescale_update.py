"""Rescaling an update: the base plus s times the released update, at the scale s that is best on validation.

Nothing is trained. The attack shows how much the scale alone changes the score on the update's own task. Trap² (Jang et
al. 2026, arXiv:2601.21898) makes updates that fail at other scales than 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nftbench import Adaptation, Attack, AttackerContext, Knowledge, NftbenchError, Outcome, Prepared, Task
from nftbench.methods import updates

SCALES = (1.0, *(tenths / 10 for tenths in range(1, 21) if tenths != 10))


@dataclass(frozen=True)
class RescaleUpdate(Attack):
    """Scale 1 is the release and counts as no step; every other scale counts as one step."""

    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"base"})
    adaptation: ClassVar[Adaptation] = "rescaling"
    against: ClassVar[frozenset[str]] = frozenset({"trap2"})

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        if prepared.update is None:
            raise NftbenchError("rescale_update: the release has no update beside it")
        weights, base = updates.dense(prepared.update), context.base.network
        return context.select(
            task, ((updates.added(base, weights, scale), scale, int(scale != 1.0)) for scale in SCALES)
        )
