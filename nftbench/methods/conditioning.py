"""Condition numbers, which say how slowly gradient descent trains a linear probe, and regularizers that change them.

Source: Zheng et al. 2025, "Model Immunization from a Condition Number Perspective", ICML,
https://arxiv.org/abs/2505.23760 (called "the paper" below), and its code,
github.com/amberyzheng/model-immunization-cond-num at commit b749964 ("the code").

Notation: inputs X [N, D], extractor theta [D, D], features F = X theta, and covariance K = X^T X [D, D]. As in the
paper, K is neither centred nor divided by N. Fitting a probe by least squares has the Hessian
H(theta) = theta^T K theta [D, D] (Eq. 9), up to a factor that does not change the condition number. The singular values
of H are s_1 >= … >= s_k > 0, where k is its rank.

Results have the dtype of the arguments, which should be float64 unless a function says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nftbench.errors import NftbenchError

RIDGE = 1e-6
"""The code adds it to the diagonal of a matrix, and counts only eigenvalues above it (`condition_number`, loss.py)."""
MEMORY = 8 * 2**30
"""The most bytes for inverting a covariance. It is a constant, because a defense must not depend on the free memory."""
COPIES = 3
"""Matrices in memory at once: the covariance, its Cholesky factor and the workspace of the factorization."""

# ------------------------------------------------------------------------------------------------- condition numbers


def covariance(inputs: Tensor) -> Tensor:
    """The covariance K = X^T X [D, D] of inputs or features X [N, D]."""
    return inputs.mT @ inputs


def condition_number(features: Tensor) -> float:
    """The condition number kappa = s_max / s_min of H = F^T F by Eq. 1, for features F [N, D], in float64.

    Eq. 1 uses the pseudo-inverse, so s_min is the smallest eigenvalue of H that is not zero. The eigenvalues are
    squares of the singular values of F. Scaling F does not change kappa.

    Raises:
        NftbenchError: all features are zero.
    """
    values = _nonzero(features)
    if len(values) == 0:
        raise NftbenchError("all features are zero, which have no condition number")
    return float((values[0] / values[-1]).square())


def ridge_condition_number(features: Tensor, *, ridge: float = RIDGE) -> float:
    """The condition number of H = F^T F as the code computes it, for features F [N, D], in float64.

    It is s_max / s_min of H + ridge I, where s_min is the smallest eigenvalue above `ridge`. If H lacks full rank, its
    zero eigenvalues become `ridge`, and rounding lifts about half of them slightly above it. Kappa then is
    s_max / ridge: a largest eigenvalue, not a condition number, and proportional to the square of the features' scale.
    If rounding lifts none of them, kappa is near the one of `condition_number`.

    Raises:
        NftbenchError: no eigenvalue exceeds the ridge.
    """
    matrix = covariance(features.double())
    values = torch.linalg.eigvalsh(matrix + ridge * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))
    counted = values[values > ridge]
    if len(counted) == 0:
        raise NftbenchError(f"no eigenvalue of the matrix exceeds {ridge:g}")
    return float(counted[-1] / counted[0])


def feature_rank(features: Tensor) -> int:
    """The numerical rank of features F [N, D], which is that of H = F^T F, in float64."""
    return len(_nonzero(features))


def _nonzero(features: Tensor) -> Tensor:
    """The singular values of F in float64, largest first, without those that are zero up to rounding."""
    values: Tensor = torch.linalg.svdvals(features.double())
    return values[: rank(values, max(features.shape))]


def rank(values: Tensor, size: int) -> int:
    """The numerical rank: how many singular values, largest first, exceed the rounding error size · eps · s_1."""
    return int((values > size * torch.finfo(values.dtype).eps * values[0]).sum())


# ------------------------------------------------------------------------------------------------------ regularizers


def probe_r_well(features: Tensor) -> Tensor:
    """The regularizer R_well(S) = ||S||_2^2 / 2 - ||S||_F^2 / (2 D) of S = F^T F [D, D], for features F [N, D].

    Eq. 3; Nenov et al. 2024. It is never negative, and zero exactly if all singular values are equal. Minimising it
    lowers the condition number. If N < D it is computed without making S.
    """
    return _well(_spectrum(features), features.shape[1])


def probe_r_ill(features: Tensor) -> Tensor:
    """The regularizer R_ill(S) = 1 / (||S||_F^2 / (2 k) - s_k^2 / 2) of S = F^T F [D, D], for features F [N, D].

    Eq. 12; k is the rank of S. Minimising it raises the condition number, since 1 / log kappa <= s_1^2 R_ill
    (Theorem 4.1). It is infinite if all singular values are equal.
    """
    values = _spectrum(features)
    return 1 / _spread(values[: rank(values.detach(), max(features.shape))])


def _spectrum(features: Tensor) -> Tensor:
    """The eigenvalues of F^T F, largest first, without the D - N zeros if N < D (taken from F F^T in that case)."""
    small = features if features.shape[0] > features.shape[1] else features.mT
    values: Tensor = torch.linalg.eigvalsh(small.mT @ small).flip(0).clamp_min(0)
    return values


def _well(values: Tensor, size: int) -> Tensor:
    """s_1^2 / 2 - ||S||_F^2 / (2 p) from the singular values that are not zero, where p is `size`."""
    value: Tensor = values[0].square() / 2 - values.square().sum() / (2 * size)
    return value


def _spread(values: Tensor) -> Tensor:
    """||S||_F^2 / (2 k) - s_k^2 / 2 from k singular values, as a sum of differences, which avoids cancellation."""
    return (values.square() - values[-1].square()).sum() / (2 * len(values))


# --------------------------------------------------------------------------------------------------- preconditioning


def precondition(gradient: Tensor, covariance: Tensor, *, ridge: float = 0.0) -> Tensor:
    """The preconditioned gradient (K + ridge I)^-1 G [D, n] for G = dR/dtheta [D, n] (Algorithm 1, line 6).

    The inverse multiplies the side of the inputs. A layer's weight W [n, D] is theta^T, so its gradient is
    preconditioned as `precondition(W.grad.mT, K).mT`, which is W.grad K^-1. The code instead multiplies W.grad by K^-1
    from the left, the side of the outputs. That runs only because its layers are square, and it loses the cancellation
    that the theorem needs.

    Raises:
        NftbenchError: K + ridge I is singular, or D is so large that inverting it would exceed `MEMORY`.
    """
    return torch.cholesky_solve(gradient, _factor(covariance, ridge))


def preconditioned(tensor: Tensor, covariance: Tensor, *, ridge: float = 0.0) -> Tensor:
    """The dummy layer of Appendix C.3: the identity, whose gradient is multiplied by (C + ridge I)^-1 from the right.

    `tensor` is [..., D] and C [D, D] is treated as a constant. With this layer Algorithm 1 needs a single backward
    pass. The pseudo-code of Appendix C.3 was not available to us; this follows the description in section 4.4.

    Applied to a layer's weight W = theta^T [n, D] with C = K, it gives exactly K^-1 dR/dtheta. Applied to the features
    F [N, D] of a deep network with C = F^T F, it gives dR/dF (F^T F)^-1, as the paper describes for networks without a
    theta. If F = X theta, the latter step is -2 eta theta^-T G with G = dR/dH, instead of Theorem 4.3's -2 eta theta G.
    Both are equal for orthogonal theta; otherwise the theorem guarantees nothing.

    Raises:
        NftbenchError: as `precondition`.
    """
    factor = _factor(covariance.detach(), ridge)
    rows: Tensor = _Dummy.apply(tensor.reshape(-1, len(factor)).mT, factor)  # type: ignore[no-untyped-call]
    return rows.mT.reshape(tensor.shape)


def preconditioned_rows(features: Tensor, inputs: Tensor, *, ridge: float = 0.0) -> Tensor:
    """The dummy layer for F = X theta [N, n] that inverts an N x N matrix: exact, and cheap if N < D.

    The gradient dR/dF is multiplied by (X X^T + ridge I)^-1 from the left. The gradient of theta then is
    X^T (X X^T + ridge I)^-1 dR/dF = (K + ridge I)^-1 X^T dR/dF, as Algorithm 1 requires. Without a ridge, N must not
    exceed D.

    Raises:
        NftbenchError: X X^T + ridge I is singular, or N is so large that inverting it would exceed `MEMORY`.
    """
    result: Tensor = _Dummy.apply(features, _factor(inputs @ inputs.mT, ridge))  # type: ignore[no-untyped-call]
    return result


class _Dummy(torch.autograd.Function):
    """The identity. Its backward pass multiplies by an inverse from the left, given by the matrix's Cholesky factor."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return torch.cholesky_solve(gradients[0].to(factor.dtype), factor).to(gradients[0].dtype), None


def check_size(features: int, memory: int = MEMORY) -> None:
    """Check that the covariance of `features` features can be inverted within `memory` bytes.

    Raises:
        NftbenchError: it takes more bytes than that.
    """
    needed = COPIES * 8 * features**2
    if needed > memory:
        raise NftbenchError(
            f"inverting the covariance of {features:,} features takes {needed / 2**30:.3g} GiB "
            f"({COPIES} matrices of {features:,} x {features:,} in float64); {memory / 2**30:.3g} GiB are allowed"
        )


def _factor(covariance: Tensor, ridge: float) -> Tensor:
    """The lower Cholesky factor of covariance + ridge I. Raise NftbenchError if the matrix is numerically singular."""
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise NftbenchError(f"a covariance is a square matrix, not {tuple(covariance.shape)}")
    if ridge < 0:
        raise NftbenchError(f"ridge must be at least 0, not {ridge:g}")
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


class Features(NamedTuple):
    """One extractor's features of the rows of the harmful task [N_H, D] and of the primary task [N_P, D]."""

    harmful: Tensor
    primary: Tensor


class Immunity(NamedTuple):
    """The relative immunization ratio (RIR) and its parts: the changes of the two tasks' condition numbers."""

    harmful: float
    """Part (i), kappa(H_H(theta_I)) / kappa(H_H(before)): above 1 if probing the harmful task became harder."""
    primary: float
    """Part (ii), the same for the primary task: at most 1 if probing it did not become harder."""
    ratio: float
    """RIR = (i) / (ii). Over groups of rows it is the mean of their ratios, as in the code, not the ratio of means."""


def immunity(before: Features, after: Features, kappa: Callable[[Tensor], float] = condition_number) -> Immunity:
    """RIR of an extractor against its state before the defense, on all rows (Eq. 15 if that state is the identity).

    RIR = [kappa(H_H(theta)) / kappa(H_H(before))] / [kappa(H_P(theta)) / kappa(H_P(before))].

    The features after the defense are first brought to the scale of those before it: to the same mean square over both
    tasks. RIR and its parts by `condition_number` do not need this. With `ridge_condition_number` and features that
    lack full rank, doubling theta would otherwise multiply both parts by 4.
    """
    scale = math.sqrt(_mean_square(before) / _mean_square(after))
    (harmful, primary), (harmful_before, primary_before) = (
        [kappa(part.double() * factor) for part in both] for both, factor in ((after, scale), (before, 1.0))
    )
    first, second = harmful / harmful_before, primary / primary_before
    return Immunity(first, second, first / second)


def _mean_square(features: Features) -> float:
    """The mean over both tasks of the mean square of a feature."""
    found = sum(float(part.double().square().mean()) for part in features) / len(features)
    if not found > 0:
        raise NftbenchError("all features are zero, which have no condition number")
    return found


def grouped(
    before: Features, after: Features, *, count: int = 20, size: int = 100, seed: int = 0
) -> list[tuple[Features, Features]]:
    """`count` random groups of `size` rows, as features before and after a defense (Eq. 17 and the text below it).

    RIR of a deep extractor is computed for each group and then averaged. Rows of a group are drawn without replacement,
    and the same rows are used before and after.

    A group with fewer rows than there are features lacks full rank. A replication that averaged the matrices, or
    computed in float32, found about 1 throughout.

    Raises:
        NftbenchError: a task has fewer rows than a group, or `before` and `after` have different numbers of rows.
    """
    for name in Features._fields:
        old, new = getattr(before, name), getattr(after, name)
        if len(old) != len(new):
            raise NftbenchError(f"the {name} features are of {len(old)} rows before and {len(new)} after the defense")
        if len(old) < size:
            raise NftbenchError(f"a group takes {size} rows, and the {name} task has {len(old)}")
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for _ in range(count):
        rows = [torch.randperm(len(part), generator=generator)[:size].to(part.device) for part in before]
        old, new = (Features(both.harmful[rows[0]], both.primary[rows[1]]) for both in (before, after))
        groups.append((old, new))
    return groups


# ------------------------------------------------------------------------------------------------------ linear probes


def least_squares(features: Tensor, targets: Tensor) -> Tensor:
    """The probe w* [D, n] of least norm among all that minimise ||F w - Y||_F^2, for F [N, D] and Y [N, n]."""
    solution: Tensor = torch.linalg.pinv(features) @ targets
    return solution


def line_search(features: Tensor, gradient: Tensor) -> Tensor:
    """The exact step size t = ||g||^2 / ||F g||^2, which minimises ||F (w - t g) - Y||^2 for g = F^T (F w - Y) [D, n].

    Boyd & Vandenberghe 2004, section 9.2. The loss is quadratic along g, hence the closed form. At g = 0 it is zero.
    """
    along = (features @ gradient).square().sum()
    return torch.where(along > 0, gradient.square().sum() / along, torch.zeros_like(along))


def norm_ratio(features: Tensor, targets: Tensor, steps: int, start: Tensor | None = None) -> Tensor:
    """The norm ratio ||w_t - w*||^2 / ||w_0 - w*||^2 [steps + 1] of gradient descent with exact line search (Eq. 16).

    The loss is ||F w - Y||_F^2 with features F [N, D] and targets Y [N, n], in float64. Descent starts at w_0 = 0 or
    `start` [D, n]. w* is the minimum nearest to w_0, the only one that gradient descent can reach.

    Raises:
        NftbenchError: w_0 is a minimum already.
    """
    features, targets = features.double(), targets.double()
    weights = torch.zeros(features.shape[1], targets.shape[1]).to(features) if start is None else start.double()
    best = weights + least_squares(features, targets - features @ weights)
    distances = [(weights - best).square().sum()]
    if not bool(distances[0] > 0):
        raise NftbenchError("the probe starts at its optimum, where the norm ratio is undefined")
    for _ in range(steps):
        gradient = features.mT @ (features @ weights - targets)
        weights = weights - line_search(features, gradient) * gradient
        distances.append((weights - best).square().sum())
    return torch.stack(distances) / distances[0]
