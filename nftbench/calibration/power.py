"""The smallest excess suppression that a row's seeds can show, from how much undefended and defended models vary.

A row is told from its control where the paired interval lies above zero: the mean difference over its standard error
exceeds the critical value t(97.5 %). Let σ_d be the spread of the paired differences over base seeds, and n the seeds.
For a true difference δ that quotient follows the noncentral t distribution with n - 1 degrees of freedom and
noncentrality δ√n/σ_d (Johnson and Welch 1940).

Given is the smallest δ that is seen with 80 % power; the power of the whole rule, simulated on normal scores, stands
beside it. All of this is for one control and one row. Several controls, or Holm's correction over several claims, take
more.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from nftbench.calibration import null, oracle
from nftbench.calibration.proof import Finding, Run
from nftbench.errors import NftbenchError
from nftbench.scoring.intervals import CONFIDENCE, PRELIMINARY_SEEDS, RANKED_SEEDS, Interval, difference
from nftbench.scoring.table import Table, number

POWER = 0.8
REPEATS = 1000
"""Number of simulated rows."""
SEEDS = (PRELIMINARY_SEEDS, RANKED_SEEDS)


@dataclass(frozen=True)
class Spread:
    """Standard deviations over base seeds: of two rows' attacked scores and of their paired difference, in points."""

    source: str
    seeds: int
    difference: float
    control: float
    row: float


@dataclass(frozen=True)
class Detection:
    """How often a grade of the oracle is seen with so many seeds."""

    row: str
    seeds: int
    excess: float
    predicted: float
    """Power of the formula at the difference that was found and at the grade's own spread."""
    subsets: int
    seen: int
    """Subsets of so many seeds in which the interval lies above zero."""


def judge(runs: Sequence[Run]) -> Finding:
    """The power that follows from the runs of the proofs `null` and `oracle`.

    Raises:
        NftbenchError: one of the two runs is not there.
    """
    blank, graded = (_of(runs, proof) for proof in ("null", "oracle"))
    name = f"{blank.suite.name.removesuffix('-null')}-power"
    if blank.missing or graded.missing:
        return Finding(name, failures=(blank.missing or graded.missing,))
    suite = graded.suite
    scores = {one.defense: one for one in graded.board().scores}
    grades = [oracle.grade(graded, scores[row]) for row in suite.defenses if scores[row].kind == "defense"]
    spreads = [spread("two undefended models", *(blank.attacked(model) for model in null.MODELS))]
    spreads += [spread(one.row, one.control_by_seed, one.attacked_by_seed) for one in grades]
    still = [one.source for one in spreads if not one.difference]
    spreads = [one for one in spreads if one.source not in still]
    seen = [
        detection(one, size)
        for one in grades
        for size in SEEDS
        if size <= len(one.attacked_by_seed) and one.row not in still
    ]
    least = {one.source: {size: smallest(one, size) for size in SEEDS} for one in spreads}
    real = {one.source: {size: simulated(one, size, least[one.source][size]) for size in SEEDS} for one in spreads}
    numbers = {
        "power": POWER,
        "spreads": [asdict(one) for one in spreads],
        "smallest": least,
        "simulated": real,
        "detections": [asdict(one) for one in seen],
    }
    notes = tuple(f"left out, for its difference from the control does not vary: {source}" for source in still)
    return Finding(name, (_smallest(spreads, least, real), _detections(seen)), numbers, notes=notes, verdict=False)


def _of(runs: Sequence[Run], proof: str) -> Run:
    found = [run for run in runs if run.suite.name.endswith(f"-{proof}")]
    if len(found) != 1:
        raise NftbenchError(f"--proof power reads one run of the proof {proof}; name its folder with --from")
    return found[0]


def spread(source: str, control: Mapping[int, float], row: Mapping[int, float]) -> Spread:
    """The spreads over the seeds that both rows have."""
    seeds = sorted(control.keys() & row.keys())
    if len(seeds) < 2:
        raise NftbenchError(f"--proof power: {source} has {len(seeds)} base seeds, and a spread takes two")
    deviations = [
        statistics.stdev(values)
        for values in (
            [control[seed] - row[seed] for seed in seeds],
            [control[seed] for seed in seeds],
            [row[seed] for seed in seeds],
        )
    ]
    return Spread(source, len(seeds), *deviations)


def smallest(spread: Spread, count: int) -> float:
    """The least true excess, in points, that `count` seeds show with 80 % power."""
    from scipy.special import nctdtrinc

    error = spread.difference / math.sqrt(count)
    return float(nctdtrinc(count - 1.0, 1 - POWER, _critical(count - 1.0))) * error


def power(spread: Spread, count: int, excess: float) -> float:
    """The probability that `count` seeds show a true excess."""
    from scipy.special import nctdtr

    shift = excess * math.sqrt(count) / spread.difference
    return 1 - float(nctdtr(count - 1.0, shift, _critical(count - 1.0)))


def simulated(spread: Spread, count: int, excess: float) -> float:
    """The share of simulated rows, with normal scores of these spreads, whose interval lies above zero."""
    import numpy as np

    first, second = spread.control**2, spread.row**2
    shared = (first + second - spread.difference**2) / 2
    draws = np.random.default_rng(0).multivariate_normal(
        (excess, 0.0), ((first, shared), (shared, second)), (REPEATS, count)
    )
    gaps = [difference(*rows) for rows in draws.swapaxes(1, 2).tolist()]
    return statistics.fmean(gap.low > 0 for gap in gaps)


def _critical(freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def detection(grade: oracle.Grade, count: int) -> Detection:
    """What the formula predicts for a grade, and what every subset of `count` seeds shows."""
    control, row = grade.control_by_seed, grade.attacked_by_seed
    subsets = list(itertools.combinations(sorted(control.keys() & row.keys()), count))
    gaps = [difference([control[seed] for seed in few], [row[seed] for seed in few]) for few in subsets]
    found: Interval = difference(*([one[seed] for seed in sorted(row)] for one in (control, row)))
    predicted = power(spread(grade.row, control, row), count, found.value)
    return Detection(grade.row, count, found.value, predicted, len(subsets), sum(gap.low > 0 for gap in gaps))


# ----------------------------------------------------------------------------------------------------------- showing


BySize = Mapping[str, Mapping[int, float]]


def _smallest(spreads: Sequence[Spread], least: BySize, real: BySize) -> Table:
    return Table(
        f"The smallest excess suppression, in points, that is seen with {100 * POWER:g} % power",
        ("spread of", "seeds measured", "of the difference", "of the control", "of the row",
         *(f"{size} seeds see (simulated)" for size in SEEDS)),
        tuple(
            (one.source, f"{one.seeds}", *(f"{value:.2f}" for value in (one.difference, one.control, one.row)),
             *(f"{least[one.source][size]:.1f} ({100 * real[one.source][size]:.0f} %)" for size in SEEDS))
            for one in spreads
        ),
    )  # fmt: skip


def _detections(seen: Sequence[Detection]) -> Table:
    return Table(
        "The oracle's strengths: what the formula predicts, and in how many choices of seeds they are seen",
        ("row", "seeds", "excess", "predicted %", "seen"),
        tuple(
            (one.row, f"{one.seeds}", number(one.excess), f"{100 * one.predicted:.0f}",
             f"{one.seen} of {one.subsets}")
            for one in seen
        ),
    )  # fmt: skip
