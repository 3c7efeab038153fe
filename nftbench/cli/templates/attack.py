"""My attack: only the largest weights of each tensor are trained. An example; no paper proposes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nftbench import Attack, AttackerContext, Knowledge, Outcome, Prepared, Task, TrainedWeights


@dataclass(frozen=True)
class MyAttack(Attack):
    """`share`: share of each tensor's weights that are trained."""

    # What the attacker has besides the release and the task, such as {"method", "data"}. A context gives nothing else.
    knowledge: ClassVar[frozenset[Knowledge]] = frozenset()
    # The defenses that it is written against, such as {"pmp"}.
    against: ClassVar[frozenset[str]] = frozenset()
    trained_weights: ClassVar[TrainedWeights] = "part"

    # A parameter with its default: my_attack[share=0.1] is another attack.
    share: float = 0.5

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        # The sweep trains copies at every learning rate and duration of the budget, and returns the best on validation.
        return context.sweep(prepared.model, task, gradient_mask=self._largest(prepared))

    def _largest(self, prepared: Prepared) -> dict[str, Tensor]:
        """True for the weights that are trained, by the parameter's name."""
        sizes = {name: weight.detach().abs() for name, weight in prepared.model.network.named_parameters()}
        counts = {name: max(1, round(self.share * size.numel())) for name, size in sizes.items()}
        return {name: size >= size.flatten().topk(counts[name]).values[-1] for name, size in sizes.items()}
