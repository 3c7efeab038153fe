"""What attacks reach on one row: suppression with its tasks, levels of knowledge, single recipes, cost to break.

Scores are in points. The base seed is the unit: tasks are averaged within a seed, then intervals are made over seeds.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from nftbench.records.record import CellId
from nftbench.records.spec import Spec
from nftbench.scoring.cost_to_break import Broken, Multiple, median_costs
from nftbench.scoring.grid import NONE, Attacks, Grid, Knowledge, knowledge_name
from nftbench.scoring.intervals import (
    Interval,
    average_by_seed,
    differences_by_seed,
    gap_by_seed,
    mean,
    mean_by_seed,
    weakest,
)
from nftbench.scoring.points import BestAttacks, final, mean_points, points, preference
from nftbench.scoring.scores import ByKnowledge, Partial, Recipes, Resistance, TaskScore
from nftbench.terms import OF_UPDATES, TrainedWeights


def resistance(grid: Grid, defense: str, tasks: Sequence[str]) -> Resistance:
    """What the best attacks with the ranking's knowledge reach on these tasks."""
    row, attacks = grid.rows[defense], grid.within(grid.ranking)
    reference = row.reference
    defended, undefended = (grid.best_finetuning(row, tasks, attacks) or {} for row in (defense, reference))
    scratch = grid.best_attacks(reference, tasks, attacks & grid.from_scratch()) or {}
    unattacked = mean_points(grid.best_attacks(defense, tasks, frozenset({NONE})))
    attacked, before = mean_points(defended), mean_points(undefended)
    by_seed = differences_by_seed(before, attacked)
    suppression = mean_by_seed(by_seed)
    matched = attacked_by_row(grid, [row.control], tasks, attacks)
    return Resistance(
        unattacked=mean_by_seed(unattacked),
        attacked=mean_by_seed(attacked),
        gain=gap_by_seed(attacked, unattacked),
        suppression=suppression,
        suppression_by_seed=by_seed,
        partial=_partial(grid, defense, tasks, attacks) if suppression is None else None,
        tasks=tuple(_task_score(grid, defense, task, attacks) for task in tasks),
        protected_fraction=_protected_fraction(undefended, defended, scratch),
        seed_spread=statistics.stdev(by_seed.values()) if len(by_seed) > 1 else None,
        attack_spread=_attack_spread(defended),
        beyond_control=gap_by_seed(matched[row.control], attacked) if row.control in matched else None,
    )


def attacked_by_row(
    grid: Grid, defenses: Sequence[str | None], tasks: Sequence[str], attacks: Attacks
) -> dict[str, dict[int, float]]:
    """For each row that has records: the score after the best of these attacks, in points by seed."""
    rows = [name for name in defenses if name is not None and name in grid.rows]
    return {name: mean_points(grid.best_finetuning(name, tasks, attacks)) for name in rows}


def _suppression(grid: Grid, defense: str, tasks: Sequence[str], attacks: Attacks) -> Interval | None:
    reference = grid.rows[defense].reference
    attacked = attacked_by_row(grid, [defense, reference], tasks, attacks)
    return gap_by_seed(attacked[reference], attacked[defense])


def _task_score(grid: Grid, defense: str, task: str, attacks: Attacks) -> TaskScore:
    best, undefended = (grid.best_finetuning(row, [task], attacks) for row in (defense, grid.rows[defense].reference))
    chosen = Counter(record.attack for (record,) in (best or {}).values())
    return TaskScore(
        task=task,
        unattacked=average_by_seed(mean_points(grid.best_attacks(defense, [task], frozenset({NONE})))),
        attacked=mean_by_seed(mean_points(best)),
        undefended=average_by_seed(mean_points(undefended)),
        suppression=gap_by_seed(mean_points(undefended), mean_points(best)),
        attack=max(sorted(chosen), key=chosen.__getitem__) if chosen else None,
    )


def _protected_fraction(undefended: BestAttacks, defended: BestAttacks, scratch: BestAttacks) -> float | None:
    """Σ(undefended - defended) / Σ(undefended - scratch) over tasks and seeds.

    0 where the row ends as the undefended model does, 1 where it is worth no more than training from scratch.
    """
    seeds = undefended.keys() & defended.keys() & scratch.keys()
    most, reached, least = (
        math.fsum(points(final(record)) for seed in seeds for record in best[seed])
        for best in (undefended, defended, scratch)
    )
    return (most - reached) / (most - least) if most > least else None


def _attack_spread(best: BestAttacks) -> float | None:
    """Standard deviation of the restarts' validation scores, in points, averaged over tasks and seeds."""
    restarts = [
        [100 * point.score for point in record.restarts if point.score is not None and math.isfinite(point.score)]
        for records in best.values()
        for record in records
    ]
    spreads = [statistics.stdev(scores) for scores in restarts if len(scores) > 1]
    return statistics.fmean(spreads) if spreads else None


def _partial(grid: Grid, defense: str, tasks: Sequence[str], attacks: Attacks) -> Partial | None:
    """Suppression as if nothing had been planned but the cells that this row and its reference both have.

    None where one of their cells failed: the strongest attack may have been that one.
    """
    reference, ignoring = grid.rows[defense].reference, grid.ignoring_release()

    def cells(attack: str, unit: tuple[str, int]) -> set[CellId]:
        return {CellId(row, attack, *unit) for row in ({reference} if attack in ignoring else {defense, reference})}

    units = [(task, seed) for task in tasks for seed in grid.seeds[defense]]
    recorded, failed = grid.records.keys() - grid.faults.keys(), grid.records.keys() & grid.faults.keys()
    if any(cells(attack, unit) & failed for attack in attacks for unit in units):
        return None
    have = {attack: {unit for unit in units if cells(attack, unit) <= recorded} for attack in attacks}
    known = [(attack, grid.attacks[attack]) for attack in attacks if attack in grid.attacks]
    tuned = {unit for attack, record in known if record.trains and record.uses_release for unit in have[attack]}
    shared = frozenset(attack for attack in attacks if have[attack] >= tuned)
    narrow = frozenset(cell for attack in shared for unit in tuned for cell in cells(attack, unit))
    covered = sorted({task for task, _ in tuned})
    gap = _suppression(replace(grid, expected=narrow), defense, covered, shared)
    return Partial(gap, tuple(sorted(shared)), tuple(covered)) if gap else None


# -------------------------------------------------------------------------------------------------- levels, recipes


def by_knowledge(grid: Grid, defense: str, tasks: Sequence[str]) -> ByKnowledge:
    """Suppression at the ranking's level and at every other level that the attacks on this row use in full."""
    levels = _levels(grid)
    reference = defense in grid.references()
    tested = [level for level in levels if level == grid.ranking or reference or grid.uses_all(defense, level)]
    return ByKnowledge(
        {knowledge_name(level): _suppression(grid, defense, tasks, grid.within(level)) for level in tested},
        untested=tuple(knowledge_name(level) for level in levels if level not in tested),
        adaptive=adaptive(grid, defense),
    )


def _levels(grid: Grid) -> list[Knowledge]:
    """The levels of knowledge that attacks or claims name, but for the owner's secret; the lowest first."""
    named = [frozenset(record.knowledge) for record in grid.attacks.values() if record.adaptation not in OF_UPDATES]
    claims = [row.claim for row in grid.rows.values() if row.claim]
    named += [frozenset(claim.knowledge) for claim in claims if claim.adaptation not in OF_UPDATES]
    levels = {level for level in [*named, grid.ranking] if "secret" not in level}
    return sorted(levels, key=lambda level: (len(level), knowledge_name(level)))


def adaptive(grid: Grid, defense: str) -> tuple[str, ...]:
    """The attacks written against this defense that ran to their end, without the owner's own fine-tuning.

    Added attacks are not among them: the author of a defense could add a weak one.
    """
    name = Spec.parse(defense).name
    against = {attack for attack, record in grid.attacks.items() if name in record.against}
    against -= grid.by_owner() | grid.added
    own = [CellId.of(record) for record in grid.records_of(defense) if record.attack in against]
    return tuple(sorted({cell.attack for cell in own if cell not in grid.faults}))


def recipes(grid: Grid, defense: str, tasks: Sequence[str]) -> Recipes:
    """Single attacks: the best one, other optimizers of the same one, a part of the weights against all of them.

    Added attacks are compared with no others: they may be strong on this row alone, and call themselves what they like.
    """
    attacks = grid.within(grid.ranking) - grid.ignoring_release() - {NONE}
    best, scores = _best_recipe(grid, defense, tasks, attacks)
    _, undefended = _best_recipe(grid, grid.rows[defense].reference, tasks, attacks)
    attacks -= grid.added
    longer, usual = _ahead(grid, defense, tasks, attacks, ("all_longer",), ("all",))
    return Recipes(
        best=best,
        suppression=gap_by_seed(undefended, scores),
        optimizers=_optimizers(grid, defense, tasks, attacks),
        part_ahead=_beyond(*_ahead(grid, defense, tasks, attacks, ("part",), ("all", "all_longer"))),
        longer_adds=mean_by_seed(longer),
        longer_ahead=_beyond(longer, usual),
    )


def _best_recipe(
    grid: Grid, defense: str, tasks: Sequence[str], attacks: Attacks
) -> tuple[str | None, dict[int, float]]:
    """The attack with the highest mean validation score over tasks and seeds, and its test scores by seed."""
    alone = {attack: grid.best_attacks(defense, tasks, frozenset({attack})) for attack in sorted(attacks)}
    means = {
        attack: statistics.fmean(preference(record)[0] for records in best.values() for record in records)
        for attack, best in alone.items()
        if best
    }
    if not means or any(best is None for best in alone.values()):
        return None, {}
    highest = max(means, key=lambda attack: (means[attack], attack))
    return highest, mean_points(alone[highest])


def _optimizers(
    grid: Grid, defense: str, tasks: Sequence[str], attacks: Attacks
) -> dict[str, tuple[Interval, Interval, Interval]]:
    """Suppression under an attack's default optimizer, under all optimizers that it is run with, and the difference."""
    found = {}
    for default in sorted(attacks):
        family = frozenset(attack for attack in attacks if str(Spec.parse(attack).without("optimizer")) == default)
        if default not in family or len(family) < 2:
            continue
        rows = (grid.rows[defense].reference, defense)
        alone, together = (
            _gaps(*(grid.best_finetuning(row, tasks, few) for row in rows)) for few in (frozenset({default}), family)
        )
        if undone := gap_by_seed(alone, together):
            found[default] = (mean(list(alone.values())), mean(list(together.values())), undone)
    return found


def _gaps(first: BestAttacks | None, second: BestAttacks | None) -> dict[int, float]:
    """How far the first ends above the second, in points by seed."""
    return differences_by_seed(mean_points(first), mean_points(second))


def _ahead(
    grid: Grid,
    defense: str,
    tasks: Sequence[str],
    attacks: Attacks,
    some: Sequence[TrainedWeights],
    others: Sequence[TrainedWeights],
) -> tuple[dict[int, float], dict[int, float]]:
    """How far attacks that train `some` weights end above those that train `others`: here, and on the reference.

    In points by seed; empty where the row has no attacks of one kind.
    """
    own, usual = (
        _gaps(*(grid.best_finetuning(row, tasks, attacks & grid.training(*weights)) for weights in (some, others)))
        for row in (defense, grid.rows[defense].reference)
    )
    return own, usual


def _beyond(own: Mapping[int, float], usual: Mapping[int, float]) -> Interval | None:
    """The smaller of two gaps: the row's own, and that gap less the reference's."""
    beyond = {seed: gap - usual[seed] for seed, gap in own.items() if seed in usual}
    found = [mean_by_seed(own), mean_by_seed(beyond)]
    return weakest([gap for gap in found if gap is not None]) if own else None


def costs(grid: Grid, defense: str, tasks: Sequence[str]) -> Mapping[str, Mapping[float, Multiple]]:
    """Cost to break by whichever attack trains; see `cost_to_break`."""
    return median_costs(itertools.chain.from_iterable(broken(grid, defense, tasks).values()))


def broken(grid: Grid, defense: str, tasks: Sequence[str]) -> dict[int, list[Broken]]:
    """By seed: what the cost to break is computed from on each task."""
    reference, training = grid.rows[defense].reference, grid.within(grid.ranking) - {NONE}
    starts = grid.best_attacks(reference, tasks, frozenset({NONE})) or {}
    undefended, defended = (grid.candidates(row, tasks, training) for row in (reference, defense))
    return {
        seed: [
            (before, after, points(start.validation))
            for start, before, after in zip(starts[seed], undefended[seed], defended[seed], strict=True)
            if start.validation is not None
        ]
        for seed in sorted(starts.keys() & undefended.keys() & defended.keys())
    }


def authorized_gain(grid: Grid, defense: str, tasks: Sequence[str]) -> Interval | None:
    """Points that the owner's own fine-tuning gains with the secret."""
    tuned, unattacked = (
        mean_points(grid.best_attacks(defense, tasks, attacks)) for attacks in (grid.by_owner(), frozenset({NONE}))
    )
    return gap_by_seed(tuned, unattacked)
