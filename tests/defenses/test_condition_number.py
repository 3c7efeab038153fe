"""Condition-number immunization in the paper's setting, on scikit-learn's diabetes data: a whole run, and refusals."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nftbench import suites
from nftbench.contract import Model, Prepared
from nftbench.errors import NftbenchError
from nftbench.models.architectures.linear import LinearConfig, LinearModel
from nftbench.models.networks import load
from nftbench.planning import registry
from nftbench.planning.plan import plan
from nftbench.records.store import Store
from nftbench.running.executors import steps
from nftbench.running.executors.local import LocalExecutor
from nftbench.running.owner import Owner
from nftbench.running.workspace import Workspace
from nftbench.testing import tiny_suite

IMMUNIZED = "condition_number[harmful=diabetes,epochs=5]"
SUITE: dict[str, Any] = {
    "name": "tables",
    "model": {"model_type": "linear", "input_dim": 10},
    "corpus": {"source": "none"},
    "pretraining": {
        "task": "diabetes[target=bmi]",
        "only": "head",
        "steps": 50,
        "batch": 64,
        "learning_rate": 1e-2,
        "warmup": 5,
        "weight_decay": 0.0,
    },
    "defenses": ["none", IMMUNIZED],
    "attacks": ["none", "full", "linear_probe", "linear_probe[solver=ridge]", "linear_probe[solver=lbfgs]"],
    "tasks": ["diabetes"],
    "benign": ["diabetes[target=bmi]"],
    "utility": ["diabetes[target=s5]"],
    "budget": {"learning_rates": {"adamw": [1e-2, 3e-2]}, "durations": [5, 20], "batch": 64, "extension": 1},
    "seeds": [0],
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("tables")
    here = Workspace(plan(suites.parse(SUITE)), Store(folder / "results", folder / "cache"))
    for _ in steps.run(here, here.plan.jobs(), LocalExecutor(here, 1)):
        pass
    return here


def test_every_cell_of_a_linear_suite_is_measured(workspace: Workspace) -> None:
    records = list(workspace.store.records().values())
    assert len(records) == len(workspace.plan.cells)
    assert {(one.status, one.reason) for one in records} == {("ok", None)}
    assert {one.row.task_aware for one in records if one.defense.startswith("condition_number")} == {True}
    assert {one.role for one in records} == {"ranked", "benign", "utility"}


def test_the_harmful_condition_number_rises_against_the_primary_one(workspace: Workspace) -> None:
    """RIR by hand: condition numbers of both tasks' features under the released extractor and under the base."""
    owner = Owner(workspace, 0, ("diabetes",))
    releases = {str(cell.defense): cell.release for cell in workspace.plan.cells}

    def conditions(defense: str) -> tuple[float, float]:
        folder = workspace.store.artifact("releases", releases[defense])
        assert folder is not None
        network = load(folder).network.double()
        found = []
        for spec in ("diabetes", "diabetes[target=bmi]"):
            task = owner.task(spec)
            train = task.split("train")
            features = task.features(network, train.batch(range(len(train)))).detach()
            values = torch.linalg.svdvals(features) ** 2
            found.append(float((values[0] + 1e-6) / (values[-1] + 1e-6)))
        return found[0], found[1]

    (harmful, primary), (harmful_before, primary_before) = conditions(IMMUNIZED), conditions("none")
    assert (harmful / harmful_before) / (primary / primary_before) > 1.5


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_solvers_that_do_not_go_by_the_condition_number_reach_the_optimum(precision: str) -> None:
    """On features of condition number 1e8 (theta's is 1e3): the training loss of each solver's best probe."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(10, 10, generator=generator).double())[0] for _ in range(2))
    network = LinearModel(LinearConfig(input_dim=10))
    network.extractor.weight.data = (left * torch.logspace(0, -3, 10).double() @ right).float()
    suite = tiny_suite(budget={"max_train_documents": None})
    context: Any = SimpleNamespace(model=Model(network), seed=0, suite=suite, data=None, limit=None)
    task = registry.create("tasks", "diabetes").load(context)
    rows = task.split("train").rows

    def least(solver: str) -> float:
        attack = registry.create("attacks", f"linear_probe[solver={solver},precision={precision}]")
        attacker: Any = SimpleNamespace(
            budget=SimpleNamespace(durations=(0, 100)),
            select=lambda task, found: min(
                task.loss(copy.deepcopy(network).double(), rows).item() for network, *_ in found
            ),
        )
        loss: float = attack.adapt(Prepared(Model(network)), task, attacker)
        return loss

    best = torch.linalg.lstsq(rows.inputs, rows.targets).solution
    optimum = float((rows.inputs @ best - rows.targets).square().mean() / 2)
    for solver in ("ridge", "whitened", "lbfgs"):
        assert least(solver) == pytest.approx(optimum, rel=1e-2)
    assert least("gradient_descent") > 1.1 * optimum


def test_without_a_harmful_task_it_is_refused_while_planning() -> None:
    with pytest.raises(NftbenchError, match="harmful"):
        plan(suites.parse({**SUITE, "defenses": ["none", "condition_number"]}))


@pytest.mark.parametrize(
    "model", [{"model_type": "linear", "input_dim": 20_000}, {"model_type": "gpt2", "n_embd": 20_000}]
)
def test_more_features_than_can_be_inverted_are_refused_before_anything_runs(model: dict[str, Any]) -> None:
    with pytest.raises(NftbenchError, match=r"covariance of 20,000 features takes 8\.94 GiB"):
        plan(suites.parse({**SUITE, "model": model}))


def test_a_language_model_is_immunized_against_a_toy_task(
    workspace: Workspace, tmp_path: Path, cache: Path, run_all: Callable[..., Any]
) -> None:
    spec = "condition_number[harmful=toy_topic,balanced=true,lambda_ill=1,lambda_well=1,epochs=1]"
    suite = tiny_suite(defenses=["none", spec], attacks=["none", "full", "linear_probe[solver=ridge]"])
    found = run_all(Workspace(plan(suite), Store(tmp_path / "results", cache)))
    assert {record.status for record in found.values()} == {"ok"}


def test_gradient_descent_on_the_triangle_of_the_features_is_that_on_the_features() -> None:
    """The probe descends ||R w - Q'Y||^2; here is ||F w - Y||^2 itself, row by row of F."""
    features = torch.randn(200, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = features * torch.logspace(0, -3, 12, dtype=torch.float64)
    targets = torch.randn(200, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plugin = sys.modules[type(registry.create("attacks", "linear_probe")).__module__]
    found = {step: probe for probe, _, step in plugin._descend(features, targets, (0, 5, 30))}
    probe = torch.zeros(12, 5, dtype=torch.float64)
    for step in range(31):
        if step in found:
            torch.testing.assert_close(found[step], probe, rtol=1e-10, atol=1e-14)
        gradient = features.mT @ (features @ probe - targets)
        probe = probe - gradient * gradient.square().sum() / (features @ gradient).square().sum()
    assert found.keys() == {0, 5, 30}
