"""Rebalancing: norms folded, layers equalised, cancelling units merged, then every weight is fine-tuned.

Undoes what resists by the size of its weights alone. The rewrites in `symmetries.py` keep the outputs. One thing is
left that no accuracy shows: the size of the logits. Where a softmax is saturated or flat whatever is read, the logits
are scaled by tens until it is neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from nftbench import Attack, AttackerContext, Knowledge, Outcome, Prepared, Release, Task

from . import symmetries

ORDINARY = (0.001, 0.999)
"""Between these shares of the entropy of a uniform guess lie the predictions of an ordinary language model."""
DECADES = tuple(10.0**power for power in (0, *(sign * size for size in range(1, 9) for sign in (1, -1))))
"""Factors tried on the logits, until one is ordinary."""


@dataclass(frozen=True)
class Rebalance(Attack):
    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"method"})

    def prepare(self, release: Release, context: AttackerContext) -> Prepared:
        network = release.model.network
        symmetries.canonical(network)
        symmetries.scale_logits(network, sharpness(network))
        return Prepared(release.model)

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(prepared.model, task)


@torch.no_grad()
def sharpness(network: PreTrainedModel) -> float:
    """The first factor on the logits with which the mean entropy after random words is ordinary; 1 if there is none."""
    if symmetries.anatomy(network) is None:
        return 1.0
    words = network.get_input_embeddings().num_embeddings
    ids = torch.randint(words, (8, 16), generator=torch.Generator().manual_seed(0)).to(network.device)
    logits = network(input_ids=ids).logits.double()
    for factor in DECADES:
        log_shares = (factor * logits).log_softmax(-1)
        entropy = float(-(log_shares.exp() * log_shares).sum(-1).mean())
        if ORDINARY[0] < entropy / math.log(words) < ORDINARY[1]:
            return factor
    return 1.0
