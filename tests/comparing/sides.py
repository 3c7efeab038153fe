"""Two runs to compare: records of tests/factories.py with a manifest, as a run would have left them in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nftbench.comparing.sides import Recorded
from nftbench.contract import Cost
from nftbench.records.identity import digest
from nftbench.records.manifest import Manifest, PlannedCell
from nftbench.records.origin import origin
from nftbench.records.record import CellId, Record
from nftbench.records.store import Store
from nftbench.testing import tiny_suite
from tests.factories import LADDER, scratch, sweep

HERE = {
    "versions": {"torch": "2.13.0", "nftbench": "0.2.0"},
    "hardware": {"processor": "Here"},
    "commit": "a" * 40,
    "areas": {"training": 2},
}
UNDEFENDED = (0.80, 0.82, 0.84, 0.81, 0.83)
PMP = (0.50, 0.53, 0.55, 0.50, 0.52)
MASK = (0.70, 0.71, 0.74, 0.72, 0.72)
COST = Cost(step_flops=100.0, step_seconds=0.5, seconds=50.0, steps=100, peak_memory_bytes=1000)


def records(
    rows: Mapping[str, Sequence[float]], *, base: str | None = "base", provenance: Mapping[str, Any] = HERE
) -> list[Record]:
    """`none`, `early_stop`, scratch and these rows, each with the scores after `full`; weights `base-SEED`."""
    count = max(len(scores) for scores in rows.values())
    everything = {"none": UNDEFENDED[:count], "early_stop": [one - 0.1 for one in UNDEFENDED[:count]], **rows}
    found = [*scratch([0.4] * count), *(one for name, scores in everything.items() for one in sweep(name, scores))]
    return [
        replace(
            one,
            key=digest(one.key),  # names a file
            base_sha256=None if base is None else f"{base}-{one.seed}",
            provenance=provenance,
            cost=COST if one.trains else None,
        )
        for one in found
    ]


def manifest(found: Sequence[Record], **changes: Any) -> Manifest:
    """The plan of exactly these records. As a run leaves it, the suite in it has no salt."""
    suite = tiny_suite(**{"name": "tiny", **changes})
    cells = tuple(PlannedCell(*CellId.of(one), one.key) for one in found)
    bare, public = suite.model_copy(update={"salt": None}), suite.salt is not None
    return Manifest(suite=bare, salt=suite.salt, public_salt=public, cells=cells, ladder=LADDER)


def side(found: Sequence[Record], planned: Sequence[Record] | None = None, **changes: Any) -> Recorded:
    """A run with these records; `planned` are those that it should have."""
    return Recorded("here", manifest(found if planned is None else planned, **changes), tuple(found), origin(found))


def renamed(one: Recorded, row: str, name: str) -> Recorded:
    """The run with another name for one of its rows."""
    found = [replace(each, defense=name) if each.defense == row else each for each in one.records]
    return side(found)


def run(rows: Mapping[str, Sequence[float]], **changes: Any) -> Recorded:
    return side(records(rows, **changes))


def folder(path: Path, found: Sequence[Record], plan: Manifest | None = None) -> Path:
    """The run in a folder."""
    store = Store(path, path / "cache")
    store.write_manifest(manifest(found) if plan is None else plan)
    for one in found:
        store.write(one)
    return path
