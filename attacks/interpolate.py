"""Interpolation: between the fine-tuned release and the fine-tuned base, then fine-tuned on.

WiSE-FT (Wortsman et al. 2022, arXiv:2109.01903, section 3), (1 - a) θ_0 + a θ_1, with a fine-tuned model at either end.
Release and base as they are lie at the ends of `difference`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedModel

from nftbench import Attack, AttackerContext, Candidates, Knowledge, Model, Outcome, Prepared, Task
from nftbench.methods import fitting, tuned, updates

SHARES = tuple(tenths / 10 for tenths in range(10))
"""Of the base's side. The other end is the base itself, whatever its architecture: who has it needs no release."""


@dataclass(frozen=True)
class Interpolate(Attack):
    """Each end takes the budget's longest duration at its middle learning rate, the best of the way between them is the
    start of the sweep. In another architecture only what has the same name and shape is mixed."""

    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"base"})

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        release, base, steps = prepared.model, context.base, max(context.budget.durations)

        def mixes() -> Candidates:
            yield release.network, 0.0, 0  # where the one rate suits nothing
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
