"""Pairing: a row is compared with its reference only where both started from the same base weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from nftbench.records.record import Record


def unpaired(records: Iterable[Record]) -> Mapping[tuple[str, int], str]:
    """Defenses and seeds whose base weights are not those of their reference row, each with the reason.

    The same seed gives other base weights on another processor, so the difference of two such rows is no effect of the
    defense. A base that is unknown (an older record, or a reference that could not be made) is taken to be the same.
    A reference without records pairs with everything.
    """
    bases: dict[tuple[str, int], set[str]] = defaultdict(set)
    references: dict[str, str] = {}
    for record in records:
        if record.status == "ok" and record.uses_release and record.base_sha256 is not None:
            bases[record.defense, record.seed].add(record.base_sha256)
            references[record.defense] = record.row.reference
    return {
        (defense, seed): f"its base model is not that of {references[defense]} at seed {seed}: not compared with it"
        for (defense, seed), own in sorted(bases.items())
        if references[defense] != defense
        and (reference := bases.get((references[defense], seed)))
        and len(own | reference) > 1
    }
