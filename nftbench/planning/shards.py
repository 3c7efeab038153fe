"""Shards: a run is split up, and each of several machines or batch jobs runs one share of it.

All jobs on one release are in one share, because a release is made once. A base seed is split up only where there are
more shares than seeds, because all rows of a seed start from one base model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from nftbench.errors import NftbenchError
from nftbench.planning.plan import Plan


@dataclass(frozen=True)
class Shard:
    """One of `count` shares of a run."""

    index: int
    """From 1 to `count`."""
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise NftbenchError(f"shard {self}: the first number is from 1 to the second one")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard in `3/16`.

        Raises:
            NftbenchError: the text is something else.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None:
            raise NftbenchError(f"--shard {text}: write the number of the share and how many there are, as in 3/16")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def of_array(cls, environment: Mapping[str, str]) -> Shard | None:
        """The share of a task of a SLURM job array; None outside an array. Arrays may begin at any number.

        Raises:
            NftbenchError: the numbers of the array's tasks are not evenly spaced.
        """
        names = ("ID", "COUNT", "MIN", "STEP")
        values = [environment.get(f"SLURM_ARRAY_TASK_{name}") for name in names]
        if values[0] is None or values[1] is None:
            return None
        task, count, first, step = (int(value or default) for value, default in zip(values, (0, 0, 0, 1), strict=True))
        place, rest = divmod(task - first, step)
        if rest or place >= count:
            raise NftbenchError(f"task {task} of a SLURM array with gaps: say which share it runs, as in --shard 3/16")
        return cls(place + 1, count)


def share(whole: Plan, shard: Shard) -> Plan:
    """The part of a plan that a shard runs. It depends on nothing but the plan, and may be empty.

    With at most as many shards as base seeds, each takes whole seeds. With more, each takes some of one seed's
    releases, so that the shards of a seed have about the same number of cells.
    """
    seeds = list(dict.fromkeys(cell.seed for cell in whole.cells))
    place = shard.index - 1
    if shard.count <= len(seeds):
        mine = {seed for number, seed in enumerate(seeds) if number * shard.count // len(seeds) == place}
        return replace(whole, cells=tuple(cell for cell in whole.cells if cell.seed in mine))
    bounds = [number * shard.count // len(seeds) for number in range(len(seeds) + 1)]
    number = next(number for number in range(len(seeds)) if bounds[number] <= place < bounds[number + 1])
    cells = [cell for cell in whole.cells if cell.seed == seeds[number]]
    loads = [0] * (bounds[number + 1] - bounds[number])
    taken = set[str]()
    for release, size in Counter(cell.release for cell in cells).most_common():  # largest first, each to the idlest
        idlest = loads.index(min(loads))
        loads[idlest] += size
        if idlest == place - bounds[number]:
            taken.add(release)
    return replace(whole, cells=tuple(cell for cell in cells if cell.release in taken))
