"""Along a difference: the release is moved by its difference from the base or a sibling, back or further, then tuned.

A difference of weights is an edit that can be scaled and taken back (Ilharco et al. 2023, arXiv:2212.04089, section 2).
From the base it is what the defense did; from a sibling it is where the run went. What it leaves alone was frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from nftbench import Attack, AttackerContext, Candidates, Knowledge, Model, Outcome, Prepared, Release, Task
from nftbench.methods import fitting, tuned, updates

AMOUNTS = {"base": (-0.25, -0.5, -0.75, -1.0), "sibling": (-1.0, -0.5, 1.0, 2.0, 4.0)}
"""Multiples of release - other to add: at -1 the other network is all that is left, above 0 the run goes on its way."""


@dataclass(frozen=True)
class Difference(Attack):
    """`to`: the undefended base, or a second checkpoint of the release's run. The amount is the best on validation
    after one run of the longest duration; in another architecture only what has the same name and shape is moved. The
    size of the difference is the guess of a secret mask; who fine-tunes under that mask is `mask_recovery`."""

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
            yield network, 0.0, 0  # where the one rate of these runs suits nothing
            for amount in (0.0, *AMOUNTS[self.to]) if difference else ():
                yield tuned(updates.added(network, difference, amount), task, context, steps), amount, steps

        amount = context.select(task, moved()).picked.learning_rate
        return context.sweep(Model(updates.added(network, difference, amount), prepared.model.tokenizer), task)

    def difference(self, network: nn.Module, context: AttackerContext) -> dict[str, Tensor]:
        """Release - other, of the parameters that fit and differ."""
        other = context.base if self.to == "base" else context.sibling
        own = dict(network.named_parameters())
        theirs = fitting(other.network.named_parameters(), network)
        found = {name: own[name].detach() - weight for name, weight in theirs.items()}
        return {name: weight for name, weight in found.items() if bool(weight.any())}
