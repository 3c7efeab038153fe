"""What an attacker computes beside the sweeps, and what that costs: `AttackerContext.train` and `gradients`."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from nftbench import probes
from nftbench.model import seeded
from nftbench.suite import Budget
from nftbench.train import CellTimeoutError, Stepper, autocast
from nftbench.types import EachStep, Mask, NftbenchError, Optimizer, StepLoss

WARMUP = 0.1
"""The share of the steps over which the learning rate rises."""


@dataclass
class Ledger:
    """What has been spent on preparation so far."""

    steps: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    peak_memory_bytes: int = 0


def train(
    network: nn.Module,
    loss: StepLoss,
    budget: Budget,
    seed: int,
    device: str,
    ledger: Ledger,
    *,
    steps: int,
    learning_rate: float,
    optimizer: Optimizer = "adamw",
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    each_step: EachStep | None = None,
) -> None:
    """Train `network` in place: `loss(network, step)` at each step, counted from 1.

    FLOPs are counted on one step of a copy and entered into the ledger times the steps taken.

    Raises:
        NftbenchError: no step to take.
        CellTimeoutError: the budget's seconds are used up.
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
            clip=budget.clip,
            mask=mask,
        )

    def value(trained: nn.Module, step: int) -> Tensor:
        with autocast(device):
            return loss(trained, step)

    taken, begun = 0, time.monotonic()
    with seeded(seed):
        cost = probes.step_cost(copy.deepcopy(network), stepper, lambda trained: value(trained, 1))
    with seeded(seed):
        own = stepper(network)
        network.train()
        for taken in range(1, steps + 1):
            own.step(value(network, taken))
            if time.monotonic() - begun > budget.timeout:
                raise CellTimeoutError(f"more than {budget.timeout:g} s of preparation")
            if each_step is not None and each_step(network, taken):
                break
    network.zero_grad()
    network.eval()
    ledger.steps += taken
    ledger.seconds += time.monotonic() - begun
    ledger.flops += taken * cost.step_flops
    ledger.peak_memory_bytes = max(ledger.peak_memory_bytes, cost.peak_memory_bytes)


def gradients(network: PreTrainedModel, batches: Iterable[Tensor], ledger: Ledger) -> Iterator[dict[str, Tensor]]:
    """The gradient on each batch [count, block], in evaluation mode; the ledger takes forward and backward."""
    network.eval()
    begun, flops = time.monotonic(), 0.0
    for tokens in batches:
        if not flops:
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                probes.gradients(network, tokens, len(tokens))
            flops = float(counter.get_total_flops())
        found = probes.gradients(network, tokens, len(tokens))
        ledger.flops += flops
        ledger.seconds += time.monotonic() - begun
        yield found
        begun = time.monotonic()
