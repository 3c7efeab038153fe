"""Bit-for-bit comparison of named tensors, and of the state of the global random numbers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nftbench.testing.promises import promise


def identical(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether two sets of tensors have the same names, types, shapes and bits; NaN equals NaN."""
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype
        and tensor.shape == second[name].shape
        and torch.equal(_bytes(tensor), _bytes(second[name]))
        for name, tensor in first.items()
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


@contextlib.contextmanager
def keeps_random_state(method: str) -> Iterator[None]:
    """The promise that the block leaves the global random numbers alone: they must not depend on which plugins ran."""
    before = _random_state()
    yield
    changed = [source for source, state in _random_state().items() if state != before[source]]
    promise(
        not changed,
        f"{method} leaves the global random numbers alone",
        f"those of {' and '.join(changed)} moved: draw from a generator of your own, such as "
        "`torch.Generator().manual_seed(context.seed)`",
    )


def _random_state() -> dict[str, Any]:
    _, keys, position, *_ = np.random.get_state()
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "random": random.getstate(),
        "numpy": (np.asarray(keys).tobytes(), position),
    }
