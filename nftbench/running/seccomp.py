"""Seccomp: Linux refuses system calls of this process for good. It complements Landlock, which knows files alone.

Refused are the ways out of a confined process that are no files, as sockets: through its socket, multiprocessing's
server would run anything unconfined. The kernel documents the filters at
https://docs.kernel.org/userspace-api/seccomp_filter.html.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from pathlib import Path

from nftbench.running.landlock import NO_NEW_PRIVILEGES, checked

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""The column of an architecture below, and its number in the kernel."""
REFUSED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    "io_uring_setup": (425, 425),  # it can open sockets too
    # Processes: they could outlive this one, and their processor time could go uncounted.
    "fork": (57, None),
    "vfork": (58, None),
    # Other processes, for which Landlock knows no rule: their priorities, and signals on Linux before 6.12.
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "tkill": (200, 130),
    "pidfd_send_signal": (424, 424),
    # What these make stays when the process ends, for the next one to find; Landlock allows them on all files.
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
}
"""System calls that fail, with their numbers by architecture."""
IDLE: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
}
"""System calls that succeed and change nothing. Landlock allows them on all files, and copying a file needs them."""
OF_ITSELF: dict[str, tuple[int, int]] = {
    "kill": (62, 129),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "prlimit64": (302, 261),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
}
"""System calls that fail where their first argument is neither this process nor 0. The limits of the process from which
plugins are forked would be those of all later ones."""
CLONE, CLONE3 = (56, 220), (435, 435)
CLONE_THREAD = 0x10000
X32 = 0x40000000
"""Numbers from here on are the same system calls for another kind of program."""

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000
"""Results of a filter; the number of an error is added to `FAIL`, and 0 is success."""
SET_SECCOMP, FILTER = 22, 2


def available() -> bool:
    """Whether this system can refuse system calls, on an architecture whose numbers are known here."""
    return (
        sys.platform == "linux" and platform.machine() in _ARCHITECTURES and Path("/proc/sys/kernel/seccomp").exists()
    )


def confine() -> None:
    """Refuse the calls in this thread, and in all threads that it starts from now on. It also gives up root's powers.

    Raises:
        OSError: the system refuses.
    """
    filters = _filters(*_ARCHITECTURES[platform.machine()], os.getpid())
    code = ctypes.create_string_buffer(b"".join(filters))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(filters), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    # Version 3 of the call's header, this thread; no effective, permitted or inheritable capability.
    checked(libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)))
    checked(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    checked(libc.prctl(SET_SECCOMP, FILTER, ctypes.addressof(program), 0, 0))


def _filters(column: int, architecture: int, own: int) -> list[bytes]:
    """The filter's steps. It looks at a call's architecture (at byte 4), number (0) and first argument (16)."""
    denied = FAIL | errno.EACCES
    steps = [_step(LOAD, 4), _step(EQUAL, architecture, 1, 0), _step(RETURN, denied)]
    steps += [_step(LOAD, 0), _step(AT_LEAST, X32, 0, 1), _step(RETURN, denied)]
    results = {
        **{numbers[column]: denied for numbers in REFUSED.values()},
        **{numbers[column]: FAIL for numbers in IDLE.values()},
        CLONE3[column]: FAIL | errno.ENOSYS,  # its flags are out of a filter's reach; the C library then calls clone
    }
    for number, result in results.items():
        steps += [_step(EQUAL, number, 0, 1), _step(RETURN, result)] if number is not None else []
    for number in (numbers[column] for numbers in OF_ITSELF.values()):
        steps += [_step(EQUAL, number, 0, 5), _step(LOAD, 16), _step(EQUAL, 0, 2, 0), _step(EQUAL, own, 1, 0)]
        steps += [_step(RETURN, denied), _step(RETURN, ALLOW)]
    steps += [_step(EQUAL, CLONE[column], 0, 3), _step(LOAD, 16), _step(ANY_BIT, CLONE_THREAD, 1, 0)]
    return [*steps, _step(RETURN, denied), _step(RETURN, ALLOW)]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One step: what it does, its operand, and how many steps it skips."""
    return struct.pack("HBBI", code, if_true, if_false, value)
