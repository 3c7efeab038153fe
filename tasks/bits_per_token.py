"""Utility task: cross-entropy on held-out text, in bits per token; lower is better.

Example: a block of the toy language, bavo isa gelo sapu , she runi moke hooray . […] -> 2.31 bits for each token but
the first.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from nftbench import Measurement, Split, Task, TaskContext
from nftbench.methods import BlockSplit, BlockTask, LoadedBlocks


@dataclass(frozen=True)
class BitsPerToken(BlockTask):
    """Cross-entropy on the corpus's scored blocks, in bits for each token but the first of a block."""

    def load(self, context: TaskContext) -> Task:
        corpus = context.corpus
        return LoadedBlocks(self, BlockSplit(corpus.heldout[: context.limit], corpus.unigram_bits))

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        assert isinstance(split, BlockSplit)
        return split.measure(network, "bits_per_token")
