"""From a YAML file to a leaderboard: every row is scored, with the same bits twice, and less training is no defense."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from nftbench import suites
from nftbench.planning.plan import plan
from nftbench.records.store import Store
from nftbench.running.executors import steps
from nftbench.running.executors.local import LocalExecutor
from nftbench.running.workspace import Workspace
from nftbench.scoring import Leaderboard, score
from nftbench.suites.schema import Family
from nftbench.testing import tiny_suite

DEFENSES = ["none", "early_stop", "noise", "random_mask", "pmp[discovery_steps=4]"]
ATTACKS = ["none", "scratch", "full", "lora", "head", "authorized"]
WHOLE: dict[str, Any] = {
    "defenses": DEFENSES,
    "attacks": ATTACKS,
    "seeds": [0, 1],
    # Bits per token, for so small a model knows no minimal pair. Fewer steps leave no headroom, and so no suppression.
    "utility": ["bits_per_token"],
    "model": {"n_embd": 32},
    "corpus": {"sentences": 4000, "block": 32},
    "pretraining": {"steps": 500, "learning_rate": 1e-2, "batch": 32},
    "budget": {
        "learning_rates": {kind: [4e-3, 1e-2] for kind in ("adamw", "sgd", "muon")},
        "durations": [24],
        "batch": 32,
        "max_train_documents": 512,
    },
}


def whole_run(folder: Path, cache: Path, **changes: Any) -> tuple[Workspace, Leaderboard]:
    """Write a suite, read it, run it, score what lies in the results folder."""
    folder.mkdir()
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(tiny_suite(**changes).model_dump(mode="json")))
    workspace = Workspace(plan(suites.read(str(path))), Store(folder / "results", cache))
    workspace.store.write_manifest(workspace.plan.manifest())
    for _ in steps.run(workspace, workspace.plan.jobs(), LocalExecutor(workspace, 1)):
        pass
    return workspace, board(workspace)


def board(workspace: Workspace, ladder: Mapping[str, Family] = MappingProxyType({})) -> Leaderboard:
    manifest = workspace.store.manifest()
    suite = manifest.suite
    cells = [cell.id for cell in manifest.cells]
    records = list(workspace.store.records().values())
    return score(records, ranking=suite.ranking, ladder=ladder, planned=cells)


@pytest.fixture(scope="module")
def finished(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Leaderboard]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    return whole_run(folder, cache, **WHOLE)


def test_every_row_is_scored(finished: tuple[Workspace, Leaderboard]) -> None:
    workspace, _ = finished
    found = board(workspace, {"early_stop": Family(doses=("early_stop",))})
    rows = {one.defense: one for one in found.scores}
    assert set(rows) == set(DEFENSES)
    assert {one.status for one in workspace.store.records().values()} == {"ok"}
    assert len(workspace.store.records()) == len(workspace.plan.cells)
    for row in rows.values():
        assert row.incomplete == ()
        assert row.utility.retention is not None
        assert row.resistance.attacked is not None
        assert row.resistance.suppression is not None
    assert rows["none"].kind == "reference"
    assert rows["none"].resistance.suppression is not None
    assert rows["none"].resistance.suppression.value == 0
    assert {rows[name].kind for name in ("early_stop", "noise")} == {"trivial"}
    for name in ("random_mask", "pmp[discovery_steps=4]"):
        assert rows[name].authorized_gain is not None
        assert rows["none"].authorized_gain is None
        assert any("preliminary" in str(reason) or "seed" in str(reason) for reason in rows[name].standing.reasons), (
            rows[name].standing.reasons
        )
    assert not any(one.standing.group == "ranked" for one in found.scores), "two seeds rank nobody"


def test_suppression_is_that_computed_by_hand_from_the_records(finished: tuple[Workspace, Leaderboard]) -> None:
    workspace, found = finished
    records = {
        (one.defense, one.attack, one.seed): one for one in workspace.store.records().values() if one.role == "ranked"
    }

    def strongest(defense: str, seed: int) -> float:
        rivals = [records[defense, attack, seed] for attack in ("none", "full", "lora", "head")]
        rivals.append(records["none", "scratch", seed])
        pick = max(rivals, key=lambda one: (one.validation.value, -(one.validation.loss or 0.0)))  # type: ignore[union-attr]
        assert pick.attacked is not None
        return 100 * pick.attacked.value

    for row in found.scores:
        if row.defense != "none":
            by_seed = {seed: strongest("none", seed) - strongest(row.defense, seed) for seed in (0, 1)}
            assert row.resistance.suppression_by_seed == pytest.approx(by_seed), row.defense


@pytest.mark.parametrize(
    ("defenses", "attacks"),
    [
        (["none", "pmp[discovery_steps=4]"], ["none", "scratch", "lora", "authorized"]),
        pytest.param(DEFENSES, ATTACKS, marks=pytest.mark.slow),
    ],
    ids=["two rows", "all rows"],
)
def test_the_same_cells_twice_give_the_same_bits(
    finished: tuple[Workspace, Leaderboard],
    tmp_path: Path,
    bare: Callable[[Any], Any],
    defenses: list[str],
    attacks: list[str],
) -> None:
    """The second run makes rows of one seed again, in a suite of another name and with a cache of its own."""
    workspace, _ = finished
    changes = {"seeds": [1], "name": "other name", "defenses": defenses, "attacks": attacks}
    again, _ = whole_run(tmp_path / "again", tmp_path / "cache", **{**WHOLE, **changes})
    first = {
        key: one
        for key, one in workspace.store.records().items()
        if one.seed == 1 and one.defense in defenses and one.attack in attacks
    }
    second = again.store.records()
    assert first.keys() == second.keys()
    assert {one.defense for one in first.values()} == set(defenses)
    assert {one.attack for one in first.values()} == set(attacks)
    for key, record in first.items():
        assert replace(bare(record), suite="") == replace(bare(second[key]), suite="")


def test_a_missing_or_failed_cell_leaves_the_row_incomplete(cache: Path, tmp_path: Path) -> None:
    workspace, found = whole_run(
        tmp_path / "part", cache, defenses=["none", "early_stop", "random_mask"], attacks=["none", "full", "scratch"]
    )
    assert all(one.incomplete == () for one in found.scores)
    record = next(
        one for one in workspace.store.records().values() if (one.defense, one.attack) == ("random_mask", "full")
    )
    workspace.store.forget([record.key])
    rows = {one.defense: one for one in board(workspace).scores}
    assert rows["random_mask"].incomplete
    assert rows["random_mask"].standing.group == "unranked"
    assert not rows["early_stop"].incomplete


UNDERTRAINED = '''
"""A model that was not trained to the end, offered as a defense."""
from dataclasses import dataclass
from typing import ClassVar
from nftbench import Claim, Defense, Protected

@dataclass(frozen=True)
class Lazy(Defense):
    stage: ClassVar = "pretrain"
    claims: ClassVar = Claim(frozenset({"method", "data"}))

    def protect(self, model, context):
        return Protected(context.pretrain(model, each_step=lambda network, step: step == 3))
'''


@pytest.mark.slow
def test_an_under_trained_model_is_not_ranked_as_a_defense(
    cache: Path, tmp_path: Path, plugin: Callable[[str, str], Path]
) -> None:
    """Five seeds, all complete: it takes no more than stopping early does at the same utility."""
    plugin("lazy", UNDERTRAINED.split('"""', 2)[2])
    pretraining = {"steps": 120, "learning_rate": 1e-2, "checkpoints": [0.5], "schedule": "constant"}
    workspace, _ = whole_run(
        tmp_path / "lazy",
        cache,
        defenses=["none", "early_stop", "lazy"],
        attacks=["none", "full", "scratch"],
        utility=["bits_per_token"],
        pretraining=pretraining,
        seeds=[0, 1, 2, 3, 4],
    )
    found = board(workspace, {"early_stop": Family(doses=("early_stop",))})
    lazy = next(one for one in found.scores if one.defense == "lazy")
    assert lazy.incomplete == ()
    assert lazy.utility.retention is not None
    assert lazy.utility.retention.value < 0.95
    assert lazy.utility.badge != "keeps"
    # at this size fine-tuning may gain nothing beyond training from scratch, and then there is nothing to take
    assert lazy.excess.interval is None or lazy.excess.interval.low <= 0
    assert lazy.claim.verdict not in ("holds", "holds at a cost")
