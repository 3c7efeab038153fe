"""Where a number comes from: versions, commit, hardware, data, settings, command."""

from __future__ import annotations

import functools
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nftbench.device import Device
from nftbench.records import identity
from nftbench.running import isolation
from nftbench.running.hardware import hardware
from nftbench.suites.schema import Suite

PACKAGES = ("nftbench", "torch", "transformers", "tokenizers", "datasets", "peft", "lm-eval", "numpy", "safetensors")
SETTINGS = {"model", "corpus", "pretraining", "budget", "seeds", "ranking"}
"""What of a suite is not in the record anyway, or in another one."""


def collect(suite: Suite, device: Device, command: str, seconds: float) -> dict[str, Any]:
    """Everything about a record that is not its number."""
    return {
        "command": command,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "versions": dict(_versions()),
        "areas": {"training": identity.TRAINING, "attack": identity.ATTACK, "evaluation": identity.EVALUATION},
        "commit": _commit(),
        "hardware": dict(hardware(device)),
        "isolation": isolation.kind(),
        "configuration": suite.model_dump(mode="json", include=SETTINGS),
    }


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            found.append((package, "not installed"))
    return tuple(found)


@functools.cache
def _commit() -> str | None:
    """The commit of nftbench's own source, with `-dirty` where files differ from it; None outside a checkout."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return found or None
