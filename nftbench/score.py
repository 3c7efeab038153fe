"""Records become scores: utility kept, gain taken from the attacker, with intervals, ranks and verdicts.

Formulas and rules are DESIGN's ("Scores", "Statistics"). A task's score is written in points, 100 times its metric, and
counted negative where lower is better, so that more is always better for the attacker. The base seed is the unit: tasks
are averaged within a seed. What is not known is None, and never counts for the defense.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from nftbench.flags import PRELIMINARY_SEEDS, RANKED_SEEDS, Flag, find
from nftbench.types import KNOWLEDGE, Adaptation, Cost, Measurement, Record, Row

NONE = "none"
"""The attack that does nothing: base utility and every gain are measured from it."""
CONFIDENCE = 0.95
SHARES = (0.5, 0.9)
UNITS = ("steps", "flops", "seconds", "memory")

Level = frozenset[str]
WAYS: Mapping[Adaptation, frozenset[Adaptation]] = {
    "finetuning": frozenset({"finetuning", "linear_probe"}),
    "linear_probe": frozenset({"linear_probe"}),
    "merging": frozenset({"merging"}),
}
"""Kinds of attack that count against a claim: who may fine-tune may also fit a probe."""
Kind = Literal["defense", "trivial", "reference"]
Standing = Literal["ranked", "preliminary", "control", "unranked"]
Verdict = Literal["holds", "refuted", "untested"]
PlannedCell = tuple[str, str, str, int]
"""Defense, attack, task (each printed as a spec) and seed of a cell that should have a record."""


# ---------------------------------------------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Interval:
    """A mean over `count` base seeds with its 95 % interval; `p` is one-sided, against a true value of zero or less."""

    value: float
    low: float = -math.inf
    high: float = math.inf
    count: int = 1
    p: float = 1.0


@dataclass(frozen=True)
class Multiple:
    """A cost as a multiple of what the undefended model takes; `censored` where the budget ended too early."""

    value: float
    censored: bool = False

    def __str__(self) -> str:
        return f"{'> ' if self.censored else ''}{self.value:.3g}×"


@dataclass(frozen=True)
class TaskScore:
    """One task of one row. `attack` is the one picked most often over the seeds."""

    task: str
    unattacked: float | None
    attacked: Interval | None
    undefended: float | None
    suppression: Interval | None
    attack: str | None


@dataclass(frozen=True)
class Headroom:
    """What fine-tuning the undefended model is worth on a task, beside training from scratch with the same budget."""

    reference: str
    task: str
    unattacked: float | None
    undefended: float | None
    scratch: float | None
    kept: bool
    """False where the undefended model ends no better than scratch: the task is left out for every row."""


@dataclass(frozen=True)
class Score:
    """One row's numbers with intervals, in points; None where records are missing, failed or do not apply."""

    defense: str
    kind: Kind
    row: Row
    incomplete: tuple[str, ...] = ()
    """Cells that are missing or not ok, of this row and of the rows that it is measured against."""
    utilities: Mapping[str, Interval] = field(default_factory=dict)
    retention: Interval | None = None
    clears_bar: bool = False
    unattacked: Interval | None = None
    attacked: Interval | None = None
    gain: Interval | None = None
    suppression: Interval | None = None
    suppression_by_seed: Mapping[int, float] = field(default_factory=dict)
    excess: Interval | None = None
    excess_by_seed: Mapping[int, float] = field(default_factory=dict)
    excess_over: str | None = None
    """The row that leaves the least excess: the strongest trivial defense, or the reference."""
    beyond_control: Interval | None = None
    """Suppression beyond the matched control that the defense itself names."""
    levels: Mapping[str, Interval | None] = field(default_factory=dict)
    """Suppression against attackers of each knowledge level."""
    tasks: tuple[TaskScore, ...] = ()
    worst_task: TaskScore | None = None
    recipe: str | None = None
    """The single attack that is best over all tasks."""
    recipe_suppression: Interval | None = None
    optimizers: Mapping[str, tuple[Interval, Interval]] = field(default_factory=dict)
    """For each attack that also runs with other optimizers: suppression under the default alone, and under all."""
    protected_fraction: float | None = None
    authorized_gain: Interval | None = None
    cost_to_break: Mapping[str, Mapping[float, Multiple]] = field(default_factory=dict)
    """By unit (steps, flops, seconds, memory), then by share of the undefended gain."""
    recovery: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By attack, then by metric: how well it guesses the secret; means over its records."""
    seed_spread: float | None = None
    """Standard deviation over base seeds of the suppression."""
    attack_spread: float | None = None
    """Mean standard deviation over the restarts of the picked recipes, on validation."""
    claim_excess: Interval | None = None
    """Excess suppression at the knowledge that the defense's claim names."""
    claim_tested: bool = False
    claim_p: float | None = None
    """Holm-adjusted over the rows that are judged."""
    verdict: Verdict | None = None
    flags: tuple[Flag, ...] = ()
    standing: Standing = "unranked"
    rank: int | None = None
    reasons: tuple[str, ...] = ()
    """Why the row is not ranked."""


@dataclass(frozen=True)
class Leaderboard:
    """Every row of a suite: ranked ones first, then preliminary ones, controls, and what is not ranked."""

    suite: str
    scores: tuple[Score, ...]
    headroom: tuple[Headroom, ...]
    ranking: str
    utility_bar: float
    problems: tuple[str, ...]
    records: int
    planned: int


# ------------------------------------------------------------------------------------------------------- statistics


def mean(values: Sequence[float]) -> Interval:
    """Student's t interval of a mean: m ± t(n-1) · s / √n (Student 1908)."""
    count = len(values)
    if count < 2:
        return Interval(values[0])
    return _student(statistics.fmean(values), math.sqrt(statistics.variance(values) / count), count - 1, count)


def difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Mean of `first - second`, paired by seed: the wider of the paired t interval and Welch's (Welch 1947).

    Welch: se² = a + b with a = s₁²/n, b = s₂²/n and df = (a + b)² (n - 1) / (a² + b²). It guards
    against few seeds that happen to move together.
    """
    count = len(first)
    # rounded, or else seeds that all agree could differ by one same float error and prove anything
    gaps = [round(one - other, 9) for one, other in zip(first, second, strict=True)]
    paired = mean(gaps)
    if count < 2 or not any(gaps):
        return paired
    a, b = statistics.variance(first) / count, statistics.variance(second) / count
    if a + b == 0:
        return paired
    welch = _student(paired.value, math.sqrt(a + b), (a + b) ** 2 * (count - 1) / (a**2 + b**2), count)
    return replace(paired, low=min(paired.low, welch.low), high=max(paired.high, welch.high), p=max(paired.p, welch.p))


def weakest(differences: Sequence[Interval]) -> Interval:
    """The smallest of several differences: an intersection-union test (Berger 1982).

    "Better than the best control" has to be better than each: the lower bound is the lowest and p the largest, which
    keeps the error rate although the best control is chosen on the same data.
    """
    least = min(differences, key=lambda one: one.value)
    return replace(
        least,
        low=min(one.low for one in differences),
        p=max(one.p for one in differences),
        count=min(one.count for one in differences),
    )


def excess(attacked: Sequence[float], controls: Sequence[Sequence[float]]) -> Interval:
    """E = min over controls c of mean_s (A_c,s - A_d,s), the reference (S = 0) among them: S_d - max_c S_c."""
    return weakest([difference(control, attacked) for control in controls])


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979): the k-th smallest of m is max over j ≤ k of (m - j + 1) · p_j."""
    adjusted, running = [1.0] * len(p_values), 0.0
    for smaller, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - smaller) * p_values[index]))
        adjusted[index] = running
    return adjusted


def beats_zero(adjusted_p: float) -> bool:
    """Whether the lower end of the adjusted 95 % interval lies above zero: one-sided p ≤ 2.5 %."""
    return adjusted_p <= (1 - CONFIDENCE) / 2


def shared_ranks(rows: Sequence[Mapping[int, float]]) -> list[int]:
    """Ranks of rows given best first, each by seed; a rank begins only where all below are told apart from all above.

    Two rows are told apart where the interval of their paired difference leaves out zero. That relation has chains, so
    rows that cannot be told apart always share a rank, also by way of a third.
    """
    ranks: list[int] = []
    for index in range(len(rows)):
        apart = all(_told_apart(above, below) for above in rows[:index] for below in rows[index:])
        ranks.append(index + 1 if apart else ranks[-1])
    return ranks


def _told_apart(first: Mapping[int, float], second: Mapping[int, float]) -> bool:
    gap = _difference(first, second)
    return gap is not None and not gap.low <= 0 <= gap.high


def _student(value: float, error: float, freedom: float, count: int) -> Interval:
    if error == 0:
        return Interval(value, value, value, count, 0.0 if value > 0 else 1.0)
    from scipy.special import stdtr, stdtrit  # two thirds of this module's import time

    reach = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return Interval(value, value - reach, value + reach, count, float(stdtr(freedom, -value / error)))


def _difference(first: Mapping[int, float], second: Mapping[int, float]) -> Interval | None:
    seeds = sorted(first.keys() & second.keys())
    return difference([first[seed] for seed in seeds], [second[seed] for seed in seeds]) if seeds else None


def _mean(by_seed: Mapping[int, float]) -> Interval | None:
    return mean([by_seed[seed] for seed in sorted(by_seed)]) if by_seed else None


def _value(by_seed: Mapping[int, float]) -> float | None:
    return statistics.fmean(by_seed.values()) if by_seed else None


# -------------------------------------------------------------------------------------------------- reading a record


def points(measurement: Measurement) -> float:
    """The metric times 100; negative where lower is better, so that more is always better."""
    return _points(measurement.value, measurement.higher_is_better)


def _points(value: float, higher_is_better: bool) -> float:
    return 100 * value if higher_is_better else -100 * value


def kept_share(released: Measurement, undefended: Measurement) -> float:
    """Utility retention of one metric: (U_d - floor) / (U_none - floor), the same either way up.

    Where lower is better this is (floor - U_d) / (floor - U_none), as DESIGN writes it for bits per token.
    """
    return (released.value - undefended.floor) / (undefended.value - undefended.floor)


def preference(record: Record) -> tuple[float, float, float, str]:
    """Sort key of the picked attack: validation score, then validation loss, then fewer steps; never the test score."""
    if record.validation is None:
        return (-math.inf, -math.inf, -math.inf, record.attack)
    loss = record.validation.loss
    steps = record.picked.step if record.picked else math.inf
    finite = loss is not None and math.isfinite(loss)
    return (points(record.validation), -loss if finite and loss is not None else -math.inf, -steps, record.attack)


def plugin(spec: str) -> str:
    """The plugin's name in a printed spec."""
    return spec.partition("[")[0]


def level_name(level: Iterable[str]) -> str:
    """`method+data`, or `nothing`."""
    return "+".join(sorted(level, key=KNOWLEDGE.index)) or "nothing"


def _final(record: Record) -> Measurement:
    """The test score that counts; attack `none` may have measured it only once."""
    found = record.attacked or record.unattacked
    assert found is not None  # _fault has looked
    return found


def _finite(measurement: Measurement | None) -> bool:
    return measurement is not None and math.isfinite(measurement.value)


def _fault(record: Record) -> str | None:
    """Why this record is no result, or None where it is one."""
    if record.status != "ok":
        return record.status + (f" ({record.reason})" if record.reason else "")
    if record.limited:
        return "run under --limit"
    if record.attack == NONE:
        return None if _finite(record.attacked or record.unattacked) else "no test score"
    if not _finite(record.validation):
        return "no validation score"
    return None if _finite(record.attacked) else "no test score"


# ------------------------------------------------------------------------------------------------------------- grid


class Place(NamedTuple):
    """Where a record belongs."""

    defense: str
    attack: str
    task: str
    seed: int

    def __str__(self) -> str:
        return f"{self.defense} × {self.attack} on {self.task}, seed {self.seed}"


@dataclass(frozen=True)
class _Grid:
    """The records by place, and the places that should have one."""

    records: Mapping[Place, Record]
    expected: frozenset[Place]
    faults: Mapping[Place, str]
    attacks: Mapping[str, Record]
    """One record of each attack, for what it says of the attack."""
    rows: Mapping[str, Row]
    seeds: Mapping[str, tuple[int, ...]]
    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    ranking: Level
    utility_bar: float

    def within(self, level: Level, adaptation: Adaptation | None = None) -> Level:
        """Attacks that need no more knowledge, and adapt the release in this way; attack `none` is always one.

        An attack that has no record yet counts everywhere: it may be the strongest.
        """
        ways = WAYS.get(adaptation) if adaptation else None
        return frozenset(
            attack
            for attack in {place.attack for place in self.expected}
            if attack not in self.attacks
            or (
                level - {"secret"} >= set(self.attacks[attack].knowledge)
                and (ways is None or attack == NONE or self.attacks[attack].adaptation in ways)
            )
        )

    def scratch(self) -> Level:
        """Attacks that ignore the release: they are recorded once, with the reference."""
        return frozenset(attack for attack, record in self.attacks.items() if not record.uses_release)

    def references(self) -> set[str]:
        return {row.reference for row in self.rows.values()}


def _grid(
    records: Sequence[Record], planned: Sequence[PlannedCell] | None, ranking: Level, utility_bar: float
) -> tuple[_Grid, list[str]]:
    problems = []
    wanted = None if planned is None else frozenset(Place(str(d), str(a), str(t), s) for d, a, t, s in planned)
    ordered = sorted(records, key=lambda record: (_place(record), record.key))
    held = [record for record in ordered if wanted is None or _place(record) in wanted]
    if len(held) < len(ordered):
        problems.append(f"{len(ordered) - len(held)} records outside the plan are left out")
    found = {_place(record): record for record in held}
    expected = _implied(held) if wanted is None else wanted
    faults = {place: "missing" for place in expected if place not in found}
    faults |= {place: fault for place, record in found.items() if (fault := _fault(record))}
    keys = {(_place(record), record.key) for record in held}
    twice = [place for place, count in Counter(place for place, _ in keys).items() if count > 1]
    faults |= dict.fromkeys(twice, "recorded twice, with different keys")
    faults |= _mismatches(held)
    metrics = {record.task for record in held if record.role == "utility"}
    grid = _Grid(
        records=found,
        expected=expected,
        faults=faults,
        attacks={record.attack: record for record in held},
        rows={record.defense: record.row for record in held},
        seeds={
            defense: tuple(sorted({place.seed for place in expected if place.defense == defense}))
            for defense in {place.defense for place in expected}
        },
        tasks=tuple(sorted({place.task for place in expected} - metrics)),
        metrics=tuple(sorted(metrics)),
        ranking=ranking,
        utility_bar=utility_bar,
    )
    return grid, problems


def _place(record: Record) -> Place:
    return Place(record.defense, record.attack, record.task, record.seed)


def _mismatches(records: Sequence[Record]) -> dict[Place, str]:
    """Cells of a row and seed that did not attack the same weights."""
    hashes: dict[tuple[str, int], set[str]] = {}
    used = [record for record in records if record.uses_release and record.release_sha256]
    for record in used:
        hashes.setdefault((record.defense, record.seed), set()).add(record.release_sha256)
    return {
        _place(record): "cells of this row and seed attacked different weights"
        for record in used
        if len(hashes[record.defense, record.seed]) > 1
    }


def _implied(records: Sequence[Record]) -> frozenset[Place]:
    """The places that records imply: every attack of a row, and of its reference, on all tasks and seeds.

    A row that lacks an attack which its reference withstood would look the stronger for it.
    """
    places = {_place(record) for record in records}
    training = [record for record in records if record.role == "ranked"]
    tasks = {record.task for record in training}
    metrics = {record.task for record in records} - tasks
    shared = {(one.defense, one.attack) for one in training if one.uses_release and "secret" not in one.knowledge}
    for defense, reference in {(record.defense, record.row.reference) for record in records}:
        seeds = {place.seed for place in places if place.defense == defense}
        attacks = {record.attack for record in training if record.defense == defense}
        attacks |= {attack for owner, attack in shared if owner == reference}
        places |= {Place(defense, attack, task, seed) for attack in attacks for task in tasks for seed in seeds}
        places |= {Place(defense, NONE, task, seed) for task in metrics for seed in seeds}
    return frozenset(places)


Picks = Mapping[int, tuple[Record, ...]]
"""By seed: the picked record of each task."""


def _picks(grid: _Grid, defense: str, tasks: Sequence[str], attacks: Level) -> Picks | None:
    """The picked attack on each task, by seed. A seed that has not been run to its end is left out.

    None where a cell failed: the strongest attack may have been that one, and the seed may have been the weakest.
    """
    found: dict[int, tuple[Record, ...]] = {}
    for seed in grid.seeds.get(defense, ()) if tasks else ():
        pools = [_pool(grid, defense, task, seed, attacks) for task in tasks]
        faulty = [place for pool in pools for place in pool if place in grid.faults]
        if any(place in grid.records for place in faulty):
            return None
        if all(pools) and not faulty:
            found[seed] = tuple(max((grid.records[place] for place in pool), key=preference) for pool in pools)
    return found


def _pool(grid: _Grid, defense: str, task: str, seed: int, attacks: Level) -> list[Place]:
    """Where the candidates of one task lie; scratch, which every attacker may choose, lies with the reference."""
    reference, scratch = grid.rows[defense].reference, grid.scratch()
    places = (Place(reference if attack in scratch else defense, attack, task, seed) for attack in attacks)
    return [place for place in places if place in grid.expected]


def _best(grid: _Grid, defense: str, tasks: Sequence[str], attacks: Level) -> Picks | None:
    """The picked attacks, or None where none of them fine-tunes this release: it is untested then, not withstood."""
    tried = {place.attack for place in grid.expected if place.defense == defense} & attacks
    known = [grid.attacks[attack] for attack in tried if attack in grid.attacks]
    if len(known) == len(tried) and not any(record.trains and record.uses_release for record in known):
        return None
    return _picks(grid, defense, tasks, attacks)


def _average(picks: Picks | None) -> dict[int, float]:
    """A_d by seed: the test scores of the picked attacks, averaged over the tasks."""
    return {
        seed: statistics.fmean(points(_final(record)) for record in picked) for seed, picked in (picks or {}).items()
    }


# --------------------------------------------------------------------------------------------------------- formulas


def _headroom(grid: _Grid, reference: str) -> list[Headroom]:
    """Undefended against scratch on each task, means over seeds; decided before any defense is looked at."""
    attacks = grid.within(grid.ranking)
    scratch = attacks & grid.scratch()
    rows = []
    for task in grid.tasks:
        zero, tuned, fresh = (
            _average(_picks(grid, reference, [task], chosen) if reference in grid.rows else None)
            for chosen in (frozenset({NONE}), attacks - scratch, scratch)
        )
        gap = _difference(tuned, fresh)
        kept = gap is None or gap.value > 0
        rows.append(Headroom(reference, task, _value(zero), _value(tuned), _value(fresh), kept))
    return rows


def _usable_metrics(grid: _Grid, reference: str) -> list[str]:
    """Utility metrics on which the reference beats the floor at every seed: elsewhere there is nothing to retain."""
    measured = {metric: _picks(grid, reference, [metric], frozenset({NONE})) for metric in grid.metrics}
    return [
        metric
        for metric, picks in measured.items()
        if not any(_above_floor(_final(record)) <= 0 for (record,) in (picks or {}).values())
    ]


def _above_floor(measurement: Measurement) -> float:
    return points(measurement) - _points(measurement.floor, measurement.higher_is_better)


Utilities = Mapping[str, tuple[Mapping[str, Interval], Interval | None]]
"""By row: the retention of each metric, and that of the row."""


def _utilities(grid: _Grid, defense: str) -> tuple[Mapping[str, Interval], Interval | None]:
    """Retention of each metric, and the minimum over metrics within a seed, averaged over seeds."""
    reference = grid.rows[defense].reference
    if reference not in grid.rows:
        return {}, None
    metrics = _usable_metrics(grid, reference)
    released, undefended = (_picks(grid, row, metrics, frozenset({NONE})) or {} for row in (defense, reference))
    shares = {
        seed: [
            kept_share(_final(mine), _final(theirs))
            for mine, theirs in zip(released[seed], undefended[seed], strict=True)
        ]
        for seed in sorted(released.keys() & undefended.keys())
    }
    if not shares:
        return {}, None
    by_metric = {metric: mean([kept[index] for kept in shares.values()]) for index, metric in enumerate(metrics)}
    return by_metric, mean([min(kept) for kept in shares.values()])


def _controls(grid: _Grid, defense: str, utilities: Utilities) -> list[str]:
    """What a row must beat: its reference, and the trivial defenses with that reference that keep as much utility.

    A control passes the bar by its mean, a defense by its lower bound: the burden of proof is on the defense. A control
    whose utility is not known is not let off.
    """
    reference = grid.rows[defense].reference
    trivial = [
        name
        for name, row in sorted(grid.rows.items())
        if row.trivial and row.reference == reference and name not in (defense, reference)
    ]
    return [reference] + [
        name for name in trivial if (kept := utilities[name][1]) is None or kept.value >= grid.utility_bar
    ]


def _excess(attacked: Mapping[str, Mapping[int, float]], defense: str, controls: Sequence[str]) -> dict[str, Interval]:
    """A_c - A_d for each control; empty where one of them is not known."""
    gaps = {name: _difference(attacked.get(name, {}), attacked[defense]) for name in controls}
    known = {name: gap for name, gap in gaps.items() if gap is not None}
    return known if len(known) == len(gaps) else {}


def _protected_fraction(undefended: Picks, defended: Picks, scratch: Picks) -> float | None:
    """Σ(A_none - A_d) / Σ(A_none - A_scratch) over tasks and seeds: 0 undefended, 1 no better than starting afresh."""
    seeds = undefended.keys() & defended.keys() & scratch.keys()
    top, taken, most = (
        math.fsum(points(_final(record)) for seed in seeds for record in picks[seed])
        for picks in (undefended, defended, scratch)
    )
    return (top - taken) / (top - most) if top > most else None


def _attack_spread(picks: Picks) -> float | None:
    """Standard deviation of the restarts' validation scores, in points, averaged over tasks and seeds."""
    restarts = [
        [100 * point.score for point in record.restarts if point.score is not None and math.isfinite(point.score)]
        for picked in picks.values()
        for record in picked
    ]
    spreads = [statistics.stdev(scores) for scores in restarts if len(scores) > 1]
    return statistics.fmean(spreads) if spreads else None


def _recovery(grid: _Grid, defense: str) -> dict[str, dict[str, float]]:
    """How well each attack guesses the secret: the mean of each metric over its records."""
    found: dict[str, dict[str, list[float]]] = {}
    for place, record in grid.records.items():
        if place.defense == defense and place not in grid.faults:
            for metric, value in record.recovery.items():
                if math.isfinite(value):
                    found.setdefault(place.attack, {}).setdefault(metric, []).append(value)
    return {
        attack: {metric: statistics.fmean(values) for metric, values in metrics.items()}
        for attack, metrics in found.items()
    }


def _best_recipe(
    grid: _Grid, defense: str, tasks: Sequence[str], attacks: Level
) -> tuple[str | None, dict[int, float]]:
    """The one attack that is best for all tasks: mean validation score over tasks and seeds, then the maximum."""
    alone = {attack: _picks(grid, defense, tasks, frozenset({attack})) for attack in sorted(attacks)}
    ranked = {
        attack: statistics.fmean(preference(record)[0] for picked in picks.values() for record in picked)
        for attack, picks in alone.items()
        if picks
    }
    if not ranked or any(picks is None for picks in alone.values()):
        return None, {}
    best = max(ranked, key=lambda attack: (ranked[attack], attack))
    return best, _average(alone[best])


def _without_optimizer(attack: str) -> str:
    name, _, inside = attack.partition("[")
    rest = [part for part in inside.rstrip("]").split(",") if part and not part.startswith("optimizer=")]
    return f"{name}[{','.join(rest)}]" if rest else name


def _optimizers(
    grid: _Grid, defense: str, tasks: Sequence[str], attacks: Level
) -> dict[str, tuple[Interval, Interval]]:
    """Suppression under an attack's default optimizer alone, and under all optimizers that it is run with."""
    found = {}
    for default in sorted(attacks):
        family = frozenset(attack for attack in attacks if _without_optimizer(attack) == default)
        if default not in family or len(family) < 2:
            continue
        alone, together = (_suppression(grid, defense, tasks, few) for few in (frozenset({default}), family))
        if alone is not None and together is not None:
            found[default] = (alone, together)
    return found


# ---------------------------------------------------------------------------------------------------- cost to break


def cost_to_break(undefended: Record, defended: Record, start: float, share: float) -> dict[str, Multiple]:
    """What the attack on `defended` spends until its validation curve reaches start + share · undefended gain.

    As a multiple of what the undefended model takes to the same score, preparation counted; `start` is the undefended
    model's unattacked validation score in points. Where the curve ends first the multiple is that of its end, censored.
    A curve is read over all learning rates: the attacker stops at the first point that will do.
    """
    theirs, mine = _curve(undefended), _curve(defended)
    if not theirs or not mine or undefended.cost is None or defended.cost is None:
        return {}
    target = start + share * (max(score for _, score in theirs) - start)
    needed = min((step for step, score in theirs if score >= target), default=0)
    if target <= start or needed == 0:
        return {}
    reached = min((step for step, score in mine if score >= target), default=None)
    spent = max(step for step, _ in mine) if reached is None else reached
    base, paid = _spent(undefended.cost, needed), _spent(defended.cost, spent)
    return {unit: Multiple(paid[unit] / base[unit], reached is None) for unit in UNITS if base[unit] > 0}


def _curve(record: Record) -> list[tuple[int, float]]:
    higher = record.validation is None or record.validation.higher_is_better
    return [
        (point.step, _points(point.score, higher))
        for point in record.curve
        if point.score is not None and math.isfinite(point.score)
    ]


def _spent(cost: Cost, steps: int) -> dict[str, float]:
    return {
        "steps": steps,
        "flops": cost.preparation_flops + steps * cost.step_flops,
        "seconds": cost.preparation_seconds + steps * cost.step_seconds,
        "memory": cost.peak_memory_bytes,
    }


def median_multiple(multiples: Sequence[Multiple]) -> Multiple | None:
    """The lower median, censored ones last; a censored median is given as the smallest budget that ended too early."""
    if not multiples:
        return None
    ordered = sorted(multiples, key=lambda one: (one.censored, one.value))
    middle = ordered[(len(ordered) - 1) // 2]
    return middle if not middle.censored else next(one for one in ordered if one.censored)


def _costs(grid: _Grid, defense: str, tasks: Sequence[str], attacks: Level) -> dict[str, dict[float, Multiple]]:
    """Medians over seeds and tasks of the cost to break, for the best attack that trains."""
    reference = grid.rows[defense].reference
    training = attacks - {NONE}
    starts = _picks(grid, reference, tasks, frozenset({NONE})) or {}
    theirs, mine = (_picks(grid, row, tasks, training) or {} for row in (reference, defense))
    found: dict[str, dict[float, list[Multiple]]] = {unit: {share: [] for share in SHARES} for unit in UNITS}
    for seed in sorted(starts.keys() & theirs.keys() & mine.keys()):
        for start, undefended, defended in zip(starts[seed], theirs[seed], mine[seed], strict=True):
            if start.validation is None:
                continue
            for share in SHARES:
                for unit, multiple in cost_to_break(undefended, defended, points(start.validation), share).items():
                    found[unit][share].append(multiple)
    medians = {
        unit: {share: middle for share, each in shares.items() if (middle := median_multiple(each))}
        for unit, shares in found.items()
    }
    return {unit: shares for unit, shares in medians.items() if shares}


# -------------------------------------------------------------------------------------------------------------- rows


def score(
    records: Sequence[Record],
    *,
    utility_bar: float,
    ranking: frozenset[str],
    planned: Sequence[PlannedCell] | None = None,
    mixed_versions: bool = False,
) -> Leaderboard:
    """Score every row of a suite and rank those that may be ranked.

    `planned` names the cells that should be there; without it they are inferred from the records. Records made with
    different library versions are ranked together only with `mixed_versions`.
    """
    grid, problems = _grid(records, planned, frozenset(ranking), utility_bar)
    versions = [] if mixed_versions else _version_problems(list(grid.records.values()))
    headroom = [row for reference in sorted(grid.references()) for row in _headroom(grid, reference)]
    problems += versions + _problems(grid, headroom)
    tasks = {
        reference: [row.task for row in headroom if row.reference == reference and row.kept]
        for reference in grid.references()
    }
    utilities = {defense: _utilities(grid, defense) for defense in grid.rows}
    scores = [_score(grid, defense, tasks, utilities) for defense in sorted(grid.rows)]
    scores = _judged([_flagged(grid, one, headroom, tasks) for one in scores], bool(versions))
    suites = sorted({record.suite for record in grid.records.values()})
    if len(suites) > 1:
        problems.append(f"records of several suites: {', '.join(suites)}")
    return Leaderboard(
        suite=", ".join(suites),
        scores=tuple(_ranked([_standing(one, bool(versions)) for one in scores])),
        headroom=tuple(headroom),
        ranking=level_name(ranking),
        utility_bar=utility_bar,
        problems=tuple(problems),
        records=len(grid.records),
        planned=len(grid.expected),
    )


def _version_problems(records: Sequence[Record]) -> list[str]:
    found: dict[str, set[str]] = {}
    everywhere = {name for record in records for name in record.provenance.get("versions") or {}}
    for name in everywhere:
        found[name] = {str((record.provenance.get("versions") or {}).get(name)) for record in records}
    return [
        f"records differ in library versions, so no row is ranked: {name} {', '.join(sorted(versions))}"
        for name, versions in sorted(found.items())
        if len(versions) > 1
    ]


def _problems(grid: _Grid, headroom: Sequence[Headroom]) -> list[str]:
    """What the reader must know of the suite as a whole."""
    problems = [
        f"{row.task} is left out: undefended {row.undefended:.1f} is no better than scratch {row.scratch:.1f}"
        for row in headroom
        if not row.kept
    ]
    for reference in sorted(grid.references()):
        if reference not in grid.rows:
            problems.append(f"the reference {reference} has no records: rows measured against it have no score")
            continue
        lost = sorted(set(grid.metrics) - set(_usable_metrics(grid, reference)))
        problems += [f"utility metric {metric} is left out: {reference} does not beat its floor" for metric in lost]
        if not any(place.defense == reference and place.attack in grid.scratch() for place in grid.expected):
            problems.append(f"no scratch row beside {reference}: headroom is not known")
    return problems


def _score(
    grid: _Grid,
    defense: str,
    kept_tasks: Mapping[str, Sequence[str]],
    utilities: Utilities,
) -> Score:
    row = grid.rows[defense]
    reference, tasks = row.reference, kept_tasks[row.reference]
    by_metric, retention = utilities[defense]
    kind: Kind = "reference" if defense in grid.references() else "trivial" if row.trivial else "defense"
    blank = Score(
        defense,
        kind,
        row,
        incomplete=tuple(_incomplete(grid, defense, utilities)),
        utilities=by_metric,
        retention=retention,
        clears_bar=retention is not None and retention.low >= grid.utility_bar,
        recovery=_recovery(grid, defense),
    )
    if reference not in grid.rows:
        return blank
    attacks = grid.within(grid.ranking)
    mine, undefended = (_best(grid, name, tasks, attacks) or {} for name in (defense, reference))
    scratch = _picks(grid, reference, tasks, attacks & grid.scratch()) or {}
    zero = _average(_picks(grid, defense, tasks, frozenset({NONE})))
    attacked, theirs = _average(mine), _average(undefended)
    by_seed = {seed: theirs[seed] - attacked[seed] for seed in sorted(theirs.keys() & attacked.keys())}
    own_attacks = attacks - grid.scratch() - {NONE}
    recipe, recipe_scores = _best_recipe(grid, defense, tasks, own_attacks)
    task_scores = tuple(_task_score(grid, defense, task, attacks) for task in tasks)
    measured = [task for task in task_scores if task.suppression is not None]
    secret = frozenset(attack for attack, record in grid.attacks.items() if "secret" in record.knowledge)
    scored = replace(
        blank,
        unattacked=_mean(zero),
        attacked=_mean(attacked),
        gain=_difference(attacked, zero),
        suppression=_difference(theirs, attacked),
        suppression_by_seed=by_seed,
        levels={level_name(level): _suppression(grid, defense, tasks, grid.within(level)) for level in _levels(grid)},
        tasks=task_scores,
        worst_task=min(measured, key=lambda one: one.suppression.value if one.suppression else 0.0, default=None),
        recipe=recipe,
        recipe_suppression=_difference(_best_recipe(grid, reference, tasks, own_attacks)[1], recipe_scores),
        optimizers=_optimizers(grid, defense, tasks, own_attacks),
        protected_fraction=_protected_fraction(undefended, mine, scratch),
        authorized_gain=_difference(_average(_picks(grid, defense, tasks, secret)), zero),
        cost_to_break=_costs(grid, defense, tasks, attacks),
        seed_spread=statistics.stdev(by_seed.values()) if len(by_seed) > 1 else None,
        attack_spread=_attack_spread(mine),
    )
    if kind != "defense":
        return scored
    controls = _controls(grid, defense, utilities)
    return _with_claim(grid, _with_excess(grid, scored, tasks, controls), tasks, controls)


def _with_excess(grid: _Grid, score: Score, tasks: Sequence[str], controls: Sequence[str]) -> Score:
    attacked = _attacked(grid, [score.defense, *controls, score.row.control], tasks, grid.within(grid.ranking))
    gaps, own = _excess(attacked, score.defense, controls), attacked[score.defense]
    control = score.row.control
    beyond = _difference(attacked[control], own) if control in attacked else None
    if not gaps:
        return replace(score, beyond_control=beyond)
    over = min(gaps, key=lambda name: gaps[name].value)
    return replace(
        score,
        excess=weakest(list(gaps.values())),
        excess_over=over,
        excess_by_seed={seed: attacked[over][seed] - own[seed] for seed in sorted(own.keys() & attacked[over].keys())},
        beyond_control=beyond,
    )


def _with_claim(grid: _Grid, score: Score, tasks: Sequence[str], controls: Sequence[str]) -> Score:
    """Excess suppression of the attackers whom the defense claims to withstand, and whether there was one."""
    claim = score.row.claim
    if claim is None:
        return score
    attacks = grid.within(frozenset(claim.knowledge), claim.adaptation)
    gaps = _excess(_attacked(grid, [score.defense, *controls], tasks, attacks), score.defense, controls)
    tested = any(
        place.defense == score.defense and place.attack in attacks and place.task in tasks and place not in grid.faults
        for place, record in grid.records.items()
        if record.trains and record.uses_release
    )
    return replace(score, claim_excess=weakest(list(gaps.values())) if gaps else None, claim_tested=tested)


def _attacked(
    grid: _Grid, defenses: Sequence[str | None], tasks: Sequence[str], attacks: Level
) -> dict[str, dict[int, float]]:
    return {name: _average(_best(grid, name, tasks, attacks)) for name in defenses if name in grid.rows and name}


def _suppression(grid: _Grid, defense: str, tasks: Sequence[str], attacks: Level) -> Interval | None:
    reference = grid.rows[defense].reference
    attacked = _attacked(grid, [defense, reference], tasks, attacks)
    return _difference(attacked[reference], attacked[defense])


def _levels(grid: _Grid) -> list[Level]:
    """The knowledge levels that attacks or claims name, the owner's secret apart; those who know least first."""
    named = [frozenset(record.knowledge) for record in grid.attacks.values()]
    named += [frozenset(row.claim.knowledge) for row in grid.rows.values() if row.claim]
    levels = {level for level in [*named, grid.ranking] if "secret" not in level}
    return sorted(levels, key=lambda level: (len(level), level_name(level)))


def _task_score(grid: _Grid, defense: str, task: str, attacks: Level) -> TaskScore:
    mine, theirs = (_best(grid, row, [task], attacks) for row in (defense, grid.rows[defense].reference))
    zero = _mean(_average(_picks(grid, defense, [task], frozenset({NONE}))))
    undefended = _mean(_average(theirs))
    picked = Counter(record.attack for (record,) in (mine or {}).values())
    return TaskScore(
        task=task,
        unattacked=zero.value if zero else None,
        attacked=_mean(_average(mine)),
        undefended=undefended.value if undefended else None,
        suppression=_difference(_average(theirs), _average(mine)),
        attack=max(sorted(picked), key=picked.__getitem__) if picked else None,
    )


def _incomplete(grid: _Grid, defense: str, utilities: Utilities) -> list[str]:
    """Places without a result, in this row and in those that its numbers are measured against.

    A planned defense of which nothing has been recorded may be one of them.
    """
    controls = _controls(grid, defense, utilities)
    rows = {defense, *controls, *(grid.seeds.keys() - grid.rows.keys())}
    faults = sorted(grid.faults.items(), key=lambda fault: (fault[0].defense != defense, fault[0]))
    found = [f"{place}: {fault}" for place, fault in faults if place.defense in rows]
    return found if grid.rows[defense].reference in grid.rows or found else [f"{controls[0]}: no records"]


# ------------------------------------------------------------------------------------------- flags, verdicts, ranks


def _flagged(grid: _Grid, score: Score, headroom: Sequence[Headroom], kept: Mapping[str, Sequence[str]]) -> Score:
    picks: Picks = {}
    if score.row.reference in grid.rows:
        picks = _picks(grid, score.defense, kept[score.row.reference], grid.within(grid.ranking)) or {}
    reference, applied = score.row.reference, grid.within(grid.ranking) - grid.scratch()
    mine, theirs = (
        {place.attack for place in grid.expected if place.defense == row} for row in (score.defense, reference)
    )
    return replace(
        score,
        flags=find(
            score,
            skipped=sorted((theirs - mine) & applied),
            records=[record for place, record in sorted(grid.records.items()) if place.defense == score.defense],
            picked=[record for seed in sorted(picks) for record in picks[seed]],
            headroom=[row for row in headroom if row.reference == score.defense],
            utility_bar=grid.utility_bar,
        ),
    )


def _judged(scores: Sequence[Score], mixed_versions: bool) -> list[Score]:
    """Verdicts on claims, Holm-corrected over the rows that are judged; the burden of proof is on the defense."""
    judged = [index for index, one in enumerate(scores) if _testable(one) and not mixed_versions]
    adjusted = dict(zip(judged, holm([_p(scores[index]) for index in judged]), strict=True))
    return [
        replace(one, claim_p=adjusted.get(index), verdict=verdict(one, adjusted.get(index)))
        for index, one in enumerate(scores)
    ]


def _p(score: Score) -> float:
    return score.claim_excess.p if score.claim_excess else 1.0


def _testable(score: Score) -> bool:
    """An attack within the claim's knowledge ran, every cell is there, and there are seeds enough to tell anything."""
    enough = score.claim_excess is not None and score.claim_excess.count >= PRELIMINARY_SEEDS
    return score.kind == "defense" and score.claim_tested and not score.incomplete and enough


def verdict(score: Score, adjusted_p: float | None) -> Verdict | None:
    """`holds`, `refuted` or `untested`; None without a claim.

    It holds where utility clears the bar and the adjusted lower bound of excess suppression is above zero. It is
    untested too where it would hold, but against an attack that flags say was not run to its best.
    """
    if score.row.claim is None or score.kind != "defense":
        return None
    if adjusted_p is None:
        return "untested"
    if not score.clears_bar or not beats_zero(adjusted_p):
        return "refuted"
    return "untested" if any(flag.name in ("edge", "gradient") for flag in score.flags) else "holds"


def _standing(score: Score, mixed_versions: bool) -> Score:
    """Whether the row is ranked, and if not the reasons."""
    reasons = []
    if score.incomplete:
        more = f" and {len(score.incomplete) - 3} more" if len(score.incomplete) > 3 else ""
        reasons.append(f"incomplete: {'; '.join(score.incomplete[:3])}{more}")
    if score.kind != "defense":
        return replace(score, standing="control", reasons=tuple(reasons))
    seeds = score.excess.count if score.excess else 0
    if score.excess is None:
        reasons.append("no excess suppression: it or a row that it must beat has no score")
    elif seeds < PRELIMINARY_SEEDS:
        reasons.append(f"{seeds} base seed{'s' * (seeds > 1)}: three are preliminary, five are ranked")
    reasons += [flag.message for flag in score.flags if flag.severity == "unrank"]
    if score.row.task_aware or (score.row.claim and score.row.claim.adaptation != "finetuning"):
        reasons.append("its claim is not about fine-tuning at large: it has a table of its own")
    if mixed_versions:
        reasons.append("records differ in library versions")
    fit: Standing = "ranked" if seeds >= RANKED_SEEDS else "preliminary"
    return replace(score, standing="unranked" if reasons else fit, reasons=tuple(reasons))


def _ranked(scores: Sequence[Score]) -> list[Score]:
    """Ranks by excess suppression, ranked and preliminary rows each among themselves; the order of the table."""
    ordered: list[Score] = []
    for standing in ("ranked", "preliminary", "control", "unranked"):
        group = sorted((one for one in scores if one.standing == standing), key=_descending)
        ranks: Sequence[int | None] = [None] * len(group)
        if standing in ("ranked", "preliminary"):
            ranks = shared_ranks([one.excess_by_seed for one in group])
        ordered += [replace(one, rank=rank) for one, rank in zip(group, ranks, strict=True)]
    return ordered


def _descending(score: Score) -> tuple[float, str]:
    best = score.excess or score.suppression
    return (-best.value if best else math.inf, score.defense)
