"""A task that is learnt together with running text, so that a network keeps or regains what it knew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nftbench.contract import Split, WrappedTask
from nftbench.terms import SplitName


@dataclass(frozen=True)
class WithText(WrappedTask):
    """The task whose training loss is (1 - share) · task + share · text.

    `text` [blocks, tokens] is in the network's own token ids. Only training changes, not the scores.
    """

    text: Tensor
    share: float

    def split(self, name: SplitName) -> Split:
        rows = self.task.split(name)
        return _Rows(rows, self.text) if name == "train" else rows

    def loss(self, network: nn.Module, batch: tuple[Any, Tensor]) -> Tensor:
        rows, tokens = batch
        of_text: Tensor = network(input_ids=tokens, labels=tokens).loss
        return (1 - self.share) * self.task.loss(network, rows) + self.share * of_text


@dataclass(frozen=True)
class _Rows:
    """A training split in which each row comes with a fixed block of text."""

    rows: Split
    text: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int]) -> tuple[Any, Tensor]:
        return self.rows.batch(indices), self.text[[index % len(self.text) for index in indices]]
