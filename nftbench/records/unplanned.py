"""Records that belong to no cell of a plan: a folder keeps those of earlier settings, and may be given others by hand.

A record belongs to a cell if it has the cell's key, which is a hash of everything that can change the number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nftbench.records.manifest import Manifest
from nftbench.records.record import CellId, Record


@dataclass(frozen=True)
class Unplanned:
    """Such records in two groups."""

    other_key: tuple[Record, ...] = ()
    """Of planned cells, made with other settings, plugins, code or another salt."""
    other_cell: tuple[Record, ...] = ()
    """Of cells that the plan lacks altogether."""

    def __str__(self) -> str:
        """How many there are, why they do not belong, and the first of each group; empty without any."""
        groups = (
            (self.other_key, "of planned cells, but made with another salt, or other settings, plugins or code"),
            (self.other_cell, "of cells that the plan does not have"),
        )
        return "; ".join(
            f"{len(found)} {reason}, the first: {CellId.of(found[0])}" for found, reason in groups if found
        )


def unplanned(records: Iterable[Record], manifest: Manifest) -> Unplanned:
    """The records that belong to no cell of the manifest."""
    cells = {cell.id for cell in (*manifest.cells, *manifest.readings)}
    keys = manifest.keys
    others = [record for record in records if record.key not in keys]
    return Unplanned(
        tuple(record for record in others if CellId.of(record) in cells),
        tuple(record for record in others if CellId.of(record) not in cells),
    )
