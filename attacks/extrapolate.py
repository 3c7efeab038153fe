"""Task-vector arithmetic: the change that fine-tuning makes to the base is added to the release, then fine-tuned.

Ilharco et al. 2023, arXiv:2212.04089, section 2: the task vector is τ = θ_tuned - θ_base. The attack adds s τ to the
release as it is, and to the fine-tuned release. The latter merges two models of one task. Further merging operators
resolve conflicts between tasks, which do not arise here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedModel

from nftbench import Attack, AttackerContext, Candidates, Knowledge, Model, Outcome, Prepared, Task
from nftbench.methods import fitting, tuned, updates

SCALES = (-1.0, -0.5, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
"""The values of s that are tried in addition to 0."""


@dataclass(frozen=True)
class Extrapolate(Attack):
    """Release and base are fine-tuned for the budget's longest duration at its middle learning rate. The sum that is
    best on validation is the start of the sweep. If the architectures differ, only parameters of equal name and shape
    are changed."""

    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"base"})

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        release, base, steps = prepared.model, context.base.network, max(context.budget.durations)
        taught = updates.difference(tuned(base, task, context, steps), base)
        vector = fitting(taught.weights.items(), release.network)

        def sums() -> Candidates:
            for network, taken in ((release.network, 0), (tuned(release.network, task, context, steps), steps)):
                yield network, 0.0, taken
                for scale in SCALES if vector else ():
                    yield updates.added(network, vector, scale), scale, steps + taken

        start = context.select(task, sums()).network
        assert isinstance(start, PreTrainedModel)
        return context.sweep(Model(start, release.tokenizer), task)
