"""SEAM: its coupling against exact second derivatives and finite differences, its step, and what it does to a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import get_cosine_schedule_with_warmup

from nftbench.defenses import seam
from nftbench.defenses.seam import Seam, coupling
from nftbench.methods.benign_text import text_loss
from nftbench.methods.gradient_vectors import moved, norm, weights_of
from nftbench.methods.harmful_pairs import HarmfulPairs, Masked, Pair, cross_entropy
from nftbench.methods.layerwise import raised_loss, traced
from nftbench.running.owner import Owner, make_base
from tests.checkpoints import fresh

PAIRS = HarmfulPairs([[1, 2, 3, 4], [5, 6, 7], [8, 9, 2, 3]], [[1, 2, 0], [5, 6, 0], [8, 9, 0]])
TEXT = torch.randint(12, (3, 8), generator=torch.Generator().manual_seed(4))


def tiny() -> tuple[Any, Pair, Callable[[], Tensor], Callable[[], Tensor]]:
    """A network in float64, a batch, and its harmful and benign loss. That of transformers would round to float32."""
    network: Any = fresh(words=12).double().eval()
    pair = PAIRS.batch(range(3), "cpu")
    text = Masked(TEXT[:, :-1], TEXT[:, 1:], torch.ones(3, 7, dtype=torch.bool))
    return (
        network,
        pair,
        lambda: cross_entropy(network(input_ids=pair.harmful.inputs).logits, pair.harmful),
        lambda: cross_entropy(network(input_ids=TEXT[:, :-1]).logits, text),
    )


def flat(parts: Any) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def cosine_of(weights: Any, harmful: Callable[[], Tensor], benign: Callable[[], Tensor]) -> Tensor:
    """The cosine of the two gradients, differentiable in the weights."""
    with sdpa_kernel(SDPBackend.MATH):
        by_harm, by_benign = (
            flat(torch.autograd.grad(loss(), weights, create_graph=True)) for loss in (harmful, benign)
        )
        return torch.nn.functional.cosine_similarity(by_harm, by_benign, dim=0)


def test_the_coupling_is_the_gradient_of_the_cosine() -> None:
    network, _, harmful, benign = tiny()
    weights = weights_of(network)
    before = [weight.detach().clone() for weight in weights]
    found = coupling(weights, harmful, benign, 1e-5)
    cosine = cosine_of(weights, harmful, benign)
    exact = flat(torch.autograd.grad(cosine, weights))
    assert found.cosine == pytest.approx(cosine.item(), rel=1e-10)
    assert float((flat(found.gradient) - exact).norm() / exact.norm()) < 1e-3
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))


def test_the_coupling_by_finite_differences_of_the_cosine() -> None:
    """Along a random direction and the gradient's own, so that what is measured is not small against its error."""
    network, _, harmful, benign = tiny()
    weights = weights_of(network)
    found = coupling(weights, harmful, benign, 1e-5).gradient
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(weight.shape, generator=generator, dtype=torch.float64) for weight in weights]
    way = [one / norm(drawn) + other / norm(found) for one, other in zip(drawn, found, strict=True)]
    ends = []
    for distance in (1e-4, -1e-4):
        with moved(weights, way, distance):
            ends.append(cosine_of(weights, harmful, benign).item())
    assert float(flat(found) @ flat(way)) == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=2e-3)


def test_a_step_down_the_coupling_turns_the_gradients_apart() -> None:
    network, _, harmful, benign = tiny()
    weights = weights_of(network)
    found = coupling(weights, harmful, benign, 1e-4)
    with moved(weights, [-part / norm(found.gradient) for part in found.gradient], 0.05):
        assert coupling(weights, harmful, benign, 1e-4).cosine < found.cosine - 0.01


def test_the_step_is_the_sum_of_its_three_parts() -> None:
    network, pair, harmful, _ = tiny()
    weights = weights_of(network)
    step = Seam("t", alpha=0.4, beta=3.0).direction(network, pair, TEXT)
    raised = raised_loss(network, traced(network, pair.harmful.inputs), pair.harmful)
    refused = cross_entropy(network(input_ids=pair.harmless.inputs).logits, pair.harmless)
    wanted = (
        0.4 * flat(torch.autograd.grad(refused, weights))
        - flat(torch.autograd.grad(raised, weights))
        + 3.0 * flat(coupling(weights, harmful, lambda: text_loss(network, TEXT), 1e-3).gradient)
    )
    torch.testing.assert_close(flat(step.gradient), wanted)
    assert step.losses[:2] == pytest.approx((raised.item(), refused.item()))


def test_steps_are_adamws_on_that_gradient(workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the gradients are given, large ones among them: no clipping, no decay, and transformers' cosine."""
    sizes = [5.0, -0.01, 3.0, 0.02, -1.0, 0.5]
    given = iter(sizes)

    def direction(self: Seam, network: Any, pair: Pair, tokens: Tensor) -> seam.Step:
        size = next(given)
        return seam.Step([torch.full_like(weight, size) for weight in network.parameters()], (0.0, 0.0, 0.0))

    monkeypatch.setattr(Seam, "direction", direction)
    where, defense = workspace(), Seam("toy_topic", steps=6, batch=8, learning_rate=1e-2)
    protected = defense.protect(make_base(where, 0), Owner(where, 0, defense.told()))
    network: Any = make_base(where, 0).network
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 1, 6)
    for size in sizes:
        for weight in network.parameters():
            weight.grad = torch.full_like(weight, size)
        optimizer.step()
        schedule.step()
    for name, weight in protected.release.network.named_parameters():
        torch.testing.assert_close(weight, network.get_parameter(name), rtol=1e-5, atol=1e-7)


def test_training_lowers_the_cosine(workspace: Callable[..., Any]) -> None:
    where = workspace()
    last: dict[float, float] = {}
    for beta in (0.0, 3.0):
        defense = Seam("toy_topic", beta=beta, steps=30, batch=8, learning_rate=3e-3)
        protected = defense.protect(make_base(where, 0), Owner(where, 0, defense.told()))
        cosines = protected.series[2].y
        last[beta] = sum(cosines[-5:]) / 5
    assert last[3.0] < last[0.0] - 0.1


def test_the_control_has_no_coupling() -> None:
    assert Seam("toy_topic", steps=9).control_row() == "seam[harmful=toy_topic,beta=0,steps=9]"
    assert Seam("toy_topic", beta=0.0).control_row() is None
