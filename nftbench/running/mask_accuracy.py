"""How near an attacker's guess comes to the owner's secret mask; the referee, who alone holds both, scores it.

The positive class is what the mask marks. A guess is a real score for each weight, and only its order counts. Chance is
an ROC-AUC of 0.5, a PR-AUC and a precision of the density rho, an IoU of rho / (2 - rho), a correlation of 0; a guess
that scores all weights alike gets exactly that.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score  # type: ignore[import-untyped]

from nftbench.contract import Guess, Mask
from nftbench.errors import NftbenchError


def score(guess: Guess, mask: Mask) -> Mapping[str, float]:
    """`roc_auc` and `pr_auc` over all weights; `…_within`, their means over the tensors that hold both kinds, weighted
    by size; `precision`, `iou` and `mcc` (Matthews 1975) of the guess cut at the mask's own size; `density`.

    Within tensors, because which tensors a mask prefers is easily told, and which of their weights is not; by size,
    because the many small tensors that start as constants would drown the matrices. Ties count half in the ROC and are
    one step of the precision–recall curve; where the cut goes through a tie, it is broken at random: `precision` is the
    expected one, and the other two follow from it. A mask of one kind alone leaves nothing but its density.

    Memory: some 100 bytes a weight, most of them for sorting: a billion weights take 100 GB, which no suite here has.

    Raises:
        NftbenchError: the guess is not of the mask's tensors, or not finite.
    """
    for name, kept in mask.items():
        if name not in guess or guess[name].shape != kept.shape:
            raise NftbenchError(f"the guess does not fit the release: {name}")
        if not bool(torch.isfinite(guess[name]).all()):
            raise NftbenchError(f"the guess is not finite: {name}")
    truth = {name: kept.flatten().cpu().numpy().astype(bool) for name, kept in mask.items()}
    scores = {name: guess[name].detach().flatten().double().cpu().numpy() for name in mask}
    every, ranked = np.concatenate(list(truth.values())), np.concatenate(list(scores.values()))
    density = float(every.mean())
    if density in (0.0, 1.0):
        return {"density": density}
    precision = _precision(every, ranked)
    found = {
        "roc_auc": float(roc_auc_score(every, ranked)),
        "pr_auc": float(average_precision_score(every, ranked)),
        "precision": precision,
        "iou": precision / (2 - precision),
        "mcc": (precision - density) / (1 - density),
        "density": density,
    }
    mixed = [name for name, kept in truth.items() if 0 < kept.sum() < len(kept)]
    if mixed:
        sizes = [len(truth[name]) for name in mixed]
        for metric, of in (("roc_auc", roc_auc_score), ("pr_auc", average_precision_score)):
            values = [of(truth[name], scores[name]) for name in mixed]
            found[f"{metric}_within"] = float(np.average(values, weights=sizes))
    return found


def _precision(truth: NDArray[np.bool_], ranked: NDArray[np.float64]) -> float:
    """The share of marked weights among as many as are marked, those that score highest.

    Cut there, false positives are as many as false negatives, and IoU and Matthews correlation follow from this share.
    """
    count = int(truth.sum())
    threshold = np.partition(ranked, -count)[-count]
    above, tied = ranked > threshold, ranked == threshold
    return float((truth[above].sum() + (count - above.sum()) * truth[tied].mean()) / count)
