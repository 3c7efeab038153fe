"""What an attack is given to train with is what the contract declares."""

from __future__ import annotations

import inspect

import pytest

from nftbench.contract import AttackerContext, OwnerContext
from nftbench.running.attacker import Attacker
from nftbench.running.owner import Owner, Shadow

METHODS = [
    *((Attacker, AttackerContext, name) for name in ("train", "gradients", "sweep", "select", "unchanged")),
    *((owner, OwnerContext, name) for owner in (Owner, Shadow) for name in ("pretrain", "build")),
]


@pytest.mark.parametrize(("given", "declared", "name"), METHODS)
def test_parameters_and_defaults_are_those_of_the_contract(given: type, declared: type, name: str) -> None:
    found, expected = (inspect.signature(getattr(one, name)).parameters for one in (given, declared))
    assert [(one.name, one.kind, one.default) for one in list(found.values())[1:]] == [
        (one.name, one.kind, one.default) for one in list(expected.values())[1:]
    ]
