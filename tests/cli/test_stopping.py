"""Signals that end a command: one line that says how to go on, the exit code, no process left, no cell lost."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nftbench.records.store import Store
from tests.conftest import PLUGIN
from tests.sessions import session

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}
WAITS = """
import sys, time
from nftbench.cli import stopping
stopping.before_the_end(lambda: print("tidied up", flush=True))
stopping.before_the_end(lambda: 1 / 0)
stopping.handle(sys.argv[1:])
print("ready", flush=True)
try:
    time.sleep(60)
except BaseException:
    print("an exception could be lost", flush=True)
"""
SLEEPS = """
import time

@dataclass(frozen=True)
class Sleeps(Defense):
    stage: ClassVar[str] = "posttrain"

    def protect(self, model, context):
        time.sleep(600)
"""
DOZES = """
import time

@dataclass(frozen=True)
class Dozes(Attack):
    def adapt(self, prepared, task, context):
        time.sleep(600)
"""
MOMENTS = {
    "planning": ("planning", []),
    "base": ("pre-trains the undefended model of seed 0: step", ["--set", "pretraining.steps=1000000"]),
    "release": ("protects the model", ["--plugin", "sleeps.py", "--defenses", "sleeps"]),
    "attack": ("dozes seed 0 \\(attacks the release", ["--plugin", "dozes.py", "--attacks", "none,dozes"]),
}
"""A run's words at a moment, as a pattern, and the options that make the moment last."""


@contextmanager
def started(words: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that leads a session, which is ended in any case."""
    environment = {**os.environ, "NFTBENCH_CACHE": str(folder / "cache")}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, cwd=folder, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            for living in session(process.pid):
                os.kill(living, signal.SIGKILL)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_command_with_one_line_that_says_how_to_go_on(number: signal.Signals, tmp_path: Path) -> None:
    words = ["run", "my suite.yaml", "--force", "--jobs", "2"]
    (tmp_path / "waits.py").write_text(WAITS)
    with started([sys.executable, "waits.py", *words], tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out == "tidied up\n"
    assert err.startswith(f"nftbench: stopped by {SIGNALS[number]}. To go on: ")
    assert shlex.split(err)[-4:] == ["run", "my suite.yaml", "--jobs", "2"]  # --force would begin again
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("done", "said"),
    [
        ("0, 9, 0, 4", "; no cell is done yet, nor a model. To"),
        ("0, 9, 2, 4", "; no cell is done yet, at least 2 of 4 models are kept. To"),
        ("3, 9, 4, 4", "; finished cells are kept, at least 3 of 9. To"),
    ],
)
def test_the_line_says_what_is_kept(done: str, said: str, tmp_path: Path) -> None:
    told = WAITS.replace('print("ready"', f'stopping.tell({done})\nprint("ready"')
    with started([sys.executable, "-c", told, "run", "mine.yaml"], tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert said in process.communicate(timeout=60)[1]


@pytest.mark.parametrize(("kept", "code"), [("", 1), ("stopping.tell(3, 9, 4, 4); ", 128 + signal.SIGPIPE)])
def test_where_nobody_reads_a_run_says_how_to_go_on_and_other_verbs_are_silent(
    kept: str, code: int, tmp_path: Path
) -> None:
    read, write = os.pipe()
    os.close(read)
    ends = f"import sys; from nftbench.cli import main, stopping; {kept}sys.exit(main())"
    words = [sys.executable, "-c", ends, "list"]
    done = subprocess.run(words, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == code
    said = "nftbench: stopped, because nobody reads its output any longer; finished cells are kept, at least 3 of 9. "
    assert done.stderr.startswith(said) if kept else done.stderr == ""
    assert done.stderr.count("\n") == bool(kept)


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As SIGHUP under nohup."""
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    with started([sys.executable, "-c", ignoring + WAITS], tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("planning", signal.SIGINT),
        ("base", signal.SIGTERM),
        ("release", signal.SIGHUP),
        ("attack", signal.SIGINT),
        ("attack", signal.SIGTERM),
    ],
)
def test_a_run_that_is_stopped_leaves_no_process_and_loses_no_cell(
    moment: str, number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "sleeps.py").write_text(PLUGIN + SLEEPS)
    (tmp_path / "dozes.py").write_text(PLUGIN + DOZES)
    pattern, options = MOMENTS[moment]
    words = ["run", "smoke", "--out", "results", "--jobs", "1", "--defenses", "none", "--attacks", "none", *options]
    seen = []
    with started([sys.executable, "-P", "-m", "nftbench", *words], tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            seen.append(line)
            if re.search(pattern, line):
                break
        else:
            pytest.fail(f"{seen} {process.stderr}")
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 128 + number, err
        end = time.monotonic() + 60
        while session(process.pid):
            assert time.monotonic() < end, f"left behind: {session(process.pid)}"
            time.sleep(0.05)
    assert err.count("\n") == 1
    assert shlex.split(err)[-len(words) :] == words
    found = Store(tmp_path / "results", tmp_path / "cache").records()
    kept = (
        rf"; finished cells are kept, at least {len(found)} of \d+"
        if found
        else "; no cell is done yet, (nor a model|.* models are kept)"
    )
    kept = "" if moment == "planning" else kept
    assert re.match(rf"nftbench: stopped by {SIGNALS[number]}{kept}\. To go on: ", err), err
    done = [int(count) for line in [*seen, *out.splitlines()] for count in re.findall(r"^\[(\d+)/", line)]
    assert len(found) == max(done, default=0)
    assert moment != "attack" or len(found) == 4  # the attack `none` measures four tasks
