"""Landlock: Linux hides folders from this process, whoever its user is, root included.

The kernel documents the system calls at https://docs.kernel.org/userspace-api/landlock.html. Its rules can only allow.
So reading is allowed beneath everything that stands beside the way to a hidden folder, and writing beneath named
folders. The process can neither trace nor signal processes outside its own group of restricted processes.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import stat
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""Numbers of the system calls, the same on all processors."""
EXECUTE, READ_FILE, READ_FOLDER = 1 << 0, 1 << 2, 1 << 3
OF_FILES = EXECUTE | 1 << 1 | READ_FILE | 1 << 14 | 1 << 15
"""Rights that a rule about a single file may hold: execute, write, read, truncate, control a device."""
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""The number of rights to files that each version of Landlock knows; later versions know as many as the last one."""
SCOPES = 0b11
"""Abstract Unix sockets and signals stay within the group of restricted processes, from version 6 on."""
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "nvidia*", "dri", "kfd", "dxg")
"""What of /dev may be used: cards that compute, and files that hold nothing. Shared memory and disks may not."""
NO_NEW_PRIVILEGES = 38
"""The option of prctl without which an ordinary user cannot restrict itself."""


@functools.cache
def version() -> int:
    """The version of Landlock that this system has; 0 where it has none."""
    if sys.platform != "linux":
        return 0
    return max(_call(CREATE_RULESET, None, 0, 1), 0)


def hide(hidden: Iterable[Path], *, readable: Iterable[Path] = (), writable: Iterable[Path] = ()) -> None:
    """Hide folders from this thread, and from all threads and processes that it starts from now on.

    `readable` and `writable` folders may lie beneath a hidden one. All else can be read and not written, but /dev, of
    which only `DEVICES` are there.

    Raises:
        OSError: the system refuses.
    """
    every = (1 << RIGHTS[min(version(), max(RIGHTS))]) - 1
    read = EXECUTE | READ_FILE | READ_FOLDER
    attributes = struct.pack("QQQ", every, 0, SCOPES if version() >= 6 else 0)[: 8 if version() < 4 else 24]
    rules = checked(_call(CREATE_RULESET, attributes, len(attributes), 0))
    try:
        for path in (*_beside(["/dev", *(str(path.resolve()) for path in hidden)]), *map(str, readable)):
            _allow(rules, path, read & every)
        devices = itertools.chain.from_iterable(Path("/dev").glob(pattern) for pattern in DEVICES)
        for path in map(str, (*writable, *devices)):
            _allow(rules, path, every)
        checked(_libc().prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0))
        checked(_call(RESTRICT_SELF, rules, 0))
    finally:
        os.close(rules)


def _beside(hidden: list[str]) -> Iterator[str]:
    """The largest files and folders that neither are hidden nor hold anything hidden."""
    waiting = ["/"]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            if entry.path in hidden:
                continue
            if any(path.startswith(f"{entry.path}/") for path in hidden):
                waiting.append(entry.path)
            elif not entry.is_symlink():  # what it points to has a rule of its own
                yield entry.path


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # gone meanwhile, or not reachable for this user anyway
        return
    try:
        allowed = rights if stat.S_ISDIR(os.fstat(handle).st_mode) else rights & OF_FILES
        _call(ADD_RULE, rules, 1, struct.pack("=Qi", allowed, handle), 0)
    finally:
        os.close(handle)


def checked(result: int) -> int:
    """The result of a system call; a failed one is raised as OSError."""
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def _call(number: int, *arguments: object) -> int:
    return int(_libc().syscall(number, *arguments))


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
