"""FLOPs and bytes of a step against numbers worked out by hand, and the detection of wrong gradients."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nftbench.methods.symmetries import Anatomy, anatomy
from nftbench.scoring.flags import GRADIENT_ERROR
from nftbench.testing import ARCHITECTURES
from nftbench.training.costs import gradient_error, saved_bytes, step_cost
from nftbench.training.engine import Stepper
from tests.checkpoints import fresh

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def loss(network: nn.Module) -> Tensor:
    return network(X.to(next(network.parameters()).dtype)).square().mean()  # type: ignore[no-any-return]


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def stepper(network: nn.Module) -> Stepper:
    return Stepper(network, "adamw", 1e-3, factor=lambda _: 1.0, weight_decay=0.0, clip=None)


def test_flops_of_a_linear_layer_by_hand() -> None:
    """Forward and the weight's gradient are 2·4·3·2 each; the input needs none."""
    cost = step_cost(linear(), stepper, loss)
    assert cost.step_flops == 2 * (2 * 4 * 3 * 2)
    # 8 parameters, their gradients' owners, two moments of 8, one step counter for each of two tensors.
    assert cost.saved_bytes > 0
    assert cost.peak_memory_bytes > cost.saved_bytes


def test_saved_bytes_count_each_storage_once_and_no_parameter() -> None:
    network = linear()
    x = X.float()
    value, count = saved_bytes(network, lambda net: net(x).square().mean())
    # The input (4·3 floats) for the weight's gradient, the output (4·2 floats) for the square's.
    assert count == 4 * (12 + 8)
    assert value.requires_grad
    _, twice = saved_bytes(network, lambda net: (net(x) * net(x)).mean() + net(x).square().mean())
    assert twice == 4 * (12 + 3 * 8)


def test_counting_leaves_no_network_in_memory() -> None:
    """A worker kept 2.7 GB of each release of 135 million weights whose step it had counted: Tanh saves its output."""
    network = nn.Sequential(linear(), nn.Tanh())
    kept = [weakref.ref(parameter) for parameter in network.parameters()]
    step_cost(network, stepper, loss)
    saved_bytes(network, loss)
    del network
    gc.collect()
    assert [parameter() for parameter in kept] == [None, None]


def test_a_counted_loss_has_the_same_gradients() -> None:
    network = nn.Sequential(linear(), nn.Tanh())
    usual = torch.autograd.grad(loss(network), list(network.parameters()))
    value, _ = saved_bytes(network, loss)
    torch.testing.assert_close(torch.autograd.grad(value, list(network.parameters())), usual, rtol=0, atol=0)


def test_attention_is_counted_in_flops() -> None:
    """Fused CPU attention would count as zero: the count must grow with the square of the length."""
    network = fresh()

    def flops(length: int) -> float:
        ids = torch.zeros(1, length, dtype=torch.long)
        return step_cost(network, stepper, lambda net: net(input_ids=ids).logits.square().mean()).step_flops

    short, long = flops(16), flops(32)
    # Per layer two products of scores and two of values, forward once and backward twice: 3·2·2·length²·width.
    quadratic = (long - 2 * short) / 2
    assert quadratic == 3 * 2 * 2 * 16**2 * 16


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ordinary_networks_have_true_gradients(architecture: str) -> None:
    network = fresh(architecture)
    ids = torch.randint(50, (4, 12), generator=torch.Generator().manual_seed(0))

    def value(net: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(net(input_ids=ids).logits.double().flatten(0, 1), ids.flatten())

    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    assert max(gradient_error(network, value, seed) for seed in range(3)) < GRADIENT_ERROR
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())


def scale_heads(parts: Anatomy) -> None:
    """Queries against keys, over eight decades from the first head to the last."""
    for block in parts.blocks:
        factor = torch.logspace(-4, 4, block.attention.key_heads, dtype=torch.float64)
        factor = factor.repeat_interleave(block.attention.size)
        block.attention.query.scale(factor)
        block.attention.key.scale(1 / factor)


def rotate_stream(parts: Anatomy) -> None:
    """By an orthogonal map that keeps a vector of ones, as layer norms subtract the mean. Their gains are 1 here."""
    width = parts.words.shape[1]
    drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centring = torch.eye(width, dtype=torch.float64) - 1 / width
    rotation = torch.linalg.matrix_exp(centring @ (drawn - drawn.mT) @ centring)
    assert parts.positions is not None
    assert parts.head is not None
    readers = [parts.head]
    for block in parts.blocks:
        readers += [block.attention.query, block.attention.key, block.attention.value]
        readers += [reader for units in block.units for reader in units.read]
        for writer in block.writers():
            assert writer.bias is not None
            writer.weight.copy_(rotation.mT @ writer.weight)
            writer.bias.copy_(writer.bias @ rotation)
    for table in (parts.words, parts.positions, *(reader.weight for reader in readers)):
        table.copy_(table @ rotation)


def shift_biases(parts: Anatomy) -> None:
    """The bias of the norm before each MLP by 1000, and the MLP's own bias back by what this adds."""
    for block in parts.blocks:
        block.units_norm.bias.add_(1000)  # type: ignore[operator, union-attr]
        for units in block.units:
            assert units.inner.bias is not None
            units.inner.bias.sub_(1000 * units.inner.weight.sum(1))


@pytest.mark.parametrize("rewrite", [scale_heads, rotate_stream, shift_biases])
def test_honest_rewrites_have_true_gradients(rewrite: Callable[[Anatomy], None]) -> None:
    """Steps of one length for all weights of a tensor would give 1 for the first and 5e-4 for the last."""
    plain = fresh("gpt2", tie_word_embeddings=False, initializer_range=0.3).double().eval()
    ids = torch.randint(50, (4, 12), generator=torch.Generator().manual_seed(0))

    def value(net: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(net(input_ids=ids).logits.double().flatten(0, 1), ids.flatten())

    network: PreTrainedModel = copy.deepcopy(plain)
    parts = anatomy(network)
    assert parts is not None
    with torch.no_grad():
        rewrite(parts)
        before, after = (net(input_ids=ids).logits for net in (plain, network))
    assert torch.allclose(before, after, rtol=0, atol=1e-9)
    weights = zip(plain.state_dict().values(), network.state_dict().values(), strict=True)
    assert any(not torch.allclose(one, other, rtol=0.1) for one, other in weights)
    assert max(gradient_error(network, value, seed) for seed in range(3)) < 2e-7


class Lie(torch.autograd.Function):
    """The identity, with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, how: str) -> Tensor:
        ctx.how = how
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        lies = {"zero": gradient * 0, "sign": -gradient, "nan": gradient * float("nan"), "half": gradient * 0.5}
        return lies[ctx.how], None


class Liar(nn.Linear):
    how = "zero"

    def forward(self, x: Tensor) -> Tensor:
        return Lie.apply(super().forward(x), self.how)  # type: ignore[no-any-return, no-untyped-call]


@pytest.mark.parametrize(
    ("how", "least"),
    [
        ("zero", 0.99),
        ("sign", 0.99),
        ("half", 0.4),
        ("nan", 2.0),
    ],
)
def test_wrong_gradients_are_detected(how: str, least: float) -> None:
    network = Liar(3, 2)
    network.how = how
    assert gradient_error(network, loss, 0) >= least


def test_a_detached_layer_is_detected() -> None:
    class Detached(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach() + 0 * self.weight.sum()

    assert gradient_error(Detached(3, 2), loss, 0) > 0.9


def test_another_function_in_training_mode_is_detected() -> None:
    """Its gradients are true to what it computes then, which is not what it is judged by."""

    class TwoFaced(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(-x if self.training else x)

    assert gradient_error(TwoFaced(3, 2), loss, 0) > 0.1


def test_wrong_gradients_in_single_precision_alone_are_detected() -> None:
    """Differences are taken in float64, where it is honest."""

    class SingleLiar(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            found = super().forward(x)
            return Lie.apply(found, "zero") if found.dtype == torch.float32 else found  # type: ignore[no-any-return, no-untyped-call]

    assert gradient_error(SingleLiar(3, 2), loss, 0) == 1


def test_the_gradient_error_is_reproducible() -> None:
    network = linear()
    assert gradient_error(network, loss, 3) == gradient_error(network, loss, 3)
