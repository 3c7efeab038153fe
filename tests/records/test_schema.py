"""The schema of records is that of their type, published records fit it, and README.md names every field."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from nftbench.contract import Protection, Series
from nftbench.device import CPU
from nftbench.planning.plan import Plan
from nftbench.records import manifest as manifests, pack as packs
from nftbench.records.record import Record
from nftbench.records.store import Store
from nftbench.report import row_tables, tables
from nftbench.running.provenance import collect
from nftbench.testing import tiny_suite
from tests import schema
from tests.factories import COST, curve, failed, record, scored, scratch, suite

RESULTS = schema.PATH.parent

PUBLISHED = json.loads(schema.PATH.read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(PUBLISHED)


def parts(node: Any) -> Iterator[tuple[str, Any]]:
    """Every keyword of a schema with its value."""
    if isinstance(node, list):
        for one in node:
            yield from parts(one)
    elif isinstance(node, dict):
        for keyword, value in node.items():
            yield keyword, value
            yield from parts([*value.values()] if keyword in ("properties", "$defs") else value)


CHOICES = {choice for keyword, value in parts(PUBLISHED) if keyword == "enum" for choice in value}
"""Strings that the schema tells apart; all others are alike to it."""


def shape(value: Any) -> Any:
    """The names, types and choices of a record, and whether its lists repeat items: all that the schema looks at."""
    if isinstance(value, dict):
        return tuple((name, shape(one)) for name, one in value.items())
    if isinstance(value, list):
        return frozenset(map(shape, value)), len({repr(one) for one in value}) == len(value)
    return value if value in CHOICES else type(value)


def documented() -> set[str]:
    """Everything that stands as code in the first column of a table."""
    lines = (RESULTS / "README.md").read_text(encoding="utf-8").splitlines()
    return {name for line in lines if line.startswith("| `") for name in re.findall(r"`([^`]+)`", line.split("|")[1])}


def samples() -> list[Record]:
    """Every kind of record."""
    plain = record("pmp", "full", "topic", 0, 0.8, curve=curve(0.3, 0.8), cost=COST, restarts=curve(0.3))
    protected = Protection(
        10, 1.0, 1e-9, {"tie_word_embeddings": False}, True, {"w": 0.7}, (Series("IoU", (1,), (1,)),)
    )
    return [
        record("pmp", "none", "topic", 0, 0.3),
        plain,
        failed(plain, "oom"),
        replace(plain, protection=protected, recovery={"roc_auc": 0.5}),
    ]


def test_the_published_schema_is_that_of_the_type() -> None:
    assert json.loads(schema.PATH.read_text(encoding="utf-8")) == schema.schema(), "run `make schema`"


def test_schema_is_valid() -> None:
    VALIDATOR.check_schema(PUBLISHED)


def test_a_written_record_fits_the_schema(tmp_path: Path) -> None:
    for one in samples():
        path = Store(tmp_path / "results", tmp_path / "cache").write(one)
        VALIDATOR.validate(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "changes", [{"statu": "ok"}, {"status": "fine"}, {"seed": "0"}, {"attacked": {"value": 1.0}}, {"curve": None}]
)
def test_a_record_of_another_shape_does_not_fit_the_schema(changes: dict[str, Any], tmp_path: Path) -> None:
    path = Store(tmp_path / "results", tmp_path / "cache").write(samples()[0])
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    assert not VALIDATOR.is_valid(content)


def test_published_records_fit_the_schema() -> None:
    """One record of each shape is validated, because that takes as long as reading twenty."""
    seen = set()
    for path in sorted(RESULTS.glob("*/records.jsonl.xz")):
        for one in map(json.loads, packs.decode(path.read_bytes(), str(path))):
            if (found := shape({**one, "provenance": {}})) not in seen:
                seen.add(found)
                problems = [error.message for error in VALIDATOR.iter_errors(one)]
                assert not problems, f"{path}: {one['key']}: {problems[0]}"
            assert isinstance(one["provenance"], dict), f"{path}: {one['key']}"


def test_the_schema_looks_at_names_types_and_choices_alone() -> None:
    """So that one record of each shape is enough for the test above."""
    said = {"title", "description", "default", "$schema", "$defs"}
    assert {keyword for keyword, _ in parts(PUBLISHED)} == said | {
        "$ref", "additionalProperties", "anyOf", "enum", "items", "properties", "required", "type", "uniqueItems",
    }  # fmt: skip
    assert PUBLISHED["properties"]["provenance"] == {
        "additionalProperties": True,
        "title": "Provenance",
        "type": "object",
    }


def test_published_records_are_whole() -> None:
    """A folder holds a record for each cell of its manifest, none that a quick or unfinished run left behind, and the
    commands as a reader can repeat them, without the paths of the machine."""
    for path in sorted(RESULTS.glob("*/manifest.json")):
        store = Store(path.parent, path.parent)
        records = store.records()
        assert records.keys() == store.manifest().keys, path
        assert not [key for key, one in records.items() if one.limited], path
        commands = {store.manifest().command, *(str(one.provenance["command"]) for one in records.values())}
        assert not [one for one in commands if re.search(r" --out |/(tmp|home|root|work)/", one)], path


def test_published_records_are_packed() -> None:
    packs_of = {path.parent for path in RESULTS.glob("*/records.jsonl.xz")}
    assert packs_of == {path.parent for path in RESULTS.glob("*/manifest.json")}
    assert not list(RESULTS.glob("*/records/*")), "run `nftbench pack FOLDER`"


def test_readme_names_every_field() -> None:
    drawn = schema.schema()
    fields = {name for part in (drawn, *drawn["$defs"].values()) for name in part["properties"]}
    assert fields - schema.EARLIER.keys() <= documented()


def test_readme_names_every_key_of_the_manifest() -> None:
    plan = Plan(tiny_suite(), (), ())
    assert json.loads(manifests.dump(plan.manifest())).keys() <= documented()


def test_readme_names_every_column() -> None:
    board = scored([*suite(), *scratch([0.4] * 5)])
    fixed = (tables.ranking, tables.controls, tables.unranked, tables.details, tables.headroom, tables.flags)
    found = [*(table(board) for table in fixed), *tables.tasks(board)]
    found += [row_tables.doses(board.scores), row_tables.utility(board.scores[0])]
    found += [table for one in board.side_tables for table in one.tables()]
    found += [table(board.scores[0]) for table in (row_tables.attacks, row_tables.cost_to_break)]
    columns = {column for table in found for column in table.header} | {tables.levels(board).header[-1]}
    columns |= set(tables.utility(board.scores).header[:4])  # the others are metrics
    assert columns - {""} <= documented()


def test_readme_names_the_provenance() -> None:
    assert collect(tiny_suite(), CPU, "nftbench run tiny", 1.0).keys() <= documented()
