"""The code that a number comes from: digests for a record's provenance, and their comparison with today's code.

A cell's key depends on the code of its plugins. Its provenance also has digests of code that the key does not depend
on: the modules of nftbench.methods that the plugins import, and the packages of the core that compute numbers.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from nftbench.errors import NftbenchError
from nftbench.planning import registry
from nftbench.planning.plan import Plan
from nftbench.planning.plugin_sources import file_digest, located, source_digest
from nftbench.planning.registry import Kind
from nftbench.records.identity import digest, file_hash
from nftbench.records.record import Cell, Record
from nftbench.records.spec import Spec
from nftbench.records.store import write_atomically

PACKAGES = ("nftbench.data", "nftbench.models", "nftbench.training", "nftbench.running")
"""The packages of the core whose code computes numbers."""
PARTS: Mapping[str, Kind] = {
    "defense": "defenses",
    "attack": "attacks",
    "task": "tasks",
    "yardstick": "yardsticks",
}
"""The parts that plugins play in a cell, each with the kind of plugin."""


def sources(plan: Plan, cell: Cell, cache: Path) -> dict[str, str]:
    """Digests of the code that a cell's number comes from: its plugins, their shared modules, and the core.

    Digests of shared code are stored in `cache`, because computing them takes a quarter of a second.
    """
    last = "yardstick" if plan.role(cell) == "yardstick" else "task"
    names = {"defense": cell.defense.name, "attack": cell.attack.name, last: cell.task.name}
    plugins = {part: plan.sources[PARTS[part], name] for part, name in names.items()}
    shared = {name for source in plugins.values() for name in source.methods}
    digests = {name: _shared_digest(name, cache) for name in (*sorted(shared), *PACKAGES)}
    return {part: source.digest for part, source in plugins.items()} | {
        name: value for name, value in digests.items() if value is not None
    }


def check(plan: Plan, names: Iterable[tuple[Kind, str]]) -> None:
    """Check that plugins have not been edited since the plan was made, because the plan's keys depend on their code.

    Raises:
        NftbenchError: a plugin's source has changed.
    """
    for kind, name in names:
        source = plan.sources[kind, name]
        if source.changed():
            part = kind.removesuffix("s")
            raise NftbenchError(f"{part} {name!r}: its source has changed since the run began; start the run again")


def comparison(records: Collection[Record], cache: Path) -> str | None:
    """One line that says how many records come from today's code and how many from other code.

    None without records. An example:

        sources of 68 cells: 57 as today; 2 other than today (attack lora, nftbench.training); 9 do not say

    Records of nftbench 0.1 do not say. If a plugin is missing today, its records count as unknown.
    """
    if not records:
        return None
    today = functools.cache(lambda part, name: _today(part, name, cache))
    changed: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for record in records:
        then: Mapping[str, str] = record.provenance.get("sources") or {}
        specs = {"defense": record.defense, "attack": record.attack, "task": record.task, "yardstick": record.task}
        names = {part: Spec.parse(specs[part]).name if part in PARTS else "" for part in then}
        now = {part: today(part, name) for part, name in names.items()}
        others = [f"{part} {names[part]}".strip() for part in then if now[part] not in (None, then[part])]
        changed.update(others)
        counts["silent" if not then else "other" if others else "unknown" if None in now.values() else "same"] += 1
    named = ", ".join(name for name, _ in changed.most_common(SHOWN)) + (", …" if len(changed) > SHOWN else "")
    phrases = {
        "same": "as today",
        "other": f"other than today ({named})",
        "unknown": "unknown, from a plugin that is not here",
        "silent": "do not say",
    }
    parts = [f"{counts[kind]} {words}" for kind, words in phrases.items() if counts[kind]]
    return f"sources of {len(records)} cells: {'; '.join(parts)}"


SHOWN = 6
"""The largest number of changed sources that the line names."""


def _today(part: str, name: str, cache: Path) -> str | None:
    """Today's digest of a plugin or of shared code; None if it is missing or cannot be read."""
    if part not in PARTS:
        return _shared_digest(part, cache)
    try:
        return source_digest(registry.find(PARTS[part], name))
    except (NftbenchError, OSError):
        return None


@functools.cache
def _shared_digest(name: str, cache: Path) -> str | None:
    """The digest of a module or of a whole package, computed once in a process; None if it does not exist.

    It is cached on disk under a hash of its files' bytes, so that most processes need not parse them.
    """
    path = located(name)
    if path is None:
        return None
    files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    kept = cache / "code" / digest([file_hash(file) for file in files])[:32]
    if kept.is_file():
        return kept.read_text(encoding="ascii")
    computed = digest(sorted(file_digest(file) for file in files))
    with contextlib.suppress(OSError):  # without a writable cache this only takes longer
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, computed.encode())
    return computed
