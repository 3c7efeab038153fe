"""A suite's records by cell: which cells should have one, which records are results, and which attack is best.

A missing or failed record never counts in a defense's favour.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from nftbench.contract import Measurement
from nftbench.records.record import CellId, Record, Row
from nftbench.records.spec import Spec
from nftbench.scoring.pairing import unpaired
from nftbench.scoring.points import BestAttacks, final, mean_points, points, preference
from nftbench.suites.schema import Family
from nftbench.terms import KNOWLEDGE, Adaptation, TrainedWeights

NONE = "none"
"""The attack that does nothing. Its scores are the base utility, and every gain is the difference to them."""
UNDEFENDED = "none"
"""The row that a suite pre-trains itself."""
Attacks = frozenset[str]
"""A set of attacks, each by its spec as text."""
Knowledge = frozenset[str]
"""What an attacker has besides the release and the task: one level of knowledge."""
COUNTED_WITH: Mapping[Adaptation, frozenset[Adaptation]] = {
    "finetuning": frozenset({"finetuning", "linear_probe"}),
    "linear_probe": frozenset({"linear_probe"}),
    "merging": frozenset({"merging"}),
    "rescaling": frozenset({"rescaling"}),
}
"""The kinds of attacks that count against a claim about a kind. An attacker who may fine-tune may also fit a probe."""


def called(reference: str) -> str:
    """A reference in a sentence, where the row's name `none` would read as *no model*."""
    return "the undefended model" if reference == UNDEFENDED else reference


def knowledge_name(knowledge: Iterable[str]) -> str:
    """The level of knowledge in words, as in `method+data`; `release alone` if it is empty."""
    return "+".join(sorted(knowledge, key=KNOWLEDGE.index)) or "release alone"


@dataclass(frozen=True)
class Grid:
    """The records by cell, and the cells that should have one."""

    records: Mapping[CellId, Record]
    expected: frozenset[CellId]
    faults: Mapping[CellId, str]
    """Why a cell has no result."""
    attacks: Mapping[str, Record]
    """One record of each attack, to look up properties of the attack."""
    rows: Mapping[str, Row]
    seeds: Mapping[str, tuple[int, ...]]
    tasks: tuple[str, ...]
    """The tasks that are scored. Benign ones are attacked as well, and do not count."""
    metrics: tuple[str, ...]
    """Utility tasks."""
    ranking: Knowledge
    ladder: Mapping[str, Family] = field(default_factory=dict)
    """The suite's families of trivial defenses by name."""
    initialisations: tuple[str, ...] = ()
    """Rows that pre-train the reference again from other initial weights."""

    added: Attacks = frozenset()
    """Attacks that the suite does not list, from outside nftbench: they count against defenses alone."""
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By name of a defense: attacks of nftbench that were written against it, where the plan has none of them."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """By name of a defense: how many other versions of it had results on the same grammars."""

    # ------------------------------------------------------------------------------------------------ sets of attacks

    def within(self, knowledge: Knowledge, adaptation: Adaptation = "finetuning") -> Attacks:
        """Attacks that need no more than this knowledge and adapt the release in this way; `none` is always one.

        An attack that has no record yet is always one too, since it may be the strongest.
        """
        return frozenset(
            attack
            for attack in self._expected_attacks
            if attack not in self.attacks
            or (
                knowledge - {"secret"} >= set(self.attacks[attack].knowledge)
                and (attack == NONE or self.attacks[attack].adaptation in COUNTED_WITH[adaptation])
            )
        )

    def ignoring_release(self) -> Attacks:
        """Attacks that ignore the release: they are recorded once, with the reference, and open to every attacker."""
        return frozenset(attack for attack, record in self.attacks.items() if not record.uses_release)

    def from_scratch(self) -> Attacks:
        """Attacks that ignore the release and know nothing else: the floor of what an attacker reaches.

        An attack that ignores the release but is given public text is no floor. It is the control of attacks that
        prepare on the same text. Nor is an added attack: on a task where it ends above the undefended model, no
        defense would be scored.
        """
        alone = self.ignoring_release() - self.added
        return frozenset(attack for attack in alone if not self.attacks[attack].knowledge)

    def by_owner(self) -> Attacks:
        """The owner's own fine-tuning, which uses the secret."""
        return frozenset(attack for attack, record in self.attacks.items() if "secret" in record.knowledge)

    def training(self, *weights: TrainedWeights) -> Attacks:
        """Attacks that train these weights of the release. Attacks without a record are not included."""
        return frozenset(attack for attack, record in self.attacks.items() if record.trained_weights in weights)

    def attacks_on(self, defense: str) -> Attacks:
        """The attacks that are expected on this release, `none` among them."""
        return self._attacks_by_defense.get(defense, frozenset())

    def uses_all(self, defense: str, knowledge: Knowledge, adaptation: Adaptation = "finetuning") -> bool:
        """Whether the attacks on this release together use all of the knowledge. If not, the level counts as untested.

        True as well if an attack has no record yet, because that attack may use it. Added attacks do not count here:
        the author of a defense could add a weak one.
        """
        tried = self.attacks_on(defense) & self.within(knowledge, adaptation) - self.added
        known = [self.attacks[attack] for attack in tried if attack in self.attacks]
        used = [set(record.knowledge) for record in known if record.trains and record.uses_release]
        return len(known) < len(tried) or (bool(used) and set().union(*used) == knowledge)

    def references(self) -> set[str]:
        return {row.reference for row in self.rows.values()}

    def counts(self, attack: str, defense: str, cell: CellId) -> bool:
        """Whether what this attack reaches on this row, in this cell, is scored.

        An added attack is not, on references and trivial defenses. Its author could have made it strong on them and
        weak on a defense of the author's own, which would then seem to take more from attackers. Where it has no
        result it is left out: its author could make it fail on all other defenses, which would lose their ranks.
        """
        if attack not in self.added:
            return True
        return not (self.rows[defense].trivial or defense in self.references() or cell in self.faults)

    def records_of(self, defense: str) -> Sequence[Record]:
        """Every record of this row, in the order of cells."""
        return self._records_by_defense.get(defense, ())

    # ------------------------------------------------------------------------------------------------------ the best

    def best_attacks(self, defense: str, tasks: Sequence[str], attacks: Attacks) -> BestAttacks | None:
        """The attack that is best on validation, for each seed and task. A seed with missing cells is left out.

        Of several attacks, those that do not count on this row are left out; one alone is looked at on every row.

        None where a cell failed: its attack may have been the strongest, or its seed the weakest.
        """
        asked = (defense, tuple(tasks), attacks)
        if asked not in self._remembered:
            candidates = self._candidates(defense, tasks, attacks)
            best = {
                seed: tuple(self.records[self._best(cells)] for cells in by_task)
                for seed, by_task in (candidates or {}).items()
            }
            self._remembered[asked] = None if candidates is None else best
        return self._remembered[asked]

    def _best(self, cells: Sequence[CellId]) -> CellId:
        """The cell of the best attack on validation.

        An added attack takes the place of the catalogue's best only where it ends further on the test split, too. Its
        author may know documents by which the referee chooses, if they are public: an attack that knows them by heart,
        and nothing else, would push better ones out.
        """
        best = max(cells, key=self._preferences.__getitem__)
        listed = [cell for cell in cells if cell.attack not in self.added]
        if not listed or best in listed:
            return best
        usual = max(listed, key=self._preferences.__getitem__)
        least = points(final(self.records[usual]))
        further = [
            cell
            for cell in cells
            if self._preferences[cell] > self._preferences[usual] and points(final(self.records[cell])) > least
        ]
        return max(further, key=self._preferences.__getitem__, default=usual)

    def best_finetuning(self, defense: str, tasks: Sequence[str], attacks: Attacks) -> BestAttacks | None:
        """As `best_attacks`; None also where no attack fine-tunes this release, since nothing was tried then."""
        tried = self.attacks_on(defense) & attacks
        known = [self.attacks[attack] for attack in tried if attack in self.attacks]
        if len(known) == len(tried) and not any(record.trains and record.uses_release for record in known):
            return None
        return self.best_attacks(defense, tasks, attacks)

    def candidates(self, defense: str, tasks: Sequence[str], attacks: Attacks) -> Mapping[int, list[list[Record]]]:
        """By seed and task: every record that `best_attacks` chooses from."""
        found = self._candidates(defense, tasks, attacks) or {}
        return {seed: [[self.records[cell] for cell in cells] for cells in by_task] for seed, by_task in found.items()}

    def scores(self, defense: str, task: str, attacks: Attacks) -> dict[int, float]:
        """Test scores of the best attack on one task, in points by seed; empty where a cell failed."""
        return mean_points(self.best_attacks(defense, [task], attacks)) if defense in self.rows else {}

    def cell(self, defense: str, attack: str, task: str, seed: int) -> CellId:
        """The cell of an attack on this row: the reference's own, if the attack ignores the release."""
        known = self.attacks.get(attack)
        shared = known is not None and not known.uses_release
        return CellId(self.rows[defense].reference if shared else defense, attack, task, seed)

    def _candidates(self, defense: str, tasks: Sequence[str], attacks: Attacks) -> dict[int, list[list[CellId]]] | None:
        """By seed and task: the cells that `best_attacks` chooses from."""
        found: dict[int, list[list[CellId]]] = {}
        for seed in self.seeds.get(defense, ()) if tasks else ():
            by_task = [self._expected(defense, task, seed, attacks) for task in tasks]
            faulty = [cell for cells in by_task for cell in cells if cell in self.faults]
            if any(cell in self.records for cell in faulty):
                return None
            if all(by_task) and not faulty:
                found[seed] = by_task
        return found

    def _expected(self, defense: str, task: str, seed: int, attacks: Attacks) -> list[CellId]:
        cells = {attack: self.cell(defense, attack, task, seed) for attack in attacks}
        return [
            cell
            for attack, cell in cells.items()
            if cell in self.expected and (len(cells) == 1 or self.counts(attack, defense, cell))
        ]

    @functools.cached_property
    def _remembered(self) -> dict[tuple[str, tuple[str, ...], Attacks], BestAttacks | None]:
        """The best attacks that were asked for so far. Scoring asks for the same ones again and again."""
        return {}

    @functools.cached_property
    def released(self) -> Mapping[str, Mapping[int, tuple[str, Mapping[str, object]]]]:
        """By row and base seed: the hash of the released weights and the changes of configuration, where recorded."""
        found: dict[str, dict[int, tuple[str, Mapping[str, object]]]] = {}
        for record in self.records.values():
            if record.release_sha256 and record.protection:
                release = (record.release_sha256, record.protection.config_changed)
                found.setdefault(record.defense, {})[record.seed] = release
        return found

    @functools.cached_property
    def _preferences(self) -> Mapping[CellId, tuple[float, float, float, str]]:
        return {cell: preference(record) for cell, record in self.records.items()}

    @functools.cached_property
    def _records_by_defense(self) -> Mapping[str, Sequence[Record]]:
        return {
            defense: [self.records[cell] for cell in cells]
            for defense, cells in itertools.groupby(sorted(self.records), key=lambda cell: cell.defense)
        }

    @functools.cached_property
    def _expected_attacks(self) -> Attacks:
        return frozenset(cell.attack for cell in self.expected)

    @functools.cached_property
    def _attacks_by_defense(self) -> Mapping[str, Attacks]:
        return {
            defense: frozenset(cell.attack for cell in cells)
            for defense, cells in itertools.groupby(sorted(self.expected), key=lambda cell: cell.defense)
        }


# --------------------------------------------------------------------------------------------------- making the grid

FAR = 6.0
"""Standard errors by which a test score may exceed the selection score. Among 1,800 cells the furthest is 3.4."""

ENDLESS = 1e100
"""A score of this size counts as infinite. It has no variance in floating point, and would end the whole scoring."""


def arrange(
    records: Sequence[Record],
    planned: Sequence[CellId] | None,
    ranking: Knowledge,
    ladder: Mapping[str, Family] = MappingProxyType({}),
    initialisations: Sequence[str] = (),
    added: Sequence[str] = (),
) -> tuple[Grid, list[str]]:
    """The grid of a suite's records, and what is wrong with them as a whole.

    Without a plan the cells that should have a record are inferred from the records. `added` names the attacks that the
    suite does not list and that do not come with nftbench.
    """
    problems = []
    wanted = None if planned is None else frozenset(planned)
    ordered = [(CellId.of(record), record) for record in records if record.role != "yardstick"]
    ordered.sort(key=lambda pair: (pair[0], pair[1].key))
    in_plan = [(cell, record) for cell, record in ordered if wanted is None or cell in wanted]
    if len(in_plan) < len(ordered):
        problems.append(f"{len(ordered) - len(in_plan)} records outside the plan are left out")
    found, held = dict(in_plan), [record for _, record in in_plan]
    expected = _implied(held) if wanted is None else _whole(wanted, held, {*initialisations, *doses(ladder)})
    unlike = unpaired(held)
    problems += [f"{defense}: {reason}" for (defense, _), reason in unlike.items()]
    metrics, benign = ({record.task for record in held if record.role == role} for role in ("utility", "benign"))
    attacked = {cell.task for cell in expected if cell.attack != NONE}
    seeds: dict[str, set[int]] = defaultdict(set)
    for cell in expected:
        seeds[cell.defense].add(cell.seed)
    grid = Grid(
        records=found,
        expected=expected,
        faults=_faults(in_plan, found, expected, unlike),
        attacks={record.attack: record for record in held},
        rows={record.defense: record.row for record in held},
        seeds={defense: tuple(sorted(own)) for defense, own in seeds.items()},
        tasks=tuple(sorted((attacked or {cell.task for cell in expected}) - metrics - benign)),
        metrics=tuple(sorted(metrics)),
        ranking=ranking,
        ladder=ladder,
        initialisations=tuple(initialisations),
        added=frozenset(cell.attack for cell in expected if Spec.parse(cell.attack).name in added),
    )
    return grid, problems


def _faults(
    records: Sequence[tuple[CellId, Record]],
    by_cell: Mapping[CellId, Record],
    expected: frozenset[CellId],
    unlike: Mapping[tuple[str, int], str],
) -> dict[CellId, str]:
    """Why a cell has no result that counts; `unlike` gives the defenses and seeds that are paired with another base."""
    faults = {cell: "missing" for cell in expected if cell not in by_cell}
    faults |= {cell: fault for cell, record in by_cell.items() if (fault := _fault(record))}
    twice = [cell for cell, record in records if record.key != by_cell[cell].key]
    faults |= dict.fromkeys(twice, "recorded twice, with different keys")
    faults |= _different_weights([record for _, record in records])
    return faults | {cell: unlike[row] for cell in by_cell if (row := (cell.defense, cell.seed)) in unlike}


def _different_weights(records: Sequence[Record]) -> dict[CellId, str]:
    """Cells of one row and seed that did not attack the same weights."""
    hashes: dict[tuple[str, int], set[str]] = {}
    used = [record for record in records if record.uses_release and record.release_sha256]
    for record in used:
        hashes.setdefault((record.defense, record.seed), set()).add(record.release_sha256)
    return {
        CellId.of(record): "cells of this row and seed attacked different weights"
        for record in used
        if len(hashes[record.defense, record.seed]) > 1
    }


def _implied(records: Sequence[Record]) -> frozenset[CellId]:
    """The cells that records imply: every attack of a row, and of its reference, on all tasks and seeds.

    Otherwise a row would look stronger for lacking an attack that its reference was given.
    """
    cells = {CellId.of(record) for record in records}
    attacked = [record for record in records if record.role == "ranked"]
    tasks = {record.task for record in attacked}
    metrics = {record.task for record in records} - tasks
    shared = {(one.defense, one.attack) for one in attacked if one.uses_release and "secret" not in one.knowledge}
    for defense, reference in {(record.defense, record.row.reference) for record in records}:
        seeds = {cell.seed for cell in cells if cell.defense == defense}
        attacks = {record.attack for record in attacked if record.defense == defense}
        attacks |= {attack for owner, attack in shared if owner == reference}
        cells |= {CellId(defense, attack, task, seed) for attack in attacks for task in tasks for seed in seeds}
        cells |= {CellId(defense, NONE, task, seed) for task in metrics for seed in seeds}
    return frozenset(cells)


def _whole(planned: frozenset[CellId], records: Sequence[Record], fewer: Collection[str]) -> frozenset[CellId]:
    """The plan, and the cells that it lacks: an attack on a row belongs on every seed of the row and of its reference,
    and on every task on which its reference is attacked by it.

    Folders that were merged can leave such holes, and a row would look stronger for lacking a cell: its author could
    leave out the seeds at which it is weak. `fewer` are rows that are measured on fewer tasks than their reference on
    purpose.
    """
    references = {record.defense: record.row.reference for record in records if record.defense not in fewer}
    seeds: dict[str, set[int]] = defaultdict(set)
    tasks: dict[tuple[str, str], set[str]] = defaultdict(set)
    for cell in planned:
        seeds[cell.defense].add(cell.seed)
        tasks[cell.defense, cell.attack].add(cell.task)
    return planned | {
        CellId(defense, attack, task, seed)
        for (defense, attack), own in tasks.items()
        for task in own | tasks.get((references.get(defense, defense), attack), set())
        for seed in seeds[defense] | seeds[references.get(defense, defense)]
    }


def doses(ladder: Mapping[str, Family]) -> set[str]:
    """The rows that are doses of some family."""
    return {dose for family in ladder.values() for dose in family.doses}


def _fault(record: Record) -> str | None:
    """Why this record is no result, or None where it is one."""
    if record.status != "ok":
        return record.status + (f" ({record.reason})" if record.reason else "")
    if record.limited:
        return "run under --limit"
    if record.attack == NONE:
        return None if _finite(record.attacked or record.unattacked) else "no test score"
    if not _finite(record.validation):
        return "no validation score"
    return _read_test(record) if _finite(record.attacked) else "no test score"


def _read_test(record: Record) -> str | None:
    """Whether the attack did so much better on test than on selection documents that it must have seen the former.

    Such a score is no result of fine-tuning. On the undefended model alone it would even flatter every defense.
    """
    chosen, scored = record.validation, record.attacked
    assert chosen is not None
    assert scored is not None
    beyond, error = points(scored) - points(chosen), 100 * math.hypot(chosen.stderr, scored.stderr)
    if not beyond > FAR * error > 0:
        return None
    return (
        f"test score {beyond:.1f} points above selection, {beyond / error:.0f} standard errors: it read the test split"
    )


def _finite(measurement: Measurement | None) -> bool:
    return measurement is not None and abs(measurement.value) < ENDLESS  # not so for NaN
