"""A promise that a protocol makes, whether a plugin keeps it, and the error of one that breaks it."""

from __future__ import annotations

import contextlib
import inspect
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from nftbench.errors import NftbenchError, one_line
from nftbench.planning import class_problems


class BrokenPromiseError(AssertionError):
    """A plugin does not do what its protocol promises."""


@dataclass(frozen=True)
class Promise:
    """One promise of a protocol, as a plugin was found to keep it."""

    statement: str
    problem: str
    """What was seen instead, and what to change; empty where the promise is kept."""

    def __str__(self) -> str:
        return ": ".join(filter(None, [self.statement, self.problem]))


_found: ContextVar[dict[str, Promise] | None] = ContextVar("found", default=None)
"""Within `examined`, the promises so far by statement."""


def promise(kept: bool, statement: str, problem: str = "", *, essential: bool = False) -> None:
    """State a promise of the protocol, and whether it is kept.

    Args:
        problem: what was seen instead, and what to change.
        essential: whether nothing that follows can be checked where the promise is broken.

    Raises:
        BrokenPromiseError: it is broken. Within `examined` only where it is essential.
    """
    found, one = _found.get(), Promise(statement, "" if kept else one_line(problem) or "it is not so")
    if found is not None and not (statement in found and found[statement].problem):
        found[statement] = one  # the first problem stays, since the same is asked on several models
    if not kept and (found is None or essential):
        raise BrokenPromiseError(str(one))


def examined(check: Callable[[], None]) -> tuple[Promise, ...]:
    """Every promise that a check comes to, kept or broken. A check ends early where a broken one is essential."""
    found: dict[str, Promise] = {}
    token = _found.set(found)
    try:
        with contextlib.suppress(BrokenPromiseError):  # it is among those found
            check()
    finally:
        _found.reset(token)
    return tuple(found.values())


@contextlib.contextmanager
def works(statement: str, source: Path | None = None) -> Iterator[None]:
    """The essential promise that the block, which runs a plugin's code, ends without an error.

    Args:
        source: the plugin's file or folder; the problem then says in which line of it the error came up.
    """
    try:
        yield
    except BrokenPromiseError:
        raise
    except (Exception, SystemExit) as error:  # a plugin may raise anything
        promise(False, statement, described(error, source), essential=True)
    promise(True, statement)


def returns(method: str, found: object, wanted: type, advice: str) -> None:
    """The essential promise that a method returns an object of a class; `advice` says how to end it."""
    name = "nothing" if found is None else type(found).__name__
    said = f"{method} returns {wanted.__name__}"
    promise(isinstance(found, wanted), said, f"it returned {name}: {advice}", essential=True)


def described(error: BaseException, source: Path | None) -> str:
    """An error in one line, with the last line of a plugin's own code that it came through."""
    plain = str(error) if isinstance(error, NftbenchError) else class_problems.of_dataclass(error)
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if source is not None and Path(frame.filename).resolve().is_relative_to(source)
    ]
    place = f"line {own[-1].lineno} of {Path(own[-1].filename).name}: " if own else ""
    return one_line(place + (plain or f"{type(error).__name__}: {error}"))


def source_of(plugin: object) -> Path | None:
    """The file that defines a plugin, or its folder; None where it was not read from a file."""
    try:
        path = Path(inspect.getfile(plugin if isinstance(plugin, type) else type(plugin))).resolve()
    except (TypeError, OSError):
        return None
    return path.parent if path.name == "__init__.py" else path


def refuses(call: Callable[[], object]) -> bool:
    """Whether the call ends in nftbench's own error."""
    try:
        call()
    except NftbenchError:
        return True
    return False
