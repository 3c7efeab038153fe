"""The store: records, artifacts and locks stay whole after a kill, and damaged files are set aside."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nftbench.contract import Claim, Measurement, Point
from nftbench.errors import NftbenchError
from nftbench.records import store as stores
from nftbench.records.manifest import Manifest
from nftbench.records.record import Cell, Record, Row
from nftbench.records.spec import Spec
from nftbench.records.store import Store, write_atomically
from nftbench.terms import KNOWLEDGE
from nftbench.testing import tiny_suite


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results", tmp_path / "cache")


def record(number: int = 0, **changes: object) -> Record:
    plain = Record(
        key=f"{number:064x}",
        suite="tiny",
        defense="pmp[ratio=0.5]",
        attack="full",
        task="toy_topic",
        seed=number,
        row=Row("pretrain", False, "none"),
        knowledge=("data", "method"),
        status="ok",
        attacked=Measurement("acc", 0.1 + 0.2, 0.01, 9, 0.25, loss=1e-17),
        picked=Point(1 / 3, 4, 0.1 + 0.2, None),
        curve=(Point(1 / 3, 0, None, None), Point(1 / 3, 4, 0.1 + 0.2, 0.7, 0.8)),
        recovery={"auc": 0.5},
        provenance={"seconds": 1.5, "nested": {"a": [1, None, True]}},
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def cell(number: int = 0) -> Cell:
    spec = Spec("pmp", (("ratio", 0.5),))
    return Cell(spec, Spec("full"), Spec("toy_topic"), number, f"{number:064x}", "r")


# ------------------------------------------------------------------------------------------------------------- records


def test_a_record_survives_the_disk_exactly(store: Store) -> None:
    one = record()
    path = store.write(one)
    assert store.records() == {one.key: one}
    assert path == store.path(one) == store.path(cell())
    assert "pmp_ratio=0.5" in path.name


def test_a_field_that_records_no_longer_have_is_ignored(store: Store) -> None:
    """Records of 0.1 say `at_last_step`."""
    path = store.write(record())
    path.write_text(json.dumps({**json.loads(path.read_text()), "at_last_step": True}))
    assert store.records() == {record().key: record()}


def test_sets_are_written_in_order(store: Store) -> None:
    """Their own order is another in each process."""
    claim = Claim(frozenset(KNOWLEDGE))  # type: ignore[arg-type]
    path = store.write(record(row=Row("pretrain", False, "none", claim=claim)))
    assert json.loads(path.read_text())["row"]["claim"]["knowledge"] == sorted(KNOWLEDGE)


def test_ok_and_nonfinite_records_settle_a_cell_and_others_do_not(store: Store) -> None:
    statuses = ("ok", "failed", "oom", "timeout", "nonfinite")
    for number, status in enumerate(statuses):
        store.write(record(number, status=status))
    assert store.settled_among([cell(number) for number in range(7)]) == {record(0).key, record(4).key}


def test_a_second_write_replaces_the_first_and_forgetting_removes_it(store: Store) -> None:
    store.write(record(status="failed", reason="x"))
    store.write(record())
    assert list(store.records().values()) == [record()]
    store.forget([record().key])
    assert store.records() == {}


def test_forgetting_removes_a_record_whatever_its_file_is_called(store: Store) -> None:
    """Such as a copy that a user made; the cell would never run again."""
    path = store.write(record())
    path.rename(path.with_name("copy.json"))
    store.forget([record().key])
    assert store.records() == {}


@pytest.mark.parametrize("harm", ["truncated", "empty", "binary", "another shape", "not JSON"])
def test_a_corrupt_record_is_set_aside_and_done_again(harm: str, store: Store) -> None:
    path, other = store.write(record()), store.write(record(1))
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "empty": b"",
            "binary": b"\xff\x00\xfe" * 9,
            "another shape": b'{"key": 3}',
            "not JSON": b"status: ok",
        }[harm]
    )
    assert store.settled_among([cell(), cell(1)]) == {record(1).key}
    with pytest.warns(UserWarning, match=f"{path.name}.*set aside") as caught:
        assert set(store.records()) == {record(1).key}
    assert "\n" not in str(caught[0].message)
    assert not path.exists()
    assert path.with_suffix(".corrupt").exists()
    assert other.exists()
    assert set(store.records()) == {record(1).key}
    store.write(record())
    assert set(store.records()) == {record().key, record(1).key}


def test_a_corrupt_record_in_a_folder_that_is_only_to_be_read_is_left_out(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    store.write(record()).write_bytes(b"{")
    store.write(record(1))
    monkeypatch.setattr(Path, "rename", refused)
    with pytest.warns(UserWarning, match="set aside"):
        assert set(store.records()) == {record(1).key}


def test_a_record_of_another_key_does_not_settle(store: Store) -> None:
    path = store.write(record())
    path.write_bytes(path.read_bytes().replace(b"0" * 64, b"0" * 63 + b"1"))
    assert store.settled_among([cell()]) == set()


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_between_write_and_rename_leaves_the_old_record(
    moment: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception at that point cleans up; a kill cannot, so the draft must also be harmless if it stays."""
    old = record(status="failed", reason="old")
    store.write(old)

    class KilledError(BaseException):
        pass

    def kill(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if moment == "fsync" else (Path, "replace")), kill)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # as if killed: nobody cleans up
        with pytest.raises(KilledError):
            store.write(record())
    assert len(list((store.results / "records").iterdir())) == 2, "the draft is still there"
    assert store.records() == {old.key: old}
    assert store.settled_among([cell()]) == set()


def test_a_failed_write_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        write_atomically(tmp_path / "one.json", b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_write_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (order.append("rename"), rename(self, target))[1])
    write_atomically(tmp_path / "one.json", b"x")
    assert order[:2] == ["fsync", "rename"]
    assert (tmp_path / "one.json").read_bytes() == b"x"


def test_long_and_strange_names_make_a_file(store: Store) -> None:
    strange = record(defense=f"checkpoint[path=/a b/../ü/{'x' * 300},reference=y]")
    path = store.write(strange)
    assert path.parent == store.results / "records"
    assert len(path.name) < 200
    assert store.records() == {strange.key: strange}


def test_a_written_manifest_is_read_back_and_a_missing_one_is_refused(store: Store) -> None:
    with pytest.raises(NftbenchError, match="results: no such folder"):
        store.manifest()
    store.results.mkdir()
    with pytest.raises(NftbenchError, match=r"no results here \(manifest\.json is missing\)"):
        store.manifest()
    content = Manifest(suite=tiny_suite(), cells=(), command="nftbench run tiny")
    store.write_manifest(content)
    assert store.manifest() == content


# ----------------------------------------------------------------------------------------------------------- artifacts


def fill(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(bytes(range(256)))
    (folder / "config.json").write_text("{}")


def test_an_artifact_is_made_once(store: Store) -> None:
    calls = []

    def build(folder: Path) -> None:
        calls.append(folder)
        assert store.artifact("releases", "k") is None, "not there before it is whole"
        fill(folder)

    first, second = store.make("releases", "k", build), store.make("releases", "k", build)
    assert first == second == store.artifact("releases", "k") == store.cache / "releases" / "k"
    assert len(calls) == 1
    assert (first / "weights.safetensors").read_bytes() == bytes(range(256))


@pytest.mark.parametrize("harm", ["truncated", "flipped", "missing", "no list", "broken list"])
def test_a_damaged_artifact_is_set_aside_and_made_again(harm: str, store: Store) -> None:
    folder = store.make("releases", "k", fill)
    weights, complete = folder / "weights.safetensors", folder / "complete.json"
    if harm == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif harm == "flipped":
        weights.write_bytes(b"\x01" + weights.read_bytes()[1:])
    elif harm == "missing":
        weights.unlink()
    elif harm == "no list":
        complete.unlink()
    else:
        complete.write_text("{")
    with pytest.warns(UserWarning, match=r"k: damaged; set aside as k\.corrupt-.* and made again"):
        assert store.artifact("releases", "k") is None
    assert store.artifact("releases", "k") is None
    assert store.make("releases", "k", fill) == folder
    assert weights.read_bytes() == bytes(range(256))
    assert len(list((store.cache / "releases").glob("k.corrupt-*"))) == 1


def test_another_process_may_set_a_damaged_artifact_aside_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store.make("releases", "k", fill)
    (folder / "weights.safetensors").unlink()
    plain = tempfile.mkdtemp

    def while_another_is_faster(**given: Any) -> str:
        if folder.exists():
            folder.rename(store.cache / "aside")
        return plain(**given)

    monkeypatch.setattr(tempfile, "mkdtemp", while_another_is_faster)
    assert store.artifact("releases", "k") is None
    assert list((store.cache / "releases").iterdir()) == []


def test_a_build_that_fails_leaves_nothing(store: Store) -> None:
    def build(folder: Path) -> None:
        fill(folder)
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        store.make("releases", "k", build)
    assert list((store.cache / "releases").iterdir()) == []
    assert store.make("releases", "k", fill)


def test_secrets_are_for_the_owner_only(store: Store) -> None:
    os.umask(0)  # the most generous; restored below
    try:
        folder = store.make("secrets", "k", fill, mode=0o700)
    finally:
        os.umask(0o022)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (folder.parent, folder, *folder.iterdir())}
    assert {path.name: mode for path, mode in modes.items()} == {
        "secrets": 0o700,
        "k": 0o700,
        "weights.safetensors": 0o600,
        "config.json": 0o600,
        "complete.json": 0o600,
    }


def test_a_discarded_artifact_is_gone(store: Store) -> None:
    store.make("secrets", "k", fill)
    store.discard("secrets", "k")
    store.discard("secrets", "k")
    assert store.artifact("secrets", "k") is None


# -------------------------------------------------------------------------------------------------------------- locks


HELPERS = """
import os, sys, time
from pathlib import Path
from nftbench.records.store import Store

cache = Path(sys.argv[1])
store = Store(cache / "results", cache)

def fill(folder):
    (folder / "config.json").write_text("{}")

def make_slowly(folder):
    with (cache / "builds").open("a") as log:
        log.write(f"{os.getpid()}\\n")
    time.sleep(0.5)
    fill(folder)

def make_and_hang(folder):
    fill(folder)
    (cache / "hanging").touch()
    time.sleep(60)

def claim(seconds):
    with store.claim("job") as mine:
        (cache / f"claim-{os.getpid()}").write_text(str(mine))
        time.sleep(seconds)
"""


def process(cache: Path, last: str) -> subprocess.Popen[bytes]:
    """Another process on the same folders."""
    return subprocess.Popen([sys.executable, "-c", f"{HELPERS}\n{last}\n", str(cache)])


def wait_for(path: Path, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.01)


def test_two_processes_make_an_artifact_once(tmp_path: Path) -> None:
    workers = [process(tmp_path, "store.make('releases', 'k', make_slowly)") for _ in range(2)]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    assert len((tmp_path / "builds").read_text().split()) == 1
    assert Store(tmp_path, tmp_path).artifact("releases", "k") is not None


def test_a_killed_builder_leaves_neither_half_nor_lock(tmp_path: Path) -> None:
    worker = process(tmp_path, "store.make('releases', 'k', make_and_hang)")
    wait_for(tmp_path / "hanging")
    worker.kill()
    worker.wait(60)
    store = Store(tmp_path, tmp_path)
    assert store.artifact("releases", "k") is None
    assert (store.make("releases", "k", fill) / "config.json").is_file()


def test_a_claim_is_exclusive_between_processes_and_ends_with_its_holder(tmp_path: Path) -> None:
    store = Store(tmp_path / "results", tmp_path)
    with store.claim("job") as mine:
        assert mine
        other = process(tmp_path, "claim(0)")
        assert other.wait(60) == 0
        assert (tmp_path / f"claim-{other.pid}").read_text() == "False"
        with store.claim("another job") as free:
            assert free
    holder = process(tmp_path, "claim(60)")
    wait_for(tmp_path / f"claim-{holder.pid}")
    with store.claim("job") as mine:
        assert not mine
    holder.kill()
    holder.wait(60)
    with store.claim("job") as mine:
        assert mine


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NFTBENCH_CACHE", str(tmp_path))
    assert stores.default_cache() == tmp_path
    monkeypatch.setenv("NFTBENCH_CACHE", "")
    assert stores.default_cache() == Path.home() / ".cache" / "nftbench"


def test_a_folder_that_cannot_be_written_to_is_named_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "absent" / "card.md", b"")
    assert caught.value.filename == str(tmp_path / "absent" / "card.md")


def test_without_a_home_the_variable_that_names_the_cache_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a number that is no user of a container."""

    def unknown(user: int) -> None:
        raise KeyError(user)

    for name in ("HOME", "NFTBENCH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(NftbenchError, match="set NFTBENCH_CACHE to a folder"):
        stores.default_cache()
