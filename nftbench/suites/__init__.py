"""Suites: the settings of one grid of defenses, attacks and tasks, each in a YAML file.

`schema` defines every key, with its check and its meaning. `reading` turns a file into a `Suite`. The YAML files in
this folder are the suites that come with nftbench.
"""

from __future__ import annotations

from nftbench.suites.reading import names, papers, parse, read
from nftbench.suites.schema import Budget, CorpusSettings, Family, GivenModel, PaperClaim, Pretraining, Quantity, Suite

__all__ = [
    "Budget",
    "CorpusSettings",
    "Family",
    "GivenModel",
    "PaperClaim",
    "Pretraining",
    "Quantity",
    "Suite",
    "names",
    "papers",
    "parse",
    "read",
]
