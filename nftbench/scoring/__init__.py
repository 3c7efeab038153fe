"""Scoring: computes scores, verdicts, ranks and side tables from records. Nothing is trained or printed here.

`score` turns a suite's records into a `Leaderboard`. Each flag is a function in `flags.py`, each side table a file
in `side_tables/`.
"""

from __future__ import annotations

from nftbench.scoring.leaderboard import Leaderboard as Leaderboard, score as score
from nftbench.scoring.scores import Score as Score
