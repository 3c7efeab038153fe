"""RepNoise: its loss against NumPy and finite differences, its steps against a plain loop, its effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from nftbench.contract import Model, Protected
from nftbench.defenses.repnoise import RepNoise, distance_to_noise, losses
from nftbench.methods.gradient_vectors import moved
from nftbench.methods.harmful_pairs import HarmfulPairs
from nftbench.methods.layerwise import traced
from nftbench.models.networks import seeded
from nftbench.running.owner import Owner, make_base
from tests.checkpoints import fresh

PAIRS = HarmfulPairs([[1, 2, 3, 4], [5, 6, 7], [8, 9, 2, 3], [4, 1, 6]], [[1, 2, 0], [5, 6, 0], [8, 9, 0], [4, 1, 0]])


def tiny() -> Any:
    """A network that computes in float64 throughout; the norms of a Llama would round to float32."""
    return fresh(words=12).double().eval()


def protect(workspace: Callable[..., Any], **changes: Any) -> tuple[Model, Protected, Owner]:
    settings: dict[str, Any] = {"steps": 3, "batch": 8, "learning_rate": 1e-2, **changes}
    defense = RepNoise("toy_topic", **settings)
    where = workspace()
    owner = Owner(where, 0, defense.told())
    return make_base(where, 0), defense.protect(make_base(where, 0), owner), owner


def test_the_loss_by_hand() -> None:
    """Cross-entropies and kernels one number at a time, from the activations."""
    network, pair = tiny(), PAIRS.batch(range(4), "cpu")
    with seeded(3):
        terms = losses(network, pair)
    seen = traced(network, pair.harmful.inputs)
    with seeded(3):
        noise = torch.randn(seen.mlps[0].shape, dtype=torch.float64)
    mask = pair.harmful.mask[..., None].double()
    points = [*(seen.mlps[0] * mask).flatten(1).detach().numpy(), *(noise * mask).flatten(1).numpy()]
    distances = np.array([[((p - q) ** 2).sum() for q in points] for p in points])
    scale = distances.sum() / (8 * 7)
    kernel = np.sum([np.exp(-distances / (scale * width)) for width in (0.25, 0.5, 1, 2, 4)], axis=0)
    wanted = kernel[:4, :4].mean() + kernel[4:, 4:].mean() - kernel[:4, 4:].mean() - kernel[4:, :4].mean()
    assert terms.noise.item() == pytest.approx(wanted, rel=1e-10)

    logits = network(input_ids=pair.harmless.inputs).logits.detach().numpy()
    scores = [logits[row, 1] for row in range(4)]  # all harmless answers are token 0 after two tokens of prompt
    likelihoods = [line[0] - np.log(np.exp(line).sum()) for line in scores]
    assert terms.harmless.item() == pytest.approx(-np.mean(likelihoods), rel=1e-10)

    total = RepNoise("t", alpha=0.7, beta=0.2).objective(terms)
    assert total.item() == pytest.approx(
        terms.harmless.item() + 0.2 * terms.noise.item() - 0.7 * terms.harmful.item(), rel=1e-12
    )


def test_the_gradient_by_finite_differences() -> None:
    """Without the noise, whose bandwidth is a constant for the gradient; tests/methods/test_layerwise.py tests that."""
    network, pair, defense = tiny(), PAIRS.batch(range(4), "cpu"), RepNoise("t", beta=0.0, alpha=0.7)
    weights = list(network.parameters())
    with seeded(3):
        slope = torch.autograd.grad(defense.objective(losses(network, pair)), weights)
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(weight.shape, generator=generator, dtype=torch.float64) for weight in weights]
    ends = []
    for distance in (1e-5, -1e-5):
        with moved(weights, direction, distance), seeded(3):
            ends.append(defense.objective(losses(network, pair)).item())
    along = sum(float((part * way).sum()) for part, way in zip(slope, direction, strict=True))
    assert along == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_noise_stays_within_the_mask() -> None:
    pair = PAIRS.batch(range(4), "cpu").harmful
    output = torch.zeros(*pair.inputs.shape, 6, dtype=torch.float64)
    with seeded(0):
        first = distance_to_noise(output, pair)
    output[~pair.mask] = 100.0
    with seeded(0):
        assert torch.equal(distance_to_noise(output, pair), first)
    output[pair.mask] = 100.0
    with seeded(0):
        assert not torch.equal(distance_to_noise(output, pair), first)


def test_its_steps_are_those_of_the_authors_notebook(workspace: Callable[..., Any]) -> None:
    """Three steps by torch's own AdamW and transformers' schedule. The first of them has rate 0."""
    base, protected, owner = protect(workspace)
    network: Any = base.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, 1, 3)
    with seeded(owner.seed):
        batches = HarmfulPairs.of(owner.task("toy_topic")).batches(8, owner.seed, "cpu")
        for _, pair in zip(range(3), batches, strict=False):
            terms = losses(network, pair)
            optimizer.zero_grad()
            (terms.harmless + 0.001 * terms.noise - terms.harmful).backward()
            optimizer.step()
            schedule.step()
    released = dict(protected.release.network.named_parameters())
    for name, weight in network.named_parameters():
        torch.testing.assert_close(released[name], weight, rtol=1e-5, atol=1e-6)


def test_it_raises_the_harmful_loss_and_lowers_the_harmless_one(workspace: Callable[..., Any]) -> None:
    base, protected, owner = protect(workspace, steps=40)
    pair = HarmfulPairs.of(owner.task("toy_topic")).batch(range(32), "cpu")
    with seeded(0), torch.no_grad():
        before, after = (losses(model.network, pair) for model in (base, protected.release))
    assert after.harmful > before.harmful + 0.1
    assert after.harmless < before.harmless - 1.0
    assert [series.name for series in protected.series] == ["harmless loss", "MMD to noise", "log(1 + harmful loss)"]
    assert {len(series.y) for series in protected.series} == {40}


def test_the_control_trains_on_harmless_answers_alone() -> None:
    assert RepNoise("toy_topic", steps=9).control_row() == "repnoise[harmful=toy_topic,alpha=0,beta=0,steps=9]"
    assert RepNoise("toy_topic", alpha=0.0, beta=0.0).control_row() is None
