"""DLR-Lock (a stand-in): every MLP is distilled into a deep low-rank residual network with as many parameters.

Sakamoto et al. 2026, "Locking Pretrained Weights via Deep Low-Rank Residual Distillation",
https://arxiv.org/abs/2605.10777. There is no public code, and the paper's equations and hyper-parameters were not
available to us. The network (`nftbench.models.architectures.dlr`), the losses and all defaults are ours and follow the
paper's description.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nftbench import Claim, Defense, Model, OwnerContext, Passes, Protected, Series, Spec, Stage, Suite
from nftbench.methods import Stepper, build, dlr, passes, seeded, token_batches
from nftbench.methods.distillation import error, joint_loss, module_loss, traced
from nftbench.methods.overhead import kl

READINGS = 20
"""The number of points of the error curves, which are measured on the first `batch` held-out blocks."""


@dataclass(frozen=True)
class DlrLock(Defense):
    """`depth`: the number of residual blocks that replace an MLP. `rank`: their rank; by default it follows from the
    MLP's parameter count, which any other rank must match within 2 %. `module_steps` and `joint_steps`: optimizer steps
    of the two phases of distillation, each on `batch` blocks of text."""

    stage: ClassVar[Stage] = "posttrain"
    claims: ClassVar[Claim | None] = Claim(frozenset({"method", "data"}))

    depth: int = 8
    rank: int | None = None
    learning_rate: float = 3e-3
    module_steps: int = 400
    joint_steps: int = 200
    batch: int = 16

    def __post_init__(self) -> None:
        if min(self.depth, self.batch) < 1 or min(self.module_steps, self.joint_steps) < 0 or self.learning_rate <= 0:
            raise ValueError("depth, batch and learning_rate must be above 0, module_steps and joint_steps at least 0")

    def control_row(self) -> str | None:
        """The same distillation into a single low-rank block, which shows the effect of depth alone."""
        if self.depth == 1:
            return None
        control = dataclasses.replace(self, depth=1, rank=None)
        values = [(field.name, getattr(control, field.name), field.default) for field in dataclasses.fields(self)]
        return str(Spec("dlr_lock", tuple((name, value) for name, value, default in values if value != default)))

    def check(self, suite: Suite) -> None:
        with torch.device("meta"):
            dlr.lock(build(suite.model, None, 0, "meta").network, self.depth, self.rank)

    def training_passes(self, suite: Suite) -> Passes:
        """The MLPs are taken to be half of a model. A step takes the teacher forwards, and a pass of the new MLPs. A
        joint step also takes a pass of the whole model with the gradients of its MLPs, and the teacher's MLPs forwards.
        A reading takes both models forwards, and their MLPs once more. A block of a DLR-Net keeps about a tenth of what
        a pass keeps. Teacher and student are in memory, with gradients and moments of the MLPs."""
        module = passes.FORWARD + 1 / 2
        joint = module + passes.ACTIVATIONS + 1 / 6 + passes.FORWARD / 2
        return Passes(
            blocks=self.batch * (self.module_steps * module + self.joint_steps * joint + 1 + READINGS),
            blocks_at_once=self.batch * (0.1 * self.depth + (1 if self.joint_steps else 0)),
            copies=3.5,
        )

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        teacher = model.network.eval()
        with seeded(context.seed):
            locked = dlr.lock(teacher, self.depth, self.rank)
        locked.requires_grad_(False)
        for module in dlr.mlps(locked).values():
            module.requires_grad_(True)
        heldout = context.corpus.heldout[: self.batch].to(teacher.device)
        readings = [read(0, locked, teacher, heldout)]
        for steps, loss, seed in (
            (self.module_steps, module_loss, context.seed),
            (self.joint_steps, joint_loss, context.seed + 1),
        ):
            begun = readings[-1].step
            stepper = Stepper(
                locked, "adamw", self.learning_rate, factor=decay(steps), weight_decay=0.0, clip=1.0, betas=(0.9, 0.95)
            )
            batches = token_batches(context.corpus.train, self.batch, seed, str(teacher.device))
            for step, tokens in zip(range(1, steps + 1), batches, strict=False):
                stepper.step(loss(locked, teacher, tokens))
                if step == steps or step % max((self.module_steps + self.joint_steps) // READINGS, 1) == 0:
                    readings.append(read(begun + step, locked, teacher, heldout))
        return Protected(Model(locked.requires_grad_(True), model.tokenizer), series=curves(readings))


def decay(steps: int) -> Callable[[int], float]:
    """The learning rate's factor: linear warm-up over a twentieth of the steps, then linear decay to a hundredth."""
    return lambda step: min(1.0, 20 * step / steps, 1.01 - step / steps)


class Reading(NamedTuple):
    """The distance to the teacher after `step` steps.

    `taught` holds each layer's relative error on the teacher's inputs, `own` the error on the locked model's inputs.
    `divergence` is the KL to the teacher in nats.
    """

    step: int
    taught: list[float]
    own: list[float]
    divergence: float


@torch.no_grad()
def read(step: int, locked: PreTrainedModel, teacher: PreTrainedModel, tokens: Tensor) -> Reading:
    taught, wanted = traced(teacher, tokens)
    own, logits = traced(locked, tokens)
    students, teachers = dlr.mlps(locked).values(), dlr.mlps(teacher).values()
    on_taught = [float(error(net(x), y)) for net, (x, y) in zip(students, taught, strict=True)]
    on_own = [float(error(y, mlp(x))) for mlp, (x, y) in zip(teachers, own, strict=True)]
    return Reading(step, on_taught, on_own, float(kl(logits, wanted)))


def curves(readings: Sequence[Reading]) -> tuple[Series, ...]:
    """Curves of the readings over the steps, and each layer's error at the end."""
    steps = tuple(float(reading.step) for reading in readings)
    found = [Series("KL to the teacher", steps, tuple(reading.divergence for reading in readings), y_label="nats")]
    for inputs in ("taught", "own"):
        errors = [getattr(reading, inputs) for reading in readings]
        name = f"relative error on {'teacher' if inputs == 'taught' else 'own'} inputs"
        layers = range(len(errors[-1]))
        found += [Series(f"{name}, layer {layer}", steps, tuple(each[layer] for each in errors)) for layer in layers]
        found.append(Series(f"{name}, at the end", tuple(map(float, layers)), tuple(errors[-1]), x_label="layer"))
    return tuple(found)
