"""The plan of a suite: its cells with their keys, grouped into jobs. Nothing runs here."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from nftbench.contract import Yardstick
from nftbench.device import CPU, Device
from nftbench.errors import NftbenchError, suggest
from nftbench.planning import facts, pinning, registry
from nftbench.planning.facts import AttackFacts, DefenseFacts, Described
from nftbench.planning.keys import Keys
from nftbench.planning.plugin_sources import Source
from nftbench.planning.specs import canonical, task_spec
from nftbench.records.identity import digest
from nftbench.records.manifest import Manifest, PlannedCell, Skip
from nftbench.records.record import Cell, Row
from nftbench.records.spec import Spec
from nftbench.suites.schema import Family, PaperClaim, Quantity, Suite
from nftbench.terms import OF_UPDATES, Role


@dataclass(frozen=True)
class Job:
    """The cells of one defense, seed and attack. They share the release and the attack's preparation."""

    defense: Spec
    attack: Spec
    seed: int
    cells: tuple[Cell, ...]

    @property
    def key(self) -> str:
        return digest(self.release, str(self.attack), self.seed)[:32]  # the same for a part of the cells

    @property
    def release(self) -> str:
        """Key of the attacked release."""
        return self.cells[0].release

    def without(self, settled: Collection[str]) -> Job:
        """The job without the cells that have these keys."""
        return replace(self, cells=tuple(cell for cell in self.cells if cell.key not in settled))


@dataclass(frozen=True)
class Plan:
    """Everything that a run of a suite computes."""

    suite: Suite
    cells: tuple[Cell, ...]
    skips: tuple[Skip, ...]
    device: Device = CPU
    data: Path | None = None
    limit: int | None = None
    releases: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """Keys of all the suite's releases by defense and seed, even if the cells are narrowed to a part."""
    claims: tuple[PaperClaim, ...] = ()
    """The suite's claims, with specs in canonical form."""
    ladder: Mapping[str, Family] = field(default_factory=dict)
    """The suite's ladder, with specs in canonical form."""
    initialisations: tuple[str, ...] = ()
    """The rows that are further initialisations of the undefended model."""
    sources: Mapping[tuple[registry.Kind, str], Source] = field(default_factory=dict)
    """The sources of all plugins of the plan, by kind and name, at the time of planning."""
    defenses: Mapping[Spec, DefenseFacts] = field(default_factory=dict)
    attacks: Mapping[Spec, AttackFacts] = field(default_factory=dict)
    rows: Mapping[Spec, Row] = field(default_factory=dict)
    """What scoring needs to know about each defense."""
    train_documents: Mapping[Spec, int | None] = field(default_factory=dict)
    """How many of a task's training documents each attack takes; None for all."""
    built_on: Mapping[Spec, tuple[str, ...]] = field(default_factory=dict)
    """Specs of the attacks that each attack is built on, directly or through others."""
    utility_after: frozenset[Spec] = frozenset()
    """The attacks after which utility is measured again."""
    commits: Mapping[Spec, str] = field(default_factory=dict)
    """The commits of releases that are given by a hub id, as the hub had them at the time of planning."""
    fingerprints: Mapping[Spec, str] = field(default_factory=dict)
    """The fingerprints of the files that defenses read from this machine, at the time of planning."""
    added: tuple[str, ...] = ()
    """As in the manifest."""

    def jobs(self) -> list[Job]:
        """The cells grouped into jobs, in the order of seeds, then in the order of the suite."""
        groups: dict[tuple[int, str, str], list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault((cell.seed, str(cell.defense), str(cell.attack)), []).append(cell)
        return [Job(cells[0].defense, cells[0].attack, cells[0].seed, tuple(cells)) for cells in groups.values()]

    def role(self, cell: Cell) -> Role:
        """The part that the cell's task plays in the suite."""
        pair = (cell.attack, cell.task)
        if pair not in self._roles:
            self._roles[pair] = self._role(cell)
        return self._roles[pair]

    @functools.cached_property
    def _roles(self) -> dict[tuple[Spec, Spec], Role]:
        return {}

    def _role(self, cell: Cell) -> Role:
        if cell.task in self._yardsticks:
            return "yardstick"
        measured = not self.attacks[cell.attack].trains
        benign = cell.task in self._benign
        if cell.task in self._utility and (measured or not benign):
            return "utility"
        return "benign" if benign else "ranked"

    @functools.cached_property
    def _utility(self) -> frozenset[Spec]:
        return frozenset(map(task_spec, self.suite.utility))

    @functools.cached_property
    def _benign(self) -> frozenset[Spec]:
        return frozenset(map(task_spec, self.suite.benign))

    @functools.cached_property
    def _yardsticks(self) -> frozenset[Spec]:
        return frozenset(canonical("yardsticks", text) for text in self.suite.yardsticks)

    def manifest(self, command: str = "") -> Manifest:
        """The manifest of the plan, for the results folder; `command` is the command line of the run.

        The salt is left out: a folder names it only once it is packed, or where it is public anyway.
        """
        scored = [cell for cell in self.cells if cell.task not in self._yardsticks]
        readings = [cell for cell in self.cells if cell.task in self._yardsticks]
        return Manifest(
            suite=self.suite.model_copy(update={"salt": None}),
            cells=tuple(map(_planned, scored)),
            readings=tuple(map(_planned, readings)),
            claims=self.claims,
            ladder=self.ladder,
            initialisations=self.initialisations,
            skips=self.skips,
            added=self.added,
            added_defenses=tuple(sorted(filter(_is_added, {spec.name for spec in self.defenses}))),
            left_out=self._left_out(),
            labels={str(spec): one.label for spec, one in self.defenses.items() if one.label is not None},
            device=str(self.device),
            limit=self.limit,
            command=command,
        )

    def _left_out(self) -> dict[str, tuple[str, ...]]:
        """As in the manifest."""
        pairs = {(cell.defense.name, cell.attack.name) for cell in self.cells}
        found = {name: registry.written_against(name) for name in {spec.name for spec in self.defenses}}
        return {
            name: attacks
            for name, attacks in sorted(found.items())
            if attacks and not any((name, attack) in pairs for attack in attacks)
        }


def _is_added(defense: str) -> bool:
    return not registry.find("defenses", defense).is_trusted


def _planned(cell: Cell) -> PlannedCell:
    return PlannedCell(str(cell.defense), str(cell.attack), str(cell.task), cell.seed, cell.key)


def plan(
    suite: Suite,
    *,
    device: Device = CPU,
    data: Path | None = None,
    limit: int | None = None,
) -> Plan:
    """The plan of a suite. Cells are in the order of seed, defense, attack and task.

    The references of other rows come first, then the ladder and the initialisations, then all other defenses: what
    every score needs is known first.

    `data` is the folder of local data, `limit` the largest number of documents in a split.

    Raises:
        NftbenchError: a plugin or parameter does not exist, the suite cannot run a defense, an attack or a claim, or
            its toy language has no salt.
    """
    if suite.corpus.source == "toy" and suite.salt is None:
        raise NftbenchError(f"{suite.name}: its grammars depend on a salt, which is drawn for a folder of results")
    suite = pinning.pinned(suite)
    roles, ladder = _rows(suite), _ladder(suite)
    defenses = {spec: _on_base(suite, _same(spec, facts.defense(str(spec)))) for spec in roles}
    # The attack `none` is always planned, because its cells are the base utility.
    attacks = {attack.spec: attack for attack in map(facts.attack, ("none", *suite.attacks))}
    tasks = [task_spec(text) for text in suite.tasks]
    benign = [task_spec(text) for text in suite.benign]
    attacks_on: Mapping[_RowRole, Collection[Spec]] = {
        "defense": attacks,
        "dose": _ladder_attacks(suite, attacks),
        "twin": {canonical("attacks", "none")},
    }
    tasks_of: Mapping[_RowRole, list[Spec]] = {"defense": [*tasks, *benign], "dose": tasks, "twin": []}
    utility = [task_spec(text) for text in suite.utility]
    yardsticks = {canonical("yardsticks", text): registry.create("yardsticks", text) for text in suite.yardsticks}
    for defense in defenses.values():
        _check_reference(defense)
    described = pinning.with_architecture(suite)
    for spec in defenses:  # a reference that is not allowed is named before what is wrong with it
        facts.check(str(spec), described)
    for attack in attacks.values():
        _check_attack(suite, attack)
    utility_after = _utility_after(suite, attacks)
    commits = {spec: pinning.commit(place, None) for spec in defenses if (place := _hub_id(spec)) is not None}
    keys = Keys(suite, device, data, limit, defenses, attacks, utility_after, commits)
    reference_of = {spec: canonical("defenses", defense.reference) for spec, defense in defenses.items()}
    references = set(map(str, reference_of.values()))
    reasons = {
        attack.spec: _reasons(
            suite, attack, [defenses[spec] for spec in roles if attack.spec in attacks_on[roles[spec]]], references
        )
        for attack in attacks.values()
    }
    read_by = {
        defense: _applicable(yardsticks, defenses[defense]) for defense in defenses if roles[defense] == "defense"
    }
    cells: list[Cell] = []
    releases: dict[tuple[str, int], str] = {}
    skips: dict[tuple[str, str], Skip] = {}
    for seed in suite.seeds:
        releases |= {(str(defense), seed): keys.release(defense, seed) for defense in defenses}
        for row, defense in defenses.items():
            release = releases[str(row), seed]
            reference = releases.get((str(reference_of[row]), seed))  # a reference row need not have one itself
            for name, attack in attacks.items():
                if row not in reasons[name]:
                    continue
                reason = reasons[name][row]
                if reason is not None:
                    if attack.uses_release:
                        skips[str(row), str(name)] = Skip(str(row), str(name), reason)
                    continue
                for task in _tasks(defense, attack, tasks_of[roles[row]], utility):
                    key = keys.cell(release, name, task, seed, reference)
                    cells.append(Cell(row, name, task, seed, key, release))
                for yardstick in read_by.get(row, ()) if not attack.trains else ():
                    key = keys.reading(release, name, yardstick, seed, reference)
                    cells.append(Cell(row, name, yardstick, seed, key, release))
    sources = {plugin_id: Source.of(registry.find(*plugin_id)) for plugin_id in keys.plugins}
    return Plan(
        suite=suite,
        cells=tuple(cells),
        skips=tuple(skips.values()),
        device=device,
        data=data,
        limit=limit,
        releases=releases,
        claims=_claims(suite, cells),
        ladder=ladder,
        initialisations=initialisations(suite),
        sources=sources,
        defenses=defenses,
        attacks=attacks,
        rows={spec: _row(defense) for spec, defense in defenses.items()},
        train_documents={spec: facts.train_documents(str(spec), suite.budget) for spec in attacks},
        built_on={spec: built_on(attack) for spec, attack in attacks.items()},
        utility_after=utility_after,
        commits=commits,
        fingerprints={spec: found for spec in defenses if spec not in commits and (found := keys.fingerprint(spec))},
    )


def given_path(defense: Spec) -> str | None:
    """The folder, file or hub id of a release that is given; None for a release that is made."""
    return str(dict(defense.parameters)["path"]) if defense.name in GIVEN else None


def _hub_id(defense: Spec) -> str | None:
    place = given_path(defense)
    return place if place is not None and pinning.is_on_hub(place) else None


def _same(spec: Spec, defense: DefenseFacts) -> DefenseFacts:
    """Refuse a defense whose answer depends on when it is asked.

    Raises:
        NftbenchError: it describes itself by another spec than before.
    """
    if defense.spec != spec:
        raise NftbenchError(
            f"{spec}: its parameters change when it is built again, to {defense.spec}; keep each field as it was given"
        )
    return defense


def _on_base(suite: Suite, defense: DefenseFacts) -> DefenseFacts:
    """The defense on the suite's base. A checkpoint whose twin is the given base is compared with the row `none`.

    Raises:
        NftbenchError: the defense pre-trains, and the base is given.
    """
    if suite.given is None:
        return defense
    if defense.name == "checkpoint":
        twin = Spec.parse(defense.reference)
        is_base = dict(twin.parameters).get("path") == suite.given.path and twin != defense.spec
        return replace(defense, reference="none") if is_base else defense
    if defense.name in OF_THE_RUN or (defense.stage == "pretrain" and defense.name not in GIVEN):
        raise NftbenchError(
            f"{defense.spec}: it pre-trains, and the base of this suite is given ({suite.given.path}); only defenses "
            "and controls that change a trained model run on it"
        )
    return defense


def narrow(
    whole: Plan,
    *,
    defenses: Sequence[str] = (),
    attacks: Sequence[str] = (),
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> Plan:
    """The part of a plan that matches all filters. An empty filter matches everything.

    A name matches every spec of the plugin; a spec with brackets matches itself alone.

    Raises:
        NftbenchError: the suite does not have a seed, or no cell matches.
    """
    check_seeds(whole.suite, seeds)
    cells = tuple(cell for cell in whole.cells if not seeds or cell.seed in seeds)
    filters: Mapping[registry.Kind, Sequence[str]] = {"defenses": defenses, "attacks": attacks, "tasks": tasks}
    for kind, texts in filters.items():
        names = {text for text in texts if not names_one_spec(text)}
        specs = {filter_spec(kind, text) for text in texts if names_one_spec(text)}
        spec = operator.attrgetter(kind.removesuffix("s"))
        cells = tuple(cell for cell in cells if not texts or spec(cell).name in names or spec(cell) in specs)
    if not cells:
        skips = [
            f"{skip.attack} against {skip.defense}: {skip.reason}" for skip in whole.skips if skip.attack in attacks
        ]
        raise NftbenchError(f"{whole.suite.name}: no cell matches the filters{f' ({skips[0]})' if skips else ''}")
    return replace(whole, cells=cells)


def check_seeds(suite: Suite, seeds: Sequence[int]) -> None:
    """Refuse base seeds that a suite does not have.

    Raises:
        NftbenchError: names the first.
    """
    for seed in seeds:
        if seed not in suite.seeds:
            raise NftbenchError(f"{suite.name} has no seed {seed}; its seeds: {', '.join(map(str, suite.seeds))}")


def names_one_spec(text: str) -> bool:
    """Whether a filter matches one spec alone, and not every spec of a name."""
    return "[" in text


def filter_spec(kind: registry.Kind, text: str) -> Spec:
    """The spec in a filter, in canonical form. A name alone is not checked, as the plugin may need parameters."""
    if not names_one_spec(text):
        return Spec.parse(text)
    return task_spec(text) if kind == "tasks" else canonical(kind, text)


def _tasks(defense: DefenseFacts, attack: AttackFacts, ranked: list[Spec], utility: list[Spec]) -> list[Spec]:
    """The tasks that an attack runs on. An attack on an update runs on the update's own task alone."""
    if attack.adaptation in OF_UPDATES:
        own = task_spec(defense.told[0])
        return [task for task in ranked if task == own]
    return ranked if attack.trains else list(dict.fromkeys([*ranked, *utility]))  # a benign task may be measured too


GIVEN = ("checkpoint", "smaller")
"""The defenses whose releases are given and not made."""
OF_THE_RUN = ("early_stop",)
"""The defenses that take a finished model and an earlier state of its pre-training run."""
DEEPEST = 10
"""How many attacks may be built one upon the other."""

_RowRole = Literal["defense", "dose", "twin"]
"""A dose is attacked by the ladder's attacks alone, a twin is only measured for utility."""

QUANTITIES = ("score", "gain", "kept", "utility", "utility_after")
"""The quantities of scores in claims. All others are values of yardsticks, as `<yardstick>.<value>`."""


def _claims(suite: Suite, cells: list[Cell]) -> tuple[PaperClaim, ...]:
    """The suite's claims, with specs in canonical form.

    Raises:
        NftbenchError: a claim names a plugin that the suite does not run, an unknown quantity, or utility after an
            attack after which it is not measured.
    """
    known = {
        "rows": {str(cell.defense) for cell in cells},
        "attacks": {str(cell.attack) for cell in cells},
        "tasks": {str(cell.task) for cell in cells},
    }
    yardsticks = {Spec.parse(text).name for text in suite.yardsticks}
    after = {str(canonical("attacks", text)) for text in suite.utility_after}

    def checked(quantity: Quantity) -> Quantity:
        specs = {
            "rows": tuple(str(canonical("defenses", text)) for text in quantity.rows),
            "attacks": tuple(str(canonical("attacks", text)) for text in quantity.attacks),
            "tasks": tuple(str(task_spec(text)) for text in quantity.tasks),
        }
        name, dot, _ = quantity.read.partition(".")
        named = [(spec, known[axis]) for axis, texts in specs.items() for spec in texts]
        for text, names in [*named, (name, yardsticks if dot else set(QUANTITIES))]:
            if text not in names:
                raise NftbenchError(f"{suite.name}: claims: unknown {text!r}{suggest(text, sorted(names))}")
        unmeasured = sorted(set(specs["attacks"]) - after)
        if quantity.read == "utility_after" and (unmeasured or not specs["attacks"]):
            what = f"{', '.join(unmeasured)}: not in the suite's utility_after" if unmeasured else "name its attacks"
            raise NftbenchError(f"{suite.name}: claims: utility_after: {what}")
        return quantity.model_copy(update=specs)

    return tuple(
        claim.model_copy(
            update={key: checked(one) for key in ("read", "minus", "over") if (one := getattr(claim, key)) is not None}
        )
        for claim in suite.claims
    )


def _rows(suite: Suite) -> dict[Spec, _RowRole]:
    """Every row of the plan in its order, with the part that it plays. What `defenses` lists is a defense first."""
    listed = [canonical("defenses", text) for text in suite.defenses]
    doses = [canonical("defenses", dose) for family in _ladder(suite).values() for dose in family.doses]
    twins = [canonical("defenses", row) for row in initialisations(suite)]
    rows = [_on_base(suite, facts.defense(str(spec))) for spec in (*listed, *doses)]
    references = [canonical("defenses", row.reference) for row in rows]
    return {
        spec: "defense" if spec in (*listed, *references) else "dose" if spec in doses else "twin"
        for spec in (*references, *doses, *twins, *listed)
    }


def _ladder(suite: Suite) -> dict[str, Family]:
    """The suite's ladder, with specs in canonical form.

    Raises:
        NftbenchError: a dose is unknown, is on the ladder twice, or is no trivial defense.
    """
    found: dict[str, Family] = {}
    seen: set[str] = set()
    for name, family in suite.ladder.items():
        doses = [facts.defense(text) for text in family.doses]
        for dose in doses:
            if str(dose.spec) in seen:
                raise NftbenchError(f"{suite.name}: ladder: {dose.spec} is listed twice")
            if not dose.trivial:
                raise NftbenchError(f"{suite.name}: ladder: {dose.spec} is no trivial defense")
            seen.add(str(dose.spec))
        found[name] = family.model_copy(update={"doses": tuple(str(dose.spec) for dose in doses)})
    return found


def _ladder_attacks(suite: Suite, attacks: Collection[Spec]) -> set[Spec]:
    """The attacks on rows that are only doses. Without a ladder there are no such rows.

    Raises:
        NftbenchError: one of them is unknown, or not among the suite's attacks.
    """
    if not suite.ladder or not suite.ladder_attacks:
        return set(attacks)
    found = {canonical("attacks", text) for text in ("none", *suite.ladder_attacks)}
    for spec in sorted(map(str, found - set(attacks))):
        raise NftbenchError(
            f"{suite.name}: ladder_attacks: {spec} is not among the suite's attacks; list it there "
            "too, or name others with --set 'ladder_attacks=[…]'"
        )
    return found


def _utility_after(suite: Suite, attacks: Mapping[Spec, AttackFacts]) -> frozenset[Spec]:
    """The attacks after which utility is measured again.

    Raises:
        NftbenchError: one of them is unknown, not among the suite's attacks, or leaves the release as it is.
    """
    found = frozenset(canonical("attacks", text) for text in suite.utility_after)
    for spec in sorted(found, key=str):
        if spec not in attacks:
            raise NftbenchError(f"{suite.name}: utility_after: {spec} is not among the suite's attacks")
        if not attacks[spec].trains:
            raise NftbenchError(f"{suite.name}: utility_after: {spec} changes no weight, so utility stays as it is")
    return found


def initialisations(suite: Suite) -> tuple[str, ...]:
    """The rows that are further initialisations of the undefended model, which is the first itself."""
    return tuple(str(canonical("defenses", f"twin[index={index}]")) for index in range(1, suite.initialisations))


def _check_reference(defense: DefenseFacts) -> None:
    """Refuse a reference that the defense could have made to look good beside: only the undefended model has no maker.

    A checkpoint brings an undefended twin of its own.

    Raises:
        NftbenchError: the reference is neither `none` nor, for such a row, a checkpoint.
    """
    reference = canonical("defenses", defense.reference)
    if str(reference) != "none" and not (reference.name == "checkpoint" == defense.name):
        raise NftbenchError(f"{defense.spec}: its reference row must be none, and it is {reference}")


def _row(defense: DefenseFacts) -> Row:
    return Row(
        stage=defense.stage,
        trivial=defense.trivial,
        reference=str(canonical("defenses", defense.reference)),
        control=str(canonical("defenses", defense.control)) if defense.control is not None else None,
        claim=defense.claims,
        task_aware=defense.task_aware or bool(defense.told),
        told=tuple(str(task_spec(text)) for text in defense.told),
    )


def built_on(attack: AttackFacts) -> tuple[str, ...]:
    """Specs of the attacks that this attack is built on, directly or through others."""
    below = (built_on(facts.attack(spec)) for spec in attack.uses)
    return (*attack.uses, *itertools.chain.from_iterable(below))


def _check_attack(suite: Suite, attack: AttackFacts, above: tuple[Spec, ...] = ()) -> None:
    """Check an attack and the attacks that it is built on.

    Raises:
        NftbenchError: the attack is built on itself, on more than `DEEPEST` others in a row or on an attack with more
            knowledge, or the suite has no learning rates for its optimizer.
    """
    if attack.spec in above:
        raise NftbenchError(f"{attack.spec}: it is built on itself")
    if len(above) > DEEPEST:
        raise NftbenchError(f"{above[0]}: it is built on a chain of more than {DEEPEST} attacks")
    if attack.optimizer is not None and attack.optimizer not in suite.budget.learning_rates:
        raise NftbenchError(f"{attack.spec}: budget.learning_rates has no grid for {attack.optimizer!r}")
    for text in attack.uses:
        used = facts.attack(text)
        surplus = sorted(used.knowledge - attack.knowledge)
        if surplus:
            raise NftbenchError(
                f"{attack.spec}: it uses {text!r}, which needs more knowledge; add to its own: {', '.join(surplus)}"
            )
        _check_attack(suite, used, (*above, attack.spec))


def _reasons(
    suite: Suite, attack: AttackFacts, defenses: Sequence[DefenseFacts], references: Collection[str]
) -> Mapping[Spec, str | None]:
    """Why the attack does not run against each of these defenses; None where it runs."""
    unfit = {defense.spec: _unfit(suite, defense, attack, references) for defense in defenses}
    left = tuple(defense for defense in defenses if unfit[defense.spec] is None)
    declined = facts.declined(str(attack.spec), left) if left else ()
    return unfit | {defense.spec: reason for defense, reason in zip(left, declined, strict=True)}


def _unfit(suite: Suite, defense: DefenseFacts, attack: AttackFacts, references: Collection[str]) -> str | None:
    """Why the attack has nothing to run on; None where it has, and may only decline by itself."""
    if not attack.uses_release and str(defense.spec) not in references:
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
    return None


def _applicable(yardsticks: Mapping[Spec, Yardstick], defense: DefenseFacts) -> list[Spec]:
    """The yardsticks that can measure releases of the defense."""
    return [spec for spec, yardstick in yardsticks.items() if yardstick.applies(Described(defense)) is None]
