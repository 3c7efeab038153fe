"""Runs of the proofs `null` and `oracle` drawn at random: undefended models or defenses beside a ladder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nftbench.calibration.proof import Run
from nftbench.records.record import CellId, Record
from nftbench.testing import tiny_suite
from tests.scoring import drawn

MODELS = ("none", *drawn.INITIALISATIONS, "twin[index=4]")


def records(seed: int, seeds: int = 7, noise: float = 1.0, taken: float = 0.0) -> list[Record]:
    """Undefended models that differ by chance alone, of weights of their own.

    `noise` multiplies that of utility. `taken`: points that attackers truly get less from all but the reference.
    """
    truths = dict.fromkeys(MODELS[1:], drawn.Truth(taken))
    found = drawn.records(truths, np.random.default_rng(seed), seeds=seeds, noise=noise)
    return [replace(one, release_sha256=f"{one.defense}{one.seed}") for one in found]


def run_of(found: list[Record], name: str = "tiny-null") -> Run:
    seeds = sorted({one.seed for one in found})
    suite = tiny_suite(name=name, seeds=seeds, defenses=MODELS, ranking=["method", "data"])
    return Run(suite, tuple(CellId.of(one) for one in found), tuple(found), drawn.LADDER, MODELS[1:])


def oracle_run(seed: int = 0, **taken: float) -> Run:
    """A run of the proof `oracle`: rows that take so many points and keep all utility."""
    truths = {name: drawn.Truth(points) for name, points in taken.items()}
    found = drawn.records(truths, np.random.default_rng(seed), seeds=5)
    planned = tuple(CellId.of(one) for one in found)
    suite = tiny_suite(name="tiny-oracle", seeds=list(range(5)), defenses=["none", *taken], ranking=["method", "data"])
    return Run(suite, planned, tuple(found), drawn.LADDER, drawn.INITIALISATIONS)
