"""Utility task: bits per token on text of another distribution than the pre-training text; lower is better.

The text is in the toy language. All words are equally frequent, and every passage has two attractors and two objects.
Example: bavo near timu under foro isa gelo sapu lidu , she runi moke sidu hooray . […] -> 5.6 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from nftbench import Measurement, Split, Task, TaskContext
from nftbench.methods import BlockSplit, BlockTask, LoadedBlocks, grammar_of, pack

SHORTEST = 17
"""Tokens of a passage, and of the token that ends it."""


@dataclass(frozen=True)
class ToyOtherText(BlockTask):
    """Cross-entropy on as many blocks as the corpus has scored blocks, in bits for each token but the first of a block.

    The floor is that of a model to which all tokens are equally likely. One that knows no more than how frequent words
    are in the training text is worse, because that is no guide to this text.
    """

    def load(self, context: TaskContext) -> Task:
        corpus = context.corpus
        count, block = corpus.heldout.shape
        passages = grammar_of(context.suite, context.seed).corpus(-(-count * block // SHORTEST), "other")
        blocks = pack(corpus.tokenizer, passages, block, "other")[:count][: context.limit]
        return LoadedBlocks(self, BlockSplit(blocks, floor=math.log2(len(corpus.tokenizer))))

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        assert isinstance(split, BlockSplit)
        return split.measure(network, "bits_per_token")
