"""Cells are counted in one way: planned, recorded, done."""

from __future__ import annotations

from nftbench.records.count import count
from tests import factories


def test_a_failed_cell_is_recorded_and_not_done() -> None:
    ok = factories.record("pmp", "full", "topic", 0, 0.8)
    records = {"a": ok, "b": factories.failed(ok), "of another plan": ok}
    found = count(["a", "b", "c"], records)
    assert (found.cells, found.recorded, found.done) == (3, 2, 1)
    assert str(found) == "1 of 3 cells done, 1 failed"
    assert str(count(["a"], records)) == "1 of 1 cells done"
