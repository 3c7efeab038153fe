"""The processor and the card that computed a number. Another kind of them gives other bits from the same seed."""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from nftbench.device import Device
from nftbench.records.record import Record

CPUINFO = {
    "processor": ("model name",),
    "vendor": ("vendor_id", "CPU implementer"),
    "family": ("cpu family", "CPU architecture"),
    "model": ("model", "CPU part"),
    "stepping": ("stepping", "CPU revision"),
}
"""Our names for the entries of /proc/cpuinfo, as x86 and as ARM processors have them."""
KIND = ("processor", "vendor", "family", "model", "stepping", "cpu_capability", "gpu")
"""What has to agree. The name alone does not tell: under a hypervisor all processors may have the same."""


@functools.cache
def hardware(device: Device) -> Mapping[str, Any]:
    """What this machine computes with, on the given device, as a record's provenance holds it."""
    found: dict[str, Any] = {
        "device": str(device),
        "machine": platform.machine(),
        **_processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": device.threads or torch.get_num_threads(),
    }
    if device.kind == "cuda":
        properties = torch.cuda.get_device_properties(str(device))
        found |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return found


def other_hardware(records: Iterable[Record], here: Mapping[str, Any]) -> str | None:
    """One line where records were computed by another processor or card than `here`, or do not say by which.

    None where all were computed by the same.
    """
    recorded = [record.provenance.get("hardware") or {} for record in records]
    known = [one for one in recorded if "vendor" in one]
    this = _kind(here)
    others = [kind for kind in map(_kind, known) if kind != this]
    parts = []
    if others:
        parts.append(
            f"{len(others)} of {len(recorded)} records come from another processor "
            f"({', '.join(sorted(set(others)))}; this one: {this}): the same seed may give other base models here"
        )
    if len(known) < len(recorded):
        parts.append(f"the processor of {len(recorded) - len(known)} records is unknown")
    return "; ".join(parts) or None


def _kind(hardware: Mapping[str, Any]) -> str:
    return " ".join(str(hardware[name]) for name in KIND if hardware.get(name))


def _processor() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; elsewhere its name alone."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {"processor": platform.processor(), **dict.fromkeys(("vendor", "family", "model", "stepping"), "")}
    entries: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        entries.setdefault(name.strip(), value.strip())
    return {ours: next((entries[name] for name in names if name in entries), "") for ours, names in CPUINFO.items()}
