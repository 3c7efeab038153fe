"""Each record names the base weights that its row is to be compared with."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nftbench.models import networks
from nftbench.planning.plan import Plan
from nftbench.records.spec import Spec
from nftbench.running.releases import BASE, load_base_sha256, make_release
from nftbench.running.workspace import Workspace
from nftbench.scoring.pairing import unpaired

MakeWorkspace = Callable[..., Workspace]
RunAll = Callable[..., dict[tuple[str, str, str, int], Any]]


def write_model(tensors: dict[str, torch.Tensor], others: dict[str, bytes], folder: Path) -> None:
    for name, content in others.items():
        (folder / name).write_bytes(content)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def keys(plan: Plan) -> dict[str, str]:
    return {str(cell.defense): cell.release for cell in plan.cells}


def test_every_record_of_a_seed_names_the_references_tensors(workspace: MakeWorkspace, run_all: RunAll) -> None:
    here = workspace(defenses=["random_mask", "noise", "none"], attacks=["none", "scratch", "full"], seeds=[0, 1])
    records = run_all(here)
    for seed in (0, 1):
        folder = here.store.artifact("releases", here.plan.releases["none", seed])
        found = {one.base_sha256 for one in records.values() if one.seed == seed}
        assert found == {networks.tensors_sha256(folder)}
    assert len({one.base_sha256 for one in records.values()}) == 2


def test_the_hash_is_kept_with_the_release(workspace: MakeWorkspace) -> None:
    here = workspace(fresh=True, defenses=["noise"])
    (job,) = [job for job in here.plan.jobs() if str(job.defense) == "noise"]
    make_release(here, job.defense, 0, job.release)
    before = load_base_sha256(here, job.release)
    for kind, key in (("releases", here.plan.releases["none", 0]), ("protections", here.plan.releases["none", 0])):
        here.store.discard(kind, key)
    assert before is not None
    assert load_base_sha256(here, job.release) == before


@pytest.mark.parametrize("defense", ["noise", "random_mask"])
def test_a_row_is_no_pair_of_a_reference_that_was_made_from_another_base(
    defense: str, workspace: MakeWorkspace, run_all: RunAll
) -> None:
    before = run_all(workspace(fresh=True, defenses=["none"], attacks=["none"]))
    here = workspace(fresh=True, defenses=["none", defense], attacks=["none"])
    for base in sorted((here.store.cache / "bases").glob("[!.]*")):
        tensors = {name: tensor + 1e-6 for name, tensor in load_file(base / "model.safetensors").items()}
        others = {path.name: path.read_bytes() for path in base.glob("*.json") if path.name != "complete.json"}
        here.store.discard("bases", base.name)
        here.store.make("bases", base.name, functools.partial(write_model, tensors, others))
    after = run_all(here)
    assert {one.base_sha256 for one in after.values() if one.defense == "none"} == {
        one.base_sha256 for one in before.values()
    }
    assert unpaired(after.values()).keys() == {(defense, 0)}


def test_a_release_from_before_the_hash_was_kept_has_an_unknown_base(workspace: MakeWorkspace) -> None:
    here = workspace(fresh=True)
    (job,) = here.plan.jobs()
    make_release(here, job.defense, 0, job.release)
    folder = here.store.cache / "protections" / job.release
    (folder / BASE).unlink()
    complete = json.loads((folder / "complete.json").read_text())
    (folder / "complete.json").write_text(json.dumps({name: one for name, one in complete.items() if name != BASE}))
    assert load_base_sha256(here, job.release) is None


def test_a_reference_that_cannot_be_made_fails_no_other_row(
    workspace: MakeWorkspace, run_all: RunAll, tmp_path: Path
) -> None:
    here = workspace(defenses=["none"])
    given, broken = tmp_path / "given", tmp_path / "broken"
    shutil.copytree(make_release(here, Spec("none"), 0, here.plan.releases["none", 0]), given)
    shutil.copytree(given, broken)
    planned = workspace(defenses=[f"checkpoint[path={given},reference={broken}]"])
    (broken / "model.safetensors").unlink()  # planning refuses a folder without weights
    records = run_all(planned)
    assert {(one.defense, one.status, one.base_sha256) for one in records.values()} == {
        (f"checkpoint[path={broken}]", "failed", None),
        (f"checkpoint[path={given},reference={broken}]", "ok", None),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"a": torch.zeros(2, 3), "b": torch.ones((), dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    return tmp_path


def test_how_tensors_are_spread_over_files_does_not_count(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensors, other = load_file(folder / "model.safetensors"), tmp_path_factory.mktemp("sharded")
    parts = {name: f"model-{number}.safetensors" for number, name in enumerate(sorted(tensors, reverse=True))}
    for name, part in parts.items():
        save_file({name: tensors[name]}, other / part, metadata={"format": "pt"})
    (other / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert networks.tensors_sha256(other) == networks.tensors_sha256(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"a": torch.zeros(3, 2)},
        {"a": torch.full((2, 3), -0.0)},
        {"a": torch.zeros(2, 3, dtype=torch.float64)},
        {"c": torch.zeros(1)},
    ],
)
def test_each_tensors_name_dtype_shape_and_bytes_count(change: dict[str, torch.Tensor], folder: Path) -> None:
    before, tensors = networks.tensors_sha256(folder), load_file(folder / "model.safetensors")
    save_file({**tensors, **change}, folder / "model.safetensors")
    assert networks.tensors_sha256(folder) != before
