"""`--shard`: each share runs its own cells, anyone can report, and the share that ends last writes the leaderboard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nftbench.records.store import Store
from tests.cli.test_verbs import cells, planned, tiny  # noqa: F401  # a fixture

Call = Callable[..., tuple[int, str, str]]


def test_the_share_that_ends_last_writes_the_leaderboard(call: Call, tiny: str) -> None:  # noqa: F811
    code, out, _ = call("run", tiny, "--jobs", 1, "--shard", "1/2")
    assert code == 0
    assert "tiny, shard 1/2: 0 of 3 cells done (a part of the suite's 6)" in out
    assert "shard 1/2 is done; 3 cells of other shards have no record yet" in out
    assert len({defense for defense, *_ in cells()}) == 1, "a release and all attacks on it"
    assert not Path("runs/tiny/leaderboard.md").exists()
    assert call("report", "runs/tiny")[0] == 0
    assert "3 of 6 cells recorded" in Path("runs/tiny/leaderboard.md").read_text()
    code, out, _ = call("run", tiny, "--jobs", 1, "--shard=2/2")
    assert code == 0
    assert cells() == planned()
    page = Path("runs/tiny/leaderboard.md").read_text()
    assert f"nftbench run {tiny} --jobs 1" in page
    assert "--shard" not in page
    assert "--shard" not in Store(Path("runs/tiny"), Path()).manifest().command


def test_in_a_slurm_array_the_share_is_that_of_the_task(
    call: Call,
    tiny: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"ID": 5, "COUNT": 2, "MIN": 4, "MAX": 5, "STEP": 1}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert "shard 2/2" in call("run", tiny, "--jobs", 1)[1]
    assert len(cells()) == 3
    assert "3 left" in call("plan", tiny, "--shard", "1/1")[1] or "3 of 6" in call("plan", tiny, "--shard", "1/1")[1]


def test_a_share_may_have_nothing_to_do(call: Call, tiny: str) -> None:  # noqa: F811
    code, out, _ = call("run", tiny, "--shard", "9/9")
    assert code == 0
    assert "tiny, shard 9/9: 0 of 0 cells done" in out
    assert not cells()
