"""leaderboard.json: everything that a leaderboard knows, under its published names and in their published order.

The functions below are the published layout. Names and order do not follow the code's own; changing either changes a
published format.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.scores import Score


def text(board: Leaderboard, command: str) -> str:
    """The file's content. The ends of an interval that has none are null."""
    return written(
        {
            "command": command,
            "suite": board.suite,
            "about": board.about,
            "scores": [_score(score) for score in board.scores],
            "headroom": board.headroom,
            "ladder": board.ladder,
            "frontier": board.frontier,
            "ranking": board.rules.ranking,
            "problems": board.problems,
            "records": board.origin.records,
            "planned": board.origin.planned,
            **{table.name: table.content() for table in board.side_tables},
            "budgets": board.budgets,
            "skips": board.origin.skips,
            "commands": board.origin.commands,
        }
    )


def _score(score: Score) -> dict[str, Any]:
    return {
        "defense": score.defense,
        "kind": score.kind,
        "row": score.row,
        "incomplete": score.incomplete,
        "utilities": score.utility.by_metric,
        "least": score.utility.least,
        "retention": score.utility.retention,
        "badge": score.utility.badge,
        "unattacked": score.resistance.unattacked,
        "attacked": score.resistance.attacked,
        "gain": score.resistance.gain,
        "suppression": score.resistance.suppression,
        "suppression_by_seed": score.resistance.suppression_by_seed,
        "partial": score.resistance.partial,
        "excess": score.excess.interval,
        "excess_by_seed": score.excess.by_seed,
        "excess_metric": score.excess.metric,
        "excess_family": score.excess.family,
        "excess_reason": score.excess.reason,
        "beyond_control": score.resistance.beyond_control,
        "levels": score.by_knowledge.suppression,
        "untested": score.by_knowledge.untested,
        "adaptive": score.by_knowledge.adaptive,
        "tasks": score.resistance.tasks,
        "worst_task": score.resistance.worst_task,
        "recipe": score.recipes.best,
        "recipe_suppression": score.recipes.suppression,
        "optimizers": score.recipes.optimizers,
        "part_ahead": score.recipes.part_ahead,
        "longer_adds": score.recipes.longer_adds,
        "longer_ahead": score.recipes.longer_ahead,
        "protected_fraction": score.resistance.protected_fraction,
        "authorized_gain": score.authorized_gain,
        "cost_to_break": score.cost_to_break,
        "attacks": score.attacks,
        "seed_spread": score.resistance.seed_spread,
        "attack_spread": score.resistance.attack_spread,
        "claim_excess": score.claim.excess,
        "claim_suppression": score.claim.suppression,
        "claim_tested": score.claim.tested,
        "claim_covered": score.claim.covered,
        "claim_p": score.claim.p,
        "verdict": score.claim.verdict,
        "flags": score.flags,
        "standing": score.standing.group,
        "rank": score.standing.rank,
        "ranks": score.standing.ranks,
        "rank_among": score.standing.rank_among,
        "pareto": score.standing.pareto,
        "reasons": score.standing.reasons,
    }


def written(content: Mapping[str, Any]) -> str:
    """JSON of dataclasses, models, mappings, sets and sequences; infinity and NaN, which JSON lacks, become null."""
    return json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """The value in the types that JSON has."""
    if isinstance(value, BaseModel):  # a paper's claim, as the suite states it
        return plain(value.model_dump(mode="json"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
