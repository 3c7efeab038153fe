"""Maximum mean discrepancy: how far apart two samples are, by the means of a kernel.

Gretton et al. 2012, https://jmlr.org/papers/v13/gretton12a.html, with a sum of Gaussian kernels as in Long et al. 2015,
https://arxiv.org/abs/1502.02791. Rosati et al. 2024 (RepNoise, https://arxiv.org/abs/2405.14577) use it.
"""

from __future__ import annotations

import torch
from torch import Tensor

KERNELS = 5
"""The number of Gaussian kernels. Each bandwidth is twice the one before (RepNoise's code, loss.py, commit 03689ff)."""


def mmd(first: Tensor, second: Tensor) -> Tensor:
    """The squared discrepancy between two samples [count, width] of equal size, biased and so never below 0.

    The kernels are exp(-‖x - y‖² / b). The bandwidths b are s/4, s/2, s, 2s and 4s, where s is the mean squared
    distance between two points of both samples together. No gradient flows through s.
    """
    both = torch.cat([first, second])
    distances = (both[:, None] - both[None]).square().sum(-1)
    scale = distances.detach().sum() / (len(both) * (len(both) - 1))
    widths = [scale * 2.0 ** (power - KERNELS // 2) for power in range(KERNELS)]
    kernel = torch.stack([torch.exp(-distances / width) for width in widths]).sum(0)
    count = len(first)
    own, other, across = kernel[:count, :count], kernel[count:, count:], kernel[:count, count:]
    return own.mean() + other.mean() - 2 * across.mean()
