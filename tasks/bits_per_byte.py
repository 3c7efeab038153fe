"""Utility task: cross-entropy on held-out text, in bits per byte; lower is better.

Unlike bits per token it is comparable between tokenizers. Example: 4.1 bits per token at 3.5 bytes per token -> 1.17.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from nftbench import Measurement, Split, Task, TaskContext
from nftbench.methods import BlockSplit, BlockTask, LoadedBlocks


@dataclass(frozen=True)
class BitsPerByte(BlockTask):
    """Cross-entropy on the corpus's scored blocks, in bits for each byte of their text."""

    def load(self, context: TaskContext) -> Task:
        corpus = context.corpus
        tokens_per_byte = corpus.heldout.numel() / corpus.heldout_bytes
        floor = corpus.unigram_bits * tokens_per_byte
        blocks = BlockSplit(corpus.heldout[: context.limit], floor, tokens_per_unit=tokens_per_byte)
        return LoadedBlocks(self, blocks)

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        assert isinstance(split, BlockSplit)
        return split.measure(network, "bits_per_byte")
