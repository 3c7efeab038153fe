"""Workers in a Ray cluster (https://docs.ray.io): one that is started here, or one that runs already.

A step is a task. Ray tries it again on another node if its node or process is lost. Releases and records travel through
the cache and the results folder, which all nodes share.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nftbench.errors import NftbenchError, one_line
from nftbench.planning.plan import Job
from nftbench.records.record import Record
from nftbench.running import isolation
from nftbench.running.executors import worker
from nftbench.running.executors.protocol import LISTEN_SECONDS, News, Stage, Step

if TYPE_CHECKING:
    from nftbench.running.workspace import Workspace

RETRIES = 3
"""How often Ray tries a step again whose process or node was lost. One that is lost each time may be the cause."""


class RayExecutor:
    """Tasks of a Ray cluster, each with one core, a card on CUDA, and the memory that the plan expects of a job.

    Args:
        address: of a running cluster, `auto` for the one that this machine belongs to; None starts one here.
        most: the largest number of steps at a time; None for as many as the cluster has room for.
        memory: bytes that one step needs.
    """

    def __init__(self, workspace: Workspace, address: str | None, most: int | None, memory: float) -> None:
        self.workspace, self.address, self.most = workspace, address, most
        self.needs = {"CPU": 1.0, "memory": memory, "GPU": float(workspace.device.kind == "cuda")}
        self.running: dict[Any, Step] = {}
        self.begun: list[News] = []

    def open(self) -> None:
        self.ray = imported()
        here = {"address": "local", "include_dashboard": False, "num_cpus": self.most} if self.address is None else {}
        try:
            self.ray.init(**({"address": self.address} | here), log_to_driver=False)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise NftbenchError(f"--executor ray: no cluster: {one_line(str(error))}") from error
        if not any(self.fits(node["Resources"]) for node in self.ray.nodes() if node["Alive"]):
            needs = f"{self.needs['memory'] / 1e9:.2g} GB" + (" and a GPU" if self.needs["GPU"] else "")
            self.ray.shutdown()
            raise NftbenchError(f"--executor ray: no node of the cluster has one core, {needs} for a job")
        self.parcel = worker.send(self.workspace)
        options = {"num_cpus": self.needs["CPU"], "num_gpus": self.needs["GPU"], "memory": int(self.needs["memory"])}
        self.task = self.ray.remote(**options, max_retries=RETRIES)(_perform)

    def close(self) -> None:
        self.ray.shutdown()
        self.parcel.unlink(missing_ok=True)

    def room(self) -> int:
        slots = sum(self.fits(node["Resources"]) for node in self.ray.nodes() if node["Alive"])
        return min(slots, self.most or slots) - len(self.running)

    def fits(self, resources: dict[str, float]) -> int:
        """How many steps a node of these resources carries out at a time."""
        return min(int(resources.get(name, 0.0) / needed) for name, needed in self.needs.items() if needed)

    def begin(self, steps: Sequence[Step]) -> None:
        for step in steps:
            self.running[self.task.remote(self.parcel, step.stage, step.job)] = step
            self.begun.append(News("started", step))

    def news(self) -> Sequence[News]:
        told, self.begun = self.begun, []
        if not self.running:
            time.sleep(LISTEN_SECONDS)
            return told
        done, rest = self.ray.wait(list(self.running), num_returns=1, timeout=0 if told else LISTEN_SECONDS)
        if done and rest:
            done += self.ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return [*told, *(self.ended(task) for task in done)]

    def ended(self, task: Any) -> News:
        step = self.running.pop(task)
        try:
            return News("ended", step, records=self.ray.get(task))
        except self.ray.exceptions.RayTaskError as error:
            return News("ended", step, error=error.cause)
        except self.ray.exceptions.RayError as error:  # its process was lost again and again
            return News("ended", step, error=isolation.KilledError(one_line(str(error))))


def imported() -> Any:
    """Ray.

    Raises:
        NftbenchError: it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise NftbenchError("--executor ray needs Ray: pip install 'nftbench[ray]'") from None
    return ray


def _perform(parcel: Path, stage: Stage, job: Job) -> list[Record] | None:
    return worker.perform(worker.receive(parcel), stage, job)
