"""leaderboard.json: everything that a leaderboard knows, under its published names and in their published order.

The two layouts below are the published format; names and order do not follow the code's own. Changing either changes
results/leaderboard-schema.json, which is made of them. Utility is in percent, as everywhere else.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter
from typing_extensions import TypedDict  # pydantic reads the standard library's from Python 3.12 on

from nftbench.records.record import Row
from nftbench.report.labels import of
from nftbench.scoring.budget_curve import BudgetCurve
from nftbench.scoring.cost_to_break import Multiple
from nftbench.scoring.intervals import Interval, in_percent
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.per_attack import AttackRow
from nftbench.scoring.provenance import Provenance
from nftbench.scoring.rank_intervals import RankInterval
from nftbench.scoring.scores import Curve, Flag, Group, Headroom, Kind, Partial, Score, TaskScore
from nftbench.scoring.utility_badge import Badge
from nftbench.terms import Verdict


class ScoreLayout(TypedDict):
    """One row. The parts are explained where scoring defines them, in nftbench/scoring/scores.py."""

    defense: str
    label: str
    kind: Kind
    row: Row
    incomplete: tuple[str, ...]
    utility_percent_by_metric: Mapping[str, Interval]
    least: str | None
    utility_percent: Interval | None
    badge: Badge | None
    unattacked: Interval | None
    attacked: Interval | None
    gain: Interval | None
    suppression: Interval | None
    suppression_by_seed: Mapping[int, float]
    partial: Partial | None
    excess: Interval | None
    excess_by_seed: Mapping[int, float]
    excess_metric: str | None
    excess_family: str | None
    excess_reason: str | None
    beyond_control: Interval | None
    levels: Mapping[str, Interval | None]
    untested: tuple[str, ...]
    adaptive: tuple[str, ...]
    tasks: tuple[TaskScore, ...]
    worst_task: TaskScore | None
    recipe: str | None
    recipe_suppression: Interval | None
    optimizers: Mapping[str, tuple[Interval, Interval, Interval]]
    part_ahead: Interval | None
    longer_adds: Interval | None
    longer_ahead: Interval | None
    protected_fraction: float | None
    authorized_gain: Interval | None
    cost_to_break: Mapping[str, Mapping[float, Multiple]]
    attacks: tuple[AttackRow, ...]
    seed_spread: float | None
    attack_spread: float | None
    claim_excess: Interval | None
    claim_suppression: Interval | None
    claim_tested: bool
    claim_covered: bool
    claim_p: float | None
    verdict: Verdict | None
    flags: tuple[Flag, ...]
    standing: Group
    rank: int | None
    ranks: RankInterval | None
    rank_among: Mapping[str, int | None]
    """By percent of utility."""
    pareto: bool
    reasons: tuple[str, ...]


class BoardLayout(TypedDict):
    """The whole file. Each side table has a key of its own beside these."""

    command: str
    suite: str
    about: str
    scores: tuple[ScoreLayout, ...]
    headroom: tuple[Headroom, ...]
    ladder: Mapping[str, tuple[str, ...]]
    frontier: tuple[Curve, ...]
    """With percents of utility in the place of shares."""
    ranking: str
    problems: tuple[str, ...]
    records: int
    planned: int
    budgets: tuple[BudgetCurve, ...]
    skips: Mapping[str, Mapping[str, str]]
    commands: Mapping[str, int]
    provenance: Provenance


SCALARS = (str, int, type(None))
"""Types of values that are written as they are."""


def schema() -> dict[str, Any]:
    """The JSON Schema of the file. A number that is not finite is null."""
    drawn = TypeAdapter(BoardLayout).json_schema(mode="serialization")
    for definition in (drawn, *drawn["$defs"].values()):
        if "properties" in definition:
            definition["required"] = sorted(definition["properties"])
            definition["additionalProperties"] = definition is drawn  # the side tables
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_nullable(drawn)}


def _nullable(part: Any) -> Any:
    if isinstance(part, dict):
        found = {key: _nullable(item) for key, item in part.items()}
        return found | {"type": ["number", "null"]} if part.get("type") == "number" else found
    return [_nullable(item) for item in part] if isinstance(part, list) else part


def text(board: Leaderboard, command: str) -> str:
    """The file's content. The ends of an interval that has none are null."""
    names = of(board)
    main: BoardLayout = {
        "command": command,
        "suite": board.suite,
        "about": board.about,
        "scores": tuple(_score(score, names[score.defense]) for score in board.scores),
        "headroom": board.headroom,
        "ladder": board.ladder,
        "frontier": tuple(map(_curve, board.frontier)),
        "ranking": board.rules.ranking,
        "problems": board.problems,
        "records": board.origin.records,
        "planned": board.origin.planned,
        "budgets": board.budgets,
        "skips": board.origin.skips,
        "commands": board.origin.commands,
        "provenance": board.origin.provenance,
    }
    beside = {table.name: content for table in board.side_tables if (content := table.content()) is not None}
    return written({**main, **beside})


def _curve(curve: Curve) -> Curve:
    return dataclasses.replace(
        curve,
        knots=tuple((100 * kept, taken) for kept, taken in curve.knots),
        doses=tuple((row, 100 * kept, taken) for row, kept, taken in curve.doses),
    )


def _score(score: Score, label: str) -> ScoreLayout:
    return {
        "defense": score.defense,
        "label": label,
        "kind": score.kind,
        "row": score.row,
        "incomplete": score.incomplete,
        "utility_percent_by_metric": {name: in_percent(kept) for name, kept in score.utility.by_metric.items()},
        "least": score.utility.least,
        "utility_percent": in_percent(score.utility.retention) if score.utility.retention else None,
        "badge": score.utility.badge,
        "unattacked": score.resistance.unattacked,
        "attacked": score.resistance.attacked,
        "gain": score.resistance.gain,
        "suppression": score.resistance.suppression,
        "suppression_by_seed": score.resistance.suppression_by_seed,
        "partial": score.resistance.partial,
        "excess": score.excess.interval,
        "excess_by_seed": score.excess.heights.own,
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
        "rank_among": {f"{100 * share:g}": rank for share, rank in score.standing.rank_among.items()},
        "pareto": score.standing.pareto,
        "reasons": score.standing.reasons,
    }


def written(content: Mapping[str, Any] | Sequence[Any]) -> str:
    """JSON of dataclasses, models, mappings, sets and sequences; infinity and NaN, which JSON lacks, become null."""
    return json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """The value in the types that JSON has."""
    if isinstance(value, SCALARS):  # first, because nearly every value is one
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
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
    return value
