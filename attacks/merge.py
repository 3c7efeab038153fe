"""Merging: a released update is added to the base together with plain updates for the suite's other tasks.

The operators are task arithmetic (Ilharco et al. 2023, arXiv:2212.04089), TIES (Yadav et al. 2023, arXiv:2306.01708)
and DARE-TIES (Yu et al. 2024, arXiv:2311.03099). They are computed by PEFT's functions on dense updates, tensor by
tensor. The attack targets Trap² (Jang et al. 2026, arXiv:2601.21898), whose authors also let attackers search the
coefficient and the density.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import merge_utils
from torch import Tensor, nn
from transformers import PreTrainedModel

from nftbench import Adaptation, Attack, AttackerContext, Knowledge, NftbenchError, Outcome, Prepared, Task, Update
from nftbench.methods import Stepper, seeded, shuffled, updates, warmed
from nftbench.methods.adapters import LR_SCALE
from nftbench.methods.overhead import kl

COEFFICIENTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0)
"""The coefficients tried for all updates of a merge; at 1 each update counts in full."""
DENSITIES = {"task_arithmetic": (1.0,), "ties": (0.2, 0.5, 0.9), "dare_ties": (0.2, 0.5, 0.9)}
"""The shares of an update's entries that are kept: the largest ones in TIES, random ones in DARE."""
DISTILLING = 10
"""The duration of distillation as a multiple of the longest duration. Learning another network's logits takes about as
long as its owner's training."""
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Merge(Attack):
    """`distilled`: instead of the released update, merge a plain update that was trained to match the release's logits
    on the owner's training inputs.

    Plain updates are of the same kind as the released one: LoRA of the same shape, or full. They are trained for the
    budget's longest duration (ten times as long for distillation) at the middle of its AdamW learning rates.
    """

    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"base"})
    adaptation: ClassVar[Adaptation] = "merging"
    against: ClassVar[frozenset[str]] = frozenset({"trap2"})

    operator: Literal["task_arithmetic", "ties", "dare_ties"] = "task_arithmetic"
    distilled: bool = False

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        released, base = prepared.update, context.base.network
        if released is None:
            raise NftbenchError("merge: the release has no update beside it")
        if not context.others:
            raise NftbenchError("merge: the suite has no other ranked task, whose update could be merged with this one")
        longest = max(context.budget.durations)
        plain = [trained(base, released, other, other.loss, longest, context) for other in context.others.values()]
        own, spent = updates.dense(released), longest * len(plain)
        if self.distilled:
            taught = distillation(prepared.model.network, task)
            own = trained(base, released, task, taught, DISTILLING * longest, context)
            spent += DISTILLING * longest
        with seeded(context.seed):
            outcome = context.select(task, self.merges(base, [own, *plain], spent))
        return dataclasses.replace(outcome, cost=dataclasses.replace(outcome.cost, steps=spent))

    def merges(
        self, base: PreTrainedModel, members: list[Weights], spent: int
    ) -> Iterator[tuple[nn.Module, float, int]]:
        """The base plus each merged update. All operators are linear in the common coefficient, so one merge for each
        density is enough."""
        for density in DENSITIES[self.operator]:
            merged = combine(self.operator, members, density)
            for coefficient in COEFFICIENTS:
                yield updates.added(base, merged, coefficient), coefficient, spent


def combine(operator: str, members: list[Weights], density: float) -> dict[str, Tensor]:
    """Merge the updates by one of PEFT's functions, each with weight 1. Tensors that an update lacks count as zeros."""
    options = {} if operator == "task_arithmetic" else {"density": density}
    merge, coefficients = getattr(merge_utils, operator), torch.ones(len(members))
    nothing = {name: torch.zeros_like(tensor) for member in members for name, tensor in member.items()}
    return {
        name: merge([member.get(name, zeros) for member in members], coefficients, **options)
        for name, zeros in nothing.items()
    }


def trained(
    base: PreTrainedModel,
    like: Update,
    task: Task,
    loss: Callable[[nn.Module, Any], Tensor],
    steps: int,
    context: AttackerContext,
) -> dict[str, Tensor]:
    """A plain update of the base, of the same kind as `like`, trained to minimise `loss(network, batch)` on a task."""
    budget, rows = context.budget, task.split("train")
    rates = budget.learning_rates["adamw"]
    with seeded(context.seed):
        network = adapted(base, like).train()
        stepper = Stepper(
            network,
            "adamw",
            rates[(len(rates) - 1) // 2] * (LR_SCALE if like.config else 1.0),
            factor=lambda step: warmed(step, budget.warmup),
            weight_decay=budget.weight_decay,
            clip=budget.clip,
        )
        order = shuffled(len(rows), min(budget.batch, len(rows)), context.seed)
        for _, indices in zip(range(steps), order, strict=False):
            stepper.step(loss(network, rows.batch(indices)))
    found = updates.of_adapter(network) if isinstance(network, PeftModel) else updates.difference(network, base)
    return updates.dense(found)


def adapted(base: PreTrainedModel, like: Update) -> nn.Module:
    """A copy of the base; if `like` is an adapter's update, with a new adapter of the same configuration."""
    network: nn.Module = copy.deepcopy(base)
    if like.config is None:
        return network
    config = LoraConfig.from_peft_type(**{**like.config, "inference_mode": False})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns about fan_in_fan_out
        wrapped: nn.Module = get_peft_model(network, config)
    return wrapped


def distillation(teacher: PreTrainedModel, task: Task) -> Callable[[nn.Module, Any], Tensor]:
    """A loss: KL(teacher ‖ network) of the logits that predict the task's answers, in nats."""

    def loss(network: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad():
            wanted = logits(teacher, task, batch)
        return kl(logits(network, task, batch), wanted)

    return loss


def logits(network: Any, task: Task, batch: Any) -> Tensor:
    """The logits [tokens, vocabulary] that predict the batch's answers."""
    found: Tensor = network.get_output_embeddings()(task.features(network, batch))
    return found
