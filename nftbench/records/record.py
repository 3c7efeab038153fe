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
    """One unit of work: one attack on one task, against one defense, at one seed.

    `key` is a hash of everything that can change the cell's numbers. `release` is the key of the attacked release. All
    cells of one defense and seed share it.
    """

    defense: Spec
    attack: Spec
    task: Spec
    seed: int
    key: str
    release: str


class OfCell(Protocol):
    """Anything that belongs to one cell, such as a record. Specs may be text or parsed."""

    @property
    def defense(self) -> object: ...
    @property
    def attack(self) -> object: ...
    @property
    def task(self) -> object: ...
    @property
    def seed(self) -> int: ...


class CellId(NamedTuple):
    """The identity of a cell within a suite: defense, attack and task as text, and the base seed."""

    defense: str
    attack: str
    task: str
    seed: int

    @classmethod
    def of(cls, item: OfCell) -> CellId:
        """The identity of the cell that the item belongs to."""
        return cls(str(item.defense), str(item.attack), str(item.task), item.seed)

    def __str__(self) -> str:
        return f"{self.defense} × {self.attack} on {self.task}, seed {self.seed}"


@dataclass(frozen=True)
class Row:
    """What scoring needs to know about a defense. Each record contains it, so that scoring needs no plugin."""

    stage: str
    """`pretrain`: the defense was given an untrained model; `posttrain`: it was given the pre-trained base model."""
    trivial: bool
    """True for a control, which every claim must beat."""
    reference: str
    """The row without the defense, with which it is compared: `none`, or for a checkpoint its undefended twin."""
    control: str | None = None
    """The matched control that the defense names: the same procedure without the protecting part."""
    claim: Claim | None = None
    """The attackers that the defense claims to withstand; None without a claim."""
    task_aware: bool = False
    """True where the defense was given tasks to defend against. The main ranking leaves it out."""
    told: tuple[str, ...] = ()
    """The tasks that a task-aware defense was given. The other ranked tasks are held out. Older records lack it."""


@dataclass(frozen=True)
class Record:
    """The result of one cell: its numbers, and where they come from."""

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
    """The task with its parameters; in the record of a yardstick, the yardstick."""
    seed: int
    """The base seed. It determines the toy language's grammar, the initial weights and the order of training data."""
    row: Row
    """What scoring needs to know about the defense: a row."""
    knowledge: tuple[str, ...]
    """What the attack was given besides the release and the task's training data."""
    status: Status
    """`ok`, or the kind of failure: `failed`, `oom` (out of memory), `timeout`, `nonfinite`."""
    role: Role = "ranked"
    """The task's part in the suite. `ranked`: attacked, and counted in the score; `benign`: attacked, but not counted;
    `utility`: only measured; `yardstick`: a paper's own metric instead of a task."""
    reason: str | None = None
    """The reason for a status other than `ok`, in one line."""
    adaptation: Adaptation = "finetuning"
    """How the attack adapts the release: `finetuning`, `linear_probe`, `merging` or `rescaling`."""
    against: tuple[str, ...] = ()
    """Names of the defenses that the attack was designed against."""
    uses_release: bool = True
    """False for an attack that ignores the release, such as `scratch`."""
    trains: bool = True
    """False for an attack that only measures, such as `none`."""
    trained_weights: TrainedWeights | None = None
    """Which of the release's weights the attack trains. `all`: every weight, within the budget; `all_longer`: every
    weight, for more steps; `part`: some of them; `other`: anything else, such as an adapter. None in older records."""
    release: str = ""
    """Folder of the attacked release under `releases/` in the cache."""
    release_sha256: str = ""
    """Hash of the attacked weights. It must be the same in all cells of a defense and seed."""
    base_sha256: str | None = None
    """Hash of the weights that the reference row released at this seed; None if it is unknown."""
    limited: bool = False
    """True for a run with `--limit`, which is never ranked."""
    unattacked: Measurement | None = None
    """The release's score on the test split before the attack: a measurement."""
    validation: Measurement | None = None
    """The attacked model's score by which the best attack is chosen: a measurement on the split `selection`, which
    attackers do not see, or on the validation split of a task that has few documents."""
    attacked: Measurement | None = None
    """The attacked model's score on the test split: a measurement."""
    attacked_utility: Mapping[str, float | None] | None = None
    """The attacked model's utility: by utility task, the value of its metric on the test split, None where that is not
    finite. None as a whole where the suite does not ask for it after this attack. Older records lack it."""
    picked: Point | None = None
    """The chosen point of the sweep: a point."""
    curve: tuple[Point, ...] = ()
    """Every point of the sweep and of the grid's extensions."""
    restarts: tuple[Point, ...] = ()
    """Points of the chosen recipe, run again with new attack seeds. The chosen point is the best of these and the
    curve's; in records of 0.1 only of these, unless not training was better."""
    at_edge: bool = False
    """True where the best learning rate lies at an edge of the grid and strictly beats its neighbour, after all
    extensions."""
    stuck: bool = False
    """True where no trained point beats not training at all."""
    retried: str | None = None
    """The change that kept training finite: `float32`, `float64`, `clipped` or `head`; None where none was needed."""
    cost: Cost | None = None
    """The cost of the attack; None for attack `none`."""
    recovery: Mapping[str, float] = field(default_factory=dict)
    """How well the attack guessed the secret mask, by measure. A name with `_within` is the mean over tensors, weighted
    by their size."""
    protection: Protection | None = None
    """Facts about the release: a protection; only for attack `none`."""
    reading: Reading | None = None
    """What a yardstick measured on the release: a reading; None for a task. Older records lack it."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """The code, libraries, hardware, data and command that the numbers come from."""
    version: int = 1
    """The version of this format."""
