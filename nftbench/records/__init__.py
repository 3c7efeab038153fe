"""What is written down: a plugin's spec, a cell, its record, the manifest of a plan, and the folders that hold them.

`Store` reads and writes a run's folder, with records as single files or packed, and the cache of models. `identity` has
the hashes and the versions of the core's areas from which keys are made.
"""

from __future__ import annotations

from nftbench.records.record import Cell, CellId, Record, Row
from nftbench.records.spec import Spec

__all__ = ["Cell", "CellId", "Record", "Row", "Spec"]
