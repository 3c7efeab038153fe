"""The smallest true effect that is found with 80 % power, and what the oracle says about it.

A defense that truly takes δ points more than an undefended model, and keeps all utility, is a fake with δ planted
points: the lower end of its excess is that of the fake, plus δ. So the smallest δ that is found in four of five cases
is minus the lower end that one in five fakes falls below. Nothing about the distribution of scores is assumed.

The oracle's strengths check the prediction on real attacks: a strength is found in as many choices of its seeds as
fakes with its excess are. All of this is for one row; several claims are corrected for their number, and need more.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from nftbench.calibration.null import SIZES
from nftbench.calibration.proof import Finding, Run
from nftbench.calibration.resampled import Fake, Pool
from nftbench.errors import NftbenchError
from nftbench.scoring.intervals import RANKED_SEEDS, Interval
from nftbench.scoring.table import UNKNOWN, Table, number

POWER = 0.8
LIMIT = 4.0
"""Points: the largest that the smallest effect found with five seeds may be."""
SAMPLE = 2000
"""Fakes that are drawn for each number of seeds."""
EFFECTS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
"""The planted points whose power is shown."""


@dataclass(frozen=True)
class Detection:
    """How often a strength of the oracle is found with so many of its seeds."""

    row: str
    seeds: int
    excess: float
    predicted: float
    """The share of fakes with as much planted that are found."""
    subsets: int
    found: int
    """Choices of so many seeds in which the lower end of the excess lies above zero."""


def judge(runs: Sequence[Run], *, sample: int = SAMPLE) -> Finding:
    """The power that follows from the runs of the proofs `null` and `oracle`.

    Args:
        sample: fakes that are drawn for each number of seeds.

    Raises:
        NftbenchError: one of the two runs is not there.
    """
    blank, graded = (_of(runs, proof) for proof in ("null", "oracle"))
    name = f"{blank.suite.name.removesuffix('-null')}-power"
    if blank.missing or graded.missing:
        return Finding(name, failures=(blank.missing or graded.missing,))
    pool = Pool.of(blank)
    fakes = {size: drawn(pool, size, sample) for size in SIZES}
    lows = {size: lower_ends(found) for size, found in fakes.items()}
    least = {size: smallest(found) for size, found in lows.items()}
    spread = {size: without_each_seed(pool, found) for size, found in fakes.items()}
    seen = [one for size in SIZES for one in detections(graded, size, lows[size])]
    numbers = {
        "power": POWER,
        "smallest": least,
        "without_each_seed": spread,
        "power_of": {size: {effect: power(lows[size], effect) for effect in EFFECTS} for size in SIZES},
        "detections": [asdict(one) for one in seen],
    }
    too_large = (
        f"with {RANKED_SEEDS} seeds the smallest effect found with {100 * POWER:g} % power is "
        f"{least[RANKED_SEEDS]:.1f} points, at most {LIMIT:g} may be"
    )
    failures = (too_large,) if least[RANKED_SEEDS] > LIMIT else ()
    return Finding(name, (_smallest(least, spread, lows), _detections(seen)), numbers, failures)


def _of(runs: Sequence[Run], proof: str) -> Run:
    found = [run for run in runs if run.suite.name.endswith(f"-{proof}")]
    if len(found) != 1:
        raise NftbenchError(f"--proof power reads one run of the proof {proof}; name its folder with --from")
    return found[0]


def drawn(pool: Pool, size: int, sample: int) -> list[Fake]:
    """Fakes of so many seeds, with nothing planted."""
    draw = random.Random(size)
    return [pool.judge(choice) for _ in range(sample) for choice in pool.draw(size, draw)]


def lower_ends(fakes: Sequence[Fake]) -> list[float]:
    """The lower ends of their excesses, in points, the lowest first."""
    return sorted(one.excess.low for one in fakes)


def smallest(lows: Sequence[float]) -> float:
    """The least planted effect, in points, that is found with 80 % power."""
    return -lows[len(lows) - math.ceil(POWER * len(lows))]


def power(lows: Sequence[float], planted: float) -> float:
    """The share of fakes in which a planted effect is found."""
    return statistics.fmean(low + planted > 0 for low in lows)


def without_each_seed(pool: Pool, fakes: Sequence[Fake]) -> tuple[float, float] | None:
    """The least and the largest of the smallest effects that are had without one of the base seeds."""
    rest = [lower_ends([one for one in fakes if seed not in one.choice]) for seed in pool.seeds]
    found = [smallest(lows) for lows in rest if lows]
    return (min(found), max(found)) if found else None


def detections(run: Run, size: int, lows: Sequence[float]) -> list[Detection]:
    """In how many choices of seeds each strength is found, beside the prediction for its excess over all seeds."""
    whole = excesses(run)
    subsets = [excesses(run.at(seeds)) for seeds in itertools.combinations(run.suite.seeds, size)]
    return [
        Detection(
            row,
            size,
            excess.value,
            power(lows, excess.value),
            len(subsets),
            sum(row in found and found[row].low > 0 for found in subsets),
        )
        for row, excess in whole.items()
        if subsets
    ]


def excesses(run: Run) -> dict[str, Interval]:
    """By defense, in the order of the suite: its excess."""
    found = {one.defense: one.excess.interval for one in run.board().scores if one.kind == "defense"}
    return {row: excess for row in run.suite.defenses if (excess := found.get(row)) is not None}


# ----------------------------------------------------------------------------------------------------------- showing


def _smallest(
    least: Mapping[int, float],
    spread: Mapping[int, tuple[float, float] | None],
    lows: Mapping[int, Sequence[float]],
) -> Table:
    return Table(
        f"The smallest effect, in points, that is found with {100 * POWER:g} % power, and the power for others",
        ("seeds", "smallest effect", "without one base seed", *(f"{effect:g} points" for effect in EFFECTS)),
        tuple(
            (f"{size}", number(least[size]), _range(spread[size]),
             *(f"{100 * power(lows[size], effect):.0f} %" for effect in EFFECTS))
            for size in least
        ),
    )  # fmt: skip


def _range(found: tuple[float, float] | None) -> str:
    return f"{found[0]:.1f} to {found[1]:.1f}" if found else UNKNOWN


def _detections(seen: Sequence[Detection]) -> Table:
    return Table(
        "The oracle's strengths: the power predicted for their excess, and in how many choices of seeds they are found",
        ("row", "seeds", "excess", "predicted %", "found"),
        tuple(
            (one.row, f"{one.seeds}", number(one.excess), f"{100 * one.predicted:.0f}",
             f"{one.found} of {one.subsets}")
            for one in seen
        ),
    )  # fmt: skip
