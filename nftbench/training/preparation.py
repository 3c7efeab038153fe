"""An attack's computations outside its sweep, and their cost: `AttackerContext.train` and `gradients`."""

from __future__ import annotations

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
from nftbench.models.copies import copied
from nftbench.models.networks import derive, seeded
from nftbench.terms import Optimizer
from nftbench.training import costs
from nftbench.training.engine import Stepper, autocast, shuffled, warmed
from nftbench.training.trainer import Trainer

WARMUP = 0.1
"""The share of the steps over which the learning rate rises to its full value."""

LOWER = 0.3
"""What the learning rate is multiplied by after a run that does not stay finite. A smaller factor would let a release
choose a much lower rate for the attacker than the one that just stays finite."""

TRIES = 9
"""The most learning rates that are tried: the given one, and eight lower ones down to a ten-thousandth of it."""


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
    """Train `network` in place on `loss(network, step)`, with steps counted from 1, and add the cost to `ledger`.

    The learning rate rises linearly over the first tenth of the steps and then falls linearly, as in a sweep whose
    rate decays: one schedule serves all of an attacker's training. Below five steps there is no warm-up. FLOPs are
    counted for one step on a copy, multiplied by the steps taken, and added to the trainer's ledger.

    A release can have weights that this learning rate turns into infinities, as SpecDef's large singular values do. An
    attacker sees that, and so training begins again at three tenths of the rate, at most eight times. `loss` and
    `each_step` are then called from step 1 again, and the ledger counts every step. If no rate stays finite, `network`
    keeps the weights that it came with.

    Raises:
        NftbenchError: `steps` is below 1, or nothing can be trained.
        CellTimeoutError: this run and the earlier ones in `ledger` have used up the budget's seconds.
    """
    if steps < 1:
        raise NftbenchError(f"training takes at least one step, not {steps}")
    warmup = round(WARMUP * steps)

    def stepper(trained: nn.Module, rate: float = learning_rate) -> Stepper:
        return Stepper(
            trained,
            optimizer,
            rate,
            factor=lambda step: warmed(step, warmup, steps),
            weight_decay=weight_decay,
            clip=trainer.budget.clip,
            mask=mask,
        )

    def value(trained: nn.Module, step: int) -> Tensor:
        with autocast(trainer.device):
            return loss(trained, step)

    seed, ledger, started = derive(trainer.seed, "train"), trainer.ledger, time.monotonic()
    with seeded(seed):
        cost = costs.step_cost(copied(network), stepper, lambda trained: value(trained, 1))
    initial = {name: weight.to("cpu", copy=True) for name, weight in network.state_dict().items()}
    taken = 0
    for attempt in range(TRIES):
        with seeded(seed):
            training = stepper(network, learning_rate * LOWER**attempt)
            network.train()
            for step in range(1, steps + 1):
                found = training.step(value(network, step))
                taken += 1
                ledger.check(started, trainer.budget)
                if not bool(found.isfinite()) and not finite(training.parameters):
                    break
                if each_step is not None and each_step(network, step):
                    break
        if finite(training.parameters):
            break
        network.load_state_dict(initial)
    network.zero_grad()
    network.eval()
    ledger.runs += attempt + 1
    ledger.steps += taken
    ledger.seconds += time.monotonic() - started
    ledger.flops += taken * cost.step_flops
    ledger.peak_memory_bytes = max(ledger.peak_memory_bytes, cost.peak_memory_bytes)


def finite(weights: Iterable[Tensor]) -> bool:
    """Whether no weight is infinite or not a number."""
    return all(bool(weight.isfinite().all()) for weight in weights)


def gradients(trainer: Trainer, network: PreTrainedModel, batches: Iterable[Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """The gradient of the next-token loss on each batch [count, block], by parameter name, in evaluation mode.

    The cost of the forward and backward passes is added to the trainer's ledger.
    """
    network.eval()
    started, flops = time.monotonic(), dict[torch.Size, float]()
    for tokens in batches:
        if tokens.shape not in flops:  # the last batch may be smaller
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                costs.gradients(network, tokens, len(tokens))
            flops[tokens.shape] = float(counter.get_total_flops())
        by_parameter = costs.gradients(network, tokens, len(tokens))
        trainer.ledger.flops += flops[tokens.shape]
        trainer.ledger.seconds += time.monotonic() - started
        yield by_parameter
        started = time.monotonic()


def tuned(network: PreTrainedModel, task: Task, context: AttackerContext, steps: int) -> PreTrainedModel:
    """A copy of `network` fine-tuned on a task once, at the middle of the budget's AdamW learning rates."""
    rates, rows = context.budget.learning_rates["adamw"], task.split("train")
    order = itertools.islice(shuffled(len(rows), context.budget.batch, context.seed), steps)
    batches = [rows.batch(indices) for indices in order]
    network = copied(network)
    context.train(
        network,
        lambda trained, step: task.loss(trained, batches[step - 1]),
        steps=steps,
        learning_rate=rates[(len(rates) - 1) // 2],
    )
    return network


def fitting(weights: Iterable[tuple[str, Tensor]], network: nn.Module) -> dict[str, Tensor]:
    """Those of the named weights whose name and shape match a parameter of `network`."""
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    return {name: weight.detach() for name, weight in weights if shapes.get(name) == weight.shape}
