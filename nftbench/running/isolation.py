"""Processes for plugins: each `protect`, each attack and each question to an added plugin has one of its own.

A *parent process* is forked from multiprocessing's server, has imported the heavy modules and no plugin, and computes
nothing. It forks a child for each piece of work, so that none finds what another has changed. Where the system can
confine it, the child writes to its own folder alone, finds neither cache nor salt, and starts no further process.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing.util
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait as wait_for_end
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Literal

from nftbench.errors import NftbenchError, one_line
from nftbench.planning import registry
from nftbench.records import disk_budget, leases
from nftbench.records.store import Store
from nftbench.running import landlock, seccomp

PRELOADED = ["nftbench.running.referee", "nftbench.methods"]
"""The modules that the server imports before anything is forked from it. They import no plugin."""
TEMPORARY = "temporary"
"""Where a child's temporary files lie in its folder."""
DEEPEST = 10
"""How deep folders may lie in one that a child leaves."""
LONGEST_TEXT = 100_000_000
"""Most bytes of a JSON file that a child leaves. The tokenizers of large models have a third of this."""
PATIENCE = 0.02
"""The longest pause, in seconds, between two looks at whether a child has ended."""
PRINTED = "printed"
"""The file in a child's folder that takes what it prints."""
MOST_PRINTED = 10_000
"""How many bytes of that are shown, counted from the end."""
DEATH_SIGNAL = 1
"""The option of prctl by which a process names the signal that it gets when its parent ends."""
RESERVE = 1_000_000_000
"""Bytes that a child leaves free on the disk, because the referee's records lie on it too."""


class DiedError(NftbenchError):
    """A child ended without a result."""


class KilledError(DiedError):
    """A child was killed by the system, most likely because memory ran out."""


class TooLongError(NftbenchError):
    """A child used up its time and was stopped."""


class DiskError(DiedError):
    """A child filled the disk and was stopped."""


Stopped = Literal["late", "disk"]
"""Why a parent process stops a child: its time is up, or the disk is nearly full."""


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int
    """Its exit code; the negative number of the signal that ended it."""
    seconds: float
    """Processor time of the child and of those of its own children that it waited for."""
    stopped: Stopped | None = None
    """Why it was stopped, if it was."""


@dataclass(frozen=True)
class _Call:
    """What a child does, and the folders that it may see."""

    function: Callable[[bytes, Path], None]
    plugins: tuple[str, ...]
    folder: Path
    hidden: tuple[Path, ...]
    readable: tuple[Path, ...]
    limit: float


def kind() -> Literal["landlock", "process"]:
    """How plugins are kept apart here: `landlock` hides secrets and cache from them, `process` does not."""
    return "landlock" if landlock.version() and seccomp.available() else "process"


def documents(data: Path | None) -> tuple[Path, ...]:
    """The folders with data sets, whose test documents and scored text plugins must not read; `data` is `--data`.

    The package `datasets` keeps what it has prepared in a cache of its own, and what it downloads in that of the hub,
    beside models. `datasets--` is never there. Since it is hidden, only what the hub's cache holds now can be read of
    it, and no data set that another process downloads later.
    """
    import datasets  # here, because it takes a second
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE)
    downloaded = (hub / "datasets--", *hub.glob("datasets--*"), Path(constants.HF_XET_CACHE))
    return (Path(datasets.config.HF_DATASETS_CACHE), *downloaded, *([data] if data is not None else []))


@contextlib.contextmanager
def folder(store: Store) -> Iterator[Path]:
    """A new folder for a child, in the cache, deleted afterwards. No other child can read it.

    Folders that killed processes have left are deleted too: each may hold a whole model.
    """
    parent = store.cache / "exchange"
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    def lease(folder: Path) -> Path:
        return leases.file(store.cache, f"exchange-{folder.name}")

    for left in parent.iterdir():
        if (dead := leases.take(lease(left), store.expiry)) is not None:
            _delete(left)
            dead.end()
    made = parent.resolve() / str(uuid.uuid4())
    with leases.held(lease(made), store.expiry):
        made.mkdir(mode=0o700)
        try:
            yield made
        finally:
            _delete(made)


def _delete(folder: Path) -> None:
    _empty(folder)
    shutil.rmtree(folder, ignore_errors=True)


def run(
    function: Callable[[bytes, Path], None],
    order: bytes,
    folder: Path,
    store: Store,
    *,
    limit: float,
    hidden: Sequence[Path] = (),
    readable: Sequence[Path] = (),
) -> float:
    """Call `function(order, folder)` in a process of its own, and return the processor seconds that it took.

    Args:
        function: a function of nftbench, which writes its results to `folder`.
        order: what it is given.
        limit: seconds after which the child is stopped with everything that it has started.
        hidden: what it may not read beside the cache and what the run keeps in its results folder.
        readable: folders that the child may read even so.

    Raises:
        TooLongError: the limit is over.
        DiskError: the disk is nearly full, and was not at the child's start.
        DiedError: the child ended in another way than by returning from `function`.
    """
    (folder / "order").write_bytes(order)
    secret = (store.cache, *store.private, *hidden)
    hidden = tuple(path.resolve() for path in secret)
    call = _Call(function, registry.added_files(), folder, hidden, tuple(readable), limit)
    connection = _parent(os.getpid())
    try:
        connection.send(call)
        ended: Ended = connection.recv()
    except (EOFError, OSError) as error:
        _parent.cache_clear()
        raise KilledError(
            "the process that starts plugins was killed; the system may have run out of memory"
        ) from error
    _check_files(folder)
    _show_printed(folder / PRINTED)
    if ended.stopped == "late":
        raise TooLongError(f"stopped after {limit:g} s")
    if ended.stopped == "disk":
        raise DiskError(f"stopped, because less than {RESERVE / 1e9:g} GB of disk were free")
    if ended.code == -signal.SIGKILL:
        raise KilledError("its process was killed; the system may have run out of memory")
    if ended.code < 0:
        raise DiedError(f"its process was ended by {signal.Signals(-ended.code).name}")
    if ended.code > 0 or not (folder / "returned").exists():
        raise DiedError(f"its process ended by itself with exit code {ended.code}, and returned nothing")
    return ended.seconds


def _check_files(folder: Path) -> None:
    """Refuse all that a child has left if the referee cannot read it safely.

    A link leads the referee elsewhere, deep folders end its own recursion, and a long text fills its memory.

    Raises:
        DiedError: it left something else than files and folders, or too much. The folder is empty now.
    """
    _empty(folder / TEMPORARY)
    waiting = [folder]
    while waiting:
        for path in list(waiting.pop().iterdir()):
            inside, is_folder = path.relative_to(folder), path.is_dir() and not path.is_symlink()
            problem = None
            if path.is_symlink() or not (path.is_file() or is_folder):
                problem = "which is no plain file"
            elif is_folder and len(inside.parts) > DEEPEST:
                problem = f"which lies more than {DEEPEST} folders deep"
            elif path.suffix == ".json" and path.stat().st_size > LONGEST_TEXT:
                problem = f"which has more than {LONGEST_TEXT} bytes"
            if problem is not None:
                _empty(folder)
                name = os.fsencode(inside).decode(errors="backslashreplace")
                raise DiedError(f"it left {one_line(name)}, {problem}")
            if is_folder:
                path.chmod(0o700)  # its maker need not have let anyone read it
                waiting.append(path)


def _show_printed(file: Path) -> None:
    """Show the end of what a child printed, marked so that nobody takes it for a message of the referee."""
    if not file.is_file():
        return
    with file.open("rb") as printed:
        printed.seek(max(0, file.stat().st_size - MOST_PRINTED))
        text = printed.read().decode(errors="replace")
    for line in text.splitlines():
        shown = "".join(letter if letter.isprintable() else " " for letter in line)
        print("plugin:", shown, file=sys.stderr)


def _empty(folder: Path) -> None:
    """Delete all in a folder. Folders inside are brought up first: they may lie deeper than a path can be long."""
    with contextlib.suppress(OSError):
        while inner := [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]:
            inner[0].chmod(0o700)
            for path in list(inner[0].iterdir()):
                if path.is_dir() and not path.is_symlink():
                    path.rename(tempfile.mkdtemp(dir=folder))
                else:
                    path.unlink()
            inner[0].rmdir()
        for path in list(folder.iterdir()):
            path.unlink()


def aside(function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function of the referee in a process of its own that ends with it, because it runs an owner's code.

    Raises:
        NftbenchError: what the function raised, as text, or that its process died.
    """
    context = _context()
    ours, theirs = context.Pipe(duplex=False)
    with _no_main_module():
        process = context.Process(target=_aside, args=(registry.added_files(), function, arguments, theirs))
        process.start()
    theirs.close()
    try:
        message = ours.recv_bytes().decode()
    except EOFError:
        message = "the process that runs the release's own code died"
    process.join()
    if message:
        raise NftbenchError(message)


def _aside(
    plugins: Sequence[str], function: Callable[..., Any], arguments: tuple[Any, ...], result: Connection
) -> None:
    message = ""
    end_with_parent()
    try:
        for path in plugins:
            registry.add_file(path)
        with registry.importing_added(), disk_budget.until_end():
            function(*arguments)
    except BaseException as error:  # a plugin may raise anything, and Ctrl-C does not reach this process
        message = str(error) if isinstance(error, NftbenchError) else f"{type(error).__name__}: {error}"
    result.send_bytes(message.encode())


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended: whoever was killed must not go on writing."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int, end: Callable[[int], None]) -> None:
        wait_for_end([sentinel])
        end(1)

    threading.Thread(target=watch, args=(parent.sentinel, os._exit), daemon=True).start()


@functools.cache
def _parent(referee: int) -> Connection:
    """The connection to this process's parent process for plugins, which is started with the first use.

    Args:
        referee: this process, because a forked process has to start its own.
    """
    context = _context()
    ours, theirs = context.Pipe()
    with _no_main_module():
        context.Process(target=_serve, args=(theirs,), daemon=False).start()
    theirs.close()
    # At the interpreter's end, multiprocessing waits for its processes, and this one waits for the connection's end.
    multiprocessing.util.Finalize(None, ours.close, exitpriority=10)
    return ours


def _context() -> ForkServerContext:
    """What starts processes, as forks of multiprocessing's server.

    A worker was forked from that server itself and has its processes forked from it, too. Python would start another
    server in each worker, which takes seconds and half a gigabyte to import the heavy modules again.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    server = getattr(forkserver, "_forkserver", None)  # the standard library has no public way to share it
    forked = multiprocessing.parent_process() is not None and getattr(server, "_forkserver_address", None)
    # From Python 3.14 on, the server answers only to the process that has started it.
    if forked and not hasattr(server, "_forkserver_authkey"):
        server.ensure_running = resource_tracker.ensure_running  # type: ignore[union-attr]
    return context


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """Multiprocessing would run the main script again in the new process, and the script may import plugins."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = type(sys)("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# ------------------------------------------------------------------------------------------------- the parent process


def _serve(connection: Connection) -> None:
    """Fork a child for each call, until the referee ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for plugins in registry.KINDS:
        registry.available(plugins)  # parses all plugin files once; no child has to
    own = os.getpid()
    while True:
        try:
            call = connection.recv()
        except (EOFError, OSError):
            return
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            connection.close()
            _become(call, own)
        ended = _watch(child, call, connection)
        if ended is None:
            return
        connection.send(ended)


def _watch(child: int, call: _Call, connection: Connection) -> Ended | None:
    """Wait for a child to end, or end it; None where the referee has ended meanwhile."""
    begun, pause = time.monotonic(), 0.001
    stopped: Stopped | None = None
    reserve = RESERVE if shutil.disk_usage(call.folder).free > RESERVE else 0
    while True:
        found, status, used = os.wait4(child, os.WNOHANG)
        if found:
            _kill_group(child)  # what the child has started and left behind
            return Ended(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, stopped)
        if stopped is None:
            if time.monotonic() - begun > call.limit:
                stopped = "late"
            elif shutil.disk_usage(call.folder).free < reserve:
                stopped = "disk"
            if stopped is not None:
                _kill_group(child)
        if connection.poll(pause):  # the referee says nothing while it waits: it has ended
            _kill_group(child)
            return None
        pause = min(2 * pause, PATIENCE)


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):  # a child that has not made its group yet
        os.kill(leader, signal.SIGKILL)


# ---------------------------------------------------------------------------------------------------------- the child


def _print_to(file: Path) -> None:
    """Have all that this process prints go to a file."""
    printed = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(printed, stream)


def _end_with(parent: int) -> None:
    """Have the system end this process when its parent process is killed: nobody would know of it any more."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it was killed before
            os._exit(1)


def _become(call: _Call, parent: int) -> None:
    """Do one call in this process, and end."""
    code = 1
    try:
        _end_with(parent)
        os.setsid()  # a group of its own, which can be stopped as a whole
        _print_to(call.folder / PRINTED)
        with contextlib.suppress(OSError):  # Linux alone has it
            Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process is the one to end
        os.environ.pop("NFTBENCH_CACHE", None)
        os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # lines to the server and to the referee
        (call.folder / TEMPORARY).mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(call.folder / TEMPORARY)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if kind() == "landlock":
            landlock.hide(call.hidden, readable=call.readable, writable=[call.folder])
            seccomp.confine()
        for path in call.plugins:
            registry.add_file(path)
        with registry.importing_added():
            call.function((call.folder / "order").read_bytes(), call.folder)
        (call.folder / "returned").touch()
        code = 0
    except Exception:
        sys.excepthook(*sys.exc_info())
    except BaseException as error:  # a plugin's, such as KeyboardInterrupt
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
