"""The condition-number paper's equations: against autograd, against numpy, and against what its theorems promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from nftbench.errors import NftbenchError
from nftbench.methods import conditioning
from nftbench.methods.conditioning import Features

SEEDS = st.integers(0, 10_000)
SIZES = st.integers(2, 8)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator(seed), dtype=torch.float64)


def _rotation(seed: int, size: int) -> Tensor:
    rotation: Tensor = torch.linalg.qr(_normal(seed, size, size))[0]
    return rotation


def _problem(seed: int, size: int) -> tuple[Tensor, Tensor]:
    """theta and K such that H's eigenvalues lie well apart: all at least 10 % from their neighbours."""
    gaps = 1.1 + torch.rand(size, generator=_generator(seed), dtype=torch.float64)
    eigenvalues = gaps.cumprod(0) * 10 ** (4 * torch.rand(1, generator=_generator(seed + 1), dtype=torch.float64) - 2)
    axes = _rotation(seed + 2, size)
    theta = _normal(seed + 3, size, size) + 2 * torch.eye(size, dtype=torch.float64)
    inverse = torch.linalg.inv(theta)
    covariance = inverse.mT @ (axes * eigenvalues) @ axes.mT @ inverse
    return theta, (covariance + covariance.mT) / 2


def _hessian(theta: Tensor, covariance: Tensor) -> Tensor:
    """The Hessian H(theta) = theta^T K theta [D, D] (Eq. 9), made exactly symmetric."""
    product = theta.mT @ covariance @ theta
    return (product + product.mT) / 2


def _rows(covariance: Tensor) -> Tensor:
    """Inputs X [D, D] of this covariance."""
    rows: Tensor = torch.linalg.cholesky(covariance).mT
    return rows


def _gradient(regularizer: Callable[[Tensor], Tensor], theta: Tensor, inputs: Tensor) -> Tensor:
    """dR(H(theta))/dtheta, by autograd through the features."""
    leaf = theta.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(regularizer(inputs @ leaf), leaf)
    return found


def _kappa(theta: Tensor, covariance: Tensor) -> float:
    return conditioning.condition_number(_rows(covariance) @ theta)


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


# --------------------------------------------------------------------------------------------------------- definitions


@pytest.mark.parametrize("shape", [(5, 5), (7, 4), (3, 6)])
def test_regularizers_are_the_papers_equations(shape: tuple[int, int]) -> None:
    """Those of F^T F, whose rank is that of the features."""
    features = _normal(0, *shape)
    values = np.linalg.svd((features.mT @ features).numpy(), compute_uv=False)
    square, k = float((values**2).sum()), min(shape)
    expected = values[0] ** 2 / 2 - square / (2 * shape[1])
    assert float(conditioning.probe_r_well(features)) == pytest.approx(expected, rel=1e-10)
    expected = 1 / (square / (2 * k) - values[k - 1] ** 2 / 2)
    assert float(conditioning.probe_r_ill(features)) == pytest.approx(expected, rel=1e-10)


@given(SEEDS, SIZES)
@settings(max_examples=50)
def test_upper_bounds_of_the_theorems(seed: int, size: int) -> None:
    features = _normal(seed, size, size)
    values = torch.linalg.svdvals(features).square()
    log_kappa = float(torch.log(values[0] / values[-1]))
    assert float(conditioning.probe_r_well(features)) >= 0
    assert 1 / log_kappa <= float(values[0] ** 2 * conditioning.probe_r_ill(features)) * (1 + 1e-9)


def test_regularizers_where_all_singular_values_are_equal() -> None:
    assert float(conditioning.probe_r_well(3 * _rotation(0, 4))) == pytest.approx(0, abs=1e-12)
    assert float(conditioning.probe_r_ill(3 * torch.eye(4, dtype=torch.float64))) == math.inf


def _deficient() -> Tensor:
    """Features [5, 4] of rank 3, with the singular values 4, 2, 0.5 and 0."""
    values = torch.tensor([4.0, 2.0, 0.5, 0.0], dtype=torch.float64)
    return _rotation(0, 5)[:, :4] * values @ _rotation(1, 4)


def test_condition_number_drops_zeros() -> None:
    features = _deficient()
    assert conditioning.condition_number(features) == pytest.approx((4 / 0.5) ** 2, rel=1e-12)
    assert conditioning.condition_number(3e-5 * features) == pytest.approx((4 / 0.5) ** 2, rel=1e-12)
    assert conditioning.feature_rank(features) == conditioning.feature_rank(1e9 * features.float().double()) - 1 == 3
    with pytest.raises(NftbenchError, match="all features are zero"):
        conditioning.condition_number(torch.zeros(3, 2))
    assert conditioning.feature_rank(torch.zeros(3, 2)) == 0


def test_condition_number_with_the_ridge_of_the_code() -> None:
    features = torch.diag(torch.tensor([4.0, 1.0, 1e-7], dtype=torch.float64).sqrt())
    assert conditioning.ridge_condition_number(features) == pytest.approx((4 + 1e-6) / (1e-7 + 1e-6), rel=1e-9)
    assert conditioning.ridge_condition_number(features, ridge=1.0) == pytest.approx(5 / (1 + 1e-7), rel=1e-9)
    assert conditioning.ridge_condition_number(features.float()) == pytest.approx((4 + 1e-6) / 1.1e-6, rel=1e-6)
    with pytest.raises(NftbenchError, match="no eigenvalue"):
        conditioning.ridge_condition_number(torch.zeros(2, 2))


def test_with_a_ridge_features_without_full_rank_have_a_largest_eigenvalue_and_no_condition_number() -> None:
    """Or rounding leaves no zero above the ridge, and it is the condition number. Twenty draws show both."""
    found = []
    for seed in range(20):
        inputs = _normal(seed, 40, 12)
        inputs[:, 3] = inputs[:, 2]
        largest = float(torch.linalg.matrix_norm(inputs, 2)) ** 2
        true, code = conditioning.condition_number(inputs), conditioning.ridge_condition_number(inputs)
        assert true < 100
        found.append(code == pytest.approx(largest / 1e-6, rel=1e-3))
        assert found[-1] or code == pytest.approx(true, rel=1e-3)
    assert set(found) == {True, False}


# ----------------------------------------------------------------------------------------------------------- gradients


@given(SEEDS, SIZES)
@settings(max_examples=50)
def test_gradients_in_theta_are_those_of_the_theorem(seed: int, size: int) -> None:
    """2 K theta (s_1 v_1 v_1^T - H / D), and of R_ill 2 K theta (s_k v_k v_k^T - H / k) R_ill^2 (Theorem 4.2)."""
    theta, covariance = _problem(seed, size)
    matrix = _hessian(theta, covariance)
    values, vectors = torch.linalg.eigh(matrix)
    spread = (values.square() - values[0].square()).sum() / (2 * size)
    for regularizer, at, scale in ((conditioning.probe_r_well, -1, 1.0), (conditioning.probe_r_ill, 0, spread**-2)):
        direction = values[at] * torch.outer(vectors[:, at], vectors[:, at]) - matrix / size
        expected = 2 * covariance @ theta @ direction * scale
        assert _error(_gradient(regularizer, theta, _rows(covariance)), expected) < 1e-8


# -------------------------------------------------------------------------------------------------------------- steps


class _Bounds(NamedTuple):
    """For each regularizer R the largest eta at which theta - eta K^-1 dR/dtheta changes kappa as in Theorem 4.3."""

    well: float
    ill: float


def _bounds(hessian: Tensor) -> _Bounds:
    """The step sizes below which a step on R_well lowers kappa(H) and a step on R_ill raises it, for H of full rank.

    The bounds are our own derivation, because the paper's do not hold as printed (see `_published_bounds`). Without
    K^-1 in the step there is no such bound.

    Let D be the size of H, a = 1 - 1/D and G = dR/dH. The step is theta' = theta - 2 eta theta G, because K^-1 cancels
    the K of Theorem 4.2. G is a function of H and commutes with it. Therefore H' = (I - 2 eta G) H (I - 2 eta G) has
    the eigenvectors of H and the eigenvalues s_i' = s_i (1 - 2 eta g_i)^2, where g_i are the eigenvalues of G.

    R_well: g_1 = a s_1, and g_i = -s_i / D for the others, which grow and keep their order. kappa falls under two
    conditions. The first is s_1' >= s_D', hence eta <= (s_1^½ - s_D^½) / (2 (a s_1^(3/2) + s_D^(3/2) / D)). The second
    is s_2' < s_1, hence eta < D (s_1^½ - s_2^½) / (2 s_2^(3/2)), which is the paper's second term.

    R_ill: let d = ||H||_F^2 / (2 D) - s_D^2 / 2. Then g_D = a s_D / d^2, and g_i = -s_i / (D d^2) for the others, which
    grow. s_D falls and reaches zero at 2 eta g_D = 1, hence eta < d^2 / (2 a s_D). Below this bound kappa rises with
    eta, without limit. (Up to twice the bound s_D still ends below its old value. But H loses a rank on the way, and
    Eq. 1 no longer counts that eigenvalue.)
    """
    values: list[float] = torch.linalg.eigvalsh(hessian).flip(0).tolist()
    size, first, second, last = len(values), values[0], values[1], values[-1]
    most = 1 - 1 / size
    ordered = (math.sqrt(first) - math.sqrt(last)) / (2 * (most * first**1.5 + last**1.5 / size))
    below = (math.sqrt(first) - math.sqrt(second)) * size / (2 * second**1.5)
    spread = sum(value**2 - last**2 for value in values) / (2 * size)
    return _Bounds(min(ordered, below), spread**2 / (2 * most * last))


def _published_bounds(hessian: Tensor) -> _Bounds:
    """The bounds of Theorem 4.3 as printed. They were read from an extracted text, in which formulas may be damaged:

    eta_P < min(1 / ((1 - 1/D) s_1), ((s_1 s_2)^½ - s_2) / (2 s_2^2 / D)),
    eta_H < (||H||_F^2 / (2 k) - s_k^2 / 2)^2 / (1 - 2 s_k / k).

    The first bound is too large. At half of its first term s_1' is 0, so that kappa is infinite instead of lower. The
    second bound mixes units (s_k and 1) and is negative for s_k > k / 2.
    """
    values: list[float] = torch.linalg.eigvalsh(hessian).flip(0).tolist()
    size, first, second, last = len(values), values[0], values[1], values[-1]
    spread = sum(value**2 - last**2 for value in values) / (2 * size)
    well = min(1 / ((1 - 1 / size) * first), (math.sqrt(first * second) - second) * size / (2 * second**2))
    return _Bounds(well, spread**2 / (1 - 2 * last / size))


@given(SEEDS, SIZES, st.floats(0.001, 0.99))
@settings(max_examples=100)
def test_steps_within_the_bounds_move_the_condition_number(seed: int, size: int, share: float) -> None:
    theta, covariance = _problem(seed, size)
    before = _kappa(theta, covariance)
    bounds = _bounds(_hessian(theta, covariance))
    gradient = conditioning.precondition(_gradient(conditioning.probe_r_well, theta, _rows(covariance)), covariance)
    assert _kappa(theta - share * bounds.well * gradient, covariance) < before
    gradient = conditioning.precondition(_gradient(conditioning.probe_r_ill, theta, _rows(covariance)), covariance)
    assert _kappa(theta - share * bounds.ill * gradient, covariance) > before


def test_published_bound_of_the_first_part_is_too_wide() -> None:
    """H = diag(100, 1, 0.5): at half of the published bound the largest eigenvalue is gone."""
    theta = torch.eye(3, dtype=torch.float64)
    covariance = torch.diag(torch.tensor([100.0, 1.0, 0.5], dtype=torch.float64))
    published = _published_bounds(covariance)
    assert published.well == pytest.approx(0.015)
    gradient = conditioning.precondition(_gradient(conditioning.probe_r_well, theta, _rows(covariance)), covariance)
    halved = _hessian(theta - 0.5 * published.well * gradient, covariance)
    assert float(torch.linalg.eigvalsh(halved)[0]) == pytest.approx(0, abs=1e-9)
    assert _kappa(theta - 0.499 * published.well * gradient, covariance) > 1000  # it was 200, and should have fallen
    assert _bounds(covariance).well < 0.5 * published.well


def test_published_bound_of_the_second_part_can_be_negative() -> None:
    covariance = torch.diag(torch.tensor([9.0, 4.0, 2.0], dtype=torch.float64))
    assert _published_bounds(covariance).ill < 0
    assert _bounds(covariance).ill > 0


def test_the_inverse_on_the_other_side_is_another_step() -> None:
    theta, covariance = _problem(0, 4)
    gradient = _gradient(conditioning.probe_r_ill, theta, _rows(covariance))
    ours = conditioning.precondition(gradient, covariance)
    assert _error(covariance @ ours, gradient) < 1e-9
    codes = torch.linalg.solve(covariance, gradient.mT).mT  # solve(K, weight.grad) with weight = theta^T
    assert _error(codes, ours) > 0.1


# --------------------------------------------------------------------------------------------------------- dummy layer


def test_dummy_layer_is_the_identity_and_inverts_on_the_way_back() -> None:
    theta, covariance = _problem(5, 6)
    weight = theta.mT.clone().requires_grad_(True)
    seen = conditioning.preconditioned(weight, covariance, ridge=0.1)
    assert torch.equal(seen, weight)
    conditioning.probe_r_ill(_rows(covariance) @ seen.mT).backward()
    gradient = _gradient(conditioning.probe_r_ill, theta, _rows(covariance))
    expected = conditioning.precondition(gradient, covariance, ridge=0.1)
    assert weight.grad is not None
    assert _error(weight.grad.mT, expected) < 1e-9
    assert (
        _error(weight.grad.mT, torch.linalg.solve(covariance + 0.1 * torch.eye(6, dtype=torch.float64), gradient))
        < 1e-9
    )


def test_dummy_layer_on_features() -> None:
    features = _normal(0, 5, 7, 4).requires_grad_(True)
    covariance = conditioning.covariance(features.detach().reshape(-1, 4))
    incoming = _normal(1, 5, 7, 4)
    conditioning.preconditioned(features, covariance, ridge=0.5).backward(incoming)
    expected = incoming @ torch.linalg.inv(covariance + 0.5 * torch.eye(4))
    assert features.grad is not None
    assert _error(features.grad, expected) < 1e-10


def test_dummy_layer_on_features_is_the_theorems_step_at_an_orthogonal_extractor() -> None:
    inputs, theta = _normal(0, 50, 5) * torch.arange(1, 6), _rotation(1, 5)
    covariance = conditioning.covariance(inputs)
    leaf = theta.clone().requires_grad_(True)
    features = inputs @ leaf
    seen = conditioning.preconditioned(features, conditioning.covariance(features))
    conditioning.probe_r_ill(seen).backward()
    gradient = _gradient(conditioning.probe_r_ill, theta, _rows(covariance))
    assert leaf.grad is not None
    assert _error(leaf.grad, conditioning.precondition(gradient, covariance)) < 1e-9


@pytest.mark.parametrize(("rows", "ridge"), [(4, 0.0), (4, 0.3), (30, 0.3)])
def test_dummy_layer_by_rows_is_the_same_step(rows: int, ridge: float) -> None:
    inputs, theta = _normal(0, rows, 6), _normal(1, 6, 6).requires_grad_(True)
    seen = conditioning.preconditioned_rows(inputs @ theta, inputs, ridge=ridge)
    conditioning.probe_r_ill(seen).backward()
    detached, covariance = theta.detach(), conditioning.covariance(inputs)
    gradient = _gradient(conditioning.probe_r_ill, detached, inputs)
    inverse = torch.linalg.pinv(covariance + ridge * torch.eye(6, dtype=torch.float64), hermitian=True)
    assert theta.grad is not None
    assert _error(theta.grad, inverse @ gradient) < 1e-8


def test_dummy_layer_keeps_single_precision() -> None:
    features = _normal(0, 9, 4).float().requires_grad_(True)
    covariance = conditioning.covariance(features.detach().double())
    conditioning.preconditioned(features, covariance).sum().backward()
    assert features.grad is not None
    assert features.grad.dtype == torch.float32
    assert _error(features.grad.double(), torch.ones(9, 4, dtype=torch.float64) @ torch.linalg.inv(covariance)) < 1e-5


# ----------------------------------------------------------------------------------------------------------------- RIR


Kappa = Callable[[np.ndarray[Any, Any]], float]


def _ridge_kappa(features: np.ndarray[Any, Any]) -> float:
    values = np.linalg.eigvalsh(features.T @ features + 1e-6 * np.eye(features.shape[1]))
    values = values[values > 1e-6]
    return float(values.max() / values.min())


def _nonzero_kappa(features: np.ndarray[Any, Any]) -> float:
    """By the pseudo-inverse, as Eq. 1 is written."""
    matrix = features.T @ features
    return float(np.linalg.norm(matrix, 2) * np.linalg.norm(np.linalg.pinv(matrix, rcond=1e-12, hermitian=True), 2))


CONVENTIONS = pytest.mark.parametrize(
    ("kappa", "by_numpy"),
    [(conditioning.ridge_condition_number, _ridge_kappa), (conditioning.condition_number, _nonzero_kappa)],
)


def _full(theta: Tensor) -> tuple[Features, Features]:
    """Features of full rank, before and after theta."""
    before = Features(_normal(0, 60, 7), _normal(1, 80, 7) * torch.arange(1, 8))
    return before, Features(before.harmful @ theta, before.primary @ theta)


@CONVENTIONS
def test_rir_of_a_linear_extractor_against_numpy(kappa: Any, by_numpy: Kappa) -> None:
    theta = _normal(2, 7, 7)
    before, after = _full(theta)
    h, p, t = before.harmful.numpy(), before.primary.numpy(), theta.numpy()
    first, second = by_numpy(h @ t) / by_numpy(h), by_numpy(p @ t) / by_numpy(p)
    # The scale of theta matters little under a ridge of 1e-6, and not at all without one.
    assert conditioning.immunity(before, after, kappa) == pytest.approx((first, second, first / second), rel=1e-5)
    assert conditioning.immunity(before, before, kappa) == (1, 1, 1)


def test_the_conventions_differ_without_full_rank() -> None:
    """With zeros dropped RIR is one of condition numbers, with a ridge one of largest eigenvalues."""

    def features(*eigenvalues: float) -> Tensor:
        return torch.diag(torch.tensor(eigenvalues, dtype=torch.float64).sqrt())

    def pair(null: float) -> tuple[Features, Features]:
        before = Features(features(8, 1, 0.25, null), features(25, 1, 1, null))
        return before, Features(features(9, 8, 0.0025, null), features(225, 1, 0.01, null))

    harmful, primary = (9 / 0.0025) / (8 / 0.25), (225 / 0.01) / (25 / 1)
    assert conditioning.immunity(*pair(0)) == pytest.approx((harmful, primary, harmful / primary), rel=1e-12)
    # 1e-14 is what rounding makes of a zero. The release's features have 6.7 times the mean square: 243 over 36.25.
    shrunk = (8 + 1 + 0.25 + 25 + 1 + 1) / (9 + 8 + 0.0025 + 225 + 1 + 0.01)
    expected = (shrunk * 9 / 8, shrunk * 225 / 25, (9 / 8) / (225 / 25))
    found = conditioning.immunity(*pair(1e-14), conditioning.ridge_condition_number)
    assert found == pytest.approx(expected, rel=1e-5)


@CONVENTIONS
@pytest.mark.parametrize("rows", [60, 4])
def test_rir_does_not_depend_on_the_scale_of_the_extractor(rows: int, kappa: Any, by_numpy: Kappa) -> None:
    """Four rows of seven features lack full rank. Under a ridge their kappa grows with the square of the scale."""
    theta = _normal(2, 7, 7)
    before = Features(_normal(0, rows, 7), _normal(1, rows, 7))
    after = Features(before.harmful @ theta, before.primary @ theta)
    doubled = Features(2 * after.harmful, 2 * after.primary)
    assert conditioning.immunity(before, doubled, kappa) == conditioning.immunity(before, after, kappa)
    grown = by_numpy(doubled.harmful.numpy()) / by_numpy(after.harmful.numpy())
    by_ridge = kappa is conditioning.ridge_condition_number
    assert grown == pytest.approx(4 if by_ridge and rows == 4 else 1, rel=1e-4)


def test_features_that_are_all_zero_are_refused() -> None:
    before, after = _full(torch.zeros(7, 7, dtype=torch.float64))
    with pytest.raises(NftbenchError, match="all features are zero"):
        conditioning.immunity(before, after)


def test_groups_of_rows_are_the_same_before_and_after() -> None:
    before = Features(_normal(0, 300, 6), _normal(1, 250, 6))
    theta = _normal(2, 6, 6)
    after = Features(torch.tanh(before.harmful @ theta), torch.tanh(before.primary @ theta))
    found = conditioning.grouped(before, after, count=7, seed=3)
    assert len(found) == 7
    generator = _generator(3)
    for old, new in found:
        for part, whole_old, whole_new in zip(old._fields, before, after, strict=True):
            rows = torch.randperm(len(whole_old), generator=generator)[:100]
            assert torch.equal(getattr(old, part), whole_old[rows])
            assert torch.equal(getattr(new, part), whole_new[rows])


def test_groups_refuse_other_rows() -> None:
    rows = _normal(0, 99, 4)
    with pytest.raises(NftbenchError, match="a group takes 100 rows, and the harmful task has 99"):
        conditioning.grouped(Features(rows, rows), Features(rows, rows))
    with pytest.raises(NftbenchError, match="primary features are of 99 rows before and 98 after"):
        conditioning.grouped(Features(rows, rows), Features(rows, rows[1:]), size=10)


# -------------------------------------------------------------------------------------------------------------- probes


def test_line_search_finds_the_minimum_along_the_gradient() -> None:
    features, targets, weights = _normal(0, 30, 5), _normal(1, 30, 2), _normal(2, 5, 2)
    gradient = features.mT @ (features @ weights - targets)
    step = conditioning.line_search(features, gradient)

    def loss(size: float) -> float:
        return float((features @ (weights - size * gradient) - targets).square().sum())

    best = float(step)
    assert loss(best) < min(loss(best * 0.999), loss(best * 1.001), loss(0))
    leaf = torch.tensor(best, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((features @ (weights - leaf * gradient) - targets).square().sum(), leaf)
    assert abs(float(slope)) < 1e-8 * loss(0)
    assert float(conditioning.line_search(features, torch.zeros(5, 2, dtype=torch.float64))) == 0


def test_norm_ratio_of_a_diagonal_problem_in_closed_form() -> None:
    """From w_0 - w* = (1 / s_1, 1 / s_2), the worst case, each step multiplies the error by (s_1 - s_2) / (s_1 + s_2),
    up to signs (Luenberger & Ye, section 8.2)."""
    first, second = 5.0, 2.0
    features = torch.diag(torch.tensor([first, second], dtype=torch.float64).sqrt())
    start = torch.tensor([[1 / first], [1 / second]], dtype=torch.float64)
    found = conditioning.norm_ratio(features, torch.zeros(2, 1, dtype=torch.float64), 6, start)
    rate = ((first - second) / (first + second)) ** 2
    assert found.tolist() == pytest.approx([rate**step for step in range(7)], rel=1e-9)


def test_norm_ratio_falls_slower_where_the_condition_number_is_larger() -> None:
    targets = _normal(1, 60, 1)
    axes = torch.linalg.qr(_normal(0, 60, 6))[0]
    ratios = [
        conditioning.norm_ratio(axes * torch.linspace(1, 1 / math.sqrt(kappa), 6), targets, 40)[-1]
        for kappa in (1.0, 10.0, 1000.0)
    ]
    assert float(ratios[0]) < 1e-20
    assert float(ratios[0]) < float(ratios[1]) < float(ratios[2])


def test_norm_ratio_without_full_rank_goes_to_the_nearest_minimum() -> None:
    inputs = _normal(0, 8, 3) @ _normal(1, 3, 5)
    found = conditioning.norm_ratio(inputs, _normal(2, 8, 2), 400, _normal(3, 5, 2))
    assert float(found[0]) == 1
    assert float(found[-1]) < 1e-9
    assert bool((found[1:] <= found[:-1] * (1 + 1e-9) + 1e-20).all())


def test_norm_ratio_refuses_a_probe_that_has_arrived() -> None:
    with pytest.raises(NftbenchError, match="optimum"):
        conditioning.norm_ratio(_normal(0, 9, 2), torch.zeros(9, 1), 3)


# -------------------------------------------------------------------------------------------------------------- errors


def test_matrices_without_an_inverse_are_refused() -> None:
    short = conditioning.covariance(_normal(0, 3, 5))
    gradient = _normal(1, 5, 5)
    with pytest.raises(NftbenchError, match="rank 3 and no inverse with ridge 0"):
        conditioning.precondition(gradient, short)
    assert bool(conditioning.precondition(gradient, short, ridge=1e-3).isfinite().all())
    with pytest.raises(NftbenchError, match="square"):
        conditioning.precondition(gradient, gradient[:4])
    with pytest.raises(NftbenchError, match="ridge"):
        conditioning.precondition(gradient, short, ridge=-1.0)


def test_too_many_features_to_invert_name_the_memory() -> None:
    conditioning.check_size(18_000)
    with pytest.raises(NftbenchError, match=r"50,000 features takes 55\.9 GiB .*8 GiB are allowed"):
        conditioning.check_size(50_000)
    with pytest.raises(NftbenchError, match=r"3 matrices of 50,000 x 50,000 in float64"):
        conditioning.precondition(torch.empty(50_000, 1), torch.empty(1, 1).expand(50_000, 50_000))
