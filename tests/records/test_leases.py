"""Leases: one holder at a time, taken over from the dead, whatever clocks say; nobody publishes under a lost one."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nftbench.errors import NftbenchError
from nftbench.records import leases
from nftbench.records.store import Store

EXPIRY = 1.0

HOLDS = """
import sys, time
from pathlib import Path
from nftbench.records import leases

path, expiry, machine = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
if machine:
    leases._machine = lambda: machine
with leases.held(path, expiry):
    print("holds", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "job.lease"


def holder(path: Path, expiry: float = EXPIRY, machine: str = "") -> subprocess.Popen[str]:
    """Another process that holds the lease; on a machine of this name, if one is given."""
    words = [sys.executable, "-P", "-c", HOLDS, str(path), str(expiry), machine]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    return process


def seconds_until_free(path: Path, expiry: float = EXPIRY, longest: float = 30.0) -> float:
    begun = time.monotonic()
    while (lease := leases.take(path, expiry)) is None:
        assert time.monotonic() - begun < longest, "it never became free"
        time.sleep(0.02)
    lease.end()
    return time.monotonic() - begun


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_lease_has_one_holder_and_leaves_no_file(path: Path) -> None:
    lease = leases.take(path, EXPIRY)
    assert lease is not None
    assert leases.take(path, EXPIRY) is None
    assert str(os.getpid()) in (leases.holder(path, EXPIRY) or "")
    lease.confirm()
    lease.end()
    assert list(path.parent.iterdir()) == []
    assert leases.holder(path, EXPIRY) is None


def test_a_living_holder_keeps_its_lease_for_longer_than_it_lasts_without_a_sign_of_life(path: Path) -> None:
    for machine in ("", "another machine"):
        process = holder(path, machine=machine)
        watched = time.monotonic()
        while time.monotonic() - watched < 3 * EXPIRY:
            assert leases.take(path, EXPIRY) is None
            time.sleep(0.1)
        end(process)
        path.unlink()


def test_a_holder_that_dies_on_this_machine_is_replaced_at_once(path: Path) -> None:
    process = holder(path, expiry=600)
    assert leases.take(path, 600) is None
    end(process)
    assert seconds_until_free(path, 600) < 10


def test_a_holder_that_dies_on_another_machine_is_replaced_after_the_time(path: Path) -> None:
    process = holder(path, machine="another machine")
    end(process)
    assert EXPIRY <= seconds_until_free(path) < 10 * EXPIRY


def test_who_looks_rarely_finds_the_dead_as_well(path: Path) -> None:
    """Such as a worker between two long jobs. It holds a lease of its own, and so its heart beats."""
    own = leases.take(path.with_name("own.lease"), EXPIRY)
    assert own is not None
    end(holder(path, machine="another machine"))
    for _ in range(5):  # at the first look nobody knows
        if (lease := leases.take(path, EXPIRY)) is not None:
            break
        time.sleep(1.5 * EXPIRY)
    assert lease is not None
    lease.end()
    own.end()


@pytest.mark.parametrize("jump", [-86_400 * 400, 86_400 * 400])
def test_clocks_that_are_apart_or_jump_change_nothing(path: Path, jump: float) -> None:
    """The other machine's file server writes times of last year, or of next year."""
    process = holder(path, machine="another machine")
    os.utime(path, (time.time() + jump, time.time() + jump))
    begun = time.monotonic()
    assert leases.take(path, EXPIRY) is None
    os.utime(path, (time.time() - jump, time.time() - jump))
    assert leases.take(path, EXPIRY) is None
    assert time.monotonic() - begun < EXPIRY, "this machine is too slow for the test"
    end(process)
    os.utime(path, (time.time() + jump, time.time() + jump))
    assert seconds_until_free(path) >= EXPIRY


def test_who_was_stopped_itself_watches_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop that sleeps stops holder and watcher; the watcher may be the first to wake up."""
    process = holder(path, machine="another machine")
    process.send_signal(signal.SIGSTOP)
    assert leases.take(path, EXPIRY) is None
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 3600)
    assert leases.take(path, EXPIRY) is None
    process.send_signal(signal.SIGCONT)
    time.sleep(2 * EXPIRY / leases.BEATS)
    assert leases.take(path, EXPIRY) is None
    end(process)


def test_a_stopped_holder_loses_its_lease_and_knows_it(path: Path) -> None:
    """Stopped is not dead, so that the system still keeps its `flock`."""
    process = holder(path)
    process.send_signal(signal.SIGSTOP)
    assert seconds_until_free(path) >= EXPIRY
    mine = leases.take(path, EXPIRY)
    assert mine is not None
    process.send_signal(signal.SIGCONT)
    time.sleep(0.3)
    mine.confirm()  # it has not been taken back
    end(process)
    mine.confirm()
    mine.end()


def test_a_lost_lease_is_neither_confirmed_nor_deleted_at_the_end(path: Path) -> None:
    lease = leases.take(path, EXPIRY)
    assert lease is not None
    path.unlink()
    successor = leases.take(path, EXPIRY)
    assert successor is not None
    with pytest.raises(leases.LostError):
        lease.confirm()
    lease.end()
    successor.confirm()
    successor.end()


def test_a_successor_is_not_put_aside_with_the_dead(path: Path) -> None:
    """Two processes find one dead holder; the slower one must not remove the lease of the faster one."""
    process = holder(path)
    end(process)
    dead = leases._look(path)
    assert dead is not None
    faster = leases.take(path, EXPIRY)
    assert faster is not None
    assert not leases._put_aside(path, dead)
    faster.confirm()
    faster.end()


def test_a_full_disk_leaves_no_lease(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            leases.take(path, EXPIRY)
    assert not path.exists()
    assert seconds_until_free(path) < 1


def test_a_file_system_may_lack_hard_links(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    lease = leases.take(path, EXPIRY)
    assert lease is not None
    lease.confirm()
    assert leases.take(path, EXPIRY) is None
    lease.end()
    assert list(path.parent.iterdir()) == []


def test_a_file_server_may_say_that_its_own_link_was_there_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first answer was lost, and it was asked again."""
    link = os.link

    def answers_the_second_time(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(17, "File exists", str(target))

    monkeypatch.setattr(os, "link", answers_the_second_time)
    lease = leases.take(path, EXPIRY)
    assert lease is not None
    lease.confirm()
    lease.end()
    assert list(path.parent.iterdir()) == []


def test_a_lease_may_go_while_it_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file server does not keep a file for those who have opened it elsewhere."""
    lease = leases.take(path, EXPIRY)
    assert lease is not None

    def stale(*_: object) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(os, "read", stale)
        assert leases.holder(path, EXPIRY) is None
    lease.end()


def test_where_there_is_no_flock_the_time_decides(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_lock", lambda *_, **__: False)
    lease = leases.take(path, EXPIRY)
    assert lease is not None
    leases._heart.remove(lease)  # its process is dead
    assert leases.take(path, EXPIRY) is None
    assert seconds_until_free(path) >= 0.9 * EXPIRY


RACES = """
import os, random, sys, time
from pathlib import Path
from nftbench.records import leases

folder, chance = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
while not (folder / "over").exists():
    lease = leases.take(folder / "job.lease", 600)
    if lease is None:
        time.sleep(0.001)
        continue
    (folder / "inside").symlink_to(str(os.getpid()))  # an error if there is one
    time.sleep(chance.uniform(0, 0.003))
    (folder / "inside").unlink()
    with (folder / "taken").open("a") as log:
        log.write("x")
    lease.end()
"""


def test_many_processes_never_hold_one_lease_together(tmp_path: Path) -> None:
    """Each makes a link that must not be there. Some are killed while they are inside."""
    chance = random.Random(0)
    words = [sys.executable, "-P", "-c", RACES, str(tmp_path)]
    racers = [subprocess.Popen([*words, str(seed)]) for seed in range(4)]
    taken = tmp_path / "taken"

    def wait_for_more() -> None:
        before, begun = taken.stat().st_size if taken.exists() else 0, time.monotonic()
        while not taken.exists() or taken.stat().st_size < before + 20:
            assert time.monotonic() - begun < 60
            assert all(racer.poll() is None for racer in racers), "one found another inside"
            time.sleep(0.005)

    try:
        for round_ in range(6):
            wait_for_more()
            time.sleep(chance.uniform(0, 0.01))
            stopped = racers.pop(0)
            for racer in racers:  # so that nobody enters before the link of the killed one is gone
                racer.send_signal(signal.SIGSTOP)
            stopped.kill()
            stopped.wait()
            inside = tmp_path / "inside"
            if inside.is_symlink() and str(inside.readlink()) == str(stopped.pid):
                inside.unlink()
            for racer in racers:
                racer.send_signal(signal.SIGCONT)
            racers.append(subprocess.Popen([*words, str(100 + round_)]))
        wait_for_more()
        (tmp_path / "over").touch()
        assert [racer.wait(60) for racer in racers] == [0] * 4
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()


# ---------------------------------------------------------------------------------------- what the store does with them


def stolen(store: Store, name: str) -> None:
    """Do as a process does that finds the lease silent: put it aside and take it."""
    path = store.cache / leases.FOLDER / f"{name}.lease"
    found = leases._look(path)
    assert found is not None
    assert leases._put_aside(path, found)


def test_a_builder_that_lost_its_lock_takes_what_the_other_made(tmp_path: Path) -> None:
    store = Store(tmp_path, tmp_path)
    builds = []

    def slow(draft: Path) -> None:
        builds.append("slow")
        stolen(store, "bases-k")
        assert store.make("bases", "k", fast) == tmp_path / "bases" / "k"
        (draft / "by").write_text("slow")  # its folder is gone, because the other process has tidied up

    def fast(draft: Path) -> None:
        builds.append("fast")
        (draft / "by").write_text("fast")

    folder = store.make("bases", "k", slow)
    assert (folder / "by").read_text() == "fast"
    assert builds == ["slow", "fast"]
    assert sorted(path.name for path in (tmp_path / "bases").iterdir()) == ["k"]


def test_confirming_says_who_lost_the_lock(tmp_path: Path) -> None:
    store = Store(tmp_path, tmp_path)
    with store.lock("runs", "k"):
        store.confirm("runs", "k")
        stolen(store, "runs-k")
        with pytest.raises(leases.LostError, match="another process has taken"):
            store.confirm("runs", "k")


def test_packing_waits_for_the_dead_of_another_machine_and_for_nobody_else(tmp_path: Path) -> None:
    store = Store(tmp_path, tmp_path, expiry=EXPIRY)
    path = tmp_path / leases.FOLDER / "run-of-another.lease"
    path.parent.mkdir()
    process = holder(path, machine="another machine")
    with pytest.raises(NftbenchError, match=f"process {process.pid}"), store.alone():
        pass
    end(process)
    begun = time.monotonic()
    with store.alone():
        assert time.monotonic() - begun >= EXPIRY
    assert not path.exists(), "whoever packs next would wait again"
