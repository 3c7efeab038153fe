"""Along a difference: the release is moved towards another model or away from it, and then fine-tuned.

The other model is the undefended base or a sibling, which is a second checkpoint of the release's run. A difference of
weights is an edit that can be scaled and undone (Ilharco et al. 2023, arXiv:2212.04089, section 2). The difference from
the base is what the defense did. The difference from a sibling is the direction of the run. Weights without a
difference were frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from nftbench import Attack, AttackerContext, Candidates, Knowledge, Model, Outcome, Prepared, Release, Task
from nftbench.methods import fitting, tuned, updates

AMOUNTS = {"base": (-0.25, -0.5, -0.75, -1.0), "sibling": (-1.0, -0.5, 1.0, 2.0, 4.0)}
"""The multiples of `release - other` that are added to the release. At -1 the result is the other model; above 0 it
lies beyond the release."""


@dataclass(frozen=True)
class Difference(Attack):
    """`to`: the other model. Each multiple is tried with a fine-tuning run of the longest duration, and the one that is
    best on validation is used. If the other model has another architecture, only parameters of equal name and shape are
    moved. The size of the difference also serves as a guess of the secret mask (`mask_recovery` fine-tunes under such a
    guess)."""

    to: Literal["base", "sibling"] = "base"

    @property
    def knowledge(self) -> frozenset[Knowledge]:
        return frozenset({self.to})

    def prepare(self, release: Release, context: AttackerContext) -> Prepared:
        network = release.model.network
        nothing = {name: torch.zeros_like(weight) for name, weight in network.named_parameters()}
        moved = {name: weight.abs() for name, weight in self.difference(network, context).items()}
        return Prepared(release.model, guess={**nothing, **moved}, update=release.update)

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        network, steps = prepared.model.network, max(context.budget.durations)
        difference = self.difference(network, context)

        def moved() -> Candidates:
            yield network, 0.0, 0  # in case the single learning rate of these runs suits none of them
            for amount in (0.0, *AMOUNTS[self.to]) if difference else ():
                yield tuned(updates.added(network, difference, amount), task, context, steps), amount, steps

        amount = context.select(task, moved()).picked.learning_rate
        return context.sweep(Model(updates.added(network, difference, amount), prepared.model.tokenizer), task)

    def difference(self, network: nn.Module, context: AttackerContext) -> dict[str, Tensor]:
        """`release - other`, for the parameters that exist in both with the same shape and that differ."""
        other = context.base if self.to == "base" else context.sibling
        own = dict(network.named_parameters())
        theirs = fitting(other.network.named_parameters(), network)
        found = {name: own[name].detach() - weight for name, weight in theirs.items()}
        return {name: weight for name, weight in found.items() if bool(weight.any())}
