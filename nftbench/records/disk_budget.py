"""A disk budget for the cache: base models and releases that were not used for the longest time are deleted first.

What is deleted is made again when it is needed. Corpora, protections, secrets and second checkpoints are never deleted:
what a packed record says about a release can always be looked up. Nor is anything that a process is using. To use
an artifact is to hold a lease of one's own on it, which ends with the process.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from nftbench.errors import NftbenchError
from nftbench.records import leases

KINDS = ("releases", "bases")
"""The kinds of artifacts that are deleted for the budget."""
VARIABLE = "NFTBENCH_CACHE_SIZE"
UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12}

_blocks: list[dict[tuple[Path, str, str], leases.Lease]] = []
"""What the open blocks of `until_end` use: cache, kind and key, each with its lease."""


def parse(text: str) -> int:
    """A size such as `20GB`, in bytes.

    Raises:
        NftbenchError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MGT]B)", text.strip(), re.IGNORECASE)
    if match is None:
        raise NftbenchError(f"the size of the cache is {text!r}; write it like 500MB or 20GB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def budget() -> int | None:
    """The bytes that the cache may take: $NFTBENCH_CACHE_SIZE; None without a limit."""
    text = os.environ.get(VARIABLE)
    return parse(text) if text else None


def use(cache: Path, kind: str, key: str) -> None:
    """Keep an artifact until the block of `until_end` around this call ends, or its process; else do nothing."""
    if not _blocks or any((cache, kind, key) in block for block in _blocks):
        return
    with _gate(cache):
        own = leases.take(leases.file(cache, f"use-{kind}-{key}-{uuid.uuid4()}"), leases.EXPIRY)
        assert own is not None, "its name is new"
        _blocks[-1][cache, kind, key] = own


@contextlib.contextmanager
def until_end() -> Iterator[None]:
    """Keep what this process uses in the block until the block's end."""
    _blocks.append({})
    try:
        yield
    finally:
        for own in _blocks.pop().values():
            own.end()


def size(cache: Path) -> int:
    """Bytes on disk of all files of the cache. What several artifacts share counts once."""
    found: dict[tuple[int, int], int] = {}
    for folder, _, names in os.walk(cache):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # another process deletes it
                status = Path(folder, name).lstat()
                found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def make_room(cache: Path, contents: Path, complete: str) -> list[Path]:
    """Delete unused artifacts, the oldest use first, until the cache fits its budget; returns what was deleted.

    Args:
        contents: the folder of the files that artifacts share.
        complete: the name of the file in each artifact whose time of change is that of its last use.
    """
    limit, deleted = budget(), list[Path]()
    if limit is None:
        return deleted
    for left in [path for kind in KINDS for path in (cache / kind).glob(".*.removed")]:  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    if size(cache) <= limit:
        return deleted
    stamps = {path.parent: _changed(path) for kind in KINDS for path in (cache / kind).glob(f"[!.]*/{complete}")}
    for folder in sorted(stamps, key=stamps.__getitem__):
        gone = folder.with_name(f".{folder.name}.removed")
        with _gate(cache):  # nobody begins to use it between the look and the renaming
            if _is_used(cache, folder.parent.name, folder.name):
                continue
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        delete_unshared(contents)
        deleted.append(folder)
        if size(cache) <= limit:
            break
    return deleted


def delete_unshared(contents: Path) -> None:
    """Delete the shared files that belong to no artifact any more."""
    for path in contents.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if path.stat().st_nlink == 1:
                path.unlink()


def _is_used(cache: Path, kind: str, key: str) -> bool:
    uses = list((cache / leases.FOLDER).glob(f"use-{kind}-{key}-*.lease"))
    leases.tidy(uses)
    return any(leases.holder(path, leases.EXPIRY) is not None for path in uses)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _gate(cache: Path) -> AbstractContextManager[leases.Lease]:
    return leases.held(leases.file(cache, "uses"), leases.EXPIRY)
