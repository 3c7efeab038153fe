"""Alignment: transforms that hide an update are solved for exactly, without changing what the release computes."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from nftbench.attacks.align import align
from nftbench.contract import Model, Prepared, Release, Task
from nftbench.methods import symmetries, updates
from nftbench.planning import registry
from nftbench.running.attacker import Attacker
from nftbench.testing import ARCHITECTURES
from nftbench.testing.stand_ins import Questions
from nftbench.training.engine import Stepper
from tests.attacks.planted import BUDGET, WORDS, Both, same, undefended
from tests.checkpoints import fresh

each_architecture = pytest.mark.parametrize("kind", ARCHITECTURES)


def base(kind: str) -> PreTrainedModel:
    network = fresh(kind, WORDS + 2, initializer_range=0.3).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))  # biases are zero at first
    return network


@torch.no_grad()
def hidden(network: PreTrainedModel) -> PreTrainedModel:
    """The same function in other coordinates: heads transformed, units permuted and, where gated, rescaled."""
    network = copy.deepcopy(network)
    found = symmetries.anatomy(network)
    assert found is not None
    generator = torch.Generator().manual_seed(5)

    def near_one(size: int) -> torch.Tensor:
        return torch.eye(size).double() + 0.5 * torch.randn(size, size, generator=generator).double()

    for block in found.blocks:
        attention = block.attention
        size, group = attention.size, attention.group
        for head in range(attention.key_heads):
            rows = slice(head * size, (head + 1) * size)
            turn = near_one(size)
            value = attention.value.outputs(rows.start, rows.stop)
            value.write(turn @ value.table)
            columns = attention.output.weight[:, rows.start * group : rows.stop * group]
            columns.copy_((columns.double().unflatten(1, (group, size)) @ torch.linalg.inv(turn)).flatten(1))
            if attention.norms is not None:
                continue
            if attention.rotary:  # a complex number for each rotary pair
                numbers = torch.complex(*torch.randn(2, size // 2, generator=generator).double())
                real, imaginary = numbers.real.diag(), numbers.imag.diag()
                turn = torch.cat([torch.cat([real, -imaginary], 1), torch.cat([imaginary, real], 1)])
            query, key = (
                attention.query.outputs(rows.start * group, rows.stop * group),
                attention.key.outputs(rows.start, rows.stop),
            )
            query.write((turn @ query.table.unflatten(0, (group, size))).flatten(0, 1))
            key.write(torch.linalg.inv(turn).mT @ key.table)
        for units in block.units:
            order = torch.randperm(len(units.inner.weight), generator=generator)
            for one in units.read:
                one.write(one.table[order])
            units.output.weight.copy_(units.output.weight[:, order].clone())
            if units.linear is not None:
                scales = 0.2 + 3 * torch.rand(len(order), generator=generator).double()
                units.linear.scale(scales)
                units.output.weight.copy_(units.output.weight.double() / scales)
    return network


@each_architecture
def test_a_transform_of_the_base_is_undone_exactly(kind: str) -> None:
    network = base(kind)
    release = hidden(network)
    assert same(network, release)
    assert any(not torch.equal(*pair) for pair in zip(network.parameters(), release.parameters(), strict=True))
    assert align(release, network) > 2
    for (name, own), (_, other) in zip(release.named_parameters(), network.named_parameters(), strict=True):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-3, msg=name)


@each_architecture
def test_an_update_keeps_its_function_and_comes_close_to_the_base(kind: str) -> None:
    network = base(kind)
    updated, generator = copy.deepcopy(network), torch.Generator().manual_seed(6)
    with torch.no_grad():
        for weight in updated.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    release = hidden(updated)
    align(release, network)
    assert same(updated, release)

    @torch.no_grad()
    def far(one: nn.Module) -> float:
        pairs = zip(one.parameters(), network.parameters(), strict=True)
        return sum(float((own - other).square().sum()) for own, other in pairs)

    assert far(release) < 1.1 * far(updated) < 0.1 * far(hidden(updated))


@each_architecture
def test_an_update_without_a_transform_stays_as_it_is(kind: str) -> None:
    network = base(kind)
    release, generator = copy.deepcopy(network), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in release.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    before = copy.deepcopy(release)
    assert align(release, network) == 0
    assert all(torch.equal(*pair) for pair in zip(before.parameters(), release.parameters(), strict=True))


def test_unknown_architectures_are_left_as_they_are() -> None:
    network = undefended("gpt_neox")
    assert align(copy.deepcopy(network), network) == 0


# ------------------------------------------------------------------------------------------------------------- merging


def tuned(network: PreTrainedModel, task: Task, steps: int, rate: float) -> PreTrainedModel:
    network = copy.deepcopy(network)
    stepper = Stepper(network, "adamw", rate, factor=lambda step: 1.0, weight_decay=0.0, clip=1.0)
    rows = task.split("train")
    for step in range(steps):
        stepper.step(task.loss(network, rows.batch(range(32 * step % 512, 32 * step % 512 + 32))))
    return network.eval()


@pytest.fixture(scope="module")
def released() -> tuple[PreTrainedModel, PreTrainedModel, PreTrainedModel]:
    """A base, what its owner tuned from it, and the same in other coordinates."""
    network = base("gpt2")
    updated = tuned(network, Both(), 80, 3e-3)
    return network, updated, hidden(updated)


Released = tuple[PreTrainedModel, PreTrainedModel, PreTrainedModel]


def test_half_of_an_aligned_update_is_worth_as_much_as_half_of_a_plain_one(released: Released) -> None:
    network, updated, other = released
    aligned, task = copy.deepcopy(other), Both()
    align(aligned, network)
    plain, turned, undone = (
        task.evaluate(updates.added(network, updates.difference(one, network).weights, 0.5), task.split("test")).value
        for one in (updated, other, aligned)
    )
    assert turned < plain - 0.1
    assert undone == pytest.approx(plain, abs=0.02)


def test_the_aligned_update_is_merged(released: Released) -> None:
    network, updated, other = released
    task = Both()

    def merged(spec: str, release: PreTrainedModel) -> tuple[float, Prepared]:
        """The mean score over all coefficients, and what was merged."""
        plugin = registry.create("attacks", spec)
        context = Attacker(
            seed=0, budget=BUDGET, _base=Model(network), _uses=plugin.uses(), others={"other": Swapped()}
        )
        given = Release(Model(copy.deepcopy(release)), updates.difference(release, network))
        prepared = plugin.prepare(given, context)
        scores = [point.score or 0.0 for point in plugin.adapt(prepared, task, context).curve]
        return sum(scores) / len(scores), prepared

    (plain, kept), (undone, moved) = merged("align", updated), merged("align", other)
    assert kept.update is not None
    assert moved.update is not None
    before = updates.difference(updated, network).weights
    assert all(torch.equal(kept.update.weights[name], weight) for name, weight in before.items())
    assert not all(torch.equal(moved.update.weights[name], weight) for name, weight in before.items())
    assert undone > plain - 0.03
    assert merged("merge", other)[0] < undone - 0.05


@dataclass(frozen=True)
class Swapped(Both):
    """The same question with the answers exchanged."""

    def split(self, name: str) -> Questions:  # type: ignore[override]
        rows = self.splits[name]  # type: ignore[index]
        return Questions(rows.ids, 2 * WORDS + 1 - rows.answers)
