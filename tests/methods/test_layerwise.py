"""Layer-wise losses, the discrepancy between samples, and gradients as vectors, against independent computations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nftbench.errors import NftbenchError
from nftbench.methods.gradient_vectors import gradient, moved, norm, with_gradient
from nftbench.methods.harmful_pairs import HarmfulPairs
from nftbench.methods.layerwise import raised_loss, traced
from nftbench.methods.mmd import mmd
from nftbench.testing import ARCHITECTURES
from tests.checkpoints import fresh

PAIRS = HarmfulPairs([[1, 2, 3, 4], [5, 6, 7], [8, 9, 2, 3]], [[1, 2, 0], [5, 6, 0], [8, 9, 0]])


def tiny(architecture: str) -> Any:
    """A network in float64 with gains that are not 1."""
    network: Any = fresh(architecture, 12).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return network


def by_hand(logits: Any, sequences: Any) -> float:
    """Mean negative log-likelihood of the masked targets, token by token in NumPy."""
    values, scores = [], logits.detach().numpy()
    for row, column in zip(*np.nonzero(sequences.mask.numpy()), strict=True):
        line = scores[row, column]
        values.append(np.log(np.exp(line - line.max()).sum()) + line.max() - line[sequences.targets[row, column]])
    return float(np.mean(values))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_of_every_layer(architecture: str) -> None:
    network = tiny(architecture)
    harmful = PAIRS.batch(range(3), "cpu").harmful
    seen = traced(network, harmful.inputs)
    norm_of = {"gpt2": "transformer.ln_f"}.get(architecture, "model.norm")
    embeddings = seen.hidden[0]  # one layer: the embeddings are the only state before the norm
    first = by_hand(network.lm_head(network.get_submodule(norm_of)(embeddings)), harmful)
    last = by_hand(network(input_ids=harmful.inputs).logits, harmful)
    found = raised_loss(network, seen, harmful)
    assert found.item() == pytest.approx(np.log(1 + (last + first + last) / 2), rel=1e-10)


def test_the_mlps_are_seen_and_no_hook_stays() -> None:
    network = tiny("llama")
    layer, inputs = network.model.layers[0], PAIRS.batch(range(3), "cpu").harmful.inputs
    seen = traced(network, inputs)
    states = seen.hidden[0]
    before_mlp: list[Any] = []
    handle = layer.mlp.register_forward_pre_hook(lambda _, given: before_mlp.append(given[0]))
    network(input_ids=inputs)
    handle.remove()
    assert len(seen.mlps) == 1
    torch.testing.assert_close(seen.mlps[0], layer.mlp(before_mlp[0]))
    assert seen.mlps[0].shape == states.shape
    assert not layer.mlp._forward_hooks


def test_networks_without_mlp_or_norm_are_refused() -> None:
    class Plain(nn.Module):
        pass

    plain: Any = Plain()
    with pytest.raises(NftbenchError, match="no modules named mlp"):
        traced(plain, torch.zeros(1, 1))


def test_the_discrepancy_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    points = [*x.numpy(), *(2 * y + 1).numpy()]
    distances = [[float(((p - q) ** 2).sum()) for q in points] for p in points]
    scale = sum(map(sum, distances)) / (8 * 7)
    total = 0.0
    for i in range(8):
        for j in range(8):
            sign = 1 if (i < 4) == (j < 4) else -1
            total += sign * sum(np.exp(-distances[i][j] / (scale * width)) for width in (0.25, 0.5, 1, 2, 4)) / 16
    assert float(mmd(x, 2 * y + 1)) == pytest.approx(total, rel=1e-10)
    assert float(mmd(x, x)) == pytest.approx(0.0, abs=1e-12)


def test_the_gradient_of_the_discrepancy_holds_its_bandwidth() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, way = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    both = torch.cat([x, y])
    scale = float((both[:, None] - both[None]).square().sum() / (8 * 7))

    def value(first: Any) -> float:
        points = np.concatenate([first, y.numpy()])
        distances = ((points[:, None] - points[None]) ** 2).sum(-1)
        kernel = np.sum([np.exp(-distances / (scale * width)) for width in (0.25, 0.5, 1, 2, 4)], axis=0)
        return float(kernel[:4, :4].mean() + kernel[4:, 4:].mean() - 2 * kernel[:4, 4:].mean())

    numeric = (value((x + 1e-6 * way).numpy()) - value((x - 1e-6 * way).numpy())) / 2e-6
    (slope,) = torch.autograd.grad(mmd(x.requires_grad_(), y), [x])
    assert float((slope * way).sum()) == pytest.approx(numeric, rel=1e-6)


def fail_inside(weights: list[nn.Parameter]) -> None:
    with moved(weights, [torch.ones(2), torch.ones(1, 1)], 0.7):
        assert weights[0].tolist() == pytest.approx([0.8, 1e8])
        raise ZeroDivisionError


def test_moved_weights_come_back_bit_for_bit() -> None:
    weights = [nn.Parameter(torch.tensor([0.1, 1e8])), nn.Parameter(torch.tensor([[0.3]]))]
    before = [weight.detach().clone() for weight in weights]
    with pytest.raises(ZeroDivisionError):
        fail_inside(weights)
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))


def test_gradients_as_vectors() -> None:
    weights = [nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.ones(1))]
    found = gradient((weights[0] ** 2).sum() * weights[1], weights)
    assert [part.tolist() for part in found] == [[6.0, 12.0], 5.0, [0.0]]
    assert norm(found).item() == pytest.approx((36 + 144 + 25) ** 0.5)
    with_gradient(weights, found).backward()  # type: ignore[no-untyped-call]
    assert [weight.grad.tolist() for weight in weights if weight.grad is not None] == [[6.0, 12.0], 5.0, [0.0]]
