"""The records of an undisturbed run, with which those of all other runs are compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from nftbench.planning.plan import plan
from nftbench.records.store import Store
from nftbench.running.executors import steps
from nftbench.running.executors.local import LocalExecutor
from nftbench.running.workspace import Workspace
from nftbench.testing import tiny_suite
from tests.running.driven import CHANGES, Cells, found_in


@pytest.fixture(scope="session")
def undisturbed(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Cells:
    """The records of one worker in this process, from a cache of its own."""
    folder = tmp_path_factory.mktemp("undisturbed")
    workspace = Workspace(plan(tiny_suite(**CHANGES)), Store(folder / "results", folder / "cache"))
    for _ in steps.run(workspace, workspace.plan.jobs(), LocalExecutor(workspace, 1)):
        pass
    found = found_in(workspace.store.results)
    assert {one.status for one in found.values()} == {"ok"}
    assert len(found) == len(workspace.plan.cells)
    return found
