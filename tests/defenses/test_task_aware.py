"""Defenses that are told the harmful task: their paper suites, and what the referee counts when they protect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nftbench.planning import registry
from nftbench.records.spec import Spec
from nftbench.suites import read

NAMES = ("repnoise", "seam", "tar", "sophon", "clamp")


@pytest.mark.parametrize("name", NAMES)
def test_its_paper_suite_has_the_row_and_its_control(name: str) -> None:
    suite = read(f"paper-{name}")
    none, row, plain = (registry.create("defenses", spec) for spec in suite.defenses)
    control = row.control_row()
    assert control is not None
    assert registry.create("defenses", control) == plain
    assert none.reference_row() == "none"
    assert row.task_aware
    assert row.told() == ("toy_topic",) == tuple(suite.tasks)
    quantities = [one for claim in suite.claims for one in (claim.read, claim.minus) if one is not None]
    assert {spec for one in quantities for spec in one.rows} <= set(suite.defenses)
    assert {Spec.parse(spec) for one in quantities for spec in one.attacks} <= set(map(Spec.parse, suite.attacks))


@pytest.mark.parametrize(
    ("spec", "steps"),
    [
        ("tar[harmful=toy_topic,steps=2,inner_steps=4,mapping_steps=3]", 3 + 2 * (4 + 1)),
        ("sophon[harmful=toy_topic,steps=2,batch=8,inner_steps=3]", 2 * (3 + 1 + 5)),
    ],
)
def test_simulated_steps_stand_in_the_owners_ledger(
    spec: str, steps: int, workspace: Callable[..., Any], run_all: Any
) -> None:
    """In a process of its own, as every run protects."""
    found = run_all(workspace(defenses=["none", spec]))[spec, "none", "toy_topic", 0]
    assert found.status == "ok"
    assert found.protection.ledger.spent.steps == 20 + steps  # the base's run counts too
    assert found.protection.ledger.spent.tokens > 0
