"""Rebalancing: norms are folded, layers equalised and cancelling units merged, then every weight is fine-tuned.

This undoes defenses that resist only by the size of their weights. The rewrites of `nftbench.methods.symmetries` keep
the outputs. The size of the logits is a further degree of freedom, which no accuracy shows. If the softmax is saturated
or flat for every input, the logits are scaled by powers of ten until it is neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from nftbench import Attack, AttackerContext, Knowledge, Model, Outcome, Prepared, Release, Task
from nftbench.methods import symmetries

ORDINARY = (0.001, 0.999)
"""The range of the mean entropy of an ordinary language model's predictions, relative to that of a uniform guess."""
DECADES = tuple(10.0**power for power in (0, *(sign * size for size in range(1, 9) for sign in (1, -1))))
"""The factors that are tried on the logits, in this order, until the entropy lies in that range."""


@dataclass(frozen=True)
class Rebalance(Attack):
    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"method"})

    def prepare(self, release: Release, context: AttackerContext) -> Prepared:
        network = symmetries.as_gpt2(release.model.network)
        symmetries.canonical(network)
        symmetries.scale_logits(network, sharpness(network))
        return Prepared(Model(network, release.model.tokenizer))

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(prepared.model, task)


@torch.no_grad()
def sharpness(network: PreTrainedModel) -> float:
    """The first factor on the logits that gives an ordinary mean entropy on random words; 1 if there is none."""
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
