"""Masks over a network's weights: marking those with the highest scores, and the overlap of two masks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from nftbench.contract import Mask

Scope = Literal["global", "per_tensor"]


def top(scores: Mapping[str, Tensor], share: float, scope: Scope = "global") -> dict[str, Tensor]:
    """Mark the `share` of the weights with the highest scores, over all tensors together or in each tensor.

    Exactly floor(share · count) weights are marked.
    """
    pools = [scores] if scope == "global" else [{name: score} for name, score in scores.items()]
    found: dict[str, Tensor] = {}
    for pool in pools:
        found |= largest(pool, math.floor(share * sum(score.numel() for score in pool.values())))
    return found


def largest(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Mark exactly `count` weights, those with the highest scores over all tensors.

    They are chosen by rank, not by a threshold, because scores may be tied. For example, the embeddings of all words
    that a batch lacks have a gradient of zero.
    """
    flat = torch.cat([score.flatten() for score in scores.values()])
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.topk(count).indices] = True
    parts = chosen.split([score.numel() for score in scores.values()])  # type: ignore[no-untyped-call]
    return {name: part.view_as(score) for (name, score), part in zip(scores.items(), parts, strict=True)}


def overlap(mask: Mask, other: Mask) -> float:
    """Intersection over union of two masks; 1 if both are empty."""
    both = sum(int((mask[name] & other[name]).sum()) for name in mask)
    either = sum(int((mask[name] | other[name]).sum()) for name in mask)
    return both / either if either else 1.0
