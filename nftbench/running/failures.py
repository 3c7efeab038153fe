"""How what goes wrong becomes the status and reason of a record, in this process or in one of a plugin."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nftbench.errors import NftbenchError, one_line
from nftbench.running.isolation import KilledError, TooLongError
from nftbench.terms import Status
from nftbench.training.sweep import NonFiniteError
from nftbench.training.trainer import CellTimeoutError


class FailedError(Exception):
    """A plugin failed in its own process."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(status, reason)
        self.status: Status = status
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


def status_of(error: BaseException) -> tuple[Status, str]:
    """The status of a cell that ended in this error, and the reason in one line with the file and line raising it."""
    if isinstance(error, FailedError):
        return error.status, error.reason
    if isinstance(error, CellTimeoutError | TooLongError):
        return "timeout", str(error)
    if isinstance(error, NonFiniteError):
        return "nonfinite", str(error)
    message = one_line(str(error))
    if isinstance(error, torch.OutOfMemoryError | MemoryError | KilledError):
        return "oom", message
    if isinstance(error, NftbenchError):
        return "failed", message
    frames = traceback.extract_tb(error.__traceback__)  # none where the error comes from a worker process
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return "failed", f"{type(error).__name__}: {message}{place}"


def attempt(action: Callable[[], Any], file: Path) -> None:
    """Do something in a plugin's process. If it fails, its status and reason go to `file`, for `raise_written`."""
    try:
        action()
    except BaseException as error:  # a plugin may raise anything, and Ctrl-C does not reach this process
        file.write_text(json.dumps(status_of(error)), encoding="utf-8")


def raise_written(file: Path) -> None:
    """Raise the failure that `attempt` wrote, if it did.

    Raises:
        FailedError: what the plugin failed with.
    """
    if file.exists():
        status, reason = json.loads(file.read_text(encoding="utf-8"))
        if status not in ("failed", "timeout", "nonfinite", "oom"):
            raise NftbenchError("its process reported a failure without saying which")
        raise FailedError(status, one_line(str(reason)))
