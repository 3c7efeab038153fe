"""Which code a number comes from: the digests in a record's provenance, and whether they are today's.

A key changes with the code of the plugins. What a key does not see stands in the provenance too: the modules of
nftbench.methods that the plugins import, and the rooms of the core that make numbers.
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

ROOMS = ("nftbench.data", "nftbench.models", "nftbench.training", "nftbench.running")
"""The rooms of the core whose code makes numbers."""
PARTS: Mapping[str, Kind] = {
    "defense": "defenses",
    "attack": "attacks",
    "task": "tasks",
    "yardstick": "yardsticks",
}
"""The parts that plugins have in a cell."""


def sources(plan: Plan, cell: Cell, cache: Path) -> dict[str, str]:
    """Digests of the code that a cell's number comes from: of its plugins, their shared modules, and the core.

    `cache` keeps digests of shared code, which take a quarter second to make.
    """
    last = "yardstick" if plan.role(cell) == "yardstick" else "task"
    names = {"defense": cell.defense.name, "attack": cell.attack.name, last: cell.task.name}
    plugins = {part: plan.sources[PARTS[part], name] for part, name in names.items()}
    shared = {name for source in plugins.values() for name in source.methods}
    digests = {name: _shared_digest(name, cache) for name in (*sorted(shared), *ROOMS)}
    return {part: source.digest for part, source in plugins.items()} | {
        name: found for name, found in digests.items() if found is not None
    }


def check(plan: Plan, names: Iterable[tuple[Kind, str]]) -> None:
    """Refuse to go on with plugins that have been edited since the plan was made: its keys are of the former code.

    Raises:
        NftbenchError: a plugin's source is not what it was.
    """
    for kind, name in names:
        source = plan.sources[kind, name]
        if source.changed():
            part = kind.removesuffix("s")
            raise NftbenchError(f"{part} {name!r}: its source has changed since the run began; start the run again")


def comparison(records: Collection[Record], cache: Path) -> str | None:
    """One line on how many of these cells come from other code than today's, such as

        sources of 68 cells: 57 as today; 2 other than today (attack lora, nftbench.training); 9 do not say

    None without records. Records of nftbench 0.1 do not say; a plugin that is not here makes no error.
    """
    if not records:
        return None
    today = functools.cache(lambda part, name: _today(part, name, cache))
    changed: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for record in records:
        found: Mapping[str, str] = record.provenance.get("sources") or {}
        specs = {"defense": record.defense, "attack": record.attack, "task": record.task, "yardstick": record.task}
        names = {part: Spec.parse(specs[part]).name if part in PARTS else "" for part in found}
        now = {part: today(part, name) for part, name in names.items()}
        others = [f"{part} {names[part]}".strip() for part in found if now[part] not in (None, found[part])]
        changed.update(others)
        counts["silent" if not found else "other" if others else "unknown" if None in now.values() else "same"] += 1
    named = ", ".join(name for name, _ in changed.most_common(NAMED)) + (", …" if len(changed) > NAMED else "")
    said = {
        "same": "as today",
        "other": f"other than today ({named})",
        "unknown": "unknown, from a plugin that is not here",
        "silent": "do not say",
    }
    parts = [f"{counts[kind]} {words}" for kind, words in said.items() if counts[kind]]
    return f"sources of {len(records)} cells: {'; '.join(parts)}"


NAMED = 6
"""Sources that the line names at most."""


def _today(part: str, name: str, cache: Path) -> str | None:
    """Today's digest of a plugin or of shared code; None where it is not there, or cannot be read."""
    if part not in PARTS:
        return _shared_digest(part, cache)
    try:
        return source_digest(registry.find(PARTS[part], name))
    except (NftbenchError, OSError):
        return None


@functools.cache
def _shared_digest(name: str, cache: Path) -> str | None:
    """Digest of a module or of a whole room, asked for once a process; None where there is none.

    The cache keeps it by the content of its files, so that most processes need not parse them.
    """
    path = located(name)
    if path is None:
        return None
    files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    kept = cache / "code" / digest([file_hash(file) for file in files])[:32]
    if kept.is_file():
        return kept.read_text(encoding="ascii")
    found = digest(sorted(file_digest(file) for file in files))
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time alone
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, found.encode())
    return found
