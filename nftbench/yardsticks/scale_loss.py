"""Loss against scale: the loss on the owner's task at base + s · update, for scales s from -0.5 to 2.

Jang et al. 2026, https://arxiv.org/abs/2601.21898, show the effect of Trap² by this curve. It is flat around s = 1 for
a plain update, and a narrow valley for a protected one. It takes the base and the published update, not the release.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from nftbench import Defense, Inspection, NftbenchError, Reading, Series, Yardstick
from nftbench.methods import updates

SCALES = tuple(tenths / 10 for tenths in range(-5, 21))


@dataclass(frozen=True)
class ScaleLoss(Yardstick):
    """Test losses in nats per document.

    - `loss_at_0`, `loss_at_1`: the losses of the base and of the base with the whole update
    - `rise`: the mean loss over 0 < s ≤ 2 without s = 1, minus the loss at s = 1; `rise_below`: the same for s < 1
    - `worst_below`: the highest loss for 0 < s < 1
    - `best_scale`: the scale with the lowest loss
    """

    def applies(self, defense: Defense) -> str | None:
        return None if defense.releases_update else "the defense releases no update"

    def measure(self, inspection: Inspection) -> Reading:
        if inspection.update is None:
            raise NftbenchError("scale_loss: the release has no update beside it")
        task, weights = inspection.task(inspection.told[0]), updates.dense(inspection.update)
        test = task.split("test")
        found = [task.evaluate(updates.added(inspection.base.network, weights, scale), test) for scale in SCALES]
        losses = {scale: one.loss for scale, one in zip(SCALES, found, strict=True) if one.loss is not None}
        if len(losses) < len(SCALES):
            raise NftbenchError(f"scale_loss: {inspection.told[0]} measures no loss")
        below = [loss for scale, loss in losses.items() if 0 < scale < 1]
        above = [loss for scale, loss in losses.items() if scale > 1]
        values = {
            "loss_at_0": losses[0.0],
            "loss_at_1": losses[1.0],
            "rise": statistics.fmean([*below, *above]) - losses[1.0],
            "rise_below": statistics.fmean(below) - losses[1.0],
            "worst_below": max(below),
            "best_scale": min(losses, key=losses.__getitem__),
        }
        scores = tuple(one.value for one in found)
        return Reading(
            values,
            (
                Series("loss against scale", SCALES, tuple(losses.values()), "scale", "nats"),
                Series("score against scale", SCALES, scores, "scale", found[0].metric),
            ),
        )
