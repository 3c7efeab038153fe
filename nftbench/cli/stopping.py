"""Ctrl-C and the other signals that end a command: one line says how to go on, and the process is gone at once.

Files are renamed into place when they are whole, so nothing has to be tidied up first, and a second signal has nothing
to cut short. No exception is raised: a library that catches it, or that is being imported, could lose it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

SHOW_CURSOR = b"\x1b[?25h"
"""What makes a terminal show its cursor, which the live display hides."""
WITHOUT = ("--force",)
"""Options that the command for going on lacks, because they would begin again."""

_before: list[Callable[[], None]] = []
_kept = ""
"""What of the work is kept, in words; empty for a command that has not begun a run."""


def tell(done: int, cells: int, made: int, models: int) -> None:
    """Say how many cells of a run are done, and of the models that were missing how many are made, for the line of a
    signal."""
    global _kept
    if done:
        _kept = f"; finished cells are kept, at least {done} of {cells}"
    else:
        _kept = f"; no cell is done yet, {f'at least {made} of {models} models are kept' if made else 'nor a model'}"


def before_the_end(action: Callable[[], None]) -> None:
    """Have an action done before a signal ends this process."""
    if action not in _before:
        _before.append(action)


def handle(words: Sequence[str]) -> None:
    """From now on, end this process with exit code 128 + the number of SIGINT, SIGTERM or SIGHUP.

    What the process was started to ignore stays ignored, as SIGHUP under nohup.

    Args:
        words: the command line after the program's name.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, functools.partial(_stop, _again(words)))


def _again(words: Sequence[str]) -> str:
    """The command that goes on, as it can be typed in the same folder."""
    program = sys.orig_argv[: len(sys.orig_argv) - len(words)]
    if shutil.which("nftbench") == sys.argv[0]:
        program = ["nftbench"]
    elif os.path.basename(sys.argv[0]) == "nftbench":  # noqa: PTH119  # pathlib is not needed otherwise
        program = [sys.argv[0]]
    return shlex.join([*program, *(word for word in words if word not in WITHOUT)])


def end_unread(words: Sequence[str]) -> None:
    """End this process as a signal does, if it is a run: nobody reads its output any longer, such as `head`."""
    if _kept:
        _end(_again(words), "stopped, because nobody reads its output any longer", signal.SIGPIPE)


def _stop(command: str, number: int, _frame: Any) -> None:
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    _end(command, f"stopped by {name}", number)


def _end(command: str, why: str, number: int) -> None:
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    for action in _before:
        with contextlib.suppress(Exception):
            action()
    line = f"nftbench: {why}{_kept}. To go on: {command}\n"
    with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
        if sys.stdout.isatty():
            os.write(sys.stdout.fileno(), SHOW_CURSOR + b"\n")
        os.write(sys.stderr.fileno(), line.encode(errors="replace"))
    os._exit(128 + number)
