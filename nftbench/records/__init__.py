"""Results on disk: records, the manifest of a plan, and the folders that hold them.

A record is the result of one cell. `Store` reads and writes the results folder, where records are single files or
packed into one, and the cache of corpora and models. `identity` has the hashes and versions that keys are made of.
"""

from __future__ import annotations

from nftbench.records.record import Cell, CellId, Record, Row
from nftbench.records.spec import Spec

__all__ = ["Cell", "CellId", "Record", "Row", "Spec"]
