"""Releases that look protected and are not: none may be ranked with an effect, and some attack must break each.

Shams are plugins: defenses that rescale weights, hide behind hooks or lower the loss. They are attacked on one task, by
attacks that know the release alone or the method too. An attack breaks a sham if two things hold. It ends within noise
of where it ends on the undefended model: the interval of the difference covers zero. And it reaches nine tenths of the
strongest attack's gain there, since with few seeds an interval covers much. It need not end within noise of the
strongest attack: on the undefended model itself no single attack is the strongest everywhere. A sham that loses
utility protects nothing, broken or not; the finding says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from nftbench.calibration import derived
from nftbench.calibration.proof import Finding, Run, ranked_with_effect
from nftbench.errors import NftbenchError
from nftbench.planning import registry
from nftbench.planning.specs import canonical
from nftbench.scoring import Score
from nftbench.scoring.grid import NONE, Grid
from nftbench.scoring.intervals import Interval, gap_by_seed
from nftbench.scoring.points import mean_points
from nftbench.scoring.table import UNKNOWN, Table, interval
from nftbench.suites.schema import Suite
from nftbench.terms import OF_UPDATES

KNOWLEDGE = frozenset({"method"})
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
    """The shams beside the undefended model and the trivial defenses, on the suite's first task.

    Raises:
        NftbenchError: no sham is named.
    """
    if not rows:
        raise NftbenchError("--proof shams: name them with --shams FOLDER or --plugin FILE")
    few = derived.chosen(attacks, _catalogue(suite))
    return derived.derive(
        suite,
        "shams",
        defenses=derived.distinct(["none"], derived.trivial(suite), rows),
        attacks=derived.distinct(["none"], few),
        tasks=suite.tasks[:1],
        **derived.with_ladder(suite, few),
        ranking=derived.knowledge(few),
    )


def _catalogue(suite: Suite) -> list[str]:
    """The attacks to try on shams: those of the suite, and all others with default parameters.

    Left out are attacks that do not train, ignore the release, know more than the method or need a released update.
    """
    specs = [str(canonical("attacks", text)) for text in (*suite.attacks, *registry.available("attacks"))]
    plugins = {spec: registry.create("attacks", spec) for spec in specs}
    return [
        spec
        for spec, one in plugins.items()
        if one.trains and one.uses_release and one.knowledge <= KNOWLEDGE and one.adaptation not in OF_UPDATES
    ]


def judge(suite: Suite, run: Run) -> Finding:
    """Judge every sham, and say which attacks break it."""
    grid, board = run.grid(), run.board()
    if any(cell.defense == "none" for cell in grid.faults):
        return Finding(run.suite.name, failures=(run.missing,))
    shams = [_sham(run, grid, one) for one in board.scores if one.kind == "defense"]
    failures = [
        f"{one.row} is taken for a defense: {one.standing}, excess {interval(one.excess)}"
        for one in shams
        if one.taken_for_a_defense
    ]
    failures += [f"no attack breaks {one.row}" for one in shams if not one.breakers and not one.useless]
    notes = [f"no attack breaks {one.row}, which loses utility" for one in shams if _only_useless(one)]
    notes += [run.missing] if run.missing else []
    numbers = {"shams": [asdict(one) | {"breakers": one.breakers} for one in shams]}
    found = (_rows(shams), _attacks(shams))
    return Finding(run.suite.name, found, numbers, tuple(failures), tuple(notes))


def _only_useless(sham: Sham) -> bool:
    return sham.useless and not sham.breakers


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
        "Shams: each must be unranked or without an effect, and broken by some attack",
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
