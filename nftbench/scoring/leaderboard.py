"""Computes a leaderboard from records: the score, verdict and rank of every defense, and the side tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

from nftbench.records.record import CellId, Record
from nftbench.records.spec import Spec
from nftbench.scoring import flags
from nftbench.scoring.added_attacks import AddedAttack, added_attacks
from nftbench.scoring.budget_curve import BudgetCurve, budget_curves
from nftbench.scoring.claims import claim_test, claimed_attacks
from nftbench.scoring.grid import NONE, Attacks, Grid, Knowledge, arrange, called, knowledge_name
from nftbench.scoring.headroom import headroom
from nftbench.scoring.intervals import holm
from nftbench.scoring.ladder import Ladder, curves, excess, ladder as built, met_by_all
from nftbench.scoring.per_attack import per_attack
from nftbench.scoring.provenance import NOT_RECORDED, Provenance, provenance, short
from nftbench.scoring.resistance import adaptive, authorized_gain, by_knowledge, costs, recipes, resistance
from nftbench.scoring.scores import ByKnowledge, ClaimTest, Curve, Excess, Headroom, Kind, Score
from nftbench.scoring.side_tables import SIDE_TABLES, SideTable, SuiteEvidence
from nftbench.scoring.utility import Scale, noisy, scales, usable, utility
from nftbench.scoring.verdicts import judged, ranked, with_side_verdict, with_standing
from nftbench.suites.schema import Family, PaperClaim

NO_LADDER: Mapping[str, Family] = MappingProxyType({})
NO_ATTACKS: Mapping[str, Sequence[str]] = MappingProxyType({})
NONE_DROPPED: Mapping[str, int] = MappingProxyType({})
AnyTable = TypeVar("AnyTable", bound=SideTable)


@dataclass(frozen=True)
class Rules:
    """The suite's rules for the ranking."""

    ranking: str
    """The knowledge of the attackers in the ranking, in words."""


@dataclass(frozen=True)
class Origin:
    """What the leaderboard was made from."""

    records: int
    """Cells that have a record, those of yardsticks included."""
    planned: int
    """Cells that should have one."""
    readings: int = 0
    """How many of the records are a yardstick's."""
    skips: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By defense and attack: why it was not planned."""
    commands: Mapping[str, int] = field(default_factory=dict)
    """The commands that made the records, the oldest first, with how many each made."""
    provenance: Provenance = field(default_factory=Provenance)


@dataclass(frozen=True)
class Leaderboard:
    """Every row of a suite: ranked ones first, then preliminary ones, controls, and those that are not ranked."""

    suite: str
    about: str
    """The suite's description of itself."""
    rules: Rules
    scores: tuple[Score, ...]
    headroom: tuple[Headroom, ...]
    problems: tuple[str, ...]
    """What the reader must know of the suite as a whole."""
    origin: Origin
    ladder: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The ladder's families of trivial defenses: their rows, the weakest dose first."""
    frontier: tuple[Curve, ...] = ()
    """The curves of the ladder's families on each metric, at the ranking's knowledge; none where a dose is missing."""
    side_tables: tuple[SideTable, ...] = ()
    """In the order of `SIDE_TABLES`."""
    budgets: tuple[BudgetCurve, ...] = ()
    """The best score so far against what has been spent."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Short names that the suite gives to rows, by specification."""
    own_labels: Mapping[str, str] = field(default_factory=dict)
    """Short names that defenses give to themselves, by specification."""
    added_defenses: tuple[str, ...] = ()
    """Names of the defenses that do not come with nftbench."""
    added_attacks: tuple[AddedAttack, ...] = ()
    """What attacks from outside suite and nftbench add."""

    def side_table(self, kind: type[AnyTable]) -> AnyTable:
        """The side table of this kind."""
        return next(table for table in self.side_tables if isinstance(table, kind))


def score(
    records: Sequence[Record],
    *,
    ranking: Knowledge,
    ladder: Mapping[str, Family] = NO_LADDER,
    initialisations: Sequence[str] = (),
    about: str = "",
    planned: Sequence[CellId] | None = None,
    claims: Sequence[PaperClaim] = (),
    skips: Sequence[Sequence[str]] = (),
    added: Sequence[str] = (),
    left_out: Mapping[str, Sequence[str]] = NO_ATTACKS,
    dropped: Mapping[str, int] = NONE_DROPPED,
    side_tables: Sequence[type[SideTable]] = SIDE_TABLES,
) -> Leaderboard:
    """Score every row of a suite and rank those that may be ranked.

    `ladder` are the suite's families of trivial defenses by name, and `initialisations` the rows that pre-train the
    reference again from other initial weights; their specs are written as in records. `about` is the suite's
    description of itself, and `claims` are its papers' claims. `planned` names the cells that should have records;
    without it, they are inferred from the records. `skips` are (defense, attack, reason) of attacks that were not
    planned. `added` names the attacks that came from outside suite and nftbench: they count against defenses alone, and
    not on the rows that these are compared with. `left_out` names, by defense, nftbench's attacks that were written
    against it, where the plan has none of them. `dropped` says, by defense, how many other versions of it had results
    on the same grammars. `side_tables` are the tables to show beside the ranking.
    """
    readings = [record for record in records if record.role == "yardstick"]
    grid, problems = arrange(records, planned, frozenset(ranking), ladder, initialisations, added)
    grid = replace(grid, left_out=left_out, dropped=dropped)
    versions = _version_problems(list(grid.records.values()))
    room = [row for reference in sorted(grid.references()) for row in headroom(grid, reference)]
    tasks = {
        reference: [row.task for row in room if row.reference == reference and row.kept]
        for reference in grid.references()
    }
    metrics = {reference: scales(grid, reference) for reference in grid.references()}
    ladders = _Ladders(grid, tasks, {reference: usable(found) for reference, found in metrics.items()})
    beside = [
        ladders.of(reference, grid.within(grid.ranking)) for reference in sorted(grid.references() & grid.rows.keys())
    ]
    problems += versions + origin_problems(list(grid.records.values())) + _problems(grid, room, metrics)
    problems += [one.reason for one in beside if one.reason and one.doses]
    mixed = bool(versions)
    scores = judged(_scores(grid, ladders, room), mixed, side_tables)
    evidence = SuiteEvidence(
        grid,
        tasks,
        readings,
        claims,
        unjudged=frozenset(one.defense for one in scores if mixed or one.incomplete),
        misleading=frozenset(one.defense for one in scores if flags.is_misleading(one)),
        flagged={one.defense: frozenset(flag.name for flag in one.flags) for one in scores},
        keeping=frozenset(one.defense for one in scores if one.utility.badge == "keeps"),
        excess=ladders.claimed,
    )
    tables = tuple(table.of(evidence) for table in side_tables)
    scores = [with_standing(with_side_verdict(one, tables), mixed, tables) for one in scores]
    suites = sorted({record.suite for record in grid.records.values()})
    if len(suites) > 1:
        problems.append(f"records of several suites: {', '.join(suites)}")
    return Leaderboard(
        suite=", ".join(suites),
        about=about,
        rules=Rules(knowledge_name(ranking)),
        scores=tuple(ranked(scores)),
        headroom=tuple(room),
        problems=tuple(problems),
        origin=Origin(
            records=len(grid.records) + len(readings),
            planned=len(grid.expected) + len(readings),
            readings=len(readings),
            skips=_by_defense(skips),
            commands=_commands([*grid.records.values(), *readings]),
            provenance=provenance([*grid.records.values(), *readings]),
        ),
        ladder={name: family.doses for name, family in ladder.items()},
        frontier=tuple(curve for one in beside for curve in curves(one)),
        side_tables=tables,
        budgets=budget_curves(grid, tasks),
        added_attacks=added_attacks(grid, tasks),
    )


# -------------------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class _Ladders:
    """The ladder of each reference as each set of attacks finds it, made once."""

    grid: Grid
    tasks: Mapping[str, Sequence[str]]
    """The tasks with headroom, by reference."""
    metrics: Mapping[str, Mapping[str, Scale]]
    """The utility metrics that count, by reference."""
    made: dict[tuple[str, tuple[str, ...], Attacks], Ladder] = field(default_factory=dict)

    def of(self, reference: str, attacks: Attacks, tasks: Sequence[str] | None = None) -> Ladder:
        """On these tasks, or on all with headroom."""
        asked = (reference, tuple(self.tasks[reference] if tasks is None else tasks), attacks)
        if asked not in self.made:
            self.made[asked] = built(self.grid, reference, asked[1], attacks, self.metrics[reference])
        return self.made[asked]

    def excess(self, defense: str, tasks: Sequence[str], attacks: Attacks) -> Excess:
        """Of a row on these tasks, also where its reference lacks records."""
        reference = self.grid.rows[defense].reference
        if reference not in self.grid.rows:
            return Excess(reason=f"{called(reference)} has no records")
        return excess(self.grid, defense, tasks, attacks, self.of(reference, attacks, tasks))

    def claimed(self, defense: str, tasks: Sequence[str], attacks: Attacks) -> Excess:
        """The excess by which a claim is judged.

        Its upper end is at least that under the attacks which every dose met: a dose that met fewer looks harder to
        train than it is, and would refute rows by that alone.
        """
        found = self.excess(defense, tasks, attacks)
        if found.interval is None:
            return found
        few = met_by_all(self.grid, self.of(self.grid.rows[defense].reference, attacks, tasks).doses, tasks, attacks)
        if few == attacks:
            return found
        alike = self.excess(defense, tasks, few).interval
        high = max(found.interval.high, alike.high if alike else math.inf)
        return replace(found, interval=replace(found.interval, high=high))


def _scores(grid: Grid, ladders: _Ladders, room: Sequence[Headroom]) -> list[Score]:
    """Every row with its numbers and flags. Rows that only measure the reference's utility again are none."""
    alone = {row for row in grid.initialisations if grid.attacks_on(row) <= {NONE}}
    scores = [_score(grid, defense, ladders) for defense in sorted(grid.rows.keys() - alone)]
    tested = [one for one in scores if one.kind == "defense" and one.excess.interval and one.excess.interval.count > 1]
    p_values = holm([one.excess.interval.p for one in tested if one.excess.interval])
    adjusted = {one.defense: p for one, p in zip(tested, p_values, strict=True)}
    return [
        replace(one, flags=flags.find(_evidence(grid, one, ladders.tasks, room, adjusted.get(one.defense))))
        for one in scores
    ]


def _score(grid: Grid, defense: str, ladders: _Ladders) -> Score:
    """One row; nothing but its utility is known where its reference has no records."""
    row = grid.rows[defense]
    kind: Kind = "reference" if defense in grid.references() else "trivial" if row.trivial else "defense"
    blank = Score(
        defense,
        kind,
        row,
        incomplete=tuple(_incomplete(grid, defense)),
        by_knowledge=ByKnowledge(adaptive=adaptive(grid, defense)),
        excess=Excess(reason=f"{called(row.reference)} has no records"),
    )
    if row.reference not in grid.rows:
        return blank
    tasks, ranking = ladders.tasks[row.reference], grid.within(grid.ranking)
    return replace(
        blank,
        utility=utility(grid, defense, ladders.metrics[row.reference]),
        resistance=resistance(grid, defense, tasks),
        by_knowledge=by_knowledge(grid, defense, tasks),
        recipes=recipes(grid, defense, tasks),
        excess=ladders.excess(defense, tasks, ranking),
        authorized_gain=authorized_gain(grid, defense, tasks),
        cost_to_break=costs(grid, defense, tasks),
        attacks=per_attack(grid, defense, tasks),
        claim=_claim_test(grid, defense, ladders) if kind == "defense" and row.claim else ClaimTest(),
    )


def _claim_test(grid: Grid, defense: str, ladders: _Ladders) -> ClaimTest:
    row = grid.rows[defense]
    tasks = ladders.tasks[row.reference]
    return claim_test(grid, defense, tasks, ladders.claimed(defense, tasks, claimed_attacks(grid, row)).interval)


def _incomplete(grid: Grid, defense: str) -> list[str]:
    """Cells without a result, of this row and of its reference. Those of the ladder are said with its excess."""
    rows = {defense, grid.rows[defense].reference}
    faults = sorted(grid.faults.items(), key=lambda fault: (fault[0].defense != defense, fault[0]))
    found = [f"{cell}: {fault}" for cell, fault in faults if cell.defense in rows and cell.attack not in grid.added]
    reference = grid.rows[defense].reference
    return found if reference in grid.rows or found else [f"{reference}: no records"]


def _evidence(
    grid: Grid, score: Score, by_reference: Mapping[str, Sequence[str]], room: Sequence[Headroom], p: float | None
) -> flags.RowEvidence:
    """What the flags of a row are read from."""
    ranking, row = grid.within(grid.ranking), score.row
    tasks = by_reference[row.reference]
    on_ladder = any(score.defense in family.doses for family in grid.ladder.values())
    # An attack without any record may ignore the release, so it is not counted as skipped. Nor is an added attack,
    # which does not count on the reference: its author could decline any row.
    applied = ranking & grid.attacks.keys() - grid.ignoring_release() - grid.added
    known = row.reference in grid.rows
    return flags.RowEvidence(
        score,
        records=grid.records_of(score.defense),
        reference=grid.records_of(row.reference),
        # Nor does it raise a doubt, by saying of itself that it was not at its best. It can only lower the score.
        best=_best(grid, score.defense, tasks, ranking - grid.added) if known else [],
        best_claimed=_best(grid, score.defense, tasks, claimed_attacks(grid, row) - grid.added) if known else [],
        headroom=[one for one in room if one.reference == score.defense],
        skipped=[]  # a dose is given few attacks by the suite
        if on_ladder
        else sorted((grid.attacks_on(row.reference) - grid.attacks_on(score.defense)) & applied),
        p=p,
        left_out=grid.left_out.get(Spec.parse(score.defense).name, ()),
        dropped=grid.dropped.get(Spec.parse(score.defense).name, 0),
        same_weights=sorted(name for name in grid.rows if name != score.defense and _same(grid, name, score.defense)),
    )


def _same(grid: Grid, one: str, other: str) -> bool:
    """Whether both rows release the same weights and configuration on every base seed that both have.

    What is unknown is not the same.
    """
    shared = set(grid.seeds[one]) & set(grid.seeds[other])
    first, second = (grid.released.get(row, {}) for row in (one, other))
    return bool(shared) and all(seed in first and first[seed] == second.get(seed) for seed in shared)


def _best(grid: Grid, defense: str, tasks: Sequence[str], attacks: Attacks) -> list[Record]:
    best = grid.best_attacks(defense, tasks, attacks) or {}
    return [record for seed in sorted(best) for record in best[seed]]


# ---------------------------------------------------------------------------------------------------------- the suite


def _problems(grid: Grid, room: Sequence[Headroom], metrics: Mapping[str, Mapping[str, Scale]]) -> list[str]:
    """What the reader must know of the suite as a whole."""
    problems = [
        f"{row.task} is left out: undefended {row.undefended:.1f} is not clearly better than scratch {row.scratch:.1f}"
        for row in room
        if not row.kept
    ]
    known = {row.reference for row in room if row.gap is not None}
    problems += [
        f"{row.task} has no scratch: its headroom is not known"
        for row in room
        if row.gap is None and row.reference in known
    ]
    for reference in sorted(grid.references()):
        if reference not in grid.rows:
            problems.append(f"{called(reference)} has no records: rows measured against it have no score")
            continue
        lost = sorted(name for name, scale in metrics[reference].items() if not scale.usable)
        problems += [
            f"utility metric {metric} is left out: {called(reference)} does not beat its floor" for metric in lost
        ]
        problems += [
            f"utility metric {metric} is noisy: its standard error is {share:.0%} of what {called(reference)} knows"
            for metric, share in noisy(grid, reference, metrics[reference]).items()
        ]
        if not grid.attacks_on(reference) & grid.from_scratch():
            problems.append(f"no scratch row beside {called(reference)}: headroom is not known")
    return problems


def _version_problems(records: Sequence[Record]) -> list[str]:
    sets = {tuple(sorted((record.provenance.get("versions") or {}).items())) for record in records}
    everywhere = {name for versions in sets for name, _ in versions}
    found = {name: {str(dict(versions).get(name)) for versions in sets} for name in everywhere}
    return [
        f"records differ in library versions, so no row is ranked: {name} {', '.join(sorted(versions))}"
        for name, versions in sorted(found.items())
        if len(versions) > 1
    ]


def origin_problems(records: Sequence[Record]) -> list[str]:
    """Differences of commit and machine, which may make other numbers of the same cell."""
    hardware = [record.provenance.get("hardware") or {} for record in records]
    found: dict[str, set[str]] = {
        "commit": {short(record.provenance.get("commit") or NOT_RECORDED) for record in records},
        **{name: {str(one.get(name, NOT_RECORDED)) for one in hardware} for name in ("processor", "gpu", "threads")},
    }
    differing = [f"{name} ({', '.join(sorted(values))})" for name, values in found.items() if len(values) > 1]
    return [f"records differ in {', '.join(differing)}: compare them with care"] if differing else []


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
