"""Masks over a network's weights: the largest by a score, over all tensors or in each, and how far two overlap."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from nftbench.types import Mask

Scope = Literal["global", "per_tensor"]


def top(scores: Mapping[str, Tensor], share: float, scope: Scope = "global") -> dict[str, Tensor]:
    """True for exactly floor(share · count) of the weights, those that score highest, over all tensors or in each.

    By rank and not by threshold: scores may be tied (words that a batch lacks all have a gradient of zero).
    """
    if scope == "per_tensor":
        return {name: _top(score.flatten(), share).view_as(score) for name, score in scores.items()}
    chosen = _top(torch.cat([score.flatten() for score in scores.values()]), share)
    parts = chosen.split([score.numel() for score in scores.values()])  # type: ignore[no-untyped-call]
    return {name: part.view_as(score) for (name, score), part in zip(scores.items(), parts, strict=True)}


def overlap(mask: Mask, other: Mask) -> float:
    """Intersection over union of two masks; 1 for two that mark nothing."""
    both = sum(int((mask[name] & other[name]).sum()) for name in mask)
    either = sum(int((mask[name] | other[name]).sum()) for name in mask)
    return both / either if either else 1.0


def _top(scores: Tensor, share: float) -> Tensor:
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[scores.topk(math.floor(share * scores.numel())).indices] = True
    return chosen
