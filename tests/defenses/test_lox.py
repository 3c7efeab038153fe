"""LoX: the extrapolation against NumPy's SVD, and the tuning that it extrapolates."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nftbench.defenses.lox import LoX, low_rank
from nftbench.methods.benign_text import text_loss
from nftbench.methods.cosine import cosine
from nftbench.planning import registry
from tests.defenses.tuned import Documents, adamw_steps, assert_same_weights, context, model


@pytest.mark.parametrize("k", [1, 3, 99])
def test_the_low_rank_part_is_that_of_the_singular_value_decomposition(k: int) -> None:
    matrix = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    left, values, right = np.linalg.svd(matrix.double().numpy())
    values[k:] = 0
    np.testing.assert_allclose(low_rank(matrix, k).numpy(), left[:, :5] * values @ right, atol=1e-5)
    assert low_rank(matrix, 0) is matrix


@pytest.mark.parametrize(("k", "coefficient"), [(2, 1.25), (0, 1.0), (2, 0.0)])
def test_matrices_are_extrapolated_and_vectors_are_not(k: int, coefficient: float) -> None:
    base, tuned = model().network, model().network
    generator = torch.Generator().manual_seed(0)
    for weight in tuned.parameters():
        weight.data += nn.init.normal_(torch.empty_like(weight), std=0.1, generator=generator)
    found = LoX(k=k, coefficient=coefficient).extrapolated(copy.deepcopy(tuned), base)
    for name, weight in found.named_parameters():
        before, middle = (one.get_parameter(name).detach().double().numpy() for one in (base, tuned))
        wanted = middle
        if middle.ndim == 2:
            left, values, right = np.linalg.svd(middle - before, full_matrices=False)
            values[k or len(values) :] = 0
            wanted = middle + coefficient * (left * values) @ right
        np.testing.assert_allclose(weight.detach().numpy(), wanted, atol=1e-5)


def test_the_tuned_model_refuses_the_task_by_the_margin() -> None:
    """However unlikely the base finds the right answers: a loss above the margin alone would refuse nothing."""
    given, task = model(), Documents()
    owner = context(4)
    defense = LoX(harmful="x", steps=40, learning_rate=5e-3, batch=4, margin=1.5, coefficient=0.0)

    def losses(network: nn.Module) -> tuple[float, float]:
        return task.loss(network, task.ids).item(), text_loss(network, owner.corpus.train).item()

    before, after = losses(given.network), losses(defense.protect(given, owner).release.network)
    assert before[0] > 1.5
    assert 1.2 < after[0] - before[0] < 3.0
    assert after[1] < before[1]
    assert losses(given.network) == before  # the base is left as it was


def test_the_tunings_steps_are_adamws_on_text_and_refusal() -> None:
    """With a margin that is reached in between: from then on the task has no gradient."""
    defense = LoX(harmful="x", steps=6, batch=len(Documents.ids), learning_rate=1e-2, margin=0.1)
    owner, task, network = context(), Documents(), model().network
    owner.corpus.train = owner.corpus.train.expand(defense.batch, -1)  # equal blocks, so that their order is nothing
    made, weights = defense.tuned(model().network, owner), list(network.parameters())
    wanted = task.loss(network, task.ids).item() + 0.1
    lacking = []

    def gradient() -> list[Tensor]:
        lacking.append(wanted - task.loss(network, task.ids).item())
        terms = [text_loss(network, owner.corpus.train)]
        terms += [-task.loss(network, task.ids)] if lacking[-1] > 0 else []
        found = [torch.autograd.grad(term, weights) for term in terms]
        return [sum(parts, torch.zeros_like(parts[0])) for parts in zip(*found, strict=True)]

    adamw_steps(network, gradient, [1e-2 * cosine(6, 0.1)(step) for step in range(1, 7)], 0.0)
    assert lacking[0] > 0 > lacking[-1]
    assert_same_weights(made, network)


def test_without_a_task_it_is_tuned_on_text_alone() -> None:
    made = LoX(steps=5, batch=2, coefficient=0.0)
    assert made.told() == ()
    owner = context(4)
    del owner.task
    tuned = made.protect(model(), owner).release.network
    assert not torch.equal(tuned.lm_head.weight, model().network.lm_head.weight)


def test_the_control_is_the_tuned_model() -> None:
    found = registry.create("defenses", "lox[harmful=toy_topic,k=2]")
    assert found.told() == ("toy_topic",)
    assert found.control_row() == "lox[harmful=toy_topic,k=2,coefficient=0]"
    assert registry.create("defenses", "lox[coefficient=0]").control_row() is None
    given = LoX(steps=3, coefficient=0.0)
    assert_same_weights(given.protect(model(), context(4)).release.network, given.tuned(model().network, context(4)))
