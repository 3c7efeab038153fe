"""Low data: full fine-tuning on an eighth of the budget's training documents, in the budget's steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nftbench import Attack, AttackerContext, Outcome, Prepared, Split, SplitName, Task, WrappedTask


@dataclass(frozen=True)
class LowData(Attack):
    """`share`: the share of the training documents that are used, drawn by the attack's seed. Validation uses all of
    its documents."""

    share: float = 0.125

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError("share must lie in (0, 1]")

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        count = len(task.split("train"))
        order = np.random.default_rng(context.seed).permutation(count)
        return context.sweep(prepared.model, _Few(task, tuple(order[: max(1, round(self.share * count))].tolist())))


@dataclass(frozen=True)
class _Few(WrappedTask):
    """A task with only some of its training documents."""

    kept: tuple[int, ...]

    def split(self, name: SplitName) -> Split:
        split = self.task.split(name)
        return _Part(split, self.kept) if name == "train" else split


@dataclass(frozen=True)
class _Part(Split):
    split: Split
    kept: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.kept)

    def batch(self, indices: Sequence[int]) -> Any:
        return self.split.batch([self.kept[index] for index in indices])
