"""Jobs of a SLURM cluster, submitted with submitit (https://github.com/facebookincubator/submitit).

Steps that become ready together are one job array for each kind: releases to make, and attacks. Each has one worker
process, like those on one machine. SLURM starts a job again that was preempted or that has run out of time; what it had
finished by then is kept. Results and logs lie in the results folder.
"""

from __future__ import annotations

import getpass
import math
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nftbench.errors import NftbenchError, one_line, suggest
from nftbench.planning.plan import Job
from nftbench.records.record import Record
from nftbench.records.store import WORKERS
from nftbench.running import failures, isolation
from nftbench.running.executors import worker
from nftbench.running.executors.local import LocalExecutor
from nftbench.running.executors.protocol import LISTEN_SECONDS, News, Stage, Step
from nftbench.running.executors.steps import BUSY_SECONDS
from nftbench.running.failures import FailedError
from nftbench.suites.keys_once import KeysOnce
from nftbench.terms import Status

if TYPE_CHECKING:
    from nftbench.running.workspace import Workspace

LOOK_SECONDS = 5.0
"""How long to wait before looking at the queue again."""
GONE_SECONDS = 30.0
"""How long a job's result may take to be seen here after the job has left the queue."""
LONGEST_ARRAY = 1000
"""Jobs of one array. A cluster that is not configured otherwise takes 1001."""
MINUTES = 24 * 60
"""A job's time where the configuration names none."""
OVER = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
"""States of jobs that will not run again. https://slurm.schedmd.com/squeue.html lists all."""
SECTIONS: Mapping[str, Stage] = {"releases": "protect", "attacks": "attack"}
"""The parts of a configuration that hold for one kind of job."""


@dataclass(frozen=True)
class Settings:
    """What the jobs of each kind ask SLURM for, in the words of submitit's `AutoExecutor`, by stage."""

    of: Mapping[Stage, Mapping[str, Any]] = field(default_factory=lambda: {"protect": {}, "attack": {}})

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Those of a file with benchopt's keys, and with sections of their own for `releases` and `attacks`.

        Raises:
            NftbenchError: the file is no such configuration.
        """
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), KeysOnce)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise NftbenchError(f"{path}: {one_line(str(error))}") from error
        if not isinstance(content, dict):
            raise NftbenchError(f"{path}: not a mapping of keys such as slurm_partition to values")
        if content.pop("backend", "submitit") != "submitit":
            raise NftbenchError(f"{path}: backend: --executor slurm knows submitit alone")
        sections = {name: content.pop(name, None) or {} for name in SECTIONS}
        for keys in (content, *sections.values()):
            for key in keys if isinstance(keys, dict) else [str(keys)]:
                if not str(key).startswith("slurm_"):
                    known = ["backend", *SECTIONS, "slurm_partition", "slurm_time", "slurm_mem", "slurm_gres"]
                    raise NftbenchError(f"{path}: unknown key {str(key)!r}{suggest(str(key), known)}")
        both = {stage: {**content, **sections[name]} for name, stage in SECTIONS.items()}
        for keys in both.values():
            if keys.get("slurm_time") is not None:
                keys["slurm_time"] = minutes(keys["slurm_time"])
        return cls(both)


def minutes(text: object) -> int:
    """The minutes of a time as SLURM writes it: `90`, `90:00`, `1:30:00`, `1-2`, `1-2:30` or `1-2:30:00`.

    Raises:
        NftbenchError: it is no such time.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(text))
    if found is None:
        raise NftbenchError(f"slurm_time: {text!r} is no time; write minutes, or 8:00:00 in quotes")
    days, *parts = (int(part) if part is not None else None for part in found.groups())
    given = [part for part in parts if part is not None]
    begins_with_hours = days is not None or len(given) == 3
    units = (3600, 60, 1) if begins_with_hours else (60, 1)
    seconds = (days or 0) * 86400 + sum(part * unit for part, unit in zip(given, units, strict=False))
    return max(1, math.ceil(seconds / 60))


@dataclass
class _Queued:
    """A step's job in the queue."""

    step: Step
    job: Any
    """Submitit's."""
    is_started: bool = False
    gone: float | None = None
    """Since when it has been out of the queue without a result, by the monotonic clock."""


class SlurmExecutor:
    """Jobs of SLURM.

    Args:
        most: the largest number of jobs in the queue; None for no limit.
        memory: bytes that one job needs, where the settings say nothing about memory.
    """

    def __init__(self, workspace: Workspace, settings: Settings, most: int | None, memory: float) -> None:
        self.workspace, self.settings, self.most, self.memory = workspace, settings, most, memory
        self.queued: dict[str, _Queued] = {}
        """By job id, as in `17_3`."""
        self.looked = time.monotonic()

    def open(self) -> None:
        submitit = imported()
        if shutil.which("sbatch") is None:
            raise NftbenchError("--executor slurm: there is no sbatch here: run this on a machine of the cluster")
        self.parcel = worker.send(self.workspace)
        folder = (self.workspace.store.results / WORKERS / "slurm").resolve()
        self.submitters: dict[Stage, Any] = {}
        for stage, asked in self.settings.of.items():
            submitter = submitit.AutoExecutor(folder / "%j", cluster="slurm")
            usual: dict[str, Any] = {"slurm_job_name": f"nftbench-{stage}", "slurm_time": MINUTES}
            if not any("mem" in name for name in asked):
                usual["slurm_mem"] = f"{math.ceil(self.memory / 1e6)}M"
            if self.workspace.device.kind == "cuda" and not any("gpu" in name or "gres" in name for name in asked):
                usual["slurm_gpus_per_node"] = 1
            try:
                submitter.update_parameters(**{**usual, **asked})
            except (AssertionError, NameError, TypeError, ValueError) as error:
                raise NftbenchError(f"--parallel-config: {one_line(str(error))}") from error
            self.submitters[stage] = submitter

    def close(self) -> None:
        arrays = {name.partition("_")[0] for name in self.queued}
        if arrays:
            subprocess.run(["scancel", "--quiet", *sorted(arrays)], check=False, capture_output=True)
        self.queued.clear()
        self.parcel.unlink(missing_ok=True)

    def room(self) -> int:
        return (self.most or 10 * LONGEST_ARRAY) - len(self.queued)

    def begin(self, steps: Sequence[Step]) -> None:
        for stage, submitter in self.submitters.items():
            of_stage = [step for step in steps if step.stage == stage]
            for start in range(0, len(of_stage), LONGEST_ARRAY):
                array = of_stage[start : start + LONGEST_ARRAY]
                with submitter.batch():
                    jobs = [submitter.submit(Work(), self.parcel, step.stage, step.job) for step in array]
                self.queued |= {job.job_id: _Queued(step, job) for job, step in zip(jobs, array, strict=True)}

    def news(self) -> Sequence[News]:
        time.sleep(LISTEN_SECONDS)
        if time.monotonic() - self.looked < LOOK_SECONDS:
            return []
        self.looked = time.monotonic()
        states = _states()
        told: list[News] = []
        for name, one in list(self.queued.items()):
            state = states.get(name, "") if states is not None else "UNKNOWN"
            if state == "RUNNING" and not one.is_started:
                one.is_started = True
                told.append(News("started", one.step))
            ended = self.ended(one, state)
            if ended is not None:
                del self.queued[name]
                told.append(ended)
        return told

    def ended(self, one: _Queued, state: str) -> News | None:
        """How a job has ended; None if it has not, or if its result has not been seen yet."""
        if one.job.paths.result_pickle.exists():
            kind, result = one.job._get_outcome_and_result()  # result() would ask sacct, which many clusters lack
            if kind == "error":
                status: Status = "timeout" if "timed-out" in str(result) else "failed"
                result = FailedError(status, f"SLURM job {one.job.job_id}: {one_line(str(result))[-300:]}")
            if isinstance(result, FailedError):
                return News("ended", one.step, error=result)
            return News("ended", one.step, records=result)
        if state and state not in OVER:
            one.gone = None
            return None
        one.gone = one.gone or time.monotonic()
        if time.monotonic() - one.gone < GONE_SECONDS:
            return None
        why = f"SLURM job {one.job.job_id} ended without a result: {state or 'it has left the queue'}"
        errors = {"OUT_OF_MEMORY": isolation.KilledError, "TIMEOUT": isolation.TooLongError}
        return News("ended", one.step, error=errors.get(state, NftbenchError)(f"{why}; log: {one.job.paths.stderr}"))


def _states() -> dict[str, str] | None:
    """The state of each job of this user in the queue, or that has just left it; None if SLURM does not answer."""
    command = ["squeue", "--noheader", "--array", "--states=all", f"--user={getpass.getuser()}", "--format=%i %T"]
    try:
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(line.split(maxsplit=1) for line in answer.splitlines() if line.strip())


def imported() -> Any:
    """Submitit.

    Raises:
        NftbenchError: it is not installed.
    """
    try:
        import submitit
    except ImportError:
        raise NftbenchError("--executor slurm needs submitit: pip install 'nftbench[slurm]'") from None
    return submitit


class Work:
    """What a job of SLURM does. It has a worker process of its own, which no signal of SLURM reaches in the middle."""

    def __call__(self, parcel: Path, stage: Stage, job: Job) -> list[Record] | FailedError:
        executor = LocalExecutor(worker.receive(parcel), 1)
        step = Step((0, 0, 0), stage, job)
        executor.open()
        try:
            while True:
                executor.begin([step])
                ended: list[News] = []
                while not ended:
                    news = executor.news()
                    for one in news:
                        if one.words:
                            print(one.words, flush=True)  # to the job's log
                    ended = [one for one in news if one.kind == "ended"]
                if ended[0].error is not None:
                    return FailedError(*failures.status_of(ended[0].error))
                if ended[0].records is not None:
                    return list(ended[0].records)
                time.sleep(BUSY_SECONDS)  # another process holds the job
        finally:
            executor.close()

    def checkpoint(self, parcel: Path, stage: Stage, job: Job) -> Any:
        """What a job does that SLURM starts again: the same. Its finished cells have records."""
        return imported().helpers.DelayedSubmission(Work(), parcel, stage, job)
