"""Records by their place in a suite: which should be there, which are results, and which attack is picked.

What is missing or has failed never counts for the defense.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nftbench.contract import Measurement
from nftbench.records.record import Record, Row
from nftbench.scoring.pairing import unpaired
from nftbench.terms import Adaptation

NONE = "none"
"""The attack that does nothing: base utility and every gain are measured from it."""
Level = frozenset[str]
WAYS: Mapping[Adaptation, frozenset[Adaptation]] = {
    "finetuning": frozenset({"finetuning", "linear_probe"}),
    "linear_probe": frozenset({"linear_probe"}),
    "merging": frozenset({"merging"}),
    "rescaling": frozenset({"rescaling"}),
}
"""Kinds of attack that count against a claim: who may fine-tune may also fit a probe."""
PlannedCell = tuple[str, str, str, int]
"""Defense, attack, task (each printed as a spec) and seed of a cell that should have a record."""
Picks = Mapping[int, tuple[Record, ...]]
"""By seed: the picked record of each task."""


class Place(NamedTuple):
    """Where a record belongs."""

    defense: str
    attack: str
    task: str
    seed: int

    def __str__(self) -> str:
        return f"{self.defense} × {self.attack} on {self.task}, seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """The records by place, and the places that should have one."""

    records: Mapping[Place, Record]
    expected: frozenset[Place]
    faults: Mapping[Place, str]
    attacks: Mapping[str, Record]
    """One record of each attack, for what it says of the attack."""
    rows: Mapping[str, Row]
    seeds: Mapping[str, tuple[int, ...]]
    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    ranking: Level
    utility_bar: float

    def within(self, level: Level, adaptation: Adaptation = "finetuning") -> Level:
        """Attacks that need no more knowledge, and adapt the release in this way; attack `none` is always one.

        An attack that has no record yet counts everywhere: it may be the strongest.
        """
        return frozenset(
            attack
            for attack in {place.attack for place in self.expected}
            if attack not in self.attacks
            or (
                level - {"secret"} >= set(self.attacks[attack].knowledge)
                and (attack == NONE or self.attacks[attack].adaptation in WAYS[adaptation])
            )
        )

    def ignoring(self) -> Level:
        """Attacks that ignore the release: they are recorded once, with the reference, and open to every attacker."""
        return frozenset(attack for attack, record in self.attacks.items() if not record.uses_release)

    def scratch(self) -> Level:
        """Those of them that know nothing else either: the floor. One that is given public text is a control for
        attacks that prepare on the same text, and stands higher."""
        return frozenset(attack for attack in self.ignoring() if not self.attacks[attack].knowledge)

    def secret(self) -> Level:
        """The owner's own fine-tuning."""
        return frozenset(attack for attack, record in self.attacks.items() if "secret" in record.knowledge)

    def tested(self, defense: str, level: Level, adaptation: Adaptation = "finetuning") -> bool:
        """Whether the attacks on this release use all that the level grants; if not it is untested, not withstood.

        An attack that has no record yet may be one that does.
        """
        tried = self.on(defense) & self.within(level, adaptation)
        known = [self.attacks[attack] for attack in tried if attack in self.attacks]
        used = [set(record.knowledge) for record in known if record.trains and record.uses_release]
        return len(known) < len(tried) or (bool(used) and set().union(*used) == level)

    def on(self, defense: str) -> Level:
        """The attacks that are expected on this release, attack `none` among them."""
        return self._attacks_on.get(defense, frozenset())

    def references(self) -> set[str]:
        return {row.reference for row in self.rows.values()}

    def picks(self, defense: str, tasks: Sequence[str], attacks: Level) -> Picks | None:
        """The picked attack on each task, by seed. A seed that has not been run to its end is left out.

        None where a cell failed: the strongest attack may have been that one, and the seed may have been the weakest.
        """
        pools = self._pools(defense, tasks, attacks)
        if pools is None:
            return None
        return {
            seed: tuple(self.records[max(pool, key=self._preferences.__getitem__)] for pool in each)
            for seed, each in pools.items()
        }

    def tried(self, defense: str, tasks: Sequence[str], attacks: Level) -> Mapping[int, Sequence[Sequence[Record]]]:
        """All of the attacks on each task, by seed, where `picks` would pick one."""
        pools = self._pools(defense, tasks, attacks) or {}
        return {seed: [[self.records[place] for place in pool] for pool in each] for seed, each in pools.items()}

    def _pools(self, defense: str, tasks: Sequence[str], attacks: Level) -> dict[int, list[list[Place]]] | None:
        """The candidates on each task, by seed; see `picks`."""
        found: dict[int, list[list[Place]]] = {}
        for seed in self.seeds.get(defense, ()) if tasks else ():
            pools = [self._pool(defense, task, seed, attacks) for task in tasks]
            faulty = [place for pool in pools for place in pool if place in self.faults]
            if any(place in self.records for place in faulty):
                return None
            if all(pools) and not faulty:
                found[seed] = pools
        return found

    def best(self, defense: str, tasks: Sequence[str], attacks: Level) -> Picks | None:
        """The picked attacks; None where none of them fine-tunes this release: it is untested then, not withstood."""
        tried = self.on(defense) & attacks
        known = [self.attacks[attack] for attack in tried if attack in self.attacks]
        if len(known) == len(tried) and not any(record.trains and record.uses_release for record in known):
            return None
        return self.picks(defense, tasks, attacks)

    def scores(self, defense: str, task: str, attacks: Level) -> dict[int, float]:
        """Test scores of the picked attack on one task, in points by seed; none at all where a cell failed, for that
        may have been the telling one."""
        return mean_points(self.picks(defense, [task], attacks)) if defense in self.rows else {}

    @functools.cached_property
    def _preferences(self) -> Mapping[Place, tuple[float, float, float, str]]:
        return {place: preference(record) for place, record in self.records.items()}

    @functools.cached_property
    def _attacks_on(self) -> Mapping[str, Level]:
        return {
            defense: frozenset(place.attack for place in places)
            for defense, places in itertools.groupby(sorted(self.expected), key=lambda place: place.defense)
        }

    def place(self, defense: str, attack: str, task: str, seed: int) -> Place:
        """Where the record of an attack on this row lies: with the reference, if it ignores the release."""
        known = self.attacks.get(attack)
        elsewhere = known is not None and not known.uses_release
        return Place(self.rows[defense].reference if elsewhere else defense, attack, task, seed)

    def _pool(self, defense: str, task: str, seed: int, attacks: Level) -> list[Place]:
        return [place for attack in attacks if (place := self.place(defense, attack, task, seed)) in self.expected]


def arrange(
    records: Sequence[Record], planned: Sequence[PlannedCell] | None, ranking: Level, utility_bar: float
) -> tuple[Grid, list[str]]:
    """The grid of a suite's records, and what is wrong with them as a whole.

    Without a plan the places that should have a record are inferred from the records.
    """
    problems = []
    wanted = None if planned is None else frozenset(Place(str(d), str(a), str(t), s) for d, a, t, s in planned)
    ordered = sorted(records, key=lambda record: (_place(record), record.key))
    ordered = [record for record in ordered if record.role != "yardstick"]
    held = [record for record in ordered if wanted is None or _place(record) in wanted]
    if len(held) < len(ordered):
        problems.append(f"{len(ordered) - len(held)} records outside the plan are left out")
    found = {_place(record): record for record in held}
    expected = _implied(held) if wanted is None else wanted
    faults = {place: "missing" for place in expected if place not in found}
    faults |= {place: fault for place, record in found.items() if (fault := _fault(record))}
    keys = {(_place(record), record.key) for record in held}
    twice = [place for place, count in Counter(place for place, _ in keys).items() if count > 1]
    faults |= dict.fromkeys(twice, "recorded twice, with different keys")
    faults |= _mismatches(held)
    strangers = unpaired(held)
    faults |= {place: strangers[row] for place in found if (row := (place.defense, place.seed)) in strangers}
    problems += [f"{defense}: {reason}" for (defense, _), reason in strangers.items()]
    metrics = {record.task for record in held if record.role == "utility"}
    attacked = {place.task for place in expected if place.attack != NONE}
    grid = Grid(
        records=found,
        expected=expected,
        faults=faults,
        attacks={record.attack: record for record in held},
        rows={record.defense: record.row for record in held},
        seeds={
            defense: tuple(sorted({place.seed for place in expected if place.defense == defense}))
            for defense in {place.defense for place in expected}
        },
        tasks=tuple(sorted((attacked or {place.task for place in expected}) - metrics)),
        metrics=tuple(sorted(metrics)),
        ranking=ranking,
        utility_bar=utility_bar,
    )
    return grid, problems


def _place(record: Record) -> Place:
    return Place(record.defense, record.attack, record.task, record.seed)


def _mismatches(records: Sequence[Record]) -> dict[Place, str]:
    """Cells of a row and seed that did not attack the same weights."""
    hashes: dict[tuple[str, int], set[str]] = {}
    used = [record for record in records if record.uses_release and record.release_sha256]
    for record in used:
        hashes.setdefault((record.defense, record.seed), set()).add(record.release_sha256)
    return {
        _place(record): "cells of this row and seed attacked different weights"
        for record in used
        if len(hashes[record.defense, record.seed]) > 1
    }


def _implied(records: Sequence[Record]) -> frozenset[Place]:
    """The places that records imply: every attack of a row, and of its reference, on all tasks and seeds.

    A row that lacks an attack which its reference withstood would look the stronger for it.
    """
    places = {_place(record) for record in records}
    training = [record for record in records if record.role == "ranked"]
    tasks = {record.task for record in training}
    metrics = {record.task for record in records} - tasks
    shared = {(one.defense, one.attack) for one in training if one.uses_release and "secret" not in one.knowledge}
    for defense, reference in {(record.defense, record.row.reference) for record in records}:
        seeds = {place.seed for place in places if place.defense == defense}
        attacks = {record.attack for record in training if record.defense == defense}
        attacks |= {attack for owner, attack in shared if owner == reference}
        places |= {Place(defense, attack, task, seed) for attack in attacks for task in tasks for seed in seeds}
        places |= {Place(defense, NONE, task, seed) for task in metrics for seed in seeds}
    return frozenset(places)


# -------------------------------------------------------------------------------------------------- reading a record


def mean_points(picks: Picks | None) -> dict[int, float]:
    """A_d by seed: the test scores of the picked attacks, averaged over the tasks."""
    return {
        seed: statistics.fmean(points(final(record)) for record in picked) for seed, picked in (picks or {}).items()
    }


def points(measurement: Measurement) -> float:
    """The metric times 100; negative where lower is better, so that more is always better."""
    return in_points(measurement.value, measurement.higher_is_better)


def in_points(value: float, higher_is_better: bool) -> float:
    return 100 * value if higher_is_better else -100 * value


def kept_share(released: Measurement, undefended: Measurement) -> float:
    """Utility retention of one metric: (U_d - floor) / (U_none - floor), the same either way up.

    Where lower is better this is (floor - U_d) / (floor - U_none), as DESIGN writes it for bits per token.
    """
    return (released.value - undefended.floor) / (undefended.value - undefended.floor)


def preference(record: Record) -> tuple[float, float, float, str]:
    """Sort key of the picked attack: validation score, then validation loss, then fewer steps; never the test score."""
    if record.validation is None:
        return (-math.inf, -math.inf, -math.inf, record.attack)
    loss = record.validation.loss
    steps = record.picked.step if record.picked else math.inf
    finite = loss is not None and math.isfinite(loss)
    return (points(record.validation), -loss if finite and loss is not None else -math.inf, -steps, record.attack)


def final(record: Record) -> Measurement:
    """The test score that counts; attack `none` may have measured it only once."""
    found = record.attacked or record.unattacked
    assert found is not None  # _fault has looked
    return found


def _finite(measurement: Measurement | None) -> bool:
    return measurement is not None and math.isfinite(measurement.value)


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
    return None if _finite(record.attacked) else "no test score"
