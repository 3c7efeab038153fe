"""An attack on what its own process would be given, carried out in this process so that a test can look at it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import nn

from nftbench.contract import Release
from nftbench.models import updates
from nftbench.planning.plan import Job
from nftbench.running import attacking
from nftbench.running.protecting import ADAPTER
from nftbench.running.referee import Referee
from nftbench.running.releases import make_release, open_release
from nftbench.running.workspace import Workspace


def attack_here(workspace: Workspace, job: Job, folder: Path) -> list[nn.Module]:
    """Run a job's attack as its process does, and return the attacked network of each cell; all lies in `folder`.

    Raises:
        FailedError: the attack failed.
    """
    referee, made = Referee(workspace, job), make_release(workspace, job.defense, job.seed, job.release)
    release = Release(referee.with_readable_text(open_release(workspace, made)), updates.load(made / ADAPTER))
    goals = tuple(referee.goal(cell, release) for cell in job.cells)
    order = dataclasses.replace(referee.order(release), goals=goals)
    folder.mkdir(parents=True)
    attacking.perform(attacking.packed(order, folder), folder)
    attacked = attacking.Returned(folder, release.model.network, workspace.device, None)
    attacked.preparation()
    return [attacked.cell(index)[1] for index in range(len(goals))]
