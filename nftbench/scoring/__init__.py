"""Records become scores, verdicts, ranks, and tables beside the ranking.

`score` makes a `Leaderboard` of a suite's records; it trains nothing and shows nothing. A new flag is a function in
`flags.py`, a new table beside the ranking a file in `side_tables/`.
"""

from __future__ import annotations

from nftbench.scoring.leaderboard import Leaderboard as Leaderboard, score as score
from nftbench.scoring.scores import Score as Score
