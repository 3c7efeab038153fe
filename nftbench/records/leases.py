"""Leases: files by which processes agree who works on what, on one machine or on several that share a folder.

Whoever creates a lease's file holds the lease, touches the file every few seconds, and deletes it in the end. A process
that finds the file there watches it. If the file does not change for `EXPIRY` seconds, as the watcher counts them, its
holder is taken for dead. No two clocks are compared, so it does not matter whether they differ or jump.

On the holder's own machine nobody has to wait for that. The holder has locked the file with `flock`, and the system
drops this lock when the process ends. File systems that have no `flock` are watched only.

A holder that was stopped for longer than `EXPIRY` goes on without its lease when it wakes up, beside a process that has
taken the lease since. So a holder calls `confirm` before it publishes anything that another must not have made as well.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from nftbench.errors import NftbenchError

FOLDER = ".leases"
"""The folder of all leases, in a folder of results and in the cache."""
EXPIRY = 90.0
"""Seconds without a sign of life after which a holder is taken for dead. A file server may be slow for a while."""
BEATS = 9
"""How often a holder touches its file in that time."""
LONGEST_PAUSE = 1.0
"""The longest pause, in seconds, between two attempts to take a lease that another process holds."""
MOST_BYTES = 400
"""More than a lease's file holds."""


class LostError(NftbenchError):
    """Another process has taken the lease, because this one gave no sign of life for too long."""


@dataclass(frozen=True)
class _Seen:
    """A lease's file as a process has found it."""

    content: str
    changed: int
    """When it was last touched, as its file system says, in nanoseconds."""
    holder_lives: bool | None = field(compare=False, default=None)
    """What the system says about the holder; None if it runs on another machine, or where it cannot be told."""


@dataclass(frozen=True, eq=False)
class Lease:
    """A lease that this process holds."""

    path: Path
    content: str
    handle: int
    """The open file, which carries the `flock`."""
    expiry: float

    def is_held(self) -> bool:
        """Whether no other process has taken the lease."""
        found = _look(self.path)
        return found is not None and found.content == self.content

    def confirm(self) -> None:
        """Make sure that this process still holds the lease.

        Raises:
            LostError: it does not.
        """
        if not self.is_held():
            raise LostError(f"{self.path}: another process has taken this lease; this one was stopped for too long")

    def touch(self) -> None:
        """Give a sign of life."""
        with contextlib.suppress(OSError):  # the folder's server may be gone for a while
            os.utime(self.handle)

    def end(self) -> None:
        """Give the lease back, if this process still holds it."""
        _heart.remove(self)
        with contextlib.suppress(OSError):
            if self.is_held():
                self.path.unlink()
        os.close(self.handle)


def file(root: Path, name: str) -> Path:
    """The file of a lease on something in a folder of results, or in the cache."""
    return root / FOLDER / f"{name}.lease"


@contextlib.contextmanager
def held(path: Path, expiry: float) -> Iterator[Lease]:
    """Wait for a lease, and hold it."""
    pause = 0.01
    while (lease := take(path, expiry)) is None:
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    try:
        yield lease
    finally:
        lease.end()


def take(path: Path, expiry: float) -> Lease | None:
    """The lease, held by this process from now on; None if another holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        found = _look(path)
        if found is not None and not (_is_over(path, found, expiry) and _put_aside(path, found)):
            return None
        lease = _make(path, expiry)
        if lease is not None:
            _heart.add(lease)
            return lease
    return None


def confirm(path: Path) -> None:
    """Make sure that this process still holds a lease that it has taken.

    Raises:
        LostError: it does not.
    """
    _heart.find(path).confirm()


def holder(path: Path, expiry: float) -> str | None:
    """Who holds a lease, as `node-7 process 123`; None if nobody does, as far as this process knows yet."""
    found = _look(path)
    if found is None or _is_over(path, found, expiry):
        return None
    return " ".join(found.content.partition("\n")[2].split()[:-1]) or "a process"


def first_alive(paths: Iterable[Path], expiry: float) -> str | None:
    """A living holder of one of these leases; None once all are known to be dead, for which it waits if need be.

    The files of the dead are removed.
    """
    first = {path: found for path in paths if (found := _look(path)) is not None}
    while first:
        for path in list(first):
            found, name = _look(path), holder(path, expiry)
            if found is None or name is None:
                if found is not None:  # or else everybody would wait for the dead again
                    _put_aside(path, found)
                del first[path]
            elif found.holder_lives or found != first[path]:
                return name
        if first:
            time.sleep(min(LONGEST_PAUSE, expiry / BEATS))
    return None


def hanging(path: Path, expiry: float) -> int | None:
    """The number of the process that holds a lease on this machine, if it lives and gives no sign of life."""
    found = _look(path)
    if found is None or not found.holder_lives or not _is_over(path, found, expiry):
        return None
    return int(found.content.rsplit(maxsplit=2)[1])


def tidy(paths: Iterable[Path]) -> None:
    """Remove the leases of processes that have ended on this machine, as the system says."""
    for path in paths:
        found = _look(path)
        if found is not None and found.holder_lives is False:
            _put_aside(path, found)


# ---------------------------------------------------------------------------------------------------- making a lease


def _make(path: Path, expiry: float) -> Lease | None:
    """The lease, unless its file is there already.

    The file is locked and written under another name first. Of a file that is still empty nobody could tell whether its
    holder lives.
    """
    draft = path.with_name(f"{path.name}.{uuid.uuid4()}")
    handle = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        content = f"{_machine() if _lock(handle) else ''}\n{platform.node()} process {os.getpid()} {uuid.uuid4()}"
        os.write(handle, content.encode())
        _link(draft, path)
    except FileExistsError:  # another process was faster
        os.close(handle)
        return None
    except BaseException:  # as when the disk is full
        os.close(handle)
        raise
    finally:
        draft.unlink(missing_ok=True)
    return Lease(path, content, handle, expiry)


def _link(draft: Path, path: Path) -> None:
    """Give a file another name, under which there is none.

    Raises:
        FileExistsError: there is one.
    """
    try:
        os.link(draft, path)
    except FileExistsError:
        if draft.stat().st_nlink == 1:  # else a file server has made the link, was asked again, and found its own
            raise
    except OSError:  # this file system has no hard links: the name is taken first, by an empty file
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o644))
        draft.replace(path)


# ------------------------------------------------------------------------------------------------- looking at a lease


def _look(path: Path) -> _Seen | None:
    """The lease's file as it is now; None if there is none. It is opened, because some file systems then ask anew."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = os.read(handle, MOST_BYTES).decode(errors="replace")
            lives = None
            if content.partition("\n")[0] == _machine():  # written after the holder had locked it
                lives = not _lock(handle, shared=True)
            return _Seen(content, os.fstat(handle).st_mtime_ns, lives)
        finally:
            os.close(handle)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ESTALE:  # a file server has it no longer, perhaps since it was opened
            return None
        raise


def _is_over(path: Path, found: _Seen, expiry: float) -> bool:
    """Whether a lease's holder is dead: the system says so, or the file has not changed for so long."""
    if found.holder_lives is False:
        return True
    now = time.monotonic()
    watch = _watched.get(path)
    # Who has not looked for so long may have been stopped itself, and the holder with it.
    if watch is None or watch.seen != found or now - watch.last > expiry:
        watch = _Watch(found, now, now)
    _watched[path] = replace(watch, last=now)
    return now - watch.since >= expiry


def _put_aside(path: Path, found: _Seen) -> bool:
    """Remove a dead holder's file. Of several processes that try, one removes it; none removes a successor's."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4()}")
    try:
        path.rename(aside)
    except FileNotFoundError:  # another process was faster
        return True
    _watched.pop(path, None)
    is_dead = _look(aside) == found
    if not is_dead:  # a successor's, or its holder has just woken up
        with contextlib.suppress(OSError):  # if it cannot be put back, its holder learns that it is lost
            os.link(aside, path)
    aside.unlink(missing_ok=True)
    return is_dead


@dataclass(frozen=True)
class _Watch:
    """The lease of another process as this one has found it again and again. Moments are by the monotonic clock."""

    seen: _Seen
    since: float
    last: float


_watched: dict[Path, _Watch] = {}


def _look_again(expiry: float) -> None:
    """Look at all leases that are watched. Whoever watches one may be busy for longer than a dead one is waited for."""
    for path in list(_watched):
        with contextlib.suppress(OSError):  # the folder's server may be gone for a while
            if (found := _look(path)) is None:
                _watched.pop(path, None)
            else:
                _is_over(path, found, expiry)


@functools.cache
def _machine() -> str:
    """A name of this machine that no other has, for as long as it runs."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return f"{platform.node()} {uuid.getnode():x}"


def _lock(handle: int, shared: bool = False) -> bool:
    """Try to lock an open file: True if it is locked now. False also where the file system has no such locks."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# ------------------------------------------------------------------------------------------------------ signs of life


class _Heart:
    """The thread that touches all leases of this process, and goes on watching those of others."""

    def __init__(self) -> None:
        self.leases: set[Lease] = set()
        self.changed = threading.Condition()
        self.process = 0
        """The process that the thread runs in: a fork has none."""

    def add(self, lease: Lease) -> None:
        with self.changed:
            if self.process != os.getpid():
                self.leases.clear()  # those of the process that this one was forked from
                self.process = os.getpid()
                threading.Thread(target=self.beat, daemon=True).start()
            self.leases.add(lease)
            self.changed.notify()

    def remove(self, lease: Lease) -> None:
        with self.changed:
            self.leases.discard(lease)

    def find(self, path: Path) -> Lease:
        with self.changed:
            return next(lease for lease in self.leases if lease.path == path)

    def beat(self) -> None:
        last = time.monotonic()
        with self.changed:
            while True:
                shortest = min((lease.expiry for lease in self.leases), default=EXPIRY)
                rest = last + shortest / BEATS - time.monotonic()
                if rest > 0:
                    self.changed.wait(rest)  # or until there is another lease, perhaps with a shorter time
                    continue
                for lease in self.leases:
                    lease.touch()
                _look_again(shortest)
                last = time.monotonic()


_heart = _Heart()
