"""What an attacker computes beside the sweeps, and what that costs: `AttackerContext.train` and `gradients`."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from nftbench.contract import AttackerContext, EachStep, Mask, StepLoss, Task
from nftbench.errors import NftbenchError
from nftbench.models.networks import derive, seeded
from nftbench.terms import Optimizer
from nftbench.training import costs as probes
from nftbench.training.engine import Stepper, autocast, shuffled
from nftbench.training.trainer import Trainer

WARMUP = 0.1
"""The share of the steps over which the learning rate rises."""


def train(
    trainer: Trainer,
    network: nn.Module,
    loss: StepLoss,
    *,
    steps: int,
    learning_rate: float,
    optimizer: Optimizer = "adamw",
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    each_step: EachStep | None = None,
) -> None:
    """Train `network` in place: `loss(network, step)` at each step, counted from 1.

    FLOPs are counted on one step of a copy and entered into the trainer's ledger times the steps taken.

    Raises:
        NftbenchError: no step to take.
        CellTimeoutError: the budget's seconds are used up, by this run and those that the ledger holds.
    """
    if steps < 1:
        raise NftbenchError(f"training takes at least one step, not {steps}")
    warmup = max(1, round(WARMUP * steps))

    def stepper(trained: nn.Module) -> Stepper:
        return Stepper(
            trained,
            optimizer,
            learning_rate,
            factor=lambda step: min(step / warmup, (steps + 1 - step) / max(steps + 1 - warmup, 1)),
            weight_decay=weight_decay,
            clip=trainer.budget.clip,
            mask=mask,
        )

    def value(trained: nn.Module, step: int) -> Tensor:
        with autocast(trainer.device):
            return loss(trained, step)

    seed, ledger, taken, begun = derive(trainer.seed, "train"), trainer.ledger, 0, time.monotonic()
    with seeded(seed):
        cost = probes.step_cost(copy.deepcopy(network), stepper, lambda trained: value(trained, 1))
    with seeded(seed):
        own = stepper(network)
        network.train()
        for taken in range(1, steps + 1):
            own.step(value(network, taken))
            ledger.check(begun, trainer.budget)
            if each_step is not None and each_step(network, taken):
                break
    network.zero_grad()
    network.eval()
    ledger.runs += 1
    ledger.steps += taken
    ledger.seconds += time.monotonic() - begun
    ledger.flops += taken * cost.step_flops
    ledger.peak_memory_bytes = max(ledger.peak_memory_bytes, cost.peak_memory_bytes)


def gradients(trainer: Trainer, network: PreTrainedModel, batches: Iterable[Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """The gradient on each batch [count, block], in evaluation mode; the ledger takes forward and backward."""
    network.eval()
    begun, flops = time.monotonic(), dict[torch.Size, float]()
    for tokens in batches:
        if tokens.shape not in flops:  # the last batch may be smaller
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                probes.gradients(network, tokens, len(tokens))
            flops[tokens.shape] = float(counter.get_total_flops())
        found = probes.gradients(network, tokens, len(tokens))
        trainer.ledger.flops += flops[tokens.shape]
        trainer.ledger.seconds += time.monotonic() - begun
        yield found
        begun = time.monotonic()


def tuned(network: PreTrainedModel, task: Task, context: AttackerContext, steps: int) -> PreTrainedModel:
    """A copy fine-tuned once, at the middle one of the budget's AdamW learning rates."""
    rates, rows = context.budget.learning_rates["adamw"], task.split("train")
    order = itertools.islice(shuffled(len(rows), context.budget.batch, context.seed), steps)
    batches = [rows.batch(indices) for indices in order]
    copied = copy.deepcopy(network)
    context.train(
        copied,
        lambda trained, step: task.loss(trained, batches[step - 1]),
        steps=steps,
        learning_rate=rates[(len(rates) - 1) // 2],
    )
    return copied


def fitting(weights: Iterable[tuple[str, Tensor]], network: nn.Module) -> dict[str, Tensor]:
    """Those of some named weights that `network` has a parameter of the same name and shape for."""
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    return {name: weight.detach() for name, weight in weights if shapes.get(name) == weight.shape}
