"""Labels: the short names of rows in tables and pictures. A row's full specification stands on its own page.

The label of `pmp[discovery_steps=200]` is `pmp`. Rows of one plugin are told apart by as few parameters as possible:
`pmp[complement=released,discovery_steps=200]` beside it is `pmp · released`, and `dlr_lock[depth=1,…]` beside another
depth is `dlr_lock · depth 1`. Doses of the ladder also say what they leave to a default: `noise` beside
`noise[scale=0.2]` is `noise · 0.1`. A plugin may call itself something else, which then stands in the place of its
name; the suite may set the whole label.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from nftbench.planning import registry
from nftbench.records.spec import RESERVED, Spec, look
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.table import Table

NONE_GIVEN: Mapping[str, str] = MappingProxyType({})
NO_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
SEPARATOR = " · "
NAMED = frozenset({"defense", "control", "dose", "reference"})
"""Columns of tables whose cells are rows of the leaderboard."""


def of(board: Leaderboard) -> dict[str, str]:
    """The label of every row of a leaderboard. The suite's own labels come first, then those of plugins."""
    rows = dict.fromkeys([score.defense for score in board.scores])
    rows |= dict.fromkeys(row for doses in board.ladder.values() for row in doses)
    return labels(list(rows), board.labels, board.own_labels, _defaults(board.ladder))


def _defaults(ladder: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """By dose of the ladder: its plugin's defaults of the parameters that only other doses of this plugin name."""
    doses = {row: Spec.parse(row) for rows in ladder.values() for row in rows}
    named: dict[str, set[str]] = {}
    for spec in doses.values():
        named.setdefault(spec.name, set()).update(dict(spec.parameters))
    return {
        row: {
            key: value
            for key, value in registry.defaults("defenses", spec.name).items()
            if key in named[spec.name] - dict(spec.parameters).keys()
        }
        for row, spec in doses.items()
    }


def shown(table: Table, names: Mapping[str, str]) -> Table:
    """The table with labels in place of specifications."""
    columns = [index for index, name in enumerate(table.header) if name in NAMED]
    rows = (
        tuple(names.get(cell, cell) if index in columns else cell for index, cell in enumerate(row))
        for row in table.rows
    )
    return replace(table, rows=tuple(rows))


def labels(
    rows: Sequence[str],
    given: Mapping[str, str] = NONE_GIVEN,
    own: Mapping[str, str] = NONE_GIVEN,
    defaults: Mapping[str, Mapping[str, Any]] = NO_DEFAULTS,
) -> dict[str, str]:
    """The label of each row, by its specification. No two rows have the same one; the order of `rows` is irrelevant.

    Args:
        given: labels that a suite sets, by specification. One that is set for two rows, or that another row has, is not
            used.
        own: what plugins call themselves, by specification of the row. It takes the place of the plugin's name. One
            that could be taken for a row of another plugin is not used.
        defaults: by specification, parameters that it leaves out and whose values its label may say all the same.
    """
    names = {row: Spec.parse(row).name for row in rows}
    heads = names | {row: label for row, label in own.items() if row in names}
    while imitating := _imitating(found := _with_heads(heads, names, defaults), heads, names, given):
        heads |= {row: names[row] for row in imitating}
    wanted = {_same(row): label for row, label in given.items()}
    chosen = {row: wanted.get(_same(row), label) for row, label in found.items()}
    for candidate in (chosen, found):
        taken = list(candidate.values())
        chosen = {row: label if taken.count(label) == 1 else found[row] for row, label in candidate.items()}
        if len(set(chosen.values())) == len(chosen):
            return {row: chosen[row] for row in rows}
    return {row: row for row in rows}  # a plugin's name is another's label


def _with_heads(
    heads: Mapping[str, str], names: Mapping[str, str], defaults: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """The label of each row with the head in front: what tells apart the rows of one plugin with the same head."""
    alike: dict[tuple[str, str], list[str]] = {}
    for row in sorted(heads):
        alike.setdefault((names[row], heads[row]), []).append(row)
    return {
        row: label for (_, head), rows in alike.items() for row, label in _of_one_plugin(head, rows, defaults).items()
    }


def _imitating(
    found: Mapping[str, str], heads: Mapping[str, str], names: Mapping[str, str], given: Mapping[str, str]
) -> list[str]:
    """The rows whose plugin calls itself something that looks like the name, label or specification of another row."""
    own = [row for row in found if heads[row] != names[row]]
    if not own:
        return []
    said: dict[str, set[str]] = {word: {""} for word in RESERVED}
    for row, label in found.items():
        for text in (label, heads[row], names[row], row):
            said.setdefault("".join(look(text)), set()).add(names[row])
    for row, label in given.items():
        said.setdefault("".join(look(label)), set()).add(Spec.parse(row).name)

    def looks_like_another(row: str, text: str) -> bool:
        beginnings = itertools.accumulate(look(text))  # `PMP (official)` begins as `pmp` does
        return any(said.get(beginning, set()) - {names[row]} for beginning in beginnings)

    return [row for row in own if looks_like_another(row, found[row]) or looks_like_another(row, heads[row])]


def _same(row: str) -> Spec:
    """The specification with its parameters in one order."""
    spec = Spec.parse(row)
    return Spec(spec.name, tuple(sorted(spec.parameters, key=lambda item: item[0])))


def _of_one_plugin(name: str, rows: Sequence[str], defaults: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The labels of rows that differ in parameters alone, by the shortest of three ways that tells them apart."""
    values = {row: dict(Spec.parse(row).parameters) | dict(defaults.get(row, {})) for row in rows}
    parameters = {
        row: {key: str(Spec("", ((key, value),)))[len(key) + 2 : -1] for key, value in own.items()}
        for row, own in values.items()
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
