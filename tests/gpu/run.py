"""`make gpu`: all that is to be tried on a GPU, as one script that ends in time.

    python -P tests/gpu/run.py --data DATA                # tests, throughput, and the next seed of the suite wiki-gpu
    python -P tests/gpu/run.py --part throughput          # one part alone; --part may be given several times
    python -P tests/gpu/run.py --add FOLDER               # put a seed that was brought back into results/wiki-gpu
    python -P tests/gpu/run.py --rehearse --data DATA     # everything tiny on the CPU: its numbers mean nothing

Results lie in $OUT if that is set, else in runs/gpu/. Each part has its share of the time and is stopped at its end;
what it has written by then stays.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUITE = "wiki-gpu"
RESULTS = ROOT / "results" / SUITE
SECONDS = 570
"""A machine that is lent for 15 minutes runs a command for 10 minutes at most."""
SHARES = {"tests": 0.15, "throughput": 0.3, "suite": 0.55}
"""The parts in their order, and what each may take of the time. What one leaves over goes to those after it."""
BROUGHT_BACK = ("manifest.json", "records.jsonl.xz", "leaderboard.md")
"""Of the suite's folder. With the logs and the table that makes 8 files, as many as come back from a lent machine."""
REHEARSAL = [
    "pretraining.steps=4",
    "pretraining.warmup=1",
    "budget.durations=[1, 2]",
    "budget.warmup=1",
    "model.n_layer=1",
    "model.n_embd=16",
    "model.n_head=2",
    "corpus.heldout_blocks=4",
    "corpus.vocabulary=300",
    "defenses=[none]",
    "ladder={}",
    "ladder_attacks=[]",
    "initialisations=1",
    "attacks=[none, full]",
]
"""Changes of the suite that leave little to compute."""


@dataclass(frozen=True)
class Plan:
    """What this call does."""

    parts: tuple[str, ...]
    seconds: float
    out: Path
    data: Path | None
    rehearse: bool


def shares(parts: Sequence[str], left: float) -> float:
    """Seconds for the first of these parts, if so many are left for all of them."""
    return left * SHARES[parts[0]] / sum(SHARES[part] for part in parts)


def run(plan: Plan) -> int:
    """Do the parts; the number of those that failed or were stopped."""
    begun, failed = time.monotonic(), 0
    plan.out.mkdir(parents=True, exist_ok=True)
    for index, part in enumerate(plan.parts):
        limit = shares(plan.parts[index:], plan.seconds - (time.monotonic() - begun))
        print(f"== {part}: at most {limit:.0f} s", flush=True)
        started = time.monotonic()
        said = PARTS[part](plan, limit)
        failed += said != "done"
        line = f"{part}: {said} after {time.monotonic() - started:.0f} s"
        print(f"== {line}", flush=True)
        with (plan.out / "summary.txt").open("a", encoding="utf-8") as summary:
            summary.write(line + "\n")
    return failed


# --------------------------------------------------------------------------------------------------------------- parts


def tests(plan: Plan, limit: float) -> str:
    """The tests marked `gpu`; in a rehearsal the same tests on the CPU."""
    marked = [] if plan.rehearse else ["-m", "gpu"]
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-rs", "--durations=5", "-p", "no:benchmark", *marked]
    # Libraries of other versions than here may warn of anything.
    return call([*command, "-W", "default", "tests/gpu/test_gpu.py"], limit, plan.out / "tests.txt")


def throughput(plan: Plan, limit: float) -> str:
    tiny = ["--tiny"] if plan.rehearse else []
    table = plan.out / "throughput.md"
    command = [sys.executable, "-P", "tests/gpu/throughput.py", str(table), *tiny]
    said = call(command, limit, plan.out / "throughput.txt")
    print(table.read_text(encoding="utf-8") if table.exists() else "no measurement ended in time")
    return said


def suite(plan: Plan, limit: float) -> str:
    """The next seed of the suite, packed. It counts only if all its cells have a record."""
    begun = time.monotonic()
    if plan.data is None:
        return "not run: it needs --data with the folders wiki, glue and blimp"
    seed = next_seed(RESULTS)
    if seed is None:
        return f"not run: {RESULTS} holds all seeds"
    print(f"seed {seed} of {SUITE}", flush=True)
    with tempfile.TemporaryDirectory(prefix="nftbench-gpu-") as temporary:
        folder = Path(temporary) / SUITE
        nftbench = [sys.executable, "-P", "-m", "nftbench"]
        device = "cpu" if plan.rehearse else "cuda"
        command = [*nftbench, "run", SUITE, "--seeds", str(seed), "--device", device, "--jobs", "1"]
        command += ["--data", str(plan.data), "--out", str(folder)]
        if plan.rehearse:
            command += ["--limit", "8", *(word for change in REHEARSAL for word in ("--set", change))]
        cache = {"NFTBENCH_CACHE": os.environ.get("NFTBENCH_CACHE") or str(Path(temporary) / "cache")}
        said = call(command, limit - PACKING, plan.out / "suite.txt", cache)
        if not (folder / "manifest.json").exists():
            return said
        for verb in ("pack", "report"):
            left = max(limit - (time.monotonic() - begun), 1.0)
            packed = call([*nftbench, verb, str(folder)], left, plan.out / "suite.txt", cache)
            said = said if said != "done" else packed
        whole = seed in seeds_in(folder)
        # Under another name, --add takes nothing that does not count.
        kept = plan.out / (f"{SUITE}-rehearsal" if plan.rehearse else SUITE if whole else f"{SUITE}-unfinished")
        kept.mkdir(exist_ok=True)
        for name in BROUGHT_BACK:
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(folder / name, kept / name)
        return said if whole else f"seed {seed} is not complete and does not count ({said})"


PACKING = 15.0
"""Seconds kept for packing and ranking."""
PARTS: Mapping[str, Callable[[Plan, float], str]] = {"tests": tests, "throughput": throughput, "suite": suite}


def call(command: Sequence[str], limit: float, log: Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a command from the project's root, and append what it prints to a log. How it ended: `done`, or what else."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # so that all that it starts can be stopped with it
        )
        try:
            code = process.wait(max(limit, 0.0))
        except subprocess.TimeoutExpired:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
            return "stopped, its time was up"
    print("".join(log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[-15:]))
    return "done" if code == 0 else f"exit code {code}"


# --------------------------------------------------------------------------------------------------------------- seeds


def seeds_in(folder: Path) -> set[int]:
    """The complete seeds of a folder of results; none where there is no manifest."""
    from nftbench.records.count import complete_seeds
    from nftbench.records.store import Store, default_cache

    if not (folder / "manifest.json").exists():
        return set()
    store = Store(folder, default_cache())
    return complete_seeds(store.manifest(), store.records())


def next_seed(folder: Path) -> int | None:
    """The suite's first seed that a folder of results lacks; None if it holds them all."""
    from nftbench import suites

    done = seeds_in(folder)
    return next((seed for seed in suites.read(SUITE).seeds if seed not in done), None)


def add(brought: Path, results: Path = RESULTS) -> int:
    """Put a seed that was brought back into the published results, and rank them."""
    nftbench = [sys.executable, "-P", "-m", "nftbench"]
    found = brought / SUITE
    if not found.is_dir():
        print(f"{found}: there is no complete seed", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(dir=results.parent, prefix=f".{SUITE}-") as temporary:
        merged = Path(temporary) / SUITE
        folders = [str(folder) for folder in (results, found) if folder.is_dir()]
        for command in (["merge", *folders, "--out", str(merged)], ["pack", str(merged)], ["report", str(merged)]):
            code = subprocess.run([*nftbench, *command], cwd=ROOT).returncode
            if code:
                return code
        if results.is_dir():
            results.rename(Path(temporary) / "before")
        merged.rename(results)
    print(f"{results}: seeds {', '.join(map(str, sorted(seeds_in(results))))}")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=list(SHARES), help="a part; default: all")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    parser.add_argument("--data", type=Path, help="the folder with wiki, glue and blimp")
    parser.add_argument("--add", type=Path, metavar="FOLDER", help="put the seed in FOLDER into the results")
    parser.add_argument("--rehearse", action="store_true", help="everything tiny, on the CPU")
    given = parser.parse_args(words)
    if given.add is not None:
        return add(given.add.resolve())
    out = Path(os.environ.get("OUT") or ROOT / "runs" / "gpu").resolve()
    if not given.rehearse:
        import torch

        if not torch.cuda.is_available():
            print(
                "torch sees no GPU, and nothing was measured; --rehearse runs it all tiny on the CPU", file=sys.stderr
            )
            return 2
    parts = tuple(part for part in SHARES if given.part is None or part in given.part)
    data = given.data.resolve() if given.data is not None else None
    return 1 if run(Plan(parts, given.seconds, out, data, given.rehearse)) else 0


if __name__ == "__main__":
    sys.exit(main())
