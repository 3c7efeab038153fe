"""Worker processes: how many, how they are started, how they are stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing import forkserver, resource_tracker

from nftbench.cli import stopping
from nftbench.device import Device
from nftbench.running import isolation

MEMORY = 2 * 1024**3
"""Bytes that one worker may need: torch and transformers alone take half a gigabyte."""


def count(jobs: int | None, device: Device) -> int:
    """The number of worker processes: the value of --jobs, if it is given.

    By default it is one for each core, because a cell computes on one thread, but no more than memory allows. On CUDA
    it is one, so that a cell does not share the GPU.
    """
    if jobs is not None:
        return jobs
    if device.kind != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, memory // MEMORY))


def start_server() -> None:
    """Start the process that workers are forked from.

    It and the workers block Ctrl-C, which only the main process handles. Otherwise each would print a traceback.
    """
    stopping.before_the_end(stop)
    multiprocessing.get_context("forkserver").set_forkserver_preload(isolation.PRELOADED)
    _start_tracker()  # now, because it ends with unblocking Ctrl-C
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _start_tracker() -> None:
    """Start the process that removes the semaphores which a stopped command leaves. It would warn of them each time."""
    silent = "ignore:resource_tracker:UserWarning"
    sys.warnoptions.append(silent)  # the process is started with these options
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(silent)


def stop() -> None:
    """Stop the server and all workers immediately.

    Otherwise the interpreter would wait at exit for running cells, and the server would still start pending workers.
    """
    server = getattr(forkserver, "_forkserver", None)  # the standard library has no public way to stop it
    pid = getattr(server, "_forkserver_pid", None)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
    for process in multiprocessing.active_children():
        process.terminate()
