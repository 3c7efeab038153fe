"""Yardsticks and updates in a run: planned where they apply, read by the referee, no part of a score."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nftbench import NftbenchError
from nftbench.cli import main
from nftbench.planning.plan import plan
from nftbench.testing import BrokenPromiseError, check_attack, check_defense, check_yardstick, tiny_suite

WriteFile = Callable[[str, str], Path]
MakeWorkspace = Callable[..., Any]
RunAll = Callable[..., dict[tuple[str, str, str, int], Any]]

YARDSTICK = """
@dataclass(frozen=True)
class Distance(Yardstick):
    scale: float = 1.0

    def applies(self, defense):
        return None if defense.releases_update else "there is no update"

    def measure(self, inspection):
        base = dict(inspection.base.network.named_parameters())
        moved = [float((w - base[n]).detach().abs().max()) for n, w in inspection.release.network.named_parameters()]
        task = inspection.task(inspection.told[0])
        return Reading({"largest": self.scale * max(moved), "documents": float(len(task.split("test")))})
"""
DEFENSE = """
@dataclass(frozen=True)
class Owned(Defense):
    stage: ClassVar = "posttrain"
    releases_update: ClassVar = True
    claims: ClassVar = Claim(frozenset({"base"}), "merging")

    def told(self):
        return ("toy_topic",)

    def protect(self, model, context):
        weight = model.network.transformer.wte.weight
        weight.data.add_(0.5)
        update = {"transformer.wte.weight": torch.full_like(weight, 0.5)}
        return Protected(model, update=Update(update))
"""
ATTACK = """
@dataclass(frozen=True)
class Rescaled(Attack):
    knowledge: ClassVar = frozenset({"base"})
    adaptation: ClassVar = "merging"

    def adapt(self, prepared, task, context):
        from nftbench.models import updates

        weights = updates.dense(prepared.update)
        scales = [float(len(context.others)), 0.5]
        networks = ((updates.added(context.base.network, weights, scale), scale, 1) for scale in scales)
        return context.select(task, networks)
"""


CHANGES = {"defenses": ["none", "owned"], "attacks": ["none", "full", "rescaled"], "tasks": ["toy_topic", "toy_tone"]}


@pytest.fixture
def plugins(plugin: WriteFile) -> None:
    for name, text in (("distance", YARDSTICK), ("owned", DEFENSE), ("rescaled", ATTACK)):
        plugin(name, text)


@pytest.mark.usefixtures("plugins")
def test_a_run_publishes_updates_and_reads_yardsticks_where_they_apply(
    workspace: MakeWorkspace, run_all: RunAll, cache: Path
) -> None:
    found = run_all(workspace(**CHANGES, yardsticks=["distance", "distance[scale=2]"]))
    records = {place[:3]: record for place, record in found.items()}
    assert [record.reason for record in records.values() if record.status != "ok"] == []
    one, two = (records["owned", "none", name].reading for name in ("distance", "distance[scale=2]"))
    assert one is not None
    assert two is not None
    assert one.values == pytest.approx({"largest": 0.5, "documents": 40})
    assert two.values["largest"] == pytest.approx(1.0)
    assert records["owned", "none", "distance"].role == "yardstick"
    assert ("none", "none", "distance") not in records  # it does not apply
    merged = [key for key in records if key[1] == "rescaled"]
    assert merged == [("owned", "rescaled", "toy_topic")]  # the update's own task alone
    curve = records["owned", "rescaled", "toy_topic"].curve
    assert [point.learning_rate for point in curve] == [1.0, 0.5]  # one other task was there to merge with
    release = cache / "releases" / records["owned", "none", "toy_topic"].release
    assert torch.all(load_file(release / "adapter" / "adapter_model.safetensors")["transformer.wte.weight"] == 0.5)


@pytest.mark.usefixtures("plugins")
def test_a_failed_yardstick_leaves_the_score_complete(
    tmp_path: Path, cache: Path, plugin: WriteFile, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin("broken", YARDSTICK.replace("return Reading(", 'raise KeyError("x")\n        return Reading('))
    path, out = tmp_path / "tiny.yaml", tmp_path / "out"
    path.write_text(tiny_suite(**CHANGES, yardsticks=["broken"]).model_dump_json())  # JSON is YAML
    code = main(["run", str(path), "--out", str(out), "--cache", str(cache), "--jobs", "1"])
    assert code == 1  # a yardstick that fails is a cell that is not ok
    assert "KeyError" in capsys.readouterr().err
    board = json.loads((out / "leaderboard.json").read_text())
    row = next(score for score in board["scores"] if score["defense"] == "owned")
    assert row["incomplete"] == []  # but nothing that a row's numbers stand on
    assert row["suppression"] is not None


@pytest.mark.usefixtures("plugins")
def test_a_merging_attack_without_other_tasks_is_skipped_in_the_plan() -> None:
    found = plan(tiny_suite(**{**CHANGES, "tasks": ["toy_topic"]}))
    assert "rescaled" not in {cell.attack.name for cell in found.cells}
    assert "the suite has no other ranked task to merge with" in {skip.reason for skip in found.skips}


def test_a_benign_task_that_is_measured_too_is_one_cell() -> None:
    found = plan(tiny_suite(benign=["toy_tone"], utility=["toy_tone"]))
    assert len({cell.key for cell in found.cells}) == len(found.cells)


def test_a_task_without_its_file_is_refused_when_planning() -> None:
    with pytest.raises(NftbenchError, match="give its folder with --data"):
        plan(tiny_suite(tasks=["house_price"]))


@pytest.mark.usefixtures("plugins")
def test_a_changed_yardstick_changes_its_own_keys_alone(plugin: WriteFile) -> None:
    def keys() -> dict[str, str]:
        suite = tiny_suite(defenses=["owned"], yardsticks=["distance"])
        return {f"{cell.defense} {cell.task}": cell.key for cell in plan(suite).cells}

    before = keys()
    plugin("distance", YARDSTICK.replace("max(moved)", "min(moved)"))
    after = keys()
    assert {name for name in before if before[name] != after[name]} == {"owned distance"}


@pytest.mark.usefixtures("plugins")
def test_checks_of_the_contract_find_broken_promises(plugin: WriteFile, cache: Path) -> None:
    check_defense("owned", architectures=["gpt2"])
    check_attack("rescaled", architectures=["gpt2"])
    check_yardstick("distance", "owned", architectures=["gpt2"])
    with pytest.raises(BrokenPromiseError, match="there is no update"):
        check_yardstick("distance", "none")
    plugin("forgetful", DEFENSE.replace("full_like(weight, 0.5)", "full_like(weight, 0.4)"))
    with pytest.raises(BrokenPromiseError, match="base plus the update"):
        check_defense("forgetful", architectures=["gpt2"])
    plugin("infinite", YARDSTICK.replace("max(moved)", "float('inf')"))
    with pytest.raises(BrokenPromiseError, match="largest is finite"):
        check_yardstick("infinite", "owned", architectures=["gpt2"])
