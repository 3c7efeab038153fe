"""What a suite is: the settings of one grid of defenses, attacks and tasks, read from a YAML file.

`schema` has every key with its check and its meaning, `reading` turns a file into a `Suite`. The suites that come with
nftbench lie here as YAML files.
"""

from __future__ import annotations

from nftbench.suites.reading import names, parse, read
from nftbench.suites.schema import Budget, CorpusSettings, PaperClaim, Pretraining, Quantity, Suite

__all__ = ["Budget", "CorpusSettings", "PaperClaim", "Pretraining", "Quantity", "Suite", "names", "parse", "read"]
