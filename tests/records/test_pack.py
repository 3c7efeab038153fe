"""The packed format: records are read back exactly, repeated values are stored once, damage is refused."""

from __future__ import annotations

import itertools
import json
import lzma
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from nftbench.errors import NftbenchError
from nftbench.records.pack import SHORTEST, decode, encode

LONG = {"settings": "x" * SHORTEST}
KEYS = st.sampled_from(["shared", "value", "format", "count"]) | st.text(max_size=3)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES | st.sampled_from([LONG, {"shared": 0}, '{"shared":0}']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.lists(st.dictionaries(KEYS, VALUES, max_size=3), max_size=4).map(lambda found: [*found, *found[:2]])


def text(records: list[dict[str, Any]]) -> list[str]:
    return lzma.decompress(encode(records)).decode().splitlines()


@settings(max_examples=40)
@given(RECORDS)
def test_packed_records_are_read_back_exactly(records: list[dict[str, Any]]) -> None:
    """To the last digit and in the order of their keys: their texts are equal, not only their values."""
    found = [json.loads(record) for record in decode(encode(records), "pack")]
    assert [json.dumps(record) for record in found] == [json.dumps(record) for record in records]


@given(st.integers(2, 9), st.lists(st.integers(0, 3), max_size=3))
def test_a_repeated_value_is_stored_once(count: int, path: list[int]) -> None:
    """However deep it lies, and whatever stands around it."""

    def around(key: int) -> dict[str, Any]:
        value: Any = LONG
        for step in path:
            value = [key] * step + [{"key": key, "inner": value}]
        return {"key": key, "inner": value}

    lines = text([around(key) for key in range(count)])
    assert "".join(lines).count(LONG["settings"]) == 1
    assert json.loads(lines[1]) == {"shared": 0, "value": LONG}
    assert len(lines) == 1 + 1 + count + 1


def test_a_whole_part_is_shared_rather_than_its_pieces() -> None:
    lines = text([{"key": 1, "provenance": {"versions": LONG, "hardware": LONG | {"threads": 1}}}] * 2)
    assert json.loads(lines[0]) == {"format": 1, "shared": 1}
    assert [json.loads(line) for line in lines[2:4]] == [{"shared": 0}] * 2


def test_short_and_single_values_stay_where_they_are() -> None:
    records = [{"key": 1, "row": {"stage": "pretrain"}}, {"key": 2, "row": {"stage": "pretrain"}, "only": LONG}]
    assert [json.loads(line) for line in text(records)[1:-1]] == records


SMALL = encode([{"key": 1, "a": LONG}, {"key": 2, "a": LONG}])


def test_a_cut_file_is_refused() -> None:
    for length in range(len(SMALL)):
        refused(SMALL[:length])


def test_a_flipped_bit_is_refused() -> None:
    for place, bit in itertools.product(range(len(SMALL)), range(8)):
        content = bytearray(SMALL)
        content[place] ^= 1 << bit
        refused(bytes(content))


@given(st.binary(min_size=1))
def test_bytes_after_the_end_are_refused(more: bytes) -> None:
    refused(encode([LONG]) + more)


@given(st.integers(0, 4), st.sampled_from(["dropped", "doubled", "changed"]))
def test_lines_that_do_not_fit_the_last_one_are_refused(number: int, change: str) -> None:
    """As from a writer that stopped half-way, or a hand that edited the text and compressed it again."""
    lines = lzma.decompress(SMALL).decode().splitlines()
    assert len(lines) == 5
    line = lines[number]
    changed = line.replace('"sha256":"', '"sha256":"0') if number == 4 else f"{line} "
    lines[number : number + 1] = {"dropped": [], "doubled": [line, line], "changed": [changed]}[change]
    refused(lzma.compress("".join(f"{one}\n" for one in lines).encode()))


@pytest.mark.parametrize("body", ["", "\n", "[]\n[]\n", "{}\n{}\n", '{"format":1}\n{"count":0}\n', "no JSON\n"])
def test_a_file_of_another_format_is_refused(body: str) -> None:
    refused(lzma.compress(body.encode()))


def test_another_version_of_the_format_is_refused_by_its_number() -> None:
    lines = [line.replace('"format":1', '"format":2') for line in text([LONG])]
    refused(lzma.compress("".join(f"{line}\n" for line in lines).encode()), "format 2, not 1")


def refused(content: bytes, why: str = "damaged") -> None:
    with pytest.raises(NftbenchError, match=f"^runs/x/records.jsonl.xz: .*{why}") as caught:
        decode(content, "runs/x/records.jsonl.xz")
    assert "\n" not in str(caught.value)
