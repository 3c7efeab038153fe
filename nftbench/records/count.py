"""How many cells a run has and how many of them are done: the one way in which nftbench counts.

A cell is one defense, attack, task and seed. A yardstick's reading is a cell, too, with the yardstick in the task's
place. A job is one attack on one release: its cells are the tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from nftbench.records.manifest import Manifest
from nftbench.records.record import Record
from nftbench.records.store import SETTLED


@dataclass(frozen=True)
class Count:
    """Numbers of cells."""

    cells: int
    recorded: int
    """Cells that have a record, whatever its status."""
    done: int
    """Cells whose record stays. All others run when the run goes on, those that failed once more."""

    def __str__(self) -> str:
        """`6 of 9 cells done`, and how many have failed."""
        failed = self.recorded - self.done
        return f"{self.done} of {self.cells} cells done{f', {failed} failed' if failed else ''}"


def count(keys: Collection[str], records: Mapping[str, Record]) -> Count:
    """Count the cells that have these keys."""
    found = [records[key] for key in keys if key in records]
    return Count(len(keys), len(found), sum(record.status in SETTLED for record in found))


def complete_seeds(manifest: Manifest, recorded: Collection[str]) -> set[int]:
    """The base seeds of which every planned cell has a record, whatever its status; `recorded` are keys of records."""
    cells = [*manifest.cells, *manifest.readings]
    return {cell.seed for cell in cells} - {cell.seed for cell in cells if cell.key not in recorded}
