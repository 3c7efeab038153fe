"""A linear probe on frozen features, trained by gradient descent as in the condition-number paper or by better solvers.

Zheng et al. 2025, https://arxiv.org/abs/2505.23760, Eq. 16: immunized features slow down gradient descent with exact
line search. But least squares has the same optimum through any invertible extractor. Solvers whose speed does not
depend on the condition number find it at once: ridge regression, whitening, and L-BFGS (Nocedal & Wright 2006, section
7.2).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nftbench import Adaptation, Attack, AttackerContext, Knowledge, Outcome, Prepared, Task, TrainedWeights
from nftbench.methods import conditioning

PENALTIES = tuple(10.0**power for power in range(-10, 5, 2))
"""The ridge penalties that are tried, relative to the mean eigenvalue of the features' covariance."""


@dataclass(frozen=True)
class LinearProbe(Attack):
    """`solver`:

    - `gradient_descent` on least squares with exact line search, from a probe of zeros, read at the budget's durations
    - `ridge`: ridge regression in closed form, at eight penalties
    - `whitened`: the same on whitened features
    - `lbfgs` on the task's own loss, read at the budget's durations

    `precision`: the precision of the computation and of the probe.
    """

    trained_weights: ClassVar[TrainedWeights] = "part"
    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"method"})
    adaptation: ClassVar[Adaptation] = "linear_probe"
    against: ClassVar[frozenset[str]] = frozenset({"condition_number"})

    solver: Literal["gradient_descent", "ridge", "whitened", "lbfgs"] = "gradient_descent"
    precision: Literal["float32", "float64"] = "float64"

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        network = copy.deepcopy(prepared.model.network).to(getattr(torch, self.precision)).eval()
        network.requires_grad_(False)
        head = network.get_output_embeddings()
        head.weight = nn.Parameter(torch.zeros_like(head.weight))  # untied: the embeddings stay as released
        network.config.tie_word_embeddings = False
        train = task.split("train")
        batch = train.batch(range(len(train)))
        if self.solver == "lbfgs":
            found = _lbfgs(network, head, task, batch, context.budget.durations)
        else:
            with torch.no_grad():
                features = task.features(network, batch)
                targets = task.targets(network, batch).to(features)
            if self.solver == "gradient_descent":
                found = _descend(features, targets, context.budget.durations)
            else:
                found = _penalised(features, targets, self.solver == "whitened")
        return context.select(task, _placed(network, head, found))


def _placed(
    network: nn.Module, head: Any, probes: Iterator[tuple[Tensor, float, int]]
) -> Iterator[tuple[nn.Module, float, int]]:
    """The network with each of the probes w [D, n] as its head."""
    for probe, setting, steps in probes:
        with torch.no_grad():
            head.weight.copy_(probe.mT)
        yield network, setting, steps


def _descend(features: Tensor, targets: Tensor, durations: tuple[int, ...]) -> Iterator[tuple[Tensor, float, int]]:
    """Gradient descent on ||F w - Y||^2 with exact line search: the probe at each duration.

    With F = QR the gradient equals that of ||R w - Q'Y||^2, which has D rows instead of one for each document.
    """
    probe = torch.zeros(features.shape[1], targets.shape[1]).to(features)
    left, features = torch.linalg.qr(features)
    targets = left.mT @ targets
    for step in range(max(durations) + 1):
        if step in durations:
            yield probe, 0.0, step
        gradient = features.mT @ (features @ probe - targets)
        probe = probe - conditioning.line_search(features, gradient) * gradient


def _penalised(features: Tensor, targets: Tensor, whitened: bool) -> Iterator[tuple[Tensor, float, int]]:
    """The w of least ||F w - Y||^2 + penalty ||w||^2, for each penalty. If `whitened`, the features F are whitened."""
    left, values, right = torch.linalg.svd(features, full_matrices=False)
    kept = values > max(features.shape) * torch.finfo(values.dtype).eps * values[0]
    left, values, right = left[:, kept], values[kept], right[kept]
    size = torch.ones_like(values) if whitened else values / values.square().mean().sqrt()
    yield torch.zeros(features.shape[1], targets.shape[1]).to(features), 0.0, 0
    for penalty in PENALTIES:
        shrunk = size.square() / (size.square() + penalty) / values
        yield right.mT @ (shrunk[:, None] * (left.mT @ targets)), penalty, 1


def _lbfgs(
    network: nn.Module, head: Any, task: Task, batch: Any, durations: tuple[int, ...]
) -> Iterator[tuple[Tensor, float, int]]:
    """L-BFGS with a strong Wolfe line search on the task's loss: the probe at each duration.

    It optimises v, where w = v / (root mean square of the features), because PyTorch's tolerances are absolute and a
    defense could make features arbitrarily small.
    """
    with torch.no_grad():
        scale = 1 / task.features(network, batch).square().mean().sqrt()
    probe = torch.zeros_like(head.weight, requires_grad=True)
    # One iteration per step. The default of max_eval (1.25 times max_iter) would allow its line search one evaluation.
    optimizer = torch.optim.LBFGS([probe], max_iter=1, max_eval=30, history_size=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        with torch.no_grad():
            head.weight.copy_(probe * scale)
        head.weight.grad = None
        value = task.loss(network, batch)
        value.backward()  # type: ignore[no-untyped-call]
        probe.grad = head.weight.grad * scale
        return value

    for step in range(max(durations) + 1):
        if step in durations:
            yield (probe.detach() * scale).mT, 0.0, step
        if step < max(durations):
            optimizer.step(loss)  # type: ignore[no-untyped-call]
