"""Values of yardsticks, which are papers' own metrics on releases. They are shown, and never part of a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nftbench.records.record import Record
from nftbench.scoring.intervals import Interval, mean_by_seed
from nftbench.scoring.side_tables.protocol import Position, SideTable, SuiteEvidence
from nftbench.scoring.table import Table, precise

Values = Mapping[str, Mapping[str, Mapping[str, Interval]]]
"""By yardstick, defense and name of the value: means over seeds."""


@dataclass(frozen=True)
class Readings(SideTable):
    """One table for each yardstick."""

    name: ClassVar[str] = "readings"
    position: ClassVar[Position] = "last"
    heading: ClassVar[str] = "Readings"

    values: Values

    @classmethod
    def of(cls, evidence: SuiteEvidence) -> Readings:
        return cls(_means(evidence.readings))

    def tables(self) -> tuple[Table, ...]:
        found = []
        for yardstick, rows in self.values.items():
            names = list(dict.fromkeys(name for values in rows.values() for name in values))
            lines = tuple((defense, *(precise(values.get(name)) for name in names)) for defense, values in rows.items())
            found.append(Table(yardstick, ("defense", *names), lines))
        return tuple(found)

    def content(self) -> Any:
        return self.values


def _means(records: Sequence[Record]) -> dict[str, dict[str, dict[str, Interval]]]:
    found: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
    for record in sorted(records, key=lambda record: (record.task, record.defense)):
        for name, value in (record.reading.values if record.reading else {}).items():
            row = found.setdefault(record.task, {}).setdefault(record.defense, {})
            row.setdefault(name, {})[record.seed] = value
    return {
        yardstick: {
            defense: {name: interval for name, by_seed in values.items() if (interval := mean_by_seed(by_seed))}
            for defense, values in rows.items()
        }
        for yardstick, rows in found.items()
    }
