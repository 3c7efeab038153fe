"""House prices (Ames, Iowa): regression on 79 columns, split by zoning as in the condition-number paper.

Zheng et al. 2025, https://arxiv.org/abs/2505.23760, section 5.1. The primary task is to predict the lot area of houses
outside of zone RL, and the harmful task the price of houses in zone RL. Example of the harmful task: 79 numbers of one
house -> +0.21, its price in standard deviations above the mean. Reads house_price/D1.csv and D2.csv in --data.
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
"""The targets of the two tasks. Neither column is ever an input."""
TRAIN = 200
"""The number of training rows, as in the authors' code (dataset.py). Their code takes the file's first rows and has no
validation split."""


@dataclass(frozen=True)
class HousePrice(Regression):
    """`part`: the rows, and with them the target, unless `target` names another column. `order`: with `seeded` the 200
    training rows are drawn at random, and with `file` they are the first ones, as in the paper's code. The other rows
    are halved into test and validation."""

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
    """The inputs, all columns but the two targets, and the target, standardised over all rows.

    As in the authors' code, blanks are 0, words are numbered in alphabetical order, and `Id` is an input like others.
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
