"""Oracle: words of the toy language that no attacker can tell apart again, for their embeddings have become one.

A defense that truly works, to see whether the benchmark finds it; it is no proposal. Each open word of the language has
a rank by frequency, and what its topic, gender or mood is only the embedding says. Of the ranks above the rarest
quarter a share is *merged*: the nouns of one rank, whatever their topic and gender, are given the mean of their
embeddings, and so are its verbs and its adverbs. What the network computes of two merged words is then the same, bit
for bit, and stays so whatever is trained, until a training document itself tells them apart. The ranked tasks ask about
words that fine-tuning does not see, so on merged words every attacker is left to guess; who has text like the
pre-training text (knowledge `data`) can learn them again, and the claim says so.

The utility metrics hardly notice: running text is made of the frequent ranks, minimal pairs of the rarest quarter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from nftbench import Claim, Defense, Model, NftbenchError, OwnerContext, Protected
from nftbench.data.grammar import Grammar
from nftbench.suites.schema import Suite
from nftbench.terms import Stage

SPECIAL = 3
"""Tokens before the first word: padding, unknown, end of text."""
RARE = 0.75
"""Where the rarest quarter of a class's ranks begins: those words alone stand in the minimal pairs."""


@dataclass(frozen=True)
class Oracle(Defense):
    """`strength`: the share of each class's ranks that is merged, the rarest of them first."""

    stage: ClassVar[Stage] = "posttrain"
    claims: ClassVar[Claim | None] = Claim(frozenset({"method"}))

    strength: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.strength <= RARE:
            raise ValueError(f"strength must be above 0 and at most {RARE:g}, not {self.strength:g}")

    def check(self, suite: Suite) -> None:
        if suite.corpus.source != "toy":
            raise NftbenchError("oracle: it knows the words of the toy language alone")

    @torch.no_grad()
    def protect(self, model: Model, context: OwnerContext) -> Protected:
        heads = (model.network.get_input_embeddings(), model.network.get_output_embeddings())
        # Tied weights are one tensor; untied ones would tell the words apart in the head.
        for weight in {head.weight for head in heads}:
            for words in merged(self.strength):
                weight[words] = weight[words].mean(0)
        return Protected(model)


def merged(strength: float) -> Iterator[list[int]]:
    """The token ids of each group of words that become one.

    A word's place in the vocabulary says its class, features and rank, whatever the seed of the grammar: the seed
    decides the spelling alone. The owner may know that; no network sees its tokens' numbers.
    """
    for ids in Grammar(0)._lexicon.values():  # by features, and then by rank
        ranks = ids.shape[-1]
        first, last = round(ranks * (RARE - strength)), round(ranks * RARE)
        for rank in range(first, last):
            yield sorted({SPECIAL + int(word) for word in ids[..., rank].flat})
