"""A `Suite` becomes `Cell`s, and cells become jobs; nothing runs here.

Each cell has a key, made in `keys.py`, and the plan knows the digests of the code that makes the cell's number.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nftbench.contract import Attack, Defense
from nftbench.device import CPU, Device
from nftbench.errors import NftbenchError, suggest
from nftbench.planning import registry
from nftbench.planning.keys import TODAY, Keys, Scheme
from nftbench.planning.plugin_sources import Source
from nftbench.planning.specs import canonical, task_spec
from nftbench.records.identity import digest
from nftbench.records.manifest import Manifest, PlannedCell, Skip
from nftbench.records.record import Cell, Row
from nftbench.records.spec import Spec
from nftbench.suites.schema import PaperClaim, Quantity, Suite
from nftbench.terms import OF_UPDATES, Role


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
    sources: Mapping[tuple[registry.Kind, str], Source] = field(default_factory=dict)
    """The plugins that its numbers come from, by kind and name, as they were when this was planned."""

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


def plan(
    suite: Suite,
    *,
    device: Device = CPU,
    data: Path | None = None,
    limit: int | None = None,
    scheme: Scheme = TODAY,
) -> Plan:
    """All cells of a suite, in order: seed, defense, attack, task. `scheme` says how their keys are made.

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
    keys = Keys(suite, device, data, limit, scheme)
    references = {str(canonical("defenses", plugin.reference_row())) for plugin in defenses.values()}
    cells: list[Cell] = []
    releases: dict[tuple[str, int], str] = {}
    skips: dict[tuple[str, str], Skip] = {}
    for seed in suite.seeds:
        for defense, plugin in defenses.items():
            release = releases[str(defense), seed] = keys.release(defense, seed)
            for attack, attacker in attacks.items():
                reason = _skipped(suite, defense, plugin, attacker, references)
                if reason is not None:
                    if attacker.uses_release:
                        skips[str(defense), str(attack)] = Skip(str(defense), str(attack), reason)
                    continue
                for task in _tasks(plugin, attacker, tasks, utility):
                    key = keys.cell(release, attack, task, seed)
                    cells.append(Cell(defense, attack, task, seed, key, release))
                for task, yardstick in yardsticks.items() if not attacker.trains else ():
                    if yardstick.applies(plugin) is None:
                        key = keys.reading(release, attack, task, seed)
                        cells.append(Cell(defense, attack, task, seed, key, release))
    sources = {place: Source.of(registry.find(*place)) for place in keys.plugins}
    return Plan(
        suite, tuple(cells), tuple(skips.values()), device, data, limit, releases, _claims(suite, cells), sources
    )


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
        return Spec.parse(text)
    return task_spec(text) if kind == "tasks" else canonical(kind, text)


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
    yardsticks = {Spec.parse(text).name for text in suite.yardsticks}

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
