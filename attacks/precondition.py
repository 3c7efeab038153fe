"""Preconditioning: the head is fitted on frozen features by second-order steps, then every weight is fine-tuned.

Zheng et al. 2025, https://arxiv.org/abs/2505.23760, make features on which gradient descent is slow. The solvers here
avoid that. The speed of whitened gradient steps and of Newton's method does not depend on the features' condition
number, and L-BFGS estimates the curvature as it goes. Newton's method works on the task's own loss, by conjugate
gradients (Nocedal & Wright 2006, algorithm 7.1; section 7.2 for L-BFGS).
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
from nftbench.methods import WhiteHead, conditioning

RIDGE = 1e-12
"""Added to the diagonal of the features' covariance, as a share of its trace, so that it has an inverse in float64."""
ROUNDING = 1e-8
"""The same if features are whitened in float32. Below this share of the variance they are largely rounding error."""
PENALTIES = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-6)
"""The penalties of Newton's method, one after the other, on the change of the logits from the released ones. The unit
is the curvature of a squared error. Without them the weights of a head that separates the classes would diverge."""
NEWTON_STEPS = 2
"""Newton steps for each penalty."""
CONJUGATE = 30
"""The most steps of conjugate gradients for a Newton step; with white features few are needed."""
TOLERANCE = 1e-2
"""Conjugate gradients end at this norm of the residual, relative to the gradient."""
HALVINGS = 20
"""How often a step is halved at most."""
ARMIJO = 1e-4
"""The share of the predicted decrease that a step must achieve (Nocedal & Wright 2006, section 3.1)."""

Curvature = Callable[[Tensor], Tensor]
"""The product of the Hessian and a direction, as a function of the direction."""


@dataclass(frozen=True)
class Precondition(Attack):
    """`by`: how the head is fitted. The head that is best on validation among all steps is the start of the sweep. With
    `whitening` the sweep, too, trains the head in the coordinates in which the released features are white."""

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
        assert isinstance(solved.network, PreTrainedModel)  # select returns a copy of a candidate

        def white(network: PreTrainedModel, attack_seed: int) -> PreTrainedModel:
            network.set_output_embeddings(_white_head(network.get_output_embeddings(), problem.covariance))
            return network

        adapter = white if self.by == "whitening" else None
        outcome = context.sweep(Model(solved.network, prepared.model.tokenizer), task, adapter=adapter)
        # Fitting the head costs about one forward pass over all documents, which is counted as steps of one batch each.
        spent = -(-len(task.split("train")) // context.budget.batch)
        cost = replace(
            outcome.cost, steps=outcome.cost.steps + spent, seconds=outcome.cost.seconds + solved.cost.seconds
        )
        return replace(outcome, cost=cost)


def _white_head(head: nn.Linear, covariance: Tensor) -> WhiteHead:
    """The same head on features that are whitened by their covariance C: the trained weight is W C^½."""
    values, vectors = torch.linalg.eigh(_ridged(covariance, ROUNDING))
    white = (vectors * values.rsqrt()) @ vectors.mT
    weight = head.weight.detach().double() @ ((vectors * values.sqrt()) @ vectors.mT)
    return WhiteHead(white.to(head.weight), weight.to(head.weight), head.bias)


def _untied(network: PreTrainedModel) -> PreTrainedModel:
    """A copy whose head is untied from the embeddings."""
    network = copy.deepcopy(network)
    head = network.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    network.config.tie_word_embeddings = False
    return network.requires_grad_(True)


def _placed(
    network: PreTrainedModel, weights: Iterator[Tensor], read: tuple[int, ...]
) -> Iterator[tuple[nn.Module, float, int]]:
    """The network with each head among `weights`, the head after step 0, 1, …, whose step is in `read`."""
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
    """The covariance of the features, with the ridge added [D, D]."""
    released: Tensor
    """The released weight of the head."""
    penalty: float = 0.0
    """The factor of half the mean squared difference between the logits and those of the released head."""

    @classmethod
    def of(cls, network: PreTrainedModel, task: Task) -> _Problem:
        network = copy.deepcopy(network).double().eval().requires_grad_(False)
        network.get_output_embeddings().weight.requires_grad_(True)
        train = task.split("train")
        batch = train.batch(range(len(train)))
        decoder = network.base_model
        if decoder is not network:
            decoder.forward = _once(decoder.forward)  # features are computed once, since only the head changes
        with torch.no_grad():
            features = task.features(network, batch)
        covariance = conditioning.covariance(features) / len(features)
        released = network.get_output_embeddings().weight.detach().clone()
        return cls(network, task, batch, _ridged(covariance, RIDGE), released)

    @property
    def inverse(self) -> Tensor:
        """The inverse of the covariance [D, D]."""
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
        """The loss, its gradient, and the function that multiplies a direction by the Hessian."""
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
    """A function that is evaluated at its first call and returns that result at every call."""
    found: list[Any] = []

    def call(*args: Any, **options: Any) -> Any:
        if not found:
            found.append(function(*args, **options))
        return found[0]

    return call


def _whitened(problem: _Problem, steps: int) -> Iterator[Tensor]:
    """Gradient descent in coordinates in which the features are white: W - t G C^-1. Yields each step's W.

    For a squared error the first step already gives the least-squares solution.
    """
    weight, inverse = problem.released, problem.inverse
    yield weight
    for _ in range(steps):
        loss, gradient, curved = problem.slope(weight)
        weight = _stepped(problem, weight, loss, gradient, curved, -gradient @ inverse)
        yield weight


def _newton(problem: _Problem) -> Iterator[Tensor]:
    """Newton's method with a decreasing penalty on the change of the logits. Yields each step's W.

    For a log-likelihood it is iteratively reweighted least squares.
    """
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
    """The direction d with `curved(d)` equal to `wanted`, by conjugate gradients preconditioned with the inverse
    covariance."""
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
    """Step to the minimum of the parabola along the direction, and halve the step until the loss decreases enough.

    If no halving helps, the weight stays as it is.
    """
    falls, bends = float((gradient * direction).sum()), float((direction * curved(direction)).sum())
    length = -falls / bends if bends > 0 else 0.0
    for _ in range(HALVINGS):
        moved = weight + length * direction
        if float(problem.loss(moved).detach()) <= loss + ARMIJO * length * falls:
            return moved
        length /= 2
    return weight


def _lbfgs(problem: _Problem, steps: int) -> Iterator[Tensor]:
    """L-BFGS with a strong Wolfe line search. Yields each step's W.

    It optimises W times the root mean square of the features, because PyTorch's tolerances are absolute and a defense
    could make features arbitrarily small.
    """
    scale = problem.covariance.diagonal().mean().rsqrt()
    weight = (problem.released / scale).requires_grad_(True)
    # One iteration per step. The default of max_eval (1.25 times max_iter) would allow its line search one evaluation.
    optimizer = torch.optim.LBFGS([weight], max_iter=1, max_eval=30, history_size=50, line_search_fn="strong_wolfe")

    def loss() -> float:
        value, gradient, _ = problem.slope(weight.detach() * scale)
        weight.grad = gradient * scale
        return value

    yield weight.detach() * scale
    for _ in range(steps):
        optimizer.step(loss)  # type: ignore[no-untyped-call]
        yield weight.detach() * scale
