"""Releases that look protected and are not: none may be ranked with an excess above zero.

Shams are plugins: defenses that rescale weights, hide behind hooks or train on what is scored. They are attacked as
the suite attacks every row, on all ranked tasks and five seeds; what the referee detects may take a sham out of the
ranking. Attacks that are named besides are no part of the score. They show what would break a sham that the suite's own
attacks do not break; that a sham is held down by a flag alone is a finding too.

An attack breaks a sham if two things hold. It ends within noise of where it ends on the undefended model: the interval
of the difference covers zero. And it reaches nine tenths of the strongest attack's gain there, since with few seeds an
interval covers much. It need not end within noise of the strongest attack: on the undefended model itself no single
attack is the strongest everywhere. A sham that loses utility protects nothing, broken or not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from nftbench.calibration import derived
from nftbench.calibration.proof import Finding, Run, ranked_with_effect
from nftbench.errors import NftbenchError
from nftbench.planning import facts
from nftbench.planning.facts import AttackFacts
from nftbench.planning.specs import canonical
from nftbench.scoring import Score
from nftbench.scoring.grid import NONE, Grid
from nftbench.scoring.intervals import RANKED_SEEDS, Interval, gap_by_seed
from nftbench.scoring.points import mean_points
from nftbench.scoring.table import UNKNOWN, Table, interval
from nftbench.suites.schema import Suite
from nftbench.terms import OF_UPDATES

REGAINED = 0.9
"""The share of the strongest attack's gain on the undefended model that an attack must reach to have broken a sham."""


@dataclass(frozen=True)
class Broken:
    """One attack on one sham, in points: means over tasks, paired by seed."""

    attack: str
    attacked: float
    lacks: Interval
    """How many points less it reaches on the sham than on the undefended model."""
    regained: float
    """Its gain on the sham, as a share of the strongest attack's gain on the undefended model."""

    @property
    def breaks(self) -> bool:
        return self.lacks.low <= 0 and self.regained >= REGAINED


@dataclass(frozen=True)
class Sham:
    """One sham's row, and each attack on it, the strongest first."""

    row: str
    standing: str
    reasons: tuple[str, ...]
    excess: Interval | None
    retention: Interval | None
    verdict: str | None
    useless: bool
    """It loses utility."""
    attacks: tuple[Broken, ...]

    @property
    def breakers(self) -> tuple[str, ...]:
        return tuple(one.attack for one in self.attacks if one.breaks)

    @property
    def taken_for_a_defense(self) -> bool:
        """Ranked with an effect beyond the trivial defenses. The verdict on its claim does not matter here."""
        return ranked_with_effect(self.standing, self.excess)


def derive(suite: Suite, rows: Sequence[str], attacks: Sequence[str]) -> Suite:
    """The shams beside the undefended model and the ladder, under the suite's attacks and those that are named besides.

    Raises:
        NftbenchError: the suite has no ladder, or no sham is named.
    """
    derived.needs_ladder(suite, "shams")
    if not rows:
        raise NftbenchError("--proof shams: name the shams with --shams FOLDER or --plugin FILE")
    own = [text for text in suite.attacks if _counts(facts.attack(text))]
    return derived.derive(
        suite,
        "shams",
        derived.distinct(["none"], derived.chosen((), own), attacks),
        defenses=derived.rows(rows),
        seeds=derived.seeds(suite, RANKED_SEEDS),
    )


def _counts(attack: AttackFacts) -> bool:
    """Whether the ranking counts the attack: it trains a release, or from scratch, without the owner's secret."""
    return attack.trains and "secret" not in attack.knowledge and attack.adaptation not in OF_UPDATES


def judge(suite: Suite, run: Run) -> Finding:
    """Judge every sham by the suite's own attacks, and say which attacks break it."""
    own = {str(canonical("attacks", text)) for text in suite.attacks}
    grid, board = run.grid(), run.by(own).board()
    if any(cell.defense == "none" for cell in grid.faults):
        return Finding(run.suite.name, failures=(run.missing,))
    shams = [_sham(run, grid, one) for one in board.scores if one.kind == "defense"]
    failures = [
        f"{one.row} is taken for a defense: {one.standing}, excess {interval(one.excess)}"
        for one in shams
        if one.taken_for_a_defense
    ]
    notes = [note for one in shams if (note := _weakness(one, own))]
    notes += [run.missing] if run.missing else []
    numbers = {"shams": [asdict(one) | {"breakers": one.breakers} for one in shams]}
    found = (_rows(shams), _attacks(shams))
    return Finding(run.suite.name, found, numbers, tuple(failures), tuple(notes))


def _weakness(sham: Sham, own: Collection[str]) -> str | None:
    """What the benchmark owes to luck, or to a flag, about a sham that it does not take for a defense."""
    if sham.reasons and sham.excess is not None and sham.excess.low > 0:
        return f"{sham.row}: unranked, or its excess would be {interval(sham.excess)}: {'; '.join(sham.reasons)}"
    if any(attack in own for attack in sham.breakers):
        return None
    if sham.breakers:
        return f"{sham.row}: broken by {', '.join(sham.breakers)} alone, which the suite does not run"
    if sham.useless:
        return f"{sham.row}: no attack breaks it, and it loses utility"
    held = f"a flag alone unranks it: {sham.reasons[0]}" if sham.reasons else "it is ranked without an effect"
    return f"{sham.row}: no attack breaks it; {held}"


def _sham(run: Run, grid: Grid, score: Score) -> Sham:
    return Sham(
        row=score.defense,
        standing=score.standing.group,
        reasons=score.standing.reasons,
        excess=score.excess.interval,
        retention=score.utility.retention,
        verdict=score.claim.verdict,
        useless=score.utility.badge == "loses",
        attacks=tuple(_broken(run, grid, score.defense)),
    )


def _broken(run: Run, grid: Grid, row: str) -> list[Broken]:
    """The attacks that have a result on every task and seed, the strongest first."""
    strongest = run.attacked("none")
    start, end = fmean(_ends(run, grid, "none", NONE).values()), fmean(strongest.values())
    found = []
    for attack in sorted(grid.within(grid.ranking) - grid.ignoring_release() - {NONE}):
        # `none` is not among them: not training is open to every attack, and breaks nothing.
        attacked, undefended = (_ends(run, grid, one, attack) for one in (row, "none"))
        lacks = gap_by_seed(undefended, attacked)
        if lacks is not None and attacked.keys() == undefended.keys() == strongest.keys():
            value = fmean(attacked.values())
            found.append(Broken(attack, value, lacks, (value - start) / (end - start) if end > start else 0.0))
    return sorted(found, key=lambda one: (-one.attacked, one.attack))


def _ends(run: Run, grid: Grid, row: str, attack: str) -> Mapping[int, float]:
    """By seed: the points that one attack reaches on a row."""
    return mean_points(grid.best_attacks(row, run.tasks, frozenset({attack})))


# ----------------------------------------------------------------------------------------------------------- showing


def _rows(shams: Sequence[Sham]) -> Table:
    return Table(
        "Shams: none may be ranked with an excess above zero",
        ("row", "standing", "excess", "utility %", "claim", "broken by (points)", "why it is not ranked"),
        tuple(
            (one.row, one.standing, interval(one.excess), interval(one.retention, 100),
             one.verdict or UNKNOWN, _breakers(one), "; ".join(one.reasons))
            for one in shams
        ),
    )  # fmt: skip


def _breakers(sham: Sham) -> str:
    breakers = [f"{one.attack} ({one.attacked:.1f})" for one in sham.attacks if one.breaks]
    return ", ".join(breakers) or "nothing"


def _attacks(shams: Sequence[Sham]) -> Table:
    """By attack: the shams that it breaks, and those that withstand it alone."""
    tried: dict[str, dict[str, bool]] = {}
    for sham in shams:
        for one in sham.attacks:
            tried.setdefault(one.attack, {})[sham.row] = one.breaks
    order = sorted(tried, key=lambda attack: (-sum(tried[attack].values()), attack))
    return Table(
        "What each attack breaks",
        ("attack", "breaks", "fails on"),
        tuple(
            (attack, f"{sum(tried[attack].values())} of {len(tried[attack])}",
             ", ".join(row for row, broken in tried[attack].items() if not broken) or UNKNOWN)
            for attack in order
        ),
    )  # fmt: skip
