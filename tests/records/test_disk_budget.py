"""The disk budget of the cache: what goes, in which order, and what never goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nftbench.errors import NftbenchError
from nftbench.records import disk_budget
from nftbench.records.store import Store

SIZE = 2_000_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results", tmp_path / "cache")


def made(store: Store, key: str, used: int, kind: str = "releases", content: bytes | None = None) -> Path:
    """An artifact of `SIZE` bytes whose last use was at that time."""
    with disk_budget.until_end():
        folder = store.make(kind, key, lambda draft: _write(draft, content or os.urandom(SIZE)))
    os.utime(folder / "complete.json", (used, used))
    return folder


def _write(draft: Path, content: bytes) -> None:
    (draft / "weights").write_bytes(content)


@pytest.mark.parametrize(
    ("text", "size"), [("20GB", 20_000_000_000), ("500 MB", 500_000_000), ("0.5tb", 500_000_000_000)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert disk_budget.parse(text) == size


@pytest.mark.parametrize("text", ["20", "GB", "-1GB", "20 apples", ""])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(NftbenchError, match="write it like 500MB or 20GB"):
        disk_budget.parse(text)


def test_the_oldest_used_go_until_the_rest_fits(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old, middle, new = (made(store, key, used) for key, used in (("c", 1), ("a", 2), ("b", 3)))
    secret, base = made(store, "c", 0, "secrets"), made(store, "base", 4, "bases")
    monkeypatch.setenv(disk_budget.VARIABLE, "9MB")  # four of five
    latest = made(store, "d", 5)
    assert not old.exists()
    assert not middle.exists()
    assert all(folder.exists() for folder in (new, base, latest))
    assert secret.exists(), "records may need it"
    assert disk_budget.size(store.cache) <= 9_000_000
    assert made(store, "c", 6).exists(), "it can be made again"
    assert not new.exists()


def test_a_look_counts_as_a_use(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = made(store, "first", 1), made(store, "second", 2)
    with disk_budget.until_end():
        assert store.artifact("releases", "first") == first
    monkeypatch.setenv(disk_budget.VARIABLE, "5MB")
    made(store, "third", 3)
    assert first.exists()
    assert not second.exists()


def test_shared_content_counts_once_and_goes_with_its_last_artifact(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(SIZE)
    one, other = (made(store, key, used, content=content) for key, used in (("one", 1), ("other", 2)))
    assert SIZE <= disk_budget.size(store.cache) < 1.5 * SIZE
    monkeypatch.setenv(disk_budget.VARIABLE, "3MB")
    made(store, "third", 3)
    assert not one.exists()
    assert not other.exists()
    assert len(list((store.cache / "contents").iterdir())) == 1


def test_what_a_killed_process_was_deleting_goes_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to no artifact any more, and would take the place of those that are used."""
    half = store.cache / "releases" / ".gone.removed"
    half.mkdir(parents=True)
    _write(half, os.urandom(SIZE))
    kept = made(store, "kept", 1)
    monkeypatch.setenv(disk_budget.VARIABLE, "5MB")
    made(store, "new", 2)
    assert not half.exists()
    assert kept.exists()


USES = """
import sys
from pathlib import Path
from nftbench.records import disk_budget
from nftbench.records.store import Store
store = Store(Path(sys.argv[1]) / "results", Path(sys.argv[1]) / "cache")
with disk_budget.until_end():
    assert store.artifact("releases", "used") is not None
    print("used", flush=True)
    sys.stdin.read()
"""


def test_what_a_process_uses_stays_until_it_ends(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used, own = made(store, "used", 1), made(store, "own", 2)
    monkeypatch.setenv(disk_budget.VARIABLE, "1MB")
    command = [sys.executable, "-c", USES, str(tmp_path)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other,
        disk_budget.until_end(),
    ):
        assert other.stdout is not None
        assert other.stdout.readline() == b"used\n"
        assert store.artifact("releases", "own") == own
        made(store, "new", 3)
        assert used.exists()
        assert own.exists()
        other.kill()
        other.wait()
        made(store, "newer", 4)
        assert not used.exists(), "its process has ended"
        assert own.exists(), "this process uses it still"
    made(store, "newest", 5)
    assert not own.exists()


def test_without_a_budget_nothing_goes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(disk_budget.VARIABLE, raising=False)
    folders = [made(store, str(number), number) for number in range(3)]
    assert all(folder.exists() for folder in folders)
