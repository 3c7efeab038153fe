"""Labels: the short names of rows in tables and pictures. A row's full specification stands on its own page.

The label of `pmp[discovery_steps=200]` is `pmp`. Rows of one plugin are told apart by as few parameters as possible:
`pmp[complement=released,discovery_steps=200]` beside it is `pmp · released`, and `dlr_lock[depth=1,…]` beside another
depth is `dlr_lock · depth 1`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from nftbench.records.spec import Spec
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.table import Table

NONE_GIVEN: Mapping[str, str] = MappingProxyType({})
SEPARATOR = " · "
NAMED = frozenset({"defense", "control", "dose", "reference"})
"""Columns of tables whose cells are rows of the leaderboard."""


def of(board: Leaderboard) -> dict[str, str]:
    """The label of every row of a leaderboard. The suite's own labels come first."""
    rows = dict.fromkeys([score.defense for score in board.scores])
    rows |= dict.fromkeys(row for doses in board.ladder.values() for row in doses)
    return labels(list(rows), board.labels)


def shown(table: Table, names: Mapping[str, str]) -> Table:
    """The table with labels in place of specifications."""
    columns = [index for index, name in enumerate(table.header) if name in NAMED]
    rows = (
        tuple(names.get(cell, cell) if index in columns else cell for index, cell in enumerate(row))
        for row in table.rows
    )
    return replace(table, rows=tuple(rows))


def labels(rows: Sequence[str], given: Mapping[str, str] = NONE_GIVEN) -> dict[str, str]:
    """The label of each row, by its specification. No two rows have the same one; the order of `rows` is irrelevant.

    `given` are labels that a suite sets, by specification. One that is set for two rows, or that another row has, is
    not used.
    """
    found: dict[str, str] = {}
    by_name: dict[str, list[str]] = {}
    for row in sorted(set(rows)):
        by_name.setdefault(Spec.parse(row).name, []).append(row)
    for name, alike in by_name.items():
        found |= _of_one_plugin(name, alike)
    wanted = {_same(row): label for row, label in given.items()}
    chosen = {row: wanted.get(_same(row), label) for row, label in found.items()}
    for candidate in (chosen, found):
        taken = list(candidate.values())
        chosen = {row: label if taken.count(label) == 1 else found[row] for row, label in candidate.items()}
        if len(set(chosen.values())) == len(chosen):
            return {row: chosen[row] for row in rows}
    return {row: row for row in rows}  # a plugin's name is another's label


def _same(row: str) -> Spec:
    """The specification with its parameters in one order."""
    spec = Spec.parse(row)
    return Spec(spec.name, tuple(sorted(spec.parameters, key=lambda item: item[0])))


def _of_one_plugin(name: str, rows: Sequence[str]) -> dict[str, str]:
    """The labels of rows that differ in parameters alone, by the shortest of three ways that tells them apart."""
    parameters = {
        row: {key: str(Spec("", ((key, value),)))[len(key) + 2 : -1] for key, value in Spec.parse(row).parameters}
        for row in rows
    }
    keys = _telling(list(parameters.values()))
    alone = len({key for one in parameters.values() for key in one}) == 1
    for words in (_value if alone else _words, _key_and_value):
        made = {
            row: SEPARATOR.join([name, *(words(key, own[key]) for key in keys if key in own)])
            for row, own in parameters.items()
        }
        if len(set(made.values())) == len(rows):
            return made
    return {row: row for row in rows}


def _telling(rows: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """The fewest parameters that differ between any two rows; words rather than numbers, then the first by name."""
    everything = sorted({key for row in rows for key in row})
    differing = [key for key in everything if len({row.get(key) for row in rows}) > 1]
    differing.sort(key=lambda key: any(_is_number(row[key]) for row in rows if key in row))
    for count in range(len(differing)):
        for keys in itertools.combinations(differing, count):
            if len({tuple(row.get(key) for key in keys) for row in rows}) == len(rows):
                return keys
    return tuple(differing)


def _words(key: str, value: str) -> str:
    """A number or a truth value says nothing without its parameter; a word does."""
    return _key_and_value(key, value) if _is_number(value) else _value(key, value)


def _value(key: str, value: str) -> str:
    """The value alone; of a path or a model of the hub, its last part."""
    return value.rstrip("/").rpartition("/")[2]


def _key_and_value(key: str, value: str) -> str:
    return f"{key.replace('_', ' ')} {value}"


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return value in ("true", "false", "null")
    return True
