"""MNIST: classify images of one handwritten digit against another.

LeCun et al. 1998; digits as in Zheng et al. 2025, https://arxiv.org/abs/2505.23760, section 5.1. Example of
`mnist_pair[first=3,second=7]`: the pixels of a handwritten 7 -> +1. Reads mnist/train-*.xz (IDX format) in --data.
"""

from __future__ import annotations

import functools
import lzma
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nftbench import Measurement, NftbenchError, Split, Task, TaskContext
from nftbench.methods import tabular as tables
from nftbench.methods.tabular import Pair, Rows

FILES = ("mnist/train-images-idx3-ubyte.xz", "mnist/train-labels-idx1-ubyte.xz")
MEAN, DEVIATION = 0.1307, 0.3081
"""Mean and standard deviation of all pixels (scaled to 0…1), as in the authors' code (dataset.py). Pixels are not
standardised individually."""


@dataclass(frozen=True)
class MnistPair(Pair):
    """Images of the digits `first` (class -1) and `second` (class +1), equally many of each.

    `alone`: only the images of `first`. The authors' code measures the RIR on the images of a single digit, and a task
    with one class serves no other purpose.
    """

    first: int = 3
    second: int = 7
    alone: bool = False

    def __post_init__(self) -> None:
        if not all(0 <= digit <= 9 for digit in (self.first, self.second)):
            raise ValueError("first and second are digits, 0 to 9")
        if self.first == self.second and not self.alone:
            raise ValueError(f"first and second are both {self.first}")

    def fingerprint(self, data: Path | None) -> str:
        return tables.hashes(data, *FILES)

    def load(self, context: TaskContext) -> Task:
        images, labels = _read(*(tables.file(context.data, *name.split("/")) for name in FILES))
        digits = [self.first] if self.alone else [self.first, self.second]
        found = [(labels == digit).nonzero()[:, 0] for digit in digits]
        count = min(len(rows) for rows in found)
        chosen = torch.cat([rows[:count] for rows in found])
        classes = torch.cat([torch.full((count, 1), 2.0 * index - 1) for index in range(len(digits))])
        inputs = (images[chosen].double() / 255 - MEAN) / DEVIATION
        return tables.loaded(self, Rows(inputs, classes.double()), context)

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        return tables.accuracy(network, split)


@functools.lru_cache(maxsize=1)
def _read(images: Path, labels: Path) -> tuple[Tensor, Tensor]:
    """All images [N, 784] and their digits [N]."""
    pixels, digits = _idx(images), _idx(labels)
    if pixels.ndim != 3 or len(pixels) != len(digits):
        raise NftbenchError(f"{images}: images {pixels.shape} do not go with labels {digits.shape}")
    return torch.from_numpy(pixels.reshape(len(pixels), -1)), torch.from_numpy(digits)


def _idx(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Read an IDX file of bytes: two zeros, the type 8, the count of dimensions, four bytes for each size, the data."""
    try:
        content = lzma.decompress(path.read_bytes())
        zeros, kind, dimensions = int.from_bytes(content[:2], "big"), content[2], content[3]
        shape = np.frombuffer(content, ">u4", dimensions, 4).astype(int)
        if zeros or kind != 8:
            raise ValueError("no IDX file of bytes")
        return np.frombuffer(content, np.uint8, -1, 4 + 4 * dimensions).reshape(shape).copy()
    except (lzma.LZMAError, ValueError, IndexError) as error:
        raise NftbenchError(f"{path}: cannot be read: {error}") from error
