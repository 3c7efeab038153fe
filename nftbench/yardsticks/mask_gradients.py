"""Mask gradients: whether the secret mask can be told from the gradients of the released model.

PMP's figure 6 (https://arxiv.org/abs/2602.00446, section 5.2) shows histograms of |gradient| inside and outside the
mask that overlap, and concludes that an adversary cannot detect it. As there, one batch is looked at, not many.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nftbench import Defense, Inspection, Reading, Series, Yardstick
from nftbench.methods import gradients

EDGES = torch.linspace(-12.0, 2.0, 57, dtype=torch.float64)
"""Of the histograms' bins, in log10: four a decade. What lies beyond, zeros included, counts in the outer ones."""


@dataclass(frozen=True)
class MaskGradients(Yardstick):
    """|gradient| of the next-token loss on the first `blocks` held-out blocks, in one batch.

    `overlap`: area common to both histograms of log10 |gradient|, 1 where they are the same. `auc`: probability that a
    weight in the mask has the larger |gradient| than one outside, ties counting half. `auc_within`: the same within
    each tensor, where its size and place give nothing away; the mean over tensors, weighted by their sizes.
    `auc_gap`, `auc_within_gap`: how far either is from ½, which tells the mask whichever side it lies on.

    There is nothing to tell where a mask marks everything: then only its histogram is given.
    """

    blocks: int = 32

    def applies(self, defense: Defense) -> str | None:
        return None if defense.keeps_secret else "the defense keeps no secret mask"

    def measure(self, inspection: Inspection) -> Reading:
        assert inspection.secret is not None  # applies() saw to it
        network, mask = inspection.release.network, inspection.secret.mask
        tokens = inspection.corpus.heldout[: self.blocks].to(network.device)
        found = gradients(network, tokens, self.blocks)
        tensors = [(gradient.abs().cpu(), mask[name].cpu()) for name, gradient in found.items()]
        parts = [(size[marked], size[~marked]) for size, marked in tensors]
        inside, outside = (torch.cat(part) for part in zip(*parts, strict=True))
        histograms = [_histogram(part) for part in (inside, outside) if len(part)]
        curves = tuple(
            Series(f"|gradient| {place} the mask", _CENTRES, tuple(shares.tolist()), "log10 |gradient|", "share")
            for place, shares in zip(("inside", "outside"), histograms, strict=False)
        )
        if len(outside) == 0:
            return Reading({}, curves)
        both = [(one, other) for one, other in parts if len(one) and len(other)]
        sizes = [len(one) + len(other) for one, other in both]
        overall = auc(inside, outside)
        within = sum(auc(*pair) * size for pair, size in zip(both, sizes, strict=True)) / sum(sizes) if both else 0.5
        values = {
            "overlap": float(torch.minimum(*histograms).sum()),
            "auc": overall,
            "auc_gap": abs(overall - 0.5),
            "auc_within": within,
            "auc_within_gap": abs(within - 0.5),
        }
        return Reading(values, curves)


_CENTRES = tuple(((EDGES[1:] + EDGES[:-1]) / 2).tolist())


def _histogram(sizes: Tensor) -> Tensor:
    """The share of the numbers in each bin."""
    places = torch.bucketize(sizes.double().log10(), EDGES[1:-1], right=True)
    return torch.bincount(places, minlength=len(EDGES) - 1).double() / len(sizes)


def auc(inside: Tensor, outside: Tensor) -> float:
    """Area under the ROC curve of telling the two by size, as Mann and Whitney's U over all pairs."""
    ordered = outside.sort().values
    below, upto = (torch.searchsorted(ordered, inside, right=right).double() for right in (False, True))
    return float((below + upto).mean()) / (2 * len(outside))
