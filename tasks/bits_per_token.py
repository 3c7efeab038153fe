"""Utility task: cross-entropy on held-out text, in bits per token; lower is better.

Example: a block of the toy language, bavo isa gelo sapu , she runi moke hooray . […] -> 2.31 bits for each token but
the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nftbench import Measurement, NftbenchError, Split, SplitName, Task, TaskContext
from nftbench.methods import BlockSplit


@dataclass(frozen=True)
class BitsPerToken(Task):
    """Cross-entropy on the corpus's held-out blocks, in bits for each token but the first of a block."""

    trainable = False

    def load(self, context: TaskContext) -> Task:
        corpus = context.corpus
        return _Loaded(BlockSplit(corpus.heldout[: context.limit], floor=corpus.unigram_bits))

    def split(self, name: SplitName) -> Split:
        raise NftbenchError(f"bits_per_token: load the task before its {name} split is asked for")

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        raise NftbenchError("bits_per_token is a utility task: it is never trained on")

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        assert isinstance(split, BlockSplit)
        return split.measure(network, "bits_per_token")


@dataclass(frozen=True)
class _Loaded(BitsPerToken):
    test: BlockSplit

    def split(self, name: SplitName) -> Split:
        if name != "test":
            raise NftbenchError(f"bits_per_token has no {name} split: it is a utility task")
        return self.test
