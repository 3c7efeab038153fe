"""The nouns of a score: one leaderboard row, cut into the parts that belong together.

Every number is in points or a share, with its interval over base seeds. None means not known: records are missing or
failed, or the number does not apply. What is not known never counts for the defense.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from nftbench.records.record import Row
from nftbench.scoring.cost_to_break import Multiple
from nftbench.scoring.intervals import Interval
from nftbench.scoring.per_attack import AttackRow
from nftbench.scoring.rank_intervals import Heights, RankInterval
from nftbench.scoring.utility_badge import Badge
from nftbench.terms import Verdict

Kind = Literal["defense", "trivial", "reference"]
Group = Literal["ranked", "preliminary", "control", "unranked"]
Severity = Literal["unrank", "warn", "note"]


@dataclass(frozen=True)
class Headroom:
    """The gain of fine-tuning the undefended model on a task, and of training from scratch on the same budget."""

    reference: str
    task: str
    unattacked: float | None
    undefended: float | None
    """The undefended model after its best attack."""
    scratch: float | None
    gap: Interval | None
    """How far the undefended model ends above scratch, paired by seed; None where one of them has no records."""
    kept: bool
    """False where the gap is small, or may be chance: no row is scored on the task then."""


@dataclass(frozen=True)
class Utility:
    """How much of its reference's utility a release keeps, unattacked.

    Shares of the mean over the reference's initialisations, above the floor; 1 for all of it.
    """

    by_metric: Mapping[str, Interval] = field(default_factory=dict)
    retention: Interval | None = None
    """The mean share over all metrics."""
    least: str | None = None
    """The metric with the smallest share."""
    badge: Badge | None = None
    """Whether the row keeps utility, by a test on each metric. It takes no row out of the ranking."""


@dataclass(frozen=True)
class TaskScore:
    """One row on one task, in points."""

    task: str
    unattacked: float | None
    attacked: Interval | None
    undefended: float | None
    suppression: Interval | None
    attack: str | None
    """The attack that is best on most seeds."""


@dataclass(frozen=True)
class Partial:
    """Suppression in a narrowed or unfinished run, by the attacks that this row and its reference both have.

    The missing attacks may be stronger, so it neither ranks nor proves anything.
    """

    suppression: Interval
    attacks: tuple[str, ...]
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Resistance:
    """What the best attack of each task reaches with the ranking's knowledge; points, means over tasks."""

    unattacked: Interval | None = None
    attacked: Interval | None = None
    gain: Interval | None = None
    """attacked - unattacked."""
    suppression: Interval | None = None
    """The reference's `attacked` less this row's."""
    suppression_by_seed: Mapping[int, float] = field(default_factory=dict)
    partial: Partial | None = None
    """Only where `suppression` is not known."""
    tasks: tuple[TaskScore, ...] = ()
    protected_fraction: float | None = None
    """Suppression as a share of what the undefended model gains beyond training from scratch."""
    seed_spread: float | None = None
    """Standard deviation of the suppression over base seeds."""
    attack_spread: float | None = None
    """Mean standard deviation over the restarts of the best attacks, on validation."""
    beyond_control: Interval | None = None
    """Suppression beyond the matched control that the defense itself names."""

    @property
    def worst_task(self) -> TaskScore | None:
        """The task with the least suppression."""
        known = [(task.suppression.value, index) for index, task in enumerate(self.tasks) if task.suppression]
        return self.tasks[min(known)[1]] if known else None

    @property
    def undefended(self) -> float | None:
        """Where the best attacks end on the reference, as a mean over tasks; None if that of one is not known."""
        known = [task.undefended for task in self.tasks if task.undefended is not None]
        return statistics.fmean(known) if known and len(known) == len(self.tasks) else None


@dataclass(frozen=True)
class ByKnowledge:
    """Suppression at each level of attackers' knowledge."""

    suppression: Mapping[str, Interval | None] = field(default_factory=dict)
    """By level of knowledge, for the levels that the attacks on this row use fully."""
    untested: tuple[str, ...] = ()
    """The other levels, at which the row was not tested."""
    adaptive: tuple[str, ...] = ()
    """Attacks that were designed against this defense and that have a result."""


@dataclass(frozen=True)
class Recipes:
    """How much the row's resistance depends on the way in which it is attacked."""

    best: str | None = None
    """The single attack that is best over all tasks."""
    suppression: Interval | None = None
    """What the row takes from the best single attack on each side."""
    optimizers: Mapping[str, tuple[Interval, Interval, Interval]] = field(default_factory=dict)
    """For each attack that also runs with other optimizers: suppression under its default alone, under all, and the
    difference, which is what the others undo."""
    part_ahead: Interval | None = None
    """How far training a part of the weights ends above training all of them, beyond the same gap of the reference."""
    longer_adds: Interval | None = None
    """How far training all weights for longer than the budget ends above training them within it."""
    longer_ahead: Interval | None = None
    """The same, beyond what longer training adds on the reference."""


@dataclass(frozen=True)
class Excess:
    """What a row takes from the attacker beyond the best trivial defense that keeps as much utility, in points.

    It is the row's height above the curves of the suite's families of trivial defenses, for the family that leaves
    least. Utility is the mean over the metrics, or a single metric of which the row clearly keeps less.
    """

    interval: Interval | None = None
    """This ranks."""
    metric: str | None = None
    """`mean`, or the single metric that binds."""
    family: str | None = None
    heights: Heights = field(default_factory=Heights)
    """On that metric and family; the mean of its own is the value of `interval`."""
    doubtful: tuple[str, ...] = ()
    """The metrics that lower the lower end alone: their loss may be chance, or is shown by some seeds alone."""
    reason: str | None = None
    """Why there is none, as in `outside the ladder: ...`."""


@dataclass(frozen=True)
class Curve:
    """A family of trivial defenses: what they take from the attacker against the utility that they keep.

    `metric` is `mean`, for the mean share over all metrics, or the name of one.
    """

    family: str
    metric: str
    reference: str
    knots: tuple[tuple[float, float], ...]
    """Retention (a share) and suppression (points) along the fitted curve; retention falls."""
    doses: tuple[tuple[str, float, float], ...]
    """The doses as measured: row, retention, suppression. The fit lies between them."""
    stairs: bool = False
    """Nothing lies between two doses: the curve is flat up to the next dose."""


@dataclass(frozen=True)
class ClaimTest:
    """The test of the defense's claim, against the attackers that it claims to withstand."""

    excess: Interval | None = None
    """Computed with the claim's attackers on row, ladder, reference and from scratch alike."""
    suppression: Interval | None = None
    """What the row takes from these attackers, trivial defenses aside."""
    tested: bool = False
    """An attack within the claim's knowledge fine-tuned the release."""
    covered: bool = False
    """Such attacks used all the knowledge that the claim grants."""
    p: float | None = None
    """One-sided, of an excess that is zero or less, Holm-adjusted over all rows with a claim."""
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Flag:
    """One reason to doubt a row, in one sentence with its numbers. `unrank` takes the row out of the ranking."""

    name: str
    severity: Severity
    message: str


@dataclass(frozen=True)
class Standing:
    """The row's place on the leaderboard."""

    group: Group = "unranked"
    rank: int | None = None
    """By excess, among the rows of this group with the same reference."""
    ranks: RankInterval | None = None
    """The ranks that the comparisons with these rows leave open."""
    rank_among: Mapping[float, int | None] = field(default_factory=dict)
    """By share of utility: the rank among the rows that keep so much of it; None for one that keeps less. Empty without
    a rank."""
    pareto: bool = False
    """No other row of its group takes more from the attacker and keeps more utility."""
    reasons: tuple[str, ...] = ()
    """Why it is not ranked; of a control, which cells it lacks."""


@dataclass(frozen=True)
class Score:
    """One row of the leaderboard."""

    defense: str
    kind: Kind
    row: Row
    incomplete: tuple[str, ...] = ()
    """Cells that are missing or not ok, of this row and of the rows that it is compared with."""
    utility: Utility = Utility()
    resistance: Resistance = Resistance()
    by_knowledge: ByKnowledge = ByKnowledge()
    recipes: Recipes = Recipes()
    excess: Excess = Excess()
    authorized_gain: Interval | None = None
    """Points that the owner's own fine-tuning gains with the secret."""
    cost_to_break: Mapping[str, Mapping[float, Multiple]] = field(default_factory=dict)
    """By unit (steps, flops, seconds, memory), then by share of the undefended gain."""
    attacks: tuple[AttackRow, ...] = ()
    """Each attack by itself."""
    claim: ClaimTest = ClaimTest()
    flags: tuple[Flag, ...] = ()
    standing: Standing = Standing()

    @property
    def best_attack(self) -> AttackRow | None:
        """The best single attack on the release; the one with the highest score where a failed cell leaves it open."""
        tried = [one for one in self.attacks if one.counts and one.uses_release and one.attacked is not None]
        chosen = [one for one in tried if one.attack == self.recipes.best]
        return next(iter(chosen or tried), None)  # they are sorted, the strongest first
