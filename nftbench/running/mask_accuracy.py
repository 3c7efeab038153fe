"""The accuracy of an attacker's guess at the owner's secret mask, as a binary classification of weights.

The positive class is the weights that the mask marks. A guess is a real score for each weight, and only the order of
the scores counts. With r the share of marked weights, the values of a random guess are: ROC-AUC 0.5; PR-AUC and
precision r; IoU r / (2 - r); Matthews correlation 0. A guess that scores all weights alike gets exactly these values.
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
    """The accuracy of a guess at a mask, by measure.

    `roc_auc` and `pr_auc` are over all weights; `density` is the share of marked weights. `precision`, `iou` and `mcc`
    (Matthews 1975) are of a yes-or-no guess: it marks the weights with the highest scores, as many as the mask marks.
    If weights at this cut have equal scores, `precision` is the expected value over random choices among them.

    `roc_auc_within` and `pr_auc_within` are means over the tensors that hold both classes, weighted by their size.
    They exist because it is easy to guess which tensors a mask prefers, and hard to guess which weights of a tensor.
    The weighting keeps the many small tensors that start as constants from outweighing the matrices.

    If all weights are marked, or none, only `density` is defined. Memory is about 100 bytes for each weight.

    Raises:
        NftbenchError: the guess lacks a tensor of the mask, has another shape, or is not finite.
    """
    for name, kept in mask.items():
        if name not in guess or guess[name].shape != kept.shape:
            raise NftbenchError(f"the guess does not fit the release: {name}")
        if not bool(torch.isfinite(guess[name]).all()):
            raise NftbenchError(f"the guess is not finite: {name}")
    truth = {name: kept.flatten().cpu().numpy().astype(bool) for name, kept in mask.items()}
    scores = {name: guess[name].detach().flatten().double().cpu().numpy() for name in mask}
    marked, score_of_each = np.concatenate(list(truth.values())), np.concatenate(list(scores.values()))
    density = float(marked.mean())
    if density in (0.0, 1.0):
        return {"density": density}
    precision = _precision(marked, score_of_each)
    accuracy = {
        "roc_auc": float(roc_auc_score(marked, score_of_each)),
        "pr_auc": float(average_precision_score(marked, score_of_each)),
        "precision": precision,
        "iou": precision / (2 - precision),
        "mcc": (precision - density) / (1 - density),
        "density": density,
    }
    mixed = [name for name, kept in truth.items() if 0 < kept.sum() < len(kept)]
    if mixed:
        sizes = [len(truth[name]) for name in mixed]
        for name, metric in (("roc_auc", roc_auc_score), ("pr_auc", average_precision_score)):
            values = [metric(truth[tensor], scores[tensor]) for tensor in mixed]
            accuracy[f"{name}_within"] = float(np.average(values, weights=sizes))
    return accuracy


def _precision(marked: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """Precision of marking the weights with the highest scores, as many as the mask marks.

    Then false positives are as many as false negatives, so that IoU and Matthews correlation follow from precision.
    """
    count = int(marked.sum())
    threshold = np.partition(scores, -count)[-count]
    above, tied = scores > threshold, scores == threshold
    return float((marked[above].sum() + (count - above.sum()) * marked[tied].mean()) / count)
