"""Preconditioning: the head is solved for on frozen features by second-order steps, then every weight is fine-tuned.

Zheng et al. 2025, https://arxiv.org/abs/2505.23760, make features on which gradient descent is slow. No solver here
is as slow: whitened gradient steps and Newton's method on the task's own loss, by conjugate gradients (Nocedal & Wright
2006, algorithm 7.1), do not go by the condition number, and L-BFGS (section 7.2 there) learns the curvature on its way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nftbench import Attack, AttackerContext, Knowledge, Model, Outcome, Prepared, Task
from nftbench.methods import conditioning

RIDGE = 1e-12
"""Added to the covariance of the features, as a share of its trace: what has no inverse gets one in float64."""
ROUNDING = 1e-8
"""The same where features are made white in float32: below this share of the variance they are half rounding."""
PENALTIES = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-6)
"""Of Newton's method, one after the other: on how far the logits move from the released ones, as a share of a squared
error's own curvature. Without them classes that a head can tell apart send its weights to infinity."""
NEWTON_STEPS = 2
"""For each penalty."""
CONJUGATE = 30
"""Conjugate gradients for a Newton step at most; features that are white need few."""
TOLERANCE = 1e-2
"""The share of the gradient at which conjugate gradients end."""
HALVINGS = 20
ARMIJO = 1e-4
"""The share of the promised descent that a step has to keep (Nocedal & Wright 2006, section 3.1)."""

Curvature = Callable[[Tensor], Tensor]
"""What a second derivative makes of a direction."""


@dataclass(frozen=True)
class Precondition(Attack):
    """`by`: how the head is solved for. With `whitening` all that follows is fine-tuned in the coordinates in which the
    features are white, too. Of the heads on the way, the best on validation is where the sweep begins."""

    knowledge: ClassVar[frozenset[Knowledge]] = frozenset({"method"})
    against: ClassVar[frozenset[str]] = frozenset({"condition_number"})

    by: Literal["whitening", "newton", "lbfgs"] = "whitening"

    def adapt(self, prepared: Prepared, task: Task, context: AttackerContext) -> Outcome:
        start = _untied(prepared.model.network)
        problem = _Problem.of(start, task)
        durations = context.budget.durations
        if self.by == "newton":
            read = tuple(range(0, NEWTON_STEPS * len(PENALTIES) + 1, NEWTON_STEPS))
            weights = _newton(problem)
        else:
            read, weights = durations, {"whitening": _whitened, "lbfgs": _lbfgs}[self.by](problem, max(durations))
        solved = context.select(task, _placed(start, weights, read))
        assert isinstance(solved.network, PreTrainedModel)  # a copy of what was given

        def white(network: PreTrainedModel, attack_seed: int) -> PreTrainedModel:
            network.set_output_embeddings(WhiteHead(network.get_output_embeddings(), problem.covariance))
            return network

        adapter = white if self.by == "whitening" else None
        outcome = context.sweep(Model(solved.network, prepared.model.tokenizer), task, adapter=adapter)
        # Its forward pass over all documents costs about as much as one over as many batches, and the rest is small.
        spent = -(-len(task.split("train")) // context.budget.batch)
        cost = replace(
            outcome.cost, steps=outcome.cost.steps + spent, seconds=outcome.cost.seconds + solved.cost.seconds
        )
        return replace(outcome, cost=cost)


class WhiteHead(nn.Linear):
    """A head W C^½ on features x C^-½, which have the identity for a covariance; together it is W still."""

    white: Tensor

    def __init__(self, head: nn.Linear, covariance: Tensor) -> None:
        super().__init__(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
        values, vectors = torch.linalg.eigh(_ridged(covariance, ROUNDING))
        white = (vectors * values.rsqrt()) @ vectors.mT
        weight = head.weight.detach().double() @ ((vectors * values.sqrt()) @ vectors.mT)
        self.register_buffer("white", white.to(head.weight))
        self.weight = nn.Parameter(weight.to(head.weight))
        self.bias = head.bias

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features @ self.white)


def _untied(network: PreTrainedModel) -> PreTrainedModel:
    """A copy with a head of its own."""
    network = copy.deepcopy(network)
    head = network.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    network.config.tie_word_embeddings = False
    return network.requires_grad_(True)


def _placed(
    network: PreTrainedModel, weights: Iterator[Tensor], read: tuple[int, ...]
) -> Iterator[tuple[nn.Module, float, int]]:
    """The network with the head as it is after so many steps."""
    head = network.get_output_embeddings()
    for step, weight in enumerate(weights):
        if step in read:
            with torch.no_grad():
                head.weight.copy_(weight)
            yield network, 0.0, step


# ------------------------------------------------------------------------------------------------------------- the head


@dataclass(frozen=True)
class _Problem:
    """The task's loss on all training documents as a function of the head's weight [outputs, D], in float64."""

    network: PreTrainedModel
    task: Task
    batch: Any
    covariance: Tensor
    """Of the features, with the ridge [D, D]."""
    released: Tensor
    """The head's weight as it came."""
    penalty: float = 0.0
    """Times half the mean square of what the logits move from those of the released head."""

    @classmethod
    def of(cls, network: PreTrainedModel, task: Task) -> _Problem:
        network = copy.deepcopy(network).double().eval().requires_grad_(False)
        network.get_output_embeddings().weight.requires_grad_(True)
        train = task.split("train")
        batch = train.batch(range(len(train)))
        decoder = network.base_model
        if decoder is not network:
            decoder.forward = _once(decoder.forward)  # nothing before the head changes
        with torch.no_grad():
            features = task.features(network, batch)
        covariance = conditioning.covariance(features) / len(features)
        released = network.get_output_embeddings().weight.detach().clone()
        return cls(network, task, batch, _ridged(covariance, RIDGE), released)

    @property
    def inverse(self) -> Tensor:
        """The covariance's [D, D]."""
        return conditioning.precondition(torch.eye(len(self.covariance)).to(self.covariance), self.covariance)

    def loss(self, weight: Tensor) -> Tensor:
        own = self.network.get_output_embeddings().weight
        with torch.no_grad():
            own.copy_(weight)
        loss: Tensor = self.task.loss(self.network, self.batch)
        moved = own - self.released
        excess: Tensor = self.penalty / 2 * ((moved @ self.covariance) * moved).sum()
        return loss + excess

    def slope(self, weight: Tensor) -> tuple[float, Tensor, Curvature]:
        """The loss, its gradient, and what its second derivative makes of a direction."""
        own = self.network.get_output_embeddings().weight
        loss = self.loss(weight)
        (gradient,) = torch.autograd.grad(loss, own, create_graph=True)

        def curved(direction: Tensor) -> Tensor:
            product: Tensor = torch.autograd.grad(gradient, own, direction, retain_graph=True)[0]
            return product

        return float(loss.detach()), gradient.detach(), curved


def _ridged(covariance: Tensor, share: float) -> Tensor:
    return covariance + share * covariance.trace() * torch.eye(len(covariance)).to(covariance)


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which is called but once and then gives the same again."""
    found: list[Any] = []

    def call(*args: Any, **options: Any) -> Any:
        if not found:
            found.append(function(*args, **options))
        return found[0]

    return call


def _whitened(problem: _Problem, steps: int) -> Iterator[Tensor]:
    """Gradient descent in coordinates in which the features are white: W - t G C^-1.

    Of a squared error the first step is least squares on white features.
    """
    weight, inverse = problem.released, problem.inverse
    yield weight
    for _ in range(steps):
        loss, gradient, curved = problem.slope(weight)
        weight = _stepped(problem, weight, loss, gradient, curved, -gradient @ inverse)
        yield weight


def _newton(problem: _Problem) -> Iterator[Tensor]:
    """Newton's method, which is iteratively reweighted least squares where the loss is a likelihood, with a penalty on
    the mean square of what the logits move, that falls."""
    weight = problem.released
    yield weight
    for penalty in PENALTIES:
        penalised = replace(problem, penalty=penalty)
        for _ in range(NEWTON_STEPS):
            loss, gradient, curved = penalised.slope(weight)
            direction = _conjugate_gradients(curved, -gradient, problem.inverse)
            weight = _stepped(penalised, weight, loss, gradient, curved, direction)
            yield weight


def _conjugate_gradients(curved: Curvature, wanted: Tensor, inverse: Tensor) -> Tensor:
    """The direction of which `curved` makes what is wanted, preconditioned by the inverse of the covariance."""
    found, residual = torch.zeros_like(wanted), wanted
    along = residual @ inverse
    size = (residual * along).sum()
    enough = TOLERANCE**2 * float(size)
    for _ in range(CONJUGATE):
        bent = curved(along)
        curvature = (along * bent).sum()
        if float(size) <= enough or not float(curvature) > 0:
            break
        found = found + size / curvature * along
        residual = residual - size / curvature * bent
        white = residual @ inverse
        before, size = size, (residual * white).sum()
        along = white + size / before * along
    return found


def _stepped(
    problem: _Problem, weight: Tensor, loss: float, gradient: Tensor, curved: Curvature, direction: Tensor
) -> Tensor:
    """To where the parabola along the direction ends, or half as far as long as that is no descent."""
    falls, bends = float((gradient * direction).sum()), float((direction * curved(direction)).sum())
    length = -falls / bends if bends > 0 else 0.0
    for _ in range(HALVINGS):
        moved = weight + length * direction
        if float(problem.loss(moved).detach()) <= loss + ARMIJO * length * falls:
            return moved
        length /= 2
    return weight


def _lbfgs(problem: _Problem, steps: int) -> Iterator[Tensor]:
    """L-BFGS with a strong Wolfe line search, over W times the features' root mean square: PyTorch's tolerances are
    absolute, and a defense may make features as small as it likes."""
    scale = problem.covariance.diagonal().mean().rsqrt()
    weight = (problem.released / scale).requires_grad_(True)
    # One iteration a step, and as many evaluations as its line search asks for: left out, they are limited to one.
    optimizer = torch.optim.LBFGS([weight], max_iter=1, max_eval=30, history_size=50, line_search_fn="strong_wolfe")

    def loss() -> float:
        value, gradient, _ = problem.slope(weight.detach() * scale)
        weight.grad = gradient * scale
        return value

    yield weight.detach() * scale
    for _ in range(steps):
        optimizer.step(loss)  # type: ignore[no-untyped-call]
        yield weight.detach() * scale
