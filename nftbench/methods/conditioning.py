"""How hard a linear probe is to train by gradient descent: condition numbers, and the regularizers that move them.

Zheng et al. 2025, "Model Immunization from a Condition Number Perspective", ICML, https://arxiv.org/abs/2505.23760
(in the following: the paper), and their code, amberyzheng/model-immunization-cond-num, dc536a8 (the code).

Inputs X [N, D], extractor theta [D, D], features F = X theta, data covariance K = X^T X [D, D], neither centred nor
divided by N, as in the paper. Probing by least squares has the Hessian H(theta) = theta^T K theta [D, D] (Eq. 9), up to
a factor that leaves the condition number alone. Singular values of H are s_1 >= … >= s_k > 0, k its rank.
All results come in the dtype that goes in; where nothing else is said that should be float64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nftbench.errors import NftbenchError

RIDGE = 1e-6
"""What is added to a matrix before its condition number is taken, and what an eigenvalue must exceed to count (the
code's `condition_number`)."""
MEMORY = 8 * 2**30
"""Bytes that inverting a covariance may take. A constant, and not what is free: a defense must not depend on that."""
COPIES = 3
"""The covariance, its factor and the workspace of the factorization."""

# ------------------------------------------------------------------------------------------------- condition numbers


def covariance(inputs: Tensor) -> Tensor:
    """K = X^T X [D, D] of inputs or features X [N, D]."""
    return inputs.mT @ inputs


def hessian(theta: Tensor, covariance: Tensor) -> Tensor:
    """H(theta) = theta^T K theta [D, D], exactly symmetric (Eq. 9)."""
    product = theta.mT @ covariance @ theta
    return (product + product.mT) / 2


def condition_number(matrix: Tensor, *, ridge: float = RIDGE, floor: float | None = None) -> float:
    """kappa = s_max / s_min of a symmetric positive semi-definite matrix [D, D], by the code's convention.

    In float64, of `matrix + ridge I`; s_min is the smallest eigenvalue above `floor`, which is `ridge` unless told.
    Mind what that means for a matrix that lacks rank: the exact zeros become `ridge`, and rounding lifts about half of
    them a little above it, so that kappa is s_max / ridge. With `ridge=0, floor=…` it is the paper's Eq. 1, in which
    the pseudo-inverse leaves zeros out.

    Raises:
        NftbenchError: no eigenvalue exceeds the floor.
    """
    double = matrix.double()
    values = torch.linalg.eigvalsh(double + ridge * torch.eye(len(double), dtype=double.dtype, device=double.device))
    counted = values[values > (ridge if floor is None else floor)]
    if len(counted) == 0:
        raise NftbenchError(f"no eigenvalue of the matrix exceeds {ridge if floor is None else floor:g}")
    return float(counted[-1] / counted[0])


def rank(values: Tensor, size: int) -> int:
    """How many of the singular values, falling, exceed what rounding leaves of a zero: size · eps · s_1."""
    return int((values > size * torch.finfo(values.dtype).eps * values[0]).sum())


# ------------------------------------------------------------------------------------------------------ regularizers


def probe_r_well(features: Tensor) -> Tensor:
    """R_well(S) = ||S||_2^2 / 2 - ||S||_F^2 / (2 D) of S = F^T F [D, D], features F [N, D] (Eq. 3; Nenov et al. 2024).

    S is not made where there are fewer rows. Never negative, zero exactly where all singular
    values are equal; going down on it lowers the condition number.
    """
    return _well(_spectrum(features), features.shape[1])


def probe_r_ill(features: Tensor) -> Tensor:
    """R_ill(S) = 1 / (||S||_F^2 / (2 k) - s_k^2 / 2) of S = F^T F [D, D] of features F [N, D], k its rank (Eq. 12).

    1 / log kappa <= s_1^2 R_ill (Theorem 4.1); going down on it raises the condition number. Infinite where all
    singular values are equal.
    """
    values = _spectrum(features)
    return 1 / _spread(values[: rank(values.detach(), max(features.shape))])


def _spectrum(features: Tensor) -> Tensor:
    """The eigenvalues of F^T F that can differ from zero, falling: those of F F^T if that is the smaller of the two."""
    small = features if features.shape[0] > features.shape[1] else features.mT
    values: Tensor = torch.linalg.eigvalsh(small.mT @ small).flip(0).clamp_min(0)
    return values


def _well(values: Tensor, size: int) -> Tensor:
    """s_1^2 / 2 - ||S||_F^2 / (2 p) from the singular values that are not zero; `size` is p."""
    value: Tensor = values[0].square() / 2 - values.square().sum() / (2 * size)
    return value


def _spread(values: Tensor) -> Tensor:
    """||S||_F^2 / (2 k) - s_k^2 / 2 from the k singular values; as a sum of differences, which does not cancel."""
    return (values.square() - values[-1].square()).sum() / (2 * len(values))


# ------------------------------------------------------------------------------------------------------- step bounds


class StepBounds(NamedTuple):
    """Steps eta below which theta - eta K^-1 dR/dtheta moves the condition number as Theorem 4.3 says, for either R."""

    well: float
    ill: float


def step_bounds(hessian: Tensor) -> StepBounds:
    """Below these the step on R_well lowers kappa(H) and the step on R_ill raises it, for K and theta of full rank.

    With G = dR/dH the step is theta' = theta - 2 eta theta G, since K^-1 cancels the K of Theorem 4.2; G is a function
    of H and commutes with it, so that H' = (I - 2 eta G) H (I - 2 eta G) has H's eigenvectors and the eigenvalues
    s_i' = s_i (1 - 2 eta g_i)^2. From there the bounds are our own derivation, as the paper's do not hold as printed
    (see `published_step_bounds`). D is the size of H, a = 1 - 1/D. A step without K^-1 has no such bound.

    R_well: g_1 = a s_1, and g_i = -s_i / D for the others, which grow in order. kappa falls if s_1' stays at or above
    s_D', hence eta <= (s_1^½ - s_D^½) / (2 (a s_1^(3/2) + s_D^(3/2) / D)), and s_2' stays below s_1, hence
    eta < D (s_1^½ - s_2^½) / (2 s_2^(3/2)), which is the paper's second term.

    R_ill: with d = ||H||_F^2 / (2 D) - s_D^2 / 2, g_D = a s_D / d^2 and g_i = -s_i / (D d^2). All but s_D grow, and s_D
    falls to zero at 2 eta g_D = 1, hence eta < d^2 / (2 a s_D): up to there kappa rises with eta without end. (Up to
    twice that s_D still ends below where it was, but on the way H loses a rank, and Eq. 1 stops counting it.)
    """
    values = _eigenvalues(hessian)
    size, first, second, last = len(values), values[0], values[1], values[-1]
    most = 1 - 1 / size
    ordered = (math.sqrt(first) - math.sqrt(last)) / (2 * (most * first**1.5 + last**1.5 / size))
    below = (math.sqrt(first) - math.sqrt(second)) * size / (2 * second**1.5)
    spread = sum(value**2 - last**2 for value in values) / (2 * size)
    return StepBounds(min(ordered, below), spread**2 / (2 * most * last))


def _eigenvalues(hessian: Tensor) -> list[float]:
    """All eigenvalues, falling; refused where the theorem says nothing."""
    values = torch.linalg.eigvalsh(hessian).flip(0)
    if len(values) < 2 or rank(values, len(values)) < len(values):
        raise NftbenchError("step bounds need a Hessian of at least two features and full rank")
    found: list[float] = values.tolist()
    return found


def published_step_bounds(hessian: Tensor) -> StepBounds:
    """The bounds as Theorem 4.3 prints them (read from a stored text of the paper, whose formulas may have suffered).

    eta_P < min(1 / ((1 - 1/D) s_1), ((s_1 s_2)^½ - s_2) / (2 s_2^2 / D)),
    eta_H < (||H||_F^2 / (2 k) - s_k^2 / 2)^2 / (1 - 2 s_k / k).

    The first lets s_1 fall to nothing: at half of its first term s_1' = 0 and kappa is infinite, where it should have
    fallen. The second has no consistent unit (s_k against 1) and turns negative at s_k > k / 2. For comparison only.
    """
    values = _eigenvalues(hessian)
    size, first, second, last = len(values), values[0], values[1], values[-1]
    spread = sum(value**2 - last**2 for value in values) / (2 * size)
    well = min(1 / ((1 - 1 / size) * first), (math.sqrt(first * second) - second) * size / (2 * second**2))
    return StepBounds(well, spread**2 / (1 - 2 * last / size))


# --------------------------------------------------------------------------------------------------- preconditioning


def precondition(gradient: Tensor, covariance: Tensor, *, ridge: float = 0.0) -> Tensor:
    """(K + ridge I)^-1 G [D, n] for G = dR/dtheta [D, n]: on the left, the side of the inputs (Algorithm 1, line 6).

    A layer's weight W [n, D] is theta^T, so its gradient is preconditioned as `precondition(W.grad.mT, K).mT`, which is
    W.grad K^-1. The code applies K^-1 to W.grad from the left, the side of the outputs; it runs only because its layers
    are square, and the theorem's cancellation is lost.

    Raises:
        NftbenchError: K lacks rank and there is no ridge, or D is too large to invert K.
    """
    return torch.cholesky_solve(gradient, _factor(covariance, ridge))


def preconditioned(tensor: Tensor, covariance: Tensor, *, ridge: float = 0.0) -> Tensor:
    """The dummy layer of Appendix C.3: `tensor` [..., D] unchanged, its gradient times (C + ridge I)^-1 from the right.

    With it one backward pass is enough for Algorithm 1. On a layer's weight W = theta^T [n, D] and C = K it gives
    exactly K^-1 dR/dtheta. On a deep network's features F [N, D] and C = F^T F it gives dR/dF (F^T F)^-1, as the
    paper describes for networks without a theta; where F = X theta that step is -2 eta theta^-T G in place of the
    theorem's -2 eta theta G (`step_bounds`): the same at orthogonal theta, and without a guarantee elsewhere.
    C is taken as a constant. Appendix C.3's pseudo-code could not be read; this follows section 4.4's description.

    Raises:
        NftbenchError: as `precondition`.
    """
    factor = _factor(covariance.detach(), ridge)
    rows: Tensor = _Dummy.apply(tensor.reshape(-1, len(factor)).mT, factor)  # type: ignore[no-untyped-call]
    return rows.mT.reshape(tensor.shape)


def preconditioned_rows(features: Tensor, inputs: Tensor, *, ridge: float = 0.0) -> Tensor:
    """The dummy layer for F = X theta [N, n] by way of the rows of X [N, D]: exact, and cheap where N < D.

    The gradient dR/dF is multiplied by (X X^T + ridge I)^-1 from the left, so that theta's becomes
    X^T (X X^T + ridge I)^-1 dR/dF = (K + ridge I)^-1 X^T dR/dF, as Algorithm 1 wants it; only the matrix to invert is
    N x N. Without a ridge that takes no more rows than inputs.

    Raises:
        NftbenchError: as `precondition`, of the rows.
    """
    result: Tensor = _Dummy.apply(features, _factor(inputs @ inputs.mT, ridge))  # type: ignore[no-untyped-call]
    return result


class _Dummy(torch.autograd.Function):
    """The identity, with a backward pass that multiplies by an inverse from the left, given as its Cholesky factor."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return torch.cholesky_solve(gradients[0].to(factor.dtype), factor).to(gradients[0].dtype), None


def check_size(features: int, memory: int = MEMORY) -> None:
    """Refuse to invert what does not fit.

    Raises:
        NftbenchError: inverting a covariance of so many features takes more bytes than `memory`; it says how many.
    """
    needed = COPIES * 8 * features**2
    if needed > memory:
        raise NftbenchError(
            f"inverting the covariance of {features:,} features takes {needed / 2**30:.3g} GiB "
            f"({COPIES} matrices of {features:,} x {features:,} in float64); {memory / 2**30:.3g} GiB are allowed"
        )


def _factor(covariance: Tensor, ridge: float) -> Tensor:
    """The lower Cholesky factor of covariance + ridge I, refused where rounding is all that keeps it definite."""
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise NftbenchError(f"a covariance is a square matrix, not {tuple(covariance.shape)}")
    if ridge < 0:
        raise NftbenchError(f"ridge must not be below 0, is {ridge:g}")
    size = len(covariance)
    check_size(size)
    identity = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(covariance + ridge * identity)
    pivots = factor.diagonal().square()
    if int(failed) or not bool(pivots.min() > size * torch.finfo(covariance.dtype).eps * pivots.max()):
        found = torch.linalg.eigvalsh(covariance).flip(0)
        raise NftbenchError(
            f"the covariance of {size} features has rank {rank(found, size)} and no inverse with ridge {ridge:g}: "
            "give more rows, fewer features or a larger ridge"
        )
    return factor


# ------------------------------------------------------------------------------------------------------ measurements


class Immunity(NamedTuple):
    """The relative immunization ratio and its parts: what the extractor does to either task's condition number."""

    harmful: float
    """Part (i), kappa(H_H(theta_I)) / kappa(H_H(before)): above 1 where harmful probing got harder."""
    primary: float
    """Part (ii), the same of the primary task: at most 1 where it did not."""
    ratio: float
    """RIR = (i) / (ii); in groups the mean of the groups' ratios, as the code has it, not the ratio of the means."""


class Features(NamedTuple):
    """What one extractor makes of the rows of both tasks: [N_H, D] and [N_P, D]."""

    harmful: Tensor
    primary: Tensor


def rir(harmful: Tensor, primary: Tensor, theta: Tensor, *, ridge: float = RIDGE) -> Immunity:
    """RIR = [kappa(H_H(theta)) / kappa(H_H(I))] / [kappa(H_P(theta)) / kappa(H_P(I))] on all rows (Eq. 15).

    For a linear extractor theta [D, D] against the identity, on inputs [N_H, D] and [N_P, D], in float64.
    """
    inputs = Features(harmful.double(), primary.double())
    theta = theta.double()
    return immunity(inputs, Features(inputs.harmful @ theta, inputs.primary @ theta), ridge=ridge)


def rir_in_groups(
    before: Features, after: Features, *, count: int = 20, size: int = 100, seed: int = 0, ridge: float = RIDGE
) -> Immunity:
    """RIR_theta0 of a deep extractor against what it was before, in groups of rows (Eq. 17 and the text under it).

    `count` random groups of `size` rows, without repetition within a group, the same rows before and after. The three
    numbers are computed for each group and then averaged. With fewer rows in a group than features the Hessian lacks
    rank, and the number depends on the convention of `condition_number`; a replication that averaged the matrices, or
    worked in float32, found about 1 throughout.

    Raises:
        NftbenchError: a task has fewer rows than a group, or the features before and after are of other rows.
    """
    for name in Features._fields:
        old, new = getattr(before, name), getattr(after, name)
        if len(old) != len(new):
            raise NftbenchError(f"the {name} features are of {len(old)} rows before and {len(new)} after")
        if len(old) < size:
            raise NftbenchError(f"a group takes {size} rows, and the {name} task has {len(old)}")
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        rows = [torch.randperm(len(part), generator=generator)[:size].to(part.device) for part in before]
        old, new = (Features(both.harmful[rows[0]], both.primary[rows[1]]) for both in (before, after))
        found.append(immunity(old, new, ridge=ridge))
    return Immunity(*(math.fsum(column) / count for column in zip(*found, strict=True)))


def immunity(before: Features, after: Features, *, ridge: float = RIDGE) -> Immunity:
    """RIR on all rows, of any extractor against what it was before (Eq. 15 where that is the identity)."""
    old, new = ([condition_number(covariance(part.double()), ridge=ridge) for part in both] for both in (before, after))
    harmful, primary = new[0] / old[0], new[1] / old[1]
    return Immunity(harmful, primary, harmful / primary)


# ------------------------------------------------------------------------------------------------------ linear probes


def least_squares(features: Tensor, targets: Tensor) -> Tensor:
    """w* [D, n]: among all w that minimise ||F w - Y||_F^2 the one of least norm, for F [N, D] and Y [N, n]."""
    solution: Tensor = torch.linalg.pinv(features) @ targets
    return solution


def line_search(features: Tensor, gradient: Tensor) -> Tensor:
    """The step t that minimises ||F (w - t g) - Y||^2 for g = F^T (F w - Y) [D, n]: t = ||g||^2 / ||F g||^2.

    Zero at g = 0. Boyd & Vandenberghe 2004, section 9.2; along g the loss is quadratic, hence the closed form.
    """
    along = (features @ gradient).square().sum()
    return torch.where(along > 0, gradient.square().sum() / along, torch.zeros_like(along))


def norm_ratio(features: Tensor, targets: Tensor, steps: int, start: Tensor | None = None) -> Tensor:
    """||w_t - w*||^2 / ||w_0 - w*||^2 at t = 0 … steps, under gradient descent with exact line search (Eq. 16).

    On ||F w - Y||_F^2 with F [N, D] and Y [N, n], from w_0 = 0 or `start` [D, n]; w* is the minimum that is nearest to
    w_0, the only one that gradient descent can reach. In float64.

    Raises:
        NftbenchError: w_0 is at the minimum already.
    """
    features, targets = features.double(), targets.double()
    weights = torch.zeros(features.shape[1], targets.shape[1]).to(features) if start is None else start.double()
    best = weights + least_squares(features, targets - features @ weights)
    distances = [(weights - best).square().sum()]
    if not bool(distances[0] > 0):
        raise NftbenchError("the probe starts at its optimum: there is no norm ratio")
    for _ in range(steps):
        gradient = features.mT @ (features @ weights - targets)
        weights = weights - line_search(features, gradient) * gradient
        distances.append((weights - best).square().sum())
    return torch.stack(distances) / distances[0]
