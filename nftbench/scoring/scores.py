"""The nouns of a score: one leaderboard row, cut into the parts that belong together.

Every number is in points or a share, with its interval over base seeds. None means not known: records are missing or
failed, or the number does not apply. What is not known never counts for the defense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from nftbench.records.record import Row
from nftbench.scoring.cost_to_break import Multiple
from nftbench.scoring.intervals import Interval
from nftbench.scoring.per_attack import AttackRow
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
    kept: bool
    """False where the undefended model ends no better than scratch: no row is scored on the task then."""


@dataclass(frozen=True)
class Utility:
    """How much of its reference's utility a release keeps, unattacked; shares, 1 for all of it."""

    by_metric: Mapping[str, Interval] = field(default_factory=dict)
    retention: Interval | None = None
    """The smallest share over the metrics within a seed, averaged over seeds."""
    clears_bar: bool = False
    """The lower end of `retention` reaches the suite's utility bar."""


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

    @property
    def worst_task(self) -> TaskScore | None:
        """The task with the least suppression."""
        known = [(task.suppression.value, index) for index, task in enumerate(self.tasks) if task.suppression]
        return self.tasks[min(known)[1]] if known else None


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
    optimizers: Mapping[str, tuple[Interval, Interval]] = field(default_factory=dict)
    """For each attack that also runs with other optimizers: suppression under its default alone, and under all."""
    part_ahead: Interval | None = None
    """How far training a part of the weights ends above training all of them, beyond the same gap of the reference."""
    longer_adds: Interval | None = None
    """How far training all weights for longer than the budget ends above training them within it."""
    longer_ahead: Interval | None = None
    """The same, beyond what longer training adds on the reference."""


@dataclass(frozen=True)
class Excess:
    """Suppression beyond that of the controls: the reference, and the trivial defenses that keep enough utility."""

    interval: Interval | None = None
    """Over the strongest control. This ranks."""
    by_seed: Mapping[int, float] = field(default_factory=dict)
    controls: tuple[str, ...] = ()
    over: str | None = None
    """The strongest control, which leaves the least excess."""
    beyond_control: Interval | None = None
    """Suppression beyond the matched control that the defense itself names."""


@dataclass(frozen=True)
class ClaimTest:
    """The test of the defense's claim, against the attackers that it claims to withstand."""

    excess: Interval | None = None
    tested: bool = False
    """An attack within the claim's knowledge fine-tuned the release."""
    covered: bool = False
    """Such attacks used all the knowledge that the claim grants."""
    p: float | None = None
    """One-sided, Holm-adjusted over the rows that are judged."""
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
