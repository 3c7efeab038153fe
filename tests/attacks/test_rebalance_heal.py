"""Rebalancing and healing: the size of the weights does not decide what healing is worth."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from nftbench.attacks.rebalance_heal import center_embeddings
from nftbench.contract import Attack, Model, Release
from nftbench.methods.symmetries import anatomy, scale_stream
from nftbench.planning import registry
from nftbench.running.attacker import Attacker
from nftbench.testing import ARCHITECTURES, attack_inputs, temporary_workspace, tiny_suite
from tests.checkpoints import fresh

LENGTH = 16
TOKENS = torch.randint(50, (4, LENGTH), generator=torch.Generator().manual_seed(0))


def attacked(spec: str, architecture: str) -> tuple[Attack, Release, Attacker]:
    """An attack, the undefended tiny release and the attack's context."""
    attack: Attack = registry.create("attacks", spec)
    with temporary_workspace(tiny_suite(architecture, budget={"preparation_steps": 40})) as workspace:
        release, context = attack_inputs(workspace, attack)
    return attack, release, context


@torch.no_grad()
def logits(network: PreTrainedModel) -> torch.Tensor:
    found: torch.Tensor = network(input_ids=TOKENS).logits.log_softmax(-1)
    return found


@torch.no_grad()
def shrunk(network: PreTrainedModel, factor: float = 0.02) -> PreTrainedModel:
    """The same function, with every matrix multiplied by the factor and the gains of norms divided by it."""
    network = copy.deepcopy(network)
    found = anatomy(network)
    assert found is not None
    scale_stream(found, factor)
    for block in found.blocks:
        attention = block.attention
        readers = [attention.query, attention.key, attention.value]
        for norm, read in ((block.attention_norm, readers), (block.units_norm, block.units[0].read)):
            for parameter in norm.parameters():
                parameter.div_(factor)
            for reader in read:
                reader.weight.mul_(factor)
    return network


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_heals_small_weights_as_heal_does_those_of_ordinary_size(architecture: str, cache: Any) -> None:
    def healed(spec: str, shrink: bool) -> float:
        """Bits per token of public text after the preparation."""
        attack, release, context = attacked(spec, architecture)
        network = shrunk(release.model.network) if shrink else release.model.network
        assert torch.allclose(logits(network), logits(release.model.network), atol=1e-4)
        network = attack.prepare(Release(Model(network, release.model.tokenizer)), context).model.network
        with torch.no_grad():
            tokens = context.corpus.heldout
            return float(network(input_ids=tokens, labels=tokens).loss) / float(torch.tensor(2.0).log())

    honest, small, rebalanced = healed("heal", False), healed("heal", True), healed("rebalance_heal", True)
    assert small > honest + 0.6
    assert rebalanced < honest + 0.3  # the tiny model's own sizes are not those of a trained one


@torch.no_grad()
def test_shifts_of_the_embeddings_are_undone() -> None:
    """Words are shifted and positions shifted back, a number is added to all words, and unused positions are huge."""
    plain = fresh()
    shifted = copy.deepcopy(plain)
    shift = torch.randn(plain.config.n_embd, generator=torch.Generator().manual_seed(1))
    shifted.transformer.wte.weight.add_(shift + 5.0)
    shifted.transformer.wpe.weight.sub_(shift)
    shifted.transformer.wpe.weight[LENGTH:] = 1e6
    want = logits(plain)
    assert torch.allclose(logits(shifted), want, atol=1e-3)
    for network in (plain, shifted):
        center_embeddings(network, LENGTH)
        assert torch.allclose(logits(network), want, atol=1e-3)
    for name in ("wte", "wpe"):
        one, other = (getattr(network.transformer, name).weight[:LENGTH] for network in (plain, shifted))
        assert torch.allclose(one, other, atol=1e-5)


def test_it_is_heal_where_no_rewrite_is_known(cache: Any) -> None:
    found = []
    for spec in ("heal", "rebalance_heal"):
        attack, release, context = attacked(spec, "gpt2")
        release = Release(Model(fresh("opt", len(release.model.tokenizer)), release.model.tokenizer))
        assert anatomy(release.model.network) is None
        found.append(attack.prepare(release, context).model.network.state_dict())
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())
