"""Oracle: words of the toy language that no attacker can tell apart again, for their embeddings have become one.

A defense that truly works, to see whether the benchmark finds it; it is no proposal. From the text the owner learns the
class of each open word and how frequent it is; what its topic, gender or mood is only the embedding says. Of the
words above the rarest quarter a share is *merged*: groups of equally frequent nouns, as many as there are topics and
genders, are given the mean of their embeddings, and so are groups of verbs and of adverbs. What the network computes of
two merged words is then the same, bit for bit, and stays so whatever is trained, until a training document itself tells
them apart. The ranked tasks ask about words that fine-tuning does not see, so on merged words every attacker is left to
guess; who has text like the pre-training text (knowledge `data`) can learn them again, and the claim says so.

It pays with utility: questions ask every open word equally often.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from nftbench import Claim, Corpus, Defense, Model, NftbenchError, OwnerContext, Protected
from nftbench.data.grammar import AUXILIARIES, CLOSED, GENDERS, MODALS, MOODS, PRONOUNS, TOPICS
from nftbench.suites.schema import Suite
from nftbench.terms import Stage

RARE = 0.75
"""Where the rarest quarter of a class's words begins. They are left alone."""
BEFORE_ADVERB = (*AUXILIARIES, *MODALS, *PRONOUNS)
GROUPS = {"noun": TOPICS * GENDERS, "verb": TOPICS, "adverb": MOODS}
"""How many words of each class are merged into one."""


@dataclass(frozen=True)
class Oracle(Defense):
    """`strength`: the share of each class's words that is merged, the rarest of them first."""

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
            for words in merged(self.strength, context.corpus):
                weight[words] = weight[words].mean(0)
        return Protected(model)


def merged(strength: float, corpus: Corpus) -> Iterator[list[int]]:
    """The token ids of each group of words that become one: neighbours in the order of frequency within a class."""
    for word_class, words in classes(corpus).items():
        ranks = len(words) // GROUPS[word_class]
        first, last = round(ranks * (RARE - strength)), round(ranks * RARE)
        for rank in range(first, last):
            yield words[rank * GROUPS[word_class] : (rank + 1) * GROUPS[word_class]]


def classes(corpus: Corpus) -> dict[str, list[int]]:
    """The token ids of each class of open words that the text has, the most frequent first.

    An adverb follows an auxiliary, a modal or a pronoun, a verb follows an adverb, and all others are nouns.
    """
    known = corpus.tokenizer.get_vocab()
    tokens, size = corpus.train.flatten(), len(known)
    follows = torch.zeros(size, size, dtype=torch.long)
    follows.index_put_((tokens[:-1], tokens[1:]), torch.tensor(1), accumulate=True)
    count = tokens.bincount(minlength=size)
    closed = torch.zeros(size, dtype=torch.bool)
    closed[[known[word] for word in (*CLOSED, *corpus.tokenizer.all_special_tokens)]] = True
    adverb = ~closed & (follows[[known[word] for word in BEFORE_ADVERB]].sum(0) > count / 2)
    verb = ~closed & ~adverb & (follows[adverb].sum(0) > count / 2)
    noun = ~closed & ~adverb & ~verb & (count > 0)
    found = {"noun": noun, "verb": verb, "adverb": adverb}
    order = count.argsort(descending=True, stable=True)
    return {word_class: order[is_one[order]].tolist() for word_class, is_one in found.items()}
