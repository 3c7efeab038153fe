"""A packed folder is read like one with single files, can be continued, and loses no record to a kill."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nftbench.errors import NftbenchError
from nftbench.records.identity import digest
from nftbench.records.record import Record
from nftbench.records.store import Store
from tests import factories

FOUND = [replace(one, key=digest(one.key)) for one in factories.suite()]
BY_KEY = {one.key: one for one in FOUND}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results", tmp_path / "cache")


def written(store: Store, records: list[Record]) -> Store:
    for record in records:
        store.write(record)
    return store


def files(store: Store) -> set[str]:
    """Everything in the results folder but locks."""
    paths = {path.relative_to(store.results) for path in store.results.rglob("*") if path.is_file()}
    return {str(path) for path in paths if path.parts[0] != ".leases"}


PACK = "records.jsonl.xz"


def test_packed_records_are_read_as_before(store: Store) -> None:
    before = written(store, FOUND).records()
    size = sum(path.stat().st_size for path in (store.results / "records").iterdir())
    done = store.pack()
    assert (done.records, done.files, done.before) == (len(FOUND), len(FOUND), size)
    assert done.after == (store.results / PACK).stat().st_size < size / 10
    assert files(store) == {PACK}
    assert store.records() == before == BY_KEY
    assert list(store.records()) == list(before), "in the same order"


def test_fields_that_this_version_does_not_know_stay(store: Store) -> None:
    path = store.write(FOUND[0])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"later": [1, {"shared": 0}]}))
    store.pack()
    store.write(FOUND[1])
    store.pack()
    assert sorted(one["later"] for one in store.packed() if "later" in one) == [[1, {"shared": 0}]]


def test_packing_again_adds_what_is_new(store: Store) -> None:
    written(store, FOUND[:5]).pack()
    written(store, FOUND[5:])
    assert store.records() == BY_KEY
    assert list(store.records()) == list(written(Store(store.cache, store.cache), FOUND).records())
    assert store.pack().records == len(FOUND)
    content = (store.results / PACK).read_bytes()
    assert files(store) == {PACK}
    assert store.records() == BY_KEY
    done = store.pack()
    assert (done.records, done.files, done.before) == (len(FOUND), 0, done.after)
    assert (store.results / PACK).read_bytes() == content


def test_an_empty_folder_gets_no_pack(store: Store) -> None:
    store.results.mkdir()
    assert store.pack().records == 0
    assert files(store) == set()


@pytest.mark.parametrize(
    ("packed", "single", "winner"),
    [("ok", "ok", "single"), ("failed", "oom", "single"), ("failed", "ok", "single"), ("ok", "failed", "packed")],
)
def test_a_settled_record_comes_first_and_then_that_of_a_single_file(
    packed: str, single: str, winner: str, store: Store
) -> None:
    """Packing both keeps the same one."""
    one = FOUND[0]
    both = {
        "packed": replace(one, status=packed, reason="packed"),
        "single": replace(one, status=single, reason="single"),
    }
    store.write(both["packed"])
    store.pack()
    store.write(both["single"])
    assert store.records() == {one.key: both[winner]}
    store.pack()
    assert store.records() == {one.key: both[winner]}
    assert files(store) == {PACK}


def test_forgetting_drops_from_both(store: Store) -> None:
    written(store, FOUND[:6]).pack()
    written(store, FOUND[5:9])
    gone = {FOUND[0].key, FOUND[5].key, FOUND[8].key}
    store.forget(gone)
    assert store.records().keys() == {one.key for one in FOUND[:9]} - gone
    store.forget([one.key for one in FOUND])
    assert files(store) == set()


def test_a_corrupt_single_file_is_set_aside_and_not_packed(store: Store) -> None:
    victim = store.write(FOUND[0])
    written(store, FOUND[1:4])
    victim.write_text(victim.read_text()[:100])
    with pytest.warns(UserWarning, match="set aside"):
        store.pack()
    assert files(store) == {PACK, f"records/{victim.stem}.corrupt"}
    assert store.records().keys() == {one.key for one in FOUND[1:4]}


@pytest.mark.parametrize("harm", ["cut", "flipped", "no record"])
def test_a_damaged_pack_is_an_error_and_stays(harm: str, store: Store) -> None:
    """A single file may be computed again; a pack holds a whole suite."""
    from nftbench.records import pack as packs

    written(store, FOUND).pack()
    path = store.results / PACK
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    harmed = {"cut": content[:-9], "flipped": content, "no record": packs.encode([{"key": "k", "status": "ok"}])}[harm]
    path.write_bytes(harmed)
    store.write(FOUND[0])
    attempts: list[Callable[[], object]] = [store.records, lambda: store.forget([FOUND[0].key])]
    for attempt in [*attempts, store.pack] if harm != "no record" else attempts:
        with pytest.raises(NftbenchError, match=f"{PACK}: ") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == harmed
    assert len(files(store)) == 2


# --------------------------------------------------------------------------------------------------------------- locks


def test_packing_is_refused_while_a_run_works(store: Store) -> None:
    written(store, FOUND[:3]).pack()
    store.write(FOUND[3])
    before = files(store)
    with store.together():
        with store.together():  # runs share the folder
            pass
        with pytest.raises(NftbenchError, match="another nftbench process works here"):
            store.pack()
        with pytest.raises(NftbenchError, match="another nftbench process works here"):
            store.forget([FOUND[0].key])
        store.forget([FOUND[3].key])  # of single files alone, as ever
    assert files(store) == before - {f"records/{store.path(FOUND[3]).name}"}
    with store.claim("job") as mine:
        assert mine
        with pytest.raises(NftbenchError, match="another nftbench process works here"):
            store.pack()
    store.pack()


HELPER = """
import sys, time
from pathlib import Path
from nftbench.records.store import Store

store = Store(Path(sys.argv[1]), Path(sys.argv[1]))
"""


def process(store: Store, code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-P", "-c", HELPER + code, str(store.results)])


def wait_for(reached: Callable[[], bool], worker: subprocess.Popen[bytes]) -> None:
    while worker.poll() is None and not reached():
        time.sleep(0.0005)


def test_a_killed_run_leaves_the_folder_free(store: Store) -> None:
    store.write(FOUND[0])
    worker = process(store, "with store.together():\n    (store.results / 'inside').touch()\n    time.sleep(60)\n")
    wait_for((store.results / "inside").exists, worker)
    with pytest.raises(NftbenchError, match="works here"):
        store.pack()
    worker.kill()
    worker.wait(60)
    assert store.pack().records == 1


# --------------------------------------------------------------------------------------------------------------- kills


def states(store: Store) -> list[Callable[[], None]]:
    """What a kill can leave: steps that lead there from single files, half of them packed before."""
    copy = store.cache / "copy"
    shutil.copytree(store.results, copy)
    Store(copy, copy).pack()
    whole = (copy / PACK).read_bytes()
    singles = sorted((store.results / "records").iterdir())

    def draft() -> None:
        (store.results / f".{PACK}.abc").write_bytes(whole[: len(whole) // 2])

    def replaced() -> None:
        (store.results / PACK).write_bytes(whole)

    def one_deleted() -> None:
        singles[0].unlink()

    def all_deleted() -> None:
        for path in singles[1:]:
            path.unlink()

    return [draft, replaced, one_deleted, all_deleted]


@pytest.mark.parametrize("count", range(5))
def test_every_state_that_a_kill_can_leave_is_whole(count: int, store: Store) -> None:
    written(store, FOUND[::2]).pack()
    written(store, FOUND[1::2])
    for step in states(store)[:count]:
        step()
    assert store.records() == BY_KEY
    store.pack()
    assert store.records() == BY_KEY
    assert files(store) == {PACK}


@pytest.mark.parametrize("moment", ["draft", "pack", "some deleted"])
def test_a_kill_loses_nothing(moment: str, store: Store) -> None:
    """The watched moment may have passed when the signal comes; wherever it hits, all records are there."""
    many = [replace(one, key=digest(one.key, copy), defense=f"d{copy}") for one in FOUND for copy in range(4)]
    written(store, many)
    folder = store.results / "records"
    reached = {
        "draft": lambda: any(store.results.glob(f".{PACK}.*")),
        "pack": (store.results / PACK).exists,
        "some deleted": lambda: not folder.exists() or len([*folder.iterdir()]) < len(many),
    }[moment]
    worker = process(store, "store.pack()")
    wait_for(reached, worker)
    worker.send_signal(signal.SIGKILL)
    worker.wait(60)
    expected = {one.key: one for one in many}
    assert store.records() == expected
    store.pack()
    assert files(store) == {PACK}
    assert store.records() == expected
