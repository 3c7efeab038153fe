"""Runs of a tiny suite in processes of their own, and what they must have written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nftbench.records.store import Store

Cells = dict[tuple[str, str, str, int], Any]
"""Records by defense, attack, task and seed."""

CHANGES: dict[str, Any] = {
    "defenses": ["none", "early_stop", "pmp[discovery_steps=4]"],
    "attacks": ["none", "scratch", "full", "lora", "authorized"],
    "seeds": [0, 1],
}


def start(
    results: Path,
    cache: Path,
    workers: int = 1,
    changes: dict[str, Any] = CHANGES,
    *,
    executor: str = "local",
    shard: str | None = None,
    expiry: float = 90.0,
    plugins: Sequence[Path] = (),
    nodes: int = 0,
    environment: dict[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start a run of the suite above, in a session of its own."""
    given = {
        "results": str(results),
        "cache": str(cache),
        "workers": workers,
        "changes": changes,
        "executor": executor,
        "shard": shard,
        "expiry": expiry,
        "plugins": list(map(str, plugins)),
        "nodes": nodes,
    }
    return subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).with_name("driver.py")), json.dumps(given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "NFTBENCH_CACHE": str(cache), **(environment or {})},
    )


def finish(process: subprocess.Popen[str], seconds: float = 300) -> str:
    """Wait for the run's end; returns what it printed."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, f"{out}\n{err}"
    return out


def files(results: Path) -> dict[str, bytes]:
    """The records' files by name."""
    return {path.name: path.read_bytes() for path in (results / "records").glob("*.json")}


def found_in(results: Path) -> Cells:
    store = Store(results, results)
    return {(one.defense, one.attack, one.task, one.seed): one for one in store.records().values()}


def assert_same(results: Path, expected: Cells, bare: Callable[[Any], Any]) -> None:
    """No cell is lost and none doubled, and each has the numbers of an undisturbed run."""
    found = found_in(results)
    assert len(files(results)) == len(expected), "none lost, none doubled"
    assert {place: bare(one) for place, one in found.items()} == {place: bare(one) for place, one in expected.items()}
