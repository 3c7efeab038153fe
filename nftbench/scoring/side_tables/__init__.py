"""Side tables, which show claims and findings that the ranking does not cover.

Each is one file with one class, a `SideTable`. `SIDE_TABLES` lists them in the order of leaderboard.json, and of
leaderboard.md among tables at the same position.
"""

from __future__ import annotations

from nftbench.scoring.side_tables.mask_value import MaskValue
from nftbench.scoring.side_tables.merging import Merging
from nftbench.scoring.side_tables.paper_claims import PaperClaims
from nftbench.scoring.side_tables.protocol import (
    Position as Position,
    SideTable as SideTable,
    SuiteEvidence as SuiteEvidence,
)
from nftbench.scoring.side_tables.readings import Readings
from nftbench.scoring.side_tables.task_aware import TaskAware
from nftbench.scoring.side_tables.text_control import TextControl
from nftbench.scoring.side_tables.utility_guard import UtilityGuard

SIDE_TABLES: tuple[type[SideTable], ...] = (
    *(TaskAware, Merging, PaperClaims, Readings, MaskValue, TextControl),
    UtilityGuard,
)
