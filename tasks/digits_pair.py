"""Handwritten digits (offline): classify images of one digit against another.

scikit-learn's bundled digits (Alpaydin & Kaynak 1998, UCI): 8 x 8 pixels with values from 0 to 16, about 180 images for
each digit. Example of `digits_pair[first=3,second=7]`: the 64 pixels of a 7 -> +1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import nn

from nftbench import Measurement, Split, Task, TaskContext
from nftbench.methods import tabular as tables
from nftbench.methods.tabular import Pair, Rows


@dataclass(frozen=True)
class DigitsPair(Pair):
    """Images of the digits `first` (class -1) and `second` (class +1), equally many of each."""

    first: int = 3
    second: int = 7

    def __post_init__(self) -> None:
        if not all(0 <= digit <= 9 for digit in (self.first, self.second)):
            raise ValueError("first and second are digits, 0 to 9")
        if self.first == self.second:
            raise ValueError(f"first and second are both {self.first}")

    def load(self, context: TaskContext) -> Task:
        images, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
        found = [(labels == digit).nonzero()[:, 0] for digit in (self.first, self.second)]
        count = min(len(rows) for rows in found)
        pixels = images[torch.cat([rows[:count] for rows in found])].double()
        classes = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat_interleave(count)[:, None]
        # One mean and deviation for all pixels, as for MNIST. Pixels that are always blank have a deviation of zero.
        inputs = (pixels - images.mean()) / images.std()
        return tables.loaded(self, Rows(inputs, classes), context)

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        return tables.accuracy(network, split)
