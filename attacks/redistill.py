"""Re-distillation: parts that a defense replaced are distilled back into standard ones, which are then fine-tuned.

These are the two phases of DLR-Lock in reverse (Sakamoto et al. 2026, https://arxiv.org/abs/2605.10777; our stand-in
for them is `nftbench.methods.distillation`). They need only public text, and cost the attacker as much as the owner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from nftbench import (
    Attack,
    AttackerContext,
    Knowledge,
    Model,
    NftbenchError,
    Outcome,
    Prepared,
    Release,
    StepLoss,
    Task,
)
from nftbench.methods import dlr, seeded, untrained
from nftbench.methods.distillation import joint_loss, module_loss
from nftbench.methods.overhead import kl

Loss = Callable[[nn.Module, nn.Module, Tensor], Tensor]
"""A loss as a function of student, teacher and tokens [batch, block]."""
MODULES = 2 / 3
"""The share of the steps for the first phase, MLP by MLP, as in our DLR-Lock."""


@dataclass(frozen=True)
class Redistill(Attack):
    """`what`: `mlps` distils each MLP into a new standard one, first by itself and then on the logits, with all other
    weights as released. `nftbench.models.architectures.dlr.mlps` says what is taken for an MLP on each architecture.
    `model` distils the whole release into an untrained model on the logits. `steps`: total steps on text; None for as
    many as the budget allows. `learning_rate`: None for that of the owner's pre-training, which also began with
    untrained weights."""

    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"method", "data"})
    against: ClassVar[frozenset[str]] = frozenset({"dlr_lock"})

    what: Literal["mlps", "model"] = "mlps"
    steps: int | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is not None and self.steps < 1) or (self.learning_rate is not None and self.learning_rate <= 0):
            raise ValueError("steps must be at least 1 and learning_rate above 0")

    def prepare(self, release: Release, context: AttackerContext) -> Prepared:
        teacher = release.model.network
        student = ordinary(teacher, context.seed)
        text = context.text(release.model, context.budget.batch)

        def on_text(loss: Loss) -> StepLoss:
            return lambda network, step: loss(network, teacher, next(text))

        steps = self.steps or context.budget.preparation_steps
        rate = self.learning_rate or context.pretraining.learning_rate
        phases: tuple[tuple[Loss, int], ...] = ((logit_loss, steps),)
        if self.what == "mlps":
            keep_all_but_mlps(student, teacher)
            first = max(1, round(MODULES * steps))
            phases = ((module_loss, first), (joint_loss, steps - first))
        for loss, count in phases:
            if count:
                context.train(student, on_text(loss), steps=count, learning_rate=rate)
        return Prepared(Model(student.requires_grad_(True), release.model.tokenizer))

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        return context.sweep(prepared.model, task)


def ordinary(network: PreTrainedModel, seed: int) -> PreTrainedModel:
    """An untrained network with standard MLPs, of the architecture before locking or, if not locked, of its own."""
    kinds = [kind for kind, family in dlr.FAMILIES.items() if isinstance(network.config, family.config)]
    if not kinds:
        return untrained(network, seed)
    others = {"model_type", "architectures", "transformers_version", "dlr_depth", "dlr_rank"}
    settings = {name: value for name, value in network.config.to_dict().items() if name not in others}
    config = AutoConfig.for_model(kinds[0], **settings)
    config._attn_implementation = network.config._attn_implementation
    with seeded(seed):
        found: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return found.to(device=network.device, dtype=network.dtype)


def keep_all_but_mlps(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Copy the teacher's weights outside of its MLPs to the student, and make only the student's MLPs trainable.

    Raises:
        NftbenchError: the MLPs of the architecture are not known.
    """
    inside = tuple(f"{name}." for name in dlr.mlps(teacher))
    if not inside:
        raise NftbenchError(f"redistill: it is not known where {teacher.config.model_type} has its MLPs")
    kept = {name: tensor for name, tensor in teacher.state_dict().items() if not name.startswith(inside)}
    missing, unexpected = student.load_state_dict(kept, strict=False)
    assert not unexpected and all(name.startswith(inside) for name in missing), (missing, unexpected)  # noqa: PT018
    student.requires_grad_(False)
    for mlp in dlr.mlps(student).values():
        mlp.requires_grad_(True)


def logit_loss(student: nn.Module, teacher: nn.Module, tokens: Tensor) -> Tensor:
    """KL(teacher ‖ student) over all positions, in nats (Hinton et al. 2015, arXiv:1503.02531, at temperature 1)."""
    with torch.no_grad():
        wanted = teacher(input_ids=tokens).logits
    return kl(student(input_ids=tokens).logits, wanted)
