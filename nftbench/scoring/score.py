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
from typing import Literal

from nftbench.contract import Measurement
from nftbench.records.record import Record, Row
from nftbench.scoring.budget_curve import BudgetCurve, budget_curves
from nftbench.scoring.cost_to_break import Multiple, median_costs
from nftbench.scoring.flags import Flag, find
from nftbench.scoring.grid import (
    NONE,
    Grid,
    Level,
    Picks,
    Place,
    PlannedCell,
    arrange,
    final,
    in_points,
    kept_share,
    mean_points,
    points,
    preference,
)
from nftbench.scoring.intervals import Interval, average_by_seed, gap_by_seed, mean, mean_by_seed, weakest
from nftbench.scoring.paper_claims import ClaimResult, examine
from nftbench.scoring.per_attack import AttackRow, catalogue
from nftbench.scoring.side_tables.mask_value import RecoveredRow, recovered_table
from nftbench.scoring.side_tables.merging import MergingRow, merging_table
from nftbench.scoring.side_tables.task_aware import AwareRow, aware_table
from nftbench.scoring.side_tables.text_control import HealedRow, healing_table
from nftbench.scoring.verdicts import judged, misled, ranked, unsettled, with_own_verdict, with_standing
from nftbench.suites.schema import PaperClaim
from nftbench.terms import KNOWLEDGE, OF_UPDATES, Verdict

Kind = Literal["defense", "trivial", "reference"]
Standing = Literal["ranked", "preliminary", "control", "unranked"]
WHOLE = frozenset({"full", "long"})
"""Attacks that train every weight of the release as it is."""
PART = frozenset({"head", "layers", "bitfit", "linear_probe"})
"""Attacks that train some of what those train."""


# ----------------------------------------------------------------------------------------------------------- nouns


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
class Partial:
    """Suppression in a narrowed or unfinished run, by attacks that this row and its reference both have on all of these
    tasks. Those that are missing may be stronger, so it neither ranks nor proves anything."""

    suppression: Interval
    attacks: tuple[str, ...]
    tasks: tuple[str, ...]


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
    partial: Partial | None = None
    """Only where cells are missing for the suppression itself."""
    excess: Interval | None = None
    excess_by_seed: Mapping[int, float] = field(default_factory=dict)
    controls: tuple[str, ...] = ()
    """The rows that it is measured against: its reference, and the trivial defenses that clear the bar with it."""
    excess_over: str | None = None
    """The row that leaves the least excess: the strongest trivial defense, or the reference."""
    beyond_control: Interval | None = None
    """Suppression beyond the matched control that the defense itself names."""
    levels: Mapping[str, Interval | None] = field(default_factory=dict)
    """Suppression against attackers of each knowledge level that attacks on this row use in full."""
    untested: tuple[str, ...] = ()
    """The other levels: what nobody tried is not withstood."""
    adaptive: tuple[str, ...] = ()
    """Attacks written against this defense that ran."""
    tasks: tuple[TaskScore, ...] = ()
    worst_task: TaskScore | None = None
    recipe: str | None = None
    """The single attack that is best over all tasks."""
    recipe_suppression: Interval | None = None
    optimizers: Mapping[str, tuple[Interval, Interval]] = field(default_factory=dict)
    """For each attack that also runs with other optimizers: suppression under the default alone, and under all."""
    part_ahead: Interval | None = None
    """How far training a part of the network ends above training all of it; beyond how far it does on the undefended
    model, if it does there."""
    protected_fraction: float | None = None
    authorized_gain: Interval | None = None
    cost_to_break: Mapping[str, Mapping[float, Multiple]] = field(default_factory=dict)
    """By unit (steps, flops, seconds, memory), then by share of the undefended gain."""
    attacks: tuple[AttackRow, ...] = ()
    """Each attack by itself."""
    seed_spread: float | None = None
    """Standard deviation over base seeds of the suppression."""
    attack_spread: float | None = None
    """Mean standard deviation over the restarts of the picked recipes, on validation."""
    claim_excess: Interval | None = None
    """Excess suppression at the knowledge that the defense's claim names."""
    claim_tested: bool = False
    """An attack within the claim's knowledge fine-tuned the release."""
    claim_covered: bool = False
    """Such attacks used all the knowledge that the claim grants."""
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
    about: str
    """What the suite says of itself."""
    scores: tuple[Score, ...]
    headroom: tuple[Headroom, ...]
    ranking: str
    utility_bar: float
    problems: tuple[str, ...]
    records: int
    planned: int
    aware: tuple[AwareRow, ...] = ()
    """Task-aware defenses, in their own table."""
    merging: tuple[MergingRow, ...] = ()
    """Updates that claim to withstand merging, in theirs."""
    claims: tuple[ClaimResult, ...] = ()
    """What the suite's papers claim, beside what was measured."""
    readings: Mapping[str, Mapping[str, Mapping[str, Interval]]] = field(default_factory=dict)
    """By yardstick, defense and name of the value: means over seeds. Shown, and never part of a score."""
    recovered: tuple[RecoveredRow, ...] = ()
    """Attacks that guess a secret, and what their guesses are worth."""
    healed: tuple[HealedRow, ...] = ()
    """Attacks that prepare on public text, beside training from scratch on the same text."""
    budgets: tuple[BudgetCurve, ...] = ()
    """The best score so far against what has been spent."""
    skips: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By defense and attack: why it was not planned."""
    commands: Mapping[str, int] = field(default_factory=dict)
    """The commands that made the records, the oldest first, with how many each made."""


# --------------------------------------------------------------------------------------------------------- formulas


def level_name(level: Iterable[str]) -> str:
    """What an attacker has beyond the task's data: `method+data`, or the `release alone`."""
    return "+".join(sorted(level, key=KNOWLEDGE.index)) or "release alone"


def _headroom(grid: Grid, reference: str) -> list[Headroom]:
    """Undefended against scratch on each task, means over seeds; decided before any defense is looked at."""
    attacks = grid.within(grid.ranking)
    scratch = attacks & grid.scratch()
    released = attacks - grid.ignoring()
    rows = []
    for task in grid.tasks:
        zero, tuned, fresh = (
            mean_points(grid.picks(reference, [task], chosen) if reference in grid.rows else None)
            for chosen in (frozenset({NONE}), released, scratch)
        )
        gap = gap_by_seed(tuned, fresh)
        kept = gap is None or gap.value > 0
        before, after, alone = (average_by_seed(one) for one in (zero, tuned, fresh))
        rows.append(Headroom(reference, task, before, after, alone, kept))
    return rows


def usable_metrics(grid: Grid, reference: str) -> list[str]:
    """Utility metrics on which the reference beats the floor at every seed: elsewhere there is nothing to retain."""
    measured = {metric: grid.picks(reference, [metric], frozenset({NONE})) for metric in grid.metrics}
    return [
        metric
        for metric, picks in measured.items()
        if not any(above_floor(final(record)) <= 0 for (record,) in (picks or {}).values())
    ]


def above_floor(measurement: Measurement) -> float:
    """Points by which a measurement is better than one of a model that knows nothing."""
    return points(measurement) - in_points(measurement.floor, measurement.higher_is_better)


Utilities = Mapping[str, tuple[Mapping[str, Interval], Interval | None]]
"""By row: the retention of each metric, and that of the row."""


def _utilities(grid: Grid, defense: str) -> tuple[Mapping[str, Interval], Interval | None]:
    """Retention of each metric, and the minimum over metrics within a seed, averaged over seeds."""
    reference = grid.rows[defense].reference
    if reference not in grid.rows:
        return {}, None
    metrics = usable_metrics(grid, reference)
    released, undefended = (grid.picks(row, metrics, frozenset({NONE})) or {} for row in (defense, reference))
    shares = {
        seed: [
            kept_share(final(mine), final(theirs))
            for mine, theirs in zip(released[seed], undefended[seed], strict=True)
        ]
        for seed in sorted(released.keys() & undefended.keys())
    }
    if not shares:
        return {}, None
    by_metric = {metric: mean([kept[index] for kept in shares.values()]) for index, metric in enumerate(metrics)}
    return by_metric, mean([min(kept) for kept in shares.values()])


def _controls(grid: Grid, defense: str, utilities: Utilities) -> list[str]:
    """What a row must beat: its reference, and the trivial defenses with that reference that clear the utility bar.

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
    gaps = {name: gap_by_seed(attacked.get(name, {}), attacked[defense]) for name in controls}
    known = {name: gap for name, gap in gaps.items() if gap is not None}
    return known if len(known) == len(gaps) else {}


def _protected_fraction(undefended: Picks, defended: Picks, scratch: Picks) -> float | None:
    """Σ(A_none - A_d) / Σ(A_none - A_scratch) over tasks and seeds: 0 undefended, 1 no better than starting afresh."""
    seeds = undefended.keys() & defended.keys() & scratch.keys()
    top, taken, most = (
        math.fsum(points(final(record)) for seed in seeds for record in picks[seed])
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


def _best_recipe(grid: Grid, defense: str, tasks: Sequence[str], attacks: Level) -> tuple[str | None, dict[int, float]]:
    """The one attack that is best for all tasks: mean validation score over tasks and seeds, then the maximum."""
    alone = {attack: grid.picks(defense, tasks, frozenset({attack})) for attack in sorted(attacks)}
    ranked = {
        attack: statistics.fmean(preference(record)[0] for picked in picks.values() for record in picked)
        for attack, picks in alone.items()
        if picks
    }
    if not ranked or any(picks is None for picks in alone.values()):
        return None, {}
    best = max(ranked, key=lambda attack: (ranked[attack], attack))
    return best, mean_points(alone[best])


def _without_optimizer(attack: str) -> str:
    name, _, inside = attack.partition("[")
    rest = [part for part in inside.rstrip("]").split(",") if part and not part.startswith("optimizer=")]
    return f"{name}[{','.join(rest)}]" if rest else name


def _part_ahead(grid: Grid, defense: str, tasks: Sequence[str], attacks: Level) -> Interval | None:
    """The smaller of two gaps: to training everything, and to the same gap of the reference."""
    gaps = []
    for row in (defense, grid.rows[defense].reference):
        part, whole = (
            mean_points(grid.best(row, tasks, frozenset(one for one in attacks if one.partition("[")[0] in names)))
            for names in (PART, WHOLE)
        )
        gaps.append({seed: part[seed] - whole[seed] for seed in sorted(part.keys() & whole.keys())})
    own, usual = gaps
    beyond = {seed: gap - usual[seed] for seed, gap in own.items() if seed in usual}
    found = [mean_by_seed(own), mean_by_seed(beyond)]
    return weakest([gap for gap in found if gap is not None]) if own else None


def _optimizers(grid: Grid, defense: str, tasks: Sequence[str], attacks: Level) -> dict[str, tuple[Interval, Interval]]:
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


def _costs(grid: Grid, defense: str, tasks: Sequence[str], attacks: Level) -> dict[str, dict[float, Multiple]]:
    """Cost to break by whichever attack trains."""
    reference = grid.rows[defense].reference
    training = attacks - {NONE}
    starts = grid.picks(reference, tasks, frozenset({NONE})) or {}
    theirs, mine = (grid.tried(row, tasks, training) for row in (reference, defense))
    return median_costs(
        (undefended, defended, points(start.validation))
        for seed in sorted(starts.keys() & theirs.keys() & mine.keys())
        for start, undefended, defended in zip(starts[seed], theirs[seed], mine[seed], strict=True)
        if start.validation is not None
    )


# -------------------------------------------------------------------------------------------------------------- rows


def score(
    records: Sequence[Record],
    *,
    utility_bar: float,
    ranking: frozenset[str],
    about: str = "",
    planned: Sequence[PlannedCell] | None = None,
    claims: Sequence[PaperClaim] = (),
    skips: Sequence[Sequence[str]] = (),
) -> Leaderboard:
    """Score every row of a suite and rank those that may be ranked; look at the suite's `claims`.

    `about` is what the suite says of itself. `planned` names the cells that should be there; without it they are
    inferred from the records. `skips` are defense, attack and reason of what was not planned.
    """
    readings = [record for record in records if record.role == "yardstick"]
    grid, problems = arrange(records, planned, frozenset(ranking), utility_bar)
    versions = _version_problems(list(grid.records.values()))
    headroom = [row for reference in sorted(grid.references()) for row in _headroom(grid, reference)]
    problems += versions + origin_problems(list(grid.records.values())) + _problems(grid, headroom)
    tasks = {
        reference: [row.task for row in headroom if row.reference == reference and row.kept]
        for reference in grid.references()
    }
    utilities = {defense: _utilities(grid, defense) for defense in grid.rows}
    scores = [_score(grid, defense, tasks, utilities) for defense in sorted(grid.rows)]
    scores = judged([_flagged(grid, one, headroom, tasks) for one in scores], bool(versions))
    doubts = unsettled(scores, bool(versions)), misled(scores)
    aware, merging = aware_table(grid, *doubts), merging_table(grid, *doubts)
    scores = [with_own_verdict(one, aware, merging) for one in scores]
    suites = sorted({record.suite for record in grid.records.values()})
    if len(suites) > 1:
        problems.append(f"records of several suites: {', '.join(suites)}")
    return Leaderboard(
        suite=", ".join(suites),
        about=about,
        scores=tuple(ranked([with_standing(one, bool(versions)) for one in scores])),
        headroom=tuple(headroom),
        ranking=level_name(ranking),
        utility_bar=utility_bar,
        problems=tuple(problems),
        records=len(grid.records),
        planned=len(grid.expected),
        aware=aware,
        merging=merging,
        claims=examine(claims, grid, readings),
        readings=_readings(readings),
        recovered=recovered_table(grid, tasks),
        healed=tuple(
            row for one in sorted(grid.rows) for row in healing_table(grid, one, tasks[grid.rows[one].reference])
        ),
        budgets=budget_curves(grid, tasks),
        skips=_by_defense(skips),
        commands=_commands([*grid.records.values(), *readings]),
    )


def _by_defense(skips: Sequence[Sequence[str]]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for defense, attack, reason in skips:
        found.setdefault(defense, {})[attack] = reason
    return found


def _commands(records: Sequence[Record]) -> dict[str, int]:
    made = sorted(
        (str(one.provenance.get("written") or ""), str(one.provenance.get("command") or "")) for one in records
    )
    return dict(Counter(command for _, command in made if command))


def _version_problems(records: Sequence[Record]) -> list[str]:
    sets = {tuple(sorted((record.provenance.get("versions") or {}).items())) for record in records}
    everywhere = {name for versions in sets for name, _ in versions}
    found = {name: {str(dict(versions).get(name)) for versions in sets} for name in everywhere}
    return [
        f"records differ in library versions, so no row is ranked: {name} {', '.join(sorted(versions))}"
        for name, versions in sorted(found.items())
        if len(versions) > 1
    ]


def _readings(records: Sequence[Record]) -> dict[str, dict[str, dict[str, Interval]]]:
    found: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
    for record in sorted(records, key=lambda record: (record.task, record.defense)):
        for name, value in (record.reading.values if record.reading else {}).items():
            row = found.setdefault(record.task, {}).setdefault(record.defense, {})
            row.setdefault(name, {})[record.seed] = value
    return {
        yardstick: {
            defense: {name: mean([by_seed[seed] for seed in sorted(by_seed)]) for name, by_seed in values.items()}
            for defense, values in rows.items()
        }
        for yardstick, rows in found.items()
    }


def origin_problems(records: Sequence[Record]) -> list[str]:
    """Other code or another machine may make another number of the same cell; the reader should know, and judge."""
    hardware = [record.provenance.get("hardware") or {} for record in records]
    found: dict[str, set[str]] = {
        "commit": {_short(record.provenance.get("commit")) for record in records},
        **{name: {str(one.get(name, "unknown")) for one in hardware} for name in ("processor", "gpu", "threads")},
    }
    differing = [f"{name} ({', '.join(sorted(values))})" for name, values in found.items() if len(values) > 1]
    return [f"records differ in {', '.join(differing)}: compare them with care"] if differing else []


def _short(commit: str | None) -> str:
    """`7f9ee86ab0c1`, `7f9ee86ab0c1-dirty`."""
    name, dirty, _ = (commit or "unknown").partition("-dirty")
    return name[:12] + dirty


def _problems(grid: Grid, headroom: Sequence[Headroom]) -> list[str]:
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
        lost = sorted(set(grid.metrics) - set(usable_metrics(grid, reference)))
        problems += [f"utility metric {metric} is left out: {reference} does not beat its floor" for metric in lost]
        if not any(place.defense == reference and place.attack in grid.scratch() for place in grid.expected):
            problems.append(f"no scratch row beside {reference}: headroom is not known")
    return problems


def _score(
    grid: Grid,
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
        adaptive=_adaptive(grid, defense),
    )
    if reference not in grid.rows:
        return blank
    attacks = grid.within(grid.ranking)
    mine, undefended = (grid.best(name, tasks, attacks) or {} for name in (defense, reference))
    scratch = grid.picks(reference, tasks, attacks & grid.scratch()) or {}
    zero = mean_points(grid.picks(defense, tasks, frozenset({NONE})))
    attacked, theirs = mean_points(mine), mean_points(undefended)
    by_seed = {seed: theirs[seed] - attacked[seed] for seed in sorted(theirs.keys() & attacked.keys())}
    own_attacks = attacks - grid.ignoring() - {NONE}
    recipe, recipe_scores = _best_recipe(grid, defense, tasks, own_attacks)
    task_scores = tuple(_task_score(grid, defense, task, attacks) for task in tasks)
    measured = [task for task in task_scores if task.suppression is not None]
    suppression = gap_by_seed(theirs, attacked)
    levels = _levels(grid)
    tested = [level for level in levels if level == grid.ranking or kind == "reference" or grid.tested(defense, level)]
    scored = replace(
        blank,
        unattacked=mean_by_seed(zero),
        attacked=mean_by_seed(attacked),
        gain=gap_by_seed(attacked, zero),
        suppression=suppression,
        suppression_by_seed=by_seed,
        partial=_partial(grid, defense, tasks, attacks) if suppression is None else None,
        levels={level_name(level): _suppression(grid, defense, tasks, grid.within(level)) for level in tested},
        untested=tuple(level_name(level) for level in levels if level not in tested),
        attacks=catalogue(grid, defense, tasks),
        tasks=task_scores,
        worst_task=min(measured, key=lambda one: one.suppression.value if one.suppression else 0.0, default=None),
        recipe=recipe,
        recipe_suppression=gap_by_seed(_best_recipe(grid, reference, tasks, own_attacks)[1], recipe_scores),
        optimizers=_optimizers(grid, defense, tasks, own_attacks),
        part_ahead=_part_ahead(grid, defense, tasks, own_attacks),
        protected_fraction=_protected_fraction(undefended, mine, scratch),
        authorized_gain=gap_by_seed(mean_points(grid.picks(defense, tasks, grid.secret())), zero),
        cost_to_break=_costs(grid, defense, tasks, attacks),
        seed_spread=statistics.stdev(by_seed.values()) if len(by_seed) > 1 else None,
        attack_spread=_attack_spread(mine),
    )
    if kind != "defense":
        return scored
    controls = _controls(grid, defense, utilities)
    return _with_claim(grid, _with_excess(grid, scored, tasks, controls), tasks, controls)


def _with_excess(grid: Grid, score: Score, tasks: Sequence[str], controls: Sequence[str]) -> Score:
    attacked = _attacked(grid, [score.defense, *controls, score.row.control], tasks, grid.within(grid.ranking))
    gaps, own = _excess(attacked, score.defense, controls), attacked[score.defense]
    control = score.row.control
    beyond = gap_by_seed(attacked[control], own) if control in attacked else None
    if not gaps:
        return replace(score, controls=tuple(controls), beyond_control=beyond)
    over = min(gaps, key=lambda name: gaps[name].value)
    return replace(
        score,
        controls=tuple(controls),
        excess=weakest(list(gaps.values())),
        excess_over=over,
        excess_by_seed={seed: attacked[over][seed] - own[seed] for seed in sorted(own.keys() & attacked[over].keys())},
        beyond_control=beyond,
    )


def _claimed_attacks(grid: Grid, row: Row) -> Level:
    """The attacks that a row's claim is judged against; none without a claim.

    The method is public, so that a claim that does not speak of it has to stand without a secret of this kind.
    """
    if row.claim is None:
        return frozenset()
    return grid.within(frozenset(row.claim.knowledge) | {"method"}, row.claim.adaptation)


def _with_claim(grid: Grid, score: Score, tasks: Sequence[str], controls: Sequence[str]) -> Score:
    """Excess suppression of the attackers whom the defense claims to withstand, and whether there was one."""
    claim = score.row.claim
    if claim is None:
        return score
    attacks = _claimed_attacks(grid, score.row)
    gaps = _excess(_attacked(grid, [score.defense, *controls], tasks, attacks), score.defense, controls)
    tested = any(
        place.defense == score.defense and place.attack in attacks and place.task in tasks and place not in grid.faults
        for place, record in grid.records.items()
        if record.trains and record.uses_release
    )
    return replace(
        score,
        claim_excess=weakest(list(gaps.values())) if gaps else None,
        claim_tested=tested,
        claim_covered=grid.tested(score.defense, frozenset(claim.knowledge), claim.adaptation),
    )


def _picked(grid: Grid, defense: str, tasks: Sequence[str], attacks: Level) -> list[Record]:
    picks = grid.picks(defense, tasks, attacks) or {}
    return [record for seed in sorted(picks) for record in picks[seed]]


def _adaptive(grid: Grid, defense: str) -> tuple[str, ...]:
    """The attacks written against this defense that ran to an end; the owner's own is none."""
    name = defense.partition("[")[0]
    against = {attack for attack, record in grid.attacks.items() if name in record.against} - grid.secret()
    ran = {place.attack for place in grid.records.keys() - grid.faults.keys() if place.defense == defense}
    return tuple(sorted(against & ran))


def _attacked(
    grid: Grid, defenses: Sequence[str | None], tasks: Sequence[str], attacks: Level
) -> dict[str, dict[int, float]]:
    return {name: mean_points(grid.best(name, tasks, attacks)) for name in defenses if name in grid.rows and name}


def _suppression(grid: Grid, defense: str, tasks: Sequence[str], attacks: Level) -> Interval | None:
    reference = grid.rows[defense].reference
    attacked = _attacked(grid, [defense, reference], tasks, attacks)
    return gap_by_seed(attacked[reference], attacked[defense])


def _partial(grid: Grid, defense: str, tasks: Sequence[str], attacks: Level) -> Partial | None:
    """Suppression as if only that had been planned which this row and its reference both have.

    None where a cell of theirs failed: the strongest attack may have been that one.
    """
    reference, ignoring = grid.rows[defense].reference, grid.ignoring()

    def places(attack: str, unit: tuple[str, int]) -> set[Place]:
        return {Place(row, attack, *unit) for row in ({reference} if attack in ignoring else {defense, reference})}

    units = [(task, seed) for task in tasks for seed in grid.seeds[defense]]
    recorded, failed = grid.records.keys() - grid.faults.keys(), grid.records.keys() & grid.faults.keys()
    if any(places(attack, unit) & failed for attack in attacks for unit in units):
        return None
    have = {attack: {unit for unit in units if places(attack, unit) <= recorded} for attack in attacks}
    known = [(attack, grid.attacks[attack]) for attack in attacks if attack in grid.attacks]
    tuned = {unit for attack, record in known if record.trains and record.uses_release for unit in have[attack]}
    shared = frozenset(attack for attack in attacks if have[attack] >= tuned)
    narrow = frozenset(place for attack in shared for unit in tuned for place in places(attack, unit))
    covered = sorted({task for task, _ in tuned})
    attacked = _attacked(replace(grid, expected=narrow), [defense, reference], covered, shared)
    gap = gap_by_seed(attacked[reference], attacked[defense])
    return Partial(gap, tuple(sorted(shared)), tuple(covered)) if gap else None


def _levels(grid: Grid) -> list[Level]:
    """The knowledge levels that attacks or claims name, the owner's secret apart; those who know least first."""
    named = [frozenset(record.knowledge) for record in grid.attacks.values() if record.adaptation not in OF_UPDATES]
    claims = [row.claim for row in grid.rows.values() if row.claim]
    named += [frozenset(claim.knowledge) for claim in claims if claim.adaptation not in OF_UPDATES]
    levels = {level for level in [*named, grid.ranking] if "secret" not in level}
    return sorted(levels, key=lambda level: (len(level), level_name(level)))


def _task_score(grid: Grid, defense: str, task: str, attacks: Level) -> TaskScore:
    mine, theirs = (grid.best(row, [task], attacks) for row in (defense, grid.rows[defense].reference))
    zero = mean_by_seed(mean_points(grid.picks(defense, [task], frozenset({NONE}))))
    undefended = mean_by_seed(mean_points(theirs))
    picked = Counter(record.attack for (record,) in (mine or {}).values())
    return TaskScore(
        task=task,
        unattacked=zero.value if zero else None,
        attacked=mean_by_seed(mean_points(mine)),
        undefended=undefended.value if undefended else None,
        suppression=gap_by_seed(mean_points(theirs), mean_points(mine)),
        attack=max(sorted(picked), key=picked.__getitem__) if picked else None,
    )


def _incomplete(grid: Grid, defense: str, utilities: Utilities) -> list[str]:
    """Places without a result, in this row and in those that its numbers are measured against.

    A planned defense of which nothing has been recorded may be one of them.
    """
    controls = _controls(grid, defense, utilities)
    rows = {defense, *controls, *(grid.seeds.keys() - grid.rows.keys())}
    faults = sorted(grid.faults.items(), key=lambda fault: (fault[0].defense != defense, fault[0]))
    found = [f"{place}: {fault}" for place, fault in faults if place.defense in rows]
    return found if grid.rows[defense].reference in grid.rows or found else [f"{controls[0]}: no records"]


# ----------------------------------------------------------------------------------------------------------- flags


def _flagged(grid: Grid, score: Score, headroom: Sequence[Headroom], kept: Mapping[str, Sequence[str]]) -> Score:
    picked: list[Record] = []
    claimed: list[Record] = []
    if score.row.reference in grid.rows:
        tasks = kept[score.row.reference]
        picked = _picked(grid, score.defense, tasks, grid.within(grid.ranking))
        claimed = _picked(grid, score.defense, tasks, _claimed_attacks(grid, score.row))
    # An attack without any record is missing everywhere; whether it uses the release is not known either.
    reference, applied = score.row.reference, grid.within(grid.ranking) & grid.attacks.keys() - grid.ignoring()
    mine, theirs = (
        {place.attack for place in grid.expected if place.defense == row} for row in (score.defense, reference)
    )
    return replace(
        score,
        flags=find(
            score,
            skipped=sorted((theirs - mine) & applied),
            records=[record for place, record in sorted(grid.records.items()) if place.defense == score.defense],
            picked=picked,
            claimed=claimed,
            headroom=[row for row in headroom if row.reference == score.defense],
            utility_bar=grid.utility_bar,
        ),
    )
