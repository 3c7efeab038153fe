"""Cells are counted in one way: planned, recorded, done."""

from __future__ import annotations

from nftbench.records.count import complete_seeds, count
from nftbench.records.manifest import Manifest, PlannedCell
from nftbench.testing import tiny_suite
from tests import factories


def test_a_failed_cell_is_recorded_and_not_done() -> None:
    ok = factories.record("pmp", "full", "topic", 0, 0.8)
    records = {"a": ok, "b": factories.failed(ok), "of another plan": ok}
    found = count(["a", "b", "c"], records)
    assert (found.cells, found.recorded, found.done) == (3, 2, 1)
    assert str(found) == "1 of 3 cells done, 1 failed"
    assert str(count(["a"], records)) == "1 of 1 cells done"


def test_a_seed_is_complete_once_its_cells_and_readings_have_a_record() -> None:
    cells = tuple(PlannedCell("pmp", "full", "topic", seed, f"cell {seed}") for seed in (0, 1, 2))
    readings = (PlannedCell("pmp", "none", "cost", 0, "reading 0"),)
    manifest = Manifest(suite=tiny_suite(), cells=cells, readings=readings)
    assert complete_seeds(manifest, {"cell 0", "cell 1"}) == {1}
    assert complete_seeds(manifest, {"cell 0", "cell 1", "reading 0"}) == {0, 1}
    assert complete_seeds(manifest, ()) == set()
