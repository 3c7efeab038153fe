"""What a worker does at the moment, in words, told to the command that started it and shows it.

The words go through a pipe. Each message is short enough to be written whole or not at all, and one that finds no room
is lost, so that a worker never waits. The processes of plugins have no end of this pipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from multiprocessing.connection import Connection

LONGEST = 200
"""Characters of a message's words. A pipe takes 512 bytes, and on Linux 4096, whole or not at all."""
WAITS = "waits for another process"
"""What a process says while another one makes what it needs."""
OFTEN = 1.0
"""The shortest time, in seconds, between two messages about the steps of one training run."""


class _Teller:
    """This process's end of the pipe; without one, what it is told goes nowhere."""

    def __init__(self) -> None:
        self.pipe: Connection | None = None
        self.step = ""
        self.told = 0.0


_here = _Teller()


def connect(pipe: Connection) -> None:
    """Send what this process does through a pipe from now on."""
    os.set_blocking(pipe.fileno(), False)
    _here.pipe = pipe


def begin(step: str) -> None:
    """Name the step of the run that this process does from now on."""
    _here.step = step


def tell(words: str) -> None:
    """Say what this process does from now on."""
    _here.told = time.monotonic()
    if _here.pipe is not None:
        with contextlib.suppress(OSError):  # no room, or nobody reads
            _here.pipe.send_bytes(json.dumps([_here.step, words[:LONGEST]]).encode())


def tell_step(words: str, step: int, steps: int) -> None:
    """Say how far a training run is; most calls say nothing, because there are many."""
    if time.monotonic() - _here.told >= OFTEN:
        tell(f"{words}: step {step} of {steps}")


def hear(pipe: Connection) -> list[tuple[str, str]]:
    """The messages that have come in: the step's name and the words of each."""
    found = []
    while pipe.poll():
        step, words = json.loads(pipe.recv_bytes())
        found.append((step, words))
    return found
