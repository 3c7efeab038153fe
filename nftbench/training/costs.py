"""Measurements of a network's training: FLOPs and memory of a step, its gradients, and whether these are correct."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nftbench.contract import Cost
from nftbench.training.engine import Stepper

STEP_SIZES = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""Lengths of the finite differences tried along each direction; the one that agrees best counts. Some norms, such as
Llama's, always compute in float32, which is too coarse for short steps. Over long steps the loss is not linear; where
large weights cancel, it is linear over the shortest alone."""
SMALLEST = 1e-4
"""The scale of a weight is its size, and at least this share of its tensor's root mean square, so that zeros count."""
FLOAT32_TOLERANCE = 0.1
"""Largest relative distance between honest gradients in float32 and in float64; rounding stays far below it."""
MAX_ERROR = 2.0
"""The relative error of values that are not finite. Two finite numbers cannot differ by more, and records cannot hold
infinity."""


def step_cost(
    network: nn.Module,
    stepper: Callable[[nn.Module], Stepper],
    loss: Callable[[nn.Module], Tensor | Iterator[Tensor]],
) -> Cost:
    """FLOPs and memory of one optimizer step on `network`, which the step changes.

    FLOPs are those of the forward and the backward pass with PyTorch's math attention, because its counter sees none in
    fused CPU attention. Memory is that of parameters, gradients, optimizer state and tensors saved for the backward
    pass; on CUDA it is the allocator's peak. Of a loss in parts, the tensors of the first count.
    """
    optimizer = stepper(network)
    network.train()
    on_cuda = optimizer.parameters[0].is_cuda
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    _, saved = saved_bytes(network, lambda own: _first(loss(own)))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        optimizer.step(loss(network))
    state = [item for one in optimizer.optimizers for entry in one.state.values() for item in entry.values()]
    tensors = [*network.parameters(), *optimizer.parameters, *(item for item in state if isinstance(item, Tensor))]
    peak = sum(tensor.nbytes for tensor in tensors) + saved
    return Cost(
        step_flops=float(counter.get_total_flops()),
        saved_bytes=saved,
        peak_memory_bytes=torch.cuda.max_memory_allocated() if on_cuda else peak,
    )


def _first(loss: Tensor | Iterator[Tensor]) -> Tensor:
    return loss if isinstance(loss, Tensor) else next(loss)


def saved_bytes(network: nn.Module, loss: Callable[[nn.Module], Tensor]) -> tuple[Tensor, int]:
    """The loss, and the bytes that its graph saves for the backward pass.

    Each storage counts once, and parameters do not count.
    """
    # A storage is known by its object: asking for its address would copy weights that two networks share.
    parameters = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            sizes[storage._cdata] = storage.nbytes()
        return tensor.detach()  # a saved output would keep its graph in memory, and the graph the output

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(network)
    return value, sum(sizes.values())


def gradients(network: nn.Module, tokens: Tensor, batch: int = 32) -> dict[str, Tensor]:
    """The gradient of the mean next-token loss over `tokens` [count, block], by parameter name.

    It is computed `batch` blocks at a time and not stored in the network. Parameters that do not influence the loss
    have a gradient of zeros.
    """
    named = dict(network.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    for part in torch.split(tokens, batch):
        loss = network(input_ids=part, labels=part).loss
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
        for name, gradient in zip(named, found, strict=True):
            total[name].add_(gradient, alpha=len(part) / len(tokens))
    return total


def gradient_error(network: nn.Module, loss: Callable[[nn.Module], Tensor], seed: int, directions: int = 3) -> float:
    """The relative error of a network's gradients: 0 if they are exact, about 1 if they are unrelated to the loss.

    It is the largest |a - f| / max(|a|, |f|, |g|) over random directions, in float64. Here a is the directional
    derivative by autograd and f the one by central differences. |g| is the root mean square of a over all directions: a
    direction in which the loss hardly changes shows rounding alone.

    A direction changes each weight in proportion to its size. The same function can be computed by weights of very
    different sizes, and steps of one length would be too long for the small ones. The undefended `small` model and its
    rewrites (queries against keys over eight decades, gains over ten, a rotated stream, biases shifted by 1000) stay
    below 2e-7, and a custom backward pass that returns something else gives 0.5 to 1.

    Gradients are taken in training mode and differences in evaluation mode. Without dropout, which the caller turns
    off, both modes compute the same function.

    A distance between the float32 and the float64 gradients above `FLOAT32_TOLERANCE` counts as an error, too. The rows
    of `padding_rows` stay as they are.
    """
    network = copy.deepcopy(network)
    single = _gradients(network.float(), loss)
    double = _gradients(network.double(), loss)
    network.eval()
    parameters = list(network.parameters())
    padding = padding_rows(network)
    scales = [_scale(parameter.detach(), padding.get(parameter)) for parameter in parameters]
    distance = _distance(single, double, scales)
    worst = distance if distance > FLOAT32_TOLERANCE else 0.0
    typical = _norm(double, scales)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(directions):
        steps = [
            torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.device) * scale
            for parameter, scale in zip(parameters, scales, strict=True)
        ]
        derivative = sum(float((gradient * step).sum()) for gradient, step in zip(double, steps, strict=True))
        differences = [_central_difference(network, loss, parameters, steps, size) for size in STEP_SIZES]
        errors = [relative_error(derivative, difference, typical) for difference in differences]
        worst = max(worst, min(errors))
    return worst


def padding_rows(network: nn.Module) -> dict[Tensor, int]:
    """The row of each embedding that PyTorch never trains, by the embedding's weights.

    The gradient of `nn.Embedding` is zero at its `padding_idx`, although the loss depends on that row wherever the text
    holds the token. In some models it is the token that begins a document.
    """
    embeddings = (module for module in network.modules() if isinstance(module, nn.Embedding))
    return {one.weight: one.padding_idx for one in embeddings if one.padding_idx is not None}


def _scale(parameter: Tensor, padding: int | None) -> Tensor:
    """The scale of each weight. It is zero in the row `padding`, and nowhere else."""
    scale = parameter.abs() + SMALLEST * parameter.square().mean().sqrt() + 1e-8
    if padding is not None:
        scale[padding] = 0.0
    return scale


def _gradients(network: nn.Module, loss: Callable[[nn.Module], Tensor]) -> list[Tensor]:
    """The gradient of each parameter in training mode; zeros for parameters that do not influence the loss."""
    parameters = list(network.train().requires_grad_(True).parameters())
    return list(torch.autograd.grad(loss(network), parameters, allow_unused=True, materialize_grads=True))


def _distance(first: list[Tensor], second: list[Tensor], scales: list[Tensor]) -> float:
    """|first - second| / max(|first|, |second|), where each gradient is multiplied by its weight's scale."""
    largest = max(_norm(first, scales), _norm(second, scales))
    distance = _norm((one.double() - other for one, other in zip(first, second, strict=True)), scales)
    if not (math.isfinite(distance) and math.isfinite(largest)):
        return MAX_ERROR
    return distance / largest if largest else 0.0


def _norm(gradients: Iterable[Tensor], scales: list[Tensor]) -> float:
    """Euclidean norm of all gradients together, each multiplied by its weight's scale."""
    return math.hypot(*(float((scale * one).norm()) for one, scale in zip(gradients, scales, strict=True)))


def relative_error(derivative: float, difference: float, typical: float) -> float:
    """The distance of a derivative to a finite difference, relative to the largest of the two and of a typical
    derivative; `MAX_ERROR` if one of them is not finite."""
    if not (math.isfinite(derivative) and math.isfinite(difference)):
        return MAX_ERROR
    largest = max(abs(derivative), abs(difference), typical)
    return abs(derivative - difference) / largest if largest else 0.0


def _central_difference(
    network: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    parameters: list[nn.Parameter],
    steps: list[Tensor],
    size: float,
) -> float:
    """(loss(w + size·steps) - loss(w - size·steps)) / (2·size), with the parameters w left as they are."""
    values = []
    with torch.no_grad():
        for sign in (1.0, -1.0):
            for parameter, step in zip(parameters, steps, strict=True):
                parameter.add_(step, alpha=sign * size)
            values.append(float(loss(network)))
            for parameter, step in zip(parameters, steps, strict=True):
                parameter.sub_(step, alpha=sign * size)
    return (values[0] - values[1]) / (2 * size)
