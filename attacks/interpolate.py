"""Interpolation between the fine-tuned release and the fine-tuned base, followed by further fine-tuning.

WiSE-FT (Wortsman et al. 2022, arXiv:2109.01903, section 3): (1 - a) θ_0 + a θ_1, here with a fine-tuned model at both
ends. The attack `difference` covers the line between release and base without fine-tuning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedModel

from nftbench import Attack, AttackerContext, Candidates, Knowledge, Model, Outcome, Prepared, Task
from nftbench.methods import fitting, tuned, updates

SHARES = tuple(tenths / 10 for tenths in range(10))
"""The values of a, the share of the base. The fine-tuned base itself (a = 1) is a candidate whatever its architecture,
since an attacker who has the base does not need the release."""


@dataclass(frozen=True)
class Interpolate(Attack):
    """Both ends are fine-tuned for the budget's longest duration at its middle learning rate. The mixture that is best
    on validation is the start of the sweep. If the architectures differ, only parameters of equal name and shape are
    mixed."""

    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"base"})

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        release, base, steps = prepared.model, context.base, max(context.budget.durations)

        def mixes() -> Candidates:
            yield release.network, 0.0, 0  # in case the single learning rate suits none of these runs
            near, far = (tuned(model.network, task, context, steps) for model in (release, base))
            own = dict(near.named_parameters())
            way = {name: weight - own[name].detach() for name, weight in fitting(far.named_parameters(), near).items()}
            for share in SHARES:
                yield updates.added(near, way, share), share, steps
            if _words(base) == _words(release):
                yield far, 1.0, steps

        start = context.select(task, mixes()).network
        assert isinstance(start, PreTrainedModel)
        return context.sweep(Model(start, release.tokenizer), task)


def _words(model: Model) -> dict[str, int] | None:
    return model.tokenizer.get_vocab() if model.tokenizer is not None else None
