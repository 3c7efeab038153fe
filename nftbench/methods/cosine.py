"""The cosine schedule of a learning rate, with a linear warm-up."""

from __future__ import annotations

import math
from collections.abc import Callable

from nftbench.training.engine import warmed


def cosine(steps: int, warmup: float) -> Callable[[int], float]:
    """The learning rate's factor at a step, counted from 1: linear over the share `warmup` of the steps, then falling
    as a cosine. It is Hugging Face's `get_cosine_schedule_with_warmup`."""
    rising = math.ceil(warmup * steps)

    def factor(step: int) -> float:
        if step <= rising:
            return warmed(step, rising)
        return 0.5 * (1 + math.cos(math.pi * (step - 1 - rising) / (steps - rising)))

    return factor
