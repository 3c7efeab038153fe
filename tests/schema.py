"""The JSON Schemas of a record and of leaderboard.json, from their types. `make schema` writes them to results/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from nftbench.records.record import Record
from nftbench.report import json as leaderboard

LATER = {
    *("told", "base_sha256", "reading", "preparation_steps", "own_code", "trained_weights"),
    *("unchecked", "rewrite", "plain_text", "reference_plain_text", "ledger", "attacked_utility"),
}
"""Fields that records published before them lack."""
EARLIER = {"at_last_step": {"type": "boolean"}}
"""Fields of a record that only records of 0.1 have."""
RESULTS = Path(__file__).resolve().parent.parent / "results"
PATH, BOARD_PATH = RESULTS / "schema.json", RESULTS / "leaderboard-schema.json"


def schema() -> dict[str, Any]:
    """Every field but the `LATER` and the `EARLIER` ones is there in every record, and no other."""
    drawn = TypeAdapter(Record).json_schema(mode="serialization")
    drawn["properties"] |= EARLIER
    for definition in (drawn, *drawn["$defs"].values()):
        if "properties" in definition:
            definition["additionalProperties"] = False
            definition["required"] = sorted(definition["properties"].keys() - LATER - EARLIER.keys())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **drawn}


def text() -> str:
    """The content of results/schema.json."""
    return json.dumps(schema(), indent=1, sort_keys=True) + "\n"


def board_text() -> str:
    """The content of results/leaderboard-schema.json."""
    return json.dumps(leaderboard.schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
    BOARD_PATH.write_text(board_text(), encoding="utf-8")
