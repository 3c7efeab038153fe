"""How near an attacker's guess comes to the owner's secret mask; the referee, who alone holds both, scores it.

The positive class is what the mask marks. A guess is a real score for each weight; ties count half (ROC) or together
(precision–recall), and where a guess must be cut it is cut at the mask's own size, ties split by position. Chance is an
ROC-AUC of 0.5, a PR-AUC and a precision of the density rho, an IoU of rho / (2 - rho), a correlation of 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from sklearn.metrics import (  # type: ignore[import-untyped]
    average_precision_score,
    matthews_corrcoef,
    roc_auc_score,
)

from nftbench.types import Guess, Mask, NftbenchError


def score(guess: Guess, mask: Mask) -> Mapping[str, float]:
    """`roc_auc` and `pr_auc` over all weights and (`…_within`) as the mean over the tensors that hold both kinds;
    `iou`, `precision` and `mcc` (Matthews 1975) of the guess cut at the mask's size; `density`, the share it marks.

    A metric that a mask of one kind alone leaves undefined is left out.

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
    cut = np.zeros_like(every)
    cut[np.argsort(-ranked, kind="stable")[: int(every.sum())]] = True
    both = int((cut & every).sum())
    mixed = [name for name, kept in truth.items() if 0 < kept.sum() < len(kept)]
    found = {
        "roc_auc": float(roc_auc_score(every, ranked)),
        "pr_auc": float(average_precision_score(every, ranked)),
        "iou": both / int((cut | every).sum()),
        "precision": both / int(every.sum()),
        "mcc": float(matthews_corrcoef(every, cut)),
        "density": density,
    }
    if mixed:
        found["roc_auc_within"] = float(np.mean([roc_auc_score(truth[name], scores[name]) for name in mixed]))
        found["pr_auc_within"] = float(np.mean([average_precision_score(truth[name], scores[name]) for name in mixed]))
    return found
