"""What an export is made of: a run's plan, records and leaderboard without anything that tells of the machine.

Absolute paths in specifications, commands and messages are shortened to their last part. The salt stays only where the
manifest names it already. Records hold no host and no user name apart from such paths.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from nftbench.records import manifest as manifests
from nftbench.records.manifest import Manifest
from nftbench.records.record import Record
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.scores import Score

BEGIN = r"(?:~[\w.-]*/|/(?=[^/\s])|[A-Za-z]:[\\/])"
"""The beginning of an absolute path, of one in a home folder, and of one on Windows. `https://` has none."""
QUOTED = re.compile(rf"""(?<=(['"]))({BEGIN}[^'"\n]*)(?=\1)""")
PLAIN = re.compile(rf"""(?<![\w.~/\\-])({BEGIN}[^\s'",;:()\[\]{{}}<>]*)""")


@dataclass(frozen=True)
class Results:
    """A run as it may be published."""

    board: Leaderboard
    manifest: Manifest
    records: tuple[Record, ...]
    command: str

    @property
    def rows(self) -> tuple[Score, ...]:
        """The rows that are exported: all but the doses of the ladder, which anyone can make."""
        doses = {row for rows in self.board.ladder.values() for row in rows}
        return tuple(score for score in self.board.scores if score.defense not in doses)

    @property
    def written(self) -> str:
        """When the last record was written, in ISO format; empty if no record says it."""
        return max((str(one.provenance.get("written") or "") for one in self.records), default="")


def published(
    manifest: Manifest,
    records: Iterable[Record],
    command: str,
    rank: Callable[[Mapping[str, Record], Manifest], Leaderboard],
) -> Results:
    """A run without the paths of this machine. `rank` makes the leaderboard of what is left."""
    content = [manifests.plain(manifest), _adapter().dump_python(list(records), mode="json"), command]
    plan, found, shown = _without_paths(content)
    clean = manifests.parsed(plan, "the published plan")
    made = _adapter().validate_python(found)
    return Results(rank({one.key: one for one in made}, clean), clean, tuple(made), shown)


def _without_paths(content: Any) -> Any:
    """JSON values with the last part of each path in its place. Different paths stay different."""
    names = _short_names({path for text in _texts(content) for path in _paths(text)})

    def name(path: str) -> str:
        whole = _trimmed(path)
        return names.get(whole, _last_part(whole)) + path[len(whole) :]

    def short(text: str) -> str:
        text = QUOTED.sub(lambda match: name(match[2]), text)
        return PLAIN.sub(lambda match: name(match[1]), text)

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return short(value)
        if isinstance(value, dict):
            return {short(key): clean(item) for key, item in value.items()}
        return [clean(item) for item in value] if isinstance(value, list | tuple) else value

    return clean(content) if names else content


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _paths(text: str) -> Iterator[str]:
    yield from (_trimmed(match[2]) for match in QUOTED.finditer(text))
    yield from (_trimmed(match[1]) for match in PLAIN.finditer(QUOTED.sub("", text)))


def _trimmed(path: str) -> str:
    """A path without the full stop of a sentence that ends with it."""
    return path.rstrip(".") or path


def _short_names(paths: Iterable[str]) -> dict[str, str]:
    """The last part of each path, with a number where two paths have the same."""
    found: dict[str, str] = {}
    for path in sorted(paths):
        name, taken = _last_part(path), list(found.values())
        found[path] = next(
            one for one in (name, *(f"{name}-{number}" for number in range(2, len(taken) + 3))) if one not in taken
        )
    return found


def _last_part(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1].strip("~") or "folder"


@functools.cache
def _adapter() -> TypeAdapter[list[Record]]:
    return TypeAdapter(list[Record])
