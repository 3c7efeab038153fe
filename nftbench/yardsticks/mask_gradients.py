"""Mask gradients: whether the gradients of the released model reveal the secret mask.

In PMP's figure 6 (https://arxiv.org/abs/2602.00446, section 5.2) the histograms of |gradient| inside and outside of the
mask overlap, and the paper concludes that an adversary cannot detect the mask. As in the paper, a single batch is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nftbench import Defense, Inspection, Reading, Series, Yardstick
from nftbench.methods import gradients

EDGES = torch.linspace(-12.0, 2.0, 57, dtype=torch.float64)
"""The edges of the histograms' bins in log10, four bins for each decade. Values beyond them, such as zeros, count in
the outermost bins."""


@dataclass(frozen=True)
class MaskGradients(Yardstick):
    """Compares |gradient| of the next-token loss inside and outside of the mask, on the first `blocks` held-out blocks.

    - `overlap`: the common area of the two histograms of log10 |gradient|; 1 if they are equal
    - `auc`: the probability that a weight in the mask has a larger |gradient| than one outside; ties count one half
    - `auc_within`: the same among the weights of one tensor, averaged over tensors by their sizes; differences between
      tensors cannot help here
    - `auc_gap`, `auc_within_gap`: the distance from ½, since an AUC below ½ reveals the mask as well

    For a mask of all weights only the histogram is given, because there is nothing to compare.
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
    """The share of the values in each bin."""
    places = torch.bucketize(sizes.double().log10(), EDGES[1:-1], right=True)
    return torch.bincount(places, minlength=len(EDGES) - 1).double() / len(sizes)


def auc(inside: Tensor, outside: Tensor) -> float:
    """Area under the ROC curve for separating the two groups by size: the Mann-Whitney U, divided by the pairs."""
    ordered = outside.sort().values
    below, upto = (torch.searchsorted(ordered, inside, right=right).double() for right in (False, True))
    return float((below + upto).mean()) / (2 * len(outside))
