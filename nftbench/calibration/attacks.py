"""What each attack is worth to the benchmark: a finished run judged again as if one attack had never been planned.

Only records are read. An attack is left out everywhere: on each row, and on the undefended model that rows are compared
with. So a row's suppression may fall as well as rise. The points by which the row's attacked score falls are those that
only this attack reaches; where two attacks reach the same points, leaving out one changes nothing. Beside it stands how
often each attack is the strongest, with the ranking's knowledge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from nftbench.calibration.proof import Finding, Run, only
from nftbench.report.tables import place
from nftbench.scoring import Score
from nftbench.scoring.grid import NONE, Grid
from nftbench.scoring.intervals import Interval
from nftbench.scoring.table import UNKNOWN, Table, number

SHOWN = 0.05
"""Changes of suppression below this, in points, are not shown."""


Pair = tuple[float | None, float | None]


@dataclass(frozen=True)
class Change:
    """A row with every attack, and without one."""

    attack: str
    row: str
    attacked: Pair
    suppression: Pair
    excess: Pair
    verdict: tuple[str | None, str | None]
    place: tuple[str, str]
    """The rank, or what the row is instead."""

    @property
    def alone(self) -> float | None:
        """Points that only this attack reaches on the row."""
        before, after = self.attacked
        return before - after if before is not None and after is not None else None

    @property
    def more(self) -> float | None:
        """Points of suppression that the row would gain without the attack."""
        before, after = self.suppression
        return after - before if before is not None and after is not None else None

    @property
    def shown(self) -> bool:
        moved = self.more is None and self.suppression != (None, None)
        moved = moved or (self.more is not None and abs(self.more) >= SHOWN)
        return moved or len({*self.verdict}) > 1 or len({*self.place}) > 1


def judge(runs: Sequence[Run]) -> Finding:
    """Leave out each attack of a run.

    Raises:
        NftbenchError: not one run.
    """
    run = only(runs, "attacks")
    grid = run.grid()
    trained = sorted({one.attack for one in run.records if one.trains and "secret" not in one.knowledge})
    whole = {one.defense: one for one in run.board().scores}
    changes = [change for attack in trained for change in leave_out(run, attack, whole)]
    strongest = picked(run, grid)
    numbers = {
        "records": len(run.records),
        "strongest": {attack: dict(rows) for attack, rows in strongest.items()},
        "changes": [asdict(one) | {"alone": one.alone, "more": one.more} for one in changes],
    }
    name = f"{run.suite.name}-attacks"
    notes = (run.missing,) if run.missing else ()
    worth = _worth(trained, changes, strongest, run)
    return Finding(name, (worth, _changes(changes)), numbers, notes=notes, verdict=False)


def leave_out(run: Run, attack: str, whole: Mapping[str, Score]) -> list[Change]:
    """Every row with and without an attack; `whole` are the rows with all of them.

    In an unfinished run a row may have no other record; it has no numbers without the attack then.
    """
    rest = {one.defense: one for one in run.without(attack).board().scores}
    found = []
    for row, before in sorted(whole.items()):
        after = rest.get(row)
        found.append(
            Change(
                attack=attack,
                row=row,
                attacked=_values(before, after, lambda one: one.resistance.attacked),
                suppression=_values(before, after, lambda one: one.resistance.suppression),
                excess=_values(before, after, lambda one: one.excess.interval),
                verdict=(before.claim.verdict, after.claim.verdict if after is not None else None),
                place=(_place(before), _place(after)),
            )
        )
    return found


def picked(run: Run, grid: Grid) -> dict[str, Counter[str]]:
    """By attack and row: the number of tasks and seeds on which it is the strongest on validation; `none` counts."""
    found: dict[str, Counter[str]] = {}
    for row in grid.rows:
        for task in run.tasks:
            for (record,) in (grid.best_finetuning(row, [task], grid.within(grid.ranking)) or {}).values():
                found.setdefault(record.attack, Counter())[row] += 1
    return found


def _place(score: Score | None) -> str:
    return place(score) if score is not None and score.standing.group != "unranked" else "unranked"


def _values(before: Score, after: Score | None, of: Callable[[Score], Interval | None]) -> Pair:
    return _value(of(before)), _value(of(after)) if after is not None else None


def _value(interval: Interval | None) -> float | None:
    return interval.value if interval is not None else None


# ----------------------------------------------------------------------------------------------------------- showing


def _worth(trained: Sequence[str], changes: Sequence[Change], strongest: Mapping[str, Counter[str]], run: Run) -> Table:
    cells = sum(rows.total() for rows in strongest.values())
    knowledge = {one.attack: one.knowledge for one in run.records}
    rows = []
    for attack in sorted({*trained, *strongest}, key=lambda one: (-_times(strongest, one), one)):
        own = [one for one in changes if one.attack == attack]
        flattered = sum(one.more is not None and one.more >= SHOWN for one in own)
        rows.append(
            (attack, "+".join(knowledge[attack]) or "release alone", f"{_times(strongest, attack)} of {cells}",
             f"{strongest.get(attack, Counter())['none']}", _most(own), f"{flattered}",
             f"{sum(len({*one.verdict}) > 1 for one in own)}", f"{sum(len({*one.place}) > 1 for one in own)}")
        )  # fmt: skip
    header = ("attack", "knowledge", "strongest in", "on none", "most that it finds alone (points)",
              "rows flattered without it", "verdicts changed", "places changed")  # fmt: skip
    return Table("What each attack is worth", header, tuple(rows))


def _most(changes: Sequence[Change]) -> str:
    """`7.0 trap2`: the most points that only this attack reaches, and on which row."""
    most, row = max(((one.alone, one.row) for one in changes if one.alone is not None), default=(0.0, ""))
    return f"{most:.1f} {row}" if most >= SHOWN else UNKNOWN


def _times(strongest: Mapping[str, Counter[str]], attack: str) -> int:
    return strongest[attack].total() if attack in strongest and attack != NONE else 0


def _changes(changes: Sequence[Change]) -> Table:
    pairs = (name for what in ("attacked", "suppression", "claim", "#") for name in (what, "without it"))
    return Table(
        "What changes when one attack is left out",
        ("attack", "row", *pairs),
        tuple(
            (one.attack, one.row, *map(number, (*one.attacked, *one.suppression)),
             *(verdict or UNKNOWN for verdict in one.verdict), *one.place)
            for one in changes
            if one.shown
        ),
    )  # fmt: skip
