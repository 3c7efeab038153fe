"""`check_yardstick`: whether a yardstick keeps its promises on a tiny release."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from nftbench.contract import Reading, Release, Yardstick
from nftbench.models import networks, updates
from nftbench.planning import registry
from nftbench.running.protecting import ADAPTER
from nftbench.running.releases import ReleaseInspection, make_release
from nftbench.testing.comparison import identical, keeps_random_state
from nftbench.testing.form import well_formed
from nftbench.testing.promises import promise, returns, source_of, works
from nftbench.testing.tiny import ARCHITECTURES, temporary_workspace, tiny_suite


def check_yardstick(
    yardstick: Yardstick | type[Yardstick] | ModuleType | str | Path,
    defense: str = "none",
    *,
    architectures: Sequence[str] = tuple(ARCHITECTURES),
) -> None:
    """Read the yardstick off a tiny release of each architecture and hold it to its protocol.

    Args:
        yardstick: an object, a class, a module, a spec, or a file or folder as `--plugin` takes it.
        defense: spec of a defense to which it applies.

    Raises:
        BrokenPromiseError: it names the promise.
    """
    with well_formed("yardsticks", yardstick) as plugin:
        with works("applies ends without an error", source_of(plugin)):
            reason = plugin.applies(registry.create("defenses", defense))
        promise(
            reason is None,
            f"it applies to {defense}",
            f"{reason}; call check_yardstick with a defense to which it applies",
            essential=True,
        )
        for architecture in architectures:
            _check_on(plugin, defense, architecture)


def _check_on(plugin: Yardstick, defense: str, architecture: str) -> None:
    with temporary_workspace(tiny_suite(architecture, defenses=[defense])) as workspace:
        job = next(job for job in workspace.plan.jobs() if str(job.defense) == defense)
        folder = make_release(workspace, job.defense, job.seed, job.release)
        model = networks.load(folder, attacker=True)
        before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
        inspection = ReleaseInspection(workspace, job, Release(model, updates.load(folder / ADAPTER)))
        with works("measure ends without an error", source_of(plugin)), keeps_random_state("measure"):
            reading = plugin.measure(inspection)
    returns("measure", reading, Reading, "end it with `return Reading({'name': value})`")
    promise(identical(before, model.network.state_dict()), "measure leaves the release as it is", "change a copy of it")
    for name, value in reading.values.items():
        promise(math.isfinite(value), f"the value {name} is finite", f"it is {value}")
    for series in reading.series:
        lengths = f"{len(series.x)} x and {len(series.y)} y"
        promise(len(series.x) == len(series.y), f"the series {series.name} has a y for each x", lengths)
