"""Rewrites that keep the function: equal logits in float64 after any rescaling, and a canonical form of the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from nftbench.methods import symmetries
from nftbench.methods.symmetries import anatomy, as_gpt2, balanced, canonical, scale_logits, unknown
from nftbench.models import networks

LLAMA = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
GPT2 = {"n_layer": 2, "n_embd": 24, "n_head": 3, "n_positions": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", **GPT2},
    "gpt2, untied": {"model_type": "gpt2", **GPT2, "tie_word_embeddings": False},
    "gpt_bigcode": {"model_type": "gpt_bigcode", **GPT2, "multi_query": True},
    "llama": {"model_type": "llama", **LLAMA},
    "llama, tied": {"model_type": "llama", **LLAMA, "tie_word_embeddings": True},
    "llama, biases": {"model_type": "llama", **LLAMA, "attention_bias": True, "mlp_bias": True},
    "qwen3": {"model_type": "qwen3", **LLAMA, "head_dim": 8},
    "dlr-gpt2": {"model_type": "dlr-gpt2", **GPT2, "dlr_depth": 3},
    "dlr-llama": {"model_type": "dlr-llama", **LLAMA, "dlr_depth": 3},
    "dlr-qwen3": {"model_type": "dlr-qwen3", **LLAMA, "head_dim": 8, "dlr_depth": 3},
}
TOKENS = torch.randint(50, (3, 20), generator=torch.Generator().manual_seed(0))

each_shape = pytest.mark.parametrize("shape", SHAPES)


def exact(norm: Any, hidden: Tensor) -> Tensor:
    """The RMS norm in the precision of its input: that of transformers computes in float32."""
    scaled: Tensor = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight * scaled


@torch.no_grad()
def drawn(shape: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model in float64 with large random weights, gains and biases."""
    network = networks.build({**SHAPES[shape], "vocab_size": 50, **changes}, None, 0, "cpu").network.double().eval()
    for module in network.modules():
        if isinstance(module, LlamaRMSNorm | Qwen3RMSNorm):
            module.forward = MethodType(exact, module)  # a copy of the network gets a method of its own
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(0.3 * noise + (1 if parameter.ndim == 1 and bool((parameter == 1).all()) else 0))
    return network


@torch.no_grad()
def logits(network: PreTrainedModel) -> Tensor:
    found: Tensor = network(input_ids=TOKENS).logits
    return found


def apart(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max() / first.abs().max().clamp_min(1e-12))


# ------------------------------------------------------------------------------------------------------ what is planted


def nothing(network: PreTrainedModel) -> None:
    pass


def queries(network: PreTrainedModel) -> None:
    """Queries times 1e4, keys by as much less; with norms on either it is the gains."""
    attention = anatomy(network).blocks[0].attention  # type: ignore[union-attr]
    if attention.norms is not None:
        attention.norms[0].weight.mul_(1e4)  # type: ignore[operator]
        attention.norms[1].weight.mul_(1e-4)  # type: ignore[operator]
    else:
        attention.query.scale(1e4)
        attention.key.scale(1e-4)


def values(network: PreTrainedModel) -> None:
    """Values of one head mixed by an ill-conditioned matrix, and its outputs by the inverse."""
    attention = anatomy(network).blocks[0].attention  # type: ignore[union-attr]
    drawn = torch.randn(attention.size, attention.size, generator=torch.Generator().manual_seed(5)).double()
    mixing = torch.linalg.qr(drawn).Q * torch.logspace(0, 4, attention.size, dtype=torch.float64)
    head = attention.value.outputs(0, attention.size)
    head.write(mixing @ head.table)
    for query in range(attention.group):
        columns = attention.output.weight[:, query * attention.size : (query + 1) * attention.size]
        columns.copy_(columns @ torch.linalg.inv(mixing))


def gains(network: PreTrainedModel) -> None:
    """The first norm's gain and bias times 1e4, and what it feeds by as much less."""
    block = anatomy(network).blocks[0]  # type: ignore[union-attr]
    for parameter in block.attention_norm.parameters():
        parameter.mul_(1e4)
    for reader in (block.attention.query, block.attention.key, block.attention.value):
        reader.weight.mul_(1e-4)


def stream(network: PreTrainedModel) -> None:
    """The whole residual stream times 1e4."""
    symmetries.scale_stream(anatomy(network), 1e4)  # type: ignore[arg-type]


PLANTED: list[Callable[[PreTrainedModel], None]] = [nothing, queries, values, gains, stream]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
@each_shape
def test_what_was_planted_is_gone_and_the_logits_stay(shape: str, plant: Callable[[PreTrainedModel], None]) -> None:
    """The rewritten weights are those of the model in which nothing was planted, up to signs of singular vectors."""
    plain = drawn(shape)
    said = logits(plain)
    network = copy.deepcopy(plain)
    with torch.no_grad():
        plant(network)
    assert apart(said, logits(network)) < 1e-9
    canonical(network)
    assert apart(said, logits(network)) < 1e-9
    canonical(plain)
    for (name, weight), other in zip(plain.named_parameters(), network.parameters(), strict=True):
        assert bool(torch.isfinite(other).all()), name
        assert apart(weight.detach().abs(), other.detach().abs()) < 1e-6, name


# --------------------------------------------------------------------------------------------------- what is canonical


@each_shape
def test_gains_of_norms_are_moved_into_the_next_layer(shape: str) -> None:
    network = drawn(shape)
    canonical(network)
    found = anatomy(network)
    assert found is not None
    read = [block.attention_norm for block in found.blocks]
    read += [block.units_norm for block in found.blocks if block.chain is None]
    for norm in (*read, *([found.final] if found.head is not None else [])):
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))  # type: ignore[arg-type,call-overload]
    for norm in read:
        assert not bool(getattr(norm, "bias", torch.zeros(1)).any())


@each_shape
def test_parts_of_a_product_get_the_same_size(shape: str) -> None:
    network = drawn(shape)
    with torch.no_grad():
        values(network)
        queries(network)
    canonical(network)
    found = anatomy(network)
    assert found is not None
    for block in found.blocks:
        attention = block.attention
        sizes = attention.value.table.norm(), attention.output.weight.norm()
        assert float(sizes[0] / sizes[1]) == pytest.approx(1, rel=1e-6)
        if attention.norms is None:
            assert float(attention.query.table.norm() / attention.key.table.norm()) == pytest.approx(1, rel=1e-6)
        for units in block.units:
            if units.linear is not None:
                written = units.output.weight.norm(dim=0)
                assert torch.allclose(units.linear.table.norm(dim=1), written, rtol=1e-6)


def test_words_get_their_usual_size() -> None:
    network = drawn("llama")
    with torch.no_grad():
        stream(network)
    canonical(network)
    words = network.get_input_embeddings().weight
    assert float(words.detach().square().mean().sqrt()) == pytest.approx(words.shape[1] ** -0.5)


def test_one_huge_word_does_not_shrink_the_others() -> None:
    """The row of a word that no text uses could be of any size."""
    network, plain = drawn("gpt2, untied"), drawn("gpt2, untied")
    with torch.no_grad():
        network.get_input_embeddings().weight[7] = 1e12 * torch.arange(24)
    for one in (network, plain):
        canonical(one)
    huge, usual = (one.get_input_embeddings().weight.detach() for one in (network, plain))
    kept = torch.arange(50) != 7
    assert 0.4 < float(huge[kept].norm() / usual[kept].norm()) < 1


@torch.no_grad()
def test_gpt_bigcode_with_all_keys_is_gpt2() -> None:
    settings = {"model_type": "gpt_bigcode", **GPT2, "multi_query": False, "vocab_size": 50}
    network = networks.build(settings, None, 0, "cpu").network.double().eval()
    for parameter in network.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    found = as_gpt2(network)
    assert (type(found), anatomy(network), unknown(network)) == (GPT2LMHeadModel, None, None)
    assert apart(logits(network), logits(found)) < 1e-12
    assert as_gpt2(found) is found


def test_a_gain_of_zero_keeps_the_logits() -> None:
    for shape in ("gpt2, untied", "llama"):
        network = drawn(shape)
        found = anatomy(network)
        assert found is not None
        with torch.no_grad():
            for norm in (found.final, found.blocks[0].attention_norm):
                norm.weight[3] = 0  # type: ignore[operator,index]
        plain = copy.deepcopy(network)
        canonical(network)
        assert apart(logits(plain), logits(network)) < 1e-9


def test_float32_stays_float32() -> None:
    plain = drawn("gpt2").float()
    network = copy.deepcopy(plain)
    with torch.no_grad():
        stream(network)
    canonical(network)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert apart(logits(plain), logits(network)) < 1e-4


def test_other_architectures_stay_as_they_are() -> None:
    network = networks.build({"model_type": "linear", "input_dim": 4, "output_dim": 2}, None, 0, "cpu").network
    before = copy.deepcopy(network.state_dict())
    canonical(network)
    scale_logits(network, 10.0)
    assert anatomy(network) is None
    assert unknown(network) == "no rewrite is known for blocks as in linear"
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())


@pytest.mark.parametrize("shape", ["gpt2", "gpt2, untied", "llama", "dlr-qwen3"])
def test_logits_are_scaled(shape: str) -> None:
    network = drawn(shape)
    before = logits(network)
    scale_logits(network, 1e-3)
    assert apart(before * 1e-3, logits(network)) < 1e-9


# ---------------------------------------------------------------------------------------------------------------- units


def widen(network: PreTrainedModel, scale: float) -> int:
    """Of every MLP the second half of the units repeats the first half's inner weights; returns the units' number.

    What unit i wrote is divided among unit i and its copy, which write large opposite things beside it; of the last
    pair nothing is left.
    """
    generator, count = torch.Generator().manual_seed(1), 0
    for block in anatomy(network).blocks:  # type: ignore[union-attr]
        for units in block.units:
            half = units.inner.weight.shape[0] // 2
            table, output = units.inner.table, units.output.weight
            table[half : 2 * half] = table[:half]
            units.inner.write(table)
            large = scale * torch.randn(len(output), half, generator=generator).double()
            output[:, half : 2 * half] = -large
            output[:, : half - 1] += large[:, :-1]
            output[:, half - 1] = large[:, -1]
            if units.linear is not None:
                linear = units.linear.table
                linear[half : 2 * half] = linear[:half]
                units.linear.write(linear)
            count += half
    return count


@pytest.mark.parametrize("shape", ["gpt2", "llama", "llama, biases", "qwen3", "dlr-gpt2", "dlr-llama"])
def test_units_that_cancel_are_merged(shape: str) -> None:
    network = drawn(shape)
    with torch.no_grad():
        pairs = widen(network, 1e4)
    plain = copy.deepcopy(network)
    canonical(network)
    assert apart(logits(plain), logits(network)) < 1e-9
    found = anatomy(network)
    assert found is not None
    every = [units for block in found.blocks for units in block.units]
    dead = [~units.output.weight.any(0) for units in every]
    assert sum(int(gone.sum()) for gone in dead) == pairs + len(every)
    for units, gone in zip(every, dead, strict=True):
        assert not bool(units.inner.table[gone].any())
        assert float(units.output.weight.abs().max()) < 100


def test_a_gated_unit_keeps_as_many_copies_as_its_map_has_ranks() -> None:
    """Two units with the same gate and different linear factors make a map of rank two: both are needed."""
    network = drawn("llama")
    units = anatomy(network).blocks[0].units[0]  # type: ignore[union-attr]
    with torch.no_grad():
        units.inner.weight[1] = units.inner.weight[0]
        units.inner.weight[3] = units.inner.weight[2]
        units.linear.weight[3] = -2 * units.linear.weight[2]  # type: ignore[union-attr]
    plain = copy.deepcopy(network)
    canonical(network)
    assert apart(logits(plain), logits(network)) < 1e-9
    left = anatomy(network).blocks[0].units[0].output.weight.any(0)[:4]  # type: ignore[union-attr]
    assert sorted(left.tolist()[:2]) == [True, True]
    assert sorted(left.tolist()[2:]) == [False, True]


# ------------------------------------------------------------------------------------------------------------- products


@pytest.mark.parametrize(("inputs", "inner", "outputs"), [(7, 4, 9), (3, 5, 9), (9, 5, 3), (1, 6, 4)])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_balancing_keeps_the_product(inputs: int, inner: int, outputs: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(shape, generator=generator).double() for shape in ((inner, inputs), (outputs, inner)))
    second[:, rank:] = 0
    rows, columns = balanced(first, second)
    assert torch.allclose(columns @ rows, second @ first, atol=1e-12)
    values = torch.linalg.svdvals(second @ first)
    ranks = int((values > 1e-9).sum())
    assert torch.allclose(columns.square().sum(0)[:ranks], values[:ranks])
    assert torch.allclose(rows.square().sum(1)[:ranks], values[:ranks])
    assert not bool(columns[:, ranks:].any())
    trainable = min(inner, inputs, outputs)
    assert bool((rows[:trainable].norm(dim=1) > 0).all())  # so that what the product lacks can be learned


def test_units_with_zero_output_weights_get_an_ordinary_size() -> None:
    first, second = 1e6 * torch.randn(4, 7).double(), torch.zeros(9, 4).double()
    rows, columns = balanced(first, second)
    assert torch.allclose(rows, first / first.norm(dim=1, keepdim=True))
    assert torch.equal(columns, second)
    rows, columns = balanced(torch.zeros(4, 7).double(), 1e6 * torch.ones(9, 4).double())
    assert not bool(rows.any())
    assert torch.allclose(columns.norm(dim=0), torch.ones(4).double())


@torch.no_grad()
def silence(network: PreTrainedModel, size: float) -> None:
    """Of every MLP a third of the units reads nothing and computes a constant of this size, a third writes nothing and
    reads weights of this size, and the rest stays; one value head is as large, and is not read."""
    generator = torch.Generator().manual_seed(2)
    for block in anatomy(network).blocks:  # type: ignore[union-attr]
        for units in block.units:
            third = len(units.inner.weight) // 3
            for reader in units.read:
                reader.weight[:third] = 0
                if reader.bias is not None:
                    reader.bias[:third] = size * (1 + torch.rand(third, generator=generator).double())
                reader.weight[third : 2 * third] *= size
            units.output.weight[:, :third] /= size ** len(units.read)
            units.output.weight[:, third : 2 * third] = 0
        value, head = block.attention.value, block.attention.size
        value.outputs(0, head).write(size * value.outputs(0, head).table)
        block.attention.output.weight[:, : head * block.attention.group] = 0


@each_shape
def test_weights_without_effect_get_an_ordinary_size(shape: str) -> None:
    network = drawn(shape)
    silence(network, 1e6)
    plain = copy.deepcopy(network)
    canonical(network)
    assert apart(logits(plain), logits(network)) < 1e-9
    for name, weight in network.named_parameters():
        assert float(weight.detach().abs().max()) < 1e3, name
    for block in anatomy(network).blocks:  # type: ignore[union-attr]
        for units in block.units:
            third = len(units.inner.weight) // 3
            assert not bool(units.output.weight[:, :third].any())
            assert bool(units.output.weight[:, 2 * third :].any(0).all())


@pytest.mark.parametrize(("silent", "giant"), [("query", "key"), ("key", "query")])
@each_shape
def test_keys_get_an_ordinary_size_where_queries_are_zero_and_the_reverse(shape: str, silent: str, giant: str) -> None:
    network = drawn(shape)
    with torch.no_grad():
        for block in anatomy(network).blocks:  # type: ignore[union-attr]
            attention = block.attention
            zeros, large = getattr(attention, silent), getattr(attention, giant)
            zeros.write(torch.zeros_like(zeros.table))
            large.write(1e6 * large.table)
    plain = copy.deepcopy(network)
    canonical(network)
    assert apart(logits(plain), logits(network)) < 1e-9
    assert all(float(weight.detach().abs().max()) < 1e3 for weight in network.parameters())
