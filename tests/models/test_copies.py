"""Copies that share memory: equal to deep copies, independent of the original, and as large as what is changed."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from nftbench.models.copies import copied
from nftbench.testing import ARCHITECTURES
from tests.allocated import kept_bytes
from tests.checkpoints import fresh


def network(architecture: str = "llama") -> nn.Module:
    return fresh(architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_copy_equals_a_deep_copy_and_neither_changes_the_other(architecture: str) -> None:
    original = network(architecture)
    next(original.parameters()).requires_grad_(False)
    before = copy.deepcopy(original)
    for changed, kept in itertools.permutations((original, copied(original))):
        ours, theirs = dict(kept.named_parameters()), dict(before.named_parameters())
        assert list(ours) == list(theirs), "tied weights stay tied"
        assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
        assert all(ours[name].requires_grad == weight.requires_grad for name, weight in theirs.items())
        state = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
        with torch.no_grad():
            for tensor in (*changed.parameters(), *changed.buffers()):
                tensor.zero_()
        assert all(torch.equal(tensor, state[name]) for name, tensor in kept.state_dict().items())
        original.load_state_dict(before.state_dict())


def test_a_copy_takes_the_memory_of_what_is_changed() -> None:
    original = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 100), nn.Linear(100, 300))
    sizes = [sum(weight.nbytes for weight in layer.parameters()) for layer in original]

    def trained() -> nn.Module:
        own = copied(original)
        own[:2].requires_grad_(False)
        optimizer = torch.optim.SGD(own[2].parameters(), lr=0.1)
        own(torch.ones(1, 300)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return own

    trained()  # whatever torch allocates at its first step
    assert kept_bytes(lambda: copied(original)) == 0
    assert kept_bytes(trained) == sizes[2]
    assert kept_bytes(lambda: copied(original).double()) == 2 * sum(sizes)


def test_weights_in_foreign_memory_or_another_layout_are_copied_at_once() -> None:
    """PyTorch shares its own memory alone, and a deep copy of a strided weight is laid out in another way."""
    foreign = nn.Linear(4, 4)
    foreign.weight = nn.Parameter(torch.from_numpy(np.ones((4, 4), np.float32)))
    strided = nn.Linear(4, 4)
    strided.weight = nn.Parameter(torch.arange(32.0).view(4, 8)[:, ::2])
    for original in (foreign, strided):
        own, usual = copied(original), copy.deepcopy(original)
        assert torch.equal(own.weight, usual.weight)
        assert own.weight.stride() == usual.weight.stride()
        with torch.no_grad():
            own.weight.add_(1)
        assert torch.equal(original.weight, usual.weight)
