"""Two runs of a suite become verdicts: which rows regressed, which held, and how small a regression could be seen.

`compare` reads two sides, pairs what can be paired, tests every row and metric, and judges. Nothing is shown here;
`nftbench.report.comparison` has one file for each format.
"""

from __future__ import annotations

from nftbench.comparing.comparison import Comparison, Line, Settings, compare

__all__ = ["Comparison", "Line", "Settings", "compare"]
