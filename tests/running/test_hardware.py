"""One line says if records were computed by another kind of processor than this machine's."""

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


def test_records_of_the_same_processor_get_no_line() -> None:
    assert other_hardware(made_on(HERE, {**HERE, "threads": 8}), HERE) is None
    assert other_hardware([], HERE) is None


def test_a_processor_that_differs_in_anything_but_its_name_is_named() -> None:
    for change in ({"vendor": "AMD"}, {"family": "25"}, {"model": "1"}, {"stepping": "3"}, {"cpu_capability": "AVX2"}):
        line = other_hardware(made_on(HERE, HERE | change), HERE)
        assert line is not None
        assert line.startswith("1 of 2 records come from another processor")
        assert next(iter(change.values())) in line
        assert "unknown" not in line


def test_another_gpu_is_named() -> None:
    line = other_hardware(made_on(HERE | {"gpu": "A100"}), HERE | {"gpu": "H200"})
    assert line is not None
    assert "A100" in line
    assert "H200" in line


def test_older_records_have_an_unknown_processor() -> None:
    older = {"processor": "Xeon", "threads": 1}
    assert other_hardware(made_on(older, None), HERE) == "the processor of 2 records is unknown"
    line = other_hardware(made_on(older, HERE | {"model": "1"}), HERE)
    assert line is not None
    assert "1 of 2 records" in line
    assert line.endswith("the processor of 1 records is unknown")


def test_the_hardware_of_this_machine_is_described() -> None:
    found = hardware(CPU)
    assert {"device", "machine", "processor", "vendor", "family", "model", "stepping", "cpu_capability"} <= set(found)
    assert found["cpu_capability"]
    assert found["threads"] == 1, "as cells compute on the CPU, whatever torch takes in this process"
    assert other_hardware(made_on(dict(found)), found) is None
