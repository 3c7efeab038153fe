"""leaderboard.csv: one line for every row, controls too. Bounds of intervals have columns of their own, empty where not
known. Utility is in percent, as everywhere else."""

from __future__ import annotations

import math

from nftbench.report.labels import of
from nftbench.scoring.intervals import Interval, in_percent
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.scores import Score
from nftbench.scoring.verdicts import SHARES


def text(board: Leaderboard) -> str:
    """The file's content."""
    import pandas  # half a second, and only the files need it

    families = {row: family for family, rows in board.ladder.items() for row in rows}
    names = of(board)
    lines = [_line(score, names[score.defense], families.get(score.defense)) for score in board.scores]
    return str(pandas.DataFrame(lines).to_csv(index=False, lineterminator="\n"))


def _line(score: Score, label: str, family: str | None) -> dict[str, object]:
    standing, worst = score.standing, score.resistance.worst_task
    line: dict[str, object] = {
        "defense": score.defense,
        "label": label,
        "kind": score.kind,
        "ladder_family": family,
        "standing": standing.group,
        "rank": _whole(standing.rank),
        "rank_first": _whole(standing.ranks.first if standing.ranks else None),
        "rank_last": _whole(standing.ranks.last if standing.ranks else None),
        **{f"rank_among_{100 * share:g}": _whole(standing.rank_among.get(share)) for share in SHARES},
        "pareto": standing.pareto,
        "verdict": score.claim.verdict,
        "claim_p": score.claim.p,
        "excess_metric": score.excess.metric,
        "excess_family": score.excess.family,
        "excess_reason": score.excess.reason,
        "utility_badge": score.utility.badge,
        "least_metric": score.utility.least,
        "worst_task": worst.task if worst else None,
    }
    for name, interval in _intervals(score).items():
        line |= _columns(name, interval)
    for metric, kept in score.utility.by_metric.items():
        line |= _columns(f"utility_percent:{metric}", in_percent(kept))
    for level, found in score.by_knowledge.suppression.items():
        line[f"suppression[{level}]"] = found.value if found else None
    for task in score.resistance.tasks:
        line[f"suppression:{task.task}"] = task.suppression.value if task.suppression else None
    return line | {
        "protected_fraction": score.resistance.protected_fraction,
        "recipe": score.recipes.best,
        "seed_spread": score.resistance.seed_spread,
        "attack_spread": score.resistance.attack_spread,
        "flags": " ".join(flag.name for flag in score.flags),
        "reasons": "; ".join(standing.reasons),
    }


def _intervals(score: Score) -> dict[str, Interval | None]:
    return {
        "excess": score.excess.interval,
        "suppression": score.resistance.suppression,
        "utility_percent": in_percent(score.utility.retention) if score.utility.retention else None,
        "unattacked": score.resistance.unattacked,
        "attacked": score.resistance.attacked,
        "gain": score.resistance.gain,
        "recipe_suppression": score.recipes.suppression,
        "beyond_control": score.resistance.beyond_control,
        "authorized_gain": score.authorized_gain,
        "claim_excess": score.claim.excess,
        "longer_adds": score.recipes.longer_adds,
        "longer_ahead": score.recipes.longer_ahead,
    }


def _columns(name: str, found: Interval | None) -> dict[str, object]:
    if found is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high", f"{name}_seeds"))
    return {
        name: _number(found.value),
        f"{name}_low": _number(found.low),
        f"{name}_high": _number(found.high),
        f"{name}_seeds": _whole(found.count),
    }


def _whole(value: int | None) -> str | None:
    """As text, for a column with gaps would turn whole numbers into decimals."""
    return None if value is None else str(value)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
