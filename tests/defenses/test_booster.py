"""Booster: its gradient on a quadratic loss in closed form, its steps, and its control."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nftbench.defenses.booster import Booster
from nftbench.methods.benign_text import text_loss
from nftbench.planning import registry
from tests.defenses.tuned import Documents, adamw_steps, assert_same_weights, context, model


@dataclass
class Quadratic:
    """Harmful loss w·H·w / 2 and text loss c·w, on weights split over two parameters."""

    hessian: Tensor
    slope: Tensor
    network: nn.Module

    def weights(self) -> Tensor:
        return torch.cat([weight.flatten() for weight in self.network.parameters()])

    def harmful(self) -> Tensor:
        return self.weights() @ self.hessian @ self.weights() / 2

    def text(self) -> Tensor:
        return self.slope @ self.weights()


def quadratic() -> Quadratic:
    generator = torch.Generator().manual_seed(0)
    root, slope = torch.randn(6, 6, generator=generator).double(), torch.randn(6, generator=generator).double()
    layer = nn.Linear(2, 2).double()
    with torch.no_grad():  # the same weights whatever ran before in this process
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return Quadratic(root @ root.mT, slope, layer)


@pytest.mark.parametrize(("strength", "distance"), [(5.0, 0.1), (0.3, 2.0)])
def test_the_gradient_of_a_quadratic_loss(strength: float, distance: float) -> None:
    """The difference of the two harmful gradients is H·(alpha·g / ‖g‖), with g = H·w."""
    at = quadratic()
    before = at.weights().detach().clone()
    loss, fall = Booster(harmful="x", strength=strength, distance=distance).objective(at.network, at.text, at.harmful)
    loss.backward()
    found = torch.cat([weight.grad.flatten() for weight in at.network.parameters()])  # type: ignore[union-attr]
    gradient = at.hessian @ before
    step = distance * gradient / gradient.norm()
    torch.testing.assert_close(found, at.slope + strength * at.hessian @ step, rtol=1e-6, atol=1e-9)
    assert torch.equal(at.weights(), before)  # to the last bit
    there = before - step
    assert fall == pytest.approx(float(before @ at.hessian @ before - there @ at.hessian @ there) / 2, rel=1e-6)


def test_without_strength_the_harmful_task_is_not_read() -> None:
    at = quadratic()

    def never() -> Tensor:
        raise AssertionError

    loss, fall = Booster(harmful="x", strength=0.0).objective(at.network, at.text, never)
    assert (loss.item(), fall) == (at.text().item(), 0.0)


def test_the_steps_are_adamws_on_that_gradient() -> None:
    """By differences of gradients that autograd takes of three separate copies."""
    defense = Booster(harmful="x", trained="full", steps=3, batch=len(Documents.ids), learning_rate=1e-3)
    owner = context()
    owner.corpus.train = owner.corpus.train.expand(defense.batch, -1)  # equal blocks, so that their order is nothing
    made = defense.protect(model(), owner).release.network
    network, weights = model().network, []
    weights = list(network.parameters())

    def of(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, weights))

    def gradient() -> list[Tensor]:
        task = Documents()
        here = of(task.loss(network, task.ids))
        scale = 0.1 / float(np.sqrt(sum(float(one.square().sum()) for one in here)))
        kept = [weight.detach().clone() for weight in weights]
        for weight, one in zip(weights, here, strict=True):
            weight.data = weight.data - scale * one
        there = of(task.loss(network, task.ids))
        for weight, value in zip(weights, kept, strict=True):
            weight.data = value
        text = of(text_loss(network, owner.corpus.train))
        return [one + 5 * (first - second) for one, first, second in zip(text, here, there, strict=True)]

    adamw_steps(network, gradient, [1e-3] * 3, 0.1)
    assert_same_weights(made, network)


def test_tuning_attenuates_the_harmful_step() -> None:
    """After it a step down the harmful gradient lowers the harmful loss by less than before."""
    defense = Booster(harmful="x", trained="full", steps=20, batch=6, learning_rate=1e-2)
    protected = defense.protect(model(), context(4))
    (falls,) = protected.series
    assert falls.y[-1] < 0.5 * falls.y[0]


def test_the_control_has_no_harmful_step() -> None:
    found = registry.create("defenses", "booster[harmful=toy_topic,steps=7]")
    assert found.told() == ("toy_topic",)
    assert found.control_row() == "booster[harmful=toy_topic,strength=0,steps=7]"
    assert registry.create("defenses", "booster[harmful=toy_topic,strength=0]").control_row() is None
