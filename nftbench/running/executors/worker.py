"""What a worker does with a step, wherever it runs.

Workers are the referee's: they import neither defenses nor attacks, about which the plan knows enough. Those run in
processes of their own, which a worker has forked.
"""

from __future__ import annotations

import functools
import os
import pickle
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nftbench.planning import registry
from nftbench.planning.plan import Job
from nftbench.records.record import Record
from nftbench.records.store import WORKERS, write_atomically
from nftbench.running.executors.protocol import Stage

if TYPE_CHECKING:
    from nftbench.running.workspace import Workspace

PREFIXES = ("NFTBENCH_", "HF_", "OMP_", "TOKENIZERS_")
"""The beginnings of the names of environment variables that change how a worker computes or where it reads."""


def perform(workspace: Workspace, stage: Stage, job: Job) -> list[Record] | None:
    """Make the release that a job attacks, or run the job; returns its records, None where another process holds it.

    Raises:
        FailedError: the release cannot be made, or the records cannot be written.
    """
    from nftbench.running import failures, referee

    try:
        if stage == "protect":
            referee.protect(workspace, job)
            return []
        return referee.execute(workspace, job)
    except (Exception, SystemExit) as error:  # a plugin may raise anything
        raise failures.FailedError(*failures.status_of(error)) from error


@dataclass(frozen=True)
class Parcel:
    """What a worker on another machine has to know. The folders in it must be the same there."""

    workspace: Workspace
    plugins: tuple[str, ...]
    """The plugin files of the command line."""
    folder: str
    """The command's working folder, which paths may be relative to."""
    environment: Mapping[str, str]


def send(workspace: Workspace) -> Path:
    """Write a parcel to the results folder, once for all workers. It holds the salt, and is for its owner only."""
    environment = {name: value for name, value in os.environ.items() if name.startswith(PREFIXES)}
    parcel = Parcel(workspace, registry.added_files(), str(Path.cwd()), environment)
    path = (workspace.store.results / WORKERS / f"{uuid.uuid4()}.pickle").resolve()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, pickle.dumps(parcel), mode=0o600)
    return path


@functools.lru_cache(maxsize=2)
def receive(path: Path) -> Workspace:
    """The workspace of a parcel. This process works in the command's folder from now on, and knows its plugins."""
    parcel: Parcel = pickle.loads(path.read_bytes())
    os.environ.update(parcel.environment)
    os.chdir(parcel.folder)
    for plugin in parcel.plugins:
        registry.add_file(plugin)
    return parcel.workspace
