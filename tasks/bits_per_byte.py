"""Utility task: cross-entropy on held-out text, in bits per byte; lower is better.

Unlike bits per token it is comparable between tokenizers. Example: 4.1 bits per token at 3.5 bytes per token -> 1.17.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nftbench import Measurement, NftbenchError, Split, SplitName, Task, TaskContext
from nftbench.methods import BlockSplit


@dataclass(frozen=True)
class BitsPerByte(Task):
    """Cross-entropy on the corpus's held-out blocks, in bits for each byte of their text."""

    trainable = False

    def load(self, context: TaskContext) -> Task:
        corpus = context.corpus
        tokens_per_byte = corpus.heldout.numel() / corpus.heldout_bytes
        floor = corpus.unigram_bits * tokens_per_byte
        return _Loaded(BlockSplit(corpus.heldout[: context.limit], floor, tokens_per_unit=tokens_per_byte))

    def split(self, name: SplitName) -> Split:
        raise NftbenchError(f"bits_per_byte: load the task before its {name} split is asked for")

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        raise NftbenchError("bits_per_byte is a utility task: it is never trained on")

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        assert isinstance(split, BlockSplit)
        return split.measure(network, "bits_per_byte")


@dataclass(frozen=True)
class _Loaded(BitsPerByte):
    test: BlockSplit

    def split(self, name: SplitName) -> Split:
        if name != "test":
            raise NftbenchError(f"bits_per_byte has no {name} split: it is a utility task")
        return self.test
