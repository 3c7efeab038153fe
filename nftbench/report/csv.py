"""leaderboard.csv: one line a row, bounds of intervals in columns of their own, empty where not known."""

from __future__ import annotations

import math

from nftbench.scoring.intervals import Interval
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.scores import Score


def text(board: Leaderboard) -> str:
    """The file's content."""
    import pandas  # half a second, and only the files need it

    return str(pandas.DataFrame([_line(score) for score in board.scores]).to_csv(index=False, lineterminator="\n"))


def _line(score: Score) -> dict[str, object]:
    rank, ranks = score.standing.rank, score.standing.ranks
    line: dict[str, object] = {
        "defense": score.defense,
        "kind": score.kind,
        "standing": score.standing.group,
        "rank": None if rank is None else str(rank),
        "rank_first": str(ranks.first) if ranks else None,
        "rank_last": str(ranks.last) if ranks else None,
        "utility": score.utility.badge,
        "verdict": score.claim.verdict,
        "claim_p": score.claim.p,
    }
    for name, interval in _intervals(score).items():
        line |= _columns(name, interval)
    for level, found in score.by_knowledge.suppression.items():
        line[f"suppression[{level}]"] = found.value if found else None
    for task in score.resistance.tasks:
        line[f"suppression:{task.task}"] = task.suppression.value if task.suppression else None
    return line | {
        "excess_metric": score.excess.metric,
        "excess_family": score.excess.family,
        "pareto": score.standing.pareto,
        "protected_fraction": score.resistance.protected_fraction,
        "recipe": score.recipes.best,
        "seed_spread": score.resistance.seed_spread,
        "attack_spread": score.resistance.attack_spread,
        "flags": " ".join(flag.name for flag in score.flags),
        "reasons": "; ".join(score.standing.reasons),
    }


def _intervals(score: Score) -> dict[str, Interval | None]:
    return {
        "excess": score.excess.interval,
        "suppression": score.resistance.suppression,
        "retention": score.utility.retention,
        "unattacked": score.resistance.unattacked,
        "attacked": score.resistance.attacked,
        "gain": score.resistance.gain,
        "recipe_suppression": score.recipes.suppression,
        "beyond_control": score.resistance.beyond_control,
        "authorized_gain": score.authorized_gain,
        "claim_excess": score.claim.excess,
    }


def _columns(name: str, found: Interval | None) -> dict[str, object]:
    if found is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high", f"{name}_seeds"))
    return {
        name: _number(found.value),
        f"{name}_low": _number(found.low),
        f"{name}_high": _number(found.high),
        f"{name}_seeds": str(found.count),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
