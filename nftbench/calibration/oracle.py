"""A defense that truly works, in graded strengths: it must be found, and the strengths put in order.

The grades are rows of one plugin, named from the weakest to the strongest. Every grade must be ranked, keep utility as
far as can be told, and take more from the attacker than the one before it. A grade is found if its claim holds and the
interval of its excess lies above zero. The strongest grade must be found, and so must every grade that is stronger than
a found one. `power.py` says which grades are too weak to be seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from nftbench.calibration import derived
from nftbench.calibration.proof import Finding, Run, ranked_with_effect
from nftbench.errors import NftbenchError
from nftbench.planning import facts
from nftbench.scoring import Score
from nftbench.scoring.intervals import RANKED_SEEDS, Interval, gap_by_seed
from nftbench.scoring.table import UNKNOWN, Table, interval
from nftbench.suites.schema import Suite


@dataclass(frozen=True)
class Grade:
    """One strength of the oracle."""

    row: str
    standing: str
    rank: int | None
    reasons: tuple[str, ...]
    retention: Interval | None
    badge: str | None
    suppression: Interval | None
    excess: Interval | None
    excess_family: str | None
    verdict: str | None
    suppression_by_seed: Mapping[int, float]

    @property
    def loses(self) -> bool:
        return self.badge == "loses"

    @property
    def found(self) -> bool:
        return self.verdict in ("holds", "holds at a cost") and ranked_with_effect(self.standing, self.excess)


def derive(suite: Suite, rows: Sequence[str], attacks: Sequence[str]) -> Suite:
    """The strengths beside the undefended model and the ladder; five seeds, the attackers that heed the oracle.

    Raises:
        NftbenchError: the suite has no ladder, no oracle is named, the rows do not claim the same, or the attackers
            know less than the claim grants them.
    """
    derived.needs_ladder(suite, "oracle")
    if not rows:
        raise NftbenchError(
            "--proof oracle: name the planted defense's plugin with --plugin FILE and its strengths with --defenses"
        )
    claims = {facts.defense(row).claims for row in rows}
    claim = claims.pop()
    if claims or claim is None:
        raise NftbenchError("--proof oracle: all defenses of --defenses must make the same claim")
    few = derived.attackers(suite, attacks)
    known = {name for text in few for name in facts.attack(text).knowledge}
    if lacking := sorted(claim.knowledge - known):
        raise NftbenchError(
            f"--proof oracle: the claim grants attackers {', '.join(lacking)}, which none of {', '.join(few)} uses; "
            "name one that does with --attacks"
        )
    return derived.derive(
        suite,
        "oracle",
        few,
        defenses=derived.rows(rows),
        ranking=claim.knowledge,
        seeds=derived.seeds(suite, RANKED_SEEDS),
    )


def judge(suite: Suite, run: Run) -> Finding:
    """Judge whether the grades are found, and their order."""
    if run.missing:
        return Finding(run.suite.name, failures=(run.missing,))
    scores = {one.defense: one for one in run.board().scores}
    grades = [grade(scores[row]) for row in run.suite.defenses if scores[row].kind == "defense"]
    failures = [f"{one.row} is not ranked: {'; '.join(one.reasons)}" for one in grades if one.standing == "unranked"]
    failures += [f"{one.row} loses utility: keeps {interval(one.retention, 100)} %" for one in grades if one.loses]
    failures += [
        f"{weak.row} suppresses {interval(weak.suppression)}, no less than the stronger {strong.row}, "
        f"{interval(strong.suppression)}"
        for weak, strong in itertools.pairwise(grades)
        if _value(weak.suppression) >= _value(strong.suppression)
    ]
    seen = [one.found for one in grades]
    # The weakest grades may be too weak to be seen; all after the first that is seen must be seen too.
    first = seen.index(True) if any(seen) else 0
    failures += [
        f"{one.row} is not found: claim {one.verdict}, excess {interval(one.excess)}"
        for one in grades[first:]
        if not one.found
    ]
    notes = [f"too weak to be found: {one.row}, excess {interval(one.excess)}" for one in grades[:first]]
    numbers = {"grades": [asdict(one) | {"found": one.found} for one in grades]}
    return Finding(run.suite.name, (_table(grades),), numbers, tuple(failures), tuple(notes))


def grade(score: Score) -> Grade:
    return Grade(
        row=score.defense,
        standing=score.standing.group,
        rank=score.standing.rank,
        reasons=score.standing.reasons,
        retention=score.utility.retention,
        badge=score.utility.badge,
        suppression=score.resistance.suppression,
        excess=score.excess.interval,
        excess_family=score.excess.family,
        verdict=score.claim.verdict,
        suppression_by_seed=score.resistance.suppression_by_seed,
    )


def _value(found: Interval | None) -> float:
    return found.value if found is not None else 0.0


def _table(grades: Sequence[Grade]) -> Table:
    before: list[Grade | None] = [None, *grades[:-1]]
    rows = [
        (one.row, f"{one.rank or UNKNOWN}", one.standing, interval(one.suppression),
         interval(one.excess), one.excess_family or UNKNOWN,
         _more(weaker, one), interval(one.retention, 100), one.verdict or UNKNOWN)
        for weaker, one in zip(before, grades, strict=True)
    ]  # fmt: skip
    header = ("row", "#", "standing", "suppression", "excess", "over", "more than the weaker", "utility %", "claim")
    return Table("A defense that works, from the weakest strength to the strongest", header, tuple(rows))


def _more(weaker: Grade | None, grade: Grade) -> str:
    if weaker is None:
        return UNKNOWN
    return interval(gap_by_seed(grade.suppression_by_seed, weaker.suppression_by_seed))
