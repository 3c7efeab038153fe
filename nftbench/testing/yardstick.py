"""`check_yardstick`: whether a yardstick keeps its promises on a tiny release."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nftbench.contract import Reading, Release, Yardstick
from nftbench.models import networks, updates
from nftbench.planning import registry
from nftbench.running.protecting import ADAPTER
from nftbench.running.releases import ReleaseInspection, make_release
from nftbench.testing.comparison import identical, keeps_random_state
from nftbench.testing.form import well_formed
from nftbench.testing.promises import promise
from nftbench.testing.tiny import ARCHITECTURES, temporary_workspace, tiny_suite


@registry.importing_added()
def check_yardstick(
    yardstick: Yardstick | str, defense: str = "none", *, architectures: Sequence[str] = tuple(ARCHITECTURES)
) -> None:
    """Read the yardstick off a tiny release of each architecture and hold it to its protocol.

    Args:
        defense: spec of a defense to which it applies.

    Raises:
        BrokenPromiseError: it names the promise.
    """
    plugin: Yardstick = well_formed("yardsticks", yardstick)
    reason = plugin.applies(registry.create("defenses", defense))
    promise(reason is None, f"it applies to {defense}: {reason}")
    for architecture in architectures:
        with temporary_workspace(tiny_suite(architecture, defenses=[defense])) as workspace:
            job = next(job for job in workspace.plan.jobs() if str(job.defense) == defense)
            folder = make_release(workspace, job.defense, job.seed, job.release)
            model = networks.load(folder, attacker=True)
            before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
            inspection = ReleaseInspection(workspace, job, Release(model, updates.load(folder / ADAPTER)))
            with keeps_random_state("measure"):
                reading = plugin.measure(inspection)
            promise(isinstance(reading, Reading), f"measure returns Reading, not {type(reading).__name__}")
            promise(identical(before, model.network.state_dict()), "measure leaves the release as it is")
            for name, value in reading.values.items():
                promise(math.isfinite(value), f"the value {name} is finite")
            for series in reading.series:
                promise(len(series.x) == len(series.y), f"the series {series.name} has a y for each x")
