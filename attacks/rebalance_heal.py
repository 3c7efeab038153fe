"""Rebalancing and healing: weights get their ordinary size, pre-training is continued, then every weight is fine-tuned.

`heal` trains on text at one learning rate, which suits weights of ordinary size. A release with the same outputs can
have weights so small, or so large, that training at this rate destroys what it knows. `rebalance` undoes that first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from nftbench import Attack, AttackerContext, Knowledge, Model, Outcome, Prepared, Release, Task
from nftbench.methods import symmetries


@dataclass(frozen=True)
class RebalanceHeal(Attack):
    """For architectures that `rebalance` cannot rewrite this is `heal`."""

    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"method", "data"})

    def uses(self) -> tuple[str, ...]:
        return ("rebalance", "heal")

    def prepare(self, release: Release, context: AttackerContext) -> Prepared:
        network = symmetries.as_gpt2(release.model.network)
        center_embeddings(network, context.corpus.train.shape[1])
        rebalanced = context.attack("rebalance").prepare(Release(Model(network, release.model.tokenizer)), context)
        return context.attack("heal").prepare(Release(rebalanced.model), context)

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(prepared.model, task)


@torch.no_grad()
def center_embeddings(network: PreTrainedModel, length: int) -> None:
    """Remove two shifts of embeddings that no prediction shows: a large one would hide the embeddings' size.

    A vector that is added to all words can be subtracted from all positions. A number that is added to every entry of
    the words is subtracted by layer norms, and a tied head turns it into an equal shift of all logits. Medians find
    both in spite of rows that no text uses.

    Args:
        length: how many positions texts have. The later ones could hold anything.
    """
    found = symmetries.anatomy(network)
    if found is None:
        return
    if found.positions is not None:
        shift = found.positions[:length].double().median(0).values
        found.positions.copy_(found.positions.double() - shift)
        found.words.copy_(found.words.double() + shift)
    if found.centred and found.head is None:
        found.words.sub_(found.words.mean(1).median())
