"""What a defense notes down at each of its steps, as curves for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsFloat

from nftbench.contract import Series


def curves(names: Sequence[str], steps: Sequence[Sequence[SupportsFloat]]) -> tuple[Series, ...]:
    """A curve for each name over the steps, counted from 1; `steps` holds one number for each name."""
    x = tuple(float(step) for step in range(1, len(steps) + 1))
    return tuple(Series(name, x, tuple(map(float, y))) for name, y in zip(names, zip(*steps, strict=True), strict=True))
