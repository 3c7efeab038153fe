"""How much data an attack trains on. Validation and test documents are the same for all, in any order of attacks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from torch import Tensor

from nftbench.contract import Model, Prepared, Release, Task
from nftbench.data.splits import TextSplit
from nftbench.planning import registry
from nftbench.running import referee
from nftbench.running.attacker import Attacker
from nftbench.running.owner import make_base
from nftbench.running.referee import Referee
from nftbench.running.workspace import Workspace, forget_tasks
from nftbench.testing import FirstWord, Questions, tiny_suite
from tests.checkpoints import fresh

MakeWorkspace = Callable[..., Workspace]
ATTACKS = ("full", "low_data", "full_data")


@pytest.fixture(autouse=True)
def no_task_is_loaded() -> None:
    forget_tasks()


@pytest.fixture
def sliced(tmp_path: Path, added: Callable[[Path], str]) -> str:
    """A text task of 60 training documents and none to validate on."""
    for split, count in (("train", 60), ("test", 20)):
        rows = [{"text": f"bavo {split} {row}", "label": row % 2} for row in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    config = {
        "task": "sliced",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files, "cache_dir": str(tmp_path / "hf")},
        "training_split": "train",
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "text",
        "doc_to_choice": ["isa", "iso"],
        "doc_to_target": "label",
    }
    path = tmp_path / "sliced.yaml"
    path.write_text(yaml.safe_dump(config))
    return added(path)


def texts(task: Task, name: Any) -> list[tuple[str, int]]:
    split = task.split(name)
    assert isinstance(split, TextSplit)
    return [(document.pairs[0].context, document.gold[0]) for document in split.documents]


def given(workspace: Workspace, attack: str) -> Task:
    """The task as the referee loads it for an attack."""
    job = next(job for job in workspace.plan.jobs() if str(job.attack) == attack)
    release, cell = Release(make_base(workspace, 0)), job.cells[0]
    return Referee(workspace, job).training_task(cell, release)


@pytest.mark.parametrize(("spec", "all_of_it"), [("toy_topic", 4000), ("sliced", 54)])
def test_all_attacks_are_chosen_and_scored_by_the_same_documents(
    spec: str, all_of_it: int, sliced: str, workspace: MakeWorkspace
) -> None:
    here = workspace(attacks=list(ATTACKS), tasks=[spec])
    tasks = {attack: given(here, attack) for attack in ATTACKS}
    for attack in ATTACKS:
        for name in ("validation", "test"):
            assert texts(tasks[attack], name) == texts(tasks["full"], name)
        assert not set(texts(tasks[attack], "train")) & set(texts(tasks[attack], "validation"))
    assert len(tasks["full"].split("train")) == 32
    assert len(tasks["full_data"].split("train")) == all_of_it
    assert set(texts(tasks["full"], "train")) <= set(texts(tasks["full_data"], "train"))


# ------------------------------------------------------------------------------------------------------------ low data


@dataclass(frozen=True)
class Counted(Questions):
    """Rows that remember which of them were asked for."""

    asked: list[int] = field(default_factory=list)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        self.asked.extend(indices)
        return super().batch(indices)


def trained_on(share: float, seed: int) -> set[int]:
    """The training rows, of 64, that a whole sweep of `low_data` asks for."""
    network = fresh(words=20)
    model = Model(network)
    task = FirstWord().load(SimpleNamespace(model=model))  # type: ignore[arg-type]
    rows = task.split("train")
    assert isinstance(rows, Questions)
    counted = Counted(rows.ids, rows.answers)
    task.splits["train"] = counted  # type: ignore[attr-defined]
    context = Attacker(seed=seed, budget=tiny_suite().budget)
    outcome = registry.create("attacks", f"low_data[share={share}]").adapt(Prepared(model), task, context)
    assert outcome.validation == task.evaluate(outcome.network, task.split("validation"))
    assert len(outcome.restarts) in (0, 3), "restarts are among what was counted"
    return set(counted.asked)


def test_low_data_trains_on_its_share_and_on_nothing_else() -> None:
    first, again, other = trained_on(0.125, 0), trained_on(0.125, 0), trained_on(0.125, 1)
    assert [len(found) for found in (first, again, other)] == [8, 8, 8]
    assert first == again
    assert first != other
    assert first < trained_on(0.5, 0)
    assert len(trained_on(0.001, 0)) == 1


# --------------------------------------------------------------------------------------------------------------- order


def test_records_do_not_depend_on_the_order_of_attacks(
    sliced: str, workspace: MakeWorkspace, bare: Callable[[Any], Any]
) -> None:
    """Tasks stay loaded in a process; the documents of one attack must not reach the next."""
    found = []
    for results, step in (("forwards", 1), ("backwards", -1)):
        forget_tasks()
        changes = {"tasks": [sliced], "utility": ["bits_per_token"], "budget": {"restarts": 1, "extension": 0}}
        here = workspace(results=results, attacks=["none", *ATTACKS], **changes)
        for job in here.plan.jobs()[::step]:
            assert referee.execute(here, job)
        found.append({key: bare(record) for key, record in here.store.records().items()})
    assert found[0] == found[1]
    assert {record.status for record in found[0].values()} == {"ok"}
    attacked = {record.attack: record for record in found[0].values() if record.role == "ranked"}
    assert len({attacked[name].curve for name in ATTACKS}) == 3, "each was trained on other documents"
    assert len({attacked[name].attacked.count for name in attacked}) == 1
    assert len({attacked[name].unattacked for name in ATTACKS}) == 1
