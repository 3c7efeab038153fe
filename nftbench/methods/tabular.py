"""Tabular tasks for the linear family: rows of numbers with one target each, for regression or binary classification.

A task is a file in tasks/ that reads its rows and inherits from `Regression` or `Pair`. Splits, losses and scores are
defined here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nftbench.contract import Measurement, Split, Task, TaskContext
from nftbench.errors import NftbenchError
from nftbench.terms import SplitName

SHARES = (0.6, 0.2, 0.2)
"""The default shares of the rows for training, validation and test."""


class Rows(NamedTuple):
    """Inputs [N, D] and targets [N, 1], in float64. Classes are +1 and -1."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class TableSplit:
    """The rows of one split."""

    rows: Rows

    def __len__(self) -> int:
        return len(self.rows.inputs)

    def batch(self, indices: Sequence[int]) -> Rows:
        """The chosen rows."""
        chosen = torch.as_tensor(indices)
        return Rows(self.rows.inputs[chosen], self.rows.targets[chosen])


@dataclass(frozen=True)
class Table(Task):
    """The common part of tabular tasks, to which `Regression` and `Pair` add the loss."""

    def split(self, name: SplitName) -> Split:
        raise NftbenchError(f"{type(self).__name__}: load the task before its {name} split is asked for")

    def features(self, network: nn.Module, batch: Rows) -> Tensor:
        """The features [N, D] of the batch's rows, for a linear probe."""
        features: Tensor = network(inputs=batch.inputs.to(_device(network))).features
        return features

    def targets(self, network: nn.Module, batch: Rows) -> Tensor:
        """The targets [N, 1] that a linear probe fits by least squares."""
        return batch.targets.to(_device(network))


class Regression(Table):
    """Regression. The loss is half the squared error: up to a constant, the NLL of a Gaussian with unit variance."""

    def loss(self, network: nn.Module, batch: Rows) -> Tensor:
        return (_outputs(network, batch) - batch.targets.to(_outputs_like(network))).square().mean() / 2


class Pair(Table):
    """Binary classification, +1 against -1. The loss is the negative log-likelihood of the right class, in nats."""

    def loss(self, network: nn.Module, batch: Rows) -> Tensor:
        return nn.functional.softplus(-batch.targets.to(_outputs_like(network)) * _outputs(network, batch)).mean()


@dataclass(frozen=True)
class Loaded(Task):
    """A tabular task together with its rows."""

    table: Table
    splits: Mapping[SplitName, TableSplit] = field(repr=False)

    def load(self, context: TaskContext) -> Task:
        raise NftbenchError("the task is loaded already")

    def split(self, name: SplitName) -> TableSplit:
        return self.splits[name]

    def loss(self, network: nn.Module, batch: Rows) -> Tensor:
        return self.table.loss(network, batch)

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        return self.table.evaluate(network, split)

    def features(self, network: nn.Module, batch: Rows) -> Tensor:
        return self.table.features(network, batch)

    def targets(self, network: nn.Module, batch: Rows) -> Tensor:
        return self.table.targets(network, batch)


# ------------------------------------------------------------------------------------------------------------- scoring


def r_squared(network: nn.Module, split: Split) -> Measurement:
    """The coefficient of determination R² = 1 - Σ (y - ŷ)² / Σ (y - mean)²: 1 at best, 0 for predicting the mean.

    Predictions are clamped to the range of the split's targets. If a column is constant in training, its weight is
    arbitrary, and a single test row with another value would otherwise outweigh all others. Unlike squared errors, R²
    can be compared and averaged over targets of different units.

    The standard error is the jackknife's over rows, and `loss` is half the mean squared error.

    Raises:
        NftbenchError: all targets are equal, or there are fewer than two rows.
    """
    rows = _rows(split)
    targets = rows.targets.cpu()[:, 0]
    errors = (targets - _predictions(network, rows)[:, 0].clamp(targets.min(), targets.max())).square()
    count = len(errors)
    spread = float((targets - targets.mean()).square().sum())
    if count < 2 or spread == 0:
        raise NftbenchError(f"R² needs targets that differ; the split has {count} rows")
    # Without row i the sum of squares about the mean shrinks by n / (n - 1) times row i's squared deviation.
    shrunk = spread - (targets - targets.mean()).square() * count / (count - 1)
    without = 1 - (errors.sum() - errors) / shrunk.clamp_min(torch.finfo(shrunk.dtype).tiny)
    stderr = math.sqrt((count - 1) / count * float((without - without.mean()).square().sum()))
    value = 1 - float(errors.sum()) / spread
    return Measurement("r2", value, stderr, count, floor=0.0, loss=float(errors.mean()) / 2)


def accuracy(network: nn.Module, split: Split) -> Measurement:
    """The share of rows whose output has the sign of their class. An output of 0 counts as -1."""
    rows = _rows(split)
    outputs, targets = _predictions(network, rows), rows.targets.cpu()
    value = float(((outputs > 0) == (targets > 0)).double().mean())
    stderr = math.sqrt(value * (1 - value) / max(len(targets) - 1, 1))
    loss = float(nn.functional.softplus(-targets * outputs).mean())
    return Measurement("acc", value, stderr, len(targets), floor=0.5, loss=loss)


# ------------------------------------------------------------------------------------------------------------- reading


def loaded(table: Table, rows: Rows, context: TaskContext, sizes: tuple[int, int, int] | None = None) -> Loaded:
    """A task whose rows are split at random by the seed and cut to the budget and `--limit`.

    Args:
        sizes: the number of rows for training, validation and test; None for `SHARES` of all rows.

    Raises:
        NftbenchError: the model is not linear or reads rows of another width, or there are too few rows.
    """
    order = np.random.default_rng([context.seed, 1]).permutation(len(rows.inputs))
    return divided(table, Rows(*(part[torch.from_numpy(order)] for part in rows)), context, sizes)


def divided(table: Table, rows: Rows, context: TaskContext, sizes: tuple[int, int, int] | None = None) -> Loaded:
    """A task as `loaded` makes it, but split in the order of the rows: first training, then test, then validation."""
    count, width = rows.inputs.shape
    expected = getattr(context.model.network.config, "input_dim", None)
    if expected is None:
        raise NftbenchError("a tabular task needs a model of the linear family (model_type: linear)")
    if expected != width:
        raise NftbenchError(
            f"the rows have {width} numbers and the model reads {expected}: set model.input_dim to {width}"
        )
    train, validation, test = sizes or (
        *(int(share * count) for share in SHARES[:2]),
        count - int(0.6 * count) - int(0.2 * count),
    )
    if min(train, validation, test) < 2 or train + validation + test > count:
        raise NftbenchError(
            f"{count} rows are too few for {train} training, {validation} validation and {test} test rows"
        )
    budget = context.suite.budget
    starts: dict[SplitName, tuple[int, int, int | None]] = {
        "train": (0, train, budget.max_train_documents),
        "test": (train, test, budget.max_test_documents),
        "validation": (train + test, validation, budget.max_validation_documents),
    }
    splits = {}
    for name, (start, size, most) in starts.items():
        kept = min(limit for limit in (size, most, context.limit) if limit is not None)
        splits[name] = TableSplit(Rows(*(part[start : start + kept] for part in rows)))
    return Loaded(table, splits)


def standardised(columns: Tensor) -> Tensor:
    """Columns [N, D] minus their means, divided by their standard deviations, over all rows.

    The code of the condition-number paper does the same. Constant columns become zero.
    """
    deviation = columns.std(0)
    return (columns - columns.mean(0)) / torch.where(deviation > 0, deviation, torch.ones_like(deviation))


def file(data: Path | None, *parts: str) -> Path:
    """The path of a file in the folder of local data (`--data`).

    Raises:
        NftbenchError: no folder was given, or the file does not exist.
    """
    if data is None:
        raise NftbenchError(f"{'/'.join(parts)}: the task reads a local file; give its folder with --data")
    path = data.joinpath(*parts)
    if not path.is_file():
        raise NftbenchError(f"{path}: no such file")
    return path


def hashes(data: Path | None, *paths: str) -> str:
    """A hash of the content of files in the folder of local data (`--data`).

    Tasks call it while cells are planned, so that a missing file is reported before anything runs.

    Raises:
        NftbenchError: no folder was given, or a file does not exist.
    """
    digest = hashlib.sha256()
    for name in paths:
        with file(data, *name.split("/")).open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _rows(split: Split) -> Rows:
    assert isinstance(split, TableSplit)
    return split.rows


@torch.no_grad()
def _predictions(network: nn.Module, rows: Rows) -> Tensor:
    """The network's outputs [N, 1] in evaluation mode, as float64 on the CPU."""
    network.eval()
    return _outputs(network, rows).double().cpu()


def _outputs(network: nn.Module, batch: Rows) -> Tensor:
    outputs: Tensor = network(inputs=batch.inputs.to(_device(network))).outputs
    if outputs.shape != batch.targets.shape:
        shapes = f"outputs {tuple(outputs.shape)} for targets {tuple(batch.targets.shape)}"
        raise NftbenchError(f"the model gives {shapes}: their shapes must be equal")
    return outputs


def _outputs_like(network: nn.Module) -> Tensor:
    return next(network.parameters())


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
