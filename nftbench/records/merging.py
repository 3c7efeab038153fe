"""Several folders of one suite become one: their plans are joined, and their records put together.

A record is taken if its key is that of a planned cell. The first folder's plan is the beginning. Another folder adds
its base seeds and defenses to it if all other settings are the same, and so are the salt and the core's code. Folders
may come from different machines, but all records of one base seed must come from the same weights: another processor
gives another base model, and rows of two base models do not compare.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nftbench.device import Device
from nftbench.errors import NftbenchError
from nftbench.records.manifest import Manifest, PlannedCell
from nftbench.records.origin import origin
from nftbench.records.record import CellId, Record
from nftbench.records.spec import Spec
from nftbench.records.store import SETTLED, Store, as_json
from nftbench.records.unplanned import unplanned
from nftbench.records.versions import with_results
from nftbench.suites.differences import differing

Keep = Literal["first", "last"]
"""Of two folders that contradict each other, the one that is believed."""
Found = list[tuple[int, Record]]
"""Records, each with the number of its source."""
OWN = {"seeds", "defenses", "about", "labels", "salt"}
"""Keys of a suite in which merged folders may differ. A difference of salts is looked for in its own place."""


@dataclass(frozen=True)
class Source:
    """A folder to be merged."""

    name: str
    manifest: Manifest
    records: tuple[Record, ...]
    salt: str | None = None
    """The salt of its grammars; None if it has none, or if it was not copied with the folder."""
    damaged: Mapping[Path, str] | None = None
    """Single files that cannot be read, each with the reason."""


@dataclass(frozen=True)
class Merged:
    """The outcome."""

    manifest: Manifest
    records: tuple[Record, ...]
    salt: str | None
    left_out: tuple[str, ...] = ()
    """What could not be merged and why, a sentence each."""
    notes: tuple[str, ...] = ()
    """What else the reader has to know."""


def read(store: Store, name: str) -> Source:
    """A folder as a source. Nothing in it is changed.

    Raises:
        NftbenchError: it holds no results, or its manifest or its pack is damaged or of another version.
    """
    manifest = store.manifest()
    records, damaged = store.inspect()
    return Source(name, manifest, tuple(records.values()), store.salt() or manifest.salt, damaged)


def merge(sources: Sequence[Source], keep: Keep | None = None) -> Merged:
    """All records of the sources that belong to their joined plan, one for each cell.

    Without `keep` the order of the sources changes neither records nor planned cells, as long as nothing is left out.

    Raises:
        NftbenchError: two sources contradict each other, and `keep` does not say which one is believed.
    """
    plan = _Plan(sources[0])
    refused = ["", *(plan.join(source) for source in sources[1:])]
    left_out, notes, found = list(plan.left_out), [], Found()
    keys = plan.manifest.keys
    for index, source in enumerate(sources):
        found += [(index, record) for record in source.records if record.key in keys]
        others, planned = [record for record in source.records if record.key not in keys], source.manifest.keys
        own = [record for record in others if record.key in planned]
        if own and refused[index]:
            left_out.append(f"{source.name}: {len(own)} of {len(source.records)} records left out: {refused[index]}")
        if foreign := str(unplanned(others, source.manifest)):
            notes.append(f"{source.name}: records that belong to no cell of its own plan are left out: {foreign}")
        for path, reason in (source.damaged or {}).items():
            left_out.append(f"{path}: damaged, left out: {reason}")
    names = [source.name for source in sources]
    found, dropped = _of_one_machine(found, names, keep)
    records, replaced = _one_for_each_cell(found, names, keep)
    manifest = plan.manifest
    return Merged(
        manifest,
        tuple(records[cell.key] for cell in (*manifest.cells, *manifest.readings) if cell.key in records),
        plan.salt,
        (*left_out, *dropped, *replaced),
        (*notes, *_mixed(records.values())),
    )


# --------------------------------------------------------------------------------------------------------------- plans


class _Plan:
    """The joined plan of the sources so far."""

    def __init__(self, first: Source) -> None:
        self.first = first
        self.manifest = replace(first.manifest, versions=with_results(first.manifest, first.records))
        self.salt = first.salt
        self.records = list(first.records)
        self.left_out: list[str] = []

    def join(self, source: Source) -> str:
        """Add a source's seeds, defenses and cells. If it does not fit, nothing is added and the reason returned."""
        reason = self._refusal(source)
        if reason:
            return reason
        ours, theirs = self.manifest, source.manifest
        known, edited = _keys(ours), _edited(self.records, source.records)
        fits = [
            cell
            for cell in (*theirs.cells, *theirs.readings)
            if known.get(cell.id, cell.key) == cell.key and (cell.id in known or not _uses(cell, edited))
        ]
        lost = {cell.key for cell in (*theirs.cells, *theirs.readings)} - {cell.key for cell in fits}
        if lost:
            count = sum(record.key in lost for record in source.records)
            first = next(cell for cell in (*theirs.cells, *theirs.readings) if cell.key in lost)
            why = f"other code of {', '.join(sorted(edited))}" if edited else "other plugins, data or code"
            self.left_out.append(
                f"{source.name}: {len(lost)} planned cells with {count} records left out: {why}, the first: {first.id}"
            )
        suite = ours.suite.model_copy(
            update={
                "seeds": (*ours.suite.seeds, *(seed for seed in theirs.suite.seeds if seed not in ours.suite.seeds)),
                "defenses": tuple(dict.fromkeys((*ours.suite.defenses, *theirs.suite.defenses))),
                "labels": {**theirs.suite.labels, **ours.suite.labels},
            }
        )
        kept = {cell.key for cell in fits}
        self.manifest = replace(
            ours,
            suite=suite,
            salt=ours.salt or theirs.salt,
            public_salt=ours.public_salt or theirs.public_salt,
            cells=_in_order((*ours.cells, *(cell for cell in theirs.cells if cell.key in kept)), suite.seeds),
            readings=_in_order((*ours.readings, *(cell for cell in theirs.readings if cell.key in kept)), suite.seeds),
            skips=tuple(dict.fromkeys((*ours.skips, *theirs.skips))),
            added=tuple(sorted({*ours.added, *theirs.added})),
            added_defenses=tuple(sorted({*ours.added_defenses, *theirs.added_defenses})),
            versions=tuple(sorted({*ours.versions, *with_results(theirs, source.records)})),
            left_out={**theirs.left_out, **ours.left_out},
            labels={**theirs.labels, **ours.labels},
        )
        self.salt = self.salt or source.salt
        self.records += [record for record in source.records if record.key in kept]
        return ""

    def _refusal(self, source: Source) -> str:
        """Why a source's plan cannot be joined with this one; empty where it can."""
        ours, theirs = self.manifest, source.manifest
        if ours.suite.name != theirs.suite.name:
            return f"it holds the suite {theirs.suite.name}, and {self.first.name} the suite {ours.suite.name}"
        one, other = (plan.suite.model_dump(mode="json", exclude=OWN) for plan in (ours, theirs))
        if keys := list(differing(one, other)):
            return f"other settings of the suite: {', '.join(keys)}"
        if ours.limit != theirs.limit:
            return f"--limit {theirs.limit}, and {ours.limit} in {self.first.name}"
        kinds = [Device.parse(one.device).kind for one in (ours, theirs)]
        if kinds[0] != kinds[1]:
            return f"computed on {kinds[1]}, and {self.first.name} on {kinds[0]}"
        if self.salt and source.salt and self.salt != source.salt:
            return f"another salt than {self.first.name}, and so other grammars; runs to be merged share one"
        areas = [{name: set(values) for name, values in origin(one).areas.items()} for one in self._both(source)]
        changed = sorted(name for name in areas[0].keys() & areas[1].keys() if areas[0][name] != areas[1][name])
        if changed:
            return f"other core code (area versions): {', '.join(changed)}"
        known = _keys(ours)
        shared = [cell for cell in (*theirs.cells, *theirs.readings) if cell.id in known]
        if shared and not any(known[cell.id] == cell.key for cell in shared):
            return "all its cells have other keys: another salt, or other plugins, data or code"
        toy = ours.suite.corpus.source == "toy"
        if toy and not shared and not (self.salt and source.salt):
            return (
                f"the salt of {self.first.name if source.salt else source.name} is not known: copy its file `salt` too"
            )
        return ""

    def _both(self, source: Source) -> tuple[Sequence[Record], Sequence[Record]]:
        keys = source.manifest.keys
        return self.records, [record for record in source.records if record.key in keys]


def _keys(manifest: Manifest) -> dict[CellId, str]:
    return {cell.id: cell.key for cell in (*manifest.cells, *manifest.readings)}


def _in_order(cells: Iterable[PlannedCell], seeds: Sequence[int]) -> tuple[PlannedCell, ...]:
    """The cells without repetition, seed by seed as a plan has them."""
    distinct = dict.fromkeys(cells)
    order = list(dict.fromkeys((*seeds, *(cell.seed for cell in distinct))))
    return tuple(sorted(distinct, key=lambda cell: order.index(cell.seed)))


def _edited(ours: Iterable[Record], theirs: Iterable[Record]) -> set[str]:
    """The plugins of which both sides have other code, as `attack lora`."""
    digests = [_sources(records) for records in (ours, theirs)]
    return {name for name in digests[0].keys() & digests[1].keys() if digests[0][name] != digests[1][name]}


def _sources(records: Iterable[Record]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for record in records:
        specs = {"defense": record.defense, "attack": record.attack, "task": record.task, "yardstick": record.task}
        for part, digest in (record.provenance.get("sources") or {}).items():
            if part in specs:
                found[f"{part} {Spec.parse(specs[part]).name}"].add(digest)
    return found


def _uses(cell: PlannedCell, plugins: set[str]) -> bool:
    parts = {"defense": cell.defense, "attack": cell.attack, "task": cell.task, "yardstick": cell.task}
    return any(f"{part} {Spec.parse(text).name}" in plugins for part, text in parts.items())


# ------------------------------------------------------------------------------------------------------------- records


def _of_one_machine(found: Found, names: Sequence[str], keep: Keep | None) -> tuple[Found, list[str]]:
    """The records without those of other weights than the believed source has at the same seed, and what was dropped.

    Raises:
        NftbenchError: there are such records, and no source is to be believed.
    """
    weights: dict[tuple[str, str, int], dict[str, int]] = defaultdict(dict)
    for index, record in found if keep != "last" else sorted(found, key=lambda one: -one[0]):
        for group, digest in _weights(record):
            weights[group].setdefault(digest, index)
    believed = {group: next(iter(digests)) for group, digests in weights.items()}
    rejected = [one for one in found if any(believed[group] != digest for group, digest in _weights(one[1]))]
    if not rejected:
        return found, []
    counts: dict[tuple[int, int], int] = defaultdict(int)
    for index, record in rejected:
        counts[record.seed, index] += 1
    said = [
        f"seed {seed}: {count} records of {names[index]} come from other weights than those of "
        f"{names[_holder(weights, believed, seed)]}"
        for (seed, index), count in sorted(counts.items())
    ]
    if keep is None:
        raise NftbenchError(
            f"nothing is merged: {'; '.join(said)}{_processors(found)}. All records of one seed must come from one "
            "machine; --keep first or --keep last takes those of the first or last folder"
        )
    gone = {id(record) for _, record in rejected}
    return [one for one in found if id(one[1]) not in gone], [f"{text}: left out" for text in said]


def _weights(record: Record) -> Iterator[tuple[tuple[str, str, int], str]]:
    """The weights behind a record, each with the group of records that must have the same ones."""
    if record.base_sha256 is not None:
        yield ("base", record.row.reference, record.seed), record.base_sha256
    if record.uses_release and record.release_sha256:
        yield ("release", record.defense, record.seed), record.release_sha256


def _holder(
    weights: Mapping[tuple[str, str, int], Mapping[str, int]], believed: Mapping[tuple[str, str, int], str], seed: int
) -> int:
    """The source whose weights are believed at a seed."""
    return next(digests[believed[group]] for group, digests in weights.items() if group[2] == seed and len(digests) > 1)


def _processors(found: Found) -> str:
    kinds = origin(record for _, record in found).processors
    return f" (processors: {', '.join(kinds)})" if len(kinds) > 1 else ""


def _one_for_each_cell(found: Found, names: Sequence[str], keep: Keep | None) -> tuple[dict[str, Record], list[str]]:
    """One record for each key, and what was dropped for it.

    A settled record is preferred. Of records with equal numbers the earliest is taken.

    Raises:
        NftbenchError: a cell has records with different numbers, and no source is to be believed.
    """
    by_key: dict[str, Found] = defaultdict(list)
    for one in found:
        by_key[one[1].key].append(one)
    chosen, contradictions = {}, []
    for key, several in by_key.items():
        if len(several) == 1:
            chosen[key] = several[0][1]
            continue
        settled = [one for one in several if one[1].status in SETTLED] or several
        numbers = {_numbers(record) for _, record in settled}
        if len(numbers) > 1 and settled[0][1].status in SETTLED:
            contradictions.append(settled)
            settled = [(max if keep == "last" else min)(settled, key=lambda one: one[0])]
        chosen[key] = min((record for _, record in settled), key=_age)
    if not contradictions:
        return chosen, []
    first = contradictions[0]
    said = (
        f"{len(contradictions)} cells have different results in different folders, the first: "
        f"{CellId.of(first[0][1])} in {' and '.join(dict.fromkeys(names[index] for index, _ in first))}"
    )
    if keep is None:
        raise NftbenchError(
            f"nothing is merged: {said}{_processors([one for several in contradictions for one in several])}; --keep "
            "first or --keep last takes those of the first or last folder"
        )
    return chosen, [f"{said}: the {keep} one is kept"]


def _numbers(record: Record) -> bytes:
    """What a record says, without when, where and how fast it was measured."""
    cost, protection = record.cost, record.protection
    if cost is not None:
        cost = replace(cost, seconds=0.0, step_seconds=0.0, preparation_seconds=0.0)
    if protection is not None:
        ledger = protection.ledger
        if ledger is not None:
            ledger = replace(
                ledger, spent=replace(ledger.spent, seconds=0.0), allowed=replace(ledger.allowed, seconds=0.0)
            )
        protection = replace(protection, seconds=0.0, ledger=ledger)
    return as_json(replace(record, cost=cost, protection=protection, provenance={}))


def _age(record: Record) -> tuple[str, bytes]:
    return str(record.provenance.get("written") or ""), as_json(record)


def _mixed(records: Iterable[Record]) -> Iterator[str]:
    """What the merged records have in common only in part."""
    by_seed: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        by_seed[record.seed].append(record)
    for seed, own in sorted(by_seed.items()):
        if len(kinds := origin(own).processors) > 1:
            yield (
                f"seed {seed} has one base model, but its attacks ran on different processors ({', '.join(kinds)}): "
                "single scores may differ by chance"
            )
    for name, found in origin(record for own in by_seed.values() for record in own).versions.items():
        if len(found) > 1:
            yield f"records differ in the version of {name} ({', '.join(found)}), so that no row is ranked"
