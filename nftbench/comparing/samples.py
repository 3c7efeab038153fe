"""What each side measured of a row: for every metric a number at each base seed, or a printed mean with interval."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nftbench.comparing.metrics import UTILITY, Role
from nftbench.comparing.sides import Board, PrintedRow, Recorded
from nftbench.contract import Cost
from nftbench.errors import shortened
from nftbench.records.record import CellId, Record
from nftbench.scoring import ladder
from nftbench.scoring.cost_to_break import cost_to_break
from nftbench.scoring.frontier import mean_share
from nftbench.scoring.grid import NONE, Grid, arrange, called, doses
from nftbench.scoring.headroom import headroom
from nftbench.scoring.intervals import Interval, differences_by_seed, mean
from nftbench.scoring.points import final, points
from nftbench.scoring.resistance import attacked_by_row, broken
from nftbench.scoring.utility import reached, scales, shares, usable

BREAKING_SHARE, BREAKING_UNIT = 0.5, "flops"
"""Cost to break is compared in FLOPs, to half of the undefended gain."""


@dataclass(frozen=True)
class Sample:
    """One metric of one row on one side."""

    mean: Interval
    by_seed: Mapping[int, float] = field(default_factory=dict)
    """Empty where only the mean was printed."""
    curved: bool = False
    """The excess: which curve and metric a row is measured from depends on noise, and another choice moves it by many
    points. No interval of one run covers that, so a change of the excess is shown but not tested."""

    @classmethod
    def of(cls, by_seed: Mapping[int, float]) -> Sample | None:
        """The sample of these numbers; None without any."""
        ordered = {seed: by_seed[seed] for seed in sorted(by_seed)}
        return cls(mean(list(ordered.values())), ordered) if ordered else None

    @classmethod
    def of_excess(cls, interval: Interval, by_seed: Mapping[int, float]) -> Sample:
        """The sample of an excess, with the wider half of its interval, which covers all curves, on both sides."""
        reach = max(interval.high - interval.value, interval.value - interval.low)
        even = replace(interval, low=interval.value - reach, high=interval.value + reach)
        return cls(even, {seed: by_seed[seed] for seed in sorted(by_seed)}, curved=True)


@dataclass(frozen=True)
class RowSamples:
    """One row on one side."""

    samples: Mapping[str, Sample]
    """By metric; those that are not known are left out."""
    reasons: Mapping[str, str]
    """By metric: why it is not known. Under an empty name, which planned cells have no result."""
    seeds: frozenset[int]
    """The planned base seeds."""
    bases: Mapping[int, str] = field(default_factory=dict)
    """By seed: the hash of the base weights, where it is known."""
    control: bool = False
    """A reference or a trivial defense, which is compared only where it is asked for."""


Rows = Mapping[str, RowSamples]


# ------------------------------------------------------------------------------------------------------- two runs


def of_defenses(base: Recorded, new: Recorded) -> tuple[Rows, Rows, list[str]]:
    """The rows of two runs, both measured by the attacks and on the tasks that both runs have; and what is left out."""
    first, second, notes = _common(base, new, "defense")
    tasks: list[dict[str, list[str]]] = [{}, {}]
    metrics: list[dict[str, list[str]]] = [{}, {}]
    for reference in first.references() & second.references():
        kept = [{one.task for one in headroom(grid, reference) if one.kept} for grid in (first, second)]
        counted = [{*usable(scales(grid, reference))} for grid in (first, second)]
        # A task that counts on one side is compared on both, or what a row lost on it would not be seen. A metric that
        # a reference does not know on one side has no share of utility there.
        for what, found, chosen, common, outcome in (
            ("tasks", kept, tasks, kept[0] | kept[1], "are compared all the same"),
            ("utility metrics", counted, metrics, counted[0] & counted[1], "are left out"),
        ):
            for by_reference, own in zip(chosen, found, strict=True):
                # Where nothing counts on one side, the other keeps its own: its numbers are then missing, or new.
                by_reference[reference] = sorted(common if all(found) else own)
            if all(found) and (single := sorted(found[0] ^ found[1])):
                notes.append(
                    f"{what} beside {called(reference)} that count on one side only {outcome}: {', '.join(single)}"
                )
    return _rows(first, tasks[0], metrics[0]), _rows(second, tasks[1], metrics[1]), notes


def of_attacks(base: Recorded, new: Recorded) -> tuple[Rows, Rows, list[str]]:
    """The attacks of two runs, each averaged at each seed over the releases and tasks on which both runs have it."""
    first, second, notes = _common(base, new, "attack")
    return _attacks(first), _attacks(second), notes


def _common(base: Recorded, new: Recorded, subject: Role) -> tuple[Grid, Grid, list[str]]:
    """The grids of two runs with the cells by which a row, or an attack, is measured on both sides alike.

    A defense or attack (the subject) that only one side has keeps all its cells. Of the others, the cells are kept
    whose defense, attack and task both sides planned. Seeds are not narrowed: unpaired means use all of them. Of the
    undefended model's initialisations, to whose mean utility is compared, those are kept that both sides planned.
    """
    notes = []
    plans = [[cell.id for cell in side.manifest.cells] for side in (base, new)]
    rows = [{cell.defense for cell in plan} for plan in plans]
    twins = {*base.manifest.initialisations, *new.manifest.initialisations}
    lone = twins & (rows[0] ^ rows[1])
    if lone and subject == "defense":
        what = "an initialisation" if len(lone) == 1 else "initialisations"
        notes.append(f"utility is measured without {', '.join(sorted(lone))}, {what} that one side lacks")
    plans = [[cell for cell in plan if cell.defense not in lone] for plan in plans]
    kinds = [{cell[:3] for cell in plan} for plan in plans]
    at = 0 if subject == "defense" else 1
    subjects = {kind[at] for kind in kinds[0]} & {kind[at] for kind in kinds[1]}
    added = {*base.manifest.added, *new.manifest.added}
    grids = []
    for name, side, plan in zip(("BASE", "NEW"), (base, new), plans, strict=True):
        kept = [cell for cell in plan if cell[at] not in subjects or cell[:3] in kinds[0] & kinds[1]]
        if left := sorted({f"{cell.attack} on {cell.task}" for cell in {*plan} - {*kept}}):
            notes.append(f"{name} alone has {shortened(left, 3)}, at least on some rows: left out there")
        plan_of = side.manifest
        ranking = frozenset(plan_of.suite.ranking)
        grid, _ = arrange(side.records, kept, ranking, plan_of.ladder, sorted(twins - lone), sorted(added))
        grids.append(grid)
    return grids[0], grids[1], notes


def _rows(grid: Grid, tasks: Mapping[str, list[str]], metrics: Mapping[str, list[str]]) -> dict[str, RowSamples]:
    planned = {cell.defense for cell in grid.expected}
    controls = {*doses(grid.ladder), *grid.initialisations, *grid.references()}
    found = {
        row: RowSamples({}, {"": "no records"}, frozenset(grid.seeds[row]), control=row in controls)
        for row in planned - grid.rows.keys()
    }
    attacks = grid.within(grid.ranking)
    for reference in sorted(grid.references()):
        own_tasks = tasks.get(reference, [])
        scale = {name: one for name, one in scales(grid, reference).items() if name in metrics.get(reference, ())}
        beside = ladder.ladder(grid, reference, own_tasks, attacks, scale) if reference in grid.rows else None
        for row in sorted(name for name, one in grid.rows.items() if one.reference == reference):
            numbers, reasons = _numbers(grid, row, own_tasks, scale)
            if reference in tasks and not own_tasks:
                lost = f"{called(reference)} ends clearly above scratch on no task"
                reasons |= {"attacked": lost, "suppression": lost}
            if reference in metrics and not scale:
                reasons |= {"retention": f"{called(reference)} has no utility that could be lost"}
            samples = _known(numbers)
            if beside is not None:
                excess = ladder.excess(grid, row, own_tasks, attacks, beside)
                reasons |= {"excess": excess.reason} if excess.reason else {}
                if excess.interval is not None:
                    samples["excess"] = Sample.of_excess(excess.interval, excess.heights.own)
            found[row] = RowSamples(
                samples,
                reasons,
                frozenset(grid.seeds[row]),
                _bases(grid.records_of(row)),
                control=row == reference or row in grid.initialisations or grid.rows[row].trivial,
            )
    return found


def _numbers(
    grid: Grid, row: str, tasks: Sequence[str], scale: Mapping[str, Any]
) -> tuple[dict[str, Mapping[int, float]], dict[str, str]]:
    """Each metric but the excess by seed, and which planned cells have no result."""
    reference, attacks = grid.rows[row].reference, grid.within(grid.ranking)
    attacked = attacked_by_row(grid, [row, reference], tasks, attacks)
    own, before = attacked.get(row, {}), attacked.get(reference, {})
    kept = {metric: one for metric, one in shares(reached(grid, row, scale), scale).items() if one}
    found: dict[str, Mapping[int, float]] = {
        "attacked": own,
        "suppression": {} if row == reference else differences_by_seed(before, own),
        "retention": {seed: 100 * share for seed, share in mean_share(kept).items()},
        **{f"{UTILITY}.{name}": {seed: 100 * one for seed, one in shares.items()} for name, shares in kept.items()},
        "cost_to_break": _breaking(grid, row, tasks),
        **_spent(one for one in grid.records_of(row) if CellId.of(one) not in grid.faults),
    }
    faults = [f"{cell}: {fault}" for cell, fault in sorted(grid.faults.items()) if cell.defense in (row, reference)]
    reasons = {"cost_to_break": "no exact multiple: the score is not reached, or also without counted steps"}
    return found, reasons | ({"": shortened(faults, 2, "; ")} if faults else {})


def _breaking(grid: Grid, row: str, tasks: Sequence[str]) -> dict[int, float]:
    """100 · ln of the multiple, averaged over tasks.

    A budget that was too small counts as its own size, so that a difference is never larger than what was seen. A seed
    is left out where a multiple may be lower than its value.
    """
    found = {}
    for seed, units in broken(grid, row, tasks).items():
        each = [cost_to_break(*unit, BREAKING_SHARE).get(BREAKING_UNIT) for unit in units]
        sure = [100 * math.log(one.value) for one in each if one is not None and not one.at_most and one.value > 0]
        if sure and len(sure) == len(tasks):
            found[seed] = statistics.fmean(sure)
    return found


def _attacks(grid: Grid) -> dict[str, RowSamples]:
    found = {}
    for attack in sorted({cell.attack for cell in grid.expected} - {NONE}):
        own = sorted(cell for cell in grid.expected if cell.attack == attack and cell.task in grid.tasks)
        lost = {cell.seed for cell in own if cell in grid.faults}
        kept = [grid.records[cell] for cell in own if cell.seed not in lost]
        by_seed: dict[int, list[float]] = defaultdict(list)
        for record in kept:
            by_seed[record.seed].append(points(final(record)))
        samples = {"attacked": {seed: statistics.fmean(scores) for seed, scores in by_seed.items()}, **_spent(kept)}
        faults = [f"{cell}: {grid.faults[cell]}" for cell in own if cell in grid.faults]
        reasons = {"": shortened(faults, 2, "; ")} if faults else {}
        found[attack] = RowSamples(_known(samples), reasons, frozenset(cell.seed for cell in own), _bases(kept))
    return found


def _spent(records: Iterable[Record]) -> dict[str, Mapping[int, float]]:
    """Seconds and peak memory of the attacks, as 100 · ln of the mean over cells."""
    costs: dict[int, list[Cost]] = defaultdict(list)
    for record in records:
        if record.cost is not None:
            costs[record.seed].append(record.cost)
    measures: dict[str, dict[int, list[float]]] = {
        "seconds": {seed: [one.preparation_seconds + one.seconds for one in each] for seed, each in costs.items()},
        "memory": {seed: [one.peak_memory_bytes for one in each] for seed, each in costs.items()},
    }
    return {
        name: {seed: 100 * math.log(statistics.fmean(each)) for seed, each in by_seed.items() if sum(each) > 0}
        for name, by_seed in measures.items()
    }


def _known(samples: Mapping[str, Mapping[int, float]]) -> dict[str, Sample]:
    return {name: sample for name, by_seed in samples.items() if (sample := Sample.of(by_seed)) is not None}


def _bases(records: Iterable[Record]) -> dict[int, str]:
    return {record.seed: record.base_sha256 for record in records if record.base_sha256 is not None}


# ---------------------------------------------------------------------------------------------- a leaderboard.json


def of_board(board: Board) -> Rows:
    """The rows of a leaderboard.json. What it prints for each seed is used as such, everything else as a mean."""
    return {row.defense: _printed(row) for row in board.rows}


def _printed(row: PrintedRow) -> RowSamples:
    samples = _known({"suppression": row.suppression_by_seed} if row.kind != "reference" else {})
    if row.excess is not None:
        samples["excess"] = Sample.of_excess(row.excess, row.excess_by_seed)
    shown = {"attacked": row.attacked, "retention": row.utility_percent}
    shown |= {f"{UTILITY}.{name}": value for name, value in row.utility_percent_by_metric.items()}
    samples |= {name: Sample(value) for name, value in shown.items() if value is not None}
    reasons = {"excess": row.excess_reason} if row.excess_reason else {}
    seeds = frozenset(seed for sample in samples.values() for seed in sample.by_seed)
    return RowSamples(samples, reasons, seeds, control=row.kind != "defense")
