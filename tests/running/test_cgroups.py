"""The limit on memory that a container or a job of SLURM sets."""

from __future__ import annotations

import math
from functools import partial
from operator import mul
from pathlib import Path

import pytest

from nftbench.device import Device
from nftbench.errors import NftbenchError
from nftbench.running import cgroups, preflight

V1_UNLIMITED = "9223372036854771712"


@pytest.mark.parametrize(
    ("own", "limits", "bytes_"),
    [
        ("0::/\n", {"memory.max": "8000000000\n"}, 8e9),  # a container with a view of its own
        ("0::/a/b\n", {"a/memory.max": "5000000000\n", "a/b/memory.max": "max\n"}, 5e9),  # the job's group is above
        ("0::/a/b\n", {"a/memory.max": "5000000000\n", "a/b/memory.max": "4000000000\n"}, 4e9),
        ("0::/out/of/sight\n", {"memory.max": "3000000000\n"}, 3e9),
        ("4:cpu,memory:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": "2000000000\n"}, 2e9),
        ("4:memory:/job\n", {"memory/job/memory.limit_in_bytes": V1_UNLIMITED}, float(V1_UNLIMITED)),
        ("1:cpu:/job\n0::/a\n", {"memory/job/memory.limit_in_bytes": "1\n", "a/memory.max": "max\n"}, math.inf),
        ("0::/a:b\n", {"a:b/memory.max": "7\n"}, 7.0),
    ],
)
def test_the_smallest_limit_of_a_group_and_those_above_it_counts(
    own: str, limits: dict[str, str], bytes_: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _groups(own, limits, tmp_path, monkeypatch)
    assert cgroups.memory_limit() == bytes_


def test_without_control_groups_there_is_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "OWN", tmp_path / "missing")
    assert cgroups.memory_limit() == math.inf


def test_workers_must_fit_into_a_containers_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _groups("0::/\n", {"memory.max": "3000000000\n"}, tmp_path, monkeypatch)
    assert preflight.workers_that_fit(None, 8, partial(mul, 1e9), Device("cpu")) == 3
    with pytest.raises(NftbenchError, match="a worker needs about 4 GB, and there are 3 GB"):
        preflight.workers_that_fit(None, 8, partial(mul, 4e9), Device("cpu"))


def _groups(own: str, limits: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"own": own, **{f"groups/{path}": text for path, text in limits.items()}}.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(cgroups, "OWN", folder / "own")
    monkeypatch.setattr(cgroups, "ROOT", folder / "groups")
