"""A SLURM cluster of this machine alone, for tests. It needs root, and Debian's packages slurm-wlm and munge.

As a command, `python tests/slurm_cluster.py FOLDER` starts one in a folder, prints what SLURM's commands need in the
environment, and ends it with Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
SETTINGS = """
ClusterName=nftbench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why no cluster can be started here; None if one can."""
    lacking = [program for program in PROGRAMS if _found(program) is None]
    if lacking:
        return f"{', '.join(lacking)} not found: apt-get install slurm-wlm munge"
    return "needs root" if os.geteuid() else None


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start a cluster; yields the environment variables that SLURM's commands need."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("state", "spool"):
        (folder / name).mkdir(exist_ok=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    controller, node = _free_ports(2)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 256
    names = {
        "host": host,
        "controller": controller,
        "node": node,
        "cores": os.cpu_count(),
        "memory": memory,
        "folder": folder,
    }
    (folder / "slurm.conf").write_text(SETTINGS.format(**names))
    environment = {"SLURM_CONF": str(folder / "slurm.conf")}
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> None:
        program, *rest = words
        with (folder / f"{program}.out").open("wb") as log:
            command = [str(_found(program)), *rest]
            started.append(
                subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment}, cwd=folder)
            )

    try:
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        options = [f"--{option}={folder}/munge.{end}" for option, end in files.items()]
        start("munged", "--foreground", "--force", *options)
        _wait((folder / "munge.socket").exists, folder)
        start("slurmctld", "-D")
        start("slurmd", "-D")
        _wait(lambda: _is_idle(environment), folder)
        yield environment
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def _found(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _is_idle(environment: dict[str, str]) -> bool:
    command = ["sinfo", "--noheader", "--format=%t"]
    found = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    return found.stdout.strip() == "idle"


def _wait(reached: object, folder: Path, seconds: float = 120.0) -> None:
    assert callable(reached)
    end = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > end:
            logs = [f"{path.name}:\n{path.read_text(errors='replace')[-2000:]}" for path in folder.glob("*.log")]
            logs += [f"{path.name}:\n{path.read_text(errors='replace')[-2000:]}" for path in folder.glob("*.out")]
            raise RuntimeError("\n".join(["the cluster does not start", *logs]))
        time.sleep(0.2)


if __name__ == "__main__":
    with cluster(Path(sys.argv[1]).resolve()) as found, contextlib.suppress(KeyboardInterrupt):
        print(*(f"export {name}={value}" for name, value in found.items()), sep="\n", flush=True)
        while True:
            time.sleep(1)
