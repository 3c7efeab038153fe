"""The prefix: what the network reads, with and without a cache, which blocks stay, and that a task is scored by it."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nftbench.contract import Model, Prepared
from nftbench.errors import NftbenchError
from nftbench.methods import Prefixed
from nftbench.models import networks
from nftbench.planning import registry
from nftbench.testing import ARCHITECTURES

IDS = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(0))
TEXT = torch.arange(40)[None]


def network(architecture: str = "gpt2") -> Any:
    return networks.build({"model_type": architecture, **ARCHITECTURES[architecture], "vocab_size": 50}, None, 0, "cpu")


def behind(inner: Any, prefix: list[int], ids: Tensor) -> Tensor:
    """The logits of the ids' own positions behind the prefix."""
    found: Tensor = inner(input_ids=torch.cat([torch.tensor([prefix] * len(ids)), ids], 1)).logits
    return found[:, len(prefix) :]


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_reads_the_prefix_before_the_text(architecture: str) -> None:
    inner = network(architecture).network.eval()
    whole = behind(inner, [7, 2], IDS)
    assert torch.allclose(Prefixed(inner, [7, 2], 64)(input_ids=IDS).logits, whole, atol=1e-6)
    assert torch.allclose(Prefixed(inner, [7, 2], 64)(input_ids=IDS, logits_to_keep=4).logits, whole[:, -4:], atol=1e-6)
    assert not torch.allclose(whole, inner(input_ids=IDS).logits, atol=1e-3)


@torch.no_grad()
def test_a_cache_holds_the_prefix_once() -> None:
    inner = network().network.eval()
    wrapped = Prefixed(inner, [7, 2], 64)
    first = wrapped(input_ids=IDS[:, :5], use_cache=True)
    rest = wrapped(input_ids=IDS[:, 5:], use_cache=True, past_key_values=first.past_key_values).logits
    assert torch.allclose(rest, behind(inner, [7, 2], IDS)[:, 5:], atol=1e-5)


@torch.no_grad()
def test_what_does_not_fit_the_window_is_dropped_from_the_start() -> None:
    inner = network().network.eval()
    found = Prefixed(inner, [7, 2], 8)(input_ids=IDS).logits
    assert torch.allclose(found, behind(inner, [7, 2], IDS[:, -6:]), atol=1e-6)


def wrapped(spec: str, architecture: str = "gpt2") -> Any:
    """What the attack would train."""
    tokenizer = SimpleNamespace(eos_token_id=2, model_max_length=64)
    context: Any = SimpleNamespace(
        sweep=lambda model, task, adapter: adapter(copy.deepcopy(model.network), 0),
        text=lambda model, batch: iter([TEXT]),
    )
    model: Any = Model(network(architecture).network, tokenizer)  # type: ignore[arg-type]
    return registry.create("attacks", spec).adapt(Prepared(model), None, context)


@pytest.mark.parametrize(
    ("spec", "prefix"),
    [("prefix", [2]), ("prefix[text=passage,length=3]", [37, 38, 39, 2]), ("prefix[frozen=1]", [2])],
)
def test_the_prefix_is_the_end_of_a_document_behind_a_passage(spec: str, prefix: list[int]) -> None:
    assert wrapped(spec).prefix.tolist() == prefix


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_first_blocks_stay_as_they_are(architecture: str) -> None:
    still = {
        name
        for name, weight in wrapped("prefix[frozen=1]", architecture).named_parameters()
        if not weight.requires_grad
    }
    assert still
    assert all(".h.0." in name or ".layers.0." in name for name in still)
    assert all(weight.requires_grad for weight in wrapped("prefix", architecture).parameters())


def test_more_frozen_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(NftbenchError, match="has 1 blocks, not 2"):
        wrapped("prefix[frozen=2]")


def test_knowledge_follows_what_is_read() -> None:
    assert registry.create("attacks", "prefix").knowledge == {"method"}
    assert registry.create("attacks", "prefix[text=passage]").knowledge == {"method", "data"}
