"""The yardstick `rir`: its numbers against numpy on both families of models, and the defenses it applies to."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nftbench import suites
from nftbench.contract import Model
from nftbench.models.architectures.linear import LinearConfig, LinearModel
from nftbench.models.networks import seeded
from nftbench.planning import registry
from nftbench.planning.plan import plan
from nftbench.records.spec import Spec
from nftbench.records.store import Store
from nftbench.running.owner import Owner
from nftbench.running.workspace import Workspace, load_task
from nftbench.testing import temporary_workspace, tiny_suite

IMMUNIZED = "condition_number[harmful=toy_topic,lambda_ill=1,lambda_well=1,balanced=true,epochs=1]"
Array = np.ndarray[Any, np.dtype[np.float64]]


def _linear(theta: Array | None = None) -> Model:
    network = LinearModel(LinearConfig(input_dim=10))
    if theta is not None:
        network.extractor.weight.data = torch.from_numpy(theta.T.copy())
    return Model(network)


def _inspection(release: Model, base: Model, told: tuple[str, ...], pretrained_on: str | None) -> Any:
    def task(spec: str) -> Any:
        suite = tiny_suite(budget={"max_train_documents": None})
        context: Any = SimpleNamespace(model=release, seed=0, suite=suite, data=None, limit=None)
        return registry.create("tasks", spec).load(context)

    recipe = SimpleNamespace(task=pretrained_on)
    return SimpleNamespace(release=release, base=base, told=told, task=task, pretraining=recipe, seed=0)


def _ridge(features: Array) -> float:
    values = np.linalg.eigvalsh(features.T @ features + 1e-6 * np.eye(features.shape[1]))
    return float(values[-1] / values[values > 1e-6][0])


def _nonzero(features: Array) -> float:
    values = np.linalg.svd(features, compute_uv=False) ** 2
    return float(values[0] / values[values > 1e-15 * values[0]][-1])


def _norm_ratio(features: Array, targets: Array, steps: int) -> list[float]:
    best = np.linalg.lstsq(features, targets, rcond=None)[0]
    probe, ratios = np.zeros_like(best), [1.0]
    for _ in range(steps):
        gradient = features.T @ (features @ probe - targets)
        probe -= (gradient**2).sum() / ((features @ gradient) ** 2).sum() * gradient
        ratios.append(float(((probe - best) ** 2).sum() / (best**2).sum()))
    return ratios


def test_a_linear_release_against_numpy() -> None:
    generator = np.random.default_rng(0)
    theta = generator.standard_normal((10, 10))
    inspection = _inspection(_linear(theta), _linear(), ("diabetes",), "diabetes[target=bmi,part=first]")
    harmful, primary = (
        inspection.task(spec).split("train").rows for spec in (inspection.told[0], "diabetes[target=bmi,part=first]")
    )
    mine, other = (rows.inputs.numpy() for rows in (harmful, primary))
    found = registry.create("yardsticks", "rir[steps=7]").measure(inspection)
    # The release's features at the undefended scale. It matters under a ridge: two columns of the primary task are 0.
    scale = math.sqrt(
        ((mine**2).mean() + (other**2).mean()) / (((mine @ theta) ** 2).mean() + ((other @ theta) ** 2).mean())
    )
    for convention, kappa in (("ridge", _ridge), ("nonzero", _nonzero)):
        ratios = kappa(mine @ theta * scale) / kappa(mine), kappa(other @ theta * scale) / kappa(other)
        read = [found.values[f"{part}_{convention}"] for part in ("harmful", "primary", "rir")]
        assert read == pytest.approx([*ratios, ratios[0] / ratios[1]], rel=1e-4), convention
    assert found.values["features"] == 10
    for state in ("", "_undefended"):
        assert (found.values[f"rank_harmful{state}"], found.values[f"rank_primary{state}"]) == (10, 8)
    targets = harmful.targets.numpy()
    for curve, features in zip(found.series, (mine @ theta, mine), strict=True):
        assert curve.y == pytest.approx(_norm_ratio(features, targets, 7), rel=1e-6)
        assert curve.x == tuple(range(8))
    assert found.values["norm_ratio"] == found.series[0].y[-1]
    assert found.values["norm_ratio_undefended"] == found.series[1].y[-1]


def test_a_named_primary_task_goes_before_what_the_model_was_pretrained_on() -> None:
    theta = np.random.default_rng(1).standard_normal((10, 10))
    values = [
        registry.create("yardsticks", "rir").measure(_inspection(_linear(theta), _linear(), told, learned)).values
        for told, learned in (
            (("diabetes", "diabetes[target=bmi]"), "diabetes[target=s5]"),
            (("diabetes",), "diabetes[target=bmi]"),
        )
    ]
    assert values[0] == values[1]


RATIOS = [f"{part}_{convention}" for part in ("rir", "harmful", "primary") for convention in ("ridge", "nonzero")]


def test_a_release_of_lower_rank_is_marked() -> None:
    """Theta doubles two features and drops a third: every kappa with the ridge is a largest eigenvalue over 1e-6."""
    theta = np.diag([2.0, 2.0, *[1.0] * 7, 0.0])
    told = ("diabetes", "diabetes[target=bmi,part=first]")
    inspection = _inspection(_linear(theta), _linear(), told, None)
    found = registry.create("yardsticks", "rir").measure(inspection).values
    assert [found[f"rank_{task}"] for task in ("harmful", "primary")] == [9, 7]
    assert [found[f"rank_{task}_undefended"] for task in ("harmful", "primary")] == [10, 8]
    mine, other = (inspection.task(spec).split("train").rows.inputs.numpy() for spec in told)
    parts = [_nonzero(rows @ theta) / _nonzero(rows) for rows in (mine, other)]
    assert [found["harmful_nonzero"], found["primary_nonzero"]] == pytest.approx(parts, rel=1e-9)
    again = registry.create("yardsticks", "rir").measure(_inspection(_linear(8 * theta), _linear(), told, None))
    assert {name: again.values[name] for name in RATIOS} == {name: found[name] for name in RATIOS}


def test_an_unchanged_model_has_a_ratio_of_one() -> None:
    found = registry.create("yardsticks", "rir").measure(_inspection(_linear(), _linear(), ("diabetes",), "diabetes"))
    assert {found.values[name] for name in RATIOS} == {1.0}
    assert found.values["norm_ratio"] == found.values["norm_ratio_undefended"] < 1


def test_a_language_model_is_read_in_groups_of_rows(cache: Path) -> None:
    """The harmful task's rows against tokens of text; of an undefended model's own features the ratio is 1."""
    with temporary_workspace(tiny_suite()) as workspace:
        owner = Owner(workspace, 0)
        base = owner.build()
        release = Model(copy.deepcopy(base.network), base.tokenizer)
        with seeded(0), torch.no_grad():
            for weight in release.network.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
        spec = Spec.parse("toy_topic")
        task = load_task(workspace, spec, 0, base)
        inspection: Any = SimpleNamespace(
            release=release,
            base=base,
            told=("toy_topic",),
            task=lambda _: task,
            corpus=owner.corpus,
            pretraining=owner.pretraining,
            seed=3,
        )
        size = min(20, len(task.split("train")))
        yardstick = registry.create("yardsticks", f"rir[groups=3,size={size},steps=5]")
        found, again = yardstick.measure(inspection), yardstick.measure(inspection)
        inspection.release = base
        unchanged = yardstick.measure(inspection)
    assert found == again
    assert 1 not in {found.values[name] for name in RATIOS}
    assert {unchanged.values[name] for name in RATIOS} == {1.0}
    assert found.values["features"] == base.network.config.n_embd
    assert 0 < found.values["rank_harmful"] <= size
    assert [len(curve.y) for curve in found.series] == [6, 6]
    assert all(0 <= value < 1 for name, value in found.values.items() if name.startswith("norm_ratio"))
    assert release.network.dtype == torch.float32, "the inspected network stays as it was"


@pytest.mark.parametrize(
    ("defense", "said"),
    [("none", "no harmful task"), ("pmp", "no harmful task"), ("condition_number[harmful=diabetes]", None)],
)
def test_it_applies_to_defenses_that_are_told_a_harmful_task(defense: str, said: str | None) -> None:
    reason = registry.create("yardsticks", "rir").applies(registry.create("defenses", defense))
    assert reason is None if said is None else said in (reason or "")


def test_a_defense_that_is_told_its_owners_task_has_no_harmful_one() -> None:
    owner: Any = SimpleNamespace(task_aware=True, releases_update=True, told=lambda: ("toy_topic",))
    reason = registry.create("yardsticks", "rir").applies(owner)
    assert "owner" in (reason or "")


def test_a_run_reads_it_off_the_release(tmp_path: Path, cache: Path, run_all: Callable[..., Any]) -> None:
    suite = tiny_suite(defenses=["none", IMMUNIZED], attacks=["none"], yardsticks=["rir[groups=2,size=20,steps=3]"])
    workspace = Workspace(plan(suite), Store(tmp_path / "results", cache))
    read = [record for record in run_all(workspace).values() if record.role == "yardstick"]
    assert [(record.defense, record.status, record.reason) for record in read] == [(IMMUNIZED, "ok", None)]
    ranks = {f"rank_{task}{state}" for task in ("harmful", "primary") for state in ("", "_undefended")}
    assert set(read[0].reading.values) == {*RATIOS, *ranks, "features", "norm_ratio", "norm_ratio_undefended"}


MNIST = ("mnist/train-images-idx3-ubyte.xz", "mnist/train-labels-idx1-ubyte.xz")


def test_the_papers_suites_can_be_planned(tmp_path: Path) -> None:
    for name in ("house_price/D1.csv", "house_price/D2.csv", *MNIST):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()  # planning hashes the files, and reads nothing in them
    for name in ("paper-condition-number", "paper-condition-number-mnist"):
        whole = plan(suites.read(name), data=tmp_path)
        assert whole.claims
        assert {cell.defense.name for cell in whole.cells if cell.task.name == "rir"} == {"condition_number"}
