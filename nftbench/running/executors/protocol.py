"""Executors: where the steps of a run are carried out. A step makes one release, or runs one job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from nftbench.planning.plan import Job
from nftbench.records.record import Record

LISTEN_SECONDS = 0.5
"""How long an executor waits for news before it says that there are none."""

Stage = Literal["protect", "attack"]


@dataclass(frozen=True, order=True)
class Step:
    """A release to make or a job to run. Steps run in the order of seeds, releases before attacks."""

    order: tuple[int, int, int]
    stage: Stage
    job: Job

    @property
    def name(self) -> str:
        return name_of(self.stage, self.job)


def name_of(stage: Stage, job: Job) -> str:
    """The name of a step, by which its worker says what it does."""
    return f"{stage} {job.key}"


@dataclass(frozen=True)
class News:
    """What has happened to a step."""

    kind: Literal["started", "doing", "stopped", "ended"]
    """`stopped`: its worker is gone before its end, and it will start again."""
    step: Step
    words: str = ""
    """What is being done for it now."""
    records: Sequence[Record] | None = ()
    """What it has written; None where another process holds the job, so that it has to be tried again."""
    error: BaseException | None = None
    """Why it could not be carried out."""


class Executor(Protocol):
    """Carries out steps, several at a time. It is ready for work between `open` and `close`."""

    def open(self) -> None:
        """Get ready.

        Raises:
            NftbenchError: it cannot work here.
        """

    def close(self) -> None:
        """Give up what has not ended, and leave nothing behind."""

    def room(self) -> int:
        """How many more steps it takes now."""

    def begin(self, steps: Sequence[Step]) -> None:
        """Take steps, at most as many as there is room for."""

    def news(self) -> Sequence[News]:
        """What has happened since the last call. If nothing has, it waits a little."""
