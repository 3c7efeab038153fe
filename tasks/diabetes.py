"""Diabetes (offline): predict the disease's progression after one year from ten measurements of a patient; regression.

scikit-learn's bundled data (Efron et al. 2004), 442 patients. Example: age, sex, body-mass index, blood pressure and
six serum values, standardised -> -0.01, the progression in standard deviations above the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from sklearn.datasets import load_diabetes  # type: ignore[import-untyped]
from torch import nn

from nftbench import Measurement, NftbenchError, Split, Task, TaskContext
from nftbench.methods import tabular as tables
from nftbench.methods.tabular import Regression, Rows


@dataclass(frozen=True)
class Diabetes(Regression):
    """`target`: `progression` or one of the ten measurements, whose input column is then set to zero. With different
    targets, a defense can protect one task and be attacked on another over the same inputs. `part`: all patients, or
    those of one sex, analogous to the split of the house prices by zoning."""

    target: str = "progression"
    part: Literal["all", "first", "second"] = "all"

    def load(self, context: TaskContext) -> Task:
        data = load_diabetes(scaled=False)
        names = list(data.feature_names)
        if self.target not in ("progression", *names):
            raise NftbenchError(f"diabetes has no target {self.target!r}; it has progression, {', '.join(names)}")
        inputs, goal = torch.from_numpy(data.data).double(), torch.from_numpy(data.target).double()
        sex = inputs[:, names.index("sex")]
        kept = (sex > 0) if self.part == "all" else sex == (1.0 if self.part == "first" else 2.0)
        inputs, goal = inputs[kept].clone(), goal[kept]
        if self.target != "progression":
            column = names.index(self.target)
            goal, inputs[:, column] = inputs[:, column].clone(), 0.0
        rows = Rows(tables.standardised(inputs), tables.standardised(goal[:, None]))
        return tables.loaded(self, rows, context)

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        return tables.r_squared(network, split)
