"""House prices (Ames, Iowa): regression on 79 columns, split by zoning as in the condition-number paper.

Zheng et al. 2025, https://arxiv.org/abs/2505.23760, section 5.1. The primary task is the lot's area where the zoning is
not RL, the harmful one the price where it is. One worked example, harmful: 79 numbers of one house -> +0.21, its price
in standard deviations above the mean. Reads house_price/D1.csv and D2.csv under --data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import nn

from nftbench import Measurement, Split, Task, TaskContext
from nftbench.methods import tabular as tables
from nftbench.methods.tabular import Regression, Rows

FILES = {"primary": "D1.csv", "harmful": "D2.csv"}
TARGETS = {"primary": "LotArea", "harmful": "SalePrice"}
"""Neither is ever an input."""
TRAIN = 200
"""Training rows of the authors' code (dataset.py), which takes the first of the file and has no validation split."""


@dataclass(frozen=True)
class HousePrice(Regression):
    """`part`: which rows, and with them the target, unless `target` names the other one. `order`: `seeded` draws the
    200 training rows, in `file` order they are the first, as in the paper's code; the rest is halved into test and
    validation."""

    part: Literal["primary", "harmful"] = "harmful"
    target: Literal["", "LotArea", "SalePrice"] = ""
    order: Literal["seeded", "file"] = "seeded"

    def fingerprint(self, data: Path | None) -> str:
        return tables.hashes(data, f"house_price/{FILES[self.part]}")

    def load(self, context: TaskContext) -> Task:
        path = tables.file(context.data, "house_price", FILES[self.part])
        rows = _rows(path, self.target or TARGETS[self.part])
        left = len(rows.inputs) - TRAIN
        divide = tables.divided if self.order == "file" else tables.loaded
        return divide(self, rows, context, (TRAIN, left // 2, left - left // 2))

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        return tables.r_squared(network, split)


def _rows(path: Path, target: str) -> Rows:
    """All columns but the two targets, standardised over all rows like the target itself.

    As the code does it: blanks are 0, words are numbered in alphabetical order, and `Id` is a column like the others.
    """
    frame = pd.read_csv(path, keep_default_na=True)
    columns = [_numbers(frame[name]) for name in frame.columns if name not in TARGETS.values()]
    goal = tables.standardised(torch.from_numpy(_numbers(frame[target])[:, None]))
    return Rows(tables.standardised(torch.from_numpy(np.stack(columns, 1))), goal)


def _numbers(column: pd.Series[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if pd.api.types.is_numeric_dtype(column):
        return np.asarray(column.fillna(0), dtype=np.float64)
    words = column.astype(object).where(column.notna(), "0").to_numpy(str)
    return np.unique(words, return_inverse=True)[1].astype(np.float64)
