"""What tensors hold while something runs, as torch's CPU allocator reports it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_bytes(action: Callable[[], Any]) -> int:
    """The most bytes that tensors made by `action` hold at one time."""
    return max(_held(action), default=0)


def kept_bytes(action: Callable[[], Any]) -> int:
    """The bytes that tensors made by `action` hold at its end."""
    return [0, *_held(action)][-1]


def _held(action: Callable[[], Any]) -> list[int]:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = action()
    held, found = 0, []
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            found.append(held)
    del kept
    return found
