"""Shards: together they are the plan, each release is in one of them, and seeds stay whole where they can."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, strategies as st

from nftbench.errors import NftbenchError
from nftbench.planning.plan import Plan, plan
from nftbench.planning.shards import Shard, share
from nftbench.records.record import Cell
from nftbench.records.spec import Spec
from nftbench.testing import tiny_suite


@dataclass(frozen=True)
class Rows:
    """Cells for each row of a seed."""

    sizes: tuple[int, ...]
    seeds: int


def planned(rows: Rows) -> Plan:
    cells = [
        Cell(Spec(f"d{row}"), Spec("full"), Spec(f"t{task}"), seed, f"{seed}-{row}-{task}", f"r{seed}-{row}")
        for seed in range(10, 10 + rows.seeds)
        for row, size in enumerate(rows.sizes)
        for task in range(size)
    ]
    suite: Any = None
    return Plan(suite, tuple(cells), ())


ROWS = st.builds(Rows, st.lists(st.integers(1, 9), min_size=1, max_size=12).map(tuple), st.integers(1, 6))


@given(ROWS, st.integers(1, 40))
def test_the_shares_are_the_plan_and_split_no_release(rows: Rows, count: int) -> None:
    whole = planned(rows)
    shares = [share(whole, Shard(index, count)) for index in range(1, count + 1)]
    assert Counter(cell for one in shares for cell in one.cells) == Counter(whole.cells)
    homes = Counter(release for one in shares for release in {cell.release for cell in one.cells})
    assert set(homes.values()) == {1}
    assert shares == [share(whole, Shard(index, count)) for index in range(1, count + 1)]
    order = {cell: place for place, cell in enumerate(whole.cells)}
    for one in shares:
        assert sorted(one.cells, key=order.__getitem__) == list(one.cells)


@given(ROWS, st.integers(1, 40))
def test_a_seed_is_split_only_where_there_are_more_shares_than_seeds(rows: Rows, count: int) -> None:
    whole = planned(rows)
    shares = [share(whole, Shard(index, count)) for index in range(1, count + 1)]
    seeds = [{cell.seed for cell in one.cells} for one in shares]
    if count <= rows.seeds:
        assert sum(map(len, seeds)) == rows.seeds
        assert max(map(len, seeds)) - min(map(len, seeds)) <= 1
    else:
        assert max(map(len, seeds)) <= 1


@given(ROWS, st.integers(1, 8))
def test_the_shares_of_a_seed_have_about_the_same_size(rows: Rows, times: int) -> None:
    """The idlest takes the next, so the largest is above the smallest by at most one release."""
    whole = planned(rows)
    count = times * rows.seeds
    sizes: dict[int, list[int]] = {}
    for index in range(1, count + 1):
        cells = share(whole, Shard(index, count)).cells
        sizes.setdefault((index - 1) // times, []).append(len(cells))
    for each in sizes.values():
        assert max(each) - min(each) <= (max(rows.sizes) if times > 1 else 0)


def test_the_shares_of_a_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs of a real plan are shared out whole."""
    whole = plan(tiny_suite(defenses=["none", "early_stop"], attacks=["none", "full"], seeds=[0, 1]))
    jobs = [job for index in range(1, 5) for job in share(whole, Shard(index, 4)).jobs()]
    assert {job.key: job for job in jobs} == {job.key: job for job in whole.jobs()}
    assert len(jobs) == len(whole.jobs())


def test_a_shard_is_read_from_text() -> None:
    assert Shard.parse("3/16") == Shard(3, 16)
    assert str(Shard(3, 16)) == "3/16"
    for bad in ("0/4", "5/4", "1/0", "3", "a/b", "1/2/3", "-1/4", ""):
        with pytest.raises(NftbenchError):
            Shard.parse(bad)


def array(**values: int) -> dict[str, str]:
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (array(ID=3, COUNT=16, MIN=0, MAX=15, STEP=1), Shard(4, 16)),
        (array(ID=1, COUNT=16, MIN=1, MAX=16, STEP=1), Shard(1, 16)),
        (array(ID=16, COUNT=16, MIN=1, MAX=16, STEP=1), Shard(16, 16)),
        (array(ID=30, COUNT=16, MIN=0, MAX=30, STEP=2), Shard(16, 16)),
        (array(ID=5, COUNT=1, MIN=5, MAX=5, STEP=1), Shard(1, 1)),
    ],
)
def test_a_task_of_an_array_has_its_share(environment: dict[str, str], expected: Shard | None) -> None:
    assert Shard.of_array(environment) == expected


def test_an_array_with_gaps_is_refused() -> None:
    with pytest.raises(NftbenchError, match="--shard 3/16"):
        Shard.of_array(array(ID=9, COUNT=3, MIN=1, MAX=9, STEP=1))
