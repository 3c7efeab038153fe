"""Versions of a defense: its settings and its code. Of those that had results under one salt, a board shows the last.

Whoever sees the scores and then changes the defense may have tuned it for these grammars. So a folder's manifest keeps
every version, although a later plan drops it, and although its records may be deleted or left out by a merge.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from nftbench.records.manifest import Manifest, Version
from nftbench.records.record import Record
from nftbench.records.spec import Spec
from nftbench.records.store import SETTLED


def with_results(manifest: Manifest, records: Iterable[Record]) -> tuple[Version, ...]:
    """The versions that a manifest names, and those of a folder's records, planned or not, that have a result."""
    own = (one for one in records if one.suite == manifest.suite.name and one.status in SETTLED)
    return tuple(sorted({*manifest.versions, *(Version(one.defense, _code(one)) for one in own)}))


def dropped(manifest: Manifest, records: Iterable[Record]) -> dict[str, int]:
    """By name of a defense: how many versions of it had results under the folder's salt and are not on the board.

    The code of nftbench's own defenses does not count, since it also changes with nftbench. Without a salt, or with a
    public one, no grammar was fresh in the first place.

    Args:
        records: those of the planned cells.
    """
    if manifest.suite.corpus.source != "toy" or manifest.public_salt:
        return {}
    planned, code = {cell.defense for cell in manifest.cells}, defaultdict[str, set[str]](set)
    for record in records:
        code[Spec.parse(record.defense).name].add(_code(record))
    others = set()
    for version in manifest.versions:
        name = Spec.parse(version.defense).name
        added = name in manifest.added_defenses
        if version.defense not in planned or (added and version.code not in code[name]):
            others.add((name, version.defense, version.code if added else ""))
    return dict(Counter(name for name, *_ in others))


def _code(record: Record) -> str:
    """The digest of the defense's source; empty where the record does not say."""
    sources: Mapping[str, str] = record.provenance.get("sources") or {}
    return sources.get("defense", "")
