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
    """What scoring has to know about a defense. Each record stores it, so that scoring needs no plugin."""

    stage: str
    """`pretrain`: the defense was given an untrained model; `posttrain`: it was given the trained base."""
    trivial: bool
    """True for a control that claims must beat."""
    reference: str
    """The row without this defense: `none`, or the undefended twin of a checkpoint."""
    control: str | None = None
    """The matched control that the defense names, where that is not `none`."""
    claim: Claim | None = None
    """`knowledge` and `adaptation` of the attackers whom the defense claims to withstand; None without a claim."""
    task_aware: bool = False
    """True where the defense was told tasks, so that the main ranking leaves it out."""
    told: tuple[str, ...] = ()
    """The tasks that a task-aware defense was told; the other ranked tasks are held out. Older records lack it."""


@dataclass(frozen=True)
class Record:
    """The result of one cell: a file that explains itself."""

    key: str
    """Hash of everything that can change the cell's numbers: settings, seed, plugin sources, local data, kind of
    device."""
    suite: str
    """The suite's name."""
    defense: str
    """The defense with its parameters, as in `early_stop[fraction=0.9]`; parameters at their defaults are left out."""
    attack: str
    """The attack with its parameters, as in `lora[rank=16]`."""
    task: str
    """The task with its parameters; of a yardstick's record, the yardstick."""
    seed: int
    """The base seed. It decides the toy language's grammar, the initial weights and the order of training."""
    row: Row
    """What scoring has to know about the defense: a row."""
    knowledge: tuple[str, ...]
    """What the attack was given beyond the release and the task's training data."""
    status: Status
    """`ok`, or why there is no number: `failed`, `oom`, `timeout`, `nonfinite`."""
    role: Role = "ranked"
    """`ranked`; `benign`: attacked too, but never part of a suppression; `utility`: only measured; `yardstick`: a
    paper's own metric instead of a task."""
    reason: str | None = None
    """One line about a status other than `ok`."""
    adaptation: Adaptation = "finetuning"
    """How the attack adapts the release: `finetuning`, `linear_probe`, `merging` or `rescaling`."""
    against: tuple[str, ...] = ()
    """Names of the defenses that the attack was written against."""
    uses_release: bool = True
    """False for an attack that ignores the release, such as `scratch`."""
    trains: bool = True
    """False for attack `none`."""
    trained_weights: TrainedWeights | None = None
    """Which of the release's weights the attack trains: `all`; `all_longer`, for more steps than the budget has;
    `part`; or `other`. None in older records, which do not say."""
    release: str = ""
    """Folder of the attacked release under `releases/` in the cache."""
    release_sha256: str = ""
    """Hash of the attacked weights; all cells of a defense and seed must agree."""
    base_sha256: str | None = None
    """Hash of the weights that the reference row releases at this seed; None where they are not known."""
    limited: bool = False
    """True for a run under `--limit`, which is never ranked."""
    unattacked: Measurement | None = None
    """The release's own test score: a measurement."""
    validation: Measurement | None = None
    """The attacked model's score on the validation split, by which attacks are chosen: a measurement."""
    attacked: Measurement | None = None
    """The attacked model's score on the test split: a measurement."""
    picked: Point | None = None
    """The point of the sweep that was chosen: a point."""
    curve: tuple[Point, ...] = ()
    """Every point of the sweep and of the grid's extensions."""
    restarts: tuple[Point, ...] = ()
    """Points of the chosen recipe, run again with fresh attack seeds."""
    at_edge: bool = False
    """True where the best learning rate lies at an edge of the grid and strictly beats its neighbour, after all
    extensions."""
    at_last_step: bool = False
    """True where the chosen point is the last of its trajectory: a longer attack might be stronger."""
    stuck: bool = False
    """True where no trained point beat not training at all."""
    retried: str | None = None
    """What kept training finite: `float32`, `float64`, `clipped` or `head`; None where nothing was needed."""
    cost: Cost | None = None
    """What the attack spent: a cost; None for attack `none`."""
    recovery: Mapping[str, float] = field(default_factory=dict)
    """How well the attack guessed the secret, by measure. A name with `_within` is the mean over tensors, weighted by
    their size."""
    protection: Protection | None = None
    """What the referee found about the release: a protection; only in cells of attack `none`."""
    reading: Reading | None = None
    """What a yardstick read off the release: a reading; None for a task. Older records lack it."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the numbers come from."""
    version: int = 1
    """Version of this format."""
