"""The limit that a container or a job of SLURM sets on memory; the machine may have far more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
"""The control groups of this process, a line each: a number, controllers, and a path below `ROOT`."""


def memory_limit() -> float:
    """The bytes that this process and its children may use together; infinite without a limit.

    A group's limit counts with those of all groups above it. Both versions of the kernel's interface are read
    (https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html). Version 1 writes a huge number
    where there is no limit.
    """
    return min(_limits(), default=math.inf)


def _limits() -> Iterator[float]:
    try:
        lines = OWN.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _upwards(ROOT, path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _upwards(ROOT / "memory", path, "memory.limit_in_bytes")


def _upwards(root: Path, path: str, name: str) -> Iterator[float]:
    """The limits in a group's folder and in those above. Within a container the group itself may be out of sight."""
    folder = root / path.lstrip("/")
    for one in (folder, *folder.parents):
        if one.is_relative_to(root) and (file := one / name).is_file():
            text = file.read_text().strip()
            if text.isdigit():  # or else `max`
                yield float(text)
