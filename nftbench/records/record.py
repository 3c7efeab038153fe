"""A cell of a suite, and the record of what was measured there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from nftbench.contract import Claim, Cost, Measurement, Point, Protection, Reading
from nftbench.records.spec import Spec
from nftbench.terms import Adaptation, Role, Status, TrainedWeights


@dataclass(frozen=True)
class Cell:
    """One defense x attack x task x seed of a suite.

    `key` hashes everything that can change its number and nothing else; cells of one defense and seed share `release`.
    """

    defense: Spec
    attack: Spec
    task: Spec
    seed: int
    key: str
    release: str


class OfCell(Protocol):
    """Anything that belongs to one cell, with specs as text or parsed: a planned cell, a record."""

    @property
    def defense(self) -> object: ...
    @property
    def attack(self) -> object: ...
    @property
    def task(self) -> object: ...
    @property
    def seed(self) -> int: ...


class CellId(NamedTuple):
    """Which cell of a suite: defense, attack and task as printed specs, and the base seed."""

    defense: str
    attack: str
    task: str
    seed: int

    @classmethod
    def of(cls, one: OfCell) -> CellId:
        """The identity of the cell that this belongs to."""
        return cls(str(one.defense), str(one.attack), str(one.task), one.seed)

    def __str__(self) -> str:
        return f"{self.defense} × {self.attack} on {self.task}, seed {self.seed}"


@dataclass(frozen=True)
class Row:
    """What the score has to know about a defense, stored in each record so that scoring needs no plugin."""

    stage: str
    trivial: bool
    reference: str
    """The row without this defense: `none`, or the undefended twin of a checkpoint."""
    control: str | None = None
    claim: Claim | None = None
    task_aware: bool = False
    told: tuple[str, ...] = ()
    """The tasks that a task-aware defense was told; the other ranked ones are held out."""


@dataclass(frozen=True)
class Record:
    """One cell's result: a file that explains itself. `results/README.md` documents each field."""

    key: str
    suite: str
    defense: str
    attack: str
    task: str
    seed: int
    row: Row
    knowledge: tuple[str, ...]
    status: Status
    role: Role = "ranked"
    reason: str | None = None
    adaptation: Adaptation = "finetuning"
    against: tuple[str, ...] = ()
    """Names of the defenses that the attack was written against."""
    uses_release: bool = True
    trains: bool = True
    trained_weights: TrainedWeights | None = None
    """Which of the release's weights the attack trains; None in older records, which do not say."""
    release: str = ""
    """Folder of the attacked release under `releases/` in the cache."""
    release_sha256: str = ""
    """Hash of its weights; cells of one row and seed must agree."""
    limited: bool = False
    """Run under --limit: never ranked."""
    unattacked: Measurement | None = None
    validation: Measurement | None = None
    attacked: Measurement | None = None
    picked: Point | None = None
    curve: tuple[Point, ...] = ()
    restarts: tuple[Point, ...] = ()
    at_edge: bool = False
    at_last_step: bool = False
    stuck: bool = False
    retried: str | None = None
    cost: Cost | None = None
    recovery: Mapping[str, float] = field(default_factory=dict)
    protection: Protection | None = None
    reading: Reading | None = None
    """Of a yardstick, which has no score."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1
