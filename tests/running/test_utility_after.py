"""After the attacks that a suite names, an attacked network's utility is measured as the release's own is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nftbench.cli.execution import rank
from nftbench.scoring.side_tables.utility_guard import UtilityGuard

UTILITY = ["toy_agreement_pronoun", "bits_per_token"]
IDLE = '''
@dataclass(frozen=True)
class Idle(Attack):
    """Returns the release."""

    def adapt(self, prepared, task, context):
        return context.unchanged(prepared.model, task)
'''


def test_utility_is_measured_after_the_named_attacks_alone(
    workspace: Callable[..., Any], run_all: Callable[..., Any], plugin: Callable[[str, str], Path]
) -> None:
    plugin("idle", IDLE)
    place = workspace(
        attacks=["none", "full", "idle", "repair"],
        utility=UTILITY,
        utility_after=["idle", "repair"],
        budget={"durations": [2, 20], "learning_rates": {"adamw": [1e-2, 3e-2]}},
    )
    found = {(attack, task): one for (_, attack, task, _), one in run_all(place).items()}
    assert {(one.status, one.reason) for one in found.values()} == {("ok", None)}
    own = {metric: found["none", metric].attacked.value for metric in UTILITY}
    assert found["idle", "toy_topic"].attacked_utility == own
    repaired = found["repair", "toy_topic"]
    assert repaired.picked.step > 0
    assert repaired.attacked_utility.keys() == own.keys()
    assert repaired.attacked_utility != own
    others = [one for (attack, _), one in found.items() if attack in ("none", "full")]
    assert [one.attacked_utility for one in others] == [None] * len(others)
    (row,) = rank(place.store.records(), place.plan.manifest()).side_table(UtilityGuard).rows
    assert (row.defense, row.attacks, row.measured) == ("none", ("idle", "repair"), 2)
    assert row.passed >= 1
    assert row.guarded is not None
