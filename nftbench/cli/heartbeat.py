"""A line about what a command does wherever it would be silent for long, on a terminal and in a log."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import typer

FIRST = 5.0
"""Seconds of silence after which the first line is printed."""
SILENCE = 12.0
"""Seconds of silence after which each further line is printed."""
LOOK = 0.5
"""Seconds between two looks at the clock."""


class Heartbeat:
    """Remembers when something was printed last."""

    def __init__(self) -> None:
        self.begun = self.printed = time.monotonic()
        self.patience = FIRST

    def say(self, line: str) -> None:
        """Print a line, which ends the silence."""
        self.printed, self.patience = time.monotonic(), SILENCE
        typer.echo(line)  # one call writes the whole line, so that two threads do not mix theirs

    def beat(self, words: Callable[[], str]) -> None:
        """Print what is done now, if nothing has been printed for too long."""
        if time.monotonic() - self.printed >= self.patience:
            self.say(words())


@contextlib.contextmanager
def doing(words: Callable[[], str]) -> Iterator[Heartbeat]:
    """While the block runs, print `words()` whenever nothing has been printed for `SILENCE` seconds.

    A thread of its own does so: the block may be importing, or waiting for a lock.
    """
    heart, over = Heartbeat(), threading.Event()

    def beat() -> None:
        with contextlib.suppress(OSError):  # nobody reads the output any longer: the block meets it where it prints
            while not over.wait(LOOK):
                heart.beat(words)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield heart
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def still(words: str) -> Iterator[Heartbeat]:
    """`doing` with the same words each time, and how long it has taken so far."""
    begun = time.monotonic()
    with doing(lambda: f"{words}, for {time.monotonic() - begun:.0f} s so far") as heart:
        yield heart
