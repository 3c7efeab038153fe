"""A promise that a protocol makes, and the error of a plugin that breaks it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from nftbench.errors import NftbenchError


class BrokenPromiseError(AssertionError):
    """A plugin does not do what its protocol promises."""


def promise(kept: bool, statement: str) -> None:
    """Raise `BrokenPromiseError` with the statement where it does not hold."""
    if not kept:
        raise BrokenPromiseError(statement)


@contextlib.contextmanager
def broken_by(error: type[Exception], statement: str) -> Iterator[None]:
    """The promise that the block raises no such error."""
    try:
        yield
    except error as problem:
        raise BrokenPromiseError(f"{statement}: {problem}") from problem


def refuses(call: Callable[[], object]) -> bool:
    """Whether the call ends in nftbench's own error."""
    try:
        call()
    except NftbenchError:
        return True
    return False
