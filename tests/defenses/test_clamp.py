"""CLAMP: its bound on a quadratic, where everything is known; its gradient by finite differences; what it does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nftbench.defenses.clamp import LEAST, Clamp, Trajectory, harmful_loss
from nftbench.methods.benign_text import text_batches, text_loss
from nftbench.methods.harmful_pairs import HarmfulPairs
from nftbench.running.owner import Owner, make_base
from tests.checkpoints import fresh

PAIRS = HarmfulPairs([[1, 2, 3, 4], [5, 6, 7], [8, 9, 2, 3]], [[1, 2, 0], [5, 6, 0], [8, 9, 0]])
BENDS = np.array([4.0, 1.0, 0.5])
START = np.array([1.0, -2.0, 3.0])


def quadratic(weights: Mapping[str, Tensor]) -> Tensor:
    """½ Σ bend · ω², in two tensors."""
    both = torch.cat([weights["a"], weights["b"]])
    return (torch.from_numpy(BENDS) * both.square()).sum() / 2


@pytest.mark.parametrize("rate", [0.3, 0.6])
def test_a_quadratic_by_hand(rate: float) -> None:
    """T(ω) = (1 - ηA) ω. At rate 0.6 the steepest direction does not contract, and the bound takes `LEAST`."""
    start = {"a": torch.tensor(START[:1], requires_grad=True), "b": torch.tensor(START[1:], requires_grad=True)}
    found = Clamp("t", inner_steps=3, inner_rate=rate, probe=1e-3).trajectory(quadratic, start)
    point = START
    bends: list[float] = []
    for step in range(4):
        slope = BENDS * point
        towards = -slope / np.linalg.norm(slope)
        bends.append(towards @ (BENDS * towards))
        point = point if step == 3 else point - rate * slope
    shrink = np.linalg.norm((1 - rate * BENDS) * towards)
    assert (shrink > 1) == (rate == 0.6)
    length = rate * np.linalg.norm(slope) / max(1 - shrink, LEAST)
    drop = (BENDS * START**2).sum() / 2 - (BENDS * point**2).sum() / 2
    assert found.first.item() == pytest.approx((BENDS * START**2).sum() / 2)
    assert found.bends.detach().numpy() == pytest.approx(np.array(bends), rel=1e-6)
    assert found.shrink.item() == pytest.approx(shrink, rel=1e-6)
    assert found.gain.item() == pytest.approx(
        drop + np.linalg.norm(slope) * length + bends[-1] * length**2 / 2, rel=1e-5
    )


def test_the_bound_holds_where_steps_shrink() -> None:
    """Gradient descent without end gains no more than the bound, on a quadratic along one axis."""
    start = {"a": torch.tensor([0.0]), "b": torch.tensor([3.0, 0.0])}
    start = {name: value.double().requires_grad_() for name, value in start.items()}
    found = Clamp("t", inner_steps=2, inner_rate=0.3).trajectory(quadratic, start)
    assert found.shrink.item() == pytest.approx(0.7)
    assert found.gain.item() >= found.first.item() > 0, "the minimum is 0, so the whole loss can be gained"


def test_the_objective_by_hand() -> None:
    found = Trajectory(torch.tensor(12.0), torch.tensor(1.5), torch.tensor(1.1), torch.tensor([1.0, 9.0]))
    plain = np.log1p(np.exp([1.1 - 0.9, 10.0 - 1.0, 10.0 - 9.0]))
    wanted = 2.0 * (1.5 - 0.1) + 0.3 * plain[0] + 0.5 * plain[1:].sum() - 0.7 * 10.0  # the loss of 12 counts as 10
    defense = Clamp("t", long=2.0, contraction=0.3, curvature=0.5, inverse=0.7)
    assert float(defense.objective(found)) == pytest.approx(wanted, rel=1e-6)
    small = found._replace(gain=torch.tensor(0.05))
    assert float(defense.objective(small)) == pytest.approx(wanted - 2.0 * 1.4, rel=1e-6)


@pytest.mark.parametrize("weights", [{}, {"contraction": 0.0, "curvature": 0.0, "inverse": 0.0}])
def test_the_gradient_through_all_steps_by_finite_differences(weights: dict[str, Any]) -> None:
    network: Any = fresh(words=12).double().eval()
    defense, loss = Clamp("t", inner_steps=2, **weights), harmful_loss(network, PAIRS.batch(range(3), "cpu").harmful)
    start = {name: weight.detach().clone().requires_grad_() for name, weight in network.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    way = {name: torch.randn(weight.shape, generator=generator).double() for name, weight in start.items()}

    def value(distance: float) -> Tensor:
        return defense.objective(
            defense.trajectory(loss, {name: weight + distance * way[name] for name, weight in start.items()})
        )

    with sdpa_kernel(SDPBackend.MATH):
        slopes = torch.autograd.grad(value(0.0), list(start.values()))
        numeric = (value(1e-5) - value(-1e-5)).item() / 2e-5
    along = sum(float((slope * part).sum()) for slope, part in zip(slopes, way.values(), strict=True))
    assert along == pytest.approx(numeric, rel=1e-4)


def run(workspace: Callable[..., Any], **changes: Any) -> tuple[Any, Any]:
    settings: dict[str, Any] = {"steps": 3, "batch": 8, "inner_steps": 2, "learning_rate": 3e-3, **changes}
    defense = Clamp("toy_topic", **settings)
    where = workspace()
    base = make_base(where, 0)
    return base, defense.protect(copy.deepcopy(base), Owner(where, 0, defense.told()))


def test_training_lowers_the_bound(workspace: Callable[..., Any]) -> None:
    _, protected = run(workspace, steps=40)
    bounds = dict(zip([series.name for series in protected.series], protected.series, strict=True))
    gains = bounds["bound on the attacker's gain"].y
    assert np.mean(gains[-5:]) < 0.5 * np.mean(gains[:5])


def test_the_release_has_the_precision_of_the_base(workspace: Callable[..., Any]) -> None:
    _, protected = run(workspace)
    assert {weight.dtype for weight in protected.release.network.parameters()} == {torch.float32}


def test_the_control_trains_on_text_alone(workspace: Callable[..., Any]) -> None:
    control = Clamp("toy_topic", steps=9).control_row()
    assert control == "clamp[harmful=toy_topic,long=0,contraction=0,curvature=0,inverse=0,steps=9]"
    nothing: dict[str, Any] = {"long": 0.0, "contraction": 0.0, "curvature": 0.0, "inverse": 0.0}
    assert Clamp("toy_topic", **nothing).control_row() is None
    base, protected = run(workspace, **nothing)
    network = base.network.double().eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.0)
    for _, tokens in zip(range(3), text_batches(Owner(workspace(), 0), 8, "cpu"), strict=False):
        optimizer.zero_grad()
        text_loss(network, tokens).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    for name, weight in protected.release.network.named_parameters():
        torch.testing.assert_close(weight, network.get_parameter(name).float(), rtol=1e-5, atol=1e-7)
