"""`check_file`: the contract on a plugin file without pytest, each plugin in a process of its own.

A check runs the author's own code, and nobody's records depend on it. It still does not run in the command's process:

- What runs there would pass things that fail in a run. So a defense or an attack is confined exactly as there: one that
  writes elsewhere, opens a socket or starts a process fails here already.
- A file that hangs, exits or changes torch's defaults harms neither the command nor the next file.

Tasks and yardsticks are code of the referee. As in a run they are not confined, but have a process of their own, too.
`check_defense` and its like run in the caller's process, where a debugger reaches the plugin.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nftbench.device import CPU
from nftbench.errors import NftbenchError
from nftbench.planning import registry
from nftbench.planning.plugin_paths import plugin_path, split_path
from nftbench.planning.registry import Kind, Plugin
from nftbench.records.store import Store, default_cache
from nftbench.running import isolation
from nftbench.testing.attack import check_attack
from nftbench.testing.defense import check_defense
from nftbench.testing.promises import Promise, examined, promise, works
from nftbench.testing.task import check_task
from nftbench.testing.yardstick import check_yardstick
from nftbench.training import engine

FOUND = "promises.json"
LIMIT = 900.0
"""Seconds for one plugin. An attack as small as `full` takes 10."""


@dataclass(frozen=True)
class Examined:
    """What a check found about one plugin."""

    title: str
    """Its kind and name, as in `defense mine`."""
    promises: tuple[Promise, ...]

    @property
    def broken(self) -> tuple[Promise, ...]:
        return tuple(one for one in self.promises if one.problem)


def check_file(given: str, data: Path | None = None) -> Iterator[Examined]:
    """Check every plugin of a file or folder, one after the other.

    Args:
        given: its path; parameters in brackets may follow.
        data: the folder of local data, for tasks.

    Raises:
        NftbenchError: there is no such file, or it is neither a Python nor a YAML file.
    """
    path, (_, parameters) = plugin_path(given), split_path(given)
    with registry.added():
        plugins: list[Plugin] = []

        def add() -> None:
            with works("`--plugin` takes the file"):
                found = registry.add_file(path)
                registry.check_readable(found, data)
                plugins.extend(found)

        taken = examined(add)
        for plugin in plugins:
            found = examined(partial(_apart, plugin, parameters, data))
            yield Examined(f"{plugin.kind.removesuffix('s')} {plugin.name}", taken + found)
        if not plugins:
            yield Examined(f"plugin {path.stem}", taken)


def _apart(plugin: Plugin, parameters: str, data: Path | None) -> None:
    """State all promises that the plugin's own process has examined."""
    order = pickle.dumps((plugin.kind, plugin.name + parameters, data and data.resolve()))
    store = Store(Path("runs"), default_cache())
    with isolation.folder(store) as folder:
        try:
            if plugin.is_trusted:
                isolation.aside(_examine, order, folder)
            else:
                isolation.run(_confined, order, folder, store, limit=LIMIT, hidden=isolation.documents(data))
        except NftbenchError as error:
            ended = "nothing in the file may end the process or wait for anything outside"
            promise(False, "the check comes to its end", f"{error}; {ended}", essential=True)
        for statement, problem in json.loads((folder / FOUND).read_bytes()):
            promise(not problem, statement, problem)


def _confined(order: bytes, folder: Path) -> None:
    """As `_examine`, where only the folder can be written to."""
    os.environ["NFTBENCH_CACHE"] = str(folder / isolation.TEMPORARY)
    _examine(order, folder)


def _examine(order: bytes, folder: Path) -> None:
    """Examine the plugin, in its own process."""
    kind, spec, data = pickle.loads(order)
    engine.set_threads(CPU)
    checks: Mapping[Kind, Callable[[], None]] = {
        "defenses": partial(check_defense, spec),
        "attacks": partial(check_attack, spec),
        "tasks": partial(check_task, spec, data=data),
        "yardsticks": partial(check_yardstick, spec),
    }
    found = [(one.statement, one.problem) for one in examined(checks[kind])]
    (folder / FOUND).write_text(json.dumps(found), encoding="utf-8")
