"""The cost of running and training a network (memory, FLOPs, seconds), and the divergence between two networks.

For networks that take token ids, and for suites whose claim is a cost. Times are CPU seconds of this process, or wall
seconds on CUDA, and depend on the machine. All other measurements do not.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nftbench.training.costs import saved_bytes, step_cost
from nftbench.training.engine import Stepper


@dataclass(frozen=True)
class Footprint:
    """The cost of one training step of a network (AdamW on all parameters), the same on every machine."""

    parameters: int
    saved_bytes_per_token: float
    peak_memory_bytes: int
    forward_flops_per_token: float
    step_flops_per_token: float


@dataclass(frozen=True)
class Times:
    """Median seconds of a forward pass that saves tensors for the backward pass, and of the backward pass."""

    forward: float
    backward: float

    @property
    def ratio(self) -> float:
        """Backward seconds over forward seconds."""
        return self.backward / self.forward


def footprint(network: nn.Module, tokens: Tensor) -> Footprint:
    """Count the cost of one step on `tokens` [batch, block], on a copy of the network."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(input_ids=tokens)
    cost = step_cost(copy.deepcopy(network).requires_grad_(True), _adamw, lambda own: _loss(own, tokens))
    return Footprint(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        saved_bytes_per_token=cost.saved_bytes / tokens.numel(),
        peak_memory_bytes=cost.peak_memory_bytes,
        forward_flops_per_token=counter.get_total_flops() / tokens.numel(),
        step_flops_per_token=cost.step_flops / tokens.numel(),
    )


def saved_per_token(layer: nn.Module, hidden: Tensor) -> float:
    """Bytes that one layer saves for the backward pass for each token of its input `hidden` [.., width].

    The input counts if the layer saves it.
    """
    hidden = hidden.detach().requires_grad_(True)
    _, total = saved_bytes(layer, lambda own: own(hidden).sum())
    return total / hidden[..., 0].numel()


def times(networks: Sequence[nn.Module], tokens: Tensor, rounds: int = 7) -> list[Times]:
    """Times of each network on `tokens` [batch, block].

    The networks take turns, so that load on the machine slows all of them alike.
    """
    found: list[list[tuple[float, float]]] = [[] for _ in networks]
    for number in range(rounds + 1):
        for network, entries in zip(networks, found, strict=True):
            entry = _once(network, tokens)
            if number:  # the first round only warms up caches and allocators
                entries.append(entry)
    medians = [[statistics.median(column) for column in zip(*entries, strict=True)] for entries in found]
    return [Times(forward, backward) for forward, backward in medians]


@torch.no_grad()
def divergence(network: nn.Module, reference: nn.Module, tokens: Tensor, batch: int = 16) -> float:
    """Mean KL(reference ‖ network) of the next-token distributions over `tokens` [count, block], in nats."""
    parts = [
        (float(kl(network(input_ids=part).logits, reference(input_ids=part).logits)), len(part))
        for part in torch.split(tokens, batch)
    ]
    return sum(value * count for value, count in parts) / len(tokens)


def kl(logits: Tensor, reference: Tensor) -> Tensor:
    """Mean KL(reference ‖ logits) over all positions of two tensors [.., vocabulary], in nats."""
    log_q, log_p = (functional.log_softmax(each.flatten(0, -2), -1) for each in (logits, reference))
    return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _adamw(network: nn.Module) -> Stepper:
    return Stepper(network, "adamw", 1e-9, factor=lambda step: 1.0, weight_decay=0.0, clip=None)


def _loss(network: nn.Module, tokens: Tensor) -> Tensor:
    loss: Tensor = network(input_ids=tokens, labels=tokens).loss
    return loss


def _once(network: nn.Module, tokens: Tensor) -> tuple[float, float]:
    started = _now(tokens)
    loss = _loss(network, tokens)
    between = _now(tokens)
    torch.autograd.grad(loss, [parameter for parameter in network.parameters() if parameter.requires_grad])
    return between - started, _now(tokens) - between


def _now(tokens: Tensor) -> float:
    if not tokens.is_cuda:
        return time.process_time()
    torch.cuda.synchronize(tokens.device)
    return time.perf_counter()
