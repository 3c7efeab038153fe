"""Tiny models, offline: one cache for the session, so that bases and toy documents are made once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # as a cell runs; at these sizes a second thread only waits

import hypothesis
import pytest

hypothesis.settings.register_profile("any machine", deadline=None)  # no test fails for its time
hypothesis.settings.load_profile("any machine")

PLUGIN = "from dataclasses import dataclass\nfrom typing import ClassVar\n\nimport torch\n\nfrom nftbench import *\n"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache of the whole session."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NFTBENCH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium, for the tests that `tests.chromium.NEEDED` marks."""
    from tests import chromium

    yield from chromium.start(tmp_path_factory.mktemp("chromium"))


@pytest.fixture
def workspace(cache: Path, tmp_path: Path) -> Callable[..., Any]:
    """`workspace(**changes)`: a workspace of the tiny suite with results of its own.

    `changes` are fields of the suite; `fresh=True` gives it a cache of its own, `limit=…` is --limit.
    """
    from nftbench.planning.plan import plan
    from nftbench.records.store import Store
    from nftbench.running.workspace import Workspace
    from nftbench.testing import tiny_suite

    def make(
        fresh: bool = False,
        limit: int | None = None,
        results: str = "results",
        trust_code: bool = False,
        **changes: Any,
    ) -> Workspace:
        store = Store(tmp_path / results, tmp_path / "cache" if fresh else cache)
        return Workspace(plan(tiny_suite(**changes), limit=limit), store, trust_code=trust_code)

    return make


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Callable[[str, str], Path]]:
    """`plugin(name, source)`: a plugin file, known as with --plugin until the test ends."""
    from nftbench.planning import registry

    def write(name: str, source: str) -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(PLUGIN + source)
        registry.add_file(path)
        return path

    with registry.added(), registry.importing_added():
        yield write


@pytest.fixture
def added(plugin: Callable[[str, str], Path]) -> Callable[[Path], str]:
    """`added(path)`: the name of the plugin in this file, which is known as with --plugin until the test ends."""
    from nftbench.planning import registry

    def add(path: Path) -> str:
        (found,) = registry.add_file(path)
        return found.name

    return add


@pytest.fixture(scope="module")
def known() -> Iterator[Callable[[Path], None]]:
    """`known(folder)`: its plugins are known as with --plugin, until the module ends."""
    from nftbench.planning import registry

    def add(folder: Path) -> None:
        for path in sorted(folder.glob("*.py")):
            registry.add_file(path)

    with registry.added(), registry.importing_added():
        yield add


@pytest.fixture
def run_all() -> Callable[..., dict[tuple[str, str, str, int], Any]]:
    """`run_all(place, workers)`: every record of the plan, by defense, attack, task and seed."""
    from nftbench.running.executors import steps
    from nftbench.running.executors.local import LocalExecutor

    def run(workspace: Any, workers: int = 1) -> dict[tuple[str, str, str, int], Any]:
        for _ in steps.run(workspace, workspace.plan.jobs(), LocalExecutor(workspace, workers)):
            pass
        return {(one.defense, one.attack, one.task, one.seed): one for one in workspace.store.records().values()}

    return run


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`attacked(defense, attack)`: the record on toy_topic, in a suite like `small` with a quarter of its steps."""
    from nftbench.planning.plan import plan
    from nftbench.planning.specs import canonical
    from nftbench.records.store import Store
    from nftbench.running import referee
    from nftbench.running.workspace import Workspace
    from nftbench.suites.reading import parse

    store = Store(tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("sham-cache"))
    small = {
        "name": "shams",
        "salt": "public",
        "model": {"model_type": "gpt2", "n_layer": 2, "n_embd": 48, "n_head": 2, "n_positions": 32}
        | {"activation_function": "gelu_pytorch_tanh", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "corpus": {"grammar": 100, "sentences": 51200, "block": 32, "heldout_blocks": 256},
        "pretraining": {"steps": 600, "batch": 32, "learning_rate": 5e-3, "weight_decay": 0.01, "warmup": 24}
        | {"schedule": "wsd", "final": 0.0},
        "tasks": ["toy_topic"],
        "utility": ["bits_per_token"],
        "budget": {
            "learning_rates": {"adamw": [1.5e-3, 5e-3], "sgd": [1e-2, 5e-2]},
            "durations": [100],
            "batch": 32,
            "warmup": 10,
            "weight_decay": 0.01,
        }
        | {"extension": 0, "restarts": 1, "max_train_documents": 1024, "max_validation_documents": 500}
        | {"max_test_documents": 1000, "max_utility_documents": 64},
        "seeds": [0],
    }
    found: dict[tuple[str, str], Any] = {}

    def cell(defense: str, attack: str, task: str = "toy_topic") -> Any:
        rows = {"defenses": sorted({"none", defense}), "attacks": sorted({"none", attack})}
        suite = parse({**small, **rows}, "shams")
        here = Workspace(plan(suite), store, trust_code=True)  # its own code alone can open a release of some shams
        wanted = canonical("defenses", defense), canonical("attacks", attack)
        for job in here.plan.jobs():
            if (job.defense, job.attack) == wanted:
                referee.execute(here, job)
        keys = {one.key for one in here.plan.cells if (one.defense, one.attack, str(one.task)) == (*wanted, task)}
        (record,) = (record for record in store.records().values() if record.key in keys)
        return record

    def once(defense: str, attack: str, task: str = "toy_topic") -> Any:
        key = defense, attack, task
        if key not in found:
            found[key] = cell(defense, attack, task)
        return found[key]

    return once


@pytest.fixture
def bare() -> Callable[[Any], Any]:
    """`bare(record)`: the record without what may differ between two runs: provenance and seconds."""

    def strip(record: Any) -> Any:
        cost, protection = record.cost, record.protection
        if cost is not None:
            cost = replace(cost, seconds=0.0, step_seconds=0.0, preparation_seconds=0.0)
        if protection is not None:
            protection = replace(protection, seconds=0.0, ledger=None)
        return replace(record, provenance={}, cost=cost, protection=protection)

    return strip
