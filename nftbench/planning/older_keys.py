"""Keys of nftbench 0.1, so that a run that was begun with it can be continued with its records.

In 0.1, keys contained a hash of each plugin's file. `older_keys.json` holds these hashes from its last commit,
1b316ec, each with today's digest of the same plugin, written by `tests/golden/freeze.py`. A cell has an older key only
as long as its plugins' digests and the versions of the core are the ones in that file.
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from nftbench.contract import Defense
from nftbench.planning import registry
from nftbench.planning.keys import TODAY, Keys, Scheme
from nftbench.planning.plan import Plan
from nftbench.planning.plugin_sources import source_digest
from nftbench.planning.registry import Kind
from nftbench.records.record import Record
from nftbench.records.store import SETTLED, Store

FROZEN = Path(__file__).with_name("older_keys.json")
PROTOCOL = 2
"""The version in the keys of 0.1, where today's keys have the versions of three areas."""


class _ChangedError(Exception):
    """A plugin has changed since 0.1."""


class _Frozen(NamedTuple):
    versions: dict[str, Any]
    plugins: dict[str, tuple[str, str]]
    """By `<kind>/<name>`: the source hash in 0.1, and today's digest of the same source."""
    fingerprints: dict[str, str]
    """By defense: the fingerprint in 0.1, if it contained files of nftbench itself."""


def older_keys(plan: Plan, today: Scheme = TODAY) -> dict[str, str]:
    """The older key of each cell that has one, by the cell's key in the scheme `today`."""
    if _frozen().versions != {area: list(version) for area, version in today.versions.items()}:
        return {}
    keys = Keys(plan.suite, plan.device, plan.data, plan.limit, SCHEME)
    release = functools.cache(keys.release)
    found = {}
    for cell in plan.cells:
        make = keys.reading if plan.role(cell) == "yardstick" else keys.cell
        try:
            found[cell.key] = make(release(cell.defense, cell.seed), cell.attack, cell.task, cell.seed)
        except _ChangedError:
            continue
    return found


def older_records(plan: Plan, store: Store) -> dict[str, Record]:
    """Settled records under older keys, for cells that have no settled record under today's key.

    Each is returned under today's key, and contains it. These records do not say which code and which base weights they
    come from.
    """
    records = store.records()
    open_cells = {cell.key for cell in plan.cells} - {key for key, one in records.items() if one.status in SETTLED}
    if not open_cells or records.keys() <= {cell.key for cell in plan.cells}:
        return {}
    found = {}
    for key, older in older_keys(plan).items():
        if key in open_cells and older in records and records[older].status in SETTLED:
            found[key] = replace(records[older], key=key)
    return found


def take_over(plan: Plan, store: Store) -> int:
    """Write the records of `older_records` under today's keys, and return their number. The old files stay."""
    records = older_records(plan, store)
    if records:
        with store.together():  # or else a packing process could delete the folder of single files meanwhile
            for record in records.values():
                store.write(record)
    return len(records)


@functools.cache
def _frozen() -> _Frozen:
    content = json.loads(FROZEN.read_text(encoding="utf-8"))
    plugins = {name: (hashes["0.1"], hashes["today"]) for name, hashes in content["plugins"].items()}
    return _Frozen(content["versions"], plugins, content["fingerprints"])


def _source(kind: Kind, name: str) -> str:
    older, today = _frozen().plugins.get(f"{kind}/{name}", ("", ""))
    if source_digest(registry.find(kind, name)) != today:
        raise _ChangedError
    return older


def _fingerprint(name: str, plugin: Defense) -> str:
    return _frozen().fingerprints.get(name) or plugin.fingerprint()


SCHEME = Scheme({"training": (PROTOCOL,), "attack": (), "evaluation": ()}, _source, _fingerprint)
