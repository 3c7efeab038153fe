"""A batch trained on in parts: the loss, the gradients and the step of the whole batch, in the memory of one part."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nftbench.contract import Measurement, Model, Split, Task
from nftbench.data import loglikelihood
from nftbench.data.loglikelihood import Batch, Encoded, Rows
from nftbench.planning.plan import plan
from nftbench.suites.schema import Budget
from nftbench.terms import SplitName
from nftbench.testing import tiny_suite
from nftbench.training.sweep import Sweep
from nftbench.training.trainer import Trainer
from tests.allocated import peak_bytes
from tests.checkpoints import fresh

WIDTH = 12
"""The longest document, in tokens that are read."""


def documents(count: int) -> Rows:
    """Documents of 3 to 13 tokens with answers of 1 to 3 tokens."""
    words = [[(7 * number + place) % 50 for place in range(3 + number % 11)] for number in range(count)]
    answers = [1 + number % 3 for number in range(count)]
    return Rows([Encoded(one[:-cut] or one[:1], one[-cut:]) for one, cut in zip(words, answers, strict=True)], 64)


@dataclass
class Reading(Task):
    """Documents to be trained on; counts the rows of each batch."""

    rows: Rows = field(default_factory=lambda: documents(44))
    seen: list[int] = field(default_factory=list)

    def split(self, name: SplitName) -> Split:
        return self  # type: ignore[return-value]

    def __len__(self) -> int:
        return 44

    def batch(self, indices: Any) -> Batch:
        return self.rows.batch(indices)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        self.seen.append(len(batch.ids))
        return loglikelihood.loss(network, batch)

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        return Measurement("acc", 0.5, 0.0, 1, 0.5, loss=1.0)


def sweeping(tokens: int | None, batch: int = 8, **changes: Any) -> Sweep:
    budget = Budget(
        learning_rates={"adamw": (1e-3, 1e-2)}, durations=(3,), batch=batch, warmup=0, tokens_at_once=tokens
    )
    return Sweep(Trainer(0, budget), Model(fresh("llama", **changes).double(), None), Reading())


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_parts_add_up_to_the_whole_batch(rows: int) -> None:
    """The mean is over the tokens of the whole batch, whose documents have answers of different length."""
    whole, parted = sweeping(None), sweeping(rows * WIDTH)
    batch = whole.task.split("train").batch([10, 3, 21, 4, 5, 16, 7, 9])  # type: ignore[attr-defined]
    assert batch.ids.shape == (8, WIDTH)
    one, other = (copy.deepcopy(whole.model.network) for _ in range(2))
    (expected,) = whole.losses(one, batch)
    expected.backward()
    parts = list(parted.losses(other, batch))
    for part in parts:
        part.backward()
    assert parted.task.seen == {1: [1] * 8, 2: [2] * 4, 3: [3, 3, 2], 8: [8]}[rows]  # type: ignore[attr-defined]
    total = sum(part.detach() for part in parts)
    assert float(total) == pytest.approx(float(expected.detach()), rel=1e-12)
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        assert first.grad is not None
        assert second.grad is not None
        torch.testing.assert_close(second.grad, first.grad, rtol=1e-9, atol=1e-12)


def test_a_trajectory_is_the_same_in_parts() -> None:
    (one, other) = (sweeping(tokens).trajectory(1e-3, 0, (0, 3)) for tokens in (None, 1))
    assert one[0][1].train_loss == pytest.approx(other[0][1].train_loss, rel=1e-9)
    for first, second in zip(one[1].parameters(), other[1].parameters(), strict=True):
        torch.testing.assert_close(second, first, rtol=1e-6, atol=1e-9)


def test_memory_does_not_grow_with_the_batch() -> None:
    peaks = {
        (tokens, batch): peak_bytes(lambda: sweeping(tokens, batch).trajectory(1e-3, 0, (2,)))  # noqa: B023
        for tokens in (None, 4 * WIDTH)
        for batch in (8, 32)
    }
    assert peaks[None, 32] > 1.5 * peaks[None, 8]
    assert peaks[4 * WIDTH, 32] < 1.1 * peaks[4 * WIDTH, 8]


def test_the_size_of_parts_is_in_no_key() -> None:
    whole, parted = (plan(tiny_suite(budget={"tokens_at_once": tokens})) for tokens in (None, 64))
    assert [cell.key for cell in whole.cells] == [cell.key for cell in parted.cells]
