"""Kick and settle: a few large steps out of the region that a defense shaped, then ordinary steps on task and text.

Small steps cannot cross a barrier around the release, and large ones cannot learn the task behind it. The text wins
back what the kick destroys. "One Step to the Side" (Zloczower et al. 2026, https://arxiv.org/abs/2605.14605) breaks 15
defenses with an attack of this name. There is no code, and only its abstract was available to us: the two phases are
our reading of the name, and all numbers are ours.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch

from nftbench import Attack, AttackerContext, Knowledge, Model, Outcome, Prepared, Task
from nftbench.methods import shuffled
from nftbench.methods.with_text import WithText

BLOCKS = 512
"""Blocks of public text that the second phase repeats."""


@dataclass(frozen=True)
class KickSettle(Attack):
    """`size`: the kick's learning rate, as a multiple of the budget's highest AdamW rate. `kick`: its steps, as a share
    of the longest duration. `text`: the weight of public text in the loss of both phases."""

    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"data"})

    size: float = 3.0
    kick: float = 0.1
    text: float = 0.2

    def __post_init__(self) -> None:
        if self.size <= 0 or not 0 < self.kick <= 1 or not 0 < self.text < 1:
            raise ValueError("size must be above 0, kick in (0, 1], text between 0 and 1")

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        budget = context.budget
        blocks = itertools.islice(context.text(prepared.model, budget.batch), -(-BLOCKS // budget.batch))
        mixed = WithText(task, torch.cat(list(blocks)), self.text)
        kicked = copy.deepcopy(prepared.model.network)
        rows, order = mixed.split("train"), shuffled(len(task.split("train")), budget.batch, context.seed)
        context.train(
            kicked,
            lambda network, step: mixed.loss(network, rows.batch(next(order))),
            steps=max(1, round(self.kick * max(budget.durations))),
            learning_rate=self.size * max(budget.learning_rates["adamw"]),
        )
        finite = all(bool(weight.isfinite().all()) for weight in kicked.parameters())
        return context.sweep(Model(kicked, prepared.model.tokenizer) if finite else prepared.model, mixed)
