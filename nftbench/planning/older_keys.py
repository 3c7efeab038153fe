"""Keys as nftbench 0.1 made them, and taking over its records, so that a folder begun with it can be continued.

In 0.1 a plugin counted by the text of its one file. `older_keys.json` holds these hashes as they were at its last
commit, 1b316ec, each beside the digest that the same plugin has today; `tests/golden/freeze.py` writes the latter. A
cell has an older key only while its plugins and the versions of the core are the frozen ones.
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
"""What stood in the keys of 0.1 where the versions of three areas stand today."""


class _ChangedError(Exception):
    """A plugin is not the one that 0.1 had."""


class _Frozen(NamedTuple):
    versions: dict[str, Any]
    plugins: dict[str, tuple[str, str]]
    """Source hash of 0.1 and today's digest of the same source, by `<kind>/<name>`."""
    fingerprints: dict[str, str]
    """Of defenses that gave files of nftbench's own as files that they read."""


def older_keys(plan: Plan, today: Scheme = TODAY) -> dict[str, str]:
    """The older key of each cell that has one, by the cell's key under `today`'s scheme."""
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
    """Settled records under older keys, by the keys of today and with them; only of cells without a settled record.

    Such a record does not say which sources and which base weights it came from.
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
    """Write the records of `older_records` beside the older ones; how many they are."""
    found = older_records(plan, store)
    for record in found.values():
        store.write(record)
    return len(found)


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
