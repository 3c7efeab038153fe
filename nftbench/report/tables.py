"""A leaderboard as tables of text, which every report shows, and as CSV, JSON and LaTeX."""

from __future__ import annotations

import json as json_library
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel

from nftbench.scoring.cost_to_break import SHARES, UNITS
from nftbench.scoring.intervals import Interval
from nftbench.scoring.paper_claims import ClaimResult
from nftbench.scoring.per_attack import AttackRow
from nftbench.scoring.score import Headroom, Leaderboard, Score, level_name
from nftbench.scoring.side_tables.mask_value import RecoveredRow
from nftbench.suites.schema import PaperClaim

UNKNOWN = "–"


@dataclass(frozen=True)
class Table:
    """Plain text in rows and columns; whoever shows it escapes it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def interval(value: Interval | None, scale: float = 1.0) -> str:
    """`12.3 [8.1, 16.5]`; without brackets where one seed allows no interval."""
    if value is None:
        return UNKNOWN
    if not math.isfinite(value.low):
        return number(scale * value.value)
    return f"{number(scale * value.value)} [{number(scale * value.low)}, {number(scale * value.high)}]"


def number(value: float | None) -> str:
    """One decimal; no negative zero."""
    return UNKNOWN if value is None else f"{round(value, 1) + 0.0:.1f}"


def suppression(score: Score) -> str:
    """With `(partial)` where it is not over every attack and task of the suite."""
    return f"{interval(score.partial.suppression)} (partial)" if score.partial else interval(score.suppression)


def place(score: Score) -> str:
    """The rank, in brackets where preliminary; what else the row is where it has none."""
    if score.rank is not None:
        return f"{score.rank}" if score.standing == "ranked" else f"({score.rank})"
    return {"reference": "ref", "trivial": "control"}.get(score.kind, UNKNOWN)


def claim(score: Score) -> str:
    """`holds (method+data)`: the verdict, and what the attackers have whom the defense claims to withstand."""
    if score.verdict is None or score.row.claim is None:
        return UNKNOWN
    way = "" if score.row.claim.adaptation == "finetuning" else f", {score.row.claim.adaptation}"
    return f"{score.verdict} ({level_name(score.row.claim.knowledge)}{way})"


def main(board: Leaderboard, standings: tuple[str, ...] = ("ranked", "preliminary", "control")) -> Table:
    """The ranking: what a row takes from the attacker beyond the trivial defenses, and what it keeps of utility."""
    header = ("#", "defense", "excess", "suppression", "utility %", "attacked", "gain", "worst task", "claim", "doubts")
    rows = tuple(
        (
            place(score),
            score.defense,
            interval(score.excess),
            suppression(score),
            interval(score.retention, 100),
            number(score.attacked.value if score.attacked else None),
            number(score.gain.value if score.gain else None),
            _worst(score),
            claim(score),
            ", ".join(_doubts(score)) or UNKNOWN,
        )
        for score in board.scores
        if score.standing in standings
    )
    return Table("Ranking", header, rows)


def _doubts(score: Score) -> list[str]:
    """Its flags; a control that lacks cells says so here, for it is never among what is not ranked."""
    lacking = score.standing == "control" and score.reasons
    return [*(flag.name for flag in score.flags), *(["incomplete"] if lacking else [])]


def unranked(board: Leaderboard) -> Table:
    """What is not ranked, and why."""
    rows = tuple(
        (
            score.defense,
            interval(score.excess),
            suppression(score),
            interval(score.retention, 100),
            claim(score),
            "; ".join(score.reasons),
        )
        for score in board.scores
        if score.standing == "unranked"
    )
    return Table("Not ranked", ("defense", "excess", "suppression", "utility %", "claim", "why"), rows)


def details(board: Leaderboard) -> Table:
    """Other ways to look at the same attacks."""
    header = (
        "defense",
        "protected fraction",
        "best single recipe",
        "its suppression",
        "beyond control",
        "authorised gain",
        *(f"{unit} to {100 * share:g} %" for unit in ("steps", "FLOPs") for share in SHARES),
        "seed spread",
        "attack spread",
    )
    rows = tuple(
        (
            score.defense,
            UNKNOWN if score.protected_fraction is None else f"{round(score.protected_fraction, 2) + 0.0:.2f}",
            score.recipe or UNKNOWN,
            interval(score.recipe_suppression),
            interval(score.beyond_control),
            interval(score.authorized_gain),
            *(_multiple(score, unit, share) for unit in ("steps", "flops") for share in SHARES),
            number(score.seed_spread),
            number(score.attack_spread),
        )
        for score in board.scores
    )
    return Table("Details", header, rows)


def levels(board: Leaderboard) -> Table:
    """The ranking's suppression beside that at every other knowledge level, and who was written against the row."""
    others = dict.fromkeys(name for score in board.scores for name in (*score.levels, *score.untested))
    names = [name for name in others if name != board.ranking]
    rows = tuple(
        (
            score.defense,
            claim(score),
            interval(score.levels.get(board.ranking)),
            *("untested" if name in score.untested else interval(score.levels.get(name)) for name in names),
            ", ".join(score.adaptive) or ("not adaptively attacked" if score.kind == "defense" else UNKNOWN),
        )
        for score in board.scores
        if score.levels
    )
    header = ("defense", "claim", f"{board.ranking} (ranking)", *names, "written against it")
    return Table("Suppression by what the attacker knows", header, rows)


def tasks(board: Leaderboard) -> tuple[Table, ...]:
    """One table a task."""
    header = ("defense", "unattacked", "attacked", "suppression", "best attack")
    names = list(dict.fromkeys(task.task for score in board.scores for task in score.tasks))
    return tuple(
        Table(
            name,
            header,
            tuple(
                (
                    score.defense,
                    number(task.unattacked),
                    interval(task.attacked),
                    interval(task.suppression),
                    task.attack or UNKNOWN,
                )
                for score in board.scores
                for task in score.tasks
                if task.task == name
            ),
        )
        for name in names
    )


def utility(board: Leaderboard) -> Table:
    """Retention of each utility metric, in percent."""
    names = list(dict.fromkeys(name for score in board.scores for name in score.utilities))
    rows = tuple(
        (score.defense, *(interval(score.utilities.get(name), 100) for name in names)) for score in board.scores
    )
    return Table("Utility kept, %", ("defense", *names), rows if names else ())


def headroom(board: Leaderboard) -> Table:
    """What there is to suppress."""
    rows = tuple(
        (
            row.reference,
            row.task,
            number(row.unattacked),
            number(row.undefended),
            number(row.scratch),
            _counts(row),
        )
        for row in board.headroom
    )
    return Table("Headroom", ("reference", "task", "unattacked", "undefended", "scratch", "counts"), rows)


def _counts(row: Headroom) -> str:
    if row.scratch is None or row.undefended is None:
        return "not known"
    return "yes" if row.kept else "no headroom"


METRICS = {
    "roc_auc": "ROC-AUC",
    "roc_auc_within": "within tensors",
    "pr_auc": "PR-AUC",
    "pr_auc_within": "within tensors",
    "iou": "IoU",
    "precision": "precision",
    "mcc": "MCC",
}


def recovered(board: Leaderboard) -> tuple[Table, ...]:
    """How near guesses come to a secret mask, and what they are worth."""
    guesses = tuple(
        (
            one.defense,
            one.attack,
            level_name(one.knowledge),
            *(_against_chance(one, name) for name in METRICS),
            UNKNOWN if one.finds is None else "yes" if one.finds else "no",
        )
        for one in board.recovered
    )
    values = tuple(
        (
            one.defense,
            one.attack,
            interval(one.unauthorised),
            interval(one.recovered),
            interval(one.authorised),
            interval(one.gap),
            interval(one.value, 100) if one.value is not None else one.outcome,
        )
        for one in board.recovered
    )
    worth = ("defense", "attack", "unauthorised", "recovered", "authorised", "gap", "mask value recovered, %")
    return (
        Table("Recovery of secrets", ("defense", "attack", "knows", *METRICS.values(), "above chance"), guesses),
        Table("What the guessed masks are worth", worth, values),
    )


def _against_chance(row: RecoveredRow, name: str) -> str:
    """`0.861 [0.812, 0.910] (0.538)`: in round brackets what a guess that knows nothing scores, where that varies."""
    if name not in row.metrics:
        return UNKNOWN
    chance = row.chance.get(name)
    return fine(row.metrics[name]) + (f" ({chance:.3f})" if name in ("pr_auc", "iou", "precision") and chance else "")


def fine(value: Interval) -> str:
    """Three decimals, for numbers between 0 and 1."""
    if not math.isfinite(value.low):
        return f"{value.value:.3f}"
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def healed(board: Leaderboard) -> Table:
    """Attacks that prepare on public text, beside training from scratch on as much of it."""
    rows = tuple(
        (
            one.defense,
            one.attack,
            f"{one.steps:g}",
            interval(one.healed),
            one.control,
            interval(one.afresh),
            interval(one.beyond),
        )
        for one in board.healed
    )
    header = ("defense", "attack", "steps on text", "healed", "control", "afresh", "beyond the text")
    return Table("Healed beside afresh, given the same text", header, rows)


def flags(board: Leaderboard) -> Table:
    """Every reason to doubt a row."""
    rows: list[tuple[str, str, str, str]] = []
    for score in board.scores:
        rows += [(score.defense, flag.severity, flag.name, flag.message) for flag in score.flags]
        if "incomplete" in _doubts(score):
            rows.append((score.defense, UNKNOWN, "incomplete", "; ".join(score.reasons)))
    return Table("Reasons to doubt", ("defense", "severity", "flag", "what was seen"), tuple(rows))


def claims(board: Leaderboard) -> Table:
    """What the suite's papers claim, beside the measurement."""
    rows = tuple(
        (one.claim.says, one.claim.paper or UNKNOWN, precise(one.measured), _seeds(one), bound(one.claim), _ended(one))
        for one in board.claims
    )
    return Table("Claims", ("claim", "the paper", "measured", "seeds", "holds if", "outcome"), rows)


def _seeds(one: ClaimResult) -> str:
    """`3`, or `2 of 3` where a seed lacks something."""
    count = one.measured.count if one.measured else 0
    return f"{count}" if count == one.planned else f"{count} of {one.planned}"


def _ended(one: ClaimResult) -> str:
    return f"{one.outcome}: {one.reason}" if one.reason else one.outcome


def aware(board: Leaderboard) -> tuple[Table, ...]:
    """Task-aware defenses: verdicts, and what each attack loses on each group of tasks."""
    verdicts = tuple(
        (
            one.defense,
            ", ".join(one.tasks["told"]) or UNKNOWN,
            one.claim,
            one.adaptive,
        )
        for one in board.aware
    )
    losses = tuple(
        (
            row.defense,
            one.attack,
            "yes" if one.claimed else "no",
            *(interval(one.groups[group].suppression) for group in ("told", "held_out", "benign")),
        )
        for row in board.aware
        for one in row.attacks
    )
    return (
        Table("Task-aware defenses", ("defense", "told", "its claim", "all probes"), verdicts),
        Table(
            "Suppression by task-aware defenses",
            ("defense", "attack", "claimed", "told tasks", "held-out tasks", "benign tasks"),
            losses,
        ),
    )


def readings(board: Leaderboard) -> tuple[Table, ...]:
    """One table a yardstick."""
    found = []
    for yardstick, rows in board.readings.items():
        names = list(dict.fromkeys(name for values in rows.values() for name in values))
        lines = tuple((defense, *(precise(values.get(name)) for name in names)) for defense, values in rows.items())
        found.append(Table(yardstick, ("defense", *names), lines))
    return tuple(found)


def merging(board: Leaderboard) -> Table:
    """What merging leaves of a released update, in percent of what it is worth alone."""
    rows = tuple(
        (
            one.defense,
            one.attack,
            one.task,
            interval(one.base),
            interval(one.standalone),
            interval(one.merged),
            interval(one.kept, 100),
            interval(one.control_kept, 100),
            interval(one.beyond, 100),
            one.verdict or UNKNOWN,
        )
        for one in board.merging
    )
    header = ("defense", "attack", "task", "base", "standalone", "merged", "kept %", "control keeps %", "less", "claim")
    return Table("Merging", header, rows)


def bound(claim: PaperClaim) -> str:
    """`above 0`."""
    if claim.above is None and claim.below is None:
        return UNKNOWN
    return f"above {claim.above:g}" if claim.above is not None else f"below {claim.below:g}"


def precise(value: Interval | None) -> str:
    """Three significant digits, for numbers of any size."""
    if value is None:
        return UNKNOWN
    if not math.isfinite(value.low):
        return f"{value.value:.3g}"
    return f"{value.value:.3g} [{value.low:.3g}, {value.high:.3g}]"


def _worst(score: Score) -> str:
    task = score.worst_task
    return f"{number(task.suppression.value)} {task.task}" if task and task.suppression else UNKNOWN


def _multiple(score: Score, unit: str, share: float) -> str:
    found = score.cost_to_break.get(unit, {}).get(share)
    return str(found) if found else UNKNOWN


# ------------------------------------------------------------------------------------------------- one defense's page


def attacks(score: Score) -> Table:
    """Every attack on one row, the strongest first."""
    header = (
        "attack",
        "knows",
        "counts",
        "gain",
        "score",
        "learning rate",
        "step",
        "steps",
        "FLOPs",
        "seconds",
        "preparation",
        "peak MB",
        "status",
    )
    return Table("Attacks", header, tuple(_attack(one) for one in score.attacks))


def _attack(one: AttackRow) -> tuple[str, ...]:
    return (
        one.attack,
        _knows(one),
        UNKNOWN if one.knowledge is None else "yes" if one.counts else "no",
        interval(one.gain),
        interval(one.attacked),
        _short(one.learning_rate),
        _short(one.step),
        _short(one.steps),
        _short(one.flops),
        _short(one.seconds),
        UNKNOWN if one.preparation is None else f"{100 * one.preparation:.0f} %",
        _short(None if one.memory is None else one.memory / 1e6),
        f"{one.cells - one.failed} of {one.cells} ok" + "".join(f"; {fault}" for fault in one.faults),
    )


def _knows(one: AttackRow) -> str:
    if one.knowledge is None:
        return UNKNOWN
    return level_name(one.knowledge) if one.uses_release else ", ".join([*one.knowledge, "ignores the release"])


def _short(value: float | None) -> str:
    """Three significant digits, whole numbers in full up to a million."""
    if value is None:
        return UNKNOWN
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:.3g}"


def gains(score: Score) -> Table:
    """What each attack gains on each task."""
    names = [task.task for task in score.tasks]
    rows = tuple((one.attack, *(number(one.gains.get(name)) for name in names)) for one in score.attacks)
    return Table("Gain by task", ("attack", *names), rows if names else ())


def breaking(score: Score) -> Table:
    """Cost to break in every unit."""
    header = ("", *(f"to {100 * share:g} %" for share in SHARES))
    words = {"flops": "FLOPs", "memory": "peak memory"}
    rows = tuple(
        (words.get(unit, unit), *(_multiple(score, unit, share) for share in SHARES))
        for unit in UNITS
        if score.cost_to_break.get(unit)
    )
    return Table("Cost to break", header, rows)


def skipped(board: Leaderboard, score: Score) -> Table:
    """What was not tried on one row, and why."""
    rows = tuple(sorted(board.skips.get(score.defense, {}).items()))
    return Table("Not planned", ("attack", "why"), rows)


def own_flags(board: Leaderboard, score: Score) -> Table:
    """The reasons to doubt one row."""
    table = flags(board)
    return Table(table.title, table.header[1:], tuple(row[1:] for row in table.rows if row[0] == score.defense))


# ----------------------------------------------------------------------------------------------------- file formats


def csv(board: Leaderboard) -> str:
    """One line a row; bounds in columns of their own, empty where not known."""
    import pandas  # half a second, and only the files need it

    return str(pandas.DataFrame([_flat(score) for score in board.scores]).to_csv(index=False, lineterminator="\n"))


def _flat(score: Score) -> dict[str, object]:
    flat: dict[str, object] = {
        "defense": score.defense,
        "kind": score.kind,
        "standing": score.standing,
        "rank": None if score.rank is None else str(score.rank),
        "verdict": score.verdict,
        "claim_p": score.claim_p,
    }
    for name in INTERVALS:
        found: Interval | None = getattr(score, name)
        for part in ("value", "low", "high"):
            bound = getattr(found, part) if found else None
            flat[name if part == "value" else f"{name}_{part}"] = _number(bound)
        flat[f"{name}_seeds"] = str(found.count) if found else None
    flat |= {f"suppression[{level}]": found.value if found else None for level, found in score.levels.items()}
    flat |= {f"suppression:{task.task}": task.suppression.value if task.suppression else None for task in score.tasks}
    return flat | {
        "excess_over": score.excess_over,
        "protected_fraction": score.protected_fraction,
        "recipe": score.recipe,
        "seed_spread": score.seed_spread,
        "attack_spread": score.attack_spread,
        "flags": " ".join(flag.name for flag in score.flags),
        "reasons": "; ".join(score.reasons),
    }


INTERVALS = (
    "excess",
    "suppression",
    "retention",
    "unattacked",
    "attacked",
    "gain",
    "recipe_suppression",
    "beyond_control",
    "authorized_gain",
    "claim_excess",
)


def json(board: Leaderboard, command: str) -> str:
    """Everything; unbounded intervals end in null."""
    content = {"command": command, **asdict(board)}
    return json_library.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):  # a paper's claim, as the suite states it
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return _number(value) if isinstance(value, float) else value


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def latex(board: Leaderboard) -> str:
    """The ranking as a booktabs tabular, without the column of doubts."""
    table = main(board)
    lines = [" & ".join(_tex(cell) for cell in row[:-1]) + r" \\" for row in (table.header, *table.rows)]
    body = ["\\begin{tabular}{rl" + "r" * (len(table.header) - 3) + "}", r"\toprule", lines[0], r"\midrule", *lines[1:]]
    return "\n".join([*body, r"\bottomrule", r"\end{tabular}", ""])


def _tex(text: str) -> str:
    return "".join(TEX.get(character, character) for character in text.replace("\n", " "))


TEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "[": "{[}",
    "]": "{]}",
    UNKNOWN: "--",
}
