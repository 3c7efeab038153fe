"""A `Suite` becomes `Cell`s, and cells become jobs; nothing runs here.

A key hashes all that can change a number: settings, seeds, plugin sources, the content of local data, the kind of
device. Library versions are provenance and no part of it. Settings are hashed without their defaults, so that a field
that is added later leaves every key as it was; a changed default raises `PROTOCOL`.
"""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nftbench.contract import Attack, Defense, Yardstick
from nftbench.device import CPU, Device
from nftbench.errors import NftbenchError, suggest
from nftbench.planning import local_data as folders, registry
from nftbench.records.manifest import Manifest, PlannedCell, Skip
from nftbench.records.record import Cell, Row
from nftbench.records.spec import Spec
from nftbench.records.store import digest
from nftbench.suites.schema import PaperClaim, Quantity, Suite
from nftbench.terms import OF_UPDATES, Role

PROTOCOL = 2
"""Raised by one whenever the core computes other numbers from the same settings: old records no longer count."""


TEXT_PARAMETERS = ("metric", "num_fewshot")
"""What the spec of a text task may set: which of its metrics is the score, and solved examples in the prompt."""


@dataclass(frozen=True)
class Job:
    """The cells of one defense, seed and attack: they share the release and the attack's preparation."""

    defense: Spec
    attack: Spec
    seed: int
    cells: tuple[Cell, ...]

    @property
    def key(self) -> str:
        return digest(self.release, str(self.attack))[:32]  # whichever of its cells a run is narrowed to

    @property
    def release(self) -> str:
        """Key of the release that is attacked."""
        return self.cells[0].release

    def without(self, settled: Collection[str]) -> Job:
        """The job that is left when the cells with these keys are done."""
        return replace(self, cells=tuple(cell for cell in self.cells if cell.key not in settled))


@dataclass(frozen=True)
class Plan:
    """Everything that a suite asks for on one kind of device."""

    suite: Suite
    cells: tuple[Cell, ...]
    skips: tuple[Skip, ...]
    device: Device = CPU
    data: Path | None = None
    limit: int | None = None
    releases: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """Keys of all releases by defense and seed, whatever the cells are narrowed to."""
    claims: tuple[PaperClaim, ...] = ()
    """The suite's, with specs written as cells have them."""

    def jobs(self) -> list[Job]:
        """Cells grouped into jobs, in the order of seeds, then of the suite."""
        groups: dict[tuple[int, str, str], list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault((cell.seed, str(cell.defense), str(cell.attack)), []).append(cell)
        return [Job(cells[0].defense, cells[0].attack, cells[0].seed, tuple(cells)) for cells in groups.values()]

    def role(self, cell: Cell) -> Role:
        """What the cell's task is for."""
        place = (cell.attack, cell.task)
        if place not in self._roles:
            self._roles[place] = self._role(cell)
        return self._roles[place]

    @functools.cached_property
    def _roles(self) -> dict[tuple[Spec, Spec], Role]:
        return {}

    def _role(self, cell: Cell) -> Role:
        if cell.task in self._yardsticks:
            return "yardstick"
        measured: bool = not registry.create("attacks", str(cell.attack)).trains
        if str(cell.task) in _specs(self.suite.utility) and (
            measured or str(cell.task) not in _specs(self.suite.benign)
        ):
            return "utility"
        return "benign" if str(cell.task) in _specs(self.suite.benign) else "ranked"

    def row(self, defense: Spec) -> Row:
        """What the score has to know about a defense."""
        if defense not in self._rows:
            self._rows[defense] = _row(defense)
        return self._rows[defense]

    @functools.cached_property
    def _yardsticks(self) -> frozenset[Spec]:
        return frozenset(canonical("yardsticks", text) for text in self.suite.yardsticks)

    @functools.cached_property
    def _rows(self) -> dict[Spec, Row]:
        return {}

    def manifest(self, command: str = "") -> Manifest:
        """The plan as a results folder keeps it; `command` is the command line that runs it."""
        scored = [cell for cell in self.cells if self.role(cell) != "yardstick"]
        readings = [cell for cell in self.cells if self.role(cell) == "yardstick"]
        return Manifest(
            suite=self.suite,
            cells=tuple(map(_listed, scored)),
            readings=tuple(map(_listed, readings)),
            claims=self.claims,
            skips=self.skips,
            device=str(self.device),
            limit=self.limit,
            command=command,
        )


def _listed(cell: Cell) -> PlannedCell:
    return PlannedCell(str(cell.defense), str(cell.attack), str(cell.task), cell.seed, cell.key)


def plan(suite: Suite, *, device: Device = CPU, data: Path | None = None, limit: int | None = None) -> Plan:
    """All cells of a suite, in order: seed, defense, attack, task.

    Raises:
        NftbenchError: a plugin that does not exist or does not take these parameters, a defense that the suite cannot
            run.
    """
    defenses = {canonical("defenses", text): registry.create("defenses", text) for text in suite.defenses}
    # The attack `none` is always planned, for its cells are base utility; reference rows are wherever a row needs one.
    attacks = {canonical("attacks", text): registry.create("attacks", text) for text in ("none", *suite.attacks)}
    defenses |= _references(defenses)
    tasks = [task_spec(text) for text in (*suite.tasks, *suite.benign)]
    utility = [task_spec(text) for text in suite.utility]
    yardsticks = {canonical("yardsticks", text): registry.create("yardsticks", text) for text in suite.yardsticks}
    for plugin in defenses.values():
        plugin.check(suite)
    for attack, attacker in attacks.items():
        _check_attack(suite, attack, attacker)
    keys = _Keys(suite, device, data, limit)
    references = {str(canonical("defenses", plugin.reference_row())) for plugin in defenses.values()}
    cells: list[Cell] = []
    releases: dict[tuple[str, int], str] = {}
    skips: dict[tuple[str, str], Skip] = {}
    for seed in suite.seeds:
        for defense, plugin in defenses.items():
            release = releases[str(defense), seed] = keys.release(defense, plugin, seed)
            for attack, attacker in attacks.items():
                reason = _skipped(suite, defense, plugin, attacker, references)
                if reason is not None:
                    if attacker.uses_release:
                        skips[str(defense), str(attack)] = Skip(str(defense), str(attack), reason)
                    continue
                for task in _tasks(plugin, attacker, tasks, utility):
                    key = keys.cell(release, attack, attacker, task, seed)
                    cells.append(Cell(defense, attack, task, seed, key, release))
                for task, yardstick in yardsticks.items() if not attacker.trains else ():
                    if yardstick.applies(plugin) is None:
                        key = keys.reading(release, attack, task, yardstick, seed)
                        cells.append(Cell(defense, attack, task, seed, key, release))
    return Plan(suite, tuple(cells), tuple(skips.values()), device, data, limit, releases, _claims(suite, cells))


def narrow(
    whole: Plan,
    *,
    defenses: Sequence[str] = (),
    attacks: Sequence[str] = (),
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> Plan:
    """The part of a plan that the filters leave; an empty filter leaves everything. A name alone means all its specs,
    one with brackets itself.

    Raises:
        NftbenchError: a seed that the suite has not, or filters that leave no cell.
    """
    for seed in seeds:
        if seed not in whole.suite.seeds:
            raise NftbenchError(
                f"{whole.suite.name} has no seed {seed}; its seeds: {', '.join(map(str, whole.suite.seeds))}"
            )
    cells = tuple(cell for cell in whole.cells if not seeds or cell.seed in seeds)
    filters: Mapping[registry.Kind, Sequence[str]] = {"defenses": defenses, "attacks": attacks, "tasks": tasks}
    for kind, texts in filters.items():
        names = {text for text in texts if not exact(text)}
        specs = {asked(kind, text) for text in texts if exact(text)}
        of = operator.attrgetter(kind.removesuffix("s"))
        cells = tuple(cell for cell in cells if not texts or of(cell).name in names or of(cell) in specs)
    if not cells:
        skips = [
            f"{skip.attack} against {skip.defense}: {skip.reason}" for skip in whole.skips if skip.attack in attacks
        ]
        raise NftbenchError(f"{whole.suite.name}: the filters leave no cell{f' ({skips[0]})' if skips else ''}")
    return replace(whole, cells=cells)


def exact(text: str) -> bool:
    """Whether a filter means one spec, and not all of a name."""
    return "[" in text


def asked(kind: registry.Kind, text: str) -> Spec:
    """What a filter names, written as planning has it; a name alone stays one, whatever parameters it may need."""
    if not exact(text):
        return registry.parse(text)
    return task_spec(text) if kind == "tasks" else canonical(kind, text)


def canonical(kind: registry.Kind, text: str) -> Spec:
    """The one way to write a spec: known parameters, defaults left out."""
    return registry.spec_of(registry.parse(text).name, registry.create(kind, text))


def corpus_key(suite: Suite, seed: int, data: Path | None) -> str:
    """Key of the packed corpus; real text does not depend on the seed."""
    settings = suite.corpus
    if settings.source == "none":
        return digest("corpus", PROTOCOL, "none")
    if settings.source == "toy":
        fields = ("source", "sentences", "block", "heldout_blocks")
        return digest(
            "corpus", PROTOCOL, settings.model_dump(include=set(fields), exclude_defaults=True), settings.grammar + seed
        )
    files = [
        path for place in (settings.train, settings.heldout) for path in sorted((data or Path()).glob(place or ""))
    ]
    content = [file_hash(path) for path in files] if settings.source == "text" else []
    return digest(
        "corpus", PROTOCOL, settings.model_dump(exclude={"grammar", "sentences"}, exclude_defaults=True), content
    )


def base_key(suite: Suite, seed: int, data: Path | None, device: Device) -> str:
    """Key of the undefended model's whole pre-training run; which checkpoints of it are kept changes no number."""
    recipe = suite.pretraining.model_dump(exclude={"checkpoints", "task", "only"}, exclude_defaults=True)
    if suite.pretraining.task is not None:
        recipe |= {"task": _told(suite, (suite.pretraining.task,), data), "only": suite.pretraining.only}
    return digest("base", PROTOCOL, suite.model, corpus_key(suite, seed, data), recipe, seed, device.kind)


@functools.lru_cache(maxsize=256)
def file_hash(path: Path) -> str:
    """sha256 of a file's content, read once a process."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _told(suite: Suite, specs: tuple[str, ...], data: Path | None) -> list[Any]:
    """What an owner's use of tasks depends on: their sources and data, and how much of them the budget leaves."""
    tasks = [task_spec(text) for text in specs]
    read = [
        [str(task), registry.source_hash(registry.find("tasks", task.name)), _task_data(task, data)] for task in tasks
    ]
    return [read, suite.budget.max_train_documents]


def _tasks(defense: Defense, attack: Attack, ranked: list[Spec], utility: list[Spec]) -> list[Spec]:
    """What an attack is tried on; one on an update on the update's own task alone."""
    if attack.adaptation in OF_UPDATES:
        own = task_spec(defense.told()[0])
        return [task for task in ranked if task == own]
    return ranked if attack.trains else list(dict.fromkeys([*ranked, *utility]))  # a benign task may be measured too


QUANTITIES = ("score", "gain", "kept", "utility")
"""What a claim may read of scores; whatever else it reads is `yardstick.value`."""


def _claims(suite: Suite, cells: list[Cell]) -> tuple[PaperClaim, ...]:
    """The suite's claims in canonical specs.

    Raises:
        NftbenchError: a claim about what the suite does not run, or an unknown quantity.
    """
    known = {
        "rows": {str(cell.defense) for cell in cells},
        "attacks": {str(cell.attack) for cell in cells},
        "tasks": {str(cell.task) for cell in cells},
    }
    yardsticks = {registry.parse(text).name for text in suite.yardsticks}

    def written(quantity: Quantity) -> Quantity:
        specs = {
            "rows": tuple(str(canonical("defenses", text)) for text in quantity.rows),
            "attacks": tuple(str(canonical("attacks", text)) for text in quantity.attacks),
            "tasks": tuple(str(task_spec(text)) for text in quantity.tasks),
        }
        name, dot, _ = quantity.read.partition(".")
        asked = [(spec, known[axis]) for axis, texts in specs.items() for spec in texts]
        for text, names in [*asked, (name, yardsticks if dot else set(QUANTITIES))]:
            if text not in names:
                raise NftbenchError(f"{suite.name}: claims: there is no {text!r}{suggest(text, sorted(names))}")
        return quantity.model_copy(update=specs)

    return tuple(
        claim.model_copy(
            update={key: written(one) for key in ("read", "minus", "over") if (one := getattr(claim, key)) is not None}
        )
        for claim in suite.claims
    )


def _specs(texts: tuple[str, ...]) -> list[str]:
    return [str(task_spec(text)) for text in texts]


def _references(defenses: dict[Spec, Defense]) -> dict[Spec, Defense]:
    """The reference rows that the suite does not list itself."""
    missing: dict[Spec, Defense] = {}
    for plugin in defenses.values():
        reference = canonical("defenses", plugin.reference_row())
        if reference not in defenses:
            missing[reference] = registry.create("defenses", str(reference))
    return missing


def _row(defense: Spec) -> Row:
    plugin: Defense = registry.create("defenses", str(defense))
    control = plugin.control_row()
    return Row(
        stage=plugin.stage,
        trivial=plugin.trivial,
        reference=str(canonical("defenses", plugin.reference_row())),
        control=str(canonical("defenses", control)) if control is not None else None,
        claim=plugin.claims,
        task_aware=plugin.task_aware or bool(plugin.told()),
        told=tuple(str(task_spec(text)) for text in plugin.told()),
    )


def task_spec(text: str) -> Spec:
    """A text task takes what lm-eval's command line lets one choose; other tasks are dataclasses like all plugins."""
    spec = registry.parse(text)
    plugin = registry.find("tasks", spec.name)
    if plugin.path is None or plugin.path.suffix != ".yaml":
        return canonical("tasks", text)
    for key, _ in spec.parameters:
        if key not in TEXT_PARAMETERS:
            raise NftbenchError(f"{text!r}: a text task has no parameter {key!r}{suggest(key, TEXT_PARAMETERS)}")
    return Spec(spec.name, tuple(sorted(spec.parameters)))


def _check_attack(suite: Suite, spec: Spec, attack: Attack, above: tuple[Spec, ...] = ()) -> None:
    """An attack may only be built on such that know no more than it does, and not on itself; the suite has a grid for
    the optimizer that it names."""
    if spec in above:
        raise NftbenchError(f"{spec}: it is built on itself")
    if attack.optimizer is not None and attack.optimizer not in suite.budget.learning_rates:
        raise NftbenchError(f"{spec}: budget.learning_rates has no grid for {attack.optimizer!r}")
    for text in attack.uses():
        used: Attack = registry.create("attacks", text)
        surplus = sorted(used.knowledge - attack.knowledge)
        if surplus:
            raise NftbenchError(f"{spec}: it is built on {text!r}, which also knows {', '.join(surplus)}")
        _check_attack(suite, canonical("attacks", text), used, (*above, spec))


def _skipped(suite: Suite, spec: Spec, defense: Defense, attack: Attack, references: set[str]) -> str | None:
    if not attack.uses_release and str(spec) not in references:
        return "uses no release: planned once, under the reference row"
    if "secret" in attack.knowledge and not defense.keeps_secret:
        return "the defense keeps no secret"
    if attack.adaptation in OF_UPDATES and not defense.releases_update:
        return "the defense releases no update"
    if attack.adaptation == "merging" and len(suite.tasks) < 2:
        return "the suite has no other ranked task to merge with"
    if "data" in attack.knowledge and suite.corpus.source == "none":
        return "the suite has no public text"
    if "sibling" in attack.knowledge and not defense.keeps_secret:
        return "the defense keeps no secret that a second checkpoint could show"
    if "sibling" in attack.knowledge and defense.stage != "pretrain":
        return "the defense changes a finished model: its run has no second checkpoint"
    return attack.applies(defense)


class _Keys:
    """Keys of one plan; whatever several cells share is hashed once."""

    def __init__(self, suite: Suite, device: Device, data: Path | None, limit: int | None) -> None:
        self.suite, self.device, self.data, self.limit = suite, device, data, limit
        self.source = functools.cache(lambda kind, name: registry.source_hash(registry.find(kind, name)))
        self.base = functools.cache(lambda seed: base_key(suite, seed, data, device))
        self.task_data = functools.cache(lambda task: _task_data(task, data))
        self.budget = suite.budget.model_dump(exclude={"timeout"}, exclude_defaults=True)

    def release(self, spec: Spec, plugin: Defense, seed: int) -> str:
        source = self.source("defenses", spec.name)
        parts: list[Any] = [self.base(seed), spec.name, registry.parameters(plugin), source, plugin.fingerprint()]
        if plugin.told():
            parts += [_told(self.suite, plugin.told(), self.data), self.limit, seed]
        return digest("release", *parts)[:32]

    def cell(self, release: str, attack: Spec, plugin: Attack, task: Spec, seed: int) -> str:
        others = [_told(self.suite, self.suite.tasks, self.data)] if plugin.adaptation == "merging" else []
        others += [self.built_on(text) for text in plugin.uses()]
        return digest(
            "cell",
            release,
            [attack.name, registry.parameters(plugin), self.source("attacks", attack.name), *others],
            [str(task), self.source("tasks", task.name), self.task_data(task)],
            self.budget,
            self.limit,
            seed,
        )

    def built_on(self, text: str) -> list[Any]:
        """What a number depends on through another attack."""
        spec = canonical("attacks", text)
        plugin: Attack = registry.create("attacks", text)
        source, below = self.source("attacks", spec.name), [self.built_on(one) for one in plugin.uses()]
        return [spec.name, registry.parameters(plugin), source, *below]

    def reading(self, release: str, attack: Spec, task: Spec, plugin: Yardstick, seed: int) -> str:
        source = self.source("yardsticks", task.name)
        used = _told(self.suite, plugin.uses(), self.data)
        told = [str(attack), task.name, registry.parameters(plugin), source]
        return digest("reading", release, told, used, self.budget, self.limit, seed)


def _task_data(task: Spec, data: Path | None) -> list[str]:
    """Hashes of the local files that a task reads; its hub revision stands in its own source."""
    path = registry.find("tasks", task.name).path
    if path is None or path.suffix != ".yaml":
        return [registry.create("tasks", str(task)).fingerprint(data)]
    config = folders.settings(path)
    if data is None or not (config.get("dataset_path") or (config.get("metadata") or {}).get("folder")):
        return []
    folder = folders.find(data, config)
    return [file_hash(file) for file in sorted(folder.iterdir()) if file.is_file()]
