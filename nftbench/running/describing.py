"""Asks an added plugin about itself in a process of its own, which finds neither cache nor salt nor local data.

The referee takes what comes back as JSON, and refuses what has another type than the question asks for.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nftbench.errors import NftbenchError, one_line
from nftbench.planning import facts, registry
from nftbench.planning.facts import Question
from nftbench.planning.registry import Plugin
from nftbench.records.store import Store
from nftbench.running import isolation

ANSWER, FAILED = "answer.json", "failed.json"
LIMIT = 60.0
"""Seconds for the import of a plugin and its answer."""
MOST = 1_000_000
"""Most bytes of an answer."""


@dataclass(frozen=True)
class Describer:
    """Asks added plugins, each question once and in a new process, where no other plugin has been imported."""

    store: Store
    data: Path | None = None
    """The folder of local data, which plugins must not read."""
    _answers: dict[bytes, bytes] = field(default_factory=dict)

    def __call__(self, plugin: Plugin, text: str, question: Question, argument: Any) -> bytes:
        """The answer of the plugin that this spec names, as JSON.

        Raises:
            NftbenchError: it fails, does not answer in time, or answers at too great length.
        """
        order = pickle.dumps((plugin.kind, text, question, argument))
        if order not in self._answers:
            self._answers[order] = self._asked(plugin, order)
        return self._answers[order]

    def _asked(self, plugin: Plugin, order: bytes) -> bytes:
        with isolation.folder(self.store) as folder:
            try:
                isolation.run(perform, order, folder, self.store, limit=LIMIT, hidden=isolation.documents(self.data))
            except NftbenchError as error:
                raise NftbenchError(f"{plugin}: {error}") from None
            failed = (folder / FAILED).exists()
            path = folder / (FAILED if failed else ANSWER)
            if not path.is_file() or path.stat().st_size > MOST:
                raise NftbenchError(f"{plugin}: its process left no answer of at most {MOST} bytes")
            content = path.read_bytes()
        if failed:
            raise NftbenchError(_message(plugin, content))
        return content


def _message(plugin: Plugin, content: bytes) -> str:
    """What a plugin failed with, in one line."""
    try:
        return one_line(str(json.loads(content)))
    except (ValueError, RecursionError):
        return f"{plugin}: it failed, and does not say with what"


def perform(order: bytes, folder: Path) -> None:
    """Ask the plugin, in its own process."""
    kind, text, question, argument = pickle.loads(order)
    try:
        answer = facts.as_json(question, question(registry.create(kind, text), argument))
        (folder / ANSWER).write_bytes(answer)
    except BaseException as error:  # a plugin may raise anything, and Ctrl-C does not reach this process
        plugin = registry.find(kind, text.partition("[")[0])
        message = str(error) if isinstance(error, NftbenchError) else f"{plugin}: {type(error).__name__}: {error}"
        (folder / FAILED).write_text(json.dumps(message), encoding="utf-8")
