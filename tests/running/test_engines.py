"""Every way to spread a run gives the records of one machine: shards, SLURM, Ray; also where a part of it is lost."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nftbench.errors import NftbenchError
from nftbench.running.executors.slurm import Settings, minutes
from tests import slurm_cluster
from tests.running.driven import CHANGES, Cells, assert_same, finish, found_in, start

Bare = Callable[[Any], Any]
ONE_SEED = {**CHANGES, "seeds": [0]}
NOT_NICE = {"RAY_worker_niceness": "0"}
"""Ray's workers give way to all other processes, and on a busy machine would take very long."""

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'nftbench[ray]'")
needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="needs submitit: pip install 'nftbench[slurm]'"
)
needs_slurm = pytest.mark.skipif(slurm_cluster.missing() is not None, reason=f"no SLURM: {slurm_cluster.missing()}")


@pytest.fixture
def expected(undisturbed: Cells) -> Cells:
    """The records of one seed."""
    return {place: one for place, one in undisturbed.items() if one.seed == 0}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What the environment of SLURM's commands needs, while a cluster runs."""
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


# -------------------------------------------------------------------------------------------------------------- shards


@pytest.mark.slow
def test_shards_at_the_same_time_give_the_same_records(undisturbed: Cells, tmp_path: Path, bare: Bare) -> None:
    """Three shares of two seeds: one seed is whole, and two shares of the other wait for one base."""
    shards = [start(tmp_path / "results", tmp_path / "cache", shard=f"{index}/3") for index in (1, 2, 3)]
    written = []
    for shard in shards:
        out = finish(shard, 900)
        written.append(sum(int(line.split()[2]) for line in out.splitlines() if line.startswith("finished attack")))
    assert_same(tmp_path / "results", undisturbed, bare)
    assert sum(written) == len(undisturbed), "no cell was run twice"
    assert all(written)


# ----------------------------------------------------------------------------------------------------------------- Ray


@pytest.mark.slow
@needs_ray
def test_ray_gives_the_same_records(expected: Cells, tmp_path: Path, bare: Bare) -> None:
    finish(start(tmp_path / "results", tmp_path / "cache", 2, ONE_SEED, executor="ray", environment=NOT_NICE), 1200)
    assert_same(tmp_path / "results", expected, bare)
    assert not list((tmp_path / "results" / ".workers").glob("*.pickle")), "the plan, with its salt, is left behind"


@pytest.mark.slow
@needs_ray
def test_a_node_of_a_ray_cluster_that_is_killed_costs_nothing_but_time(
    expected: Cells, tmp_path: Path, bare: Bare
) -> None:
    """Of three nodes one is killed while it runs an attack."""
    run = start(tmp_path / "results", tmp_path / "cache", 3, ONE_SEED, executor="ray", nodes=3, environment=NOT_NICE)
    assert "killed a node" in finish(run, 1800)
    assert_same(tmp_path / "results", expected, bare)


# --------------------------------------------------------------------------------------------------------------- SLURM


@pytest.mark.slow
@needs_submitit
@needs_slurm
def test_slurm_gives_the_same_records(expected: Cells, tmp_path: Path, slurm: dict[str, str], bare: Bare) -> None:
    finish(start(tmp_path / "results", tmp_path / "cache", 1, ONE_SEED, executor="slurm", environment=slurm), 1800)
    assert_same(tmp_path / "results", expected, bare)
    assert list((tmp_path / "results" / ".workers" / "slurm").rglob("*.err")), "the logs lie in the results folder"


@pytest.mark.slow
@needs_submitit
@needs_slurm
def test_of_slurm_jobs_a_cancelled_one_fails_alone_and_a_requeued_one_runs_again(
    expected: Cells, tmp_path: Path, slurm: dict[str, str], bare: Bare
) -> None:
    def slurm_says(*words: str) -> str:
        found = subprocess.run(words, env={**os.environ, **slurm}, capture_output=True, text=True, check=False)
        return found.stdout.strip()

    def running_attack(other_than: str = "") -> str:
        end = time.monotonic() + 600
        while time.monotonic() < end:
            lines = slurm_says("squeue", "-h", "-r", "--name=nftbench-attack", "-t", "running", "-o", "%i").split()
            for job in lines:
                if job != other_than:
                    return job
            time.sleep(0.2)
        raise AssertionError("no attack was ever running")

    results = tmp_path / "results"
    run = start(results, tmp_path / "cache", 1, ONE_SEED, executor="slurm", environment=slurm)
    cancelled = running_attack()
    slurm_says("scancel", cancelled)
    requeued = running_attack(cancelled)
    slurm_says("scontrol", "requeue", requeued)
    finish(run, 1800)
    assert "Restarts=1" in slurm_says("scontrol", "show", "job", requeued)
    found = found_in(results)
    failed = {place: one for place, one in found.items() if one.status != "ok"}
    assert len({one.attack for one in failed.values()}) == 1, "one job has failed"
    assert all(f"SLURM job {cancelled} ended without a result" in one.reason for one in failed.values())
    assert {place: bare(found[place]) for place in found.keys() - failed.keys()} == {
        place: bare(expected[place]) for place in expected.keys() - failed.keys()
    }
    finish(start(results, tmp_path / "cache", 1, ONE_SEED), 600)
    assert_same(results, expected, bare)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(90, 90), ("90", 90), ("90:00", 90), ("1:30:00", 90), ("1-0", 1440), ("1-2:30", 1590), ("0:20", 1)],
)
def test_times_are_read_as_slurm_reads_them(text: object, expected: int) -> None:
    assert minutes(text) == expected


def test_a_parallel_config_has_benchopts_keys_and_a_section_for_each_kind_of_job(tmp_path: Path) -> None:
    path = tmp_path / "slurm.yaml"
    path.write_text(
        "backend: submitit\nslurm_partition: gpu\nslurm_gres: gpu:1\nslurm_time: '8:00:00'\n"
        "releases: {slurm_partition: cpu, slurm_gres: null}\n"
    )
    attacks = {"slurm_partition": "gpu", "slurm_gres": "gpu:1", "slurm_time": 480}
    assert Settings.read(path).of == {
        "attack": attacks,
        "protect": {**attacks, "slurm_partition": "cpu", "slurm_gres": None},
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("backend: dask", "submitit alone"),
        ("partition: gpu", "'slurm_partition'"),
        ("release: {}", "'releases'"),
        ("slurm_time: soon", "soon"),
        ("- 1", "not a mapping"),
        ("releases: gpu", "unknown key"),
        ("a: [", "slurm.yaml"),
    ],
)
def test_a_wrong_parallel_config_is_named(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "slurm.yaml"
    path.write_text(content)
    with pytest.raises(NftbenchError, match=said):
        Settings.read(path)
