"""Whether a folder's records were computed by this machine's kind of processor is said in one line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nftbench.device import CPU
from nftbench.records.record import Record
from nftbench.running.hardware import hardware, other_hardware
from tests.factories import record

HERE = {"processor": "Xeon", "vendor": "Intel", "family": "6", "model": "207", "stepping": "2", "threads": 1}
HERE |= {"cpu_capability": "AVX512"}


def made_on(*machines: dict[str, Any] | None) -> list[Record]:
    return [
        replace(record("none", "full", "topic", seed, 0.8), provenance={} if one is None else {"hardware": one})
        for seed, one in enumerate(machines)
    ]


def test_nothing_is_said_of_the_same_processor() -> None:
    assert other_hardware(made_on(HERE, {**HERE, "threads": 8}), HERE) is None
    assert other_hardware([], HERE) is None


def test_another_processor_of_the_same_name_is_another() -> None:
    for change in ({"vendor": "AMD"}, {"family": "25"}, {"model": "1"}, {"stepping": "3"}, {"cpu_capability": "AVX2"}):
        line = other_hardware(made_on(HERE, HERE | change), HERE)
        assert line is not None
        assert line.startswith("1 of 2 records come from another processor")
        assert next(iter(change.values())) in line
        assert "unknown" not in line


def test_another_card_is_another() -> None:
    line = other_hardware(made_on(HERE | {"gpu": "A100"}), HERE | {"gpu": "H200"})
    assert line is not None
    assert "A100" in line
    assert "H200" in line


def test_older_records_do_not_say() -> None:
    older = {"processor": "Xeon", "threads": 1}
    assert other_hardware(made_on(older, None), HERE) == "the processor of 2 records is unknown"
    line = other_hardware(made_on(older, HERE | {"model": "1"}), HERE)
    assert line is not None
    assert "1 of 2 records" in line
    assert line.endswith("the processor of 1 records is unknown")


def test_this_machine_has_a_processor() -> None:
    found = hardware(CPU)
    assert {"device", "machine", "processor", "vendor", "family", "model", "stepping", "cpu_capability"} <= set(found)
    assert found["cpu_capability"]
    assert found["threads"] == 1, "as cells compute on the CPU, whatever torch takes in this process"
    assert other_hardware(made_on(dict(found)), found) is None
